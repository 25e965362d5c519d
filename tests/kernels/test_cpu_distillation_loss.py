"""The C++ provider of ``distillation_loss``, once for each instruction set."""

from __future__ import annotations

import pytest
import torch

import dynabert_kernels as dk
from dynabert_kernels.testing.inputs import strided_rows
from tests.kernels import distillation_loss_checks as checks
from tests.kernels.cpu_isas import (
    cpu_op,
    each_dtype,
    each_isa,
    int32,
    one_thread,  # noqa: F401
    using_isa,
)
from tests.kernels.distillation_loss_checks import KINDS, SHAPES, SQUARED_ERROR, sample

FORWARD, BACKWARD = cpu_op("distillation_loss_fwd"), cpu_op("distillation_loss_bwd")
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
each_map = pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "in order"])


@each_isa
@each_dtype
@each_kind
@each_map
def test_matches_float64(isa: str, dtype: torch.dtype, kind: int, mapped: bool) -> None:
    with using_isa(isa):
        for lengths, columns in SHAPES:
            checks.check_against_float64(FORWARD, BACKWARD, sample(lengths, columns, dtype, mapped=mapped), kind)


@each_isa
@each_kind
@each_map
def test_a_group_gets_what_it_gets_alone(isa: str, kind: int, mapped: bool) -> None:
    with using_isa(isa):
        for lengths, columns in (((5, 0, 3, 2, 4), 61), ((4, 4, 4, 4), 2), ((6, 7), 768)):
            checks.check_groups_alone(FORWARD, BACKWARD, sample(lengths, columns, torch.float32, mapped=mapped), kind)


@each_isa
def test_extreme_logits(isa: str) -> None:
    with using_isa(isa):
        checks.check_extreme_logits(FORWARD, BACKWARD)


@each_isa
def test_a_nan_stays_in_its_group(isa: str) -> None:
    with using_isa(isa):
        checks.check_a_nan_stays_in_its_group(FORWARD, BACKWARD)


@each_isa
@each_dtype
@each_kind
def test_strided_and_offset_views_give_the_same_bits(isa: str, dtype: torch.dtype, kind: int) -> None:
    given = sample((5, 2, 3), 61, dtype)
    views = given._replace(
        student=strided_rows(given.student, gap=3, offset=1), teacher=strided_rows(given.teacher, gap=8, offset=5)
    )
    with using_isa(isa):
        plain, strided = (checks.results(FORWARD, BACKWARD, each, kind) for each in (given, views))
    for name, value in plain.items():
        assert torch.equal(value, strided[name]), name


@each_kind
def test_the_result_does_not_depend_on_the_number_of_threads(kind: int) -> None:
    given = sample((300, 500), 97, torch.float32)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(checks.results(FORWARD, BACKWARD, given, kind))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@each_kind
def test_a_long_sum_keeps_its_digits(kind: int) -> None:
    """20,000 rows: added up one by one in float32, the sum would err by several hundred roundings."""
    checks.check_against_float64(FORWARD, BACKWARD, sample((20000,), 3, torch.float32, shift=3.0), kind)


@each_kind
def test_more_teachers_than_students(kind: int) -> None:
    given = sample((4, 3), 17, torch.float32, mapped=False)
    teacher = torch.cat([given.teacher, given.teacher])
    turned = given._replace(teacher=teacher, teacher_rows=int32(16, 14, 9, 2, -3, 0, 11, 999, 999))
    turned = turned._replace(student=given.student.nan_to_num(), teacher=teacher.nan_to_num())
    checks.check_against_float64(FORWARD, BACKWARD, turned, kind)


def test_a_teacher_row_past_the_end_is_an_index_error() -> None:
    student, teacher = torch.ones(3, 4), torch.ones(2, 4)
    message = r"teacher_rows\[1\] is 2; allowed: less than teacher's 2 rows, or -1"
    for call in (
        lambda: FORWARD(student, teacher, int32(0, 3), int32(0, 2, 1), None, 0),
        lambda: BACKWARD(torch.ones(1), student, teacher, int32(0, 3), int32(0, 2, 1), None, 0),
    ):
        with pytest.raises(IndexError, match=message):
            call()
    with dk.use_provider("reference"), pytest.raises(IndexError, match="teacher_rows holds 2 in group 0"):
        dk.distillation_loss(student, teacher, teacher_rows=int32(0, 2, 1))
    # Neither in a row of no group nor in a group that counts nothing is it read.
    assert FORWARD(student, teacher, int32(0, 1, 2), int32(0, 2, 9), int32(1, 0), SQUARED_ERROR).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.ones(3, 4, dtype=torch.int32)}, r"student is Int; allowed: float32, bfloat16, float16, float64"),
        ({0: torch.ones(12)}, r"student has shape \(12\); allowed: \(R, C\)"),
        ({0: torch.ones(4, 3).t()}, r"student has stride 3 in its last dimension; allowed: 1"),
        ({0: torch.ones(3, 0), 1: torch.ones(3, 0)}, r"student has shape \(3, 0\); allowed: at least one column"),
        ({1: torch.ones(3, 5)}, r"teacher has shape \(3, 5\); allowed: \(Q, C\) = \(any, 4\)"),
        ({1: torch.ones(3, 4).double()}, r"teacher is Double, student is Float; allowed: one dtype"),
        ({1: torch.ones(4, 3).t()}, r"teacher has stride 3 in its last dimension; allowed: 1"),
        ({2: int32(0, 4)}, r"rows reaches 4 at group 0; x has 3 rows"),
        ({2: int32(0, 2, 1), 4: None}, r"rows goes backwards from 2 to 1 at group 1"),
        ({3: int32(0, 1)}, r"teacher_rows has 2 numbers; student has 3 rows"),
        ({3: torch.arange(3)}, r"teacher_rows is Long; allowed: int32"),
        ({4: int32(1, 1)}, r"active has 2 numbers; rows has borders of 1 groups"),
        ({4: int32(-1)}, r"active\[0\] is -1; allowed: 0 to 2147483647"),
        ({5: 2}, r"kind is 2; allowed: 0 soft cross-entropy, 1 squared error"),
    ],
)
def test_refuses_by_name(change: dict, message: str) -> None:
    arguments = [torch.ones(3, 4), torch.ones(3, 4), int32(0, 3), int32(0, 1, 2), int32(1), 0]
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(ValueError, match="distillation_loss_fwd: " + message):
        FORWARD(*arguments)
    with pytest.raises(ValueError, match="distillation_loss_bwd: " + message):
        BACKWARD(torch.ones(1), *arguments)


def test_the_backward_refuses_another_gradient() -> None:
    arguments = (torch.ones(3, 4), torch.ones(3, 4), int32(0, 3), None, None, 0)
    with pytest.raises(ValueError, match=r"dloss has shape \(2\); allowed: \(G,\) = \(1\)"):
        BACKWARD(torch.ones(2), *arguments)
    with pytest.raises(ValueError, match=r"dloss is Half, a loss is Float"):
        BACKWARD(torch.ones(1).half(), *arguments)
