"""The CPU's add_layer_norm, forward and backward, against float64."""

from __future__ import annotations

import pytest
import torch

from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from tests.kernels.cpu_isas import (
    cpu_op,
    each_dtype,
    each_isa,
    one_thread,  # noqa: F401
    strided,
    using_isa,
)

SHAPES = [
    (1, 1),  # nothing to normalise
    (3, 7),  # less than a register
    (5, 97),  # a prime: whole registers and a rest
    (2, 64),  # four registers of AVX-512, exactly one turn of the unrolled loop
    (33, 384),  # MiniLM
    (70, 768),  # BERT-base; more than one chunk of rows in the backward
    (0, 16),  # no rows
]


@each_isa
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "alone"])
def test_matches_float64(isa: str, dtype: torch.dtype, shape: tuple[int, int], with_residual: bool) -> None:
    torch.manual_seed(0)
    x, residual, dy = (torch.randn(shape).to(dtype) for _ in range(3))
    weight, bias = (torch.randn(shape[1]).to(dtype) for _ in range(2))
    other = residual if with_residual else None
    with using_isa(isa):
        y, mean, rstd = cpu_op("add_layer_norm_fwd")(x, other, weight, bias, 1e-5)
        gradients = cpu_op("add_layer_norm_bwd")(dy, x, other, weight, mean, rstd)
    wide = None if other is None else other.double()
    y64, *statistics64 = reference.add_layer_norm_fwd(x.double(), wide, weight.double(), bias.double(), 1e-5)
    same = reference.add_layer_norm_fwd(x, other, weight, bias, 1e-5)
    assert_close_to_float64(y, y64, same[0], name="y")
    for name, value, value64, value_torch in zip(("mean", "rstd"), (mean, rstd), statistics64, same[1:], strict=True):
        assert_close_to_float64(value, value64, value_torch, name=name)
    if shape[1] == 1:
        return  # the true gradient is 0 and rstd is 300: only rounding, magnified
    gradients64 = reference.add_layer_norm_bwd(dy.double(), x.double(), wide, weight.double(), *statistics64)
    gradients_torch = reference.add_layer_norm_bwd(dy, x, other, weight, *same[1:])
    for name, got, want, yardstick in zip(("dx", "dw", "db"), gradients, gradients64, gradients_torch, strict=True):
        assert_close_to_float64(got, want, yardstick, name=name)


@each_isa
def test_takes_strided_and_offset_views(isa: str) -> None:
    torch.manual_seed(0)
    x, residual, dy = (torch.randn(9, 37) for _ in range(3))
    weight, bias = torch.randn(37), torch.randn(37)
    with using_isa(isa):
        plain = cpu_op("add_layer_norm_fwd")(x, residual, weight, bias, 1e-5)
        views = cpu_op("add_layer_norm_fwd")(strided(x), strided(residual, 5, 2), strided(weight), strided(bias), 1e-5)
        back = cpu_op("add_layer_norm_bwd")(dy, x, residual, weight, *plain[1:])
        back_views = cpu_op("add_layer_norm_bwd")(
            strided(dy), strided(x), strided(residual, 5, 2), strided(weight), *plain[1:]
        )
    for one, other in zip((*plain, *back), (*views, *back_views), strict=True):
        assert torch.equal(one, other)


@each_isa
def test_the_gradient_does_not_depend_on_the_number_of_threads(isa: str) -> None:
    torch.manual_seed(0)
    x, dy, weight = torch.randn(300, 33), torch.randn(300, 33), torch.randn(33)
    results = []
    with using_isa(isa):
        _, mean, rstd = cpu_op("add_layer_norm_fwd")(x, None, weight, weight, 1e-5)
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(cpu_op("add_layer_norm_bwd")(dy, x, None, weight, mean, rstd))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_sums_too_large_to_be_kept_between_calls_are_the_same() -> None:
    """Above 4 MB a call has memory of its own for the sums of its chunks; halves of this one's columns use the kept."""
    torch.manual_seed(0)
    rows, columns, half = 33, 131075, 65536
    x, dy = (torch.randn(rows, columns, dtype=torch.float64) for _ in range(2))
    weight, mean = torch.randn(columns, dtype=torch.float64), torch.randn(rows, dtype=torch.float64)
    backward = cpu_op("add_layer_norm_bwd")
    dx, dw, db = backward(dy, x, None, weight, mean, mean)
    for part in (slice(0, half), slice(half, columns)):
        _, dw_part, db_part = backward(dy[:, part], x[:, part], None, weight[part].contiguous(), mean, mean)
        assert torch.equal(dw[part], dw_part)
        assert torch.equal(db[part], db_part)
    for part in (slice(0, 32), slice(32, rows)):
        dx_part, _, _ = backward(dy[part], x[part], None, weight, mean[part].clone(), mean[part].clone())
        assert torch.equal(dx[part], dx_part)


def test_a_large_mean_does_not_cost_the_variance_its_digits() -> None:
    """E[x^2] - mean^2 in float32 would give a variance of rounding errors here."""
    torch.manual_seed(0)
    x = torch.randn(4, 256) + 1000.0
    weight, bias = torch.ones(256), torch.zeros(256)
    y, _, _ = cpu_op("add_layer_norm_fwd")(x, None, weight, bias, 1e-12)
    y64, _, _ = reference.add_layer_norm_fwd(x.double(), None, weight.double(), bias.double(), 1e-12)
    same, _, _ = reference.add_layer_norm_fwd(x, None, weight, bias, 1e-12)
    assert_close_to_float64(y, y64, same)


def test_a_nan_stays_in_its_row() -> None:
    x = torch.randn(3, 50)
    x[1, 47] = float("nan")
    y, mean, rstd = cpu_op("add_layer_norm_fwd")(x, None, torch.ones(50), torch.zeros(50), 1e-5)
    assert y[1].isnan().all()
    assert mean[1].isnan()
    assert rstd[1].isnan()
    assert not y[[0, 2]].isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.ones(3, 4, dtype=torch.int32)}, r"x is Int; allowed: float32, bfloat16, float16, float64"),
        ({0: torch.ones(12)}, r"x has shape \(12\); allowed: \(T, C\)"),
        ({0: torch.ones(4, 3).t()}, r"x has stride 3 in its last dimension; allowed: 1"),
        ({1: torch.ones(2, 4)}, r"residual has shape \(2, 4\); allowed: \(T, C\) = \(3, 4\)"),
        ({2: torch.ones(5)}, r"weight has shape \(5\); allowed: \(C,\) = \(4\)"),
        ({3: torch.ones(4).double()}, r"bias is Double, x is Float; allowed: one dtype"),
        ({0: torch.ones(3, 0), 1: None}, r"x has shape \(3, 0\); allowed: at least one column"),
    ],
)
def test_refuses_by_name(change: dict, message: str) -> None:
    arguments = [torch.ones(3, 4), torch.ones(3, 4), torch.ones(4), torch.ones(4), 1e-5]
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(ValueError, match="add_layer_norm_fwd: " + message):
        cpu_op("add_layer_norm_fwd")(*arguments)
