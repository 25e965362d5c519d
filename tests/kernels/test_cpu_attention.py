"""The CPU's attention over packed sequences against float64."""

from __future__ import annotations

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
    using_isa,
)

STATE = torch.tensor([987654321987, 41])


def check(arguments: tuple[Any, ...], isa: str) -> tuple[Tensor, Tensor]:
    """Runs the op poisoned and holds both results against float64; returns them."""
    with using_isa(isa):
        got = cpu_op("varlen_attention_fwd")(*arguments)
    wanted = reference.varlen_attention_fwd(*double(arguments))
    yardstick = reference.varlen_attention_fwd(*arguments)
    for name, one, two, three in zip(("out", "lse"), got, wanted, yardstick, strict=True):
        assert_close_to_float64(one, two, three, name=name)
    return got


def case(
    lengths: list[int],
    heads: int,
    size: int,
    dtype: torch.dtype,
    *,
    bias: bool = False,
    dropout: float = 0.0,
    save: bool = True,
) -> tuple[Any, ...]:
    """All heads in all sequences."""
    torch.manual_seed(0)
    tokens, longest = sum(lengths), max(lengths, default=0)
    table = torch.randn(heads + 1, 2 * (longest + 2) - 1).to(dtype) if bias else None
    return (
        torch.randn(tokens, heads, 3, size).to(dtype),
        borders(lengths),
        int32(0, tokens),
        None,
        table,
        STATE if dropout else None,
        heads,
        longest,
        size**-0.5,
        dropout,
        3,
        save,
    )


@each_isa
@each_dtype
@pytest.mark.parametrize("size", [1, 8, 13, 16, 32, 64, 80])  # below, at, between and above one and two registers
def test_head_sizes(isa: str, dtype: torch.dtype, size: int) -> None:
    check(case([5, 17, 1], 2, size, dtype), isa)


@each_isa
@each_dtype
@pytest.mark.parametrize(
    "lengths",
    [
        [1],  # softmax of one number
        [14, 15, 13],  # a strip of queries, one more, one less
        [127, 128, 129],  # a block of keys, one less, one more
        [300],  # three blocks of keys: sums are corrected twice
        [3, 0, 2, 0],  # empty sequences
        [],  # none
    ],
    ids=str,
)
def test_lengths(isa: str, dtype: torch.dtype, lengths: list[int]) -> None:
    check(case(lengths, 2, 16, dtype), isa)


@each_isa
@each_dtype
def test_position_bias(isa: str, dtype: torch.dtype) -> None:
    check(case([30, 131, 7], 3, 16, dtype, bias=True), isa)


@each_isa
@each_dtype
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_dropout(isa: str, dtype: torch.dtype, bias: bool) -> None:
    arguments = case([30, 133, 7], 3, 16, dtype, bias=bias, dropout=0.3)
    out, _ = check(arguments, isa)
    without = check((*arguments[:9], 0.0, *arguments[10:]), isa)[0]
    assert not torch.equal(out, without)


HEAD_COUNTS = {
    "widest first": ([4, 2, 1], [[5, 2], [7], [3, 1]]),
    "not sorted": ([1, 4, 3], [[3], [4, 20], [5]]),
    "a group skips the layer": ([3, 0, 2], [[4], [3, 2], [6]]),
    "an empty group": ([4, 2, 1], [[3, 2], [], [5]]),
    "all skip": ([0, 0], [[3], [2]]),
}


@each_isa
@each_dtype
@pytest.mark.parametrize("name", HEAD_COUNTS)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_heads_by_group(isa: str, dtype: torch.dtype, name: str, dropout: float) -> None:
    """Heads beyond a row's count and rows of no group hold NaN: reading them shows."""
    heads, groups = HEAD_COUNTS[name]
    lengths = [n for group in groups for n in group]
    qkv, cu_seqlens, _, _, *rest = case(lengths, 4, 16, dtype, bias=True, dropout=dropout)
    rows = borders([sum(group) for group in groups])
    padded = torch.full((len(qkv) + 3, 5, 3, 16), float("nan"), dtype=dtype)
    for begin, end, count in zip(rows.tolist(), rows[1:].tolist(), heads, strict=False):
        padded[begin:end, :count] = qkv[begin:end, :count]
    out, _ = check((padded, cu_seqlens, rows, int32(*heads), *rest), isa)
    for begin, end, count in zip(rows.tolist(), rows[1:].tolist(), heads, strict=False):
        assert (out[begin:end, count:] == 0).all()
    assert (out[rows[-1] :] == 0).all()


@each_isa
def test_rows_of_no_sequence_are_zero(isa: str) -> None:
    """`rows` may own bucketed rows past the last sequence."""
    qkv, cu_seqlens, _, *rest = case([4, 3], 2, 16, torch.float32)
    padded = torch.cat([qkv, torch.full((2, 2, 3, 16), float("nan"))])
    out, lse = check((padded, cu_seqlens, int32(0, 9), *rest), isa)
    assert (out[7:] == 0).all()
    assert (lse[:, 7:] == 0).all()


