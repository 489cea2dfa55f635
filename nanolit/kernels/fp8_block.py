"""A block's products in fp8: queries, keys and values (then `heads.split_heads`), and the MLP.

On Hopper, kernels write fp8 at once, which takes scales that are known before what they scale; elsewhere the
MLP is plain torch. The bounds behind these scales are some binades too large, for which fp8 has the range.

Letters: see gpt.py; N = B T tokens, X as in heads.py, F = 4C hidden.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanolit.kernels import fp8
from nanolit.kernels.agreement import apply_to_distinct
from nanolit.kernels.fp8 import GRADIENTS, VALUES, largest_alone, product, rounded, scale_of, transposed
from nanolit.kernels.heads import join_gradients, split
from nanolit.kernels.mlp import relu_squared_mlp


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
    """The gradient by the projection is written in fp8 at once.

    Turning a head keeps its length and the norm's gradient takes a part away, so no number of a head's
    gradient is larger than r s times the length of that by the normalised head, which is at most √D times its
    largest number.
    """

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


def mlp(x_NC: Tensor, expand_FC: Tensor, contract_CF: Tensor, *, fused: bool) -> Tensor:
    """`mlp.relu_squared_mlp` with rounded operands; rows of x have an RMS of at most 1.

    `fused` takes the kernels, where mlp.has_kernel says so; without, this is their twin.
    """
    if not fp8.whole(x_NC):
        return relu_squared_mlp(x_NC, expand_FC, contract_CF)
    y_NC = apply_to_distinct(_MLP, x_NC.flatten(0, -2), expand_FC, contract_CF, fused)
    return y_NC.view(x_NC.shape)


class _MLP(torch.autograd.Function):
    """The hidden numbers and the gradient before the activation are written in fp8 at once.

    By Cauchy and Schwarz no z = x W is larger than the largest norm of a row of x, √C, times that of W, and
    no gradient by h is larger than those of the gradient after the MLP and of the second weight.
    """

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, expand_FC: Tensor, contract_CF: Tensor, fused: bool) -> Tensor:
        expand_norm, contract_norm = _largest_norm(expand_FC, 1), _largest_norm(contract_CF, 0)
        z_bound = math.sqrt(x_NC.size(1)) * expand_norm
        x_scale, hidden_scale = fp8.normed_scale(x_NC), scale_of(z_bound.square(), VALUES)
        expand_scale, contract_scale = scale_of(expand_norm, VALUES), scale_of(contract_norm, VALUES)
        x8_NC = rounded(x_NC, x_scale, VALUES)
        expand8_FC = rounded(expand_FC, expand_scale, VALUES)
        contract8_CF = rounded(contract_CF, contract_scale, VALUES)
        hidden8_NF = _hidden(x8_NC, x_scale, expand8_FC, expand_scale, hidden_scale, fused)
        ctx.save_for_backward(
            hidden8_NF,
            transposed(x8_NC),
            transposed(hidden8_NF),
            transposed(expand8_FC),
            transposed(contract8_CF),
            x_scale,
            hidden_scale,
            expand_scale,
            contract_scale,
            2 * z_bound * contract_norm,
        )
        ctx.weight_dtype, ctx.fused = expand_FC.dtype, fused
        return product(hidden8_NF, hidden_scale, contract8_CF, contract_scale, x_NC.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (d_y_NC,) = gradients
        hidden8_NF, x_CN, hidden_FN, expand_CF, contract_FC, *scales, slope_bound = ctx.saved_tensors
        x_scale, hidden_scale, expand_scale, contract_scale = scales
        d_y_norm = _largest_norm(d_y_NC, 1)
        d_y_scale = scale_of(d_y_norm, GRADIENTS)
        d_z_scale = scale_of(d_y_norm * slope_bound, GRADIENTS)
        d_y8_NC = rounded(d_y_NC, d_y_scale, GRADIENTS)
        d_z8_NF = _before_activation(
            d_y8_NC, d_y_scale, contract_FC, contract_scale, hidden8_NF, hidden_scale, d_z_scale, ctx.fused
        )
        d_contract_CF = product(transposed(d_y8_NC), d_y_scale, hidden_FN, hidden_scale, ctx.weight_dtype)
        d_expand_FC = product(transposed(d_z8_NF), d_z_scale, x_CN, x_scale, ctx.weight_dtype)
        d_x_NC = product(d_z8_NF, d_z_scale, expand_CF, expand_scale, d_y_NC.dtype)
        return d_x_NC, d_expand_FC, d_contract_CF, None


def _largest_norm(x_RS: Tensor, dim: int) -> Tensor:
    """Return the largest norm of the rows (dim 1) or the columns (dim 0), float32."""
    return x_RS.float().square().sum(dim).amax().sqrt()


@torch.library.custom_op("nanolit::fp8_hidden", mutates_args=())
def _hidden(
    x8_NC: Tensor,
    x_scale: Tensor,
    expand8_FC: Tensor,
    expand_scale: Tensor,
    hidden_scale: Tensor,
    fused: bool,
) -> Tensor:
    """relu(x Wᵀ)² in fp8, (N, F)."""
    if fused:
        from nanolit.kernels import mlp_kernel  # imports Triton

        return mlp_kernel.relu_squared_product_fp8(x8_NC, x_scale, expand8_FC, expand_scale, hidden_scale)
    z_NF = product(x8_NC, x_scale, expand8_FC, expand_scale, torch.float32)
    return rounded(F.relu(z_NF).square(), hidden_scale, VALUES)


@_hidden.register_fake
def _(x8_NC: Tensor, _: Tensor, expand8_FC: Tensor, *__: Any) -> Tensor:
    return x8_NC.new_empty(len(x8_NC), len(expand8_FC))


@torch.library.custom_op("nanolit::fp8_before_activation", mutates_args=())
def _before_activation(
    d_y8_NC: Tensor,
    d_y_scale: Tensor,
    contract_FC: Tensor,
    contract_scale: Tensor,
    hidden8_NF: Tensor,
    hidden_scale: Tensor,
    d_z_scale: Tensor,
    fused: bool,
) -> Tensor:
    """(dy W) 2 √h in fp8, (N, F)."""
    if fused:
        from nanolit.kernels import mlp_kernel  # imports Triton

        return mlp_kernel.slope_product_fp8(
            d_y8_NC, d_y_scale, contract_FC, contract_scale, hidden8_NF, hidden_scale, d_z_scale
        )
    d_h_NF = product(d_y8_NC, d_y_scale, contract_FC, contract_scale, torch.float32)
    return rounded(d_h_NF * 2 * (hidden8_NF.float() * hidden_scale).sqrt(), d_z_scale, GRADIENTS)


@_before_activation.register_fake
def _(d_y8_NC: Tensor, _: Tensor, __: Tensor, ___: Tensor, hidden8_NF: Tensor, *____: Any) -> Tensor:
    return torch.empty_like(hidden8_NF, dtype=GRADIENTS)
