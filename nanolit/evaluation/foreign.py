"""CORE for a model that transformers saved in a folder, asked as nanochat asked GPT-2.

A text begins with the tokenizer's BOS (GPT-2's is <|endoftext|>), is padded on the right and read alone.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nanolit.evaluation.spans import Group, Span, spans_of
from nanolit.inference.decode import batches_of
from nanolit.machine.device import pick_device
from nanolit.machine.paths import Json

BATCH_TOKENS = 8_192  # read at once, padding included: their logits take 1.6 GB at 50,257 tokens
POSITIONS = 2_048  # of a model that doesn't say how many it has, as recurrent ones


def open_foreign(folder: Path) -> "ForeignModel":
    """Return the model in a folder; ValueError if it can't be read."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; give a model folder saved by transformers")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # pyright: ignore
    except ImportError as error:
        raise ValueError("hf= needs transformers; install it: pip install 'nanolit[hf]'") from error
    local: Any = {"local_files_only": True, "trust_remote_code": False}  # runs no code of the folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **local)
    return ForeignModel(model.to(pick_device()).eval(), AutoTokenizer.from_pretrained(folder, **local))


class ForeignModel:
    """A causal model of transformers and its tokenizer: a scorer and an encoder of prompts."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        config = model.config.get_text_config()
        self.max_positions: int = getattr(config, "max_position_embeddings", None) or POSITIONS
        bos_id, eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.bos_id: int = eos_id if bos_id is None else bos_id
        rows = model.get_input_embeddings().num_embeddings
        if self.bos_id is None or len(tokenizer) > rows:
            has = "neither BOS nor EOS" if self.bos_id is None else f"{len(tokenizer):,} tokens"
            raise ValueError(
                f"the tokenizer has {has}, the model {rows:,} embeddings; save both from the same model"
            )

    def encode_batch(self, texts: Sequence[str], *, bos: bool) -> list[np.ndarray]:
        """Return each text's ids, from BOS on if asked."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [np.array([self.bos_id] * bos + ids, dtype=np.int64) for ids in encoded]

    def start(self, groups: Sequence[Group]) -> Callable[[], list[list[Span]]]:
        """Score groups at once; see spans.Scorer."""
        parts = [part for group in groups for part in zip(group.texts, group.starts, strict=True)]
        spans: dict[int, Span] = {}
        for batch in batches_of([len(text) for text, _ in parts], BATCH_TOKENS):
            spans |= zip(batch, self._read([parts[place] for place in batch]), strict=True)
        in_order = (spans[place] for place in range(len(parts)))
        scored = [[next(in_order) for _ in group.texts] for group in groups]
        return lambda: scored

    @torch.inference_mode()
    def _read(self, parts: Sequence[tuple[np.ndarray, int]]) -> list[Span]:
        T = max(len(text) for text, _ in parts)
        padded = [np.pad(text, (0, T - len(text)), constant_values=self.bos_id) for text, _ in parts]
        device = self.model.device
        ids_BT = torch.from_numpy(np.stack(padded).astype(np.int64)).to(device)
        # As nanochat: float32 weights, with bf16 products on a GPU
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits_BTV = self.model(input_ids=ids_BT, use_cache=False).logits
        losses, hits = [], []
        for row, (text, start) in enumerate(parts):
            logits_MV = logits_BTV[row, start - 1 : len(text) - 1].float()
            target_M = ids_BT[row, start : len(text)]
            losses.append(F.cross_entropy(logits_MV, target_M, reduction="none"))
            hits.append(logits_MV.argmax(-1) == target_M)
        return [*spans_of(torch.cat(losses), torch.cat(hits), [len(loss) for loss in losses])]


def compare_with_published(name: str, bundle: Path, scores: Json) -> None:
    """Print GPT-2's published scores, which the bundle has, if `name` is one of its sizes."""
    size = re.search(r"gpt2(-medium|-large|-xl)?$", name.lower())
    path = bundle / f"openai-community-{size[0]}.csv" if size else None
    if path is None or not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        task, accuracy, centered = (cell.strip() for cell in line.split(","))
        if task == "CORE":
            print(f"  {'published CORE':<32} {centered}")
        elif task not in scores["other_questions"]:
            difference = scores["tasks"][task]["accuracy"] - float(accuracy)
            print(f"  {task:<32} {accuracy} published, here {difference:+.6f}")
