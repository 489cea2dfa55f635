"""A table of rows looked up by id, whose gradient can be made to repeat bit for bit.

Compiled, the gradient of a lookup adds each token's row with atomics: rows of one id arrive in another order
in every run, and float32 sums differ in their last bits. Eager CUDA sorts the ids first and repeats;
`deterministic` keeps that kernel in the compiled graph, as an operator that the compiler can't replace.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanolit.kernels.distinct import apply_to_distinct


class Embedding(nn.Embedding):
    """Rows of `weight` by id: (B, T) to (B, T, C)."""

    # Set by GPT.prepare. Off, the compiler may fuse the gradient's sum with what follows and its order is
    # free: faster, and a run repeats only nearly. `deterministic=true` on the command line turns it on.
    deterministic = False

    def forward(self, input: Tensor) -> Tensor:
        if self.deterministic and torch.is_grad_enabled():
            rows = apply_to_distinct(_Lookup, self.weight, input)
            assert isinstance(rows, Tensor)
            return rows
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
