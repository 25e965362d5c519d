"""Products whose row groups each use a leading part of the weight: forward, and the input's gradient.

    forward         z = x[t, :k] @ W[:n, :k].T + b[:n];  y[t, :n] = drop(act(z)) + residual[t, :n]
    input gradient  dx[t, :k] = (dz[t, :n] @ W[:n, :k]) * act'(pre[t, :k]) + added[t, :k]

n and k belong to row t's group (`row_tiles.py`). The two products are one kernel shape: a row tile of the left operand
times a part of W, by rows (W's rows are outputs) or by columns (W's rows are reduced over).

What one program computes: tiles of block_m rows (of one group) by block_n columns, one after another, as many programs
as the device holds at once. Bytes, if each operand came from memory once: T*K + N*K + T*N elements (and T*N for each of
residual, pre and added); operations: 2 n k a row. Tensor-core bound from about 300 rows on; below that by the weight's
bytes, and by the launch.

Reduction: whole blocks of block_k without a mask over it, then steps of 16 with an exact one. So a width needs no
promise to be a multiple of anything (a mask from device data otherwise stops 16-byte loads, in silence), and nothing
past a row's width is multiplied: zero times the NaN of an unwritten buffer would be NaN. Widths that are multiples of
block_k have no such steps. Columns past n inside the last column tile are computed and dropped. Rows must start at
multiples of 16 elements to be loaded 16 bytes at a time; others are correct and read piece by piece.

sm_90: whole blocks of bfloat16 and float16 come through tensor descriptors (TMA), where base and row stride allow it;
stores go through pointers, since a descriptor would write past the group's last row. sm_80: pointers (descriptors
compile to loads without cp.async there). float32 is multiplied in float32 (`ieee`), never in tf32, hence without tensor
cores: at most PyTorch's own error is the rule, and tf32x3 could not be checked on a card. Sums are float32 (float64 for
float64), rounded once, at the store. Deterministic: no atomics, and a tile's order of additions depends on sizes and
tile alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynabert_kernels.triton.activations import activate, activation_slope
from dynabert_kernels.triton.dependent_launch import ask_for_weight, begin_dependent, dependent_launch
from dynabert_kernels.triton.environment import (
    accumulator,
    architecture,
    jit,
    launch_device,
    multiprocessors,
    tensor_descriptor,
    tl,
)
from dynabert_kernels.triton.hidden_dropout import HiddenDropout, dropout_factors
from dynabert_kernels.triton.row_tiles import Widths, count_tiles, find_tile, row_tile_bound
from dynabert_kernels.triton.tiles import GemmTile, gemm_tile

__all__ = ["descriptors_allowed", "ragged_input_gradient", "ragged_linear"]


@jit
def _product(
    a_ptr: tl.tensor,  # (T, reduction)
    a_descriptor: tl.tensor,  # the same in blocks of (BLOCK_M, BLOCK_K), or None: then pointers are used
    b_ptr: tl.tensor,  # (outputs, reduction), or (reduction, outputs)
    b_descriptor: tl.tensor,
    a_stride: tl.tensor,
    b_stride: tl.tensor,
    first_row: tl.tensor,
    end_row: tl.tensor,
    first_column: tl.tensor,
    num_columns: tl.tensor,  # columns that may be read
    reduction: tl.tensor,
    B_ROWS_ARE_OUTPUTS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    start: tl.tensor | None = None,  # where the reduction begins, a multiple of BLOCK_K; None: at 0
    TAIL: tl.constexpr = 16,  # the shortest reduction that tensor cores take
) -> tl.tensor:
    rows = first_row + tl.arange(0, BLOCK_M)
    columns = first_column + tl.arange(0, BLOCK_N)
    in_rows = rows < end_row
    in_columns = columns < num_columns
    a_rows = a_ptr + rows.to(tl.int64)[:, None] * a_stride
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=ACC)
    whole = reduction // BLOCK_K * BLOCK_K

    for k in tl.range(0 if start is None else start, whole, BLOCK_K):
        steps = k + tl.arange(0, BLOCK_K)
        if a_descriptor is not None:
            # Rows past the group's last are other groups' and may hold NaN: it stays in rows that are not stored.
            a = a_descriptor.load([first_row, k])
        else:
            a = tl.load(a_rows + steps[None, :], mask=in_rows[:, None], other=0.0)
        if B_ROWS_ARE_OUTPUTS:
            if b_descriptor is not None:
                b = b_descriptor.load([first_column, k]).T
            else:
                b_tile = b_ptr + columns.to(tl.int64)[:, None] * b_stride + steps[None, :]
                b = tl.load(b_tile, mask=in_columns[:, None], other=0.0).T
        else:
            if b_descriptor is not None:
                b = b_descriptor.load([k, first_column])
            else:
                b_tile = b_ptr + steps.to(tl.int64)[:, None] * b_stride + columns[None, :]
                b = tl.load(b_tile, mask=in_columns[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")

    for k in tl.range(whole if start is None else tl.maximum(whole, start), reduction, TAIL, num_stages=1):
        steps = k + tl.arange(0, TAIL)
        in_steps = steps < reduction
        a = tl.load(a_rows + steps[None, :], mask=in_rows[:, None] & in_steps[None, :], other=0.0)
        if B_ROWS_ARE_OUTPUTS:
            b_tile = b_ptr + columns.to(tl.int64)[:, None] * b_stride + steps[None, :]
            b = tl.load(b_tile, mask=in_columns[:, None] & in_steps[None, :], other=0.0).T
        else:
            b_tile = b_ptr + steps.to(tl.int64)[:, None] * b_stride + columns[None, :]
            b = tl.load(b_tile, mask=in_steps[:, None] & in_columns[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@jit
def _load(
    ptr: tl.tensor, stride: tl.tensor, rows: tl.tensor, in_rows: tl.tensor, columns: tl.tensor, num_columns: tl.tensor
) -> tl.tensor:
    # Masked by what exists, not by the row's width: that would be read piece by piece. What lies past it is dropped.
    tile = ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(tile, mask=in_rows[:, None] & (columns < num_columns)[None, :], other=0.0)


@jit
def _store(
    ptr: tl.tensor,
    stride: tl.tensor,
    values: tl.tensor,
    rows: tl.tensor,
    in_rows: tl.tensor,
    columns: tl.tensor,
    num_columns: tl.tensor,
    width: tl.tensor,
    ZERO_FILL: tl.constexpr,
) -> None:
    """Stores the columns up to `width`; ZERO_FILL: and zeros in the others."""
    tile = ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    if ZERO_FILL:
        values = tl.where((columns < width)[None, :], values, 0.0).to(ptr.dtype.element_ty)
        tl.store(tile, values, mask=in_rows[:, None] & (columns < num_columns)[None, :])
    else:
        values = values.to(ptr.dtype.element_ty)
        # A multiple of 16 by arithmetic, which the compiler sees: 16 bytes at a time. Then what is left of the width.
        even = width // 16 * 16
        tl.store(tile, values, mask=in_rows[:, None] & (columns < even)[None, :])
        if even < width:
            tl.store(tile, values, mask=in_rows[:, None] & ((columns >= even) & (columns < width))[None, :])


@jit
def _finish_linear(
    z: tl.tensor,
    bias_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    pre_ptr: tl.tensor,
    y_ptr: tl.tensor,
    state_ptr: tl.tensor,
    residual_stride: tl.tensor,
    pre_stride: tl.tensor,
    y_stride: tl.tensor,
    counter: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    group: tl.tensor,
    group_begin: tl.tensor,
    first_row: tl.tensor,
    end_row: tl.tensor,
    first_column: tl.tensor,
    num_columns: tl.tensor,
    width: tl.tensor,
    ACTIVATION: tl.constexpr,
    ZERO_FILL: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    rows = first_row + tl.arange(0, ROWS)
    columns = first_column + tl.arange(0, COLUMNS)
    in_rows = rows < end_row
    if bias_ptr is not None:
        z += tl.load(bias_ptr + columns, mask=columns < width, other=0.0).to(ACC)[None, :]
    if pre_ptr is not None:
        _store(pre_ptr, pre_stride, z, rows, in_rows, columns, num_columns, width, ZERO_FILL)
    y = activate(z, ACTIVATION)
    if state_ptr is not None:
        y *= dropout_factors(
            state_ptr, rows - group_begin, group, first_column, counter, threshold, scale, ACC, ROWS, COLUMNS
        )
    if residual_ptr is not None:
        y += _load(residual_ptr, residual_stride, rows, in_rows, columns, num_columns).to(ACC)
    _store(y_ptr, y_stride, y, rows, in_rows, columns, num_columns, width, ZERO_FILL)


# What changes from batch to batch is not specialised: a row count that happens to be a multiple of 16 would be another
# build, compiled in the middle of serving.
@jit(do_not_specialize=["num_groups", "num_rows", "counter", "threshold"])
def _ragged_linear_kernel(
    x_ptr: tl.tensor,  # (T, at least max_in)
    x_descriptor: tl.tensor,  # or None
    weight_ptr: tl.tensor,  # (at least max_out, at least max_in)
    weight_descriptor: tl.tensor,  # or None
    bias_ptr: tl.tensor,  # (at least max_out,) or None
    residual_ptr: tl.tensor,  # (T, at least num_columns) or None
    pre_ptr: tl.tensor,  # (T, num_columns), what the activation was given, or None
    y_ptr: tl.tensor,  # (T, num_columns)
    state_ptr: tl.tensor,  # (2,) int64 seed and offset of the dropout, or None
    rows_ptr: tl.tensor,  # (G+1,) int32
    out_counts_ptr: tl.tensor,  # (G,) int32 or None
    in_counts_ptr: tl.tensor,  # (G,) int32 or None
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    out_unit: tl.tensor,
    in_unit: tl.tensor,
    max_out: tl.tensor,
    max_in: tl.tensor,
    x_stride: tl.tensor,  # elements from row to row; columns lie side by side
    weight_stride: tl.tensor,
    residual_stride: tl.tensor,
    pre_stride: tl.tensor,
    y_stride: tl.tensor,
    counter: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    ACTIVATION: tl.constexpr,
    ZERO_FILL: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,  # 1, or 2: the epilogue takes the columns in two halves, with half the registers
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        ask_for_weight(weight_ptr, weight_stride, max_out, max_in, num_rows)
        begin_dependent()
    total = count_tiles(
        *(rows_ptr, out_counts_ptr, in_counts_ptr, num_groups, num_rows, num_columns),
        *(out_unit, in_unit, max_out, max_in, ZERO_FILL, BLOCK_M, BLOCK_N),
    )
    for tile in tl.range(tl.program_id(0), total, tl.num_programs(0)):
        group, group_begin, first_row, end_row, first_column, width, reduction = find_tile(
            *(tile, rows_ptr, out_counts_ptr, in_counts_ptr, num_groups, num_rows, num_columns),
            *(out_unit, in_unit, max_out, max_in, ZERO_FILL, BLOCK_M, BLOCK_N),
        )
        if ZERO_FILL:
            reduction = tl.where(first_column < width, reduction, 0)
        acc = _product(
            *(x_ptr, x_descriptor, weight_ptr, weight_descriptor, x_stride, weight_stride),
            *(first_row, end_row, first_column, max_out, reduction, True, ACC, BLOCK_M, BLOCK_N, BLOCK_K),
        )
        if PARTS == 1:
            _finish_linear(
                *(acc, bias_ptr, residual_ptr, pre_ptr, y_ptr, state_ptr, residual_stride, pre_stride, y_stride),
                *(counter, threshold, scale, group, group_begin, first_row, end_row, first_column, num_columns, width),
                *(ACTIVATION, ZERO_FILL, ACC, BLOCK_M, BLOCK_N),
            )
        else:
            HALF: tl.constexpr = BLOCK_N // 2
            left, right = tl.split(tl.permute(tl.reshape(acc, [BLOCK_M, 2, HALF]), (0, 2, 1)))
            _finish_linear(
                *(left, bias_ptr, residual_ptr, pre_ptr, y_ptr, state_ptr, residual_stride, pre_stride, y_stride),
                *(counter, threshold, scale, group, group_begin, first_row, end_row, first_column, num_columns, width),
                *(ACTIVATION, ZERO_FILL, ACC, BLOCK_M, HALF),
            )
            first_column += HALF
            _finish_linear(
                *(right, bias_ptr, residual_ptr, pre_ptr, y_ptr, state_ptr, residual_stride, pre_stride, y_stride),
                *(counter, threshold, scale, group, group_begin, first_row, end_row, first_column, num_columns, width),
                *(ACTIVATION, ZERO_FILL, ACC, BLOCK_M, HALF),
            )


def descriptors_allowed(*operands: Tensor) -> bool:
    """Whether the device loads through tensor descriptors, and these operands' addresses allow it."""
    return all(
        architecture(operand) == "sm_90"
        and operand.dtype in (torch.bfloat16, torch.float16)
        and operand.numel() > 0
        and operand.data_ptr() % 16 == 0
        and operand.stride(0) >= operand.shape[1]
        and operand.stride(0) * operand.element_size() % 16 == 0
        for operand in operands
    )


