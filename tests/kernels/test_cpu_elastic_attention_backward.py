"""The gradients of the CPU's elastic_attention against float64, over plans that mix widths and skip layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from tests.kernels.cases import DROPOUT_STATE, PLANS, Network, bias_table, plan_of
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
from tests.kernels.test_cpu_ffn_backward import poison_beyond
from tests.kernels.test_cpu_sublayers import SEEDS, attention_arguments

RESULTS = (
    *("dx", "dqkv_weight", "dqkv_bias", "dout_weight", "dout_bias", "dln_weight", "dln_bias"),
    "dposition_bias",
)


Forward = Callable[..., Any]


def gradient_of_y(forward: tuple[Any, ...], seed: int) -> Tensor:
    """Random, with NaN in the rows of no group."""
    x, rows = forward[0], forward[8].tolist()
    torch.manual_seed(100 + seed)
    dy = torch.randn(x.shape, dtype=torch.float64).to(x.dtype)
    return poison_beyond(dy, rows, [x.shape[1]] * (len(rows) - 1))


def call_of(name: str, dtype: torch.dtype, seed: int = 0, **keys: Any) -> tuple[Any, ...]:
    """(dy, *what the forward takes)."""
    forward = attention_arguments(name, dtype, seed, **keys)
    return (gradient_of_y(forward, seed), *forward)


def backward_arguments(run: Forward, call: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the backward takes after the forward `run`, with NaN in all that it must not read."""
    dy, *forward = call
    x, qkv_weight, _, out_weight, _, ln_weight, _, cu_seqlens, rows, counts, table, state, *numbers = forward
    max_heads, max_seqlen, scale, _, attention_dropout, hidden_dropout, stream, _ = numbers
    _, qkv, context, lse, hidden, mean, rstd = run(*forward)
    borders, heads = rows.tolist(), counts.tolist()
    active = [x.shape[1] if count else 0 for count in heads]
    saved = (
        poison_beyond(qkv, borders, heads),
        poison_beyond(context, borders, heads),
        poison_beyond(lse.t(), borders, heads).t().contiguous(),
        poison_beyond(hidden, borders, active),
        *(poison_beyond(v[:, None], borders, [min(1, n) for n in heads])[:, 0] for v in (mean, rstd)),
    )
    if x.is_contiguous():
        x = poison_beyond(x, borders, active)
    plan = (cu_seqlens, rows, counts, table, state, max_heads, max_seqlen, scale)
    return (dy, x, qkv_weight, out_weight, ln_weight, *saved, *plan, attention_dropout, hidden_dropout, stream)


