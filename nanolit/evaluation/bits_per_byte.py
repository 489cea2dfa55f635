"""Bits per byte: how well a model predicts text, on a scale that does not depend on the tokenizer."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nanolit.model.gpt import GPT


@torch.inference_mode()
def bits_per_byte(model: GPT, batches: Iterable[tuple[Tensor, Tensor]], token_bytes: Any) -> float:
    """Nats of the targets, over ln 2 times their bytes, summed over the batches of all ranks.

    `batches` yields (ids_BT, targets_BT). `token_bytes` (V,) is the bytes of each id: targets of 0 bytes
    (special tokens) and ignored ones (-1) count on neither side. Collective: every rank must call it, even
    without batches of its own. ValueError if nothing counts.
    """
    bytes_V = torch.as_tensor(token_bytes).to(model.device, torch.int64)
    nats: list[Tensor] = []  # left on the device: reading a number each batch would wait for it
    num_bytes: list[Tensor] = []
    for ids_BT, targets_BT in batches:
        targets_BT = targets_BT.to(model.device, torch.int64)
        nats_BT = model(ids_BT.to(model.device), targets_BT, reduction="none")
        bytes_BT = bytes_V[targets_BT.clamp(min=0)] * (targets_BT >= 0)
        nats.append((nats_BT * (bytes_BT > 0)).sum())
        num_bytes.append(bytes_BT.sum())
    total_nats = sum(float(x) for x in torch.stack(nats).tolist()) if nats else 0.0
    total_bytes = sum(torch.stack(num_bytes).tolist()) if num_bytes else 0
    if dist.is_available() and dist.is_initialized():
        totals = torch.tensor([total_nats, total_bytes], dtype=torch.float64, device=model.device)
        dist.all_reduce(totals)
        total_nats, total_bytes = totals.tolist()
    if total_bytes == 0:
        raise ValueError(
            "bits per byte needs targets with bytes; these batches have none: give it other text"
        )
    return total_nats / (math.log(2) * total_bytes)


def describe_rows(rows: Mapping[str, Any]) -> str:
    """Return the line that says which rows bits per byte are of; figures of other rows don't compare."""
    return f"validation rows: {rows['tokens']:,} tokens in {rows['rows']:,} rows, checksum {rows['checksum']}"


def unigram_bits_per_byte(
    train_ids: Iterable[np.ndarray], batches: Iterable[tuple[Tensor, Tensor]], token_bytes: np.ndarray
) -> float:
    """Bits per byte of a model that knows only how often each token occurs in `train_ids`: the least to beat.

    Counts are smoothed by adding one. Over the same targets as `bits_per_byte`; not collective.
    """
    size = len(token_bytes)
    counts_V = np.ones(size)
    for ids in train_ids:
        counts_V += np.bincount(ids, minlength=size)
    bits_V = -np.log2(counts_V / counts_V.sum())
    total_bits, total_bytes = 0.0, 0
    for _, targets_BT in batches:
        targets = targets_BT[targets_BT >= 0].numpy()
        targets = targets[token_bytes[targets] > 0]
        total_bits += float(bits_V[targets].sum())
        total_bytes += int(token_bytes[targets].sum())
    return total_bits / total_bytes
