"""LayerNorm of a sum, forward and backward.

    h = x + residual;  y = (h - mean(h)) * rstd * weight + bias,  rstd = 1 / sqrt(mean((h - mean(h))^2) + eps)
    g = dy * weight;  dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),  xhat = (h - mean) * rstd
    dw = sum_t dy * xhat;  db = sum_t dy

Forward: one program computes `block_t` whole rows, held in registers: the mean first, then the variance about it, so no
cancellation. Bytes: x, residual and y once each, 3*T*C elements; operations: about 8*T*C. Memory-bound by far.

Backward: a fixed number of programs walk over the rows. Each writes dx and keeps its sums for dw and db in registers; a
second kernel adds the programs' sums in a fixed order. Deterministic on one kind of device: no atomics, and the number
of programs depends on the device and T alone. Bytes: dy, x, residual and dx, 4*T*C elements, and 2*C float32 per
program; operations: about 14*T*C.

Statistics and sums are float32 (float64 for float64 input). `h` is never rounded to the input's dtype, neither here nor
in the backward pass, which adds x and residual again rather than read a stored sum: the same traffic, one tensor less
to keep. eps reaches the kernel as float32, for float64 input too.
"""

from __future__ import annotations

from torch import Tensor

from dynabert_kernels.triton.checks import require_columns, require_rows, require_vectors, why_not_side_by_side
from dynabert_kernels.triton.dependent_launch import begin_dependent, dependent_launch
from dynabert_kernels.triton.environment import (
    accumulator,
    accumulator_dtype,
    jit,
    launch_device,
    multiprocessors,
    tl,
    why_unavailable,
)
from dynabert_kernels.triton.row_statistics import row_statistics
from dynabert_kernels.triton.tiles import (
    MAX_ROW_COLUMNS,
    ROW_PROGRAMS_PER_MULTIPROCESSOR,
    row_backward_tile,
    row_forward_tile,
    sum_tile,
)

__all__ = ["add_layer_norm_bwd", "add_layer_norm_fwd", "supports"]


