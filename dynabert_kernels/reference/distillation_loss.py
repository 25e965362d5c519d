"""Losses of student rows against their teacher rows, summed for each group of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dynabert_kernels.reference.add_layer_norm import statistics_dtype
from dynabert_kernels.reference.groups import row_spans

SOFT_CROSS_ENTROPY, SQUARED_ERROR = range(2)


class _Match(NamedTuple):
    """The rows of one group that count: their numbers in ``student`` and in ``teacher``."""

    group: int
    own: Tensor
    theirs: Tensor


def _matches(
    rows: Tensor, teacher_rows: Tensor | None, active: Tensor | None, num_teacher_rows: int
) -> Iterator[_Match]:
    for begin, end, count, group in row_spans(rows, active, 1):
        if count <= 0:
            continue
        own = torch.arange(begin, end, device=rows.device)
        if teacher_rows is None:
            yield _Match(group, own, own)
            continue
        theirs = teacher_rows[begin:end].long()
        own, theirs = own[theirs >= 0], theirs[theirs >= 0]
        if theirs.numel() and int(theirs.max()) >= num_teacher_rows:
            raise IndexError(
                f"distillation_loss: teacher_rows holds {int(theirs.max())} in group {group}; allowed: less than "
                f"teacher's {num_teacher_rows} rows, or -1 for a row that counts nothing"
            )
        yield _Match(group, own, theirs)


def distillation_loss_fwd(
    student: Tensor, teacher: Tensor, rows: Tensor, teacher_rows: Tensor | None, active: Tensor | None, kind: int
) -> Tensor:
    """The loss of each group, (G,) in the statistics dtype: a sum over its rows and columns."""
    wide = statistics_dtype(student.dtype)
    loss = student.new_zeros(rows.shape[0] - 1, dtype=wide)
    for group, own, theirs in _matches(rows, teacher_rows, active, teacher.shape[0]):
        s, t = student[own].to(wide), teacher[theirs].to(wide)
        if kind == SQUARED_ERROR:
            loss[group] = (s - t).square().sum()
        else:
            p, log_q = t.softmax(1), s.log_softmax(1)
            # A class that the teacher rules out counts nothing, also where the student rules it out: 0 * -inf is NaN.
            loss[group] = -torch.where(p == 0, 0.0, p * log_q).sum()
    return loss


def distillation_loss_bwd(
    dloss: Tensor,
    student: Tensor,
    teacher: Tensor,
    rows: Tensor,
    teacher_rows: Tensor | None,
    active: Tensor | None,
    kind: int,
) -> Tensor:
    """dstudent, (R, C) in student's dtype, zero in rows that count nothing."""
    wide = statistics_dtype(student.dtype)
    dstudent = student.new_zeros(student.shape)
    for group, own, theirs in _matches(rows, teacher_rows, active, teacher.shape[0]):
        s, t = student[own].to(wide), teacher[theirs].to(wide)
        slope = 2 * (s - t) if kind == SQUARED_ERROR else s.softmax(1) - t.softmax(1)
        dstudent[own] = (slope * dloss[group]).to(student.dtype)
    return dstudent
