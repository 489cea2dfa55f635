"""The residual stream: the embeddings it begins with, and the mix r x + s x₀ that each block reads.

GPT._hidden, which calls `mix`, says what it is worth; here it only saves memory. Compiled, the gradient of a
lookup adds each token's row with atomics: rows of one id arrive in another order in every run, and float32
sums differ in their last bits. Eager CUDA sorts the ids first and repeats; `deterministic` keeps that kernel
in the compiled graph, as an operator that the compiler can't replace.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanolit.kernels.agreement import apply_to_distinct

# |r| is taken to be at least this in the gradient by r, which divides by it. r starts at 1.15 to 1.05 and has
# a learning rate a hundredth of the others', so it stays far from zero.
SMALLEST = 1e-6


class Embedding(nn.Embedding):
    """Rows of `weight` by id: (B, T) to (B, T, C)."""

    # Set by GPT.prepare. Off, the compiler may fuse the gradient's sum with what follows and its order is
    # free: faster, and a run repeats only nearly. `deterministic=true` on the command line turns it on.
    deterministic = False

    def forward(self, input: Tensor) -> Tensor:
        if self.deterministic and torch.is_grad_enabled():
            return apply_to_distinct(_Lookup, self.weight, input)
        return super().forward(input)


class _Lookup(torch.autograd.Function):
    """F.embedding whose gradient is `sum_rows`. The lookup itself stays open to the compiler's fusion."""

    @staticmethod
    def forward(ctx: Any, weight_VC: Tensor, ids_BT: Tensor) -> Tensor:
        ctx.save_for_backward(ids_BT)
        ctx.num_rows = len(weight_VC)
        return F.embedding(ids_BT, weight_VC)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (ids_BT,) = ctx.saved_tensors
        return sum_rows(gradients[0], ids_BT, ctx.num_rows), None


@torch.library.custom_op("nanolit::sum_rows", mutates_args=())
def sum_rows(rows_BTC: Tensor, ids_BT: Tensor, num_rows: int) -> Tensor:
    """Return (num_rows, C): the sum of the rows of each id in float32, rounded once to their dtype.

    Up to 3,072 tokens CUDA's kernel adds in the rows' own dtype; real micro-batches have more.
    """
    # A frequent token occurs thousands of times in a micro-batch: a bfloat16 sum, with 8 bits, would stop
    # growing
    wide_BTC = rows_BTC if rows_BTC.is_cuda else rows_BTC.float()  # a CPU adds in the dtype that it is given
    sums_VC = torch.ops.aten.embedding_dense_backward(wide_BTC, ids_BT, num_rows, -1, False)
    return sums_VC.to(rows_BTC.dtype)


@sum_rows.register_fake
def _(rows_BTC: Tensor, ids_BT: Tensor, num_rows: int) -> Tensor:
    return rows_BTC.new_empty(num_rows, rows_BTC.size(-1))


def mix(x: Tensor, x0: Tensor, r: Tensor, s: Tensor) -> Tensor:
    """Return r x + s x₀ in x's dtype; r and s are 0-D float32 parameters."""
    # In the first block x is x₀. Compiled, one of the two gradients would silently be lost: this cost a week
    # of wrong training (agreement.py; LOG.md, 2026-11-30).
    if x is x0:
        return (r + s) * x
    return apply_to_distinct(_Mix, x, x0, r, s)


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
