"""Losses of student rows against their teacher rows, summed for each group of rows: forward and backward.

    squared error:       row loss = sum (s - t)^2                                     ds = 2 (s - t) dloss
    soft cross-entropy:  row loss = sum (e * (max s - s)) / sum e + log (sum f)       ds = (f / sum f - e / sum e) dloss
                         with f = exp(s - max s) and e = exp(t - max t); every term is at least 0, nothing cancels

t is the teacher's row that `teacher_rows` names. Rows of no group, of a group whose number is 0 and without a teacher
row are not read: their loss and gradient are 0.

Forward: one program computes `block_t` whole rows, held in registers, and writes one number a row. A second kernel, one
program for each group, adds its rows' numbers by position in the group: so a group's loss is bit for bit what it is
alone, and no plan changes a grid. Bytes: 2*R*C elements at most (student rows that share a teacher row find it in the
second-level cache: (R + Q)*C from memory) and 8*R for the row losses; operations: about 3*R*C (8*R*C and two
exponentials each for the cross-entropy). Memory-bound.

Backward: the same tiles, one write of R*C elements more. The sums of the softmax are formed again from the rows, which
are read anyway: nothing is saved.

Statistics and sums are float32 (float64 for float64 input), rounded once at the store.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynabert_kernels.triton.borders import last_at_most
from dynabert_kernels.triton.checks import require_columns, require_rows, require_vectors, why_not_side_by_side
from dynabert_kernels.triton.environment import (
    accumulator,
    accumulator_dtype,
    jit,
    launch_device,
    tl,
    why_unavailable,
)
from dynabert_kernels.triton.tiles import GROUP_SUM_TILE, MAX_ROW_COLUMNS, row_pair_tile

__all__ = ["distillation_loss_bwd", "distillation_loss_fwd", "supports"]

_SOFT_CROSS_ENTROPY = 0  # the code of the op's schema; 1 is the squared error


def supports(*arguments: Tensor | int | None) -> str | None:
    """Why this provider refuses these arguments (of either op, in its order); None where it takes them."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    student = next(tensor for tensor in tensors if tensor.dim() == 2)
    reason = why_unavailable(student)
    if reason is not None:
        return reason
    if not 1 <= student.shape[1] <= MAX_ROW_COLUMNS:
        return f"C is {student.shape[1]}; a row is held in registers, so 1 to {MAX_ROW_COLUMNS} columns are allowed"
    return why_not_side_by_side(*tensors)


