"""``distillation_loss`` itself: its definition by loops, its gradient, the contract with PyTorch, on each provider."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.ops import providers
from dynabert_kernels.triton.environment import INTERPRETED
from tests.kernels import distillation_loss_checks as checks
from tests.kernels.cases import PLANS, plan_of
from tests.kernels.distillation_loss_checks import KINDS, sample

NAMED = ["soft_cross_entropy", "squared_error"]
each_name = pytest.mark.parametrize("kind", NAMED)
# Those that compute on the CPU here, Triton in its interpreter.
HERE = [
    name
    for name in providers.registered()["distillation_loss_fwd"]
    if name in ("reference", "cpu") or (name == "triton" and INTERPRETED)
]
each_provider = pytest.mark.parametrize("provider", HERE)
ROWS = torch.tensor([0, 2, 2, 5, 6], dtype=torch.int32)
MAP = torch.tensor([2, 0, 1, -1, 0, 1, 99, -7], dtype=torch.int32)
ACTIVE = torch.tensor([3, 1, 12, 0], dtype=torch.int32)


def tensors(columns: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(n, columns, generator=generator, dtype=torch.float64).to(dtype) for n in (8, 3))
    return student.requires_grad_(), teacher


def test_the_definition_by_loops() -> None:
    student, teacher = (t.detach().tolist() for t in tensors())
    for name, active in (("all", None), ("some", ACTIVE)):
        exact = {"soft_cross_entropy": [0.0] * 4, "squared_error": [0.0] * 4}
        for group, (begin, end) in enumerate(zip(ROWS.tolist(), ROWS.tolist()[1:], strict=False)):
            for row in range(begin, end):
                if int(MAP[row]) < 0 or (active is not None and int(active[group]) == 0):
                    continue
                s, t = student[row], teacher[int(MAP[row])]
                exact["squared_error"][group] += sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
                log_s, log_t = (math.log(sum(math.exp(v) for v in row)) for row in (s, t))
                exact["soft_cross_entropy"][group] -= sum(
                    math.exp(b - log_t) * (a - log_s) for a, b in zip(s, t, strict=True)
                )
        for kind, wanted in exact.items():
            with dk.use_provider("reference"):
                got = dk.distillation_loss(*tensors(), rows=ROWS, teacher_rows=MAP, active=active, kind=kind)
            torch.testing.assert_close(got.tolist(), wanted, rtol=1e-12, atol=0, msg=name)


def test_the_mean_is_what_pytorch_calls_mean() -> None:
    """The formulas of the docstring."""
    student, teacher = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    total = dk.distillation_loss(student, teacher, kind="squared_error")
    torch.testing.assert_close(total[0] / (6 * 4), F.mse_loss(student, teacher))
    total = dk.distillation_loss(student, teacher)
    torch.testing.assert_close(total[0] / 6, F.cross_entropy(student, teacher.softmax(1)))


@pytest.mark.parametrize("name", PLANS)
@each_name
def test_the_written_backward_is_autograd_of_the_definition(name: str, kind: str) -> None:
    torch.manual_seed(2)
    plan, _ = plan_of(name, row_bucket=4)
    layer = plan.layer(0)
    student = torch.randn(plan.num_rows, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 5, dtype=torch.float64)
    partners = (torch.arange(plan.num_rows) % 5 - 1).to(torch.int32)
    code = NAMED.index(kind)
    expected = reference.distillation_loss_fwd(student, teacher, layer.rows, partners, layer.heads, code)
    weights = torch.randn_like(expected)
    wanted = torch.zeros_like(student)
    if expected.requires_grad:  # where nothing counts the definition never touches the student
        (wanted,) = torch.autograd.grad((expected * weights).sum(), student)
    with dk.use_provider("reference"):
        loss = dk.distillation_loss(
            student, teacher, rows=layer.rows, teacher_rows=partners, active=layer.heads, kind=kind
        )
        (got,) = torch.autograd.grad((loss * weights).sum(), student)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_the_definition_takes_extreme_logits_and_keeps_a_nan() -> None:
    definition = (reference.distillation_loss_fwd, reference.distillation_loss_bwd)
    checks.check_extreme_logits(*definition)
    checks.check_a_nan_stays_in_its_group(*definition)


@each_provider
@each_name
def test_gradcheck(provider: str, kind: str) -> None:
    student, teacher = tensors(3)
    for partners, active in ((MAP, None), (None, ACTIVE)):
        frozen = teacher if partners is not None else student.detach().flip(0)

        def op(
            student: Tensor, frozen: Tensor = frozen, partners: Tensor | None = partners, active: Tensor | None = active
        ) -> Tensor:
            return dk.distillation_loss(student, frozen, rows=ROWS, teacher_rows=partners, active=active, kind=kind)

        with dk.use_provider(provider):
            assert torch.autograd.gradcheck(op, (student,))


@each_provider
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_opcheck(provider: str, kind: int) -> None:
    student, teacher = tensors(dtype=torch.float32)
    forward, backward = torch.ops.dynabert.distillation_loss_fwd, torch.ops.dynabert.distillation_loss_bwd
    dloss = torch.randn(4)
    with dk.use_provider(provider):
        for partners, active in ((MAP, None), (MAP, ACTIVE), (None, ACTIVE)):
            frozen = teacher if partners is not None else student.detach().flip(0)
            torch.library.opcheck(forward.default, (student, frozen, ROWS, partners, active, kind))
            torch.library.opcheck(backward.default, (dloss, student.detach(), frozen, ROWS, partners, active, kind))


@each_provider
def test_a_summed_loss_and_a_part_of_it_go_backward(provider: str) -> None:
    """sum() delivers a gradient of stride 0; a loss that nobody asks for, none."""
    student, teacher = tensors(dtype=torch.float32)
    with dk.use_provider(provider):
        loss = dk.distillation_loss(student, teacher, rows=ROWS, teacher_rows=MAP)
        (together,) = torch.autograd.grad(loss.sum(), student)
        loss = dk.distillation_loss(student, teacher, rows=ROWS, teacher_rows=MAP)
        (third,) = torch.autograd.grad(loss[2], student)
    assert (third[2:5] == together[2:5]).all()
    assert third[:2].abs().max() == 0
    assert third[5:].abs().max() == 0


@each_provider
@each_name
def test_nothing_at_all_is_a_loss_of_zero(provider: str, kind: str) -> None:
    nobody, teacher = torch.zeros(0, 3, requires_grad=True), torch.ones(2, 3)
    with dk.use_provider(provider):
        for borders, given in (([0], teacher), ([0, 0, 0], teacher[:0])):
            loss = dk.distillation_loss(nobody, given, rows=torch.tensor(borders, dtype=torch.int32), kind=kind)
            assert loss.tolist() == [0.0] * (len(borders) - 1)
            (gradient,) = torch.autograd.grad(loss.sum(), nobody)
            assert gradient.shape == (0, 3)


@each_name
def test_compiles_whole_and_does_not_recompile_for_a_new_plan(kind: str) -> None:
    torch._dynamo.reset()
    compiles = 0

    def counting_backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        nonlocal compiles
        compiles += 1
        return graph.forward

    def call(student: Tensor, teacher: Tensor, partners: Tensor, plan: dk.Plan) -> Tensor:
        layer = plan.layer(0)
        return dk.distillation_loss(
            student, teacher, rows=layer.rows, teacher_rows=partners, active=layer.heads, kind=kind
        )

    compiled = torch.compile(call, backend=counting_backend, fullgraph=True, dynamic=True)
    names = ["mixed, widest first", "mixed, not sorted", "a group skips the layer", "an empty group"]
    for name in [*names, *names]:
        plan, _ = plan_of(name, row_bucket=4)
        student, teacher = torch.randn(plan.num_rows, 6), torch.randn(5, 6)
        partners = (torch.arange(plan.num_rows) % 6 - 1).to(torch.int32)
        arguments = (student, teacher, partners, plan)
        torch.testing.assert_close(compiled(*arguments), call(*arguments))
    assert compiles <= 2, f"{compiles} graphs for {len(names)} plans"
    torch._dynamo.reset()


@each_name
def test_compiled_training_gives_the_same_gradient(kind: str) -> None:
    torch._dynamo.reset()

    def step(student: Tensor, teacher: Tensor) -> Tensor:
        loss = dk.distillation_loss(student, teacher, rows=ROWS, teacher_rows=MAP, active=ACTIVE, kind=kind)
        return (loss * torch.arange(1.0, 5.0)).sum() / 7

    student, teacher = tensors(dtype=torch.float32)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    (got,) = torch.autograd.grad(compiled(student, teacher), student)
    (wanted,) = torch.autograd.grad(step(student, teacher), student)
    assert torch.equal(got, wanted)
    torch._dynamo.reset()


def test_without_borders_and_map_all_rows_are_one_group() -> None:
    given = sample((4, 3), 9, torch.float32, mapped=False)
    student = given.student.nan_to_num()
    whole = dk.distillation_loss(student, given.teacher.nan_to_num(), kind="squared_error")
    torch.testing.assert_close(whole[0], (student - given.teacher.nan_to_num()[:9]).square().sum())
    assert whole.shape == (1,)
