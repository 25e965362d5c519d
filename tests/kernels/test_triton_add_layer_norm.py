"""The Triton provider of ``add_layer_norm``: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels.testing.inputs import ADD_LAYER_NORM_SHAPES, DTYPES, add_layer_norm_input, poison, strided_rows
from dynabert_kernels.triton.add_layer_norm import add_layer_norm_bwd, add_layer_norm_fwd, supports
from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED
from dynabert_kernels.triton.tiles import MAX_ROW_COLUMNS, row_backward_tile, row_forward_tile
from tests.kernels.layer_norm_checks import as_keywords, assert_same, check_against_float64, results

DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}

pytestmark = pytest.mark.skipif(
    IMPORT_ERROR is not None or not (INTERPRETED or torch.cuda.is_available()),
    reason=IMPORT_ERROR or "no CUDA device, and TRITON_INTERPRET is set to 0",
)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("shape", ADD_LAYER_NORM_SHAPES, ids=str)
def test_matches_float64(shape: tuple[int, int], dtype: torch.dtype) -> None:
    sample = add_layer_norm_input(*shape, dtype, device=DEVICE)
    check_against_float64(add_layer_norm_fwd, add_layer_norm_bwd, sample)


@pytest.mark.skipif(not INTERPRETED, reason="float64 is for gradcheck in the interpreter; a GPU refuses it by name")
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("shape", [(1, 1), (31, 61), (9, 768)], ids=str)
def test_float64_is_computed_in_float64(shape: tuple[int, int], residual: bool) -> None:
    sample = add_layer_norm_input(*shape, torch.float64, residual=residual)
    check_against_float64(add_layer_norm_fwd, add_layer_norm_bwd, sample)


@pytest.mark.parametrize("shape", [(17, 129), (9, 768)], ids=str)
def test_without_residual(shape: tuple[int, int]) -> None:
    sample = add_layer_norm_input(*shape, torch.float32, residual=False, device=DEVICE)
    check_against_float64(add_layer_norm_fwd, add_layer_norm_bwd, sample)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("shape", [(17, 128), (5, 61)], ids=str)
def test_strided_rows_give_the_same_bits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    # The gaps hold NaN. In the interpreter the order of additions does not depend on strides; on a GPU the layout may.
    sample = add_layer_norm_input(*shape, dtype, device=DEVICE)
    assert sample.residual is not None
    strided = sample._replace(
        x=strided_rows(sample.x, gap=3, offset=1),
        residual=strided_rows(sample.residual, gap=8, offset=0),
        dy=strided_rows(sample.dy, gap=1, offset=5),
    )
    check_against_float64(add_layer_norm_fwd, add_layer_norm_bwd, strided)
    if INTERPRETED:
        packed, views = (results(add_layer_norm_fwd, add_layer_norm_bwd, s) for s in (sample, strided))
        assert_same(packed, views)


def test_a_broadcast_row_is_read_with_stride_zero() -> None:
    sample = add_layer_norm_input(5, 61, torch.float32, device=DEVICE)
    row = sample.x[:1].expand(5, 61)
    assert row.stride() == (0, 1)
    check_against_float64(add_layer_norm_fwd, add_layer_norm_bwd, sample._replace(x=row))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    # Neither on poison in them nor on how many there are: bit for bit.
    sample = add_layer_norm_input(19, 768, torch.float32, device=DEVICE)
    assert sample.residual is not None
    alone = add_layer_norm_fwd(sample.x[4:5], sample.residual[4:5], sample.weight, sample.bias, sample.eps)
    x = sample.x.clone()
    poison(x[3])
    poison(x[5:])
    together = add_layer_norm_fwd(x, sample.residual, sample.weight, sample.bias, sample.eps)
    for one, many in zip(alone, together, strict=True):
        assert torch.equal(one[0], many[4])
    assert together[0][5:].isnan().all()


def test_backward_is_deterministic() -> None:
    sample = add_layer_norm_input(70, 384, torch.float32, device=DEVICE)
    first, second = (results(add_layer_norm_fwd, add_layer_norm_bwd, sample) for _ in range(2))
    assert_same(first, second)


def test_a_large_mean_does_not_cancel() -> None:
    # A variance computed as E[h^2] - E[h]^2 has no digits left here.
    sample = add_layer_norm_input(4, 768, torch.float32, device=DEVICE)
    check_against_float64(add_layer_norm_fwd, add_layer_norm_bwd, sample._replace(x=sample.x + 1000.0))


def test_tiles_hold_a_row_and_keep_registers_bounded() -> None:
    for columns in (1, 2, 61, 128, 129, 768, 1024, 1025, MAX_ROW_COLUMNS):
        for tile in (row_forward_tile(columns), row_backward_tile(columns)):
            assert columns <= tile.block_c < 2 * columns + 1
            assert tile.block_t >= 1
            assert tile.block_t & (tile.block_t - 1) == 0
            assert tile.block_t * tile.block_c <= 32 * 32 * tile.num_warps  # 32 elements a thread


# Through the registered op.


def _op_arguments(dtype: torch.dtype, rows: int = 3, columns: int = 5) -> tuple[Tensor, ...]:
    sample = add_layer_norm_input(rows, columns, dtype, device=DEVICE)
    assert sample.residual is not None
    return tuple(t.requires_grad_() for t in (sample.x, sample.residual, sample.weight, sample.bias))


@pytest.mark.skipif(not INTERPRETED, reason="gradcheck needs float64, which a GPU refuses by name")
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
def test_gradcheck(residual: bool) -> None:
    x, r, weight, bias = _op_arguments(torch.float64)

    def op(*arguments: Tensor) -> Tensor:
        x, weight, bias = arguments[0], arguments[-2], arguments[-1]
        return dk.add_layer_norm(x, arguments[1] if residual else None, weight, bias, 1e-5)

    with dk.use_provider("triton"):
        assert torch.autograd.gradcheck(op, (x, r, weight, bias) if residual else (x, weight, bias))


def test_opcheck() -> None:
    x, residual, weight, bias = _op_arguments(torch.float32)
    with dk.use_provider("triton"):
        torch.library.opcheck(torch.ops.dynabert.add_layer_norm_fwd.default, (x, residual, weight, bias, 1e-5))
        torch.library.opcheck(torch.ops.dynabert.add_layer_norm_fwd.default, (x, None, weight, bias, 1e-5))


def test_backward_through_the_op_takes_an_expanded_gradient() -> None:
    # sum().backward() delivers a gradient of stride 0.
    x, residual, weight, bias = _op_arguments(torch.float32, 7, 61)
    with dk.use_provider("triton"):
        dk.add_layer_norm(x, residual, weight, bias, 1e-5).sum().backward()
    assert bias.grad is not None
    torch.testing.assert_close(bias.grad, torch.full_like(bias, 7.0))


# What it refuses.


def test_supports_names_what_it_refuses() -> None:
    x, residual, weight, bias, eps, _ = add_layer_norm_input(4, 61, torch.float32, device=DEVICE)
    assert supports(x, residual, weight, bias, eps) is None
    assert supports(x, None, weight, bias, eps) is None
    assert "strides (1, 4)" in str(supports(x.t().contiguous().t(), residual, weight, bias, eps))
    wide = x.new_empty(1, MAX_ROW_COLUMNS + 1)
    assert f"1 to {MAX_ROW_COLUMNS} columns" in str(supports(wide, None, wide[0], wide[0], eps))
    assert "dtype is torch.int32" in str(supports(x.int(), None, weight, bias, eps))


def _refused(match: str, function: Callable[..., object], *arguments: object, **keywords: object) -> None:
    with pytest.raises(ValueError, match=match):
        function(*arguments, **keywords)


def test_errors_of_the_forward_launcher() -> None:
    x, residual, weight, bias, eps, _ = add_layer_norm_input(4, 61, torch.float32, device=DEVICE)
    op = r"add_layer_norm_fwd \(triton\): "
    _refused(
        op + r"x has the wrong shape; got \(61,\); allowed: \(T, C\)", add_layer_norm_fwd, x[0], None, weight, bias, eps
    )
    _refused(op + r"residual has the wrong shape; got \(4, 60\)", add_layer_norm_fwd, x, x[:, 1:], weight, bias, eps)
    _refused(op + r"residual does not fit; .*float16", add_layer_norm_fwd, x, x.half(), weight, bias, eps)
    _refused(op + r"weight has the wrong shape; got \(60,\)", add_layer_norm_fwd, x, residual, weight[1:], bias, eps)
    _refused(op + r"bias does not fit; .*bfloat16", add_layer_norm_fwd, x, residual, weight, bias.bfloat16(), eps)
    turned = x.t().contiguous().t()
    _refused(op + r"the columns of x do not lie side by side", add_layer_norm_fwd, turned, residual, weight, bias, eps)
    every_other = weight.repeat_interleave(2)[::2]
    _refused(op + r"weight is not contiguous", add_layer_norm_fwd, x, residual, every_other, bias, eps)
    _refused(op + r"C is out of range; got 0", add_layer_norm_fwd, x[:, :0], None, weight[:0], bias[:0], eps)


def test_errors_of_the_backward_launcher() -> None:
    sample = add_layer_norm_input(4, 61, torch.bfloat16, device=DEVICE)
    statistics = torch.ones(4, device=DEVICE)
    op = r"add_layer_norm_bwd \(triton\): "
    good = {**as_keywords(sample), "mean": statistics, "rstd": statistics}
    _refused(
        op + r"mean does not fit; .*allowed: torch.float32", add_layer_norm_bwd, **{**good, "mean": statistics.half()}
    )
    _refused(op + r"rstd has the wrong shape; got \(3,\)", add_layer_norm_bwd, **{**good, "rstd": statistics[:3]})
    expanded = sample.dy[:1, :1].expand(4, 61)
    _refused(op + r"the columns of dy do not lie side by side", add_layer_norm_bwd, **{**good, "dy": expanded})
