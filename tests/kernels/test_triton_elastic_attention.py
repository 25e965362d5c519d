"""The Triton provider of ``elastic_attention``: on a GPU where there is one, else in Triton's interpreter."""

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
from dynabert_kernels.testing.comparison import floor
from dynabert_kernels.testing.inputs import DTYPES, poison, poisoned_allocations, strided_rows
from dynabert_kernels.triton.elastic_attention import (
    elastic_attention_bwd,
    elastic_attention_fwd,
    supports_bwd,
    supports_fwd,
)
from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED
from dynabert_kernels.triton.tiles import MAX_ROW_COLUMNS
from tests.kernels.cases import DROPOUT_STATE, PLANS, Network
from tests.kernels.draws import Draw, check_draws

DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
GRADIENTS = (
    *("dx", "dqkv_weight", "dqkv_bias", "dout_weight", "dout_bias", "dln_weight", "dln_bias"),
    "dposition_bias",
)
HEADS, SIZE = 4, 16
interpreted_only = pytest.mark.skipif(not INTERPRETED, reason="float64 is for gradcheck; a GPU refuses it by name")

pytestmark = pytest.mark.skipif(
    IMPORT_ERROR is not None or not (INTERPRETED or torch.cuda.is_available()),
    reason=IMPORT_ERROR or "no CUDA device, and TRITON_INTERPRET is set to 0",
)


class Sample(NamedTuple):
    """Arguments of the op and a gradient; rows of no group hold NaN."""

    x: Tensor
    weights: tuple[Tensor, ...]
    cu_seqlens: Tensor
    rows: Tensor
    head_counts: Tensor
    position_bias: Tensor | None
    state: Tensor | None
    max_heads: int
    max_seqlen: int
    attention_dropout: float
    hidden_dropout: float
    dy: Tensor

    @property
    def forward(self) -> tuple[Any, ...]:
        sequences = (self.cu_seqlens, self.rows, self.head_counts, self.position_bias, self.state)
        sizes = (self.max_heads, self.max_seqlen, SIZE**-0.5, 1e-5)
        return (self.x, *self.weights, *sequences, *sizes, self.attention_dropout, self.hidden_dropout, 5, True)

    def backward(self, saved: tuple[Tensor, ...]) -> tuple[Any, ...]:
        x, weights, *sequences = self[:7]
        sizes = (self.max_heads, self.max_seqlen, SIZE**-0.5)
        kept = (weights[0], weights[2], weights[4], *saved)
        return (self.dy, x, *kept, *sequences, *sizes, self.attention_dropout, self.hidden_dropout, 5)

    def double(self) -> Sample:
        def wide(value: Any) -> Any:
            return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

        changed = self._replace(weights=tuple(wide(weight) for weight in self.weights))
        return Sample(*(wide(value) for value in changed))


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def sample_of(
    groups: list[list[int]],
    heads: list[int],
    dtype: torch.dtype = torch.float32,
    *,
    width: int = 32,
    bias: bool = False,
    attention_dropout: float = 0.0,
    hidden_dropout: float = 0.0,
    dead_rows: int = 2,
    network_heads: int | None = None,
    seed: int = 0,
) -> Sample:
    """A weight of one head more than any group uses."""
    torch.manual_seed(seed)
    all_heads = max(heads) + 1 if network_heads is None else network_heads
    network = Network(width=width, heads=all_heads, size=SIZE, neurons=1, dtype=dtype)
    lengths = [n for group in groups for n in group]
    borders = torch.tensor([0, *(sum(group) for group in groups)]).cumsum(0).tolist()
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    x, dy = (network.tensor(borders[-1] + dead_rows, width, scale=1.0).to(DEVICE) for _ in range(2))
    poison(x[borders[-1] :])
    poison(dy[borders[-1] :])
    longest = max(lengths, default=0)
    table = network.tensor(all_heads, 2 * (longest + 2) - 1).to(DEVICE) if bias else None
    dropping = attention_dropout > 0.0 or hidden_dropout > 0.0
    return Sample(
        x,
        tuple(weight.to(DEVICE) for weight in network.attention()),
        int32(*starts),
        int32(*borders),
        int32(*heads),
        table,
        torch.tensor(DROPOUT_STATE, device=DEVICE) if dropping else None,
        max(heads),
        longest,
        attention_dropout,
        hidden_dropout,
        dy,
    )


def results(
    sample: Sample, forward: Any = elastic_attention_fwd, backward: Any = elastic_attention_bwd
) -> dict[str, Tensor]:
    """The result and every gradient a provider returns, from allocations that hold NaN."""
    with poisoned_allocations():
        y, *saved = forward(*sample.forward)
        gradients = backward(*sample.backward(tuple(saved)))
    return {"y": y, **dict(zip(GRADIENTS, gradients, strict=True))}


