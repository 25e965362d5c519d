"""The gradients of the CPU's attention over packed sequences against float64: widths by group, views, what is not read.

Each provider gets the `out` and `lse` of its own forward: that is what it is given in use. Eight heads where two would
do: the yardstick is a largest error, and of few numbers that is luck.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from tests.kernels.cpu_isas import (
    borders,
    cpu_op,
    double,
    each_dtype,
    each_isa,
    int32,
    one_thread,  # noqa: F401
    strided,
    using_isa,
)
from tests.kernels.test_cpu_attention import HEAD_COUNTS, case

Gradients = tuple[Tensor, Tensor]


def gradients(forward: Callable[..., Any], backward: Callable[..., Any], arguments: tuple[Any, ...]) -> Gradients:
    """``(dqkv, dposition_bias)`` of (dout, *what the forward takes but `save`)."""
    dout, qkv, *rest = arguments
    out, lse = forward(qkv, *rest, True)
    return backward(dout, qkv, out, lse, *rest)


def on_cpu(arguments: tuple[Any, ...]) -> Gradients:
    return gradients(cpu_op("varlen_attention_fwd"), cpu_op("varlen_attention_bwd"), arguments)


def defined(arguments: tuple[Any, ...]) -> Gradients:
    return gradients(reference.varlen_attention_fwd, reference.varlen_attention_bwd, arguments)


def check(arguments: tuple[Any, ...], isa: str) -> Gradients:
    """Runs forward and backward poisoned and holds both gradients against float64; returns them."""
    with using_isa(isa):
        got = on_cpu(arguments)
    wanted, yardstick = defined(double(arguments)), defined(arguments)
    for name, one, two, three in zip(("dqkv", "dposition_bias"), got, wanted, yardstick, strict=True):
        assert_close_to_float64(one, two, three, name=name, factor=3.0)
    return got


def arguments_of(lengths: list[int], heads: int, size: int, dtype: torch.dtype, **keys: Any) -> tuple[Any, ...]:
    qkv, *rest, _ = case(lengths, heads, size, dtype, **keys)
    return (torch.randn(len(qkv), heads, size).to(dtype), qkv, *rest)


@each_isa
@each_dtype
@pytest.mark.parametrize("size", [1, 8, 13, 16, 32, 64, 80])  # below, at, between and above one and two registers
def test_head_sizes(isa: str, dtype: torch.dtype, size: int) -> None:
    _, dbias = check(arguments_of([5, 17, 1], 8, size, dtype), isa)
    assert dbias.shape == (0,)


@each_isa
@each_dtype
@pytest.mark.parametrize(
    "lengths",
    [
        [14, 15, 13],  # a strip of queries, one more, one less
        [127, 128, 129],  # a block of keys, one less, one more
        [300],  # three blocks of keys and of queries: every sum goes on in a second block
        [3, 0, 2, 0],  # empty sequences
        [],  # none
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_lengths(isa: str, dtype: torch.dtype, lengths: list[int], bias: bool) -> None:
    check(arguments_of(lengths, 8, 16, dtype, bias=bias), isa)


@each_isa
@each_dtype
@pytest.mark.parametrize("length", [3, 17, 130])
def test_a_key_that_no_query_looks_at(isa: str, dtype: torch.dtype, length: int) -> None:
    """Its scores are -inf and its probabilities 0: so are its gradients, whatever rows of zeros a kernel adds."""
    dout, qkv, *rest = arguments_of([length], 2, 16, dtype, bias=True)
    qkv[:, :, 0] = qkv[:, :, 0].abs() + 0.1
    qkv[1, :, 1] = float("-inf")
    with using_isa(isa):
        dqkv, dbias = on_cpu((dout, qkv, *rest))
    assert (dqkv[1, :, 1:] == 0).all()
    assert dqkv[:, :, 1:].isfinite().all()
    assert dbias.isfinite().all()


@each_isa
@each_dtype
def test_the_softmax_of_one_number_has_no_gradient(isa: str, dtype: torch.dtype) -> None:
    """Against 0, not against float64: what is left is the rounding of dout . v."""
    dout, qkv, *rest = arguments_of([1, 1], 8, 16, dtype, bias=True)
    with using_isa(isa):
        dqkv, dbias = on_cpu((dout, qkv, *rest))
    rounding = 16 * torch.finfo(dtype).eps * (dout * qkv[:, :, 2]).abs().sum(2).max()
    assert dbias.abs().max() <= rounding
    assert (dqkv[:, :, :2].abs() <= rounding * qkv.abs().max()).all()
    torch.testing.assert_close(dqkv[:, :, 2], dout)


@each_isa
@each_dtype
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_dropout_is_the_forward_s(isa: str, dtype: torch.dtype, bias: bool) -> None:
    arguments = arguments_of([30, 133, 7], 3, 16, dtype, bias=bias, dropout=0.3)
    dqkv, _ = check(arguments, isa)
    without = check((*arguments[:10], 0.0, arguments[11]), isa)[0]
    assert not torch.equal(dqkv, without)


@each_isa
@each_dtype
@pytest.mark.parametrize("name", HEAD_COUNTS)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_heads_by_group(isa: str, dtype: torch.dtype, name: str, dropout: float) -> None:
    """Heads beyond a row's count and rows of no group hold NaN in all that comes in: reading them shows."""
    heads, groups = HEAD_COUNTS[name]
    lengths = [n for group in groups for n in group]
    dout, qkv, cu_seqlens, _, _, *rest = arguments_of(lengths, 4, 16, dtype, bias=True, dropout=dropout)
    rows = borders([sum(group) for group in groups])
    wide = torch.full((len(qkv) + 3, 5, 3, 16), float("nan"), dtype=dtype)
    wide_dout = torch.full((len(qkv) + 3, 4, 16), float("nan"), dtype=dtype)
    plan = list(zip(rows.tolist(), rows[1:].tolist(), heads, strict=False))
    for begin, end, count in plan:
        wide[begin:end, :count] = qkv[begin:end, :count]
        wide_dout[begin:end, :count] = dout[begin:end, :count]
    arguments = (wide_dout, wide, cu_seqlens, rows, int32(*heads), *rest)
    dqkv, dbias = check(arguments, isa)
    for begin, end, count in plan:
        assert (dqkv[begin:end, count:] == 0).all()
    assert (dqkv[rows[-1] :] == 0).all()
    used = max((count for begin, end, count in plan if end > begin), default=0)
    assert (dbias[used:] == 0).all()
    with using_isa(isa):  # the rest of `out` and `lse` is not read either
        out, lse = cpu_op("varlen_attention_fwd")(*arguments[1:], True)
        for begin, end, count in plan:
            out[begin:end, count:] = float("nan")
            lse[count:, begin:end] = float("nan")
        again = cpu_op("varlen_attention_bwd")(wide_dout, wide, out, lse, *arguments[2:])
    assert torch.equal(again[0], dqkv)
    assert torch.equal(again[1], dbias)


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_no_sequence_are_zero(isa: str, dtype: torch.dtype) -> None:
    """`rows` may own bucketed rows past the last sequence."""
    dout, qkv, cu_seqlens, _, *rest = arguments_of([4, 3], 2, 16, dtype)
    poison = qkv.new_full((2, 2, 3, 16), float("nan"))
    dqkv, _ = check((torch.cat([dout, poison[:, :, 0]]), torch.cat([qkv, poison]), cu_seqlens, int32(0, 9), *rest), isa)
    assert (dqkv[7:] == 0).all()


