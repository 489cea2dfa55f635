"""Queries, keys and values in fp8: one product, and `heads.split_heads` after it.

The gradient by the projection is written in fp8 at once, with a scale that is known before. Turning a head
keeps its length and the norm's gradient takes a part away, so that no number of a head's gradient is larger
than r s times the length of that by the normalised head, which is at most √D times its largest number.

Letters: see gpt.py; N = B T tokens, X as in heads.py.
"""

import math
from typing import Any

import torch
from torch import Tensor

from nanolit.kernels import fp8
from nanolit.kernels.agreement import apply_to_distinct
from nanolit.kernels.fp8 import GRADIENTS, VALUES, largest_alone, product, rounded, scale_of, transposed
from nanolit.kernels.heads import join_gradients, split


def project(
    x_BTC: Tensor,
    weight_XC: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    *,
    heads: int,
    kv_heads: int,
    qk_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`heads.split_heads` of x Wᵀ, where heads.has_kernel says so and fp8.whole tokens are given.

    Rows of x have an RMS of at most 1.
    """
    return apply_to_distinct(_Project, x_BTC, weight_XC, cos_TE, sin_TE, heads, kv_heads, qk_scale)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTC: Tensor,
        weight_XC: Tensor,
        cos_TE: Tensor,
        sin_TE: Tensor,
        heads: int,
        kv_heads: int,
        qk_scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_NC = x_BTC.flatten(0, 1)
        x_scale, weight_scale = fp8.normed_scale(x_NC), scale_of(fp8.largest(weight_XC), VALUES)
        x8_NC, weight8_XC = rounded(x_NC, x_scale, VALUES), rounded(weight_XC, weight_scale, VALUES)
        qkv_NX = product(x8_NC, x_scale, weight8_XC, weight_scale, x_NC.dtype)
        qkv_BTX = qkv_NX.view(*x_BTC.shape[:2], -1)
        q_BTHD, k_BTKD, v_BTKD, scales = split(qkv_BTX, cos_TE, sin_TE, heads, kv_heads, qk_scale)
        ctx.save_for_backward(
            q_BTHD,
            k_BTKD,
            scales,
            cos_TE,
            sin_TE,
            transposed(x8_NC),
            x_scale,
            transposed(weight8_XC),
            weight_scale,
        )
        ctx.qk_scale, ctx.weight_dtype = qk_scale, weight_XC.dtype
        return q_BTHD, k_BTKD, v_BTKD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_q_BTHD, d_k_BTKD, d_v_BTKD = gradients
        q_BTHD, k_BTKD, scales, cos_TE, sin_TE, x_CN, x_scale, weight_CX, weight_scale = ctx.saved_tensors
        longest = torch.maximum(largest_alone(d_q_BTHD), largest_alone(d_k_BTKD)) * math.sqrt(q_BTHD.size(-1))
        bound = torch.maximum(longest * (scales.amax() * ctx.qk_scale), largest_alone(d_v_BTKD))
        d_scale = scale_of(bound, GRADIENTS)
        saved = (q_BTHD, k_BTKD, scales, cos_TE, sin_TE, ctx.qk_scale, d_scale)
        d_qkv8_NX = join_gradients(d_q_BTHD, d_k_BTKD, d_v_BTKD, *saved).flatten(0, 1)
        d_x_NC = product(d_qkv8_NX, d_scale, weight_CX, weight_scale, q_BTHD.dtype)
        d_weight_XC = product(transposed(d_qkv8_NX), d_scale, x_CN, x_scale, ctx.weight_dtype)
        return d_x_NC.view(*q_BTHD.shape[:2], -1), d_weight_XC, None, None, None, None, None
