"""The gradients of the CPU's elastic_linear against float64: widths by group, activations, views, what is not read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from tests.kernels.cpu_isas import (
    cpu_op,
    double,
    each_dtype,
    each_isa,
    int32,
    one_thread,  # noqa: F401
    strided,
    using_isa,
)
from tests.kernels.test_cpu_elastic_linear import GELU, GELU_TANH, MIXED, NONE, RELU

Gradients = tuple[Tensor, Tensor, Tensor]


def check(arguments: tuple[Any, ...], isa: str) -> Gradients:
    """Runs the op poisoned and holds every gradient against float64; returns them."""
    with using_isa(isa):
        got = cpu_op("elastic_linear_bwd")(*arguments)
    wanted = reference.elastic_linear_bwd(*double(arguments))
    yardstick = reference.elastic_linear_bwd(*arguments)
    for name, one, two, three in zip(("dx", "dw", "db"), got, wanted, yardstick, strict=True):
        assert_close_to_float64(one, two, three, name=name, factor=3.0)
    return got


def uniform(
    rows: int, n: int, k: int, dtype: torch.dtype, activation: int = NONE, has_bias: bool = True
) -> tuple[Any, ...]:
    torch.manual_seed(0)
    dy, x, weight, pre = torch.randn(rows, n), torch.randn(rows, k), torch.randn(n, k) / max(1, n) ** 0.5, None
    pre = torch.randn(rows, n) if activation != NONE else torch.empty(0)
    tensors = [tensor.to(dtype) for tensor in (dy, x, weight, pre)]
    return (*tensors, int32(0, rows), None, None, 1, 1, n, k, activation, has_bias)


@each_isa
@each_dtype
@pytest.mark.parametrize(
    "size",
    [
        (1, 1, 1),  # nothing whole anywhere
        (3, 31, 33),  # one short of a panel, one past a register
        (13, 97, 61),  # primes
        (16, 15, 32),  # one row of weights more than a strip, an exact panel
        (130, 29, 65),  # two strips and a row, two panels and a column
        (128, 96, 64),  # a block of rows
        (0, 8, 8),  # no rows: gradients of the weight are zero
    ],
    ids=str,
)
def test_one_width(isa: str, dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    check(uniform(*size, dtype), isa)


@each_isa
@each_dtype
@pytest.mark.parametrize("activation", [NONE, GELU, GELU_TANH, RELU])
def test_activations(isa: str, dtype: torch.dtype, activation: int) -> None:
    _, _, db = check(uniform(17, 45, 24, dtype, activation, has_bias=activation != RELU), isa)
    assert db.shape == ((45,) if activation != RELU else (0,))


@each_isa
@each_dtype
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("units", [(1, 1), (7, 5), (16, 16)], ids=str)
def test_widths_by_group(isa: str, dtype: torch.dtype, name: str, units: tuple[int, int]) -> None:
    """What lies beyond a row's width, and rows of no group, hold NaN in all that comes in: reading them shows."""
    torch.manual_seed(0)
    borders, outs, ins = MIXED[name]
    out_unit, in_unit = units
    n, k, rows = 8 * out_unit, 6 * in_unit, borders[-1] + 2
    x = torch.full((rows, k + 3), float("nan"), dtype=dtype)
    dy, pre = (torch.full((rows, n), float("nan"), dtype=dtype) for _ in range(2))
    for begin, end, out, into in zip(borders, borders[1:], outs, ins, strict=False):
        x[begin:end, : into * in_unit] = torch.randn(end - begin, into * in_unit).to(dtype)
        for tensor in (dy, pre):
            tensor[begin:end, : out * out_unit] = torch.randn(end - begin, out * out_unit).to(dtype)
    weight = torch.randn(n + 2, k + 1).to(dtype)
    plan = (int32(*borders), int32(*outs), int32(*ins), out_unit, in_unit, n, k)
    dx, dw, db = check((dy, x, weight, pre, *plan, GELU, True), isa)
    reached = torch.zeros_like(dw)
    for begin, end, out, into in zip(borders, borders[1:], outs, ins, strict=False):
        assert (dx[begin:end, into * in_unit :] == 0).all()
        if end > begin:
            reached[: out * out_unit, : into * in_unit] = 1
    assert (dx[borders[-1] :] == 0).all()
    assert (dw[reached == 0] == 0).all()
    assert (db[max(outs) * out_unit :] == 0).all()


