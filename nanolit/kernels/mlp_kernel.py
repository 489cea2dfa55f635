"""The MLP's two products with its activation inside, in Triton for Hopper. Twin: mlp.relu_squared_mlp.

A persistent kernel: one program on every multiprocessor takes output tiles in turn, so that a tile's loads
begin while the one before it is stored (the scheme of Triton's tutorial on persistent matrix products);
operands come through tensor descriptors. Import this where there is Triton, on Hopper.

Letters: N tokens, C width, F hidden.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# Rows of a tile of the result and the step along the inner dimension, in bytes; then a tile's columns, a
# program's warps and a multiprocessor's programs: of eight settings the fastest on an H200. The slope in fp8
# is faster by small tiles, where one program computes while another waits for hidden numbers.
ROWS, INNER_BYTES = 128, 128
LARGE, SMALL = (256, 8, 1), (128, 4, 2)
LINE = 128  # bytes that are fetched at once
GROUP = 8  # tiles that follow one another share their columns' operand this many times


def relu_squared_product(x_NC: Tensor, expand_FC: Tensor) -> Tensor:
    """relu(x Wᵀ)², (N, F) in x's dtype, the arithmetic in float32."""
    hidden_NF = x_NC.new_empty(len(x_NC), len(expand_FC))
    _launch(x_NC, expand_FC, hidden_NF, hidden_NF, slope=False)
    return hidden_NF


def slope_product(d_y_NC: Tensor, contract_CF: Tensor, hidden_NF: Tensor) -> Tensor:
    """(dy W) 2 √h: the gradient before the activation, from that after the MLP and the hidden squares."""
    d_z_NF = torch.empty_like(hidden_NF)
    _launch(d_y_NC, contract_CF, d_z_NF, hidden_NF, slope=True)
    return d_z_NF


def relu_squared_product_fp8(
    x8_NC: Tensor, x_scale: Tensor, expand8_FC: Tensor, expand_scale: Tensor, hidden_scale: Tensor
) -> Tensor:
    """`relu_squared_product` of rounded operands, divided by `hidden_scale` and rounded to fp8."""
    hidden8_NF = x8_NC.new_empty(len(x8_NC), len(expand8_FC))
    scales = (x_scale, expand_scale, hidden_scale, hidden_scale)
    _launch(x8_NC, expand8_FC, hidden8_NF, hidden8_NF, scales, slope=False)
    return hidden8_NF


def slope_product_fp8(
    d_y8_NC: Tensor,
    d_y_scale: Tensor,
    contract_FC: Tensor,
    contract_scale: Tensor,
    hidden8_NF: Tensor,
    hidden_scale: Tensor,
    d_z_scale: Tensor,
) -> Tensor:
    """`slope_product` of rounded operands, summed the fast way, divided by `d_z_scale`, in d_y8's dtype."""
    d_z8_NF = torch.empty_like(hidden8_NF, dtype=d_y8_NC.dtype)
    scales = (d_y_scale, contract_scale, hidden_scale, d_z_scale)
    _launch(d_y8_NC, contract_FC, d_z8_NF, hidden8_NF, scales, slope=True)
    return d_z8_NF


