"""The Triton provider of ``distillation_loss``: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dynabert_kernels.testing.inputs import DTYPES, strided_rows
from dynabert_kernels.triton.distillation_loss import distillation_loss_bwd, distillation_loss_fwd, supports
from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED
from dynabert_kernels.triton.tiles import GROUP_SUM_TILE, MAX_ROW_COLUMNS, row_pair_tile
from tests.kernels import distillation_loss_checks as checks
from tests.kernels.distillation_loss_checks import KINDS, SHAPES, SQUARED_ERROR, Sample, sample

DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
BOTH = (distillation_loss_fwd, distillation_loss_bwd)

pytestmark = pytest.mark.skipif(
    IMPORT_ERROR is not None or not (INTERPRETED or torch.cuda.is_available()),
    reason=IMPORT_ERROR or "no CUDA device, and TRITON_INTERPRET is set to 0",
)
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
each_map = pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "in order"])


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@each_kind
@each_map
def test_matches_float64(dtype: torch.dtype, kind: int, mapped: bool) -> None:
    for lengths, columns in SHAPES:
        checks.check_against_float64(*BOTH, sample(lengths, columns, dtype, mapped=mapped, device=DEVICE), kind)


@pytest.mark.skipif(not INTERPRETED, reason="float64 is for gradcheck in the interpreter; a GPU refuses it by name")
@each_kind
def test_float64_is_computed_in_float64(kind: int) -> None:
    checks.check_against_float64(*BOTH, sample((5, 2, 3), 61, torch.float64), kind)


@each_kind
@each_map
def test_a_group_gets_what_it_gets_alone(kind: int, mapped: bool) -> None:
    for lengths, columns in (((5, 0, 3, 2, 4), 61), ((70, 4, 90, 4), 2), ((2, 3), 768)):
        given = sample(lengths, columns, torch.float32, mapped=mapped, device=DEVICE)
        checks.check_groups_alone(*BOTH, given, kind)


def test_extreme_logits() -> None:
    checks.check_extreme_logits(*BOTH, DEVICE)


def test_a_nan_stays_in_its_group() -> None:
    checks.check_a_nan_stays_in_its_group(*BOTH, DEVICE)


@each_kind
def test_a_group_of_several_blocks(kind: int) -> None:
    """More rows than the program that adds them holds at a time, and borders inside a block."""
    lengths = (GROUP_SUM_TILE.block_t + 7, 3, 2 * GROUP_SUM_TILE.block_t)
    checks.check_against_float64(*BOTH, sample(lengths, 2, torch.float32, device=DEVICE), kind)


@each_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
def test_strided_rows_give_the_same_bits(kind: int, dtype: torch.dtype) -> None:
    # The gaps hold NaN. In the interpreter the order of additions does not depend on strides; on a GPU the layout may.
    given = sample((5, 2, 3), 61, dtype, device=DEVICE)
    views = given._replace(
        student=strided_rows(given.student, gap=3, offset=1), teacher=strided_rows(given.teacher, gap=8, offset=5)
    )
    checks.check_against_float64(*BOTH, views, kind)
    if INTERPRETED:
        plain, strided = (checks.results(*BOTH, each, kind) for each in (given, views))
        for name, value in plain.items():
            assert torch.equal(value, strided[name]), name


@each_kind
def test_a_broadcast_teacher_is_read_with_stride_zero(kind: int) -> None:
    given = sample((5, 2), 61, torch.float32, mapped=False, device=DEVICE)
    checks.check_against_float64(*BOTH, given._replace(teacher=given.teacher[:1].expand(9, 61)), kind)


def test_borders_past_the_rows_read_nothing() -> None:
    """A plan that does not fit is the caller's fault, and still stays inside the tensors."""
    given = sample((3, 2), 9, torch.float32, mapped=False, device=DEVICE)
    beyond = given._replace(student=given.student[:4], rows=torch.tensor([0, 3, 900], dtype=torch.int32, device=DEVICE))
    loss = distillation_loss_fwd(*beyond.inputs(SQUARED_ERROR))
    wanted = (given.student[3:4] - given.teacher[3:4]).square().sum()
    torch.testing.assert_close(loss[1], wanted)


def test_tiles_hold_a_row_and_keep_registers_bounded() -> None:
    for columns in (1, 2, 61, 128, 129, 768, 1024, 1025, 4097, MAX_ROW_COLUMNS):
        tile = row_pair_tile(columns)
        assert columns <= tile.block_c < 2 * columns + 1
        assert tile.block_t >= 1
        assert tile.block_t & (tile.block_t - 1) == 0
        assert tile.block_t * tile.block_c <= 16 * 32 * tile.num_warps  # 16 elements a thread, of each row


# What it refuses.


def test_supports_names_what_it_refuses() -> None:
    given = sample((3, 2), 61, torch.float32, device=DEVICE)
    assert supports(*given.inputs(0)) is None
    assert supports(given.dloss, *given.inputs(0)) is None
    turned = given._replace(teacher=given.teacher.t().contiguous().t())
    assert "its last stride must be 1" in str(supports(*turned.inputs(0)))
    assert "dtype is torch.int32" in str(supports(*given._replace(student=given.student.int()).inputs(0)))
    wide = given._replace(student=given.student.new_empty(1, MAX_ROW_COLUMNS + 1))
    assert f"1 to {MAX_ROW_COLUMNS} columns" in str(supports(given.dloss, *wide.inputs(0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: {"student": g.student[0]}, r"student has the wrong shape; got \(61,\); allowed: \(T, C\)"),
        (lambda g: {"teacher": g.teacher[:, 1:]}, r"teacher does not fit; got 60 columns"),
        (lambda g: {"teacher": g.teacher.half()}, r"teacher does not fit; .*float16"),
        (lambda g: {"teacher_rows": None}, r"teacher has too few rows; got 4; .* at least student's 7"),
        (lambda g: {"rows": g.rows.long()}, r"rows does not fit; .*allowed: torch.int32"),
        (lambda g: {"teacher_rows": g.teacher_rows[1:]}, r"teacher_rows has the wrong shape; got \(6,\)"),
        (lambda g: {"active": g.rows}, r"active has the wrong shape; got \(3,\)"),
        (lambda g: {"student": g.student[:, :0], "teacher": g.teacher[:, :0]}, r"C is out of range; got 0"),
    ],
)
def test_errors_of_the_launchers(change: Callable[[Sample], dict], message: str) -> None:
    given = sample((3, 2), 61, torch.float32, device=DEVICE)
    wrong = given._replace(**change(given))
    with pytest.raises(ValueError, match=r"distillation_loss_fwd \(triton\): " + message):
        distillation_loss_fwd(*wrong.inputs(0))
    with pytest.raises(ValueError, match=r"distillation_loss_bwd \(triton\): " + message):
        distillation_loss_bwd(wrong.dloss, *wrong.inputs(0))


def test_the_backward_refuses_another_gradient() -> None:
    given = sample((3, 2), 61, torch.bfloat16, device=DEVICE)
    with pytest.raises(ValueError, match=r"dloss does not fit; .*allowed: torch.float32"):
        distillation_loss_bwd(given.dloss.bfloat16(), *given.inputs(0))
    with pytest.raises(ValueError, match=r"dloss has the wrong shape; got \(1,\); allowed: \(2,\), that is G"):
        distillation_loss_bwd(given.dloss[:1], *given.inputs(0))
