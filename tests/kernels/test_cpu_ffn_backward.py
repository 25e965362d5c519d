"""The gradients of the CPU's elastic_ffn against float64, over plans that mix widths and skip layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from tests.kernels.cases import DROPOUT_STATE, PLANS, Network, plan_of
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
from tests.kernels.test_cpu_sublayers import SEEDS, ffn_arguments

RESULTS = ("dx", "din_weight", "din_bias", "dout_weight", "dout_bias", "dln_weight", "dln_bias")
ROWS, COUNTS = 9, 10  # places among the arguments


def poison_beyond(tensor: Tensor, borders: list[int], widths: list[int]) -> Tensor:
    """NaN in the columns beyond each row's width, and in the rows of no group."""
    tensor = tensor.clone()
    for begin, end, width in zip(borders, borders[1:], widths, strict=False):
        tensor[begin:end, width:] = float("nan")
    tensor[borders[-1] :] = float("nan")
    return tensor


def backward_arguments(
    name: str, dtype: torch.dtype, seed: int = 0, *, dropout: float = 0.0, activation: int = 1
) -> tuple[Any, ...]:
    """What the reference's forward saved, with NaN in all that the backward must not read."""
    forward = ffn_arguments(name, dtype, seed, dropout=dropout, activation=activation)
    x, in_weight, _, out_weight, _, ln_weight, _, rows, counts, state, max_neurons, *_ = forward
    _, pre, hidden, mean, rstd = reference.elastic_ffn_fwd(*forward)
    borders, neurons = rows.tolist(), counts.tolist()
    whole = [x.shape[1]] * len(neurons)
    active = [x.shape[1] if count else 0 for count in neurons]
    dy = poison_beyond(torch.randn(x.shape, dtype=torch.float64).to(dtype), borders, whole)
    saved = (
        poison_beyond(pre, borders, neurons),
        poison_beyond(hidden, borders, active),
        *(poison_beyond(v[:, None], borders, [min(1, n) for n in neurons])[:, 0] for v in (mean, rstd)),
    )
    return (
        *(dy, poison_beyond(x, borders, active), in_weight, out_weight, ln_weight, *saved, rows, counts, state),
        *(max_neurons, activation, dropout, 5),
    )


def check(calls: list[tuple[Any, ...]], isa: str) -> tuple[Tensor, ...]:
    """Runs the op poisoned on each call and holds the gradients of all calls against float64; returns the last ones."""
    parts: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in RESULTS}
    for arguments in calls:
        with using_isa(isa):
            got = cpu_op("elastic_ffn_bwd")(*arguments)
        wanted = reference.elastic_ffn_bwd(*double(arguments))
        yardstick = reference.elastic_ffn_bwd(*arguments)
        for name, *results in zip(RESULTS, got, wanted, yardstick, strict=True):
            parts[name].append(tuple(result.flatten() for result in results))
    for name, results in parts.items():
        one, two, three = (torch.cat(values) for values in zip(*results, strict=True))
        assert_close_to_float64(one, two, three, name=name, factor=3.0)
    return got


@each_isa
@each_dtype
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_every_gradient(isa: str, dtype: torch.dtype, name: str, dropout: float) -> None:
    calls = [backward_arguments(name, dtype, seed, dropout=dropout) for seed in SEEDS]
    dx, din_weight, din_bias, dout_weight, *_ = check(calls, isa)
    dy, borders, neurons = calls[-1][0], calls[-1][ROWS].tolist(), calls[-1][COUNTS].tolist()
    for begin, end, count in zip(borders, borders[1:], neurons, strict=False):
        if count == 0:
            assert torch.equal(dx[begin:end], dy[begin:end])
    assert (dx[borders[-1] :] == 0).all()
    # An empty group asks for nothing.
    widest = max((n for n, a, b in zip(neurons, borders, borders[1:], strict=False) if b > a), default=0)
    for inactive in (din_weight[widest:], din_bias[widest:], dout_weight[:, widest:]):
        assert (inactive == 0).all()