LONG = {
    # Three chunks of outputs and several groups of panels in dx, strips cut into blocks in dw.
    "outputs": (([0, 60, 61, 150, 200], [11, 1, 9, 4], [5, 6, 3, 4]), 100, 100),
    # Three chunks of rows in dw, group borders inside, more columns than one group of panels holds.
    "rows": (([0, 500, 501, 900, 1130], [7, 1, 6, 3], [5, 1, 3, 9]), 30, 60),
}


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("threads", [1, 2])
def test_long_sums_in_chunks(isa: str, dtype: torch.dtype, name: str, threads: int) -> None:
    torch.manual_seed(0)
    (borders, outs, ins), out_unit, in_unit = LONG[name]
    rows, n, k = borders[-1] + 10, max(outs) * out_unit, max(ins) * in_unit
    dy, x, weight = torch.randn(rows, n).to(dtype), torch.randn(rows, k).to(dtype), torch.randn(n, k).to(dtype)
    for begin, end, out, into in zip(borders, borders[1:], outs, ins, strict=False):
        dy[begin:end, out * out_unit :] = x[begin:end, into * in_unit :] = float("nan")
    dy[borders[-1] :] = x[borders[-1] :] = float("nan")
    plan = (int32(*borders), int32(*outs), int32(*ins), out_unit, in_unit, n, k)
    torch.set_num_threads(threads)
    check((dy, x, weight, torch.empty(0, dtype=dtype), *plan, NONE, True), isa)


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_small_groups(isa: str, dtype: torch.dtype) -> None:
    """Widths at random, 0 to 5 rows each: rows that both a strip and a panel reach, and rows that only one does."""
    torch.manual_seed(0)
    borders = torch.cat([torch.zeros(1), torch.randint(0, 6, (60,)).cumsum(0)]).int()
    outs, ins = torch.randint(0, 9, (60,)).int(), torch.randint(0, 8, (60,)).int()
    rows, n, k = int(borders[-1]) + 3, 8 * 11, 7 * 13
    dy, x, weight = torch.randn(rows, n).to(dtype), torch.randn(rows, k).to(dtype), torch.randn(n, k).to(dtype)
    for begin, end, out, into in zip(borders, borders[1:], outs, ins, strict=False):
        dy[begin:end, out * 11 :] = x[begin:end, into * 13 :] = float("nan")
    check((dy, x, weight, torch.empty(0, dtype=dtype), borders, outs, ins, 11, 13, n, k, NONE, True), isa)


@each_isa
@each_dtype
def test_takes_strided_and_offset_views(isa: str, dtype: torch.dtype) -> None:
    dy, x, weight, pre, *rest = uniform(19, 40, 23, dtype, GELU)
    check((strided(dy), strided(x), strided(weight, 9, 4), strided(pre, 2, 0), *rest), isa)


