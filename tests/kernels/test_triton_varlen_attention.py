"""The Triton provider of ``varlen_attention``: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.testing.inputs import DTYPES, poisoned_allocations
from dynabert_kernels.triton import varlen_attention, varlen_attention_backward
from dynabert_kernels.triton.attention_arguments import Sequences, supports_bwd, supports_fwd
from dynabert_kernels.triton.attention_dropout import MAX_KEYS
from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED, architecture
from dynabert_kernels.triton.tiles import ATTENTION_HEAD_SIZES, ATTENTION_TILES, AttentionTile
from dynabert_kernels.triton.varlen_attention import varlen_attention_fwd
from dynabert_kernels.triton.varlen_attention_backward import varlen_attention_bwd
from tests.kernels.cases import PLANS
from tests.kernels.draws import Draw, check_draws

DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
SEED_AND_OFFSET = [987654321987, (1 << 32) - 2]  # the offset runs over 32 bits inside the batch
HEADS = 2

pytestmark = pytest.mark.skipif(
    IMPORT_ERROR is not None or not (INTERPRETED or torch.cuda.is_available()),
    reason=IMPORT_ERROR or "no CUDA device, and TRITON_INTERPRET is set to 0",
)


class Case(NamedTuple):
    """Arguments of the forward op, and a gradient of its result."""

    qkv: Tensor
    cu_seqlens: Tensor
    rows: Tensor
    head_counts: Tensor | None
    position_bias: Tensor | None
    dropout_state: Tensor | None
    max_heads: int
    max_seqlen: int
    scale: float
    dropout_p: float
    dropout_stream: int
    dout: Tensor

    @property
    def forward(self) -> tuple[Any, ...]:
        return (*self[:-1], True)

    def backward(self, out: Tensor, lse: Tensor) -> tuple[Any, ...]:
        return (self.dout, self.qkv, out, lse, *self[1:-1])

    def double(self) -> Case:
        wide = (v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in self)
        return Case(*wide)


def borders(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)


def case(
    groups: list[list[int]],
    head_counts: list[int] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    heads: int = HEADS,
    size: int = 16,
    bias: bool = False,
    dropout: float = 0.0,
    dead_rows: int = 0,
    seed: int = 0,
) -> Case:
    """NaN in the heads that a row does not use, in one head more than any uses, and in the rows of no group."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)

    lengths = [n for group in groups for n in group]
    rows, longest = borders([sum(group) for group in groups]), max(lengths, default=0)
    num_rows = sum(lengths) + dead_rows
    counts = [heads] * len(groups) if head_counts is None else head_counts
    qkv = torch.full((num_rows, heads + 1, 3, size), float("nan"), dtype=dtype, device=DEVICE)
    dout = torch.full((num_rows, heads, size), float("nan"), dtype=dtype, device=DEVICE)
    for begin, end, count in zip(rows.tolist(), rows[1:].tolist(), counts, strict=False):
        qkv[begin:end, :count] = normal(end - begin, count, 3, size)
        dout[begin:end, :count] = normal(end - begin, count, size)
    return Case(
        qkv,
        borders(lengths),
        rows,
        None if head_counts is None else torch.tensor(counts, dtype=torch.int32, device=DEVICE),
        normal(heads + 1, 2 * (longest + 2) - 1) if bias else None,
        torch.tensor(SEED_AND_OFFSET, device=DEVICE) if dropout else None,
        heads,
        longest,
        size**-0.5,
        dropout,
        5,
        dout,
    )


def results(forward: Callable[..., Any], backward: Callable[..., Any], sample: Case) -> dict[str, Tensor]:
    out, lse = forward(*sample.forward)
    dqkv, dbias = backward(*sample.backward(out, lse))
    return {"out": out, "lse": lse, "dqkv": dqkv, "dbias": dbias}


def ours(sample: Case) -> dict[str, Tensor]:
    with poisoned_allocations():
        return results(varlen_attention_fwd, varlen_attention_bwd, sample)


def by_reference(sample: Case) -> dict[str, Tensor]:
    return results(reference.varlen_attention_fwd, reference.varlen_attention_bwd, sample)


