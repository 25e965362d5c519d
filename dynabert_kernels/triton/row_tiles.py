"""Which rows, columns and reduction length a tile of a ragged product has: read from the plan on the device.

A row tile never crosses a group's border, so one width holds for the whole tile and a row's place inside its group is
at hand. Of T rows in G groups there are at most `row_tile_bound` row tiles; how many there are is known on the device
alone. Each program finds its tiles by a scan over the groups, 32 at a time: one lane of a warp for each, so the scan
needs shuffles and no barrier.

Why not a table of tiles, written by a kernel of its own: below about 1,000 tokens a launch more in front of each
product costs more than the product gains. The scan costs a few hundred cycles a tile and 32 groups (an estimate, not
measured); a tile of 128 x 128 x 768 takes about 7,000, and a second resident program, where registers allow one, covers
it. A group of few rows wastes the rest of its last row tile: the tile's height follows T / G (`tiles.py`).

Counts past the launch's bounds, and borders past T, are cut at them: a plan that does not fit its tensors computes
something else, but reads no foreign memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynabert_kernels.triton.checks import require_vectors, side_by_side
from dynabert_kernels.triton.environment import jit, tl


class Widths(NamedTuple):
    """How much of a product each group computes.

    Group g owns the rows from rows[g] to rows[g+1]; it has min(out_counts[g] * out_unit, max_out) output columns and a
    reduction of min(in_counts[g] * in_unit, max_in). No counts: every group has the most.
    """

    rows: Tensor
    out_counts: Tensor | None
    in_counts: Tensor | None
    out_unit: int
    in_unit: int
    max_out: int
    max_in: int

    @property
    def num_groups(self) -> int:
        return self.rows.shape[0] - 1

    def turned(self) -> Widths:
        """The same groups with outputs and inputs exchanged: the product that gives the input's gradient."""
        return Widths(
            self.rows, self.in_counts, self.out_counts, self.in_unit, self.out_unit, self.max_in, self.max_out
        )


def require_matrix(op: str, name: str, tensor: Tensor, like: Tensor, rows: int, columns: int) -> None:
    """(at least rows, at least columns), columns side by side, of `like`'s dtype and device."""
    if tensor.dim() != 2 or tensor.shape[0] < rows or tensor.shape[1] < columns:
        raise ValueError(
            f"{op}: {name} has the wrong shape; got {tuple(tensor.shape)}; allowed: at least ({rows}, {columns}); "
            "lower the bounds or pass a larger tensor"
        )
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{op}: {name} does not fit; got {tensor.dtype} on {tensor.device}; allowed: {like.dtype} on "
            f"{like.device}; convert it"
        )
    if not side_by_side(tensor):
        raise ValueError(
            f"{op}: the columns of {name} do not lie side by side; got strides {tuple(tensor.stride())}; "
            "allowed: any row stride with a column stride of 1; call .contiguous()"
        )


def require_plan(op: str, widths: Widths, like: Tensor) -> None:
    """Borders and counts are contiguous int32 vectors on `like`'s device that fit each other."""
    groups = max(widths.num_groups, 0)
    require_vectors(op, like, groups + 1, "G+1", torch.int32, rows=widths.rows)
    for name, counts in (("out_counts", widths.out_counts), ("in_counts", widths.in_counts)):
        if counts is not None:
            require_vectors(op, like, groups, "G", torch.int32, **{name: counts})


def row_tile_bound(num_rows: int, num_groups: int, block: int) -> int:
    """The most row tiles that T rows can have, rows of no group counted as a group."""
    owners = min(num_groups + 1, num_rows)
    return (num_rows - owners) // block + owners


@jit
def active_width(
    counts_ptr: tl.tensor, groups: tl.tensor, unit: tl.tensor, most: tl.tensor, real: tl.tensor
) -> tl.tensor:
    """Active columns of groups (one or many); 0 for those that are not `real`."""
    if counts_ptr is None:
        width = tl.where(real, most, 0)
    else:
        width = tl.minimum(tl.load(counts_ptr + groups, mask=real, other=0) * unit, most)
    return width


