"""Logits to token ids: the one distribution that sampling draws from and reinforcement learning scores under.

A draw depends on (seed, row, position) alone: not on the batch, nor on what was drawn before.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nanolit.machine.device import derived_seed


def check_settings(*, temperature: float, top_k: int | None) -> None:
    """ValueError unless temperature is finite and >= 0, and top_k is None or >= 1."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature ({temperature}) must be 0 or more; 0 takes the likeliest token")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k ({top_k}) must be 1 or more, or none to sample from the whole vocabulary")


def log_probabilities(logits: Tensor, *, temperature: float, top_k: int | None) -> Tensor:
    """Log-probabilities (…, V) float32 that `sample` draws from, for logits (…, V); differentiable.

    Tokens outside the `top_k` largest logits get -inf; ties with the k-th stay in, so that sampling and
    scoring agree. Temperature 0 gives 0 for the first largest logit and -inf for the others.
    """
    check_settings(temperature=temperature, top_k=top_k)
    logits = logits.float()
    if temperature == 0:
        likeliest = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, likeliest, 0.0)
    if top_k is not None and top_k < logits.size(-1):
        smallest_kept = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    return torch.log_softmax(logits / temperature, dim=-1)


def sample(
    logits_BV: Tensor,
    *,
    temperature: float,
    top_k: int | None,
    seed: int,
    position: int,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """One token id per row (B,) int64; row b draws the number keyed by (seed, rows[b], position).

    `rows` are the samples' own numbers (default 0 … B-1). The draw inverts the cumulative distribution in
    float64 (on the CPU for MPS, which has none), so equal logits give equal tokens on every device.
    """
    check_settings(temperature=temperature, top_k=top_k)
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    log_probs_BV = log_probabilities(logits_BV, temperature=temperature, top_k=top_k)
    if logits_BV.device.type == "mps":
        log_probs_BV = log_probs_BV.cpu()
    cumulative_BV = log_probs_BV.double().exp().cumsum(dim=-1)
    if not cumulative_BV[:, -1].isfinite().all():
        raise ValueError("the model's logits are not finite numbers; load another checkpoint or release")
    numbers = [_uniform(seed, row, position) for row in (rows or range(len(logits_BV)))]
    draw_B1 = cumulative_BV.new_tensor(numbers).unsqueeze(-1) * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, draw_B1, right=True).squeeze(-1).to(logits_BV.device)


def _uniform(seed: int, row: int, position: int) -> float:
    """A number in [0, 1) with 52 random bits: below 1 by enough that draw times total stays below total."""
    return (derived_seed(seed, "sample", row, position) >> 11) / 2**52