def check(drawn: Case | Callable[..., Case]) -> dict[str, Tensor]:
    """Results err at most twice, gradients three times, what PyTorch does in the same dtype.

    ``drawn``: a case, or what makes the case of a ``seed``, for PyTorch's luck in one (see ``check_draws``).
    """

    def draw(sample: Case) -> Draw:
        return Draw(ours(sample), by_reference(sample.double()), by_reference(sample))

    first = draw(drawn if isinstance(drawn, Case) else drawn(seed=0))
    factors = {name: 3.0 if name.startswith("d") else 2.0 for name in first.yardstick}
    return check_draws(first, factors, None if isinstance(drawn, Case) else lambda seed: draw(drawn(seed=seed)))


MIXED = [[5, 17], [30, 1, 0, 3], [], [7]]
MIXED_HEADS = [2, 1, 2, 0]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=NAMES.get)
@pytest.mark.parametrize(("bias", "dropout"), [(False, 0.0), (True, 0.3)], ids=["plain", "bias and dropout"])
def test_mixed_heads_and_lengths(dtype: torch.dtype, bias: bool, dropout: float) -> None:
    if dtype == torch.float64 and not INTERPRETED:
        pytest.skip("float64 is for gradcheck in the interpreter; a GPU refuses it by name")

    check(partial(case, MIXED, MIXED_HEADS, dtype, bias=bias, dropout=dropout, dead_rows=5))


@pytest.mark.parametrize(
    "lengths",
    [
        [1],  # softmax of one number
        [1] * 20,  # more sequences than rows in a tile
        [2, 3, 5, 7, 11, 13],  # primes
        [31, 32, 33],  # a tile, one less, one more (interpreter)
        [131],  # many steps of the online softmax
        [0, 4, 0, 0, 3, 0],  # empty sequences, first and last too
    ],
    ids=str,
)
def test_lengths(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (varlen_attention, varlen_attention_backward):
        monkeypatch.setattr(
            module, "short_attention_tile", lambda *_: None
        )  # tests/kernels/test_triton_short_attention
    check(partial(case, [lengths], heads=1, bias=True))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_head_sizes(size: int) -> None:
    check(partial(case, [[9, 20], [6]], [2, 1], torch.bfloat16, heads=2, size=size, bias=True, dropout=0.2))


@pytest.mark.parametrize("name", PLANS)
def test_plans(name: str) -> None:
    heads, groups = PLANS[name]
    drawn = partial(case, groups, heads, heads=4, bias=True, dropout=0.25, dead_rows=3)
    sample, got = drawn(), check(drawn)
    for begin, end, count in zip(sample.rows.tolist(), sample.rows[1:].tolist(), heads, strict=False):
        assert (got["out"][begin:end, count:] == 0).all()
        assert (got["dqkv"][begin:end, count:] == 0).all()
    end = int(sample.rows[-1])
    assert (got["out"][end:] == 0).all()
    assert (got["dqkv"][end:] == 0).all()
    assert (got["lse"][:, end:] == 0).all()


@given(
    groups=st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 20), max_size=3)), min_size=1, max_size=4),
    dropout=st.sampled_from([0.0, 0.5]),
    dead_rows=st.integers(0, 9),
)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_random_plans(groups: list[tuple[int, list[int]]], dropout: float, dead_rows: int) -> None:
    counts, lengths = [count for count, _ in groups], [list(group) for _, group in groups]
    check(partial(case, lengths, counts, bias=True, dropout=dropout, dead_rows=dead_rows))