@each_isa
@each_dtype
def test_takes_strided_views(isa: str, dtype: torch.dtype) -> None:
    """Leading heads of a wider tensor, part before head, rows further apart; dout likewise."""
    dout, qkv, *rest = arguments_of([9, 20], 2, 24, dtype, bias=True)
    wide = torch.full((len(qkv) + 1, 3, 4, 30), float("nan"), dtype=dtype)
    view = wide.permute(0, 2, 1, 3)[1:, 1:3, :, 5:29]
    view.copy_(qkv)
    check((strided(dout), view, *rest), isa)


@each_isa
def test_a_dense_layout_is_kept(isa: str) -> None:
    """Part before head: the gradient lies as qkv does, and its zeros are in the right places."""
    dout, qkv, cu_seqlens, rows, _, *rest = arguments_of([9, 20], 3, 8, torch.float32)
    parts_first = qkv.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    dqkv, _ = check((dout, parts_first, cu_seqlens, rows, int32(2), *rest), isa)
    assert dqkv.stride() == parts_first.stride()


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_result_does_not_depend_on_the_number_of_threads(isa: str, dtype: torch.dtype) -> None:
    """Bit by bit, and from call to call; the bias adds up over all sequences."""
    arguments = arguments_of([140, 3, 60, 131, 5], 3, 16, dtype, bias=True, dropout=0.1)
    results = []
    with using_isa(isa):
        out, lse = cpu_op("varlen_attention_fwd")(*arguments[1:], True)
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            results.append(cpu_op("varlen_attention_bwd")(*arguments[:2], out, lse, *arguments[2:]))
    for dqkv, dbias in results[1:]:
        assert torch.equal(dqkv, results[0][0])
        assert torch.equal(dbias, results[0][1])


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_scores_do_not_overflow(isa: str, dtype: torch.dtype) -> None:
    dout, qkv, *rest = arguments_of([140], 1, 16, dtype)
    dqkv, _ = check((dout, qkv * 8, *rest), isa)
    assert dqkv.isfinite().all()


