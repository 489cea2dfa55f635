"""Products in fp8: operands rounded to eight bits with one scale a tensor, sums in float32.

Scales are dynamic: what is multiplied is divided by a bound of its magnitudes over the format's largest
number. The bound is the largest magnitude, or what is known without looking: √C for normed activations.
Values and weights are e4m3, gradients e5m2, as in https://arxiv.org/abs/2209.05433 and in nanochat. Rounding
is plain arithmetic, which the compiler joins with what comes before; products and transposes are operators.

Letters: N tokens, C inputs, F outputs of a layer; R rows, S columns of any matrix.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanolit.kernels.agreement import apply_to_distinct, near, with_gradients
from nanolit.machine.device import ADA, plain_kernels, triton_capability

VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # of both dimensions of every operand, which the matrix units ask for
SMALLEST = 128  # dimension of a weight for which rounding pays, nanochat's choice
TINY = 1e-12  # in place of the bound of a tensor of zeros
FEW = 8192  # terms that are summed the fast way: errors of 5,120 are 0.21%; bfloat16 makes 0.17
# The loss's gradient by a token's logits is within -1 and 1: this many units reach e5m2's upper end
GRADIENT_UNITS = 2.0**15
PIECE = 8192  # numbers that are read at full speed on an H200 when the largest is looked for


@functools.cache
def unavailable(device: torch.device) -> str:
    """Why a device can't multiply in fp8, or nothing; a layer is tried against float32."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cuda" and plain_kernels():
        return "fp8 needs the kernels that NANOLIT_KERNELS=plain turns off: unset it, or give precision=bf16"
    if triton_capability(device) < ADA:
        return f"fp8 needs an NVIDIA GPU (Ada or newer) and Triton; this is {name}: give precision=bf16"
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
    """Return True if products with this weight gain from fp8 and the matrix units take it."""
    return min(weight_FC.shape) >= SMALLEST and not any(size % MULTIPLE for size in weight_FC.shape)


def whole(x_NC: Tensor) -> bool:
    """Return True if the tokens of (…, C) can be summed over: some multiple; none has no maximum."""
    num_tokens = x_NC.shape[:-1].numel()
    return num_tokens > 0 and num_tokens % MULTIPLE == 0


def linear(x_NC: Tensor, weight_FC: Tensor) -> Tensor:
    """x Wᵀ for x of (…, C), and both gradients, in fp8; in x's dtype where the tokens are no whole multiple.

    The result and the gradient by x are in x's dtype, that by the weight in the weight's.
    """
    if not whole(x_NC):
        return F.linear(x_NC, weight_FC.to(x_NC.dtype))
    y_NF = apply_to_distinct(_Linear, x_NC.flatten(0, -2), weight_FC)
    return y_NF.view(*x_NC.shape[:-1], len(weight_FC))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_FC: Tensor) -> Tensor:
        x_scale, weight_scale = (scale_of(largest_alone(one), VALUES) for one in (x_NC, weight_FC))
        x8_NC, weight8_FC = rounded(x_NC, x_scale, VALUES), rounded(weight_FC, weight_scale, VALUES)
        ctx.save_for_backward(transposed(x8_NC), x_scale, transposed(weight8_FC), weight_scale)
        ctx.weight_dtype = weight_FC.dtype
        return product(x8_NC, x_scale, weight8_FC, weight_scale, x_NC.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (d_y_NF,) = gradients
        x_CN, x_scale, weight_CF, weight_scale = ctx.saved_tensors
        d_y_scale = scale_of(largest(d_y_NF), GRADIENTS)
        d_y8_NF = rounded(d_y_NF, d_y_scale, GRADIENTS)
        d_x_NC = product(d_y8_NF, d_y_scale, weight_CF, weight_scale, d_y_NF.dtype)
        d_weight_FC = product(transposed(d_y8_NF), d_y_scale, x_CN, x_scale, ctx.weight_dtype)
        return d_x_NC, d_weight_FC


def largest(x_RS: Tensor) -> Tensor:
    """The largest magnitude; found by rows first, which the compiler joins with what computes them."""
    return x_RS.abs().amax(-1).amax()


def largest_alone(x: Tensor) -> Tensor:
    """`largest` of what an operator or nobody computed: in pieces, if it divides into them."""
    return largest(x.reshape(-1, PIECE) if x.numel() % PIECE == 0 else x)


def normed_scale(x_RS: Tensor) -> Tensor:
    """The scale of values whose rows have an RMS of at most 1: none is larger than √S."""
    bound = math.sqrt(x_RS.size(-1)) / torch.finfo(VALUES).max
    return torch.full((), bound, dtype=torch.float32, device=x_RS.device)


def scale_of(bound: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the divisor that brings numbers up to a bound into the range of `dtype`: float32, ()."""
    return bound.float().clamp(min=TINY) / torch.finfo(dtype).max


def rounded(x_RS: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x / scale in fp8; what lies outside its range becomes the end of it."""
    limit = torch.finfo(dtype).max
    return (x_RS.float() * (1 / scale)).clamp(-limit, limit).to(dtype)


@torch.library.custom_op("nanolit::fp8_transposed", mutates_args=())
def transposed(x_RS: Tensor) -> Tensor:
    """The columns of a matrix in fp8 as contiguous rows, (S, R).

    The matrix units want both operands of a product contiguous along what is summed over.
    """
    if triton_capability(x_RS.device) >= ADA:
        from nanolit.kernels import fp8_kernel  # imports Triton

        return fp8_kernel.transposed(x_RS.contiguous())
    return x_RS.t().clone(memory_format=torch.contiguous_format)  # an operator may not return its input


@transposed.register_fake
def _(x_RS: Tensor) -> Tensor:
    return x_RS.new_empty(x_RS.shape[::-1])


@torch.library.custom_op("nanolit::fp8_product", mutates_args=())
def product(a_RS: Tensor, a_scale: Tensor, b_FS: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """a bᵀ (R, F) of fp8 operands that are contiguous along S."""
    return product_into(None, a_RS, a_scale, b_FS, b_scale, dtype)


@product.register_fake
def _(a_RS: Tensor, a_scale: Tensor, b_FS: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return a_RS.new_empty(len(a_RS), len(b_FS), dtype=dtype)


def product_into(
    out: Tensor | None,
    a_RS: Tensor,
    a_scale: Tensor,
    b_FS: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    *,
    uneven: bool = False,
) -> Tensor:
    """`product` into memory that is there already.

    Products of values, and of `FEW` gradients, are summed the fast way, which keeps some 14 bits. Not where
    terms are `uneven`: a sum with one large term loses of each small one, always toward zero.
    """
    a_RS, b_FS = a_RS.contiguous(), b_FS.contiguous()  # rounding keeps the layout of what a caller gave
    fast = a_RS.dtype == b_FS.dtype == VALUES or (a_RS.size(1) <= FEW and not uneven)
    more = {} if out is None else {"out": out}
    multiply: Any = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    return multiply(a_RS, b_FS.t(), a_scale, b_scale, out_dtype=dtype, use_fast_accum=fast, **more)
