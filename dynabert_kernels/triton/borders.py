"""Device functions that find which group or sequence owns a row, from ascending borders in device memory.

Borders (`cu_seqlens`, a plan's `rows`) change with every batch and are never read on the host. A program searches them
itself: `log2(entries)` loads, nearly all of them from cache, since every program of a launch asks the same few lines. A
table of owners, made by a kernel of its own, would save that and cost a launch for each op.
"""

from __future__ import annotations

from dynabert_kernels.triton.environment import jit, tl

__all__ = ["last_at_most"]


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
