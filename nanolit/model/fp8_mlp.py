"""The MLP in fp8: `mlp.fused_mlp` with rounded operands. Twin: `plain`, which is what serves outside Hopper.

The kernels note the largest hidden square and the largest gradient before the activation while they write
them, so that rounding those needs no reading of its own. Kept for the backward pass are fp8 copies alone.

Letters: N tokens, C width, F = 4C hidden.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanolit.model import fp8
from nanolit.model.fp8 import GRADIENTS, VALUES, product, rounded

# See _forward
Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def plain(x_NC: Tensor, expand_FC: Tensor, contract_CF: Tensor) -> Tensor:
    return fp8.linear(F.relu(fp8.linear(x_NC, expand_FC)).square(), contract_CF)


def fused(x_NC: Tensor, expand_FC: Tensor, contract_CF: Tensor) -> Tensor:
    """The same where `mlp.has_kernel` says so."""
    if not fp8.whole(x_NC):
        return plain(x_NC, expand_FC, contract_CF)
    return _forward(x_NC.flatten(0, -2), expand_FC, contract_CF)[0].view(x_NC.shape)


@torch.library.custom_op("nanolit::fp8_mlp", mutates_args=())
def _forward(x_NC: Tensor, expand_FC: Tensor, contract_CF: Tensor) -> Results:
    """The result; rows of the hidden squares; columns and then scales of x, hidden, expand and contract.

    Scales are tensors of their own, since the matrix units take them from aligned addresses only.
    """
    from nanolit.model import mlp_kernel  # imports Triton

    x, expand, contract = (rounded(one, VALUES) for one in (x_NC, expand_FC, contract_CF))
    hidden_NF, largest = mlp_kernel.relu_squared_product_fp8(x, expand, dtype=x_NC.dtype)
    hidden = rounded(hidden_NF, VALUES, largest=largest)
    y_NC = product(hidden.rows_RS, hidden.scale, contract.rows_RS, contract.scale, x_NC.dtype)
    return (
        y_NC,
        hidden.rows_RS,
        x.columns_SR,
        hidden.columns_SR,
        expand.columns_SR,
        contract.columns_SR,
        x.scale,
        hidden.scale,
        expand.scale,
        contract.scale,
    )


@_forward.register_fake
def _(x_NC: Tensor, expand_FC: Tensor, contract_CF: Tensor) -> Results:
    num_tokens, (hidden, width) = len(x_NC), expand_FC.shape

    def empty(*shape: int) -> Tensor:
        return x_NC.new_empty(shape, dtype=VALUES if shape else torch.float32)

    return (
        torch.empty_like(x_NC),
        empty(num_tokens, hidden),
        empty(width, num_tokens),
        empty(hidden, num_tokens),
        empty(width, hidden),
        empty(hidden, width),
        empty(),
        empty(),
        empty(),
        empty(),
    )


@torch.library.custom_op("nanolit::fp8_mlp_backward", mutates_args=())
def _backward(
    d_y_NC: Tensor,
    hidden_NF: Tensor,
    x_CN: Tensor,
    hidden_FN: Tensor,
    expand_CF: Tensor,
    contract_FC: Tensor,
    x_scale: Tensor,
    hidden_scale: Tensor,
    expand_scale: Tensor,
    contract_scale: Tensor,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    from nanolit.model import mlp_kernel  # imports Triton

    d_y = rounded(d_y_NC, GRADIENTS)
    d_z_NF, largest = mlp_kernel.slope_product_fp8(
        d_y, contract_FC, contract_scale, hidden_NF, hidden_scale, dtype=d_y_NC.dtype
    )
    d_contract_CF = product(d_y.columns_SR, d_y.scale, hidden_FN, hidden_scale, weight_dtype)
    d_z = rounded(d_z_NF, GRADIENTS, largest=largest)
    d_expand_FC = product(d_z.columns_SR, d_z.scale, x_CN, x_scale, weight_dtype)
    d_x_NC = product(d_z.rows_RS, d_z.scale, expand_CF, expand_scale, d_y_NC.dtype)
    return d_x_NC, d_expand_FC, d_contract_CF


@_backward.register_fake
def _(d_y_NC: Tensor, hidden_NF: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    width, hidden = d_y_NC.size(1), hidden_NF.size(1)
    empty = functools.partial(d_y_NC.new_empty, dtype=others[-1])  # the weights'
    return torch.empty_like(d_y_NC), empty(hidden, width), empty(width, hidden)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.weight_dtype = inputs[1].dtype
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, d_y_NC: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(d_y_NC, *ctx.saved_tensors, ctx.weight_dtype)


_forward.register_autograd(_differentiate, setup_context=_keep)
