"""The CPU's elastic_linear against float64: widths by group, epilogues, views, and what must not be read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from tests.kernels.cpu_isas import (
    ISAS,
    cpu_op,
    double,
    each_dtype,
    each_isa,
    int32,
    one_thread,  # noqa: F401
    strided,
    using_isa,
)

NONE, GELU, GELU_TANH, RELU = range(4)


def check(arguments: tuple[Any, ...], isa: str) -> tuple[Tensor, Tensor]:
    """Runs the op poisoned and holds both results against float64; returns them."""
    with using_isa(isa):
        got = cpu_op("elastic_linear_fwd")(*arguments)
    wanted = reference.elastic_linear_fwd(*double(arguments))
    yardstick = reference.elastic_linear_fwd(*arguments)
    for name, one, two, three in zip(("y", "pre"), got, wanted, yardstick, strict=True):
        assert_close_to_float64(one, two, three, name=name)
    return got


def uniform(rows: int, n: int, k: int, dtype: torch.dtype, activation: int = NONE, save: bool = False) -> tuple:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, k), torch.randn(n, k) / max(1, k) ** 0.5, torch.randn(n)
    borders = int32(0, rows)
    return (x.to(dtype), weight.to(dtype), bias.to(dtype), None, borders, None, None, 1, 1, n, k, activation, save)


@each_isa
@each_dtype
@pytest.mark.parametrize(
    "size",
    [
        (1, 1, 1),  # nothing whole anywhere
        (3, 31, 33),  # one short of a panel, one past a register
        (13, 97, 61),  # primes
        (15, 32, 16),  # one row more than a strip, an exact panel
        (29, 65, 130),  # two strips and a row, two panels and a column
        (128, 96, 64),  # a block of rows
        (0, 8, 8),  # no rows
    ],
    ids=str,
)
def test_one_width(isa: str, dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    check(uniform(*size, dtype), isa)


@each_isa
@each_dtype
@pytest.mark.parametrize("activation", [NONE, GELU, GELU_TANH, RELU])
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "alone"])
def test_epilogues(isa: str, dtype: torch.dtype, activation: int, with_residual: bool) -> None:
    arguments = list(uniform(17, 45, 24, dtype, activation, save=True))
    if with_residual:
        arguments[3] = torch.randn(17, 50).to(dtype)  # more columns than are used
    y, pre = check(tuple(arguments), isa)
    assert y.shape == (17, 45)
    assert pre.shape == ((17, 45) if activation != NONE else (0,))


MIXED = {
    "widest first": ([0, 5, 9, 12], [8, 4, 1], [6, 6, 6]),
    "ragged in": ([0, 5, 9, 12], [8, 8, 8], [6, 3, 1]),
    "not sorted": ([0, 3, 20, 36], [2, 8, 5], [5, 1, 6]),
    "a group without outputs": ([0, 4, 6, 9], [8, 0, 3], [6, 6, 6]),
    "a group without inputs": ([0, 4, 6, 9], [8, 4, 3], [6, 0, 2]),
    "an empty group": ([0, 4, 4, 9], [8, 7, 3], [6, 5, 2]),
    "equal neighbours": ([0, 4, 7, 9], [5, 5, 5], [6, 6, 6]),
    "rows of no group": ([0, 4, 6], [8, 4], [6, 3]),
}


@each_isa
@each_dtype
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("units", [(1, 1), (7, 5), (16, 16)], ids=str)
def test_widths_by_group(isa: str, dtype: torch.dtype, name: str, units: tuple[int, int]) -> None:
    """Inputs beyond a row's width and rows of no group hold NaN: reading them shows."""
    torch.manual_seed(0)
    borders, outs, ins = MIXED[name]
    out_unit, in_unit = units
    n, k, rows = 8 * out_unit, 6 * in_unit, borders[-1] + 2
    x = torch.full((rows, k + 3), float("nan"), dtype=dtype)
    residual = torch.full((rows, n), float("nan"), dtype=dtype)
    for begin, end, out, into in zip(borders, borders[1:], outs, ins, strict=False):
        x[begin:end, : into * in_unit] = torch.randn(end - begin, into * in_unit).to(dtype)
        residual[begin:end, : out * out_unit] = torch.randn(end - begin, out * out_unit).to(dtype)
    weight, bias = torch.randn(n + 2, k + 1).to(dtype), torch.randn(n + 2).to(dtype)
    plan = (int32(*borders), int32(*outs), int32(*ins), out_unit, in_unit, n, k)
    y, pre = check((x, weight, bias, residual, *plan, GELU, True), isa)
    for begin, end, out in zip(borders, borders[1:], outs, strict=False):
        assert (y[begin:end, out * out_unit :] == 0).all()
        assert (pre[begin:end, out * out_unit :] == 0).all()
    assert (y[borders[-1] :] == 0).all()


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_groups_that_cross_blocks_of_rows(isa: str, dtype: torch.dtype, threads: int) -> None:
    """A long k makes a block of 168 rows: 500 rows are three, cut inside groups; two threads cut them finer."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(510, 1100).to(dtype), torch.randn(80, 1100).to(dtype), torch.randn(80).to(dtype)
    x[500:] = float("nan")
    plan = (int32(0, 100, 101, 330, 500), int32(5, 1, 3, 4), int32(11, 7, 10, 3), 16, 100, 80, 1100)
    torch.set_num_threads(threads)
    check((x, weight, bias, None, *plan, GELU, True), isa)


@each_isa
@each_dtype
def test_takes_strided_and_offset_views(isa: str, dtype: torch.dtype) -> None:
    x, weight, bias, _, *rest = uniform(19, 40, 23, dtype, GELU, save=True)
    residual = torch.randn(19, 40).to(dtype)
    check((strided(x), strided(weight, 9, 4), strided(bias), strided(residual, 2, 0), *rest), isa)


@each_isa
def test_the_result_does_not_depend_on_the_number_of_threads(isa: str) -> None:
    arguments = uniform(150, 130, 70, torch.float32)
    results = []
    with using_isa(isa):
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(cpu_op("elastic_linear_fwd")(*arguments)[0])
    assert torch.equal(*results)


@each_isa
def test_an_infinite_weight_outside_a_width_does_not_leak(isa: str) -> None:
    """The odd last input of a narrow group is paired with 0 in the bfloat16 kernels; 0 times infinity would be NaN."""
    weight = torch.ones(8, 6, dtype=torch.bfloat16)
    weight[:, 3] = float("inf")
    x = torch.ones(4, 6, dtype=torch.bfloat16)
    plan = (int32(0, 2, 4), None, int32(4, 3), 1, 1, 8, 6)
    with using_isa(isa):
        y, _ = cpu_op("elastic_linear_fwd")(x, weight, None, None, *plan, NONE, False)
    assert (y[:2] == float("inf")).all()
    assert (y[2:] == 3).all()


@pytest.mark.parametrize("activation", [GELU, GELU_TANH])
@each_isa
def test_activation_over_its_whole_range(isa: str, activation: int) -> None:
    """As exact as PyTorch's near 0, at both ends and far out on the negative side."""
    x = torch.cat([torch.linspace(-15, 15, 60001), torch.tensor([-1e30, -100.0, -1e-30, 0.0, 1e-30, 100.0, 1e30])])
    arguments = (x[:, None], torch.ones(1, 1), None, None, int32(0, len(x)), None, None, 1, 1, 1, 1, activation, False)
    with using_isa(isa):
        y = cpu_op("elastic_linear_fwd")(*arguments)[0][:, 0]
    want = reference.elastic_linear_fwd(*double(arguments))[0][:, 0]
    torch_error = (reference.elastic_linear_fwd(*arguments)[0][:, 0].double() - want).abs()
    error = (y.double() - want).abs()
    scale = x.double().abs().clamp(1e-30)
    assert (error / scale).max() <= max(2 * (torch_error / scale).max().item(), 1.2e-7)
    if activation == GELU:
        tail = (x > -5) & (x < -0.01)
        assert (error / want.abs())[tail].max() < 1e-6  # PyTorch's own relative error here is above 1e-2


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "generic"])  # there PyTorch's product rounds before
def test_short_gelu_of_bfloat16_keeps_its_digits(isa: str) -> None:
    """The shorter fits for bfloat16 add less than a tenth to its own rounding, far out on the negative side too."""
    x = torch.cat([torch.linspace(-12, -0.01, 5001), torch.linspace(0.01, 15, 3001)]).bfloat16()
    arguments = (x[:, None], torch.ones(1, 1).bfloat16(), None, None, int32(0, len(x)), None, None, 1, 1, 1, 1, GELU)
    with using_isa(isa):
        y = cpu_op("elastic_linear_fwd")(*arguments, False)[0][:, 0].double()
    wide = x.double()
    want = wide * 0.5 * torch.erfc(-wide / 2**0.5)
    assert ((y - want).abs() / want.abs()).max() <= 1.1 * 2.0**-8