@pytest.mark.skipif(not INTERPRETED, reason="a GPU uses its own tiles already")
@pytest.mark.parametrize(
    ("tile", "groups"),
    [
        ((64, 64), [[5, 17, 30], [64, 1, 40, 23]]),  # what GPUs use; sequences within, across and as long as a tile
        ((128, 64), [[127, 1], [2]]),
        ((16, 32), [[16, 15], [17]]),
        ((32, 16), [[31, 7]]),
    ],
    ids=str,
)
def test_other_tiles(tile: tuple[int, int], groups: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (varlen_attention, varlen_attention_backward):
        monkeypatch.setattr(
            module,
            "attention_tile",
            lambda kernel, qkv: AttentionTile(min(tile) if kernel == "dbias" else tile[0], tile[1], 4, 1),
        )
    check(partial(case, groups, [2, 1][: len(groups)], bias=True, dropout=0.3, dead_rows=1))


def test_rows_that_no_sequence_holds_are_zero() -> None:
    """`rows` may own bucketed rows past the last sequence."""
    sample = case([[4, 3, 9]], heads=2)
    cut = sample._replace(cu_seqlens=sample.cu_seqlens[:-1].contiguous())
    cut.qkv[7:] = float("nan")
    cut.dout[7:] = float("nan")
    got = check(cut)
    assert (got["out"][7:] == 0).all()
    assert (got["dqkv"][7:] == 0).all()


def test_no_tokens_and_no_heads() -> None:
    for sample in (case([[]], bias=True), case([[3, 2]], [0], heads=0, bias=True)):
        got = check(sample)
        assert (got["dqkv"] == 0).all()
        assert (got["dbias"] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=NAMES.get)
def test_strided_views_give_the_same_bits(dtype: torch.dtype) -> None:
    """Part before head, heads of a wider tensor, rows further apart, an offset: NaN all around."""
    sample = case([[9, 20], [6]], [2, 1], dtype, heads=2, bias=True, dropout=0.2)
    wide = torch.full((len(sample.qkv) + 1, 3, 5, 23), float("nan"), dtype=dtype, device=DEVICE)
    qkv = wide.permute(0, 2, 1, 3)[1:, 1:4, :, 5:21].copy_(sample.qkv)
    wide = torch.full((len(sample.qkv), 4, 19), float("nan"), dtype=dtype, device=DEVICE)
    dout = wide[:, 1:3, 3:].copy_(sample.dout)
    table = torch.full((4, sample.position_bias.shape[1] + 2), float("nan"), dtype=dtype, device=DEVICE)
    bias = table[:3, 1:-1].copy_(sample.position_bias)
    strided = sample._replace(qkv=qkv, dout=dout, position_bias=bias)
    assert not qkv.is_contiguous()
    packed, views = ours(sample), check(strided)
    if INTERPRETED:  # on a GPU the layout may depend on strides
        for name, value in packed.items():
            assert torch.equal(value, views[name]), name


def test_a_sequence_does_not_depend_on_its_neighbours() -> None:
    """Alone, with its group's index added to the offset, it has the same mask and result."""
    groups = [[5, 7], [12, 3], [6]]
    sample = case(groups, [2, 1, 1], torch.float32, dropout=0.4)
    together = ours(sample)
    rows = sample.rows.tolist()
    for group, count in enumerate([2, 1, 1]):
        begin, end = rows[group], rows[group + 1]
        alone = sample._replace(
            qkv=sample.qkv[begin:end],
            dout=sample.dout[begin:end],
            cu_seqlens=borders(groups[group]),
            rows=borders([end - begin]),
            head_counts=torch.tensor([count], dtype=torch.int32, device=DEVICE),
            dropout_state=sample.dropout_state + torch.tensor([0, group], device=DEVICE),
        )
        got = ours(alone)
        torch.testing.assert_close(got["out"], together["out"][begin:end])
        torch.testing.assert_close(got["dqkv"], together["dqkv"][begin:end])


@pytest.mark.parametrize("probability", [1e-9, 0.1, 0.5, 0.999])
def test_dropout_keeps_what_the_reference_keeps(probability: float) -> None:
    """With values that are unit vectors the output is the matrix of dropped probabilities itself."""
    sample = case([[3], [16, 7]], heads=1, dropout=0.5)._replace(dropout_p=probability)
    sample.qkv[:, :, 2] = torch.eye(16, device=DEVICE).repeat(3, 1)[: len(sample.qkv), None]
    got, wanted = (f(*sample.forward)[0] for f in (varlen_attention_fwd, reference.varlen_attention_fwd))
    assert torch.equal(got == 0, wanted == 0)
    torch.testing.assert_close(got, wanted)


def test_backward_is_deterministic() -> None:
    sample = case(MIXED, MIXED_HEADS, bias=True, dropout=0.2)
    first, second = ours(sample), ours(sample)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_large_scores_do_not_overflow() -> None:
    # Softmax then picks one key in nearly every row, and the error is that of the few rows with a rival: of a single
    # head's it would be luck (PyTorch's own varies a hundredfold from seed to seed).
    sample = case([[70]], heads=4)
    check(sample._replace(qkv=sample.qkv * 30))


def test_a_bias_of_minus_infinity_masks() -> None:
    """Also where whole tiles of keys are masked before the first one that is not."""
    sample = case([[100]], heads=1, bias=True)
    centre = sample.position_bias.shape[1] // 2
    sample.position_bias[:, : centre - 20] = -float("inf")  # keys more than 20 places to the left
    check(sample)


def test_without_fill_the_inactive_part_is_not_written() -> None:
    """Inside a sub-layer nobody reads it, so nobody writes it."""
    sample = case([[5, 17], [12, 3], [6]], [2, 1, 0], dropout=0.2, dead_rows=2)
    filled = ours(sample)
    out, lse, dqkv = (torch.full_like(filled[name], 7.0) for name in ("out", "lse", "dqkv"))
    sequences = Sequences(*sample[1:-1])
    varlen_attention.attention_forward(sample.qkv, sequences, out, lse, fill=False, op="test")
    varlen_attention_backward.attention_backward(
        sample.dout, sample.qkv, out, lse, sequences, dqkv, None, fill=False, op="test"
    )
    active = torch.zeros(len(out), HEADS + 1, dtype=torch.bool, device=DEVICE)
    for begin, end, count in [(0, 22, 2), (22, 37, 1)]:
        active[begin:end, :count] = True
    for name, got in (("out", out), ("dqkv", dqkv), ("lse", lse.t())):
        mask, wanted = active[:, : got.shape[1]], filled[name].t() if name == "lse" else filled[name]
        assert torch.equal(got[mask], wanted[mask]), name
        assert (got[~mask] == 7.0).all(), name


# Through the registered op.


@pytest.mark.skipif(not INTERPRETED, reason="gradcheck needs float64, which a GPU refuses by name")
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["plain", "dropout"])
def test_gradcheck(dropout: float) -> None:
    sample = case([[3], [2]], [2, 1], torch.float64, heads=2, bias=True, dropout=dropout)

    def op(qkv: Tensor, bias: Tensor) -> Tensor:
        return dk.varlen_attention(
            *(qkv, sample.cu_seqlens),
            max_seqlen=sample.max_seqlen,
            rows=sample.rows,
            head_counts=sample.head_counts,
            max_heads=2,
            position_bias=bias,
            dropout_p=dropout,
            dropout_state=sample.dropout_state,
        )

    qkv = sample.qkv[:, :2].nan_to_num(1.0).requires_grad_()
    with dk.use_provider("triton"):
        assert torch.autograd.gradcheck(op, (qkv, sample.position_bias.requires_grad_()), fast_mode=True)