def check(drawn: Sample | Callable[..., Sample]) -> dict[str, Tensor]:
    """The result errs at most twice, each gradient three times, what PyTorch does in the same dtype.

    ``drawn``: a sample, or what makes the sample of a ``seed``, for PyTorch's luck in one (see ``check_draws``).
    """

    def draw(sample: Sample) -> Draw:
        functions = reference.elastic_attention_fwd, reference.elastic_attention_bwd
        return Draw(results(sample), results(sample.double(), *functions), results(sample, *functions))

    sample = drawn if isinstance(drawn, Sample) else drawn(seed=0)
    first = draw(sample)
    factors = {name: 2.0 if name == "y" else 3.0 for name in first.got}
    if sample.max_seqlen == 1:
        # The softmax of one number is constant: the gradient is zero, and an error relative to it means nothing.
        factor, got = factors.pop("dposition_bias"), first.got["dposition_bias"]
        assert got.abs().max() <= max(factor * first.yardstick["dposition_bias"].abs().max().item(), floor(got.dtype))
    return check_draws(first, factors, None if isinstance(drawn, Sample) else lambda seed: draw(drawn(seed=seed)))


@pytest.mark.parametrize(
    ("dtype", "bias", "dropout"),
    [(torch.float32, False, 0.0), *((dtype, True, 0.3) for dtype in DTYPES)],
    ids=lambda value: NAMES.get(value, str(value)),
)
def test_matches_float64(dtype: torch.dtype, bias: bool, dropout: float) -> None:
    # Widest first, a group that skips, a sequence longer than a tile, and C that is no multiple of one.
    groups, heads = [[9, 5], [3], [35, 1]], [3, 0, 1]
    options: dict[str, Any] = {"attention_dropout": dropout, "hidden_dropout": dropout}
    check(partial(sample_of, groups, heads, dtype, width=40, bias=bias, **options))


@pytest.mark.parametrize("which", ["attention_dropout", "hidden_dropout"])
def test_one_dropout_alone(which: str) -> None:
    check(partial(sample_of, [[5], [2, 4]], [1, 2], **{which: 0.4}))


@pytest.mark.parametrize("name", PLANS)
def test_the_plans_of_all_ops(name: str) -> None:
    heads, groups = PLANS[name]
    drawn = partial(sample_of, groups, heads, width=24, bias=True, hidden_dropout=0.25, network_heads=HEADS)
    sample, ours = drawn(), check(drawn)
    borders = sample.rows.tolist()
    for g, k in enumerate(heads):
        if k == 0:
            assert torch.equal(ours["y"][borders[g] : borders[g + 1]], sample.x[borders[g] : borders[g + 1]])
            assert torch.equal(ours["dx"][borders[g] : borders[g + 1]], sample.dy[borders[g] : borders[g + 1]])
    assert (ours["y"][borders[-1] :] == 0).all()
    assert (ours["dx"][borders[-1] :] == 0).all()
    most = max(heads)
    assert (ours["dqkv_weight"][most:] == 0).all()
    assert (ours["dqkv_bias"][most:] == 0).all()
    assert (ours["dout_weight"][:, most * SIZE :] == 0).all()
    assert (ours["dposition_bias"][most:] == 0).all()


@interpreted_only
def test_float64_is_computed_in_float64() -> None:
    # A dropout scale of 2 is exact: others reach the kernel in float32, as eps does.
    check(partial(sample_of, [[5], [4]], [2, 1], torch.float64, bias=True, attention_dropout=0.5, hidden_dropout=0.5))


@settings(deadline=None, max_examples=3, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    groups=st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 12), max_size=3)), min_size=1, max_size=3),
    dead=st.integers(0, 3),
)
def test_any_plan(groups: list[tuple[int, list[int]]], dead: int) -> None:
    heads, lengths = [k for k, _ in groups], [list(group) for _, group in groups]
    options: dict[str, Any] = {"attention_dropout": 0.2, "hidden_dropout": 0.2}
    check(partial(sample_of, lengths, heads, width=16, bias=True, dead_rows=dead, **options))


def test_no_rows_and_no_heads() -> None:
    ours = check(partial(sample_of, [[]], [2], width=16, dead_rows=0, bias=True))
    assert ours["y"].shape == (0, 16)
    check(partial(sample_of, [[3, 2]], [0], width=16, bias=True))


def test_rows_of_a_group_past_its_sequences() -> None:
    """A bucketed row count leaves rows that a group owns and no sequence holds: their context is zero."""
    sample = sample_of([[4, 3], [5]], [2, 1], hidden_dropout=0.2)
    # x is finite there: such rows go through the products and the LayerNorm.
    check(sample._replace(cu_seqlens=sample.cu_seqlens[:-1].contiguous(), max_seqlen=4))


