"""The LayerNorm at the end of a sub-layer: over the rows whose group has the layer, the others pass through.

    y = (h - mean(h)) * rstd * weight + bias    where the row's group has active features (heads or neurons)
    y = x                                       where it has none: the group skips the layer
    y = 0                                       in rows of no group

h is the sub-layer's sum with its residual, which exists for active rows alone: what other rows of it hold is not read.
Backward: dh = rstd * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * weight and xhat = (h - mean) * rstd; dw and db
are summed over the active rows. For the other rows the gradient of x is known at once and written: dy, or 0.

Forward: one program computes `block_t` whole rows, held in registers, the variance about the mean. Bytes: 2*T*C
elements; operations: about 8*T*C. Backward: a fixed number of programs walk over the rows and keep dw and db in
registers; a second kernel adds theirs in a fixed order (no atomics, deterministic on one kind of device). Bytes: 3*T*C
elements. Memory-bound. A program searches its rows' groups in the plan's borders: log2(G) loads from cache.

Statistics and sums are float32 (float64 for float64 input). eps reaches the kernel as float32, for float64 too.
"""

from __future__ import annotations

from torch import Tensor

from dynabert_kernels.triton.add_layer_norm import _add_layer_norm_sum_partials_kernel
from dynabert_kernels.triton.borders import last_at_most
from dynabert_kernels.triton.dependent_launch import begin_dependent, dependent_launch
from dynabert_kernels.triton.environment import accumulator, accumulator_dtype, jit, launch_device, multiprocessors, tl
from dynabert_kernels.triton.row_statistics import row_statistics
from dynabert_kernels.triton.tiles import (
    ROW_PROGRAMS_PER_MULTIPROCESSOR,
    row_backward_tile,
    row_forward_tile,
    sum_tile,
)

__all__ = ["group_layer_norm_bwd", "group_layer_norm_fwd"]


@jit
def _active_rows(
    rows_ptr: tl.tensor, counts_ptr: tl.tensor, num_groups: tl.tensor, rows: tl.tensor, in_rows: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Which rows' groups have the layer, and which rows belong to a group that skips it."""
    group = last_at_most(rows_ptr, num_groups, rows)
    real = in_rows & (group < num_groups)
    active = real & (tl.load(counts_ptr + group, mask=real, other=0) > 0)
    return active, real & (active == 0)


@jit(do_not_specialize=["num_groups", "num_rows"])
def _group_layer_norm_fwd_kernel(
    hidden_ptr: tl.tensor,  # (T, C) contiguous; active rows exist
    x_ptr: tl.tensor,  # (T, C)
    weight_ptr: tl.tensor,  # (C,) contiguous
    bias_ptr: tl.tensor,  # (C,) contiguous
    y_ptr: tl.tensor,  # (T, C) contiguous
    mean_ptr: tl.tensor,  # (T,) of ACC or None; 0 in rows that are not active
    rstd_ptr: tl.tensor,  # (T,) of ACC or None
    rows_ptr: tl.tensor,  # (G+1,) int32
    counts_ptr: tl.tensor,  # (G,) int32
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    x_stride: tl.tensor,
    eps: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        begin_dependent()
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_C)
    in_rows = rows < num_rows
    in_columns = (columns < num_columns)[None, :]
    weight = tl.load(weight_ptr + columns, mask=columns < num_columns, other=0.0).to(ACC)
    bias = tl.load(bias_ptr + columns, mask=columns < num_columns, other=0.0).to(ACC)
    active, skips = _active_rows(rows_ptr, counts_ptr, num_groups, rows, in_rows)
    offsets = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    h = tl.load(hidden_ptr + offsets, mask=active[:, None] & in_columns, other=0.0).to(ACC)

    mean, centred, rstd = row_statistics(h, in_columns, num_columns, eps)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]

    x_tile = x_ptr + rows.to(tl.int64)[:, None] * x_stride + columns[None, :]
    passed = tl.load(x_tile, mask=skips[:, None] & in_columns, other=0.0).to(ACC)
    y = tl.where(active[:, None], y, passed)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=in_rows[:, None] & in_columns)
    if mean_ptr is not None:
        tl.store(mean_ptr + rows, tl.where(active, mean, 0.0), mask=in_rows)
        tl.store(rstd_ptr + rows, tl.where(active, rstd, 0.0), mask=in_rows)


