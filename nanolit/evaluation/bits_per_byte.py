"""Bits per byte: how well a model predicts text, on a scale that does not depend on the tokenizer."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nanolit.model.gpt import GPT


def bits_per_byte(model: GPT, batches: Iterable[tuple[Tensor, Tensor]], token_bytes: Any) -> float:
    """Return `validation_scores`' bits per byte alone."""
    return validation_scores(model, batches, token_bytes)[0]


@torch.inference_mode()
def validation_scores(
    model: GPT, batches: Iterable[tuple[Tensor, Tensor]], token_bytes: Any
) -> tuple[float, float]:
    """Return bits per byte and the mean loss in nats, over the batches of all ranks.

    `batches` yields (ids_BT, targets_BT). `token_bytes` (V,) is the bytes of each id. Bits per byte are the
    nats of the targets over ln 2 times their bytes; targets of 0 bytes (special tokens) and ignored ones (-1)
    count on neither side. The loss is that of training: over all targets but the ignored ones. Collective:
    every rank must call it, even without batches of its own. ValueError if nothing counts.
    """
    bytes_V = torch.as_tensor(token_bytes).to(model.device, torch.int64)
    sums: list[Tensor] = []  # left on the device: reading a number each batch would wait for it
    for ids_BT, targets_BT in batches:
        targets_BT = targets_BT.to(model.device, torch.int64)
        nats_BT = model(ids_BT.to(model.device), targets_BT, reduction="none")
        learned_BT = targets_BT >= 0
        bytes_BT = bytes_V[targets_BT.clamp(min=0)] * learned_BT
        counted = (nats_BT * (bytes_BT > 0), bytes_BT, nats_BT * learned_BT, learned_BT)
        sums.append(torch.stack([x_BT.sum().float() for x_BT in counted]))
    by_batch = torch.stack(sums).tolist() if sums else [[0.0] * 4]
    totals = [math.fsum(column) for column in zip(*by_batch, strict=True)]
    if dist.is_available() and dist.is_initialized():
        of_all = torch.tensor(totals, dtype=torch.float64, device=model.device)
        dist.all_reduce(of_all)
        totals = of_all.tolist()
    nats, num_bytes, all_nats, num_targets = totals
    if num_bytes == 0:
        raise ValueError("bits per byte needs targets with bytes; these batches have none: give other text")
    return nats / (math.log(2) * num_bytes), all_nats / num_targets


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
