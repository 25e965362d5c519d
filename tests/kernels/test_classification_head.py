"""``classification_head``: each provider against float64, what it takes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.ops import NATIVE, providers
from dynabert_kernels.testing.inputs import strided_rows
from tests.kernels.usable_isas import usable_isas

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
PROVIDERS = [name for name in ("reference", "cpu") if name in providers.registered()["classification_head"]]
native = pytest.mark.skipif(NATIVE is None, reason="the native library is not built")
ISAS = usable_isas()
LENGTHS = [3, 1, 7, 2]


def operands(dtype: torch.dtype, width: int, labels: int, *, dense: bool = True) -> list[Tensor | None]:
    drawn = torch.Generator().manual_seed(width + labels)

    def some(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=drawn, dtype=torch.float64)

    x = strided_rows(some(sum(LENGTHS) + 2, width).to(dtype))
    pair: list[Tensor | None] = [None, None]
    if dense:
        pair = [strided_rows((some(width, width) / width**0.5).to(dtype)), some(width).to(dtype)]
    return [x, torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32), *pair, some(labels, width).to(dtype),
            some(labels).to(dtype)]  # fmt: skip


def wide(given: list[Tensor | None]) -> list[Tensor | None]:
    return [t.double() if t is not None and t.is_floating_point() else t for t in given]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("width", "labels"), [(384, 2), (33, 5), (7, 1), (64, 40)])
def test_against_float64(provider: str, dtype: torch.dtype, dense: bool, width: int, labels: int) -> None:
    """No more than twice plain PyTorch's own error in the same dtype."""
    given = operands(dtype, width, labels, dense=dense)
    exact = reference.classification_head(*wide(given))  # type: ignore[arg-type]
    own = reference.classification_head(*given).double()  # type: ignore[arg-type]
    with dk.use_provider(provider):
        found = dk.classification_head(*given)  # type: ignore[arg-type]
    assert found.dtype == dtype
    assert found.shape == (len(LENGTHS), labels)
    floor = torch.finfo(dtype).eps * exact.abs().max()
    assert (found.double() - exact).abs().max() <= 2 * torch.maximum((own - exact).abs().max(), floor)


@pytest.mark.parametrize("provider", [*PROVIDERS, "triton"])
def test_autocast_changes_nothing(provider: str) -> None:
    """Also where a provider without this op is forced, and plain PyTorch computes it."""
    given = operands(torch.float32, 33, 5)
    with dk.use_provider(provider):
        plain = dk.classification_head(*given)  # type: ignore[arg-type]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = dk.classification_head(*given)  # type: ignore[arg-type]
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


@native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    given = operands(dtype, 48, 3)
    exact = reference.classification_head(*wide(given))  # type: ignore[arg-type]
    NATIVE.set_cpu_isa(isa)
    try:
        with dk.use_provider("cpu"):
            found = dk.classification_head(*given)  # type: ignore[arg-type]
    finally:
        NATIVE.set_cpu_isa("auto")
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, atol=64 * eps, rtol=64 * eps)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_not_finite_states_stay_so_and_other_rows_are_not_read(provider: str) -> None:
    given = operands(torch.bfloat16, 32, 2)
    x = given[0]
    assert x is not None
    with dk.use_provider(provider):
        clean = dk.classification_head(*given)  # type: ignore[arg-type]
        firsts = [0, 3, 4, 11]
        for row in set(range(len(x))) - set(firsts):
            x[row] = float("nan")
        assert torch.equal(dk.classification_head(*given), clean)  # type: ignore[arg-type]
        x[4] = float("nan")
        found = dk.classification_head(*given)  # type: ignore[arg-type]
    assert found[2].isnan().all()
    assert torch.equal(found[[0, 1, 3]], clean[[0, 1, 3]])


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_sequence(provider: str) -> None:
    given = operands(torch.float32, 16, 2)
    given[1] = torch.zeros(1, dtype=torch.int32)
    with dk.use_provider(provider):
        assert dk.classification_head(*given).shape == (0, 2)  # type: ignore[arg-type]


def test_a_provider_without_the_op_leaves_it_to_pytorch() -> None:
    given = operands(torch.float32, 16, 2)
    with dk.use_provider("triton"):
        found = dk.classification_head(*given)  # type: ignore[arg-type]
    assert torch.equal(found, reference.classification_head(*given))  # type: ignore[arg-type]


def test_the_op_holds_to_pytorchs_rules() -> None:
    for dense in (True, False):
        given = operands(torch.float32, 16, 2, dense=dense)
        torch.library.opcheck(torch.ops.dynabert.classification_head.default, tuple(given))


def test_refusals() -> None:
    x, borders, dense, bias, out, out_bias = operands(torch.float32, 16, 2)
    assert x is not None
    assert out is not None
    assert bias is not None
    refused = [
        ((x, borders, dense, None, out, out_bias), "belong together"),
        ((x, borders, dense, bias, out[:, :5], out_bias), r"out_weight has shape \(2, 5\)"),
        ((x, borders.long() if borders is not None else None, dense, bias, out, out_bias), "cu_seqlens is torch.int64"),
        ((x.double(), borders, dense, bias, out, out_bias), "dense_weight is torch.float32, x is torch.float64"),
        ((x, borders, dense, bias[:3], out, out_bias), "bias|size"),
    ]
    for given, told in refused:
        with pytest.raises((ValueError, TypeError, RuntimeError), match=told):
            dk.classification_head(*given)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="it has no backward"):
        dk.classification_head(x.requires_grad_(), borders, dense, bias, out, out_bias)  # type: ignore[arg-type]


@native
def test_a_border_outside_is_refused_on_the_cpu() -> None:
    x, _, *others = operands(torch.float32, 16, 2)
    assert x is not None
    for first in (-1, len(x)):
        with pytest.raises(ValueError, match=f"sequence 0 starts at row {first}; allowed: 0 to {len(x) - 1}"):
            dk.classification_head(x, torch.tensor([first, 3], dtype=torch.int32), *others)  # type: ignore[arg-type]
