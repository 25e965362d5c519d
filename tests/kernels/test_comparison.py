"""The yardstick itself: it must fail where a kernel is wrong."""

from __future__ import annotations

import math

import pytest
import torch

from dynabert_kernels.testing.comparison import assert_close_to_float64, floor, max_error
from tests.kernels.draws import DRAWS, Draw, check_draws

NAN, INF = float("nan"), float("inf")


def test_max_error_is_relative_to_the_largest_entry() -> None:
    assert max_error(torch.tensor([0.0, 3.5]), torch.tensor([1.0, 4.0])) == 0.25
    assert max_error(torch.empty(0, 3), torch.empty(0, 3)) == 0.0
    assert max_error(torch.tensor([0.5]), torch.zeros(1)) == 0.5


@pytest.mark.parametrize(("actual", "reference"), [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (INF, -INF), (NAN, INF)])
def test_a_nan_on_one_side_is_an_infinite_error(actual: float, reference: float) -> None:
    assert max_error(torch.tensor([1.0, actual]), torch.tensor([1.0, reference])) == math.inf


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_same_nan_on_both_sides_is_no_error(value: float) -> None:
    assert max_error(torch.tensor([1.0, value]), torch.tensor([1.0, value])) == 0.0
    assert max_error(torch.tensor([value]), torch.tensor([value])) == 0.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shapes differ; got \(2,\) and \(1, 2\)"):
        max_error(torch.zeros(2), torch.zeros(1, 2))


def test_the_tolerance_is_twice_pytorchs_error() -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    torchs = torch.tensor([1.0, 2.02], dtype=torch.float32)
    assert_close_to_float64(torch.tensor([1.0, 2.039]), exact, torchs)
    with pytest.raises(AssertionError, match=r"dx: error 2\.0.*times PyTorch's 1\.0"):
        assert_close_to_float64(torch.tensor([1.0, 2.041]), exact, torchs, name="dx")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_floor_allows_rounding_and_no_more(dtype: torch.dtype) -> None:
    exact = torch.tensor([1.0], dtype=torch.float64)
    step = torch.finfo(dtype).eps
    perfect = exact.to(dtype)
    assert_close_to_float64((exact + step).to(dtype), exact, perfect)
    with pytest.raises(AssertionError):
        assert_close_to_float64((exact + 2 * floor(dtype)).to(dtype), exact, perfect)


def test_another_dtype_is_refused() -> None:
    exact = torch.ones(1, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"dtype is torch\.float32, PyTorch's torch\.bfloat16"):
        assert_close_to_float64(torch.ones(1), exact, torch.ones(1).bfloat16())


def draw(error: float, torchs: float, dtype: torch.dtype = torch.float32) -> Draw:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    off = torch.tensor([0.0, 2.0], dtype=torch.float64)
    return Draw({"dx": (exact + error * off).to(dtype)}, {"dx": exact}, {"dx": (exact + torchs * off).float()})


def test_one_lucky_draw_of_pytorchs_does_not_decide() -> None:
    seeds: list[int] = []

    def again(seed: int) -> Draw:
        seeds.append(seed)
        return draw(0.02, 0.01)

    lucky = draw(0.025, 0.001)
    assert check_draws(lucky, {"dx": 3.0}, again) is lucky.got
    assert seeds == list(range(1, DRAWS))
    with pytest.raises(AssertionError, match="dx: error"):
        check_draws(lucky, {"dx": 3.0}, None)
    check_draws(lucky, {}, None)


def test_a_kernel_that_errs_in_every_draw_is_red() -> None:
    with pytest.raises(AssertionError, match=rf"dx: .* in {DRAWS} draws"):
        check_draws(draw(0.04, 0.001), {"dx": 3.0}, lambda seed: draw(0.04, 0.01))
    with pytest.raises(AssertionError, match=rf"dx: .* in {DRAWS} draws"):
        check_draws(draw(0.025, 0.001), {"dx": 3.0}, lambda seed: draw(0.04 if seed == DRAWS - 1 else 0.0, 0.01))


@pytest.mark.parametrize("first", [draw(NAN, 0.01), draw(0.02, 0.01, torch.float64)], ids=["nan", "dtype"])
def test_what_no_draw_excuses(first: Draw) -> None:
    def again(seed: int) -> Draw:
        raise NotImplementedError

    with pytest.raises(AssertionError, match="dx: "):
        check_draws(first, {"dx": 3.0}, again)
