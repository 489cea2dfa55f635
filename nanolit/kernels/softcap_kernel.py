"""Softcap, cross-entropy and its gradient in one Triton kernel, which reads and writes every logit once.

What it computes, and the PyTorch twin that it is tested against: loss.to_gradient_in_torch. Rounded to fp8,
where a factor for each token is no use, logits are read twice. Import this where there is Triton, on NVIDIA
from Turing on, which has the tanh instruction.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanolit.kernels.fp8 import GRADIENT_UNITS

# Logits that a program holds at once, and its warps: of eight pairs the fastest on an H200, 0.273 ms for
# 8,192 rows of 32,768 (to fp8 0.312), which take 0.257 to copy.
BLOCK, WARPS = 4096, 16
LOG2_E = tl.constexpr(1.4426950408889634)


def to_gradient(logits_MV: Tensor, targets_M: Tensor, *, softcap: float) -> tuple[Tensor, Tensor]:
    """The tokens' cross-entropy and factors, float32: see loss.to_gradient. Rows must be contiguous."""
    nats_M, factors_M = torch.empty(2, len(logits_MV), dtype=torch.float32, device=logits_MV.device)
    _launch(_softcap_loss, logits_MV, targets_M, nats_M, factors_M, softcap)
    return nats_M, factors_M


def to_fp8_gradient(logits_MV: Tensor, targets_M: Tensor, gradient_MV: Tensor, *, softcap: float) -> Tensor:
    """The tokens' cross-entropy; gradient_MV becomes the gradient in `GRADIENT_UNITS`, the logits stay."""
    nats_M = torch.empty(len(logits_MV), dtype=torch.float32, device=logits_MV.device)
    _launch(_softcap_loss_fp8, logits_MV, targets_M, nats_M, gradient_MV, softcap, GRADIENT_UNITS)
    return nats_M


def _launch(
    kernel: Any,
    logits_MV: Tensor,
    targets_M: Tensor,
    nats_M: Tensor,
    result: Tensor,
    softcap: float,
    *more: float,
) -> None:
    assert logits_MV.stride(1) == 1
    num_tokens, vocab_size = logits_MV.shape
    with torch.cuda.device_of(logits_MV):
        kernel[(num_tokens,)](
            logits_MV,
            targets_M.contiguous(),
            nats_M,
            result,
            logits_MV.stride(0),
            1 / softcap,
            softcap,
            vocab_size,
            *more,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )


@triton.jit
def _tanh(x):
    """By the instruction: relative error 2^-11, a quarter of the rounding of a bfloat16 logit."""
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _softcap_loss(
    logits,
    targets,
    nats,
    factors,
    row_stride,
    inverse_softcap,
    softcap,
    vocab_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    target = tl.load(targets + row)
    learned = target >= 0
    place = logits + tl.maximum(target, 0)
    at_target = _tanh(tl.load(place).to(tl.float32) * inverse_softcap)
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    z = tl.load(logits + columns, mask=columns < vocab_size, other=0.0)
    tl.debug_barrier()  # all threads have read the target's logit, which one of them overwrites
    for start in range(0, vocab_size, BLOCK):
        here = start + columns
        ahead = tl.load(logits + here + BLOCK, mask=here + BLOCK < vocab_size, other=0.0)
        t = _tanh(z.to(tl.float32) * inverse_softcap)
        e = tl.exp(t * softcap)
        sums += tl.where(here < vocab_size, e, 0.0)
        tl.store(logits + here, (e * (1 - t * t)).to(logits.dtype.element_ty), mask=here < vocab_size)
        z = ahead
    total = tl.sum(sums, 0)
    tl.store(nats + row, tl.where(learned, tl.log(total) - softcap * at_target, 0.0))
    tl.store(factors + row, tl.where(learned, 1.0 / total, 0.0))
    tl.debug_barrier()  # what was written at the target is written over
    gradient = (tl.exp(at_target * softcap) - total) * (1 - at_target * at_target)
    tl.store(place, gradient.to(logits.dtype.element_ty))


@triton.jit
def _softcap_loss_fp8(
    logits,
    targets,
    nats,
    gradients,
    row_stride,
    inverse_softcap,
    softcap,
    vocab_size,
    units,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    gradients += row * vocab_size
    target = tl.load(targets + row)
    learned = target >= 0
    place = tl.maximum(target, 0)
    at_target = _tanh(tl.load(logits + place).to(tl.float32) * inverse_softcap)
    binades = softcap * LOG2_E  # powers of two are what the hardware computes
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        here = start + columns
        z = tl.load(logits + here, mask=here < vocab_size, other=0.0).to(tl.float32)
        e = tl.exp2(_tanh(z * inverse_softcap) * binades)
        sums += tl.where(here < vocab_size, e, 0.0)
    total = tl.sum(sums, 0)
    tl.store(nats + row, tl.where(learned, tl.log(total) - softcap * at_target, 0.0))
    shift = tl.where(learned, tl.log2(units / total), -1000.0)  # no power is left of what isn't learned
    for start in range(0, vocab_size, BLOCK):
        here = start + columns
        z = tl.load(logits + here, mask=here < vocab_size, other=0.0).to(tl.float32)
        t = _tanh(z * inverse_softcap)
        p = tl.exp2(t * binades + shift)
        tl.store(gradients + here, (p * (1 - t * t)).to(gradients.dtype.element_ty), mask=here < vocab_size)
    tl.debug_barrier()  # what was written at the target is written over
    p = tl.exp2(at_target * binades + shift) - units
    gradient = tl.where(learned, p * (1 - at_target * at_target), 0.0)
    tl.store(gradients + place, gradient.to(gradients.dtype.element_ty))