@jit
def group_rows(
    rows_ptr: tl.tensor, groups: tl.tensor, num_groups: tl.tensor, num_rows: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """First row and the row past the last of groups (one or many). Group G is the rows of no group, later ones none."""
    begin = tl.load(rows_ptr + groups, mask=groups <= num_groups, other=num_rows)
    end = tl.load(rows_ptr + groups + 1, mask=groups < num_groups, other=num_rows)
    return tl.minimum(begin, num_rows), tl.minimum(end, num_rows)


@jit
def _tiles_of_groups(
    rows_ptr: tl.tensor,
    out_counts_ptr: tl.tensor,
    in_counts_ptr: tl.tensor,
    groups: tl.tensor,
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    out_unit: tl.tensor,
    in_unit: tl.tensor,
    max_out: tl.tensor,
    max_in: tl.tensor,
    ZERO_FILL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> tl.tensor:
    begin, end = group_rows(rows_ptr, groups, num_groups, num_rows)
    row_tiles = (tl.maximum(end - begin, 0) + BLOCK_M - 1) // BLOCK_M
    if ZERO_FILL:
        width = num_columns
    else:
        # What a group does not compute has no tile; nor has a group that reduces over nothing, for it skips the layer.
        real = groups < num_groups
        width = active_width(out_counts_ptr, groups, out_unit, max_out, real)
        width = tl.where(active_width(in_counts_ptr, groups, in_unit, max_in, real) > 0, width, 0)
    return row_tiles * ((width + BLOCK_N - 1) // BLOCK_N)


@jit
def count_tiles(
    rows_ptr: tl.tensor,
    out_counts_ptr: tl.tensor,
    in_counts_ptr: tl.tensor,
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    out_unit: tl.tensor,
    in_unit: tl.tensor,
    max_out: tl.tensor,
    max_in: tl.tensor,
    ZERO_FILL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUPS: tl.constexpr = 32,
) -> tl.tensor:
    """All tiles of the launch. ZERO_FILL: each row has tiles over all columns, rows of no group too."""
    total = 0
    for chunk in range(0, num_groups + 1, GROUPS):
        tiles = _tiles_of_groups(
            *(rows_ptr, out_counts_ptr, in_counts_ptr, chunk + tl.arange(0, GROUPS), num_groups, num_rows),
            *(num_columns, out_unit, in_unit, max_out, max_in, ZERO_FILL, BLOCK_M, BLOCK_N),
        )
        total += tl.sum(tiles, axis=0)
    return total


@jit
def find_tile(
    tile: tl.tensor,
    rows_ptr: tl.tensor,
    out_counts_ptr: tl.tensor,
    in_counts_ptr: tl.tensor,
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    out_unit: tl.tensor,
    in_unit: tl.tensor,
    max_out: tl.tensor,
    max_in: tl.tensor,
    ZERO_FILL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUPS: tl.constexpr = 32,
    BAND: tl.constexpr = 8,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """(group, its first row, the tile's first row, the row past its last, first column, active columns, reduction).

    Tiles run through the groups in order, so with the widest group first the longest tiles start first. Inside a group
    BAND row tiles sweep the columns together: what they read of the weight is then still in L2.
    """
    group = 0
    first = 0  # the group's first tile
    counted = 0
    for chunk in range(0, num_groups + 1, GROUPS):
        groups = chunk + tl.arange(0, GROUPS)
        tiles = _tiles_of_groups(
            *(rows_ptr, out_counts_ptr, in_counts_ptr, groups, num_groups, num_rows, num_columns),
            *(out_unit, in_unit, max_out, max_in, ZERO_FILL, BLOCK_M, BLOCK_N),
        )
        ends = counted + tl.cumsum(tiles, axis=0)
        passed = ends <= tile
        group += tl.sum(passed.to(tl.int32), axis=0)
        first = tl.maximum(first, tl.max(tl.where(passed, ends, 0), axis=0))
        counted += tl.sum(tiles, axis=0)
    real = group < num_groups
    begin, end = group_rows(rows_ptr, group, num_groups, num_rows)
    width = active_width(out_counts_ptr, group, out_unit, max_out, real)
    reduction = active_width(in_counts_ptr, group, in_unit, max_in, real)
    row_tiles = (end - begin + BLOCK_M - 1) // BLOCK_M
    column_tiles = ((num_columns if ZERO_FILL else width) + BLOCK_N - 1) // BLOCK_N
    local = tile - first
    band = local // (BAND * column_tiles)
    in_band = local - band * BAND * column_tiles
    height = tl.minimum(row_tiles - band * BAND, BAND)
    row = begin + (band * BAND + in_band % height) * BLOCK_M
    return group, begin, row, tl.minimum(row + BLOCK_M, end), in_band // height * BLOCK_N, width, reduction