def supports(*arguments: Tensor | float | None) -> str | None:
    """Why this provider refuses these arguments (of either op, in its order); None where it takes them."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    reason = why_unavailable(tensors[0])
    if reason is not None:
        return reason
    if not 1 <= tensors[0].shape[-1] <= MAX_ROW_COLUMNS:
        return f"C is {tensors[0].shape[-1]}; a row is held in registers, so 1 to {MAX_ROW_COLUMNS} columns are allowed"
    return why_not_side_by_side(*tensors)


@jit
def _add_layer_norm_fwd_kernel(
    x_ptr: tl.tensor,  # (T, C)
    residual_ptr: tl.tensor,  # (T, C), or None: then the kernel is compiled without it
    weight_ptr: tl.tensor,  # (C,) contiguous
    bias_ptr: tl.tensor,  # (C,) contiguous
    y_ptr: tl.tensor,  # (T, C)
    mean_ptr: tl.tensor,  # (T,) of ACC
    rstd_ptr: tl.tensor,  # (T,) of ACC
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    x_stride: tl.tensor,  # elements from row to row; columns lie side by side
    residual_stride: tl.tensor,
    y_stride: tl.tensor,
    eps: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        begin_dependent()
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_C)
    in_rows = rows < num_rows
    in_columns = columns < num_columns
    inside = in_rows[:, None] & in_columns[None, :]

    # Asked for first, so that they arrive while the rows are summed.
    weight = tl.load(weight_ptr + columns, mask=in_columns, other=0.0).to(ACC)
    bias = tl.load(bias_ptr + columns, mask=in_columns, other=0.0).to(ACC)
    h = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0).to(ACC)
    if residual_ptr is not None:
        residual_tile = residual_ptr + rows[:, None] * residual_stride + columns[None, :]
        h += tl.load(residual_tile, mask=inside, other=0.0).to(ACC)

    mean, centred, rstd = row_statistics(h, in_columns[None, :], num_columns, eps)

    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(y_ptr + rows[:, None] * y_stride + columns[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(mean_ptr + rows, mean, mask=in_rows)
    tl.store(rstd_ptr + rows, rstd, mask=in_rows)


def add_layer_norm_fwd(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y (T, C) in x's dtype, mean and rstd (T,) in float32 (float64 for float64). Does not synchronise."""
    op = "add_layer_norm_fwd (triton)"
    require_rows(op, x=x, residual=residual)
    require_vectors(op, like=x, length=x.shape[1], length_name="C", weight=weight, bias=bias)
    require_columns(op, x, MAX_ROW_COLUMNS)
    num_rows, num_columns = x.shape
    y = x.new_empty((num_rows, num_columns))
    mean = x.new_empty((num_rows,), dtype=accumulator_dtype(x.dtype))
    rstd = mean.new_empty((num_rows,))
    if num_rows == 0:  # an empty grid is a launch error
        return y, mean, rstd
    tile = row_forward_tile(num_columns)
    with launch_device(x):
        _add_layer_norm_fwd_kernel[(-(-num_rows // tile.block_t),)](
            x,
            residual,
            weight,
            bias,
            y,
            mean,
            rstd,
            num_rows,
            num_columns,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            y.stride(0),
            eps,
            ACC=accumulator(x.dtype),
            BLOCK_T=tile.block_t,
            BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
            **dependent_launch(x),
        )
    return y, mean, rstd


@jit
def _add_layer_norm_bwd_kernel(
    dy_ptr: tl.tensor,  # (T, C)
    x_ptr: tl.tensor,  # (T, C)
    residual_ptr: tl.tensor,  # (T, C) or None
    weight_ptr: tl.tensor,  # (C,) contiguous
    mean_ptr: tl.tensor,  # (T,) of ACC
    rstd_ptr: tl.tensor,  # (T,) of ACC
    dx_ptr: tl.tensor,  # (T, C)
    partial_ptr: tl.tensor,  # (programs, 2, C) of ACC: this program's dw and db
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    dy_stride: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    dx_stride: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_C)
    in_columns = columns < num_columns
    weight = tl.load(weight_ptr + columns, mask=in_columns, other=0.0).to(ACC)
    dw = tl.zeros([BLOCK_C], dtype=ACC)
    db = tl.zeros([BLOCK_C], dtype=ACC)

    for start in range(program * BLOCK_T, num_rows, tl.num_programs(0) * BLOCK_T):
        rows = start + tl.arange(0, BLOCK_T)
        in_rows = rows < num_rows
        inside = in_rows[:, None] & in_columns[None, :]
        dy = tl.load(dy_ptr + rows[:, None] * dy_stride + columns[None, :], mask=inside, other=0.0).to(ACC)
        h = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0).to(ACC)
        if residual_ptr is not None:
            residual_tile = residual_ptr + rows[:, None] * residual_stride + columns[None, :]
            h += tl.load(residual_tile, mask=inside, other=0.0).to(ACC)
        mean = tl.load(mean_ptr + rows, mask=in_rows, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=in_rows, other=0.0)

        # Outside the tile dy is zero, and with it every sum below: xhat may be anything finite there.
        xhat = (h - mean[:, None]) * rstd[:, None]
        g = dy * weight[None, :]
        mean_g = tl.sum(g, axis=1) / num_columns
        mean_gx = tl.sum(g * xhat, axis=1) / num_columns
        dx = rstd[:, None] * (g - mean_g[:, None] - xhat * mean_gx[:, None])
        tl.store(dx_ptr + rows[:, None] * dx_stride + columns[None, :], dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dw += tl.sum(dy * xhat, axis=0)
        db += tl.sum(dy, axis=0)

    partial_ptr += program * 2 * num_columns
    tl.store(partial_ptr + columns, dw, mask=in_columns)
    tl.store(partial_ptr + num_columns + columns, db, mask=in_columns)


@jit
def _add_layer_norm_sum_partials_kernel(
    partial_ptr: tl.tensor,  # (P, 2, C) of ACC
    dw_ptr: tl.tensor,  # (C,)
    db_ptr: tl.tensor,  # (C,)
    num_partials: tl.tensor,
    num_columns: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_columns = columns < num_columns
    dw = tl.zeros([BLOCK_P, BLOCK_C], dtype=ACC)
    db = tl.zeros([BLOCK_P, BLOCK_C], dtype=ACC)
    for start in range(0, num_partials, BLOCK_P):
        partials = start + tl.arange(0, BLOCK_P)
        inside = (partials < num_partials)[:, None] & in_columns[None, :]
        tile_ptr = partial_ptr + partials.to(tl.int64)[:, None] * (2 * num_columns) + columns[None, :]
        dw += tl.load(tile_ptr, mask=inside, other=0.0)
        db += tl.load(tile_ptr + num_columns, mask=inside, other=0.0)
    tl.store(dw_ptr + columns, tl.sum(dw, axis=0).to(dw_ptr.dtype.element_ty), mask=in_columns)
    tl.store(db_ptr + columns, tl.sum(db, axis=0).to(db_ptr.dtype.element_ty), mask=in_columns)


def add_layer_norm_bwd(
    dy: Tensor, x: Tensor, residual: Tensor | None, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (T, C), which is the residual's gradient too; dw and db (C,). All in x's dtype. Does not synchronise."""
    op = "add_layer_norm_bwd (triton)"
    require_rows(op, x=x, dy=dy, residual=residual)
    require_vectors(op, like=x, length=x.shape[1], length_name="C", weight=weight)
    statistics = accumulator_dtype(x.dtype)
    require_vectors(op, like=x, length=x.shape[0], length_name="T", dtype=statistics, mean=mean, rstd=rstd)
    require_columns(op, x, MAX_ROW_COLUMNS)
    num_rows, num_columns = x.shape
    dx = x.new_empty((num_rows, num_columns))
    if num_rows == 0:
        return dx, weight.new_zeros((num_columns,)), weight.new_zeros((num_columns,))
    dw = weight.new_empty((num_columns,))
    db = weight.new_empty((num_columns,))
    tile, second = row_backward_tile(num_columns), sum_tile(num_columns)
    num_programs = min(-(-num_rows // tile.block_t), ROW_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(x))
    partial = x.new_empty((num_programs, 2, num_columns), dtype=statistics)
    with launch_device(x):
        _add_layer_norm_bwd_kernel[(num_programs,)](
            dy,
            x,
            residual,
            weight,
            mean,
            rstd,
            dx,
            partial,
            num_rows,
            num_columns,
            dy.stride(0),
            x.stride(0),
            0 if residual is None else residual.stride(0),
            dx.stride(0),
            ACC=accumulator(x.dtype),
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
            ACC=accumulator(x.dtype),
            BLOCK_P=second.block_p,
            BLOCK_C=second.block_c,
            num_warps=second.num_warps,
        )
    return dx, dw, db
