"""Muon in Triton: momentum and balanced rows in one pass, and half of the tiles of symmetric products.

`balanced_rows` reads gradients where they lie, by a table of their addresses, so no stack of them is made.
`symmetric_product` is persistent, one program on every multiprocessor, and reads through tensor descriptors.
Twins: the first half of optim.updates.muon_update, and optim.updates.symmetric_product_in_torch. Import this
where there is Triton, on Hopper.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

SIDE, INNER = 128, 64  # of a tile, and the step along the inner dimension, in elements
WARPS, STAGES = 4, 4  # of nine settings the fastest on an H200: 0.31 ms for 80 x 1280 x 1280, cuBLAS 0.46


def balanced_rows(gradients: list[Tensor], momentum_NRS: Tensor, momentum: float) -> Tensor:
    """The Nesterov update, its rows of equal norm, of Frobenius norm 1 / 1.01, in bfloat16; moves momentum.

    Equal rows (MuonEq) make the matrix's norm a constant times theirs, so that each is divided by its own. A
    row of zeros stays zero; its matrix then has a norm below that. Gradients are contiguous, float32.
    """
    N, R, S = momentum_NRS.shape
    out_NRS = torch.empty_like(momentum_NRS, dtype=torch.bfloat16)
    addresses = torch.tensor([gradient.data_ptr() for gradient in gradients], dtype=torch.int64)
    with torch.cuda.device_of(momentum_NRS):
        _balance[(R, N)](
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
def _balance(addresses, momenta, out, R, S, momentum, norm, BLOCK: tl.constexpr):
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


def symmetric_product(
    a: Tensor, b: Tensor, add_NRR: Tensor | None, *, alpha: float, beta: float, tall: bool
) -> Tensor:
    """Return alpha A Bᵀ (tall: Aᵀ B) + beta add for stacks of contiguous matrices.

    The product is rounded to a's dtype before it is scaled, and the sum once more.

    R, the side of the result, is a multiple of SIDE; the inner dimension is one of 8, or tall of INNER.
    """
    N, first, second = a.shape
    R, inner = (second, first) if tall else (first, second)
    out_NRR = a.new_empty(N, R, R)
    tile = [INNER, SIDE] if tall else [SIDE, INNER]
    out = TensorDescriptor.from_tensor(out_NRR.view(N * R, R), [SIDE, SIDE])
    add = out if add_NRR is None else TensorDescriptor.from_tensor(add_NRR.view(N * R, R), [SIDE, SIDE])
    processors = torch.cuda.get_device_properties(a.device).multi_processor_count
    with torch.cuda.device_of(a):
        _multiply[(processors,)](
            TensorDescriptor.from_tensor(a.reshape(N * first, second), tile),
            TensorDescriptor.from_tensor(b.reshape(N * first, second), tile),
            add,
            out,
            N,
            R,
            inner,
            alpha,
            beta,
            processors,  # pyright: ignore[reportArgumentType]
            tall,  # pyright: ignore[reportArgumentType]
            add_NRR is not None,  # pyright: ignore[reportArgumentType]
            SIDE,  # pyright: ignore[reportArgumentType]
            INNER,  # pyright: ignore[reportArgumentType]
            num_warps=WARPS,  # pyright: ignore[reportCallIssue]
            num_stages=STAGES,  # pyright: ignore[reportCallIssue]
        )
    return out_NRR


@triton.jit(do_not_specialize=["num_matrices"])  # it would be compiled again for multiples of 16
def _multiply(
    a_rows,
    b_rows,
    add_rows,
    out_rows,
    num_matrices,
    R,
    num_inner,
    alpha,
    beta,
    PROGRAMS: tl.constexpr,
    TALL: tl.constexpr,
    HAS_ADD: tl.constexpr,
    SIDE: tl.constexpr,
    INNER: tl.constexpr,
):
    side_tiles = R // SIDE
    matrix_tiles = side_tiles * (side_tiles + 1) // 2
    inner_step = num_inner if TALL else R  # rows from one matrix of an operand to the next
    for index in tl.range(tl.program_id(0), num_matrices * matrix_tiles, PROGRAMS, flatten=True):  # pyright: ignore[reportGeneralTypeIssues]
        matrix = index // matrix_tiles
        tile = index % matrix_tiles
        # The row of the triangle: the largest m with m (m + 1) / 2 <= tile, whatever the root's rounding
        m = ((tl.sqrt(8.0 * tile + 1.0) - 1.0) * 0.5).to(tl.int32)
        m = tl.where(m * (m + 1) // 2 > tile, m - 1, m)
        m = tl.where((m + 1) * (m + 2) // 2 <= tile, m + 1, m)
        n = tile - m * (m + 1) // 2
        total = tl.zeros((SIDE, SIDE), tl.float32)
        start = matrix * inner_step
        for step in range(tl.cdiv(num_inner, INNER)):
            if TALL:
                a = a_rows.load([start + step * INNER, m * SIDE])
                b = b_rows.load([start + step * INNER, n * SIDE])
                total = tl.dot(a.T, b, total)
            else:
                a = a_rows.load([start + m * SIDE, step * INNER])
                b = b_rows.load([start + n * SIDE, step * INNER])
                total = tl.dot(a, b.T, total)
        row = matrix * R + m * SIDE
        mirrored_row = matrix * R + n * SIDE
        total = alpha * total.to(out_rows.dtype).to(tl.float32)
        if HAS_ADD:
            total += beta * add_rows.load([row, n * SIDE]).to(tl.float32)
        place = tl.arange(0, SIDE)
        down, across = place[:, None], place[None, :]
        out = total.to(out_rows.dtype)
        # What rounding left unsymmetric would grow: the lower half counts, in tiles on the diagonal as well
        out = tl.where((down < across) & (m == n), out.T, out)
        out_rows.store([row, n * SIDE], out)
        out_rows.store([mirrored_row, m * SIDE], out.T)
