"""The end of a sub-layer for few tokens: a product cut along its reduction, and the LayerNorm that adds the pieces.

    h = x + a[:, :k] @ W[:, :k].T + b;  y = LayerNorm(h)

With few rows the product into C columns has fewer tiles than the device has multiprocessors, each with a long
reduction (k neurons, up to 4*C): most of the device waits. So every tile's reduction is cut into `splits` runs of whole
blocks, each a task of its own that writes its float32 sums; the LayerNorm, which reads h in any case, reads the pieces
in its place and adds bias and residual. No launch more than before, and h is never written.

Bytes: splits * T*C*4 written and read, which stay in L2 for the sizes that are cut (`tiles.split_count`), instead of
2*T*C elements. Sums are float32 (float64 for float64) and h is not rounded between. The pieces are added in their
order, without atomics: deterministic. A group of no features passes its x through; rows of no group are zero. Inference
only: nothing is dropped or saved. Does not synchronise.
"""

from __future__ import annotations

from torch import Tensor

from dynabert_kernels.triton.dependent_launch import ask_for_weight, begin_dependent, dependent_launch
from dynabert_kernels.triton.environment import (
    accumulator,
    accumulator_dtype,
    jit,
    launch_device,
    multiprocessors,
    tensor_descriptor,
    tl,
)
from dynabert_kernels.triton.group_layer_norm import _active_rows
from dynabert_kernels.triton.ragged_gemm import _product, descriptors_allowed
from dynabert_kernels.triton.row_statistics import row_statistics
from dynabert_kernels.triton.row_tiles import Widths, count_tiles, find_tile, row_tile_bound
from dynabert_kernels.triton.tiles import GemmTile, gemm_tile, row_forward_tile

__all__ = ["split_linear_layer_norm"]


