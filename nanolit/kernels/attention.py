"""Causal attention with an optional window, and rotary positions: (q, k, v) to a mixture of values.

Every model calls `attend`. `choose_backend` picks the kernel that trains once per device, by trying FUSED:
flash3 and flash4 (FlashAttention-3 and -4), cudnn (nvidia-cudnn-frontend), flash and flex (torch's
FlashAttention-2 and FlexAttention). sdpa runs everywhere and also serves caches. Shapes: see gpt.py.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nanolit.kernels.agreement import near, with_gradients
from nanolit.machine.device import plain_kernels

Backend = Literal["flash3", "flash4", "cudnn", "flash", "flex", "sdpa"]
# The faster first. Forward and backward of d12's attention (32 rows, window 512) on one H200, in ms: flash4
# 0.96, cudnn 1.08, flash 1.71; sdpa, for which a window is a mask, 4.8 (LOG.md,
# 2026-11-23).
FUSED: tuple[Backend, ...] = ("flash3", "flash4", "cudnn", "flash", "flex")
PACKAGES = {"flash3": "flash_attn_interface", "flash4": "flash_attn.cute", "cudnn": "cudnn"}  # all optional


def attend(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *, window: int | None, backend: Backend = "sdpa"
) -> Tensor:
    """Let T queries, the last of S positions, attend to themselves and what lies before: (B, T, H, D).

    A query sees its own position and `window` positions before it; None: all. H is a multiple of K:
    consecutive query heads share a key-value head. Scores are scaled by 1/√D. `backend` serves whole texts
    (T = S); with a cache it is always sdpa.
    """
    T, S = q_BTHD.size(1), k_BSKD.size(1)
    # A row holds several documents and nothing keeps a query inside its own: hiding the others gained
    # nanochat 0.0002 bits per byte at d16 (2026-01-13), as every row begins with a document's BOS anyway.
    if backend != "sdpa" and T == S > 1:
        seen = None if window is not None and window >= S - 1 else window
        return _fused(backend)(q_BTHD, k_BSKD, v_BSKD, window=seen)
    return attend_by_sdpa(q_BTHD, k_BSKD, v_BSKD, window=window)


@functools.cache
def choose_backend(device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """Return the fastest kernel that gives the right answer here, for this dtype and size of heads.

    Each is tried on a short text, with and without a window, against sdpa in float32.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or plain_kernels():
        return "sdpa"
    for backend in FUSED:
        if backend == "flash" and torch.are_deterministic_algorithms_enabled():
            continue  # FlexAttention repeats its bits; this adds to queries' gradients with atomics
        if agrees(backend, device, dtype, head_dim):
            return backend
    return "sdpa"


def agrees(backend: Backend, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Check that a kernel runs here, forward and backward, and agrees with float32."""
    if not _is_installed(backend):
        return False
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(1, 64, heads, head_dim, generator=generator).to(device, dtype) for heads in (2, 1, 1)]
    try:
        with warnings.catch_warnings(action="ignore"):  # one of a library is no failure, even as an error
            return all(_agrees(backend, qkv, window) for window in (None, 5))
    except Exception:  # not for this GPU or this torch: another kernel serves
        return False


def _agrees(backend: Backend, qkv: list[Tensor], window: int | None) -> bool:
    plain = functools.partial(attend, window=window)
    expected = with_gradients(plain, *(one.float() for one in qkv))
    found = with_gradients(functools.partial(plain, backend=backend), *qkv)
    # bfloat16 gives 0.004
    return all(near(one, other, within=0.02) for one, other in zip(found, expected, strict=True))


def _is_installed(backend: Backend) -> bool:
    """Check that the package a backend needs, if any, is installed, without importing it."""
    package = PACKAGES.get(backend)
    try:
        return package is None or importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False


def _fused(backend: Backend) -> Callable[..., Tensor]:
    if backend == "cudnn":
        from nanolit.kernels import attention_cudnn  # an optional package

        return attention_cudnn.attend
    if backend == "flex":
        from nanolit.kernels import attention_flex  # slow to import

        return attention_flex.attend
    if backend in ("flash3", "flash4"):
        from nanolit.kernels import attention_flash

        return functools.partial(attention_flash.attend, version=int(backend[-1]))
    return attend_by_flash


def attend_by_flash(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, *, window: int | None) -> Tensor:
    """Attend by torch's FlashAttention-2, https://arxiv.org/abs/2307.08691: rows as texts of equal length."""
    from torch.nn.attention.varlen import varlen_attn

    B, T, H, _ = q_BTHD.shape
    ends = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=q_BTHD.device)
    repeats = H // k_BTKD.size(2)
    if repeats > 1:
        k_BTKD, v_BTKD = (one.repeat_interleave(repeats, dim=2) for one in (k_BTKD, v_BTKD))
    q_NHD, k_NHD, v_NHD = (one.flatten(0, 1) for one in (q_BTHD, k_BTKD, v_BTKD))
    window_size = (-1 if window is None else window, 0)
    y_NHD = varlen_attn(q_NHD, k_NHD, v_NHD, ends, ends, T, T, window_size=window_size)
    assert isinstance(y_NHD, Tensor)
    return y_NHD.unflatten(0, (B, T))


def attend_by_sdpa(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *, window: int | None) -> Tensor:
    """Attend by scaled_dot_product_attention, on any device; a window becomes a mask."""
    T, S = q_BTHD.size(1), k_BSKD.size(1)
    # The two common cases need no mask in memory: one query looks at every key it may see, and a whole text
    # without a window is plainly causal.
    if T == 1 and window is not None:
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
    """Return True at (query, key) where the last T of S positions may look; cached outside the compiler."""
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
    """Return the cosine and sine of every angle, float32 (positions, D/2).

    RoPE (https://arxiv.org/abs/2104.09864) turns pair i of a head at position t by t · base^(-2i / D), so
    that a score depends on how far apart query and key are, not on where they stand.
    """
    # The slowest pair turns once in about 2π·base positions. classic has the usual base 10,000; nanochat went
    # to 100,000 with its record of 1.80 hours (6ed7d1d), among other changes.
    channel_E = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    position_T = torch.arange(positions, dtype=torch.float32, device=device)
    angle_TE = torch.outer(position_T, base ** -(channel_E / head_dim))
    return angle_TE.cos(), angle_TE.sin()


def rotate(x_BTHD: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of every head by *minus* their angle.

    This is nanochat's direction, the opposite of the usual one. Scores are the same, because only the angle
    between query and key counts; weights go to programs that turn the other way only with the sign of half
    of each query and key changed.
    """
    # All D channels turn: leaving half or three quarters of a head unturned did not help (nanochat,
    # 2026-01-16 and 2026-03-24).
    cos_T1E, sin_T1E = cos_TE.unsqueeze(-2), sin_TE.unsqueeze(-2)
    first_BTHE, second_BTHE = x_BTHD.chunk(2, dim=-1)
    return torch.cat(
        (first_BTHE * cos_T1E + second_BTHE * sin_T1E, second_BTHE * cos_T1E - first_BTHE * sin_T1E), dim=-1
    )
