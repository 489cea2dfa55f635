"""A block's MLP: x to contract(relu(expand(x))²), the squared ReLU of Primer (https://arxiv.org/abs/2109.08668).

`relu_squared_mlp` is the plain form. On Hopper `fused_mlp` computes the same with the activation inside the
first product's kernel and its slope inside the backward product's.

Letters: N tokens, C width, F = 4C hidden.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanolit.kernels.agreement import near, with_gradients
from nanolit.machine.device import HOPPER, triton_capability


def relu_squared_mlp(x_NC: Tensor, expand_FC: Tensor, contract_CF: Tensor) -> Tensor:
    """Map (…, C) to (…, C); weights are cast to x's dtype."""
    hidden_NF = F.relu(F.linear(x_NC, expand_FC.to(x_NC.dtype))).square()
    return F.linear(hidden_NF, contract_CF.to(x_NC.dtype))


def fused_mlp(x_NC: Tensor, expand_FC: Tensor, contract_CF: Tensor) -> Tensor:
    """Return `relu_squared_mlp` by fused kernels, where `has_kernel`; weight gradients in their dtype."""
    # On one H200 forward and slope product take 0.44 and 0.58 ms at d12's sizes, against 0.62 and 0.72 of a
    # matrix product and an elementwise kernel (LOG.md, 2026-11-23).
    if not x_NC.numel():  # the kernels take no empty matrix
        return relu_squared_mlp(x_NC, expand_FC, contract_CF)
    return _forward(x_NC.flatten(0, -2), expand_FC, contract_CF)[0].view(x_NC.shape)


@functools.cache
def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Check that the fused form runs here and agrees with the plain one, forward and backward.

    It needs Triton and Hopper, whose tensor memory accelerator and matrix units the kernel is written for.
    """
    if dtype != torch.bfloat16 or triton_capability(device)[0] != HOPPER:
        return False
    generator = torch.Generator().manual_seed(0)
    x_NC, expand_FC, contract_CF = (
        torch.randn(shape, generator=generator).to(device) for shape in ((160, 64), (256, 64), (64, 256))
    )
    try:
        found = with_gradients(fused_mlp, x_NC.to(dtype), expand_FC, contract_CF)
    except Exception:  # another version of Triton, say: the plain form serves
        return False
    expected = with_gradients(relu_squared_mlp, x_NC, expand_FC, contract_CF)
    return all(near(one, other, within=0.02) for one, other in zip(found, expected, strict=True))


@torch.library.custom_op("nanolit::mlp", mutates_args=())
def _forward(x_NC: Tensor, expand_FC: Tensor, contract_CF: Tensor) -> tuple[Tensor, Tensor]:
    """Return the result and the hidden squares."""
    # h = relu(z)² is all that the backward pass needs: the slope by z is 2 relu(z) = 2 √h, so z is never
    # stored, and a layer keeps F numbers a token instead of 2 F.
    from nanolit.kernels import mlp_kernel  # imports Triton

    hidden_NF = mlp_kernel.relu_squared_product(x_NC, expand_FC.to(x_NC.dtype))
    return torch.mm(hidden_NF, contract_CF.to(x_NC.dtype).t()), hidden_NF


@_forward.register_fake
def _(x_NC: Tensor, expand_FC: Tensor, contract_CF: Tensor) -> tuple[Tensor, Tensor]:
    return x_NC.new_empty(x_NC.shape), x_NC.new_empty(len(x_NC), len(expand_FC))


@torch.library.custom_op("nanolit::mlp_backward", mutates_args=())
def _backward(
    d_y_NC: Tensor, x_NC: Tensor, hidden_NF: Tensor, expand_FC: Tensor, contract_CF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from nanolit.kernels import mlp_kernel  # imports Triton

    d_y_NC = d_y_NC.contiguous()
    d_z_NF = mlp_kernel.slope_product(d_y_NC, contract_CF.to(d_y_NC.dtype), hidden_NF)
    d_contract_CF = torch.mm(d_y_NC.t(), hidden_NF, out_dtype=contract_CF.dtype)
    d_expand_FC = torch.mm(d_z_NF.t(), x_NC, out_dtype=expand_FC.dtype)
    return torch.mm(d_z_NF, expand_FC.to(d_z_NF.dtype)), d_expand_FC, d_contract_CF


@_backward.register_fake
def _(
    d_y_NC: Tensor, x_NC: Tensor, hidden_NF: Tensor, expand_FC: Tensor, contract_CF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # Contiguous, as products give them, whatever the inputs' layout
    d_expand_FC, d_contract_CF = (
        expand_FC.new_empty(expand_FC.shape),
        contract_CF.new_empty(contract_CF.shape),
    )
    return x_NC.new_empty(x_NC.shape), d_expand_FC, d_contract_CF


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x_NC, expand_FC, contract_CF = inputs
    ctx.save_for_backward(x_NC, output[1], expand_FC, contract_CF)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, d_y_NC: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(d_y_NC, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_keep)
