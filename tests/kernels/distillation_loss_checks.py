"""What is asked of every provider of ``distillation_loss``: CPU, Triton and CUDA tests call the same checks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from dynabert_kernels.testing.inputs import poisoned_allocations

Op = Callable[..., Tensor]
SOFT_CROSS_ENTROPY, SQUARED_ERROR = 0, 1
KINDS = {"soft cross-entropy": SOFT_CROSS_ENTROPY, "squared error": SQUARED_ERROR}

# What the shape covers: rows of each group, columns. The fourth group skips the layer (where there are four).
SHAPES: dict[tuple[tuple[int, ...], int], str] = {
    ((1,), 1): "one of all: a softmax of one class",
    ((), 3): "no group, only rows past the last border",
    ((0, 0), 5): "groups without rows",
    ((4, 4, 4, 4), 2): "logits of two classes, four widths of one batch",
    ((3, 0, 5, 2, 1), 3): "an empty group; logits of three classes",
    ((5, 2, 3), 61): "a prime: whole registers and a rest",
    ((17, 20), 64): "registers exactly",
    ((9, 1), 129): "one past a warp's four",
    ((6, 7), 768): "BERT-base",
    ((3,), 1025): "one past 1,024 columns: other tiles, other kernels",
    ((1, 2), 4096): "the widest row of the CUDA kernels",
}


class Sample(NamedTuple):
    """Arguments of the op and a gradient of its result."""

    student: Tensor
    teacher: Tensor
    rows: Tensor
    teacher_rows: Tensor | None
    active: Tensor | None
    dloss: Tensor

    def inputs(self, kind: int) -> tuple[Any, ...]:
        """What the forward op takes."""
        return (*self[:-1], kind)

    def double(self) -> Sample:
        """The same numbers in float64."""
        return self._replace(**{name: getattr(self, name).double() for name in ("student", "teacher", "dloss")})


def sample(
    lengths: tuple[int, ...],
    columns: int,
    dtype: torch.dtype,
    *,
    mapped: bool = True,
    device: torch.device | str = "cpu",
    shift: float = 0.0,
    scale: float = 1.0,
) -> Sample:
    """Groups of `lengths` rows and two rows of no group. What must not be read holds NaN.

    Mapped: the groups share the teacher's rows, every fifth row counts nothing, and one teacher row has no student.
    Otherwise a student's row is its teacher's, and group 3 (where there are four groups) has the number 0.
    """
    generator = torch.Generator().manual_seed(columns)
    count = sum(lengths) + 2
    teachers = max([*lengths, 1]) + 1 if mapped else count + 1

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale + shift).to(dtype).to(device)

    student, teacher = normal(count, columns), normal(teachers, columns)
    borders = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    counts = torch.ones(count, dtype=torch.bool)
    counts[-2:] = False
    partners = torch.arange(count, dtype=torch.int32)
    active = None
    if mapped:
        for begin, length in zip(borders.tolist(), lengths, strict=False):
            partners[begin : begin + length] = torch.arange(length, dtype=torch.int32)
        partners[4::5] = -1
        counts &= partners >= 0
        partners[-2:] = 2**31 - 1  # of no group: read by nobody
    elif len(lengths) > 3:
        active = torch.tensor([12, 1, 6, 0, 3][: len(lengths)], dtype=torch.int32)
        counts[borders[3] : borders[4]] = False
    student[(~counts).to(device)] = float("nan")
    asked = torch.zeros(teachers, dtype=torch.bool)
    asked[partners[counts].long()] = True
    teacher[(~asked).to(device)] = float("nan")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    dloss = torch.randn(len(lengths), generator=generator, dtype=torch.float64).to(wide)
    return Sample(
        student,
        teacher,
        borders.to(device),
        partners.to(device) if mapped else None,
        None if active is None else active.to(device),
        dloss.to(device),
    )


def results(forward: Op, backward: Op, given: Sample, kind: int) -> dict[str, Tensor]:
    """Everything a provider returns, from allocations that hold NaN."""
    with poisoned_allocations():
        loss = forward(*given.inputs(kind))
        dstudent = backward(given.dloss, *given.inputs(kind))
    return {"loss": loss, "dstudent": dstudent}


def check_against_float64(forward: Op, backward: Op, given: Sample, kind: int) -> None:
    """Loss and gradient err no more than the definition does in the same dtype."""
    definition = (reference.distillation_loss_fwd, reference.distillation_loss_bwd)
    ours = results(forward, backward, given, kind)
    exact, yardstick = (results(*definition, each, kind) for each in (given.double(), given))
    for name, factor in (("loss", 2.0), ("dstudent", 3.0)):
        assert_close_to_float64(ours[name], exact[name], yardstick[name], factor=factor, name=name)


def check_groups_alone(forward: Op, backward: Op, given: Sample, kind: int) -> None:
    """Each group's loss and gradient are bit for bit what they are without the other groups."""
    together = results(forward, backward, given, kind)
    borders = given.rows.tolist()
    for group, (begin, end) in enumerate(pairwise(borders)):
        part = slice(begin, end)
        alone = Sample(
            given.student[part],
            given.teacher if given.teacher_rows is not None else given.teacher[part],
            torch.tensor([0, end - begin], dtype=torch.int32, device=given.rows.device),
            None if given.teacher_rows is None else given.teacher_rows[part],
            None if given.active is None else given.active[group : group + 1],
            given.dloss[group : group + 1],
        )
        own = results(forward, backward, alone, kind)
        assert torch.equal(own["loss"][0], together["loss"][group]), group
        assert torch.equal(own["dstudent"], together["dstudent"][part]), group


