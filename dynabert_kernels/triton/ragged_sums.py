"""Sums over the rows that reach a weight: its gradient, its bias's gradient, and the gradient before an activation.

    dz = dy * act'(pre), or dy * drop;  db[n] = sum_t dz[t, n]
    dW[n, k] = sum_t dz[t, n] * x[t, k], over the rows t whose group has more than n outputs and more than k inputs

Weight gradient: one program computes one tile of dW, over all groups: the sum is in its registers from the first row to
the last, so there are no atomics and no partial results. Neighbouring groups that reach equally far into the tile are
merged into one run of rows. With the widest group first, a tile meets one run for each width that ends inside it and
one for all wider ones. Within a run nothing is masked by the width: what a narrower group adds past its width (NaN,
where its buffers were never written) is dropped at the run's end. Rows of other groups can be dropped only before the
sum, so whole blocks of rows are followed by steps of 16 with an exact mask. Bytes, each operand once: T*N + T*K read,
N*K written; operations: 2 n k a row.

db and dz: one program takes a row tile of one group by a block of columns, writes dz and the tile's column sums; a
second kernel adds those in a fixed order. Memory-bound: 2 to 3 T*N elements, and T*N / 32 of float32 partials.

Sums are float32 (float64 for float64); db is summed from values that were not rounded to the dtype yet. Deterministic
on one kind of device.
"""

from __future__ import annotations

from torch import Tensor

from dynabert_kernels.triton.activations import activation_slope
from dynabert_kernels.triton.environment import (
    accumulator,
    accumulator_dtype,
    jit,
    launch_device,
    tensor_descriptor,
    tl,
)
from dynabert_kernels.triton.hidden_dropout import HiddenDropout, dropout_factors
from dynabert_kernels.triton.ragged_gemm import descriptors_allowed
from dynabert_kernels.triton.row_tiles import Widths, active_width, count_tiles, find_tile, group_rows, row_tile_bound
from dynabert_kernels.triton.tiles import COLUMN_SUM_TILE, GemmTile, sum_tile, weight_gradient_tile

__all__ = ["gradient_and_sums", "ragged_weight_gradient"]


