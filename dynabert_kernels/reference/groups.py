"""Reading a plan's device table on the host, for the reference provider."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor


class RowSpan(NamedTuple):
    """Rows ``begin`` to ``end - 1`` of group ``group``, with ``active`` leading features, heads or neurons."""

    begin: int
    end: int
    active: int
    group: int


def row_spans(rows: Tensor, counts: Tensor | None, default: int, most: int | None = None) -> list[RowSpan]:
    """The groups that have rows. ``counts`` None: every group has ``default``. ``most``: the largest count allowed.

    Raises ``ValueError`` on borders that start below 0 or go backwards, and on a count outside 0 to ``most``.
    """
    borders = _borders("rows", rows)
    active = _active(counts, len(borders) - 1, default, most)
    return [
        RowSpan(begin, end, count, group)
        for group, ((begin, end), count) in enumerate(zip(pairwise(borders), active, strict=True))
        if end > begin
    ]


def sequence_spans(
    cu_seqlens: Tensor, rows: Tensor, head_counts: Tensor | None, max_heads: int, max_seqlen: int
) -> list[RowSpan]:
    """The non-empty sequences that some group owns, each with its group's head count.

    Raises ``ValueError`` as `row_spans` does, on a sequence that is not all in one group, and on one longer
    than ``max_seqlen``.
    """
    borders = _borders("rows", rows)
    active = _active(head_counts, len(borders) - 1, max_heads, max_heads)
    spans = []
    for index, (begin, end) in enumerate(pairwise(_borders("cu_seqlens", cu_seqlens))):
        group = bisect_right(borders, begin) - 1
        if end > begin and 0 <= group < len(active):
            if end > borders[group + 1]:
                raise ValueError(
                    f"reference: sequence {index} is rows {begin} to {end} and crosses the border {borders[group + 1]} "
                    "of a group; allowed: groups of whole sequences"
                )
            if end - begin > max_seqlen:
                raise ValueError(
                    f"reference: sequence {index} has {end - begin} tokens; allowed: up to max_seqlen = {max_seqlen}"
                )
            spans.append(RowSpan(begin, end, active[group], group))
    return spans


def _borders(name: str, tensor: Tensor) -> list[int]:
    found: list[int] = tensor.tolist()
    if not found or found[0] < 0:
        start = f"starts at {found[0]}" if found else "is empty"
        raise ValueError(
            f"reference: {name} {start}; allowed: one border more than there are parts, the first 0 or more"
        )
    for index, (begin, end) in enumerate(pairwise(found)):
        if end < begin:
            raise ValueError(f"reference: {name} goes backwards from {begin} to {end} at {index}")
    return found


def _active(counts: Tensor | None, groups: int, default: int, most: int | None) -> list[int]:
    if counts is None:
        return [default] * groups
    found = [int(count) for count in counts.tolist()]
    if len(found) != groups:
        raise ValueError(f"reference: {len(found)} counts for {groups} groups; give one for each")
    for group, count in enumerate(found):
        if count < 0 or (most is not None and count > most):
            bound = "or more" if most is None else f"to {most}"
            raise ValueError(f"reference: the count of group {group} is {count}; allowed: 0 {bound}")
    return found