def group_layer_norm_fwd(
    hidden: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    rows: Tensor,
    counts: Tensor,
    eps: float,
    *,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (T, C), mean and rstd (T,), empty unless saved. Nothing is checked here. Does not synchronise."""
    num_rows, num_columns = x.shape
    y = x.new_empty((num_rows, num_columns))
    mean = x.new_empty((num_rows if save else 0,), dtype=accumulator_dtype(x.dtype))
    rstd = mean.new_empty(mean.shape)
    if num_rows == 0:  # an empty grid is a launch error
        return y, mean, rstd
    tile = row_forward_tile(num_columns)
    with launch_device(x):
        _group_layer_norm_fwd_kernel[(-(-num_rows // tile.block_t),)](
            hidden,
            x,
            weight,
            bias,
            y,
            mean if save else None,
            rstd if save else None,
            rows,
            counts,
            counts.shape[0],
            num_rows,
            num_columns,
            x.stride(0),
            eps,
            ACC=accumulator(x.dtype),
            BLOCK_T=tile.block_t,
            BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
            **dependent_launch(x),
        )
    return y, mean, rstd


@jit(do_not_specialize=["num_groups", "num_rows"])
def _group_layer_norm_bwd_kernel(
    dy_ptr: tl.tensor,  # (T, C)
    hidden_ptr: tl.tensor,  # (T, C) contiguous
    weight_ptr: tl.tensor,  # (C,) contiguous
    mean_ptr: tl.tensor,  # (T,) of ACC
    rstd_ptr: tl.tensor,  # (T,) of ACC
    dhidden_ptr: tl.tensor,  # (T, C) contiguous; active rows are written
    dx_ptr: tl.tensor,  # (T, C) contiguous; rows that are not active are written
    partial_ptr: tl.tensor,  # (programs, 2, C) of ACC: this program's dw and db
    rows_ptr: tl.tensor,  # (G+1,) int32
    counts_ptr: tl.tensor,  # (G,) int32
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    dy_stride: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK_C)
    in_columns = (columns < num_columns)[None, :]
    weight = tl.load(weight_ptr + columns, mask=columns < num_columns, other=0.0).to(ACC)
    dw = tl.zeros([BLOCK_C], dtype=ACC)
    db = tl.zeros([BLOCK_C], dtype=ACC)

    for start in range(program * BLOCK_T, num_rows, tl.num_programs(0) * BLOCK_T):
        rows = start + tl.arange(0, BLOCK_T)
        in_rows = rows < num_rows
        active, skips = _active_rows(rows_ptr, counts_ptr, num_groups, rows, in_rows)
        offsets = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
        dy_tile = dy_ptr + rows.to(tl.int64)[:, None] * dy_stride + columns[None, :]
        arrived = tl.load(dy_tile, mask=(active | skips)[:, None] & in_columns, other=0.0)
        passive = in_rows & (active == 0)
        tl.store(dx_ptr + offsets, arrived, mask=passive[:, None] & in_columns)
        # Zero in rows that are not active, and with it every sum below.
        dy = tl.where(active[:, None], arrived.to(ACC), 0.0)
        h = tl.load(hidden_ptr + offsets, mask=active[:, None] & in_columns, other=0.0).to(ACC)
        mean = tl.load(mean_ptr + rows, mask=active, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=active, other=0.0)
        xhat = (h - mean[:, None]) * rstd[:, None]
        g = dy * weight[None, :]
        mean_g = tl.sum(g, axis=1) / num_columns
        mean_gx = tl.sum(g * xhat, axis=1) / num_columns
        dhidden = rstd[:, None] * (g - mean_g[:, None] - xhat * mean_gx[:, None])
        tl.store(dhidden_ptr + offsets, dhidden.to(dhidden_ptr.dtype.element_ty), mask=active[:, None] & in_columns)
        dw += tl.sum(dy * xhat, axis=0)
        db += tl.sum(dy, axis=0)

    partial_ptr += program.to(tl.int64) * 2 * num_columns
    tl.store(partial_ptr + columns, dw, mask=columns < num_columns)
    tl.store(partial_ptr + num_columns + columns, db, mask=columns < num_columns)


def group_layer_norm_bwd(
    dy: Tensor,
    hidden: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    rows: Tensor,
    counts: Tensor,
    dx: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """dhidden (T, C), its active rows alone, and dw, db (C,); writes dx (T, C) in the rows that are not active.

    Nothing is checked here. Does not synchronise.
    """
    num_rows, num_columns = dy.shape
    dhidden = dy.new_empty((num_rows, num_columns))
    if num_rows == 0:
        return dhidden, weight.new_zeros((num_columns,)), weight.new_zeros((num_columns,))
    dw, db = weight.new_empty((num_columns,)), weight.new_empty((num_columns,))
    tile, second = row_backward_tile(num_columns), sum_tile(num_columns)
    num_programs = min(-(-num_rows // tile.block_t), ROW_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(dy))
    partial = dy.new_empty((num_programs, 2, num_columns), dtype=accumulator_dtype(dy.dtype))
    with launch_device(dy):
        _group_layer_norm_bwd_kernel[(num_programs,)](
            dy,
            hidden,
            weight,
            mean,
            rstd,
            dhidden,
            dx,
            partial,
            rows,
            counts,
            counts.shape[0],
            num_rows,
            num_columns,
            dy.stride(0),
            ACC=accumulator(dy.dtype),
            BLOCK_T=tile.block_t,
            BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
        )
        _add_layer_norm_sum_partials_kernel[(-(-num_columns // second.block_c),)](
            partial,
            dw,
            db,
            num_programs,
            num_columns,
            ACC=accumulator(dy.dtype),
            BLOCK_P=second.block_p,
            BLOCK_C=second.block_c,
            num_warps=second.num_warps,
        )
    return dhidden, dw, db
