"""Softcap, cross-entropy and its gradient in one Triton kernel: every logit is read twice and written once.

What it computes, and the PyTorch twin that it is tested against: loss.to_gradient_in_torch. Import this where
there is Triton, on NVIDIA from Turing on, which has the tanh instruction.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanolit.model.loss import GRADIENT_UNITS

# Logits that a program holds at once, and its warps: 0.71 ms for 16,384 rows of 32,768 on an H200, the best
# of five sizes and three numbers of warps; reading and writing them takes 0.50 ms.
BLOCK, WARPS = 4096, 16


def to_gradient(
    logits_MV: Tensor, targets_M: Tensor, *, softcap: float, fp8_MV: Tensor | None = None
) -> Tensor:
    """The tokens' cross-entropy, float32; logits_MV becomes its gradient. Rows must be contiguous.

    Or `fp8_MV` does, times `GRADIENT_UNITS`, and the logits stay.
    """
    assert logits_MV.stride(1) == 1
    num_tokens, vocab_size = logits_MV.shape
    nats_M = torch.empty(num_tokens, dtype=torch.float32, device=logits_MV.device)
    _softcap_loss[(num_tokens,)](
        logits_MV,
        targets_M.contiguous(),
        nats_M,
        logits_MV.stride(0),
        1 / softcap,
        softcap,
        vocab_size,
        logits_MV if fp8_MV is None else fp8_MV,
        GRADIENT_UNITS,
        FP8=fp8_MV is not None,  # pyright: ignore[reportArgumentType]
        BLOCK=BLOCK,  # pyright: ignore[reportArgumentType]
        num_warps=WARPS,  # pyright: ignore[reportCallIssue]
    )
    return nats_M


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
    row_stride,
    inverse_softcap,
    softcap,
    vocab_size,
    fp8,
    fp8_units,
    FP8: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride
    fp8 += row * vocab_size
    target = tl.load(targets + row)
    learned = target >= 0
    at_target = _tanh(tl.load(logits + tl.maximum(target, 0)).to(tl.float32) * inverse_softcap)
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab_size, BLOCK):
        inside = start + columns < vocab_size
        z = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32)
        sums += tl.where(inside, tl.exp(_tanh(z * inverse_softcap) * softcap), 0.0)
    total = tl.sum(sums, 0)
    tl.store(nats + row, tl.where(learned, tl.log(total) - softcap * at_target, 0.0))
    scale = tl.where(learned, 1.0 / total, 0.0)
    hit = tl.where(learned, 1.0, 0.0)
    tl.debug_barrier()  # all threads have read the target's logit, which one of them now overwrites
    for start in range(0, vocab_size, BLOCK):
        inside = start + columns < vocab_size
        z = tl.load(logits + start + columns, mask=inside, other=0.0).to(tl.float32)
        t = _tanh(z * inverse_softcap)
        p = tl.exp(t * softcap) * scale - tl.where(start + columns == target, hit, 0.0)
        gradient = p * (1 - t * t)
        if FP8:
            tl.store(fp8 + start + columns, (gradient * fp8_units).to(fp8.dtype.element_ty), mask=inside)
        else:
            tl.store(logits + start + columns, gradient.to(logits.dtype.element_ty), mask=inside)