GOOD = {
    "x": torch.ones(4, 6),
    "weight": torch.ones(8, 6),
    "bias": torch.ones(8),
    "residual": None,
    "rows": int32(0, 2, 4),
    "out_counts": int32(2, 1),
    "in_counts": None,
    "out_unit": 4,
    "in_unit": 1,
    "max_out": 8,
    "max_in": 6,
    "activation": 0,
    "save": False,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(6, 8).t()}, r"weight has stride 8 in its last dimension; allowed: 1"),
        ({"weight": torch.ones(8, 6).half()}, r"weight is Half, x is Float; allowed: one dtype"),
        ({"x": torch.ones(4, 12)[:, ::2]}, r"x has stride 2 in its last dimension"),
        ({"rows": int32(0, 3, 2)}, r"rows goes backwards from 3 to 2 at group 1"),
        ({"rows": int32(0, 2, 5)}, r"rows reaches 5 at group 1; x has 4 rows"),
        ({"rows": int32(1, 2, 4)}, r"rows starts at 1; allowed: 0"),
        ({"rows": torch.tensor([0, 2, 4])}, r"rows is Long; allowed: int32"),
        ({"out_counts": int32(2, 3)}, r"out_counts\[1\] is 3; allowed: 0 to 2"),
        ({"out_counts": int32(-1, 1)}, r"out_counts\[0\] is -1; allowed: 0 to 2"),
        ({"out_counts": int32(1)}, r"out_counts has 1 numbers; rows has borders of 2 groups"),
        ({"max_out": 9}, r"max_out is 9; allowed: 0 to the weight's 8 rows"),
        ({"max_in": 7}, r"max_in is 7; allowed: 0 to the weight's 6 and x's 6 columns"),
        ({"activation": 4}, r"activation is 4; allowed: 0 none, 1 gelu"),
        ({"residual": torch.ones(4, 7)}, r"residual has 7 columns; allowed: at least max_out = 8"),
        ({"bias": torch.ones(7)}, r"bias has shape \(7\); allowed: \(N,\) = \(8\)"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="elastic_linear_fwd: " + message):
        cpu_op("elastic_linear_fwd")(*{**GOOD, **change}.values())


def test_long_sums_stay_as_exact_as_pytorch() -> None:
    """One chain over 3072 products errs more than twice as much as PyTorch; sums in blocks do not."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, 3072), torch.randn(96, 3072) * 0.05
    exact = x.double() @ weight.double().t()
    plain = (torch.nn.functional.linear(x, weight).double() - exact).abs().max()
    with dk.use_provider("cpu"):
        ours = (dk.elastic_linear(x, weight).double() - exact).abs().max()
    floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    assert ours <= max(2 * plain, floor)