def test_opcheck() -> None:
    sample = case([[3], [2, 4]], [2, 1], heads=2, bias=True, dropout=0.25)
    qkv = sample.qkv.nan_to_num(1.0).requires_grad_()
    arguments = sample._replace(qkv=qkv, position_bias=sample.position_bias.requires_grad_()).forward
    with dk.use_provider("triton"):
        torch.library.opcheck(torch.ops.dynabert.varlen_attention_fwd.default, arguments)


def test_an_expanded_gradient_is_taken() -> None:
    # sum().backward() delivers a gradient of stride 0.
    sample = case([[5, 9]], heads=2)
    qkv = sample.qkv[:, :2].clone().requires_grad_()
    with dk.use_provider("triton"):
        dk.varlen_attention(qkv, sample.cu_seqlens, max_seqlen=9).sum().backward()
    torch.testing.assert_close(qkv.grad[:, :, 2].sum((0, 1)), torch.full((16,), 28.0, device=DEVICE))


# What it refuses.


def test_supports_names_what_it_refuses() -> None:
    sample = case([[5, 9]], heads=2, bias=True)
    forward = sample.forward
    out, lse = sample.dout, sample.dout.new_zeros(2, 14)
    assert supports_fwd(*forward) is None
    assert supports_bwd(*sample.backward(out, lse)) is None
    assert "dtype is torch.int32" in str(supports_fwd(sample.qkv.int(), *forward[1:]))
    assert "the head size is 15; allowed: 16, 32, 64, 128" in str(supports_fwd(sample.qkv[..., 1:], *forward[1:]))
    turned = sample.qkv.transpose(2, 3).contiguous().transpose(2, 3)
    assert "its last stride must be 1" in str(supports_fwd(turned, *forward[1:]))
    turned = sample.dout.transpose(1, 2).contiguous().transpose(1, 2)
    assert "its last stride must be 1" in str(supports_bwd(*sample._replace(dout=turned).backward(out, lse)))
    assert "scale is 0 with a position bias" in str(supports_fwd(*sample._replace(scale=0.0).forward))
    with dk.use_provider("triton"), pytest.raises(ValueError, match="was forced, but the head size is 8"):
        dk.varlen_attention(sample.qkv[..., :8], sample.cu_seqlens, max_seqlen=9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"qkv": c.qkv[..., :8]}, r"qkv has the wrong shape; got \(14, 3, 3, 8\); allowed: \(T, H, 3, D\)"),
        (lambda c: {"qkv": c.qkv.transpose(2, 3).contiguous().transpose(2, 3)}, r"do not lie side by side"),
        (lambda c: {"max_heads": 4}, r"max_heads is out of range; got 4; allowed: 0 to qkv's 3 heads"),
        (lambda c: {"cu_seqlens": c.cu_seqlens.long()}, r"cu_seqlens does not fit; got .*int64"),
        (lambda c: {"rows": c.rows[None]}, r"rows does not fit; got shape \(1, 2\)"),
        (lambda c: {"head_counts": c.rows}, r"head_counts does not fit; got shape \(2,\).*allowed: 1 contiguous"),
        (lambda c: {"dropout_state": c.rows, "dropout_p": 0.5}, r"dropout_state does not fit; got .*int32"),
        (lambda c: {"position_bias": c.position_bias[:1]}, r"position_bias has the wrong shape; got \(1, 21\)"),
        (lambda c: {"position_bias": c.position_bias[:, :15]}, r"R at least max_seqlen, here 9"),
        (lambda c: {"position_bias": c.position_bias[:, :18]}, r"position_bias does not fit; got 18 distances"),
        (lambda c: {"position_bias": c.position_bias.half()}, r"position_bias does not fit; .*float16"),
        (lambda c: {"scale": 0.0}, r"scale is 0 with a position bias; .*use another provider"),
    ],
)
def test_errors(change: Callable[[Case], dict[str, Any]], message: str) -> None:
    sample = case([[5, 9]], heads=2, bias=True)
    wrong = sample._replace(**change(sample))
    with pytest.raises(ValueError, match=r"varlen_attention_fwd \(triton\): .*" + message):
        varlen_attention_fwd(*wrong.forward)
    out, lse = sample.dout, sample.dout.new_zeros(2, 14)
    with pytest.raises(ValueError, match=r"varlen_attention_bwd \(triton\): .*" + message):
        varlen_attention_bwd(*wrong.backward(out, lse))