def test_strided_rows_and_weights() -> None:
    sample = sample_of([[6], [5]], [2, 1], bias=True, attention_dropout=0.2)
    qkv, _, out, *_ = sample.weights
    gapped = strided_rows(qkv.flatten(0, 2), gap=5, offset=3).view(qkv.shape)
    assert not gapped.is_contiguous()
    assert sample.position_bias is not None
    weights = (gapped, sample.weights[1], strided_rows(out, gap=1), *sample.weights[3:])
    changed = sample._replace(
        x=strided_rows(sample.x),
        weights=weights,
        dy=strided_rows(sample.dy, gap=1, offset=5),
        position_bias=strided_rows(sample.position_bias, gap=2),
    )
    check(changed)


def test_heads_of_a_wider_weight() -> None:
    """A weight's leading heads, as a view: the columns of the output weight are cut, so its rows are further apart."""
    sample = sample_of([[6], [5]], [2, 1], network_heads=5)
    qkv, bias, out, *rest = sample.weights
    check(sample._replace(weights=(qkv[:3], bias[:3], out[:, : 3 * SIZE], *rest)))


def test_what_lies_past_a_rows_heads_is_not_written() -> None:
    # qkv, context, lse and hidden come from allocations that hold NaN: it is still there.
    sample = sample_of([[4], [5], [3]], [3, 1, 0])
    with poisoned_allocations():
        _, qkv, context, lse, hidden, mean, rstd = elastic_attention_fwd(*sample.forward)
    for saved in (qkv, context, lse.t()):
        assert saved[:4].isfinite().all()
        assert saved[4:9, :1].isfinite().all()
        assert saved[4:9, 1:].isnan().all()
        assert saved[9:].isnan().all()
    assert hidden[:9].isfinite().all()
    assert hidden[9:].isnan().all()
    assert (mean[9:] == 0).all()
    assert (rstd[9:] == 0).all()


def test_nothing_is_saved_unless_asked() -> None:
    sample = sample_of([[4], [3]], [2, 1], attention_dropout=0.3)
    y, *saved = elastic_attention_fwd(*sample.forward[:-1], False)
    assert torch.equal(y, elastic_attention_fwd(*sample.forward)[0])
    assert all(tensor.shape == (0,) for tensor in saved)


def test_gradients_are_deterministic() -> None:
    sample = sample_of([[17, 5], [9]], [2, 1], bias=True, attention_dropout=0.1, hidden_dropout=0.1)
    first, second = results(sample), results(sample)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# Through the registered op.


@interpreted_only
def test_gradcheck() -> None:
    sample = sample_of([[2], [1], [1]], [2, 0, 1], torch.float64, width=3, bias=True, dead_rows=0)
    layer = dk.LayerPlan(sample.rows, sample.head_counts, sample.head_counts, 2, 2)

    def op(x: Tensor, qkv_weight: Tensor, out_weight: Tensor, position_bias: Tensor) -> Tensor:
        _, qkv_bias, _, *rest = sample.weights
        return dk.elastic_attention(
            *(x, qkv_weight, qkv_bias, out_weight, *rest, sample.cu_seqlens, layer),
            max_seqlen=2,
            eps=1e-3,
            position_bias=position_bias,
            attention_dropout=0.5,
            hidden_dropout=0.5,
            dropout_state=torch.tensor(DROPOUT_STATE),
            dropout_stream=2,
        )

    assert sample.position_bias is not None
    checked = [t.requires_grad_() for t in (sample.x, sample.weights[0], sample.weights[2], sample.position_bias)]
    with dk.use_provider("triton"):
        # fast_mode: one random direction instead of each entry, each of which is a run of the interpreter.
        assert torch.autograd.gradcheck(op, checked, fast_mode=True)


def test_opcheck() -> None:
    # One width and no rows of no group: what is saved past a width is not written, so two runs would differ there.
    sample = sample_of([[2], [1]], [1, 1], width=8, bias=True, attention_dropout=0.25, hidden_dropout=0.25, dead_rows=0)
    for tensor in (sample.x, *sample.weights, sample.position_bias):
        assert tensor is not None
        tensor.requires_grad_()
    with dk.use_provider("triton"):
        torch.library.opcheck(torch.ops.dynabert.elastic_attention_fwd.default, sample.forward)


# What it refuses.


def _saved(sample: Sample) -> tuple[Tensor, ...]:
    return tuple(elastic_attention_fwd(*sample.forward)[1:])


