"""From a merged projection to what attention takes: rotated, normalised, scaled queries and keys, and values.

`split_heads` does it in one pass over the projection, and the gradient in one pass back. Its plain twin is
block.Attention._project.

Letters: see gpt.py; X = (H + 2K) D, the columns of the projection: queries, then keys, then values.
"""

from typing import Any

import torch
from torch import Tensor

from nanolit.kernels.fp8 import GRADIENTS
from nanolit.machine.device import TURING, triton_capability


def split_heads(
    qkv_BTX: Tensor, cos_TE: Tensor, sin_TE: Tensor, *, heads: int, kv_heads: int, qk_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q_BTHD and k_BTKD, rotated (attention.rotate) and at RMS qk_scale, and v_BTKD."""
    # As separate operations, rotating, normalising and back took 6.8 of 95.7 ms of a d12 micro-batch on one
    # H200, 1.7 of them only to join the gradients of queries, keys and values; this kernel takes about 4.5
    # (LOG.md, 2026-11-23).
    return split(qkv_BTX, cos_TE, sin_TE, heads, kv_heads, qk_scale)[:3]


def has_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Check that `split_heads` runs: NVIDIA from Turing on, Triton, heads whose size is a power of two."""
    if dtype not in (torch.bfloat16, torch.float16) or head_dim & (head_dim - 1):
        return False
    return triton_capability(device) >= TURING


@torch.library.custom_op("nanolit::heads", mutates_args=())
def split(
    qkv_BTX: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int, qk_scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return queries, keys, values, and the reciprocal RMS of query and key heads, (B, T, H + K) float32."""
    # The backward pass needs the projection before its norm. It is the normalised heads, which attention
    # keeps anyway, divided by these reciprocals: one number a head is stored instead of D.
    from nanolit.kernels import heads_kernel  # imports Triton

    results = _empty_results(qkv_BTX, heads, kv_heads)
    heads_kernel.split(qkv_BTX.contiguous(), cos_TE.contiguous(), sin_TE.contiguous(), *results, qk_scale)
    return results


@split.register_fake
def _(
    qkv_BTX: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, kv_heads: int, qk_scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_results(qkv_BTX, heads, kv_heads)


def _empty_results(qkv_BTX: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, T, X = qkv_BTX.shape
    D = X // (heads + 2 * kv_heads)
    q_BTHD, k_BTKD, v_BTKD = (qkv_BTX.new_empty(B, T, count, D) for count in (heads, kv_heads, kv_heads))
    return q_BTHD, k_BTKD, v_BTKD, qkv_BTX.new_empty(B, T, heads + kv_heads, dtype=torch.float32)


@torch.library.custom_op("nanolit::heads_backward", mutates_args=())
def join_gradients(
    d_q_BTHD: Tensor,
    d_k_BTKD: Tensor,
    d_v_BTKD: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    scales: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    qk_scale: float,
    fp8_scale: Tensor | None = None,
) -> Tensor:
    """Return the gradient by the projection, (B, T, X); divided by fp8_scale and rounded to fp8 if given."""
    # Written straight into one tensor, because the backward product wants the three gradients side by side
    from nanolit.kernels import heads_kernel  # imports Triton

    d_qkv_BTX = _empty_projection(q_BTHD, k_BTKD, fp8_scale)
    heads_kernel.join_gradients(
        d_q_BTHD.contiguous(),
        d_k_BTKD.contiguous(),
        d_v_BTKD.contiguous(),
        q_BTHD,
        k_BTKD,
        scales,
        cos_TE.contiguous(),
        sin_TE.contiguous(),
        d_qkv_BTX,
        qk_scale,
        fp8_scale,
    )
    return d_qkv_BTX


@join_gradients.register_fake
def _(
    d_q_BTHD: Tensor,
    d_k_BTKD: Tensor,
    d_v_BTKD: Tensor,
    q_BTHD: Tensor,
    k_BTKD: Tensor,
    scales: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    qk_scale: float,
    fp8_scale: Tensor | None = None,
) -> Tensor:
    return _empty_projection(q_BTHD, k_BTKD, fp8_scale)


def _empty_projection(q_BTHD: Tensor, k_BTKD: Tensor, fp8_scale: Tensor | None) -> Tensor:
    B, T, H, D = q_BTHD.shape
    dtype = q_BTHD.dtype if fp8_scale is None else GRADIENTS
    return q_BTHD.new_empty(B, T, (H + 2 * k_BTKD.size(2)) * D, dtype=dtype)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    _, cos_TE, sin_TE, _, _, ctx.qk_scale = inputs
    q_BTHD, k_BTKD, _, scales = output
    ctx.save_for_backward(q_BTHD, k_BTKD, scales, cos_TE, sin_TE)
    ctx.mark_non_differentiable(scales)


def _differentiate(
    ctx: Any, d_q_BTHD: Tensor, d_k_BTKD: Tensor, d_v_BTKD: Tensor, _: Tensor
) -> tuple[Tensor | None, ...]:
    d_qkv_BTX = join_gradients(d_q_BTHD, d_k_BTKD, d_v_BTKD, *ctx.saved_tensors, ctx.qk_scale)
    return d_qkv_BTX, None, None, None, None, None


split.register_autograd(_differentiate, setup_context=_keep)
