"""Device functions that find which group or sequence owns a row, from ascending borders in device memory.

Borders (`cu_seqlens`, a plan's `rows`) change with every batch and are never read on the host. A program searches them
itself: log2(entries) loads, nearly all of them from cache, since every program of a launch asks the same few lines. A
table of owners, made by a kernel of its own, would save that and cost a launch for each op.
"""

from __future__ import annotations

from dynabert_kernels.triton.environment import jit, tl

__all__ = ["last_at_most", "num_row_blocks", "row_block"]


@jit
def last_at_most(
    borders_ptr: tl.tensor,  # (last + 1,) int32, ascending; borders[0] is at most every value
    last: tl.tensor,  # the largest index that may come out
    values: tl.tensor,  # a number or a block of numbers
) -> tl.tensor:
    """The largest index up to `last` whose border is at most the value: of equal borders the last, so no empty owner.

    A row at or past the last border gets `last`, one more than the last owner's index.
    """
    found = values * 0
    beyond = found + last + 1
    # Each step halves beyond - found, which ends at 1. A block that is there already asks borders[found] again.
    remaining = tl.full([], last, tl.int32)
    while remaining > 0:
        middle = (found + beyond) // 2
        below = tl.load(borders_ptr + middle) <= values
        found = tl.where(below, middle, found)
        beyond = tl.where(below, beyond, middle)
        remaining = remaining // 2
    return found


def num_row_blocks(num_rows: int, num_groups: int, block: int) -> int:
    """Programs of a launch whose programs ask `row_block`. A few of them, at most one for each group, find nothing."""
    return -(-num_rows // block) + num_groups


@jit
def row_block(
    program: tl.tensor,
    rows_ptr: tl.tensor,  # (G+1,) int32
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """(group, its first row, the block's first row, the row past its last): a block of rows of one group.

    Rows are cut at every multiple of BLOCK and at every border. The pieces in order are a staircase over (multiple,
    group): from one to the next one of the two grows, or both. So their sum tells the pieces apart, and the first piece
    of group g is number ``rows[g] // BLOCK + g``, which grows with g: one search finds the group. Group G stands for
    the rows past the last border. Where both grew, a number is left out: then the block is empty, as for a group
    without rows.
    """
    group = tl.full([], 0, tl.int32)
    beyond = tl.full([], num_groups, tl.int32) + 1
    while beyond - group > 1:
        middle = (group + beyond) // 2
        below = tl.load(rows_ptr + middle) // BLOCK + middle <= program
        group = tl.where(below, middle, group)
        beyond = tl.where(below, beyond, middle)
    group_begin = tl.load(rows_ptr + group)
    group_end = tl.load(rows_ptr + group + 1, mask=group < num_groups, other=num_rows)
    multiple = (program - group) * BLOCK
    end = tl.minimum(tl.minimum(group_end, multiple + BLOCK), num_rows)
    return group, group_begin, tl.maximum(group_begin, multiple), end