def test_errors_of_the_backward_launcher() -> None:
    sample = case([[5, 9]], heads=2)
    out, lse = sample.dout, sample.dout.new_zeros(2, 14)
    with pytest.raises(ValueError, match=r"dout does not fit; got shape \(14, 1, 16\).*allowed: \(14, 2, 16\)"):
        varlen_attention_bwd(*sample._replace(dout=sample.dout[:, :1]).backward(out, lse))
    with pytest.raises(ValueError, match=r"lse does not fit; .*float16.*allowed: \(2, 14\).*float32"):
        varlen_attention_bwd(*sample.backward(out, lse.half()))
    with pytest.raises(ValueError, match=r"lse is not contiguous; got strides \(20, 1\)"):
        varlen_attention_bwd(*sample.backward(out, lse.new_zeros(2, 20)[:, :14]))


def test_tiles_keep_what_the_kernels_rely_on() -> None:
    for table in ATTENTION_TILES.values():
        assert table.keys() == {"forward", "dq", "dkdv", "dbias"}
        for kernel, by_size in table.items():
            assert max(by_size) == max(ATTENTION_HEAD_SIZES)
            assert list(by_size) == sorted(by_size)
            for tile in by_size.values():
                assert tile.block_k <= MAX_KEYS  # a row's dropout bits
                assert kernel != "dbias" or tile.block_q <= tile.block_k  # a diagonal ends in the next tile


def test_the_interpreter_has_small_tiles() -> None:
    # Else the shapes above would meet one tile.
    if architecture(torch.zeros(1, device=DEVICE)) == "interpreter":
        assert varlen_attention.attention_tile("forward", torch.zeros(1, 1, 3, 16))[:2] == (32, 32)