def _launch(
    a_NC: Tensor,
    weight: Tensor,
    out_NF: Tensor,
    hidden_NF: Tensor,
    scales: tuple[Tensor, ...] = (),
    *,
    slope: bool,
) -> None:
    num_rows, num_columns = out_NF.shape
    columns, warps, programs = SMALL if slope and scales else LARGE
    programs *= torch.cuda.get_device_properties(a_NC.device).multi_processor_count
    tiles = triton.cdiv(num_rows, ROWS) * triton.cdiv(num_columns, columns)
    half_tile = [ROWS, columns // 2]
    inner = INNER_BYTES // a_NC.element_size()
    weight_tile = [inner, columns] if slope and not scales else [columns, inner]
    limit = torch.finfo(out_NF.dtype).max if scales else None
    a_scale, weight_scale, hidden_scale, out_scale = scales or (None,) * 4
    with torch.cuda.device_of(a_NC):
        _product[(min(programs, tiles),)](
            TensorDescriptor.from_tensor(a_NC.contiguous(), [ROWS, inner]),
            TensorDescriptor.from_tensor(weight.contiguous(), weight_tile),
            TensorDescriptor.from_tensor(out_NF, half_tile),
            TensorDescriptor.from_tensor(hidden_NF, half_tile),
            hidden_NF,
            a_scale,
            weight_scale,
            hidden_scale,
            out_scale,
            limit,
            num_rows,
            num_columns,
            a_NC.size(1),
            programs,  # pyright: ignore[reportArgumentType]
            slope,  # pyright: ignore[reportArgumentType]
            bool(scales),  # pyright: ignore[reportArgumentType]
            ROWS,  # pyright: ignore[reportArgumentType]
            columns,  # pyright: ignore[reportArgumentType]
            inner,  # pyright: ignore[reportArgumentType]
            GROUP,  # pyright: ignore[reportArgumentType]
            LINE // hidden_NF.element_size(),  # pyright: ignore[reportArgumentType]
            num_warps=warps,  # pyright: ignore[reportCallIssue]
            num_stages=3,  # pyright: ignore[reportCallIssue]
        )


@triton.jit
def _product(
    a_NC,
    weight,
    out_NF,
    hidden_NF,
    hidden,  # the same memory as a pointer
    a_scale,
    weight_scale,
    hidden_scale,
    out_scale,
    limit,
    num_rows,
    num_columns,
    num_inner,
    PROGRAMS: tl.constexpr,
    SLOPE: tl.constexpr,  # the result is multiplied by 2 √h; else it is relu²
    FP8: tl.constexpr,  # operands and results have scales
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GROUP: tl.constexpr,
    LINE: tl.constexpr,  # hidden numbers that are fetched at once
):
    tiles_down = tl.cdiv(num_rows, ROWS)
    tiles_across = tl.cdiv(num_columns, COLUMNS)
    group_tiles = GROUP * tiles_across
    for tile in tl.range(tl.program_id(0), tiles_down * tiles_across, PROGRAMS, flatten=True):
        first = (tile // group_tiles) * GROUP
        height = min(tiles_down - first, GROUP)
        row = (first + (tile % group_tiles) % height) * ROWS
        column = ((tile % group_tiles) // height) * COLUMNS
        if SLOPE and FP8:  # in bfloat16 it is slower with than without
            _prefetch(hidden, row, column, num_rows, num_columns, ROWS, COLUMNS, LINE)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(tl.cdiv(num_inner, INNER)):
            a = a_NC.load([row, step * INNER])
            if SLOPE and not FP8:  # (C, F); else (F, C)
                b = weight.load([step * INNER, column])
            else:
                b = weight.load([column, step * INNER]).T
            total = tl.dot(a, b, total)
        if FP8:
            total *= tl.load(a_scale) * tl.load(weight_scale)
        # By halves, which fit in shared memory beside the operands
        halves = tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        middle = column + COLUMNS // 2
        if SLOPE:
            left_squares = hidden_NF.load([row, column]).to(tl.float32)
            right_squares = hidden_NF.load([row, middle]).to(tl.float32)
            if FP8:
                left_squares *= tl.load(hidden_scale)
                right_squares *= tl.load(hidden_scale)
            left *= 2 * tl.sqrt(left_squares)
            right *= 2 * tl.sqrt(right_squares)
        else:
            left = tl.maximum(left, 0.0)
            left *= left
            right = tl.maximum(right, 0.0)
            right *= right
        if FP8:
            unit = 1 / tl.load(out_scale)
            left = tl.minimum(tl.maximum(left * unit, -limit), limit)
            right = tl.minimum(tl.maximum(right * unit, -limit), limit)
        out_NF.store([row, column], left.to(out_NF.dtype))
        out_NF.store([row, middle], right.to(out_NF.dtype))


@triton.jit
def _prefetch(
    x,
    row,
    column,
    num_rows,
    num_columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LINE: tl.constexpr,
):
    """Ask for a tile of x, so that it is in the second level's cache when it is needed."""
    rows = tl.minimum(row + tl.arange(0, ROWS), num_rows - 1).to(tl.int64)[:, None]
    columns = tl.minimum(column + tl.arange(0, COLUMNS // LINE) * LINE, num_columns - 1)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [x + rows * num_columns + columns],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