@jit
def _matched_rows(
    rows_ptr: tl.tensor,
    teacher_rows_ptr: tl.tensor,
    active_ptr: tl.tensor,
    num_groups: tl.tensor,
    rows: tl.tensor,
    in_rows: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(group, teacher row, whether the row counts) of each row."""
    group = last_at_most(rows_ptr, num_groups, rows)
    counts = in_rows & (group < num_groups)
    if active_ptr is not None:
        counts = counts & (tl.load(active_ptr + group, mask=counts, other=0) > 0)
    partner = rows
    if teacher_rows_ptr is not None:
        partner = tl.load(teacher_rows_ptr + rows, mask=counts, other=-1)
        counts = counts & (partner >= 0)
    return group, partner, counts


@jit
def _exponentials(x: tl.tensor, in_columns: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(gap, e, sum): how far x is below the row's largest entry, e^-gap, and the row's sum of them."""
    x = tl.where(in_columns[None, :], x, float("-inf"))
    gap = tl.max(x, axis=1)[:, None] - x
    e = tl.exp(-gap)
    return gap, e, tl.sum(e, axis=1)


@jit(do_not_specialize=["num_groups", "num_rows"])
def _distillation_loss_fwd_kernel(
    student_ptr: tl.tensor,  # (R, C)
    teacher_ptr: tl.tensor,  # (Q, C)
    row_loss_ptr: tl.tensor,  # (R,) of ACC
    rows_ptr: tl.tensor,  # (G+1,) int32
    teacher_rows_ptr: tl.tensor,  # (R,) int32 or None: a row's own number
    active_ptr: tl.tensor,  # (G,) int32 or None: every group counts
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    student_stride: tl.tensor,  # elements from row to row; columns lie side by side
    teacher_stride: tl.tensor,
    ACC: tl.constexpr,
    SOFT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_C)
    in_rows = rows < num_rows
    in_columns = columns < num_columns
    _, partner, counts = _matched_rows(rows_ptr, teacher_rows_ptr, active_ptr, num_groups, rows, in_rows)
    inside = counts[:, None] & in_columns[None, :]
    s_tile = student_ptr + rows.to(tl.int64)[:, None] * student_stride + columns[None, :]
    t_tile = teacher_ptr + partner.to(tl.int64)[:, None] * teacher_stride + columns[None, :]
    s = tl.load(s_tile, mask=inside, other=0.0).to(ACC)
    t = tl.load(t_tile, mask=inside, other=0.0).to(ACC)
    if SOFT:
        gap, _, s_sum = _exponentials(s, in_columns)
        _, e, t_sum = _exponentials(t, in_columns)
        # What the teacher rules out counts nothing, an infinite gap there too. A NaN is not 0 and stays.
        cross = tl.sum(e * tl.where(e == 0.0, 0.0, gap), axis=1)
        loss = cross / t_sum + tl.log(s_sum)
    else:
        loss = tl.sum((s - t) * (s - t), axis=1)
    tl.store(row_loss_ptr + rows, tl.where(counts, loss, 0.0), mask=in_rows)


@jit(do_not_specialize=["num_rows"])
def _distillation_loss_group_sum_kernel(
    row_loss_ptr: tl.tensor,  # (R,) of ACC
    loss_ptr: tl.tensor,  # (G,) of ACC
    rows_ptr: tl.tensor,  # (G+1,) int32
    num_rows: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    group = tl.program_id(0)
    begin = tl.load(rows_ptr + group)
    end = tl.minimum(tl.load(rows_ptr + group + 1), num_rows)
    total = tl.zeros([BLOCK_T], dtype=ACC)
    for start in range(begin, end, BLOCK_T):
        rows = start + tl.arange(0, BLOCK_T)
        total += tl.load(row_loss_ptr + rows, mask=rows < end, other=0.0)
    tl.store(loss_ptr + group, tl.sum(total, axis=0))


def _require(
    op: str, student: Tensor, teacher: Tensor, rows: Tensor, teacher_rows: Tensor | None, active: Tensor | None
) -> None:
    require_rows(op, student=student)
    require_rows(op, teacher=teacher)
    if teacher.shape[1] != student.shape[1] or teacher.dtype != student.dtype or teacher.device != student.device:
        raise ValueError(
            f"{op}: teacher does not fit; got {teacher.shape[1]} columns of {teacher.dtype} on {teacher.device}; "
            f"allowed: {student.shape[1]} columns of {student.dtype} on {student.device}; convert it"
        )
    if teacher_rows is None and teacher.shape[0] < student.shape[0]:
        raise ValueError(
            f"{op}: teacher has too few rows; got {teacher.shape[0]}; allowed without teacher_rows: at least student's "
            f"{student.shape[0]}; pass teacher_rows"
        )
    require_columns(op, student, MAX_ROW_COLUMNS)
    groups = max(rows.shape[0] - 1, 0)
    vectors = {"rows": (rows, groups + 1, "G+1"), "active": (active, groups, "G")}
    for name, (vector, length, letters) in (vectors | {"teacher_rows": (teacher_rows, student.shape[0], "R")}).items():
        if vector is not None:
            require_vectors(op, student, length, letters, torch.int32, **{name: vector})


def distillation_loss_fwd(
    student: Tensor, teacher: Tensor, rows: Tensor, teacher_rows: Tensor | None, active: Tensor | None, kind: int
) -> Tensor:
    """The loss of each group, (G,) in float32 (float64 for float64). Does not synchronise."""
    _require("distillation_loss_fwd (triton)", student, teacher, rows, teacher_rows, active)
    num_rows, num_columns = student.shape
    num_groups = rows.shape[0] - 1
    wide = accumulator_dtype(student.dtype)
    if num_rows == 0 or num_groups == 0:  # an empty grid is a launch error
        return student.new_zeros((num_groups,), dtype=wide)
    row_loss = student.new_empty((num_rows,), dtype=wide)
    loss = student.new_empty((num_groups,), dtype=wide)
    tile = row_pair_tile(num_columns)
    with launch_device(student):
        _distillation_loss_fwd_kernel[(-(-num_rows // tile.block_t),)](
            student,
            teacher,
            row_loss,
            rows,
            teacher_rows,
            active,
            num_groups,
            num_rows,
            num_columns,
            student.stride(0),
            teacher.stride(0),
            ACC=accumulator(student.dtype),
            SOFT=kind == _SOFT_CROSS_ENTROPY,
            BLOCK_T=tile.block_t,
            BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
        )
        _distillation_loss_group_sum_kernel[(num_groups,)](
            row_loss,
            loss,
            rows,
            num_rows,
            ACC=accumulator(student.dtype),
            BLOCK_T=GROUP_SUM_TILE.block_t,
            num_warps=GROUP_SUM_TILE.num_warps,
        )
    return loss


@jit(do_not_specialize=["num_groups", "num_rows"])
def _distillation_loss_bwd_kernel(
    dloss_ptr: tl.tensor,  # (G,) of ACC
    student_ptr: tl.tensor,  # (R, C)
    teacher_ptr: tl.tensor,  # (Q, C)
    dstudent_ptr: tl.tensor,  # (R, C) contiguous, all of it written
    rows_ptr: tl.tensor,  # (G+1,) int32
    teacher_rows_ptr: tl.tensor,  # (R,) int32 or None
    active_ptr: tl.tensor,  # (G,) int32 or None
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    student_stride: tl.tensor,
    teacher_stride: tl.tensor,
    ACC: tl.constexpr,
    SOFT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_C)
    in_rows = rows < num_rows
    in_columns = columns < num_columns
    group, partner, counts = _matched_rows(rows_ptr, teacher_rows_ptr, active_ptr, num_groups, rows, in_rows)
    inside = counts[:, None] & in_columns[None, :]
    s_tile = student_ptr + rows.to(tl.int64)[:, None] * student_stride + columns[None, :]
    t_tile = teacher_ptr + partner.to(tl.int64)[:, None] * teacher_stride + columns[None, :]
    s = tl.load(s_tile, mask=inside, other=0.0).to(ACC)
    t = tl.load(t_tile, mask=inside, other=0.0).to(ACC)
    dloss = tl.load(dloss_ptr + group, mask=counts, other=0.0)
    if SOFT:
        _, f, s_sum = _exponentials(s, in_columns)
        _, e, t_sum = _exponentials(t, in_columns)
        slope = f / s_sum[:, None] - e / t_sum[:, None]
    else:
        slope = 2.0 * (s - t)
    ds = tl.where(counts[:, None], slope * dloss[:, None], 0.0).to(dstudent_ptr.dtype.element_ty)
    ds_tile = dstudent_ptr + rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
    tl.store(ds_tile, ds, mask=in_rows[:, None] & in_columns[None, :])


def distillation_loss_bwd(
    dloss: Tensor,
    student: Tensor,
    teacher: Tensor,
    rows: Tensor,
    teacher_rows: Tensor | None,
    active: Tensor | None,
    kind: int,
) -> Tensor:
    """dstudent (R, C) in student's dtype. Does not synchronise."""
    op = "distillation_loss_bwd (triton)"
    _require(op, student, teacher, rows, teacher_rows, active)
    num_rows, num_columns = student.shape
    num_groups = rows.shape[0] - 1
    require_vectors(op, student, num_groups, "G", accumulator_dtype(student.dtype), dloss=dloss)
    dstudent = student.new_empty((num_rows, num_columns))
    if num_rows == 0:
        return dstudent
    tile = row_pair_tile(num_columns)
    with launch_device(student):
        _distillation_loss_bwd_kernel[(-(-num_rows // tile.block_t),)](
            dloss,
            student,
            teacher,
            dstudent,
            rows,
            teacher_rows,
            active,
            num_groups,
            num_rows,
            num_columns,
            student.stride(0),
            teacher.stride(0),
            ACC=accumulator(student.dtype),
            SOFT=kind == _SOFT_CROSS_ENTROPY,
            BLOCK_T=tile.block_t,
            BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
        )
    return dstudent
