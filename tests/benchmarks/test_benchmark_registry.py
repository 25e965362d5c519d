"""``benchmarks.registry``: formulas on sizes worked by hand, and peers that compute what the ops compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import registry, verify
from benchmarks.problems import SHAPES, ModelShape, Problem, parse_plan, parse_shape, parse_tokens, tokens_name, uniform
from benchmarks.registry import REGISTRY, Benchmark, Draw, peers

TOY = ModelShape("toy", hidden=8, heads=4, head_size=2, neurons=16)
# 5 tokens, 2 heads of 4, 8 neurons of 16, 4 bytes; 9 + 4 = 13 pairs of query and key a head
HALF = Problem(TOY, (3, 2), uniform(0.5), torch.float32)
# 3 tokens at 4 heads and 16 neurons, 2 at 1 and 4, 1 that skips the layer; 9 pairs for the first, 4 for the second
MIXED = Problem(TOY, (3, 2, 1), parse_plan("w1,w0.25,w0.5:0,skip"), torch.float32)

# name: weight bytes, gradient bytes, activation bytes, operations
BY_HAND = {
    "add_layer_norm": (2 * 8 * 4, 0, 3 * 40 * 4 + 2 * 5 * 4, 0),
    "add_layer_norm.backward": (8 * 4, 2 * 8 * 4, 4 * 40 * 4 + 2 * 5 * 4, 0),
    "elastic_linear.ffn_in": ((64 + 8) * 4, 0, (40 + 40) * 4, 2 * 5 * 64),
    "elastic_linear.ffn_out": ((64 + 8) * 4, 0, (40 + 40 + 40) * 4, 2 * 5 * 64),
    "elastic_linear.ffn_in.backward": (64 * 4, (128 + 16) * 4, 4 * 40 * 4, 4 * 5 * 64),
    "elastic_linear.ffn_out.backward": (64 * 4, (128 + 8) * 4, 3 * 40 * 4, 4 * 5 * 64),
    "varlen_attention": (0, 0, 4 * 20 * 4, 4 * 13 * 2 * 2),
    "varlen_attention.backward": (0, 0, 8 * 20 * 4 + 2 * 5 * 4, 10 * 13 * 2 * 2),
    "elastic_attention": ((3 * 32 + 32 + 12 + 24) * 4, 0, 2 * 40 * 4, 2 * 5 * (3 * 32 + 32) + 4 * 13 * 2 * 2),
    "elastic_attention.backward": (
        (3 * 32 + 32 + 8) * 4,
        (4 * 64 + 24 + 24) * 4,
        4 * 40 * 4 + 4 * 20 * 4 + 2 * 5 * 4 + 2 * 5 * 4,
        4 * 5 * (3 * 32 + 32) + 10 * 13 * 2 * 2,
    ),
    "elastic_ffn": ((2 * 64 + 8 + 24) * 4, 0, 2 * 40 * 4, 2 * 5 * 2 * 64),
    "elastic_ffn.backward": (
        (2 * 64 + 8) * 4,
        (2 * 128 + 16 + 24) * 4,
        4 * 40 * 4 + 40 * 4 + 2 * 5 * 4,
        4 * 5 * 2 * 64,
    ),
    # Rows of 5 words, 3 positions and 2 types; three ids and two statistics of each of 5 tokens
    "embed_layer_norm": (2 * 8 * 4, 0, (10 + 5) * 8 * 4 + 3 * 5 * 8 + 2 * 5 * 4, 0),
    "embed_layer_norm.backward": (
        8 * 4,
        (30522 + 512 + 2 + 2) * 8 * 4,
        (10 + 5) * 8 * 4 + 3 * 5 * 8 + 2 * 5 * 4,
        0,
    ),
    # Four widths of 5 tokens of 8, or of 2 sequences of 3 classes, and one teacher of each.
    "distillation_loss.hidden": (0, 0, (4 + 1) * 40 * 4 + 4 * 4, 0),
    "distillation_loss.hidden.backward": (0, 0, (4 + 1 + 4) * 40 * 4 + 4 * 4, 0),
    "distillation_loss.logits": (0, 0, (4 + 1) * 6 * 4 + 4 * 4, 0),
    "distillation_loss.logits.backward": (0, 0, (4 + 1 + 4) * 6 * 4 + 4 * 4, 0),
}
# The same of the mixed batch, for some: weights at the widest group, operations summed over the groups.
MIXED_BY_HAND = {
    "elastic_linear.ffn_out": ((128 + 8) * 4, 0, (3 * 16 + 2 * 4 + 2 * 6 * 8) * 4, 2 * 8 * (3 * 16 + 2 * 4)),
    # dqkv is written for all rows, zeros included
    "varlen_attention.backward": (
        0,
        0,
        (5 * (3 * 4 + 2 * 1) * 2 + 3 * 6 * 4 * 2) * 4 + (3 * 4 + 2 * 1) * 4,
        10 * (9 * 4 + 4 * 1) * 2,
    ),
    "elastic_ffn.backward": (
        (2 * 128 + 8) * 4,
        (2 * 128 + 16 + 24) * 4,
        # the row that skips reads dy and writes dx
        (2 * 6 * 8 + 2 * 5 * 8 + 3 * 16 + 2 * 4) * 4 + 2 * 5 * 4,
        8 * 8 * (3 * 16 + 2 * 4),
    ),
}
ALL = pytest.mark.parametrize("benchmark_", REGISTRY.values(), ids=REGISTRY)
ELASTIC = pytest.mark.parametrize(
    "benchmark_", [b for b in REGISTRY.values() if b.elastic], ids=[b.name for b in REGISTRY.values() if b.elastic]
)


def draw(dtype: torch.dtype) -> Draw:
    return Draw(torch.device("cpu"), dtype, torch.Generator().manual_seed(0))


def formulas(benchmark: Benchmark, problem: Problem) -> tuple[int, ...]:
    each = benchmark.weight_bytes, benchmark.gradient_bytes, benchmark.activation_bytes, benchmark.operations
    return tuple(formula(problem) for formula in each)


@ALL
def test_formulas_give_what_was_worked_by_hand(benchmark_: Benchmark) -> None:
    assert formulas(benchmark_, HALF) == BY_HAND[benchmark_.name]


@pytest.mark.parametrize("name", MIXED_BY_HAND)
def test_formulas_of_a_mixed_batch_sum_over_its_groups(name: str) -> None:
    assert formulas(REGISTRY[name], MIXED) == MIXED_BY_HAND[name]


@ALL
def test_bytes_of_weights_and_gradients_are_those_of_the_tensors(benchmark_: Benchmark) -> None:
    full = Problem(TOY, (3, 2), uniform(1.0), torch.bfloat16)
    tensors = benchmark_.tensors(full, draw(torch.bfloat16))
    arguments = benchmark_.arguments(full, tensors)
    weights = [tensors[name] for name in benchmark_.weights(full, draw(torch.bfloat16))]
    read = [weight for weight in weights if any(weight is argument for argument in arguments)]
    assert benchmark_.weight_bytes(full) == sum(weight.nbytes for weight in read)
    if benchmark_.direction == "backward":
        # The first gradient is that of the activation, except where all are of tables and weights.
        first = 0 if benchmark_.op == "embed_layer_norm" else 1
        gradients = verify.as_tuple(benchmark_.definition()(*arguments))[first : len(benchmark_.checked)]
        assert benchmark_.gradient_bytes(full) == sum(gradient.nbytes for gradient in gradients)
    else:
        assert benchmark_.gradient_bytes(full) == 0


def test_a_bert_base_forward_of_128_tokens_is_22_gflop() -> None:
    problem = Problem(SHAPES["bert-base"], (128,), uniform(1.0), torch.bfloat16)
    layer = sum(REGISTRY[name].operations(problem) for name in ("elastic_attention", "elastic_ffn"))
    assert 12 * layer / 1e9 == pytest.approx(22.4, abs=0.1)


def assert_peer_computes_the_op(benchmark: Benchmark, problem: Problem) -> None:
    tensors = benchmark.tensors(problem, draw(torch.float64))
    exact = verify.as_tuple(benchmark.definition()(*benchmark.arguments(problem, tensors)))
    peer = peers.results(benchmark.peer, problem, tensors)
    assert len(peer) == len(benchmark.checked)
    for ours, theirs in zip(exact, peer, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@ALL
@pytest.mark.parametrize("lengths", [(3, 2), (4, 4)], ids=["unequal lengths", "equal lengths"])
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_the_peer_computes_what_the_op_computes(benchmark_: Benchmark, lengths: tuple[int, ...], width: float) -> None:
    assert_peer_computes_the_op(benchmark_, Problem(TOY, lengths, uniform(width), torch.float64))


@ELASTIC
def test_the_peer_computes_a_mixed_batch_width_by_width(benchmark_: Benchmark) -> None:
    assert_peer_computes_the_op(benchmark_, replace(MIXED, dtype=torch.float64))


@ELASTIC
def test_a_peer_reads_the_weights_of_the_set_it_is_given(benchmark_: Benchmark) -> None:
    problem = Problem(TOY, (3, 2), uniform(0.5), torch.float64)
    tensors = benchmark_.tensors(problem, draw(torch.float64))
    weights = benchmark_.weights(problem, draw(torch.float64))
    rotating = benchmark_.peer.prepare(problem, [tensors, tensors | {name: 2 * w for name, w in weights.items()}])
    alone = benchmark_.peer.prepare(problem, [tensors])(0)
    first, second = rotating(0), rotating(1)
    for ours, theirs in zip(first, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not weights or not torch.equal(second[0][0], first[0][0])


@ALL
def test_the_peer_calls_no_op_of_ours(benchmark_: Benchmark) -> None:
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.namespace)
            return func(*args, **(kwargs or {}))

    tensors = benchmark_.tensors(HALF, draw(torch.float32))
    with Watch():
        peers.results(benchmark_.peer, HALF, tensors)
    assert set(seen) == {"aten"}


@ALL
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_registered_op_takes_the_arguments(benchmark_: Benchmark, dropout: float) -> None:
    problem = replace(HALF, dropout=dropout)
    tensors = benchmark_.tensors(problem, draw(torch.float32))
    results = verify.as_tuple(benchmark_.function()(*benchmark_.arguments(problem, tensors)))
    assert all(bool(result.isfinite().all()) for result in results[: len(benchmark_.checked)])
    assert all(part.isfinite().all() for part in peers.results(benchmark_.peer, problem, tensors))


@ALL
def test_a_peer_leaves_its_tensors_as_they_were(benchmark_: Benchmark) -> None:
    tensors = benchmark_.tensors(HALF, draw(torch.float32))
    peers.results(benchmark_.peer, HALF, tensors)
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_weights_do_not_depend_on_the_width() -> None:
    for benchmark in REGISTRY.values():
        full, half = (
            benchmark.weights(Problem(TOY, (3,), uniform(width), torch.float32), draw(torch.float32))
            for width in (1.0, 0.5)
        )
        assert all(torch.equal(full[name], half[name]) for name in full | half)


def test_the_two_shapes_are_those_of_the_models() -> None:
    assert SHAPES["minilm"] == ModelShape("minilm", 384, 12, 32, 1536)
    assert SHAPES["bert-base"] == ModelShape("bert-base", 768, 12, 64, 3072)
    narrow = Problem(SHAPES["bert-base"], (128,) * 8, uniform(0.25), torch.bfloat16)
    assert (narrow.T, narrow.k, narrow.f, narrow.e, tokens_name(narrow.lengths)) == (1024, 3, 768, 2, "8x128")
    assert narrow.plan.max_heads == (3,)


@pytest.mark.parametrize(("text", "lengths"), [("128", (128,)), ("8x128", (128,) * 8), ("17+2x3", (17, 3, 3))])
def test_batches_are_named_by_their_lengths(text: str, lengths: tuple[int, ...]) -> None:
    assert parse_tokens(text) == lengths


@pytest.mark.parametrize("text", ["", "0", "0x5", "8*128", "8x", "-3"])
def test_what_is_no_batch_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a batch; allowed: 128"):
        parse_tokens(text)


def test_a_width_that_is_not_whole_heads_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"width 0.8 is 9.6 of 12 heads of minilm; .* use 0.75 \(9\) or 0.833 \(10\)"):
        Problem(SHAPES["minilm"], (8,), uniform(0.8), torch.float32)
    with pytest.raises(ValueError, match=r"use 0.0833 \(1\)"):
        Problem(SHAPES["minilm"], (8,), uniform(0.001), torch.float32)


def test_a_plan_deals_out_the_sequences_in_packing_order() -> None:
    problem = Problem(SHAPES["minilm"], (5, 6, 7, 8), parse_plan("w1:2,w0.5,skip:1"), torch.float32)
    assert [(group.rows, group.k, group.f) for group in problem.groups] == [
        (slice(0, 11), 12, 1536),
        (slice(11, 18), 6, 768),
        (slice(18, 26), 0, 0),
    ]
    assert problem.mix.name == "w1:2,w0.5:1,skip:1"
    assert problem.plan.rows.tolist() == [0, 11, 18, 26]
    assert (problem.k, problem.width) == (12, pytest.approx((11 + 7 / 2) / 26))
    # Twice the sequences are twice the share; an empty group stays in the plan.
    assert Problem(TOY, (3,) * 8, parse_plan("w1:2,w0.5,skip:1"), torch.float32).plan.rows.tolist() == [0, 12, 18, 24]
    assert MIXED.plan.rows.tolist() == [0, 3, 5, 5, 6]
    assert uniform(0.75).name == parse_plan("w0.75").name == "w0.75"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w1:2;w0.5", "is not a plan; allowed: shares of the batch by width, or skip, as in w1:2,w0.5:1,skip:1"),
        ("0.5", "is not a plan"),
        ("skip", "plan 'skip' computes nothing"),
        ("w1:0,skip:1", "plan 'w1:0,skip:1' computes nothing"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_plan(text)


def test_a_plan_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"deals out 3 sequences at a time and the batch 8x4 has 8; .* multiple of 3"):
        Problem(TOY, (4,) * 8, parse_plan("w1:2,w0.5"), torch.float32)


def test_any_shape_can_be_named_by_its_sizes() -> None:
    assert parse_shape("bert-large") == SHAPES["bert-large"]
    assert parse_shape("C768-H8-D64-F2048") == ModelShape("C768-H8-D64-F2048", 768, 8, 64, 2048)
    for text in ("bert", "C768-H12", "C768-H0-D64-F3072"):
        with pytest.raises(ValueError, match="is unknown; allowed: minilm, bert-base, bert-large, or hidden size"):
            parse_shape(text)


def test_benchmarks_are_found_by_their_name_or_their_ops() -> None:
    both = ("forward", "backward")
    assert [b.name for b in registry.find(("elastic_linear",), both)] == [
        "elastic_linear.ffn_in",
        "elastic_linear.ffn_out",
        "elastic_linear.ffn_in.backward",
        "elastic_linear.ffn_out.backward",
    ]
    assert [b.name for b in registry.find(("add_layer_norm",), ("backward",))] == ["add_layer_norm.backward"]
    assert len(registry.find((), both)) == len(REGISTRY)
