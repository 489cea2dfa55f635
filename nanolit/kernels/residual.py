"""The residual stream of the modern recipe: before each block x becomes r x + s x₀, with learned r and s.

What it is worth: see GPT._hidden, where it is called. This file only saves memory.
"""

from typing import Any

import torch
from torch import Tensor

from nanolit.kernels.distinct import apply_to_distinct

# |r| is taken to be at least this in the gradient by r, which divides by it. r starts at 1.15 to 1.05 and has
# a learning rate a hundredth of the others', so it stays far from zero.
SMALLEST = 1e-6


class _Mix(torch.autograd.Function):
    """Compute y = r x + s x₀ and keep y for the backward pass instead of x: the next norm keeps y anyway.

    The gradient by r, Σ g x, is then (Σ g y - s Σ g x₀) / r: within 0.5% in bfloat16 down to r = 0.03, while
    at 1e-4 the rounding is larger than the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, x0: Tensor, r: Tensor, s: Tensor) -> Tensor:
        # Autograd would keep x as well, one more (B, T, C) tensor for each layer
        y = r * x + s * x0
        ctx.save_for_backward(y, x0, r, s)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (g,) = gradients
        y, x0, r, s = ctx.saved_tensors
        by_s = (g * x0).sum(dtype=r.dtype)
        divisor = torch.where(r.abs() < SMALLEST, SMALLEST, r)
        by_r = ((g * y).sum(dtype=r.dtype) - s * by_s) / divisor
        return r * g, s * g, by_r, by_s


def mix(x: Tensor, x0: Tensor, r: Tensor, s: Tensor) -> Tensor:
    """Return r x + s x₀ in x's dtype; r and s are 0-D float32 parameters."""
    # In the first block x is x₀. Compiled, one of the two gradients would be lost without a word: this cost a
    # week of wrong training (distinct.py; LOG.md, 2026-11-30).
    if x is x0:
        return (r + s) * x
    return apply_to_distinct(_Mix, x, x0, r, s)