def _num_programs(x: Tensor, tile: GemmTile, widths: Widths, num_columns: int) -> int:
    """As many programs as are resident at once, or as there may be tiles, if those are fewer."""
    tiles = row_tile_bound(x.shape[0], widths.num_groups, tile.block_m) * -(-num_columns // tile.block_n)
    return min(tiles, tile.programs_per_multiprocessor * multiprocessors(x))


def ragged_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    pre: Tensor | None,
    widths: Widths,
    *,
    activation: int,
    zero_fill: bool,
    dropout: HiddenDropout | None = None,
    tile: GemmTile | None = None,
) -> None:
    """Writes y (T, columns) and, where given, pre (T, columns).

    ``zero_fill``: every row is written, with zeros past its width and in rows of no group, and a group that reduces
    over nothing gets its bias. Without it only the active part of the groups with outputs and inputs is written.
    Nothing is checked here: the ops' launchers do. Does not synchronise.
    """
    num_rows, num_columns = y.shape
    if num_rows == 0 or num_columns == 0:  # an empty grid is a launch error
        return
    tile = gemm_tile(x, widths.num_groups, num_columns) if tile is None else tile
    # Views of what may be used: a descriptor clips at its tensor's edge.
    left, right = x[:, : widths.max_in], weight[: widths.max_out, : widths.max_in]
    through_descriptors = descriptors_allowed(left, right)
    with launch_device(x):
        _ragged_linear_kernel[(_num_programs(x, tile, widths, num_columns),)](
            x,
            tensor_descriptor(left, tile.block_m, tile.block_k) if through_descriptors else None,
            weight,
            tensor_descriptor(right, tile.block_n, tile.block_k) if through_descriptors else None,
            bias,
            residual,
            pre,
            y,
            None if dropout is None else dropout.state,
            widths.rows,
            widths.out_counts,
            widths.in_counts,
            widths.num_groups,
            num_rows,
            num_columns,
            widths.out_unit,
            widths.in_unit,
            widths.max_out,
            widths.max_in,
            x.stride(0),
            weight.stride(0),
            0 if residual is None else residual.stride(0),
            0 if pre is None else pre.stride(0),
            y.stride(0),
            0 if dropout is None else dropout.counter,
            0 if dropout is None else dropout.threshold,
            1.0 if dropout is None else dropout.scale,
            ACTIVATION=activation,
            ZERO_FILL=zero_fill,
            ACC=accumulator(x.dtype),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            PARTS=tile.parts,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **dependent_launch(x),
        )