def check_extreme_logits(forward: Op, backward: Op, device: torch.device | str = "cpu") -> None:
    """Huge logits, and -inf in either network or both, give no NaN; what cannot be is infinite."""
    inf = float("inf")
    student = torch.tensor(
        [
            [3e4, -3e4, 0.0],
            [-inf, 1.0, 2.0],
            [0.5, 1.0, -inf],
            [-inf, 0.0, 0.0],
            [1e30, 1e30, -1e30],
            [0.0, 1.0, 2.0],
        ],
        device=device,
    )
    teacher = torch.tensor(
        [
            [-3e4, 3e4, 0.0],
            [-inf, 0.5, -1.0],
            [-200.0, -inf, 1.0],
            [0.0, 0.0, -inf],
            [1e30, 0.0, -inf],
            [-inf, -inf, 7.0],
        ],
        device=device,
    )
    count = student.shape[0]
    each = torch.arange(count + 1, dtype=torch.int32, device=device)
    given = Sample(student, teacher, each, None, None, torch.ones(count, device=device))
    ours = results(forward, backward, given, SOFT_CROSS_ENTROPY)
    # A gap of 6e4 between the teacher's class and the student's; twice a class that the student rules out.
    assert ours["loss"][0] == 6e4
    assert ours["loss"].isinf().tolist() == [False, False, True, True, False, False]
    assert not ours["loss"].isnan().any()
    assert not ours["dstudent"].isnan().any()
    check_against_float64(forward, backward, given, SOFT_CROSS_ENTROPY)


def check_a_nan_stays_in_its_group(forward: Op, backward: Op, device: torch.device | str = "cpu") -> None:
    """A NaN in a row that counts shows in its group's loss and its row's gradient, and nowhere else."""
    for kind in KINDS.values():
        for who in ("student", "teacher"):
            given = sample((3, 4), 37, torch.float32, mapped=False, device=device)
            getattr(given, who)[4, 35] = float("nan")
            ours = results(forward, backward, given, kind)
            assert ours["loss"].isnan().tolist() == [False, True]
            assert ours["dstudent"].isnan().any(1).tolist() == [row == 4 for row in range(9)]