@jit(do_not_specialize=["num_groups", "num_rows"])
def _split_linear_kernel(
    a_ptr: tl.tensor,  # (T, at least max_in)
    a_descriptor: tl.tensor,  # or None
    weight_ptr: tl.tensor,  # (num_columns, at least max_in)
    weight_descriptor: tl.tensor,  # or None
    pieces_ptr: tl.tensor,  # (SPLITS, T, num_columns) of ACC; rows of groups that reduce over nothing are not written
    rows_ptr: tl.tensor,  # (G+1,) int32
    in_counts_ptr: tl.tensor,  # (G,) int32
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    in_unit: tl.tensor,
    max_in: tl.tensor,
    a_stride: tl.tensor,
    weight_stride: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        ask_for_weight(weight_ptr, weight_stride, num_columns, max_in, num_rows)
        begin_dependent()
    total = count_tiles(
        *(rows_ptr, None, in_counts_ptr, num_groups, num_rows, num_columns),
        *(1, in_unit, num_columns, max_in, False, BLOCK_M, BLOCK_N),
    )
    for task in tl.range(tl.program_id(0), total * SPLITS, tl.num_programs(0)):
        split = task % SPLITS
        _, _, first_row, end_row, first_column, _, reduction = find_tile(
            *(task // SPLITS, rows_ptr, None, in_counts_ptr, num_groups, num_rows, num_columns),
            *(1, in_unit, num_columns, max_in, False, BLOCK_M, BLOCK_N),
        )
        # Runs of whole blocks, equal but for the last ones, which may be shorter or empty: they give 0.
        length = (reduction + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
        start = tl.minimum(split * length, (reduction + BLOCK_K - 1) // BLOCK_K * BLOCK_K)
        acc = _product(
            *(a_ptr, a_descriptor, weight_ptr, weight_descriptor, a_stride, weight_stride),
            *(first_row, end_row, first_column, num_columns, tl.minimum(start + length, reduction)),
            *(True, ACC, BLOCK_M, BLOCK_N, BLOCK_K, start),
        )
        rows = first_row + tl.arange(0, BLOCK_M)
        columns = first_column + tl.arange(0, BLOCK_N)
        at = (split.to(tl.int64) * num_rows + rows)[:, None] * num_columns + columns[None, :]
        tl.store(pieces_ptr + at, acc, mask=(rows < end_row)[:, None] & (columns < num_columns)[None, :])


@jit(do_not_specialize=["num_groups", "num_rows"])
def _add_pieces_layer_norm_kernel(
    pieces_ptr: tl.tensor,  # (SPLITS, T, C) of ACC
    x_ptr: tl.tensor,  # (T, C), the residual
    out_bias_ptr: tl.tensor,  # (C,) contiguous
    weight_ptr: tl.tensor,  # (C,) contiguous
    bias_ptr: tl.tensor,  # (C,) contiguous
    y_ptr: tl.tensor,  # (T, C) contiguous
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
    SPLITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        begin_dependent()
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_C)
    in_rows = rows < num_rows
    there = columns < num_columns
    in_columns = there[None, :]
    out_bias = tl.load(out_bias_ptr + columns, mask=there, other=0.0).to(ACC)
    weight = tl.load(weight_ptr + columns, mask=there, other=0.0).to(ACC)
    bias = tl.load(bias_ptr + columns, mask=there, other=0.0).to(ACC)
    active, skips = _active_rows(rows_ptr, counts_ptr, num_groups, rows, in_rows)
    x_tile = x_ptr + rows.to(tl.int64)[:, None] * x_stride + columns[None, :]
    x = tl.load(x_tile, mask=(active | skips)[:, None] & in_columns, other=0.0).to(ACC)
    offsets = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    sums = tl.zeros([BLOCK_T, BLOCK_C], dtype=ACC)
    for split in tl.static_range(SPLITS):
        piece = pieces_ptr + split * num_rows.to(tl.int64) * num_columns + offsets
        sums += tl.load(piece, mask=active[:, None] & in_columns, other=0.0)
    h = x + (sums + out_bias[None, :])

    _, centred, rstd = row_statistics(h, in_columns, num_columns, eps)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    y = tl.where(active[:, None], y, x)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=in_rows[:, None] & in_columns)


def split_linear_layer_norm(
    a: Tensor,
    weight: Tensor,
    out_bias: Tensor,
    x: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    widths: Widths,
    eps: float,
    splits: int,
    *,
    tile: GemmTile | None = None,
) -> Tensor:
    """y (T, C): ``LayerNorm(x + a @ weight.T + out_bias)`` of the rows whose group reduces over something.

    ``a``: (T, at least max_in). ``weight``: (C, at least max_in). ``x``: (T, C). ``widths``: every group has C outputs
    and its own reduction. ``splits``: pieces of each reduction, 1 or more. Nothing is checked here: the ops' launchers
    do. Does not synchronise.
    """
    num_rows, num_columns = x.shape
    y = x.new_empty((num_rows, num_columns))
    if num_rows == 0:  # an empty grid is a launch error
        return y
    assert widths.in_counts is not None
    tile = gemm_tile(a, widths.num_groups, num_columns) if tile is None else tile
    pieces = x.new_empty((splits, num_rows, num_columns), dtype=accumulator_dtype(x.dtype))
    left, right = a[:, : widths.max_in], weight[:, : widths.max_in]
    through_descriptors = descriptors_allowed(left, right)
    tasks = row_tile_bound(num_rows, widths.num_groups, tile.block_m) * -(-num_columns // tile.block_n) * splits
    with launch_device(x):
        _split_linear_kernel[(min(tasks, tile.programs_per_multiprocessor * multiprocessors(x)),)](
            a,
            tensor_descriptor(left, tile.block_m, tile.block_k) if through_descriptors else None,
            weight,
            tensor_descriptor(right, tile.block_n, tile.block_k) if through_descriptors else None,
            pieces,
            widths.rows,
            widths.in_counts,
            widths.num_groups,
            num_rows,
            num_columns,
            widths.in_unit,
            widths.max_in,
            a.stride(0),
            weight.stride(0),
            ACC=accumulator(x.dtype),
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=tile.block_k,
            SPLITS=splits,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **dependent_launch(x),
        )
        row_tile = row_forward_tile(num_columns)
        _add_pieces_layer_norm_kernel[(-(-num_rows // row_tile.block_t),)](
            pieces,
            x,
            out_bias,
            ln_weight,
            ln_bias,
            y,
            widths.rows,
            widths.in_counts,
            widths.num_groups,
            num_rows,
            num_columns,
            x.stride(0),
            eps,
            ACC=accumulator(x.dtype),
            BLOCK_T=row_tile.block_t,
            BLOCK_C=row_tile.block_c,
            SPLITS=splits,
            num_warps=row_tile.num_warps,
            **dependent_launch(x),
        )
    return y
