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


def row_spans(rows: Tensor, counts: Tensor | None, default: int) -> list[RowSpan]:
    """The groups that have rows. ``counts`` None: every group has ``default``."""
    borders = rows.tolist()
    active = [default] * (len(borders) - 1) if counts is None else counts.tolist()
    return [
        RowSpan(begin, end, int(count), group)
        for group, (begin, end, count) in enumerate(zip(borders, borders[1:], active, strict=False))
        if end > begin
    ]


def sequence_spans(cu_seqlens: Tensor, rows: Tensor, head_counts: Tensor | None, max_heads: int) -> list[RowSpan]:
    """The non-empty sequences that some group owns, each with its group's head count."""
    borders = rows.tolist()
    active = [max_heads] * (len(borders) - 1) if head_counts is None else head_counts.tolist()
    starts = cu_seqlens.tolist()
    spans = []
    for begin, end in pairwise(starts):
        group = bisect_right(borders, begin) - 1
        if end > begin and group < len(active):
            spans.append(RowSpan(begin, end, int(active[group]), group))
    return spans