@jit
def _finish_input_gradient(
    g: tl.tensor,
    pre_ptr: tl.tensor,
    activated_ptr: tl.tensor,
    added_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    pre_stride: tl.tensor,
    activated_stride: tl.tensor,
    added_stride: tl.tensor,
    dx_stride: tl.tensor,
    first_row: tl.tensor,
    end_row: tl.tensor,
    first_column: tl.tensor,
    num_columns: tl.tensor,
    width: tl.tensor,
    ACTIVATION: tl.constexpr,
    ZERO_FILL: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    rows = first_row + tl.arange(0, ROWS)
    columns = first_column + tl.arange(0, COLUMNS)
    in_rows = rows < end_row
    if pre_ptr is not None:
        pre = _load(pre_ptr, pre_stride, rows, in_rows, columns, num_columns).to(ACC)
        g *= activation_slope(pre, ACTIVATION)
        if activated_ptr is not None:
            y = activate(pre, ACTIVATION)
            _store(activated_ptr, activated_stride, y, rows, in_rows, columns, num_columns, width, ZERO_FILL)
    if added_ptr is not None:
        g += _load(added_ptr, added_stride, rows, in_rows, columns, num_columns).to(ACC)
    _store(dx_ptr, dx_stride, g, rows, in_rows, columns, num_columns, width, ZERO_FILL)


@jit(do_not_specialize=["num_groups", "num_rows"])
def _ragged_input_gradient_kernel(
    dz_ptr: tl.tensor,  # (T, at least max_in): its widths are the forward's outputs
    dz_descriptor: tl.tensor,  # or None
    weight_ptr: tl.tensor,  # (at least max_in, at least max_out)
    weight_descriptor: tl.tensor,  # or None
    pre_ptr: tl.tensor,  # (T, at least num_columns) or None
    activated_ptr: tl.tensor,  # (T, num_columns): act(pre) is written here, or None
    added_ptr: tl.tensor,  # (T, at least num_columns) or None
    dx_ptr: tl.tensor,  # (T, num_columns)
    rows_ptr: tl.tensor,  # (G+1,) int32
    out_counts_ptr: tl.tensor,  # (G,) int32 or None: of dx
    in_counts_ptr: tl.tensor,  # (G,) int32 or None: of dz
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    out_unit: tl.tensor,
    in_unit: tl.tensor,
    max_out: tl.tensor,
    max_in: tl.tensor,
    dz_stride: tl.tensor,
    weight_stride: tl.tensor,
    pre_stride: tl.tensor,
    activated_stride: tl.tensor,
    added_stride: tl.tensor,
    dx_stride: tl.tensor,
    ACTIVATION: tl.constexpr,
    ZERO_FILL: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
) -> None:
    total = count_tiles(
        *(rows_ptr, out_counts_ptr, in_counts_ptr, num_groups, num_rows, num_columns),
        *(out_unit, in_unit, max_out, max_in, ZERO_FILL, BLOCK_M, BLOCK_N),
    )
    for tile in tl.range(tl.program_id(0), total, tl.num_programs(0)):
        _, _, first_row, end_row, first_column, width, reduction = find_tile(
            *(tile, rows_ptr, out_counts_ptr, in_counts_ptr, num_groups, num_rows, num_columns),
            *(out_unit, in_unit, max_out, max_in, ZERO_FILL, BLOCK_M, BLOCK_N),
        )
        if ZERO_FILL:
            reduction = tl.where(first_column < width, reduction, 0)
        acc = _product(
            *(dz_ptr, dz_descriptor, weight_ptr, weight_descriptor, dz_stride, weight_stride),
            *(first_row, end_row, first_column, max_out, reduction, False, ACC, BLOCK_M, BLOCK_N, BLOCK_K),
        )
        if PARTS == 1:
            _finish_input_gradient(
                *(acc, pre_ptr, activated_ptr, added_ptr, dx_ptr, pre_stride, activated_stride, added_stride),
                *(dx_stride, first_row, end_row, first_column, num_columns, width),
                *(ACTIVATION, ZERO_FILL, ACC, BLOCK_M, BLOCK_N),
            )
        else:
            HALF: tl.constexpr = BLOCK_N // 2
            left, right = tl.split(tl.permute(tl.reshape(acc, [BLOCK_M, 2, HALF]), (0, 2, 1)))
            _finish_input_gradient(
                *(left, pre_ptr, activated_ptr, added_ptr, dx_ptr, pre_stride, activated_stride, added_stride),
                *(dx_stride, first_row, end_row, first_column, num_columns, width),
                *(ACTIVATION, ZERO_FILL, ACC, BLOCK_M, HALF),
            )
            first_column += HALF
            _finish_input_gradient(
                *(right, pre_ptr, activated_ptr, added_ptr, dx_ptr, pre_stride, activated_stride, added_stride),
                *(dx_stride, first_row, end_row, first_column, num_columns, width),
                *(ACTIVATION, ZERO_FILL, ACC, BLOCK_M, HALF),
            )


def ragged_input_gradient(
    dz: Tensor,
    weight: Tensor,
    pre: Tensor | None,
    added: Tensor | None,
    dx: Tensor,
    activated: Tensor | None,
    widths: Widths,
    *,
    activation: int,
    zero_fill: bool,
    tile: GemmTile | None = None,
) -> None:
    """Writes dx (T, columns) and, where given, activated (T, columns), which is act(pre).

    ``widths``: the forward product's. ``pre``: what the activation in front of this product was given. ``zero_fill`` as
    in `ragged_linear`. Nothing is checked here. Does not synchronise.
    """
    num_rows, num_columns = dx.shape
    if num_rows == 0 or num_columns == 0:
        return
    turned = widths.turned()
    tile = gemm_tile(dz, widths.num_groups, num_columns) if tile is None else tile
    left, right = dz[:, : turned.max_in], weight[: turned.max_in, : turned.max_out]
    through_descriptors = descriptors_allowed(left, right)
    with launch_device(dz):
        _ragged_input_gradient_kernel[(_num_programs(dz, tile, turned, num_columns),)](
            dz,
            tensor_descriptor(left, tile.block_m, tile.block_k) if through_descriptors else None,
            weight,
            tensor_descriptor(right, tile.block_k, tile.block_n) if through_descriptors else None,
            pre,
            activated,
            added,
            dx,
            turned.rows,
            turned.out_counts,
            turned.in_counts,
            turned.num_groups,
            num_rows,
            num_columns,
            turned.out_unit,
            turned.in_unit,
            turned.max_out,
            turned.max_in,
            dz.stride(0),
            weight.stride(0),
            0 if pre is None else pre.stride(0),
            0 if activated is None else activated.stride(0),
            0 if added is None else added.stride(0),
            dx.stride(0),
            ACTIVATION=activation,
            ZERO_FILL=zero_fill,
            ACC=accumulator(dz.dtype),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            PARTS=tile.parts,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