def test_supports_names_what_it_refuses() -> None:
    sample = sample_of([[3]], [2], bias=True)
    saved = _saved(sample)

    def refusals(changed: Sample) -> tuple[str, str]:
        return str(supports_fwd(*changed.forward)), str(supports_bwd(*changed.backward(saved)))

    def with_weight(weight: Tensor) -> Sample:
        return sample._replace(weights=(weight, *sample.weights[1:]))

    weight = sample.weights[0]
    turned = weight.transpose(0, 1).contiguous().transpose(0, 1)
    for changed, reason in (
        (sample, "None"),
        (sample._replace(x=sample.x.int()), "dtype is torch.int32"),
        (sample._replace(x=sample.x.new_empty(1, MAX_ROW_COLUMNS + 1)), f"1 to {MAX_ROW_COLUMNS} columns"),
        (sample._replace(x=sample.x.t().contiguous().t()), "its last stride must be 1"),
        (with_weight(weight[:, :, :8]), "the head size is 8; allowed: 16, 32, 64, 128"),
        (with_weight(turned), "its rows must lie at one distance, head by head"),
        (with_weight(weight.transpose(2, 3).contiguous().transpose(2, 3)), "its rows must lie at one distance"),
    ):
        for refusal in refusals(changed):
            assert reason in refusal
    arguments = list(sample.forward)
    arguments[2] = sample.weights[1].transpose(0, 1).contiguous().transpose(0, 1)
    assert "qkv_bias has strides" in str(supports_fwd(*arguments))
    arguments = list(sample.forward)
    arguments[14] = 0.0
    assert "scale is 0 with a position bias" in str(supports_fwd(*arguments))
    with (
        dk.use_provider("triton"),
        pytest.raises(ValueError, match="elastic_attention_fwd: provider 'triton' was forced, but qkv_weight has str"),
    ):
        torch.ops.dynabert.elastic_attention_fwd(*with_weight(turned).forward)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (1, lambda w: w[:, :2], r"qkv_weight has the wrong shape; got \(3, 2, 16, 32\); allowed: \(H, 3, D, C\)"),
        (1, lambda w: w[:1], r"qkv_weight, head after head, has the wrong shape; got \(48, 32\); .* \(96, 32\)"),
        (1, lambda w: w.half(), r"qkv_weight, head after head, does not fit; got torch.float16"),
        (1, lambda w: w.transpose(0, 1).contiguous().transpose(0, 1), r"qkv_weight has strides"),
        (2, lambda w: w[1:], r"qkv_bias has the wrong shape; got \(96,\); allowed: \(144,\), that is 3\*H\*D"),
        (2, lambda w: w.transpose(0, 1).contiguous().transpose(0, 1), r"qkv_bias is not contiguous"),
        (3, lambda w: w.t(), r"the columns of out_weight do not lie side by side"),
        (5, lambda w: w[1:], r"ln_weight has the wrong shape; got \(31,\); allowed: \(32,\), that is C"),
        (7, lambda w: w.long(), r"cu_seqlens does not fit; got .*int64"),
        (8, lambda w: w.long(), r"rows does not fit; .*allowed: torch.int32"),
        (11, lambda _: torch.zeros(3, dtype=torch.int64), r"dropout_state has the wrong shape; got \(3,\)"),
        (12, lambda _: 4, r"qkv_weight, head after head, has the wrong shape"),
    ],
)
def test_errors_of_the_forward_launcher(index: int, change: Any, message: str) -> None:
    arguments: list[Any] = list(sample_of([[3]], [2], hidden_dropout=0.1).forward)
    arguments[index] = change(arguments[index])
    with pytest.raises(ValueError, match=r"elastic_attention_fwd \(triton\): " + message):
        elastic_attention_fwd(*arguments)


def test_errors_of_the_backward_launcher() -> None:
    sample = sample_of([[3]], [2])
    saved = _saved(sample)
    good = sample.backward(saved)
    for index, value, message in (
        (0, sample.dy[1:], r"dy has the wrong shape; got \(4, 32\)"),
        (5, saved[0][:, :1], r"qkv is not what the forward saved; got torch.float32 of shape \(5, 1, 3, 16\)"),
        (6, saved[1].half(), r"context is not what the forward saved; got torch.float16"),
        (7, saved[2].half(), r"lse does not fit"),
        (8, saved[3].t().contiguous().t(), r"hidden is not what the forward saved"),
        (9, saved[4].half(), r"mean does not fit; .*allowed: torch.float32"),
    ):
        arguments = [*good[:index], value, *good[index + 1 :]]
        with pytest.raises(ValueError, match=r"elastic_attention_bwd \(triton\): " + message):
            elastic_attention_bwd(*arguments)
