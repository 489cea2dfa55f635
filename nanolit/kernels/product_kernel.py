"""Products of 2 to 16 rows, or of one row of a wide model, with weights prefetched into shared memory.

Called by decode_kernel.product. At few rows a step is bound by reading weights, and five kernels per layer
interrupt that stream. So each program copies the weights of its 16 columns into shared memory before it waits
for the previous kernel. (Registers would be full and keep the next kernel's programs out.) Warps split the
inner dimension; tensor cores multiply. Written in Gluon because Triton's own pipeline copies nothing ahead of
a wait: a step of 8 rows takes 729 µs against 823 for d20, 1,262 against 1,508 for d26 (H200; LOG.md).
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOptionalSubscript=false

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# Triton 3.9 renamed it
copy_ahead = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
COLUMNS = gl.constexpr(16)  # of one tensor core instruction
INNER = gl.constexpr(64)  # inner elements of a warp at once: each lane has twice 8 adjacent ones


def multiply(
    operands: Sequence[Any], B: int, N: int, C: int, flags: Sequence[bool], launch: dict[str, Any]
) -> None:
    """Do the same as decode_kernel.product."""
    rows = max(8, triton.next_power_of_2(B))
    warps, stages = tile_of(C, rows, operands[0].device)
    stages = min(stages, triton.cdiv(C, warps * INNER.value))
    grid = (triton.cdiv(N, COLUMNS.value),)
    _multiply[grid](*operands, B, N, C, *flags, rows, warps, stages, num_warps=warps, **launch)


def tile_of(C: int, rows: int, device: torch.device) -> tuple[int, int]:
    """Return a program's warps and its most stages, measured on an H200 (LOG.md, 2026-12-01).

    A program holds 40 KiB of narrow weights, so that those of one kernel and the next fit into a
    multiprocessor, or 64 KiB with twice the warps where two would spill registers; of wide weights 160 KiB,
    or 96 where it cannot have more.
    """
    if C <= 2560:
        return (2, 10) if C * rows <= 8 * 2560 else (4, 8)
    return 8, 10 if shared_bytes(device) > 160 * 1024 else 6


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Return the shared memory that a program can have."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


@gluon.jit
def _copy(
    slot, weight, column, inner, N, chunk: gl.constexpr, C: gl.constexpr, STEP: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    known = column < N
    if C % STEP != 0:
        known = known & (inner + chunk * STEP < C)
    at = weight + column * C + inner + chunk * STEP
    copy_ahead(slot.index(chunk % STAGES), at, mask=known)
    async_copy.commit_group()


@gluon.jit
def _multiply(
    x, weight, out, residual, r, s, x0, kept, epsilon, B, N, C: gl.constexpr, NORMALIZED: gl.constexpr,
    SQUARED: gl.constexpr, RESIDUAL: gl.constexpr, MIX: gl.constexpr, KEPT: gl.constexpr, ROWS: gl.constexpr,
    WARPS: gl.constexpr, STAGES: gl.constexpr, DEPENDENT: gl.constexpr,
):  # fmt: skip
    STEP: gl.constexpr = WARPS * INNER
    CHUNKS: gl.constexpr = (C + STEP - 1) // STEP
    copied: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 4, 8], [WARPS, 1, 1], [2, 1, 0])
    # Adjacent rows have their halves swapped, so that no two lanes read the same bank
    shared: gl.constexpr = gl.SwizzledSharedLayout(32, 1, 2, [2, 1, 0])
    units: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    # 8 adjacent elements per lane, not 2: the order of the sum changes, and each load moves 16 bytes
    of_weight: gl.constexpr = gl.DotOperandLayout(0, units, 8)
    of_x: gl.constexpr = gl.DotOperandLayout(1, units, 8)
    finished: gl.constexpr = gl.BlockedLayout([1, 1], [16, 2], [1, WARPS], [0, 1])

    begin = gl.program_id(0) * COLUMNS
    slot = gl.allocate_shared_memory(weight.dtype.element_ty, [STAGES, WARPS, COLUMNS, INNER], shared)
    copy_warp = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, copied)))[:, None, None]
    copy_column = begin + gl.arange(0, COLUMNS, gl.SliceLayout(0, gl.SliceLayout(2, copied)))[None, :, None]
    copy_inner = gl.arange(0, INNER, gl.SliceLayout(0, gl.SliceLayout(1, copied)))[None, None, :]
    copy_inner = copy_warp * INNER + copy_inner
    for chunk in gl.static_range(STAGES):
        _copy(slot, weight, copy_column, copy_inner, N, chunk, C, STEP, STAGES)

    warp = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, of_x)))[:, None, None]
    inner = warp * INNER + gl.arange(0, INNER, gl.SliceLayout(0, gl.SliceLayout(2, of_x)))[None, :, None]
    of_row = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(1, of_x)))[None, None, :]
    column = begin + gl.arange(0, COLUMNS, gl.SliceLayout(1, finished))[:, None]
    row = gl.arange(0, ROWS, gl.SliceLayout(0, finished))[None, :]
    place, inside = row * N + column, (row < B) & (column < N)
    if DEPENDENT == 2:
        gdc_launch_dependents()
    if DEPENDENT:
        gdc_wait()
    if DEPENDENT == 1:
        gdc_launch_dependents()
    xs = ()
    for chunk in gl.static_range(CHUNKS):
        known = of_row < B
        if C % STEP != 0:
            known = known & (inner + chunk * STEP < C)
        xs += (gl.load(x + of_row * C + inner + chunk * STEP, mask=known, other=0.0, cache_modifier=".cg"),)
    if RESIDUAL:
        added = gl.load(residual + place, mask=inside, other=0.0, cache_modifier=".cg").to(gl.float32)
    if MIX:
        first = gl.load(x0 + place, mask=inside, other=0.0, cache_modifier=".cg").to(gl.float32)

    # Two sums, so that an instruction need not wait for the previous result
    even = gl.zeros([WARPS, COLUMNS, ROWS], gl.float32, units)
    odd = gl.zeros([WARPS, COLUMNS, ROWS], gl.float32, units)
    squares = gl.zeros([WARPS, INNER, ROWS], gl.float32, of_x)
    for chunk in gl.static_range(CHUNKS):
        async_copy.wait_group(STAGES - 1)
        w = slot.index(chunk % STAGES).load(of_weight)
        if chunk % 2 == 0:
            even = mma_v2(w, xs[chunk], even)
        else:
            odd = mma_v2(w, xs[chunk], odd)
        if NORMALIZED:
            wide = xs[chunk].to(gl.float32)
            squares += wide * wide
        if chunk + STAGES < CHUNKS:
            _copy(slot, weight, copy_column, copy_inner, N, chunk + STAGES, C, STEP, STAGES)
        else:
            async_copy.commit_group()  # an empty group: waits count groups
    y = gl.convert_layout(gl.sum(even + odd, axis=0), finished)
    if NORMALIZED:
        mean = gl.sum(gl.sum(squares, axis=1), axis=0) / C
        y *= gl.convert_layout(gl.rsqrt(mean + epsilon), gl.SliceLayout(0, finished))[None, :]
    # The rest repeats decode_kernel._finish, which Gluon cannot call
    dtype: gl.constexpr = out.dtype.element_ty
    y = y.to(dtype).to(gl.float32)
    if SQUARED:
        y = gl.maximum(y, 0.0)
        y = y * y
    if RESIDUAL:
        y += added
    if KEPT:
        gl.store(kept + place, y.to(dtype), mask=inside)
    if MIX:
        y = gl.load(r) * y.to(dtype).to(gl.float32) + gl.load(s) * first
    gl.store(out + place, y.to(dtype), mask=inside)