@each_isa
@each_dtype
def test_takes_strided_views(isa: str, dtype: torch.dtype) -> None:
    """Leading heads of a wider tensor, part before head, rows further apart."""
    qkv, *rest = case([9, 20], 2, 24, dtype, bias=True)
    wide = torch.full((len(qkv) + 1, 3, 4, 30), float("nan"), dtype=dtype)
    view = wide.permute(0, 2, 1, 3)[1:, 1:3, :, 5:29]
    view.copy_(qkv)
    check((view, *rest), isa)


@each_isa
def test_the_result_does_not_depend_on_the_number_of_threads(isa: str) -> None:
    arguments = case([260, 3], 1, 16, torch.float32)  # one head: two threads cut the queries
    results = []
    with using_isa(isa):
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(cpu_op("varlen_attention_fwd")(*arguments)[0])
    torch.testing.assert_close(*results)


@each_isa
@each_dtype
@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_a_scale_that_is_not_positive(isa: str, dtype: torch.dtype, scale: float) -> None:
    """At 0 every score is exact, so that the normaliser shows what the exponentials are worth."""
    arguments = list(case([33, 150], 2, 32, dtype))
    arguments[8] = scale
    check(tuple(arguments), isa)


@each_isa
def test_large_scores_do_not_overflow(isa: str) -> None:
    qkv, *rest = case([140], 1, 16, torch.float32)
    check((qkv * 30, *rest), isa)


@each_isa
def test_scores_of_ten_billion_stay_finite(isa: str) -> None:
    """A scale that is no power of two: a product that is fused with the difference from the largest score is off by
    half an ulp of a score, which here is over 88, the end of what an exponential holds."""
    qkv = (case([40], 1, 32, torch.float32)[0] * 1e5).requires_grad_()
    with using_isa(isa), dk.use_provider("cpu"):
        out = dk.varlen_attention(qkv, torch.tensor([0, 40], dtype=torch.int32), max_seqlen=40)
        (gradient,) = torch.autograd.grad(out.square().sum(), qkv)
    assert out.isfinite().all()
    assert gradient.isfinite().all()


@each_isa
def test_a_bias_of_minus_infinity_masks(isa: str) -> None:
    """Also where a whole block of keys is masked before the first one that is not."""
    arguments = list(case([200], 1, 16, torch.float32, bias=True))
    table = arguments[4]
    centre = table.shape[1] // 2
    table[:, : centre - 20] = -float("inf")  # keys more than 20 places to the left
    out, _ = check(tuple(arguments), isa)
    assert out.isfinite().all()


@each_isa
def test_never_writes_the_scores(isa: str) -> None:
    """The largest allocation is the output, not S x S."""
    arguments = case([1200], 2, 8, torch.float32, save=False)
    with (
        using_isa(isa),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
    ):
        out, lse = cpu_op("varlen_attention_fwd")(*arguments)
    raw = profile.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in raw if event.name() == "[memory]" and event.nbytes() > 0]
    assert max(sizes) == out.numel() * 4
    assert lse.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.ones(7, 2, 2, 4)}, r"qkv has shape \(7, 2, 2, 4\); allowed: \(T, H, 3, D\)"),
        ({0: torch.ones(7, 2, 3, 8)[..., ::2]}, r"qkv has stride 2 in its last dimension; allowed: 1"),
        ({1: int32(0, 4, 3)}, r"cu_seqlens goes backwards from 4 to 3 at sequence 1"),
        ({1: int32(1, 5)}, r"cu_seqlens starts at 1; allowed: 0"),
        ({1: int32(0, 7)}, r"sequence 0 has 7 tokens; allowed: up to max_seqlen = 4"),
        ({2: int32(0, 2, 7), 3: int32(2, 1)}, r"sequence 0 is rows 0 to 4 and crosses the border 2 of a group"),
        ({3: int32(3)}, r"head_counts\[0\] is 3; allowed: 0 to 2"),
        ({6: 3}, r"max_heads is 3; allowed: 0 to qkv's 2 heads"),
        ({4: torch.ones(1, 7)}, r"position_bias has 1 rows; allowed: at least max_heads = 2"),
        ({4: torch.ones(2, 8)}, r"position_bias has 8 distances; allowed: an odd number 2R-1"),
        ({4: torch.ones(2, 5)}, r"position_bias has 5 distances; allowed: .* at least 7"),
        ({5: torch.tensor([1]), 9: 0.5}, r"dropout_state has shape \(1\); allowed: two int64 numbers"),
        ({9: 1.0}, r"the dropout probability is 1; allowed: 0 up to but not including 1"),
    ],
)
def test_refuses_by_name(change: dict[int, Any], message: str) -> None:
    arguments = [torch.ones(7, 2, 3, 4), int32(0, 4, 7), int32(0, 7), None, None, None, 2, 4, 0.5, 0.0, 0, False]
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(ValueError, match="varlen_attention_fwd: " + message):
        cpu_op("varlen_attention_fwd")(*arguments)