@each_isa
@pytest.mark.parametrize("activation", [0, 1, 2, 3])
def test_activations(isa: str, activation: int) -> None:
    check([backward_arguments("mixed, not sorted", torch.float32, seed, activation=activation) for seed in SEEDS], isa)


@each_isa
@each_dtype
def test_takes_strided_and_offset_views(isa: str, dtype: torch.dtype) -> None:
    calls = []
    for seed in SEEDS:
        dy, x, in_weight, out_weight, ln_weight, *rest = backward_arguments("mixed, widest first", dtype, seed)
        weights = (strided(in_weight), strided(out_weight, 7, 3), strided(ln_weight))
        calls.append((strided(dy, 5, 2), strided(x), *weights, *rest))
    check(calls, isa)


@each_isa
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_result_does_not_depend_on_the_number_of_threads(isa: str, dropout: float) -> None:
    """The generic set and float64 are PyTorch's library, which promises nothing between numbers of threads."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        arguments = backward_arguments("mixed, not sorted", dtype, dropout=dropout)
        results = []
        with using_isa(isa):
            for count in (1, 1) if isa == "generic" else (1, 2, 3, 2):
                torch.set_num_threads(count)
                results.append(cpu_op("elastic_ffn_bwd")(*arguments))
        for other in results[1:]:
            assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@each_isa
def test_backward_of_the_op_itself(isa: str) -> None:
    """Forward and backward of this provider together, against the reference's."""
    torch.manual_seed(0)
    network = Network(width=37, heads=4, size=16, neurons=12, dtype=torch.float32)
    plan, _ = plan_of("a group skips the layer")
    x, weights = network.tensor(plan.num_rows, 37), network.ffn()
    state = torch.tensor(DROPOUT_STATE)

    def gradients() -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in (x, *weights)]
        y = dk.elastic_ffn(*leaves, plan.layer(0), hidden_dropout=0.25, dropout_state=state)
        return list(torch.autograd.grad(y.square().sum(), leaves))

    with using_isa(isa):
        got = gradients()
    with dk.use_provider("reference"):
        wanted = gradients()
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


ERRORS: list[tuple[int, Any, str]] = [
    (0, torch.ones(15, 36), r"dy has shape \(15, 36\); allowed: \(T, C\) = \(16, 37\)"),
    (0, torch.ones(37, 16).t(), r"dy has stride 16 in its last dimension; allowed: 1"),
    (0, torch.ones(16, 37).half(), r"dy is Half, x is Float; allowed: one dtype"),
    (2, torch.ones(12, 36), r"in_weight has shape \(12, 36\); allowed: \(F, C\) = \(any, 37\)"),
    (3, torch.ones(12, 37).t(), r"out_weight has stride 37 in its last dimension; allowed: 1"),
    (4, torch.ones(36), r"ln_weight has shape \(36\); allowed: \(C,\) = \(37\)"),
    (5, torch.ones(0), r"pre has shape \(0\); allowed: \(T, max_neurons\) = \(16, 12\)"),
    (6, torch.ones(37, 16).t(), r"hidden is not contiguous; pass what the forward returned"),
    (7, torch.ones(15), r"mean has shape \(15\); allowed: \(T,\) = \(16\)"),
    (COUNTS, int32(13), r"neuron_counts\[0\] is 13; allowed: 0 to 12"),
    (12, 13, r"max_neurons is 13; allowed: 0 to in_weight's 12 rows"),
    (13, 9, r"activation is 9; allowed: 0 none"),
]


@pytest.mark.parametrize(("index", "value", "message"), ERRORS)
def test_refuses_by_name(index: int, value: Any, message: str) -> None:
    arguments = list(backward_arguments("uniform, full", torch.float32))
    arguments[index] = value
    with pytest.raises(ValueError, match="elastic_ffn_bwd: " + message):
        cpu_op("elastic_ffn_bwd")(*arguments)