@each_isa
@pytest.mark.parametrize("scale", [0.0, -0.25])
def test_any_scale(isa: str, scale: float) -> None:
    arguments = list(arguments_of([30], 2, 16, torch.float32))
    arguments[9] = scale
    dqkv, _ = check(tuple(arguments), isa)
    assert (dqkv[:, :, :2] == 0).all() == (scale == 0)


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bias_of_minus_infinity_masks(isa: str, dtype: torch.dtype) -> None:
    """A masked place has no gradient; also where a whole block of keys is masked."""
    arguments = arguments_of([200], 1, 16, dtype, bias=True)
    table = arguments[5]
    centre = table.shape[1] // 2
    table[:, : centre - 20] = -float("inf")  # keys more than 20 places to the left
    dqkv, dbias = check(arguments, isa)
    assert dqkv.isfinite().all()
    assert (dbias[:, : centre - 20] == 0).all()


@each_isa
def test_a_nan_stays_in_its_sequence_and_head(isa: str) -> None:
    arguments = arguments_of([20, 17], 2, 16, torch.float32, bias=True)
    clean, _ = check(arguments, isa)
    arguments[0][3, 1, 5] = float("nan")
    with using_isa(isa):
        dqkv, dbias = on_cpu(arguments)
    assert torch.equal(dqkv[20:], clean[20:])
    assert torch.equal(dqkv[:, 0], clean[:, 0])
    assert dqkv[:20, 1].isnan().any()
    assert dbias[0].isfinite().all()


@each_isa
def test_never_writes_the_scores(isa: str) -> None:
    """The largest allocation is the gradient, not S x S."""
    arguments = arguments_of([600], 2, 8, torch.float32, bias=True)
    with using_isa(isa):
        out, lse = cpu_op("varlen_attention_fwd")(*arguments[1:], True)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            dqkv, _ = cpu_op("varlen_attention_bwd")(*arguments[:2], out, lse, *arguments[2:])
    raw = profile.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in raw if event.name() == "[memory]" and event.nbytes() > 0]
    assert max(sizes) == dqkv.numel() * 4


def test_gradcheck_through_autograd() -> None:
    torch.manual_seed(0)
    qkv, table = torch.randn(7, 2, 3, 4, dtype=torch.float64), torch.randn(2, 9, dtype=torch.float64)
    plan = {"rows": int32(0, 4, 7), "head_counts": int32(2, 1), "max_heads": 2, "max_seqlen": 4}

    def function(qkv: Tensor, table: Tensor) -> Tensor:
        return dk.varlen_attention(
            *(qkv, int32(0, 4, 7)),
            **plan,
            position_bias=table,
            dropout_p=0.25,
            dropout_state=torch.tensor([5, 6]),
        )

    with dk.use_provider("cpu"):
        torch.autograd.gradcheck(function, (qkv.requires_grad_(), table.requires_grad_()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.ones(7, 2, 5)}, r"dout has shape \(7, 2, 5\); allowed: \(T, max_heads, D\) = \(7, 2, 4\)"),
        ({0: torch.ones(7, 2, 4).double()}, r"dout is Double, qkv is Float; allowed: one dtype"),
        ({0: torch.ones(7, 2, 8)[..., ::2]}, r"dout has stride 2 in its last dimension; allowed: 1"),
        ({1: torch.ones(7, 2, 2, 4)}, r"qkv has shape \(7, 2, 2, 4\); allowed: \(T, H, 3, D\)"),
        ({2: torch.ones(6, 2, 4)}, r"out has shape \(6, 2, 4\); allowed: \(T, max_heads, D\) = \(7, 2, 4\)"),
        ({3: torch.ones(0)}, r"lse has shape \(0\); allowed: \(max_heads, T\) = \(2, 7\)"),
        ({3: torch.ones(2, 7).double()}, r"lse is Double; allowed: Float, as the forward saved it"),
        ({4: int32(0, 7)}, r"sequence 0 has 7 tokens; allowed: up to max_seqlen = 4"),
        ({6: int32(3)}, r"head_counts\[0\] is 3; allowed: 0 to 2"),
        ({7: torch.ones(1, 7)}, r"position_bias has 1 rows; allowed: at least max_heads = 2"),
        ({9: 3}, r"max_heads is 3; allowed: 0 to qkv's 2 heads"),
        ({12: 1.0}, r"the dropout probability is 1; allowed: 0 up to but not including 1"),
    ],
)
def test_refuses_by_name(change: dict[int, Any], message: str) -> None:
    arguments = [torch.ones(7, 2, 4), torch.ones(7, 2, 3, 4), torch.ones(7, 2, 4), torch.ones(2, 7)]
    arguments += [int32(0, 4, 7), int32(0, 7), None, None, None, 2, 4, 0.5, 0.0, 0]
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(ValueError, match="varlen_attention_bwd: " + message):
        cpu_op("varlen_attention_bwd")(*arguments)