@jit(do_not_specialize=["num_groups", "num_rows", "counter", "threshold"])
def _gradient_and_sums_kernel(
    dy_ptr: tl.tensor,  # (T, at least num_columns)
    pre_ptr: tl.tensor,  # (T, at least num_columns) or None
    state_ptr: tl.tensor,  # (2,) int64 or None
    dz_ptr: tl.tensor,  # (T, num_columns) or None: not wanted
    partial_ptr: tl.tensor,  # (row tiles, num_columns) of ACC, or None: not wanted
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
    dy_stride: tl.tensor,
    pre_stride: tl.tensor,
    dz_stride: tl.tensor,
    counter: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALL_COLUMNS: tl.constexpr = 1 << 30,  # one tile of the scan is all columns
) -> None:
    tile = tl.program_id(0)
    first_column = tl.program_id(1) * BLOCK_C
    columns = first_column + tl.arange(0, BLOCK_C)
    sums = tl.zeros([BLOCK_C], dtype=ACC)
    total = count_tiles(
        *(rows_ptr, out_counts_ptr, in_counts_ptr, num_groups, num_rows, num_columns),
        *(out_unit, in_unit, max_out, max_in, False, BLOCK_T, ALL_COLUMNS),
    )
    if tile < total:
        group, group_begin, first_row, end_row, _, width, _ = find_tile(
            *(tile, rows_ptr, out_counts_ptr, in_counts_ptr, num_groups, num_rows, num_columns),
            *(out_unit, in_unit, max_out, max_in, False, BLOCK_T, ALL_COLUMNS),
        )
        rows = first_row + tl.arange(0, BLOCK_T)
        active = (rows < end_row)[:, None] & (columns < width)[None, :]
        # Loaded by what exists, so 16 bytes at a time; what is past the width may be NaN and is dropped here.
        exists = (rows < end_row)[:, None] & (columns < num_columns)[None, :]
        offsets = rows.to(tl.int64)[:, None]
        dz = tl.load(dy_ptr + offsets * dy_stride + columns[None, :], mask=exists, other=0.0).to(ACC)
        if pre_ptr is not None:
            pre = tl.load(pre_ptr + offsets * pre_stride + columns[None, :], mask=exists, other=0.0).to(ACC)
            dz *= activation_slope(pre, ACTIVATION)
        if state_ptr is not None:
            dz *= dropout_factors(
                state_ptr, rows - group_begin, group, first_column, counter, threshold, scale, ACC, BLOCK_T, BLOCK_C
            )
        dz = tl.where(active, dz, 0.0)
        if dz_ptr is not None:
            dz_tile = dz_ptr + offsets * dz_stride + columns[None, :]
            even = (columns < width // 16 * 16)[None, :]
            tl.store(dz_tile, dz.to(dz_ptr.dtype.element_ty), mask=(rows < end_row)[:, None] & even)
            if width % 16 != 0:
                tl.store(dz_tile, dz.to(dz_ptr.dtype.element_ty), mask=active & (columns >= width // 16 * 16)[None, :])
        sums = tl.sum(dz, axis=0)
    if partial_ptr is not None:
        # A tile that the plan does not have counts as zeros: how many there are is known here alone.
        tl.store(partial_ptr + tile.to(tl.int64) * num_columns + columns, sums, mask=columns < num_columns)


@jit(do_not_specialize=["num_partials"])
def _sum_partials_kernel(
    partial_ptr: tl.tensor,  # (P, num_columns) of ACC
    db_ptr: tl.tensor,  # (N,), N at least num_columns; zeros past them
    num_partials: tl.tensor,
    num_columns: tl.tensor,
    num_entries: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    db = tl.zeros([BLOCK_P, BLOCK_C], dtype=ACC)
    for start in range(0, num_partials, BLOCK_P):
        partials = start + tl.arange(0, BLOCK_P)
        inside = (partials < num_partials)[:, None] & (columns < num_columns)[None, :]
        tile_ptr = partial_ptr + partials.to(tl.int64)[:, None] * num_columns + columns[None, :]
        db += tl.load(tile_ptr, mask=inside, other=0.0)
    tl.store(db_ptr + columns, tl.sum(db, axis=0).to(db_ptr.dtype.element_ty), mask=columns < num_entries)


def gradient_and_sums(
    dy: Tensor,
    pre: Tensor | None,
    dz: Tensor | None,
    db: Tensor | None,
    widths: Widths,
    *,
    activation: int = 0,
    dropout: HiddenDropout | None = None,
) -> None:
    """Writes dz (T, max_out), its active part alone, and db (N,), zeros past the widest group; either may be None.

    Without ``pre`` and ``dropout`` dz is dy. Groups without outputs or inputs add nothing. Nothing is checked here.
    Does not synchronise.
    """
    if dz is None and db is None:
        return
    num_rows, num_columns = dy.shape[0], widths.max_out
    if num_rows == 0 or num_columns == 0:
        if db is not None:
            db.zero_()
        return
    block_t, block_c, num_warps = COLUMN_SUM_TILE
    num_tiles = row_tile_bound(num_rows, widths.num_groups, block_t)
    partial = None if db is None else dy.new_empty((num_tiles, num_columns), dtype=accumulator_dtype(dy.dtype))
    with launch_device(dy):
        _gradient_and_sums_kernel[(num_tiles, -(-num_columns // block_c))](
            dy,
            pre,
            None if dropout is None else dropout.state,
            dz,
            partial,
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
            dy.stride(0),
            0 if pre is None else pre.stride(0),
            0 if dz is None else dz.stride(0),
            0 if dropout is None else dropout.counter,
            0 if dropout is None else dropout.threshold,
            1.0 if dropout is None else dropout.scale,
            ACTIVATION=activation,
            ACC=accumulator(dy.dtype),
            BLOCK_T=block_t,
            BLOCK_C=block_c,
            num_warps=num_warps,
        )
        if db is not None:
            second = sum_tile(db.shape[0])
            _sum_partials_kernel[(-(-db.shape[0] // second.block_c),)](
                partial,
                db,
                num_tiles,
                num_columns,
                db.shape[0],
                ACC=accumulator(dy.dtype),
                BLOCK_P=second.block_p,
                BLOCK_C=second.block_c,
                num_warps=second.num_warps,
            )


@jit
def _run_of_rows(
    dz_ptr: tl.tensor,
    dz_descriptor: tl.tensor,
    x_ptr: tl.tensor,
    x_descriptor: tl.tensor,
    dz_stride: tl.tensor,
    x_stride: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    first_n: tl.tensor,
    first_k: tl.tensor,
    max_out: tl.tensor,
    max_in: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TAIL: tl.constexpr = 16,
) -> tl.tensor:
    """sum over rows begin to end - 1 of dz^T x, for one tile of dW, past the widths too."""
    n = first_n + tl.arange(0, BLOCK_N)
    k = first_k + tl.arange(0, BLOCK_K)
    # dz is loaded turned: a transpose of a loaded left operand goes through registers on sm_80, without cp.async.
    dz_columns = dz_ptr + n[:, None]
    x_columns = x_ptr + k[None, :]
    in_n = (n < max_out)[:, None]
    in_k = (k < max_in)[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_K], dtype=ACC)
    whole = begin + (end - begin) // BLOCK_T * BLOCK_T
    if dz_descriptor is None:
        # Pointers mask the rows at no cost: the last block needs no steps of its own.
        whole = end
    for t in tl.range(begin, whole, BLOCK_T):
        if dz_descriptor is not None:
            dz = dz_descriptor.load([t, first_n]).T
            x = x_descriptor.load([t, first_k])
        else:
            rows = t + tl.arange(0, BLOCK_T)
            in_rows = rows < end
            dz = tl.load(dz_columns + rows.to(tl.int64)[None, :] * dz_stride, mask=in_n & in_rows[None, :], other=0.0)
            x = tl.load(x_columns + rows.to(tl.int64)[:, None] * x_stride, mask=in_rows[:, None] & in_k, other=0.0)
        acc = tl.dot(dz, x, acc, input_precision="ieee")
    if dz_descriptor is not None:
        for t in tl.range(whole, end, TAIL, num_stages=1):
            rows = t + tl.arange(0, TAIL)
            in_rows = rows < end
            dz = tl.load(dz_columns + rows.to(tl.int64)[None, :] * dz_stride, mask=in_n & in_rows[None, :], other=0.0)
            x = tl.load(x_columns + rows.to(tl.int64)[:, None] * x_stride, mask=in_rows[:, None] & in_k, other=0.0)
            acc = tl.dot(dz, x, acc, input_precision="ieee")
    return acc


@jit(do_not_specialize=["num_groups", "num_rows"])
def _ragged_weight_gradient_kernel(
    dz_ptr: tl.tensor,  # (T, at least max_out)
    dz_descriptor: tl.tensor,  # or None
    x_ptr: tl.tensor,  # (T, at least max_in)
    x_descriptor: tl.tensor,  # or None
    dw_ptr: tl.tensor,  # (N, K), all of it written
    rows_ptr: tl.tensor,  # (G+1,) int32
    out_counts_ptr: tl.tensor,  # (G,) int32 or None
    in_counts_ptr: tl.tensor,  # (G,) int32 or None
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    out_unit: tl.tensor,
    in_unit: tl.tensor,
    max_out: tl.tensor,
    max_in: tl.tensor,
    dw_rows: tl.tensor,
    dw_columns: tl.tensor,
    dz_stride: tl.tensor,
    x_stride: tl.tensor,
    dw_stride: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    GROUPS: tl.constexpr = 32,  # a warp's lanes
    BAND: tl.constexpr = 8,
) -> None:
    # BAND row tiles of dW sweep its columns together, low rows first: their sums are the longest.
    column_tiles = (dw_columns + BLOCK_K - 1) // BLOCK_K
    band = tl.program_id(0) // (BAND * column_tiles)
    in_band = tl.program_id(0) - band * BAND * column_tiles
    height = tl.minimum((dw_rows + BLOCK_N - 1) // BLOCK_N - band * BAND, BAND)
    first_n = (band * BAND + in_band % height) * BLOCK_N
    first_k = in_band // height * BLOCK_K
    n = first_n + tl.arange(0, BLOCK_N)
    k = first_k + tl.arange(0, BLOCK_K)
    index = tl.arange(0, GROUPS)

    acc = tl.zeros([BLOCK_N, BLOCK_K], dtype=ACC)
    for chunk in range(0, num_groups, GROUPS):
        groups = chunk + index
        begin, end = group_rows(rows_ptr, groups, num_groups, num_rows)
        real = groups < num_groups
        reach_n = tl.minimum(active_width(out_counts_ptr, groups, out_unit, max_out, real), first_n + BLOCK_N)
        reach_k = tl.minimum(active_width(in_counts_ptr, groups, in_unit, max_in, real), first_k + BLOCK_K)
        filled = real & (end > begin)
        live = filled & (reach_n > first_n) & (reach_k > first_k)
        at = tl.min(tl.where(live, index, GROUPS), axis=0)
        while at < GROUPS:
            run_n = tl.sum(tl.where(index == at, reach_n, 0), axis=0)
            run_k = tl.sum(tl.where(index == at, reach_k, 0), axis=0)
            other = filled & (index > at) & ((reach_n != run_n) | (reach_k != run_k))
            stop = tl.min(tl.where(other, index, GROUPS), axis=0)
            run_begin = tl.sum(tl.where(index == at, begin, 0), axis=0)
            run_end = tl.max(tl.where(filled & (index < stop), end, 0), axis=0)
            part = _run_of_rows(
                *(dz_ptr, dz_descriptor, x_ptr, x_descriptor, dz_stride, x_stride, run_begin, run_end),
                *(first_n, first_k, max_out, max_in, ACC, BLOCK_N, BLOCK_K, BLOCK_T),
            )
            acc += tl.where((n < run_n)[:, None] & (k < run_k)[None, :], part, 0.0)
            at = tl.min(tl.where(live & (index >= stop), index, GROUPS), axis=0)

    dw_tile = dw_ptr + n.to(tl.int64)[:, None] * dw_stride + k[None, :]
    inside = (n < dw_rows)[:, None] & (k < dw_columns)[None, :]
    tl.store(dw_tile, acc.to(dw_ptr.dtype.element_ty), mask=inside)


def ragged_weight_gradient(dz: Tensor, x: Tensor, dw: Tensor, widths: Widths, *, tile: GemmTile | None = None) -> None:
    """Writes all of dw (N, K): zeros where no row reaches. Nothing is checked here. Does not synchronise."""
    if dw.numel() == 0:
        return
    if x.shape[0] == 0 or widths.max_out == 0 or widths.max_in == 0:
        dw.zero_()
        return
    tile = weight_gradient_tile(x, *dw.shape) if tile is None else tile
    left, right = dz[:, : widths.max_out], x[:, : widths.max_in]
    through_descriptors = descriptors_allowed(left, right)
    with launch_device(x):
        _ragged_weight_gradient_kernel[(-(-dw.shape[0] // tile.block_m) * -(-dw.shape[1] // tile.block_n),)](
            dz,
            tensor_descriptor(left, tile.block_k, tile.block_m) if through_descriptors else None,
            x,
            tensor_descriptor(right, tile.block_k, tile.block_n) if through_descriptors else None,
            dw,
            widths.rows,
            widths.out_counts,
            widths.in_counts,
            widths.num_groups,
            x.shape[0],
            widths.out_unit,
            widths.in_unit,
            widths.max_out,
            widths.max_in,
            dw.shape[0],
            dw.shape[1],
            dz.stride(0),
            x.stride(0),
            dw.stride(0),
            ACC=accumulator(x.dtype),
            BLOCK_N=tile.block_m,
            BLOCK_K=tile.block_n,
            BLOCK_T=tile.block_k,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