def on_cpu(call: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return cpu_op("elastic_attention_bwd")(*backward_arguments(cpu_op("elastic_attention_fwd"), call))


def defined(call: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return reference.elastic_attention_bwd(*backward_arguments(reference.elastic_attention_fwd, call))


def check(calls: list[tuple[Any, ...]], isa: str) -> tuple[Tensor, ...]:
    """Runs forward and backward poisoned on each call, and holds the gradients of all calls against float64.

    Returns the last ones. Each provider reads what its own forward saved, as in use.
    """
    parts: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in RESULTS}
    for call in calls:
        with using_isa(isa):
            got = on_cpu(call)
        for name, *results in zip(RESULTS, got, defined(double(call)), defined(call), strict=True):
            parts[name].append(tuple(result.flatten() for result in results))
    for name, results in parts.items():
        one, two, three = (torch.cat(values) for values in zip(*results, strict=True))
        assert_close_to_float64(one, two, three, name=name, factor=3.0)
    return got


@each_isa
@each_dtype
@pytest.mark.parametrize("name", [name for name in PLANS if name != "one token"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_every_gradient(isa: str, dtype: torch.dtype, name: str, dropout: float) -> None:
    calls = [call_of(name, dtype, seed, dropout=dropout, bias=dropout > 0) for seed in SEEDS]
    dx, dqkv_weight, dqkv_bias, dout_weight, *_, dposition_bias = check(calls, isa)
    dy, borders, heads = calls[-1][0], calls[-1][9].tolist(), calls[-1][10].tolist()
    for begin, end, count in zip(borders, borders[1:], heads, strict=False):
        if count == 0:
            assert torch.equal(dx[begin:end], dy[begin:end])
    assert (dx[borders[-1] :] == 0).all()
    # An empty group asks for nothing.
    widest = max((n for n, a, b in zip(heads, borders, borders[1:], strict=False) if b > a), default=0)
    for inactive in (dqkv_weight[widest:], dqkv_bias[widest:], dout_weight[:, widest * 16 :], dposition_bias[widest:]):
        assert (inactive == 0).all()


@each_isa
@each_dtype
def test_one_token(isa: str, dtype: torch.dtype) -> None:
    """Attention passes the value through: the gradients of query and key are nothing but rounding, of 0."""
    for call in (call_of("one token", dtype, seed) for seed in SEEDS):
        with using_isa(isa):
            got = on_cpu(call)
        for one, other in zip(got, defined(call), strict=True):
            tolerance = 16 * torch.finfo(dtype).eps * max(1.0, other.abs().max().item() if other.numel() else 0.0)
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@each_isa
@each_dtype
@pytest.mark.parametrize("layout", ["heads apart", "parts first"])
def test_takes_strided_and_offset_views(isa: str, dtype: torch.dtype, layout: str) -> None:
    """Weights as views whose heads, parts and rows do not lie one behind the other, and dy and x as views."""
    calls = []
    for seed in SEEDS:
        dy, x, qkv_weight, qkv_bias, out_weight, *rest = call_of("mixed, widest first", dtype, seed)
        if layout == "heads apart":
            qkv_weight = strided(qkv_weight)
        else:
            qkv_weight = qkv_weight.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
        vectors = [strided(vector) for vector in rest[:3]]
        weights = (qkv_weight, qkv_bias, strided(out_weight, 7, 3), *vectors)
        calls.append((strided(dy, 5, 2), strided(x), *weights, *rest[3:]))
    assert check(calls, isa)[1].is_contiguous()


@each_isa
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_result_does_not_depend_on_the_number_of_threads(isa: str, dropout: float) -> None:
    """The generic set and float64 are PyTorch's library, which promises nothing between numbers of threads."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        call = call_of("mixed, not sorted", dtype, dropout=dropout, bias=True)
        results = []
        with using_isa(isa):
            arguments = backward_arguments(cpu_op("elastic_attention_fwd"), call)
            for count in (1, 1) if isa == "generic" else (1, 2, 3, 2):
                torch.set_num_threads(count)
                results.append(cpu_op("elastic_attention_bwd")(*arguments))
        for other in results[1:]:
            assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@each_isa
def test_rows_of_a_group_past_the_last_sequence(isa: str) -> None:
    """Bucketed rows that a group owns: no attention, but LayerNorm of x and the bias, and its gradient."""
    calls = []
    for seed in SEEDS:
        x, *rest = attention_arguments("uniform, full", torch.float32, seed)
        x[int(rest[7][-1]) :] = torch.randn_like(x[int(rest[7][-1]) :])
        rest[7] = int32(0, len(x))
        calls.append((gradient_of_y((x, *rest), seed), x, *rest))
    check(calls, isa)


@each_isa
def test_backward_of_the_op_itself(isa: str) -> None:
    """Forward and backward of this provider together, against the reference's."""
    torch.manual_seed(0)
    network = Network(width=37, heads=4, size=16, neurons=12, dtype=torch.float32)
    plan, cu_seqlens = plan_of("a group skips the layer")
    x, weights, table = network.tensor(plan.num_rows, 37), network.attention(), bias_table(network, plan.max_seqlen)
    keys: dict[str, Any] = {"attention_dropout": 0.25, "hidden_dropout": 0.25, "max_seqlen": plan.max_seqlen}

    def gradients() -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in (x, *weights, table)]
        y = dk.elastic_attention(
            *leaves[:7],
            cu_seqlens,
            plan.layer(0),
            position_bias=leaves[7],
            dropout_state=torch.tensor(DROPOUT_STATE),
            **keys,
        )
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
    (2, torch.ones(4, 3, 16, 36), r"qkv_weight has shape \(4, 3, 16, 36\); allowed: \(H, 3, D, C\)"),
    (3, torch.ones(64, 37).t(), r"out_weight has stride 37 in its last dimension; allowed: 1"),
    (4, torch.ones(36), r"ln_weight has shape \(36\); allowed: \(C,\) = \(37\)"),
    (5, torch.ones(0), r"qkv has shape \(0\); allowed: \(T, max_heads, 3, D\) = \(16, 4, 3, 16\)"),
    (6, torch.ones(16, 16, 4).transpose(1, 2), r"context is not contiguous; pass what the forward returned"),
    (7, torch.ones(4, 15), r"lse has shape \(4, 15\); allowed: \(max_heads, T\) = \(4, 16\)"),
    (8, torch.ones(37, 16).t(), r"hidden is not contiguous; pass what the forward returned"),
    (9, torch.ones(15), r"mean has shape \(15\); allowed: \(T,\) = \(16\)"),
    (13, int32(5), r"head_counts\[0\] is 5; allowed: 0 to 4"),
    (14, torch.ones(4, 3), r"position_bias has 3 distances; allowed: .* at least 13"),
    (16, 5, r"max_heads is 5; allowed: 0 to qkv_weight's 4 heads"),
]


@pytest.mark.parametrize(("index", "value", "message"), ERRORS)
def test_refuses_by_name(index: int, value: Any, message: str) -> None:
    arguments = list(backward_arguments(reference.elastic_attention_fwd, call_of("uniform, full", torch.float32)))
    arguments[index] = value
    with pytest.raises(ValueError, match="elastic_attention_bwd: " + message):
        cpu_op("elastic_attention_bwd")(*arguments)