@each_isa
def test_the_result_does_not_depend_on_the_number_of_threads(isa: str) -> None:
    """The generic set and float64 are PyTorch's library, which promises nothing between numbers of threads."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        arguments = uniform(150, 130, 70, dtype, GELU)
        results = []
        with using_isa(isa):
            for count in (1, 1) if isa == "generic" else (1, 2, 3, 2):
                torch.set_num_threads(count)
                results.append(cpu_op("elastic_linear_bwd")(*arguments))
        for other in results[1:]:
            assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@each_isa
@each_dtype
def test_what_is_infinite_stays_in_its_group(isa: str, dtype: torch.dtype) -> None:
    """A weight beyond a row's width, and an infinite gradient or input of a narrow row, reach nothing but their own."""
    weight = torch.ones(8, 6, dtype=dtype)
    weight[3] = float("inf")
    dy, x = torch.ones(4, 8, dtype=dtype), torch.ones(4, 6, dtype=dtype)
    dy[2:, 3:] = x[2:, 3:] = float("nan")
    x[3, 0] = dy[3, 1] = float("inf")
    plan = (int32(0, 2, 4), int32(8, 3), int32(6, 3), 1, 1, 8, 6)
    with using_isa(isa):
        dx, dw, db = cpu_op("elastic_linear_bwd")(dy, x, weight, weight.new_empty(0), *plan, NONE, True)
    assert (dx[:2] == float("inf")).all()
    assert (dx[2, :3] == 3).all()
    assert torch.isinf(dw[:3, 0]).all()
    assert torch.isinf(dw[1, :3]).all()
    finite = dw.isfinite()
    finite[:3, 0] = finite[1, :3] = True
    assert finite.all()
    assert db.tolist() == [4.0, float("inf"), 4.0, 2.0, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("activation", [GELU, GELU_TANH, RELU])
@each_isa
@each_dtype
def test_slope_over_its_whole_range(isa: str, dtype: torch.dtype, activation: int) -> None:
    """As exact as PyTorch's near 0, at both ends and far out, where x^2 times 0 must not become a NaN."""
    far = torch.tensor([-1e30, -1e4, -100.0, -1e-30, 0.0, 1e-30, 100.0, 1e4, 1e30]).to(dtype)
    pre = torch.cat([torch.linspace(-15, 15, 60001).to(dtype), far[far.isfinite()]])[:, None]
    ones, one = torch.ones_like(pre), torch.ones(1, 1, dtype=dtype)
    arguments = (ones, ones, one, pre, int32(0, len(pre)), None, None, 1, 1, 1, 1, activation, False)
    with using_isa(isa):
        slope = cpu_op("elastic_linear_bwd")(*arguments)[0]
    with_far = reference.elastic_linear_bwd(*double(arguments))[0].nan_to_num(0.0)
    plain = reference.elastic_linear_bwd(*arguments)[0].nan_to_num(0.0)
    assert_close_to_float64(slope, with_far, plain, factor=2.0)


def test_long_sums_stay_as_exact_as_pytorch() -> None:
    """One chain over 3072 products errs more than twice as much as PyTorch; sums in blocks do not."""
    torch.manual_seed(0)
    for rows, n, k in ((64, 3072, 96), (3072, 64, 96)):
        arguments = uniform(rows, n, k, torch.float32)
        got = cpu_op("elastic_linear_bwd")(*arguments)
        wanted = reference.elastic_linear_bwd(*double(arguments))
        plain = reference.elastic_linear_bwd(*arguments)
        for one, two, three in zip(got, wanted, plain, strict=True):
            floor = 4 * torch.finfo(torch.float32).eps * two.abs().max()
            assert (one - two).abs().max() <= max(2 * (three - two).abs().max(), floor)


GOOD = {
    "dy": torch.ones(4, 8),
    "x": torch.ones(4, 6),
    "weight": torch.ones(8, 6),
    "pre": torch.ones(4, 8),
    "rows": int32(0, 2, 4),
    "out_counts": int32(2, 1),
    "in_counts": None,
    "out_unit": 4,
    "in_unit": 1,
    "max_out": 8,
    "max_in": 6,
    "activation": 1,
    "has_bias": True,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dy": torch.ones(4, 7)}, r"dy has shape \(4, 7\); allowed: \(T, max_out\) = \(4, 8\)"),
        ({"dy": torch.ones(4, 8).half()}, r"dy is Half, x is Float; allowed: one dtype"),
        ({"dy": torch.ones(8, 4).t()}, r"dy has stride 4 in its last dimension; allowed: 1"),
        ({"pre": torch.ones(0)}, r"pre has shape \(0\); allowed: \(T, max_out\) = \(4, 8\)"),
        ({"weight": torch.ones(6, 8).t()}, r"weight has stride 8 in its last dimension; allowed: 1"),
        ({"x": torch.ones(4, 12)[:, ::2]}, r"x has stride 2 in its last dimension"),
        ({"rows": int32(0, 3, 2)}, r"rows goes backwards from 3 to 2 at group 1"),
        ({"out_counts": int32(2, 3)}, r"out_counts\[1\] is 3; allowed: 0 to 2"),
        ({"max_out": 9}, r"max_out is 9; allowed: 0 to the weight's 8 rows"),
        ({"activation": 4}, r"activation is 4; allowed: 0 none, 1 gelu"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="elastic_linear_bwd: " + message):
        cpu_op("elastic_linear_bwd")(*{**GOOD, **change}.values())
