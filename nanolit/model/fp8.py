"""Products in fp8: operands rounded to eight bits with one scale a tensor, sums in float32.

Scales are dynamic: what is multiplied is divided by (its largest magnitude / the format's largest number).
Values and weights are e4m3, gradients e5m2, as in https://arxiv.org/abs/2209.05433 and in nanochat. An
operand is rounded once into two copies, its rows and its columns, since the matrix units want both of a
product's operands contiguous along the dimension that is summed over.

Letters: N tokens, C inputs, F outputs of a layer; R rows, S columns of any matrix.
"""

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nanolit.machine.device import ADA, triton_capability
from nanolit.model.trial import near, with_gradients

VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # of both dimensions of every operand, which the matrix units ask for
SMALLEST = 128  # dimension of a weight for which rounding pays, nanochat's choice
TINY = 1e-12  # in place of the largest magnitude of a tensor of zeros


class Rounded(NamedTuple):
    """A matrix of R × S in fp8; each number times `scale` is what was rounded."""

    rows_RS: Tensor
    columns_SR: Tensor
    scale: Tensor  # float32, ()


@functools.cache
def unavailable(device: torch.device) -> str:
    """Why a device can't multiply in fp8, or nothing; a layer is tried against float32."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if triton_capability(device) < ADA:
        return f"fp8 needs an NVIDIA GPU from Ada on, with Triton; this is {name}: give precision=bf16"
    generator = torch.Generator().manual_seed(0)
    x_NC, weight_FC = (
        torch.randn(shape, generator=generator).to(device) for shape in ((208, 256), (384, 256))
    )
    found = with_gradients(linear, x_NC.bfloat16(), weight_FC)
    expected = with_gradients(F.linear, x_NC, weight_FC)
    if all(near(one, other, within=0.1) for one, other in zip(found, expected, strict=True)):
        return ""
    return f"fp8 gives wrong results on {name}: give precision=bf16"


def fits(weight_FC: Tensor) -> bool:
    """Whether products with this weight gain from fp8, and the matrix units take it."""
    return min(weight_FC.shape) >= SMALLEST and not any(size % MULTIPLE for size in weight_FC.shape)


def whole(x_NC: Tensor) -> bool:
    """Whether the tokens of (…, C) can be summed over."""
    return x_NC.shape[:-1].numel() % MULTIPLE == 0


def linear(x_NC: Tensor, weight_FC: Tensor) -> Tensor:
    """x Wᵀ for x of (…, C), and both gradients, in fp8; in x's dtype where the tokens are no whole multiple.

    The result and the gradient by x are in x's dtype, that by the weight in the weight's.
    """
    if not whole(x_NC):
        return F.linear(x_NC, weight_FC.to(x_NC.dtype))
    y_NF = _forward(x_NC.flatten(0, -2), weight_FC)[0]
    return y_NF.view(*x_NC.shape[:-1], len(weight_FC))


def rounded(x_RS: Tensor, dtype: torch.dtype, *, largest: Tensor | None = None) -> Rounded:
    """`x_RS` in fp8; `largest` is its largest magnitude in float32, where that is known already."""
    has_kernel = triton_capability(x_RS.device) >= ADA
    if has_kernel:
        x_RS = x_RS.bfloat16().contiguous()  # of float32 Triton 3.6 garbles the columns
    limit = torch.linalg.vector_norm(x_RS, float("inf")).float() if largest is None else largest
    if has_kernel:
        from nanolit.model import fp8_kernel  # imports Triton

        return Rounded(*fp8_kernel.rounded(x_RS, dtype, limit))
    return rounded_in_torch(x_RS, dtype, limit)


def rounded_in_torch(x_RS: Tensor, dtype: torch.dtype, largest: Tensor) -> Rounded:
    limit = torch.finfo(dtype).max
    scale = largest.clamp(min=TINY) / limit
    rows_RS = (x_RS.float() / scale).clamp(-limit, limit).to(dtype)
    return Rounded(rows_RS, rows_RS.t().contiguous(), scale)


def product(
    a_RS: Tensor,
    a_scale: Tensor,
    b_FS: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """a bᵀ (R, F) of fp8 operands that are contiguous along S.

    Values are summed the fast way, which keeps some 14 bits; gradients are not.
    """
    fast = a_RS.dtype == b_FS.dtype == VALUES
    more = {} if out is None else {"out": out}
    multiply: Any = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    return multiply(a_RS, b_FS.t(), a_scale, b_scale, out_dtype=dtype, use_fast_accum=fast, **more)


@torch.library.custom_op("nanolit::fp8_linear", mutates_args=())
def _forward(x_NC: Tensor, weight_FC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result; the columns and scale of x, those of the weight."""
    x, weight = rounded(x_NC, VALUES), rounded(weight_FC, VALUES)
    y_NF = product(x.rows_RS, x.scale, weight.rows_RS, weight.scale, x_NC.dtype)
    return y_NF, x.columns_SR, x.scale, weight.columns_SR, weight.scale


@_forward.register_fake
def _(x_NC: Tensor, weight_FC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (num_tokens, inputs), outputs = x_NC.shape, len(weight_FC)
    return (
        x_NC.new_empty(num_tokens, outputs),
        x_NC.new_empty(inputs, num_tokens, dtype=VALUES),
        x_NC.new_empty((), dtype=torch.float32),
        x_NC.new_empty(inputs, outputs, dtype=VALUES),
        x_NC.new_empty((), dtype=torch.float32),
    )


@torch.library.custom_op("nanolit::fp8_linear_backward", mutates_args=())
def _backward(
    d_y_NF: Tensor,
    x_CN: Tensor,
    x_scale: Tensor,
    weight_CF: Tensor,
    weight_scale: Tensor,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    d_y = rounded(d_y_NF, GRADIENTS)
    d_x_NC = product(d_y.rows_RS, d_y.scale, weight_CF, weight_scale, d_y_NF.dtype)
    return d_x_NC, product(d_y.columns_SR, d_y.scale, x_CN, x_scale, weight_dtype)


@_backward.register_fake
def _(
    d_y_NF: Tensor, x_CN: Tensor, _: Tensor, weight_CF: Tensor, __: Tensor, weight_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    inputs, outputs = weight_CF.shape
    return d_y_NF.new_empty(len(d_y_NF), inputs), d_y_NF.new_empty(outputs, inputs, dtype=weight_dtype)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.weight_dtype = inputs[1].dtype
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, d_y_NF: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    return _backward(d_y_NF, *ctx.saved_tensors, ctx.weight_dtype)


_forward.register_autograd(_differentiate, setup_context=_keep)
