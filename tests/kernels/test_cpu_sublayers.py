"""The CPU's elastic_attention and elastic_ffn against float64, over plans that mix widths and skip layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from tests.kernels.cases import PLANS, Network, bias_table, plan_of
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

STATE = torch.tensor([1234567890123, 77])
SEEDS = range(4)  # the yardstick is a largest error: of one token's few numbers it would be luck
ATTENTION_RESULTS = ("y", "qkv", "context", "lse", "hidden", "mean", "rstd")
FFN_RESULTS = ("y", "pre", "hidden", "mean", "rstd")


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[Network, dk.Plan, Tensor, Tensor]:
    """A network of 4 heads, the plan ``name``, x with NaN in the rows of no group, and ``cu_seqlens``."""
    torch.manual_seed(seed)
    network = Network(width=37, heads=4, size=16, neurons=12, dtype=dtype)
    plan, cu_seqlens = plan_of(name, row_bucket=8)
    x = network.tensor(plan.num_rows, 37, scale=1.0)
    x[int(cu_seqlens[-1]) :] = float("nan")
    return network, plan, x, cu_seqlens


def attention_arguments(
    name: str, dtype: torch.dtype, seed: int = 0, *, dropout: float = 0.0, bias: bool = False, save: bool = True
) -> tuple[Any, ...]:
    network, plan, x, cu_seqlens = inputs(name, dtype, seed)
    layer = plan.layer(0)
    table = bias_table(network, plan.max_seqlen) if bias else None
    state = STATE if dropout else None
    numbers = (layer.max_heads, plan.max_seqlen, 0.25, 1e-12, dropout, dropout, 5, save)
    return (x, *network.attention(), cu_seqlens, layer.rows, layer.heads, table, state, *numbers)


def ffn_arguments(
    name: str, dtype: torch.dtype, seed: int = 0, *, dropout: float = 0.0, activation: int = 1, save: bool = True
) -> tuple[Any, ...]:
    network, plan, x, _ = inputs(name, dtype, seed)
    layer = plan.layer(0)
    state = STATE if dropout else None
    numbers = (layer.max_neurons, activation, 1e-12, dropout, 5, save)
    return (x, *network.ffn(), layer.rows, layer.neurons, state, *numbers)


def active_part(name: str, result: Tensor, rows: list[int], counts: list[int]) -> Tensor:
    """What a result must hold, as one vector: all of y, and of the others what belongs to a group with the layer."""
    if name == "y":
        return result.flatten()
    parts = [result.new_empty(0)]
    for begin, end, count in zip(rows, rows[1:], counts, strict=False):
        if count == 0:
            continue
        if name == "lse":
            parts.append(result[:count, begin:end])
        elif name in ("qkv", "context", "pre"):
            parts.append(result[begin:end, :count])
        else:
            parts.append(result[begin:end])
    return torch.cat([part.flatten() for part in parts])


def check_statistics(hidden: Tensor, mean: Tensor, rstd: Tensor) -> None:
    """Mean and rstd are those of the hidden rows beside them, but for the rounding of what was stored there."""
    wide, eps = hidden.double(), torch.finfo(hidden.dtype).eps
    rounding = eps * wide.abs().amax(1) + torch.finfo(mean.dtype).eps
    deviation = (wide.var(1, correction=0) + 1e-12).sqrt()
    assert ((mean - wide.mean(1)).abs() <= rounding).all()
    assert ((rstd * deviation - 1).abs() <= 2 * rounding / deviation + 4 * torch.finfo(mean.dtype).eps).all()


def check(op: str, names: tuple[str, ...], calls: list[tuple[Any, ...]], rows: int, counts: int, isa: str) -> Tensor:
    """Runs the op poisoned on each call and holds the active parts of all calls against float64; returns the last y.

    ``rows``, ``counts``: the places of these among the arguments.
    """
    parts: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in names}
    for arguments in calls:
        with using_isa(isa):
            got = cpu_op(op)(*arguments)
        wanted = getattr(reference, op)(*double(arguments))
        yardstick = getattr(reference, op)(*arguments)
        plan = arguments[rows].tolist(), arguments[counts].tolist()
        for name, *results in zip(names, got, wanted, yardstick, strict=True):
            parts[name].append(tuple(active_part(name, result, *plan) for result in results))
        y, *_, hidden, mean, rstd = got
        kept = [active_part("mean", value, *plan) for value in (mean, rstd)]
        if len(kept[0]):
            check_statistics(active_part("hidden", hidden, *plan).view(-1, y.shape[1]), *kept)
    for name, results in parts.items():
        if name in ("mean", "rstd"):
            continue  # of float32 in a half precision run: rounding of what they are the statistics of, checked above
        one, two, three = (torch.cat(values) for values in zip(*results, strict=True))
        if name == "lse":
            # A score's rounding moves its lse by as much, whatever the lse: measured against 1.
            one, two, three = (torch.cat([value, value.new_ones(1)]) for value in (one, two, three))
            factor = 4.0
        else:
            factor = 2.0
        assert_close_to_float64(one, two, three, name=name, factor=factor)
    return y


@each_isa
@each_dtype
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_attention(isa: str, dtype: torch.dtype, name: str, dropout: float) -> None:
    calls = [attention_arguments(name, dtype, seed, dropout=dropout, bias=dropout > 0) for seed in SEEDS]
    x, rows, heads = calls[-1][0], calls[-1][8], calls[-1][9]
    y = check("elastic_attention_fwd", ATTENTION_RESULTS, calls, 8, 9, isa)
    for begin, end, count in zip(rows.tolist(), rows[1:].tolist(), heads.tolist(), strict=False):
        if count == 0:
            assert torch.equal(y[begin:end], x[begin:end])
    assert (y[int(rows[-1]) :] == 0).all()


@each_isa
@each_dtype
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_ffn(isa: str, dtype: torch.dtype, name: str, dropout: float) -> None:
    calls = [ffn_arguments(name, dtype, seed, dropout=dropout) for seed in SEEDS]
    x, rows, neurons = calls[-1][0], calls[-1][7], calls[-1][8]
    y = check("elastic_ffn_fwd", FFN_RESULTS, calls, 7, 8, isa)
    for begin, end, count in zip(rows.tolist(), rows[1:].tolist(), neurons.tolist(), strict=False):
        if count == 0:
            assert torch.equal(y[begin:end], x[begin:end])
    assert (y[int(rows[-1]) :] == 0).all()


@each_isa
@pytest.mark.parametrize("activation", [0, 1, 2, 3])
def test_ffn_activations(isa: str, activation: int) -> None:
    calls = [ffn_arguments("mixed, not sorted", torch.float32, seed, activation=activation) for seed in SEEDS]
    check("elastic_ffn_fwd", FFN_RESULTS, calls, 7, 8, isa)


@each_isa
@each_dtype
def test_saving_changes_nothing_and_keeps_nothing_when_not_asked(isa: str, dtype: torch.dtype) -> None:
    for op, arguments in (
        ("elastic_attention_fwd", attention_arguments("mixed, not sorted", dtype, dropout=0.2)),
        ("elastic_ffn_fwd", ffn_arguments("mixed, not sorted", dtype, dropout=0.2)),
    ):
        with using_isa(isa):
            saved = cpu_op(op)(*arguments)
            plain = cpu_op(op)(*arguments[:-1], False)
        # The product is rounded once when it goes through `hidden` or y, in either case.
        torch.testing.assert_close(saved[0], plain[0], rtol=0, atol=0)
        assert all(result.shape == (0,) for result in plain[1:])
        assert [result.dtype for result in plain] == [result.dtype for result in saved]


@each_isa
@each_dtype
def test_takes_strided_and_offset_views(isa: str, dtype: torch.dtype) -> None:
    """Weights as views whose heads, parts and rows do not lie one behind the other, and x as a view."""
    calls = []
    for seed in SEEDS:
        x, qkv_weight, qkv_bias, out_weight, *rest = attention_arguments("mixed, widest first", dtype, seed)
        parts_first = strided(qkv_weight.permute(1, 0, 2, 3)).permute(1, 0, 2, 3)
        vectors = [strided(vector) for vector in rest[:3]]
        calls.append((strided(x), parts_first, qkv_bias, strided(out_weight, 7, 3), *vectors, *rest[3:]))
    check("elastic_attention_fwd", ATTENTION_RESULTS, calls, 8, 9, isa)
    calls = []
    for seed in SEEDS:
        x, in_weight, in_bias, out_weight, *rest = ffn_arguments("mixed, widest first", dtype, seed)
        vectors = [strided(vector) for vector in rest[:3]]
        weights = (strided(in_weight), strided(in_bias), strided(out_weight, 7, 3))
        calls.append((strided(x), *weights, *vectors, *rest[3:]))
    check("elastic_ffn_fwd", FFN_RESULTS, calls, 7, 8, isa)


@each_isa
def test_gradients_through_the_saved_results(isa: str) -> None:
    """The backward of another provider reads what this forward saved: its inactive parts hold NaN here."""
    torch.manual_seed(0)
    network, plan, x, cu_seqlens = inputs("a group skips the layer", torch.float32)
    layer = plan.layer(0)
    weights = [*network.attention(), *network.ffn()]
    keys: dict[str, Any] = {"hidden_dropout": 0.25, "dropout_state": STATE, "dropout_stream": 4}

    def gradients() -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in (x, *weights)]
        y = dk.elastic_attention(
            *leaves[:7], cu_seqlens, layer, max_seqlen=plan.max_seqlen, attention_dropout=0.25, **keys
        )
        y = dk.elastic_ffn(y, *leaves[7:], layer, **keys)
        return list(torch.autograd.grad(y.square().sum(), leaves))

    with using_isa(isa):
        got = gradients()
    with dk.use_provider("reference"):
        wanted = gradients()
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


ATTENTION_ERRORS: list[tuple[int, Any, str]] = [
    (
        1,
        torch.ones(4, 3, 16, 36),
        r"qkv_weight has shape \(4, 3, 16, 36\); allowed: \(H, 3, D, C\) = \(any, 3, any, 37\)",
    ),
    (1, torch.ones(4, 3, 37, 16).transpose(2, 3), r"qkv_weight has stride 16 in its last dimension; allowed: 1"),
    (2, torch.ones(4, 16, 3).transpose(1, 2), r"qkv_bias is not contiguous; pass it contiguous"),
    (3, torch.ones(64, 37).t(), r"out_weight has stride 37 in its last dimension; allowed: 1"),
    (3, torch.ones(37, 64).double(), r"out_weight is Double, x is Float; allowed: one dtype"),
    (4, torch.ones(36), r"out_bias has shape \(36\); allowed: \(C,\) = \(37\)"),
    (9, int32(5), r"head_counts\[0\] is 5; allowed: 0 to 4"),
    (12, 5, r"max_heads is 5; allowed: 0 to qkv_weight's 4 heads"),
]


@pytest.mark.parametrize(("index", "value", "message"), ATTENTION_ERRORS)
def test_attention_refuses_by_name(index: int, value: Any, message: str) -> None:
    arguments = list(attention_arguments("uniform, full", torch.float32))
    arguments[index] = value
    with pytest.raises(ValueError, match="elastic_attention_fwd: " + message):
        cpu_op("elastic_attention_fwd")(*arguments)


FFN_ERRORS: list[tuple[int, Any, str]] = [
    (1, torch.ones(12, 36), r"in_weight has shape \(12, 36\); allowed: \(F, C\) = \(any, 37\)"),
    (3, torch.ones(12, 37).t(), r"out_weight has stride 37 in its last dimension; allowed: 1"),
    (5, torch.ones(37).half(), r"ln_weight is Half, x is Float; allowed: one dtype"),
    (8, int32(13), r"neuron_counts\[0\] is 13; allowed: 0 to 12"),
    (10, 13, r"max_neurons is 13; allowed: 0 to in_weight's 12 rows"),
    (11, 9, r"activation is 9; allowed: 0 none"),
]


@pytest.mark.parametrize(("index", "value", "message"), FFN_ERRORS)
def test_ffn_refuses_by_name(index: int, value: Any, message: str) -> None:
    arguments = list(ffn_arguments("uniform, full", torch.float32))
    arguments[index] = value
    with pytest.raises(ValueError, match="elastic_ffn_fwd: " + message):
        cpu_op("elastic_ffn_fwd")(*arguments)


def test_weights_stay_where_they_are() -> None:
    """Nothing as large as a weight is allocated, and no weight moves."""
    torch.manual_seed(0)
    network = Network(width=256, heads=32, size=16, neurons=4096, dtype=torch.float32)
    shapes = [dk.SubnetShape((32,), (4096,)), dk.SubnetShape((8,), (1024,))]
    plan = dk.Plan.build(shapes, [[2], [1]])
    layer, x = plan.layer(0), network.tensor(3, 256)
    attention, ffn = network.attention(), network.ffn()
    pointers = [tensor.data_ptr() for tensor in (*attention, *ffn)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        y = cpu_op("elastic_attention_fwd")(
            *(x, *attention, int32(0, 2, 3), layer.rows, layer.heads, None, None),
            *(32, 2, 0.25, 1e-12, 0.0, 0.0, 0, True),
        )[0]
        cpu_op("elastic_ffn_fwd")(y, *ffn, layer.rows, layer.neurons, None, 4096, 1, 1e-12, 0.0, 0, True)
    raw = profile.profiler.kineto_results.events()
    largest = max(event.nbytes() for event in raw if event.name() == "[memory]")
    assert largest < 8 * 3 * 16 * 256 * 4  # the smallest active part of a weight
    assert pointers == [tensor.data_ptr() for tensor in (*attention, *ffn)]
