"""The interpreter multiplies as a GPU does, and still needs help: a Triton that does it by itself retires the mend."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from dynabert_kernels.testing.comparison import max_error
from dynabert_kernels.testing.interpreter import (
    bfloat16_of_float32,
    cut_to_tf32,
    exact_bfloat16,
    float32_of_bfloat16,
    rounded_to_tf32,
    tensor_core_tf32,
)
from dynabert_kernels.triton.environment import INTERPRETED, jit, tl

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here, not interpreted")


@jit
def _cast_kernel(x_ptr: tl.tensor, y_ptr: tl.tensor, N: tl.constexpr) -> None:
    offsets = tl.arange(0, N)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets).to(tl.bfloat16))


@jit
def _product_kernel(a_ptr: tl.tensor, b_ptr: tl.tensor, c_ptr: tl.tensor, N: tl.constexpr) -> None:
    tile = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(c_ptr + tile, tl.dot(tl.load(a_ptr + tile), tl.load(b_ptr + tile)))


@jit
def _float32_product_kernel(
    a_ptr: tl.tensor, b_ptr: tl.tensor, c_ptr: tl.tensor, PRECISION: tl.constexpr, N: tl.constexpr
) -> None:
    tile = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    a, b, c = tl.load(a_ptr + tile), tl.load(b_ptr + tile), tl.load(c_ptr + tile)
    tl.store(c_ptr + tile, tl.dot(a, b, c, input_precision=PRECISION))


# Ties in both directions, numbers next to them, a subnormal, the largest finite ones, infinities.
VALUES = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 1.0039063, 1.0039062, -3.1415927, 1e-40, 3.3895314e38, 3.4e38]
VALUES += [float("inf"), float("-inf"), 123456.789, -(2.0**-126), 0.1]


def test_rounding_is_pytorchs() -> None:
    values = torch.tensor([*VALUES, float("nan")])
    ours = float32_of_bfloat16(bfloat16_of_float32(values.numpy()))
    np.testing.assert_array_equal(ours, values.bfloat16().float().numpy())


def test_casts_round_to_nearest_even() -> None:
    x, y = torch.tensor(VALUES), torch.empty(len(VALUES), dtype=torch.bfloat16)
    with exact_bfloat16():
        _cast_kernel[(1,)](x, y, N=len(VALUES))
    assert torch.equal(y, x.bfloat16())


def test_products_are_right() -> None:
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    c = torch.empty(16, 16)
    with exact_bfloat16():
        _product_kernel[(1,)](a, b, c, N=16)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


def test_the_mend_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The session's mend is taken off: when one of these comes out right, delete that half of interpreter.py.
    import triton.runtime.interpreter as interpreter

    builder = interpreter.InterpreterBuilder
    for name in ("create_dot", "cast_impl"):
        monkeypatch.setattr(builder, name, inspect.unwrap(getattr(builder, name)))
    x, y = torch.tensor([1.0117187, 3.0]), torch.empty(2, dtype=torch.bfloat16)
    _cast_kernel[(1,)](x, y, N=2)
    assert y[0] != x[0].bfloat16()
    a = torch.ones(16, 16, dtype=torch.bfloat16)
    c = torch.empty(16, 16)
    _product_kernel[(1,)](a, a, c, N=16)
    assert not torch.equal(c, torch.full((16, 16), 16.0))


# 1 + 2^-11 is a tie of TF32, whose neighbours are 1 and 1 + 2^-10.
@pytest.mark.parametrize(
    ("value", "cut", "rounded"),
    [
        (1.0, 1.0, 1.0),
        (1 + 2.0**-11, 1.0, 1 + 2.0**-10),
        (-1 - 2.0**-11, -1.0, -1 - 2.0**-10),
        (1 + 2.0**-11 - 2.0**-23, 1.0, 1.0),
        (2 - 2.0**-23, 2 - 2.0**-10, 2.0),
        (float("inf"), float("inf"), float("inf")),
    ],
)
def test_tf32_has_ten_bits(value: float, cut: float, rounded: float) -> None:
    values = np.array([value], dtype=np.float32)
    assert cut_to_tf32(values)[0] == cut
    assert rounded_to_tf32(values)[0] == rounded


def _products(precision: str, n: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(interpreted, in float64, by PyTorch) of a @ b + c."""
    a, b, c = torch.randn(3, n, n, generator=torch.Generator().manual_seed(0))
    exact, torchs, out = a.double() @ b.double() + c.double(), a @ b + c, c.clone()
    _float32_product_kernel[(1,)](a, b, out, PRECISION=precision, N=n)
    return out, exact, torchs


def test_tf32_products_lose_what_a_gpu_loses() -> None:
    with tensor_core_tf32():
        errors = {precision: max_error(*_products(precision)[:2]) for precision in ("ieee", "tf32x3", "tf32")}
    assert errors["ieee"] <= 4e-7
    assert errors["tf32x3"] <= 8e-7
    assert 2e-4 <= errors["tf32"] <= 4e-3
    assert errors["tf32x3"] != errors["ieee"]


def test_an_infinite_operand_stays_infinite_in_three_products() -> None:
    a, b, c = torch.eye(16), torch.ones(16, 16), torch.zeros(16, 16)
    b[3] = float("inf")
    with tensor_core_tf32(), np.errstate(invalid="ignore"):
        _float32_product_kernel[(1,)](a[3:4].expand(16, 16).contiguous() + 0.5, b, c, PRECISION="tf32x3", N=16)
    assert (c == float("inf")).all()


def test_the_imitation_of_tf32_is_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter by itself multiplies in float32: when this fails, it imitates TF32 and ours can go.
    import triton.runtime.interpreter as interpreter

    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(builder, "create_dot", inspect.unwrap(builder.create_dot))
    out, exact, _ = _products("tf32")
    assert max_error(out, exact) <= 4e-7
