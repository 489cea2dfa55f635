"""Rounding a matrix to fp8 in Triton: one read, its rows and its columns written. Twin: fp8.rounded_in_torch.

Import this where there is Triton, on NVIDIA from Ada on.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanolit.model.fp8 import TINY

TILE, WARPS = 128, 8  # rows and columns that a program turns over


def rounded(x_RS: Tensor, dtype: torch.dtype, largest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and scale of contiguous bfloat16; `largest` is x's largest magnitude."""
    R, S = x_RS.shape
    rows_RS, columns_SR = x_RS.new_empty((R, S), dtype=dtype), x_RS.new_empty((S, R), dtype=dtype)
    scale = torch.empty((), dtype=torch.float32, device=x_RS.device)
    with torch.cuda.device_of(x_RS):
        _kernel[(triton.cdiv(R, TILE), triton.cdiv(S, TILE))](
            x_RS,
            largest,
            rows_RS,
            columns_SR,
            scale,
            R,
            S,
            TINY,
            torch.finfo(dtype).max,
            TILE,  # pyright: ignore[reportArgumentType]
            num_warps=WARPS,  # pyright: ignore[reportCallIssue]
        )
    return rows_RS, columns_SR, scale


@triton.jit
def _kernel(x, largest, rows, columns, scale, R, S, tiny, limit, TILE: tl.constexpr):
    row = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * TILE + tl.arange(0, TILE)).to(tl.int64)[None, :]
    inside = (row < R) & (column < S)
    unit = tl.maximum(tl.load(largest), tiny) / limit
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(scale, unit)
    y = tl.load(x + row * S + column, mask=inside, other=0.0).to(tl.float32) / unit
    y = tl.minimum(tl.maximum(y, -limit), limit).to(rows.dtype.element_ty)
    tl.store(rows + row * S + column, y, mask=inside)
    tl.store(columns + column * R + row, y, mask=inside)
