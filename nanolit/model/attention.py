"""Causal attention with an optional window, and rotary positions: (q, k, v) to a mixture of values.

Every model calls `attend`, and nothing else here knows which kernel runs. Shapes: see the legend in gpt.py.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *, window: int | None) -> Tensor:
    """Attention of T queries, the last of S positions, to themselves and what lies before: (B, T, H, D).

    A query sees its own position and `window` positions before it; None: all. H is a multiple of K:
    consecutive query heads share a key-value head. Scores are scaled by 1/√D.
    """
    T, S = q_BTHD.size(1), k_BSKD.size(1)
    if T == 1 and window is not None:  # one query needs no mask, only the keys it sees
        k_BSKD, v_BSKD = k_BSKD[:, -window - 1 :], v_BSKD[:, -window - 1 :]
    sees_all = window is None or window >= S - 1
    y_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BSKD.transpose(1, 2),
        v_BSKD.transpose(1, 2),
        attn_mask=None if T == 1 or (sees_all and T == S) else keep_mask(T, S, window, q_BTHD.device),
        is_causal=sees_all and 1 < T == S,
        enable_gqa=q_BTHD.size(2) != k_BSKD.size(2),
    )
    return y_BHTD.transpose(1, 2)


def keep_mask(T: int, S: int, window: int | None, device: torch.device) -> Tensor:
    """True at (query, key) where the last T of S positions may look; reused between calls where possible."""
    if torch.compiler.is_compiling():  # the compiler folds it into the kernel, and cannot trace a cache
        return _build_keep_mask(T, S, window, device)
    return _cached_keep_mask(T, S, window, device)


def _build_keep_mask(T: int, S: int, window: int | None, device: torch.device) -> Tensor:
    back_TS = torch.arange(S - T, S, device=device)[:, None] - torch.arange(S, device=device)
    keep_TS = back_TS >= 0
    return keep_TS if window is None else keep_TS & (back_TS <= window)


@functools.lru_cache(maxsize=8)
def _cached_keep_mask(T: int, S: int, window: int | None, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a mask made while sampling must serve a later backward pass too
        return _build_keep_mask(T, S, window, device)


def rotary_tables(
    positions: int, *, head_dim: int, base: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle, float32 (positions, D/2). RoPE: https://arxiv.org/abs/2104.09864."""
    channel_E = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    position_T = torch.arange(positions, dtype=torch.float32, device=device)
    angle_TE = torch.outer(position_T, base ** -(channel_E / head_dim))
    return angle_TE.cos(), angle_TE.sin()


def rotate(x_BTHD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of every head by *minus* their angle.

    That is nanochat's direction, the opposite of the usual one: scores are the same, but weights are not
    exchangeable with programs that turn the other way unless half of each query and key changes sign.
    """
    cos_T1E, sin_T1E = cos_TE[:, None], sin_TE[:, None]
    first_BTHE, second_BTHE = x_BTHD.chunk(2, dim=-1)
    return torch.cat(
        (first_BTHE * cos_T1E + second_BTHE * sin_T1E, second_BTHE * cos_T1E - first_BTHE * sin_T1E), dim=-1
    )
