"""CORE's spans as nanochat scores them: an item at a time, its texts as padded rows, with all logits.

The slow twin of nanolit/evaluation/spans.py; `python -m benchmarks core` times both.
"""

import numpy as np
import torch
import torch.nn.functional as F

from nanolit.evaluation.spans import Group, Span
from nanolit.model.gpt import GPT


@torch.inference_mode()
def score_item(model: GPT, group: Group) -> list[Span]:
    """Return the Span of every text of an item."""
    longest = max(map(len, group.texts))
    rows = [np.pad(text, (0, longest - len(text))).astype(np.int64) for text in group.texts]
    ids_BT = torch.from_numpy(np.stack(rows)).to(model.device)
    logits_BTV = model(ids_BT)
    spans = []
    for row, (text, start) in enumerate(zip(group.texts, group.starts, strict=True)):
        target_M = ids_BT[row, start : len(text)]
        logits_MV = logits_BTV[row, start - 1 : len(text) - 1]
        greedy = bool((logits_MV.argmax(-1) == target_M).all())
        spans.append(Span(F.cross_entropy(logits_MV, target_M).item(), greedy))
    return spans
