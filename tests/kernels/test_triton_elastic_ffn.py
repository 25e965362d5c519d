"""The Triton provider of ``elastic_ffn``: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.reference.dropout import dropout_scale
from dynabert_kernels.testing.comparison import assert_close_to_float64
from dynabert_kernels.testing.inputs import DTYPES, poison, poisoned_allocations, strided_rows
from dynabert_kernels.triton.elastic_ffn import elastic_ffn_bwd, elastic_ffn_fwd, supports
from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED, jit, tl
from dynabert_kernels.triton.hidden_dropout import HiddenDropout, dropout_factors, hidden_dropout
from dynabert_kernels.triton.tiles import MAX_ROW_COLUMNS
from tests.kernels.cases import DROPOUT_STATE, PLANS, Network

DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
NONE, GELU, GELU_TANH, RELU = range(4)
GRADIENTS = ("dx", "din_weight", "din_bias", "dout_weight", "dout_bias", "dln_weight", "dln_bias")
interpreted_only = pytest.mark.skipif(not INTERPRETED, reason="float64 is for gradcheck; a GPU refuses it by name")

pytestmark = pytest.mark.skipif(
    IMPORT_ERROR is not None or not (INTERPRETED or torch.cuda.is_available()),
    reason=IMPORT_ERROR or "no CUDA device, and TRITON_INTERPRET is set to 0",
)


class Sample(NamedTuple):
    """Arguments of the op and a gradient; rows of no group hold NaN."""

    x: Tensor
    weights: tuple[Tensor, ...]
    rows: Tensor
    neurons: Tensor
    state: Tensor | None
    max_neurons: int
    activation: int
    dropout: float
    dy: Tensor


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def sample_of(
    lengths: list[int],
    neurons: list[int],
    dtype: torch.dtype,
    *,
    width: int = 32,
    activation: int = GELU,
    dropout: float = 0.0,
    dead_rows: int = 2,
    extra: int = 4,
) -> Sample:
    torch.manual_seed(0)
    network = Network(width=width, heads=1, size=width, neurons=max(neurons) + extra, dtype=dtype)
    borders = [sum(lengths[:g]) for g in range(len(lengths) + 1)]
    x, dy = (network.tensor(borders[-1] + dead_rows, width, scale=1.0).to(DEVICE) for _ in range(2))
    poison(x[borders[-1] :])
    poison(dy[borders[-1] :])
    state = torch.tensor(DROPOUT_STATE, device=DEVICE) if dropout > 0.0 else None
    weights = tuple(weight.to(DEVICE) for weight in network.ffn())
    return Sample(x, weights, int32(*borders), int32(*neurons), state, max(neurons), activation, dropout, dy)


def results(sample: Sample, forward: Any = elastic_ffn_fwd, backward: Any = elastic_ffn_bwd) -> dict[str, Tensor]:
    """The result and every gradient a provider returns, from allocations that hold NaN."""
    x, weights, rows, neurons, state, most, activation, dropout, dy = sample
    with poisoned_allocations():
        y, *saved = forward(x, *weights, rows, neurons, state, most, activation, 1e-5, dropout, 5, True)
        gradients = backward(
            dy, x, weights[0], weights[2], weights[4], *saved, rows, neurons, state, most, activation, dropout, 5
        )
    return {"y": y, **dict(zip(GRADIENTS, gradients, strict=True))}


def check(sample: Sample) -> dict[str, Tensor]:
    """Result and every gradient err no more than PyTorch does in the same dtype."""
    ours = results(sample)
    doubled = sample._replace(
        x=sample.x.double(), weights=tuple(weight.double() for weight in sample.weights), dy=sample.dy.double()
    )
    functions = reference.elastic_ffn_fwd, reference.elastic_ffn_bwd
    exact, yardstick = results(doubled, *functions), results(sample, *functions)
    for name, value in ours.items():
        assert_close_to_float64(value, exact[name], yardstick[name], name=name)
    return ours


@pytest.mark.parametrize(
    ("dtype", "dropout"), [(torch.float32, 0.0), *((dtype, 0.3) for dtype in DTYPES)], ids=lambda v: NAMES.get(v, v)
)
def test_matches_float64(dtype: torch.dtype, dropout: float) -> None:
    # Widest first, a group that skips, and widths that are no multiples of the tile.
    check(sample_of([9, 5, 3], [48, 0, 17], dtype, dropout=dropout))


@pytest.mark.parametrize("name", PLANS)
def test_the_plans_of_all_ops(name: str) -> None:
    heads, lengths = PLANS[name]
    counts = [sum(group) for group in lengths]
    sample = sample_of(counts, [k * 5 for k in heads], torch.float32, width=24, dropout=0.25)
    ours = check(sample)
    for g, k in enumerate(heads):
        if k == 0:
            begin, end = sum(counts[:g]), sum(counts[: g + 1])
            assert torch.equal(ours["y"][begin:end], sample.x[begin:end])
            assert torch.equal(ours["dx"][begin:end], sample.dy[begin:end])
    assert (ours["y"][sum(counts) :] == 0).all()
    assert (ours["dx"][sum(counts) :] == 0).all()


@pytest.mark.parametrize("activation", [NONE, GELU_TANH, RELU], ids=["none", "tanh", "relu"])
def test_activations(activation: int) -> None:
    check(sample_of([5, 4], [20, 9], torch.float32, activation=activation))


@interpreted_only
def test_float64_is_computed_in_float64() -> None:
    # A scale of 2 is exact: others reach the kernel in float32, as eps does.
    check(sample_of([5, 4], [20, 9], torch.float64, dropout=0.5))


@settings(deadline=None, max_examples=4, derandomize=True)
@given(
    groups=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), min_size=1, max_size=4),
    dead=st.integers(0, 3),
)
def test_any_plan(groups: list[tuple[int, int]], dead: int) -> None:
    lengths, neurons = [n for n, _ in groups], [f for _, f in groups]
    check(sample_of(lengths, neurons, torch.float32, width=16, dead_rows=dead, dropout=0.2))


def test_no_rows_and_no_neurons() -> None:
    ours = check(sample_of([0], [8], torch.float32, width=16, dead_rows=0))
    assert ours["y"].shape == (0, 16)
    check(sample_of([3], [0], torch.float32, width=16))


def test_strided_rows_and_weights() -> None:
    sample = sample_of([6, 5], [32, 16], torch.float32)
    first, _, second, *_ = sample.weights
    weights = (
        strided_rows(first, gap=5, offset=3),
        sample.weights[1],
        strided_rows(second, gap=1),
        *sample.weights[3:],
    )
    check(sample._replace(x=strided_rows(sample.x), weights=weights, dy=strided_rows(sample.dy, gap=1, offset=5)))


def test_what_lies_past_a_width_is_not_written() -> None:
    # pre and hidden come from allocations that hold NaN: it is still there.
    x, weights, rows, neurons, state, most, activation, dropout, _ = sample_of([4, 5, 3], [40, 13, 0], torch.float32)
    with poisoned_allocations():
        _, pre, hidden, mean, rstd = elastic_ffn_fwd(
            x, *weights, rows, neurons, state, most, activation, 1e-5, dropout, 5, True
        )
    assert pre[:4].isfinite().all()
    assert pre[4:9, :13].isfinite().all()
    assert pre[4:9, 13:].isnan().all()
    assert pre[9:].isnan().all()
    assert hidden[:9].isfinite().all()
    assert hidden[9:].isnan().all()
    assert (mean[9:] == 0).all()
    assert (rstd[9:] == 0).all()


def test_nothing_is_saved_unless_asked() -> None:
    sample = sample_of([4, 3], [20, 9], torch.float32)
    x, weights, rows, neurons, state, most, activation, dropout, _ = sample
    y, *saved = elastic_ffn_fwd(x, *weights, rows, neurons, state, most, activation, 1e-5, dropout, 5, False)
    assert torch.equal(y, results(sample)["y"])
    assert all(tensor.shape == (0,) for tensor in saved)


def test_gradients_are_deterministic() -> None:
    sample = sample_of([17, 5], [33, 17], torch.float32, dropout=0.1)
    first, second = results(sample), results(sample)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# Dropout's masks, bit for bit.


@jit
def _factors_kernel(
    state_ptr: tl.tensor,
    out_ptr: tl.tensor,
    group: tl.tensor,
    first_row: tl.tensor,
    first_column: tl.tensor,
    counter: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
) -> None:
    rows, columns = tl.arange(0, 8), tl.arange(0, 16)
    factors = dropout_factors(
        state_ptr, first_row + rows, group, first_column, counter, threshold, scale, tl.float32, 8, 16
    )
    tl.store(out_ptr + rows[:, None] * 16 + columns[None, :], factors)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.999])
@pytest.mark.parametrize(
    "state", [(0, 0), DROPOUT_STATE, (-(2**63), 2**32 - 2), (2**63 - 1, -5)], ids=["zero", "usual", "wraps", "extreme"]
)
def test_masks_are_those_of_the_definition(state: tuple[int, int], probability: float) -> None:
    tensor, out = torch.tensor(state, device=DEVICE), torch.empty(8, 16, device=DEVICE)
    dropout = HiddenDropout(tensor, probability, stream=37)
    _factors_kernel[(1,)](tensor, out, 3, 1000, 48, dropout.counter, dropout.threshold, dropout.scale)
    wanted = dropout_scale(
        tensor, probability, stream=37, group=3, rows=range(1000, 1008), columns=64, heads=1, like=out
    )
    assert wanted is not None
    assert torch.equal(out, wanted[0, :, 48:])


def test_no_dropout_without_a_state_or_a_probability() -> None:
    assert hidden_dropout(None, 0.1, 0) is None
    assert hidden_dropout(torch.zeros(2, dtype=torch.int64), 0.0, 0) is None


# Through the registered op.


@interpreted_only
def test_gradcheck() -> None:
    x, weights, rows, neurons, state, *_ = sample_of(
        [1, 1, 1], [3, 0, 2], torch.float64, width=3, dropout=0.5, dead_rows=0
    )
    layer = dk.LayerPlan(rows, int32(1, 0, 1), neurons, 1, 3)

    def op(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        arguments = (x, first, weights[1], second, *weights[3:], layer)
        return dk.elastic_ffn(*arguments, eps=1e-3, hidden_dropout=0.5, dropout_state=state, dropout_stream=2)

    with dk.use_provider("triton"):
        # fast_mode: one random direction instead of each entry, each of which is a run of the interpreter.
        checked = [t.requires_grad_() for t in (x, weights[0], weights[2])]
        assert torch.autograd.gradcheck(op, checked, fast_mode=True)


def test_opcheck() -> None:
    # One width and no rows of no group: what is saved past a width is not written, so two runs would differ there.
    x, weights, rows, neurons, state, *_ = sample_of([2, 1], [3, 3], torch.float32, width=8, dropout=0.25, dead_rows=0)
    tensors = [t.requires_grad_() for t in (x, *weights)]
    with dk.use_provider("triton"):
        arguments = (*tensors, rows, neurons, state, 3, GELU, 1e-5, 0.25, 3, True)
        torch.library.opcheck(torch.ops.dynabert.elastic_ffn_fwd.default, arguments)


def test_supports_names_what_it_refuses() -> None:
    sample = sample_of([3], [4], torch.float32)
    assert supports(sample.x, *sample.weights, sample.rows) is None
    assert f"1 to {MAX_ROW_COLUMNS} columns" in str(supports(sample.x.new_empty(1, MAX_ROW_COLUMNS + 1)))
    assert "its last stride must be 1" in str(supports(sample.x, sample.weights[0].t()))
    assert "dtype is torch.int32" in str(supports(sample.x.int()))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (1, lambda w: w[:3], r"in_weight has the wrong shape; got \(3, 32\); allowed: at least \(4, 32\)"),
        (1, lambda w: w.half(), r"in_weight does not fit; got torch.float16"),
        (2, lambda w: w[1:], r"in_bias has the wrong shape; got \(7,\); allowed: \(8,\), that is F"),
        (3, lambda w: w.t(), r"out_weight has the wrong shape; got \(8, 32\)"),
        (5, lambda w: w[1:], r"ln_weight has the wrong shape; got \(31,\); allowed: \(32,\), that is C"),
        (7, lambda w: w.long(), r"rows does not fit; .*allowed: torch.int32"),
        (
            9,
            lambda _: torch.zeros(3, dtype=torch.int64),
            r"dropout_state has the wrong shape; got \(3,\); allowed: \(2,\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_errors_of_the_forward_launcher(index: int, change: Any, message: str) -> None:
    sample = sample_of([3], [4], torch.float32)
    arguments: list[Any] = [sample.x, *sample.weights, sample.rows, sample.neurons, None, 4, GELU, 1e-5, 0.1, 0, True]
    arguments[index] = change(arguments[index])
    with pytest.raises(ValueError, match=r"elastic_ffn_fwd \(triton\): " + message):
        elastic_ffn_fwd(*arguments)


def test_errors_of_the_backward_launcher() -> None:
    x, weights, rows, neurons, _, most, _, _, dy = sample_of([3], [4], torch.float32)
    pre, statistic = x.new_empty(5, 4), x.new_empty(5)
    good: list[Any] = [
        dy,
        x,
        weights[0],
        weights[2],
        weights[4],
        pre,
        x,
        statistic,
        statistic,
        rows,
        neurons,
        None,
        most,
    ]
    for index, value, message in (
        (0, dy[1:], r"dy has the wrong shape; got \(4, 32\)"),
        (5, pre[:, :3], r"pre has the wrong shape; got \(5, 3\)"),
        (6, x.t().contiguous().t(), r"hidden is not what the forward saved"),
        (7, statistic.half(), r"mean does not fit; .*allowed: torch.float32"),
    ):
        arguments = [*good[:index], value, *good[index + 1 :]]
        with pytest.raises(ValueError, match=r"elastic_ffn_bwd \(triton\): " + message):
            elastic_ffn_bwd(*arguments, GELU, 0.0, 0)
