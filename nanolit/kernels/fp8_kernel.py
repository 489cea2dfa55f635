"""Transposing a matrix of bytes in Triton, at nearly the speed of a copy. Twin: x.t().contiguous().

Four rows of 32-bit words are four by four bytes, which turn over in registers; the rest is a transpose of
words. Import this where there is Triton, on NVIDIA from Ada on.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS = 64  # across, and down in groups of four rows, that a program turns over
WARPS = 8
BYTES = 4  # of a word


def transposed(x_RS: Tensor) -> Tensor:
    """(S, R) of a contiguous matrix of bytes whose sizes are multiples of four."""
    R, S = x_RS.shape
    columns_SR = x_RS.new_empty((S, R))
    with torch.cuda.device_of(x_RS):
        _transpose[(triton.cdiv(R, BYTES * WORDS), triton.cdiv(S, BYTES * WORDS))](
            x_RS.view(torch.int32),
            columns_SR.view(torch.int32),
            R // BYTES,
            S // BYTES,
            WORDS,  # pyright: ignore[reportArgumentType]
            num_warps=WARPS,  # pyright: ignore[reportCallIssue]
        )
    return columns_SR


@triton.jit
def _transpose(x, columns, R, S, WORDS: tl.constexpr):
    row = (tl.program_id(0) * WORDS + tl.arange(0, WORDS)).to(tl.int64)
    column = (tl.program_id(1) * WORDS + tl.arange(0, WORDS)).to(tl.int64)
    source = x + 4 * row[:, None] * S + column[None, :]
    inside = (row < R)[:, None] & (column < S)[None, :]
    a = tl.load(source, mask=inside, other=0).to(tl.uint32, bitcast=True)
    b = tl.load(source + S, mask=inside, other=0).to(tl.uint32, bitcast=True)
    c = tl.load(source + 2 * S, mask=inside, other=0).to(tl.uint32, bitcast=True)
    d = tl.load(source + 3 * S, mask=inside, other=0).to(tl.uint32, bitcast=True)
    # From rows a, b, c, d of four bytes to columns: first bytes 0, 2 and 1, 3 of two rows, then of all
    ab_even = (a & 0x00FF00FF) | ((b & 0x00FF00FF) << 8)
    ab_odd = ((a >> 8) & 0x00FF00FF) | (b & 0xFF00FF00)
    cd_even = (c & 0x00FF00FF) | ((d & 0x00FF00FF) << 8)
    cd_odd = ((c >> 8) & 0x00FF00FF) | (d & 0xFF00FF00)
    target = columns + 4 * column[:, None] * R + row[None, :]
    inside = (column < S)[:, None] & (row < R)[None, :]
    _store(target, (ab_even & 0xFFFF) | (cd_even << 16), inside)
    _store(target + R, (ab_odd & 0xFFFF) | (cd_odd << 16), inside)
    _store(target + 2 * R, (ab_even >> 16) | (cd_even & 0xFFFF0000), inside)
    _store(target + 3 * R, (ab_odd >> 16) | (cd_odd & 0xFFFF0000), inside)


@triton.jit
def _store(target, words, inside):
    tl.store(target, tl.trans(words).to(tl.int32, bitcast=True), mask=inside)
