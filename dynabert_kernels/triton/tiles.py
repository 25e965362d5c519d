"""Tile sizes of every kernel, in one place: by shape, with a stated default.

No entry was timed on a card yet. They were chosen from what the compiler reports (`make codegen`: no spills on sm_80
and sm_90, 16-byte loads) and from bytes in flight: a memory-bound kernel needs about 20 KB of loads under way per
multiprocessor.
"""

from __future__ import annotations

from typing import NamedTuple

# A row is held in registers, whole. Wider rows would spill; no BERT is wider than a quarter of this.
MAX_ROW_COLUMNS = 8192


class RowTile(NamedTuple):
    """One program's tile of whole rows: `block_t` rows of `block_c` columns (a power of two)."""

    block_t: int
    block_c: int
    num_warps: int


class SumTile(NamedTuple):
    """One program's tile when partial results are summed: `block_p` partials by `block_c` columns at a time."""

    block_p: int
    block_c: int
    num_warps: int


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def row_forward_tile(num_columns: int) -> RowTile:
    """Tile of a forward row reduction (LayerNorm).

    16 elements per thread. Depends on the row's width alone, never on the number of rows: so a row's result is the same
    bit for bit whatever else is in the batch.
    """
    block_c = next_power_of_2(num_columns)
    num_warps = 4 if block_c <= 2048 else 8
    return RowTile(block_t=min(16, max(1, num_warps * 32 * 16 // block_c)), block_c=block_c, num_warps=num_warps)


def row_backward_tile(num_columns: int) -> RowTile:
    """Tile of a backward row reduction that also sums over rows: 16 elements per thread, 8 warps."""
    block_c = next_power_of_2(num_columns)
    num_warps = 8 if block_c <= 4096 else 16
    return RowTile(block_t=min(16, max(1, num_warps * 32 * 16 // block_c)), block_c=block_c, num_warps=num_warps)


# Programs of a persistent row kernel per multiprocessor: two of 8 warps hide each other's barriers; more would only add
# partials.
ROW_PROGRAMS_PER_MULTIPROCESSOR = 2


def sum_tile(num_columns: int) -> SumTile:
    """Tile of the second pass over partial sums: 32 columns are one 128-byte line of float32."""
    return SumTile(block_p=64, block_c=min(32, next_power_of_2(num_columns)), num_warps=4)
