"""Muon's momentum and the balance of its rows in one pass over gradients and state, in Triton.

Gradients are read where they lie, by a table of their addresses, so that no stack of them is made. Twin: the
first half of optim.updates.muon_update. Import this where there is Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def balanced_rows(gradients: list[Tensor], momentum_NRS: Tensor, momentum: float) -> Tensor:
    """The Nesterov update, its rows of equal norm, of Frobenius norm 1 / 1.01, in bfloat16; moves momentum.

    Equal rows (MuonEq) make the matrix's norm a constant times theirs, so that each is divided by its own. A
    row of zeros stays zero; its matrix then has a norm below that. Gradients are contiguous, float32.
    """
    N, R, S = momentum_NRS.shape
    out_NRS = torch.empty_like(momentum_NRS, dtype=torch.bfloat16)
    addresses = torch.tensor([gradient.data_ptr() for gradient in gradients], dtype=torch.int64)
    with torch.cuda.device_of(momentum_NRS):
        _kernel[(R, N)](
            addresses.to(momentum_NRS.device, non_blocking=True),
            momentum_NRS,
            out_NRS,
            R,
            S,
            momentum,
            1 / (1.01 * R**0.5),
            triton.next_power_of_2(S),  # pyright: ignore[reportArgumentType]
        )
    return out_NRS


@triton.jit
def _kernel(addresses, momenta, out, R, S, momentum, norm, BLOCK: tl.constexpr):
    row, matrix = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < S
    address = tl.load(addresses + matrix).to(tl.pointer_type(tl.float32))
    gradient = tl.load(tl.multiple_of(address, 16) + row * S + column, mask=inside, other=0.0)
    place = (matrix.to(tl.int64) * R + row) * S + column
    moved = momentum * tl.load(momenta + place, mask=inside, other=0.0) + (1 - momentum) * gradient
    tl.store(momenta + place, moved, mask=inside)
    update = (1 - momentum) * gradient + momentum * moved
    scale = norm / tl.maximum(tl.sqrt(tl.sum(update * update, 0)), 1e-10)
    tl.store(out + place, (update * scale).to(tl.bfloat16), mask=inside)
