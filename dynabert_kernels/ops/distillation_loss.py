"""``distillation_loss``: student rows against their teacher rows, all sub-networks of a stacked batch at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.ops import checks
from dynabert_kernels.ops.registration import define, dense_gradient, differentiate
from dynabert_kernels.reference.add_layer_norm import statistics_dtype

KINDS = {"soft_cross_entropy": 0, "squared_error": 1}


def _fwd_fake(
    student: Tensor, teacher: Tensor, rows: Tensor, teacher_rows: Tensor | None, active: Tensor | None, kind: int
) -> Tensor:
    return student.new_empty(rows.shape[0] - 1, dtype=statistics_dtype(student.dtype))


def _bwd_fake(
    dloss: Tensor,
    student: Tensor,
    teacher: Tensor,
    rows: Tensor,
    teacher_rows: Tensor | None,
    active: Tensor | None,
    kind: int,
) -> Tensor:
    return student.new_empty(student.shape)


_fwd = define(
    "distillation_loss_fwd",
    "(Tensor student, Tensor teacher, Tensor rows, Tensor? teacher_rows, Tensor? active, int kind) -> Tensor",
    reference=reference.distillation_loss_fwd,
    fake=_fwd_fake,
)
_bwd = define(
    "distillation_loss_bwd",
    "(Tensor dloss, Tensor student, Tensor teacher, Tensor rows, Tensor? teacher_rows, Tensor? active, int kind)"
    " -> Tensor",
    reference=reference.distillation_loss_bwd,
    fake=_bwd_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.kind = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dloss: Tensor | None) -> tuple[Tensor | None, ...]:
    if dloss is None:
        return (None,) * 6
    return _bwd(dense_gradient(dloss), *ctx.saved_tensors, ctx.kind), *([None] * 5)


_call = differentiate("distillation_loss_fwd", setup=_setup, backward=_backward)


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    rows: Tensor | None = None,
    teacher_rows: Tensor | None = None,
    active: Tensor | None = None,
    kind: str = "soft_cross_entropy",
) -> Tensor:
    """The loss of each sub-network's rows against the teacher's, for all sub-networks of a stacked batch at once.

    With ``s`` a row of ``student`` and ``t`` its row of ``teacher``, summed over the rows of group ``g`` that count, by
    ``kind``:

    * ``"soft_cross_entropy"``, of logits: ``loss[g] = -sum_r sum_c softmax(t)_c * log_softmax(s)_c``, temperature 1. A
      class of teacher probability 0 adds nothing, whatever the student's logit; -inf is allowed in both.
    * ``"squared_error"``, of hidden states: ``loss[g] = sum_r sum_c (s_c - t_c)^2``.

    These are sums. Only the caller knows what a mean runs over: all micro-batches and processes of the optimiser step.
    With ``n`` rows of the group in the whole step, all of them counted: ``loss / n`` is the mean soft cross-entropy,
    and ``loss / (n * C)`` the mean squared error. Multiply before ``backward()``, so that the gradient is the mean's.

    ``student``: (R, C), the rows of all sub-networks one after another: a row for each sequence (logits) or for each
    token (hidden states). ``teacher``: (Q, C), frozen: it gets no gradient. Both of one dtype, float32, bfloat16,
    float16 or float64; rows may be strided.
    ``rows``: (G+1,) int32 borders of the groups over student's rows (None: one group, all rows). Rows past the last
    border count nothing and are not read. ``teacher_rows``: (R,) int32, the teacher row of each student row (None: its
    own number; then ``Q >= R``). A row where it is negative counts nothing and is not read. ``active``: (G,) int32 or
    None: a group whose number is 0 counts nothing and is not read, so a layer's head counts can be passed as they are.

    Returns (G,) float32 (float64 for float64); 0 where nothing counts. The gradient of student, (R, C) in its dtype, is
    zero in rows that count nothing. Sums are float32 or wider (float64 for float64). Deterministic, and independent of
    the number of threads: a row's sum, then the rows' in an order that starts at the group's first. So a group's loss
    is bit for bit what it is alone (on a GPU: where its rows lie at addresses that are aligned alike). Keeps nothing
    for backward but its arguments: the sums of the softmax are formed again, from rows that are read anyway. The
    borders are data: a new plan is not a new compiled graph. Does not synchronise, except with the reference provider
    on a GPU.

    Raises ``ValueError`` on a shape, a device or a teacher that requires a gradient, ``TypeError`` on a dtype, and on
    the CPU ``IndexError`` where ``teacher_rows`` reaches past the teacher (on a GPU that is the caller's duty: nothing
    is read back to check it).

    Source: Hou et al., "DynaBERT", arXiv 2004.04037, sections 2.1 and 2.2.
    """
    op = "distillation_loss"
    checks.shape(op, "student", student, (None, None), "(R, C)")
    checks.shape(op, "teacher", teacher, (None, student.shape[1]), "(Q, C)")
    checks.same(op, ("student", student), {"teacher": teacher})
    if student.shape[1] == 0:
        raise ValueError(f"{op}: student has shape {tuple(student.shape)}; allowed: at least one column")
    if teacher.requires_grad:
        raise ValueError(f"{op}: teacher requires a gradient, which it would not get; pass teacher.detach()")
    if kind not in KINDS:
        raise ValueError(f"{op}: kind is {kind!r}; allowed: {', '.join(KINDS)}")
    borders = checks.whole_batch(student.shape[0], student.device) if rows is None else rows
    checks.indices(op, "rows", borders, student.device, torch.int32)
    if borders.shape[0] == 0:
        raise ValueError(f"{op}: rows is empty; allowed: one border more than groups, the first 0")
    if active is not None:
        checks.indices(op, "active", active, student.device, torch.int32)
        if active.shape[0] != borders.shape[0] - 1:
            raise ValueError(
                f"{op}: active has {active.shape[0]} entries; allowed: one a group, {borders.shape[0] - 1}"
            )
    if teacher_rows is not None:
        checks.indices(op, "teacher_rows", teacher_rows, student.device, torch.int32)
        if teacher_rows.shape[0] != student.shape[0]:
            raise ValueError(
                f"{op}: teacher_rows has {teacher_rows.shape[0]} entries; allowed: one for each of student's "
                f"{student.shape[0]} rows"
            )
    elif teacher.shape[0] < student.shape[0]:
        raise ValueError(
            f"{op}: teacher has {teacher.shape[0]} rows and student {student.shape[0]}; allowed without teacher_rows: "
            "at least as many; say in teacher_rows which belong together"
        )
    return _call(student, teacher, borders, teacher_rows, active, KINDS[kind])


__all__ = ["distillation_loss"]
