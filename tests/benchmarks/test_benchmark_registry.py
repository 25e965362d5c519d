"""``benchmarks.registry``: formulas on sizes worked by hand, and peers that compute what the ops compute."""

from __future__ import annotations

import pytest
import torch

from benchmarks import registry, verify
from benchmarks.problems import SHAPES, ModelShape, Problem, parse_tokens, tokens_name
from benchmarks.registry import REGISTRY, Benchmark, Draw

TOY = ModelShape("toy", hidden=8, heads=4, head_size=2, neurons=16)
# 5 tokens, 2 heads of 4, 8 neurons of 16, 4 bytes; 9 + 4 = 13 pairs of query and key a head
HALF = Problem(TOY, (3, 2), 0.5, torch.float32)

# name: weight bytes, activation bytes, operations
BY_HAND = {
    "add_layer_norm": (2 * 8 * 4, 3 * 40 * 4 + 2 * 5 * 4, 0),
    "add_layer_norm.backward": (3 * 8 * 4, 4 * 40 * 4 + 2 * 5 * 4, 0),
    "elastic_linear.ffn_in": ((64 + 8) * 4, (40 + 40) * 4, 2 * 5 * 64),
    "elastic_linear.ffn_out": ((64 + 8) * 4, (40 + 40 + 40) * 4, 2 * 5 * 64),
    "varlen_attention": (0, 4 * 20 * 4, 4 * 13 * 2 * 2),
    "elastic_attention": ((3 * 32 + 32 + 12 + 24) * 4, 2 * 40 * 4, 2 * 5 * (3 * 32 + 32) + 4 * 13 * 2 * 2),
    "elastic_ffn": ((2 * 64 + 8 + 24) * 4, 2 * 40 * 4, 2 * 5 * 2 * 64),
}
ALL = pytest.mark.parametrize("benchmark_", REGISTRY.values(), ids=REGISTRY)


def draw(dtype: torch.dtype) -> Draw:
    return Draw(torch.device("cpu"), dtype, torch.Generator().manual_seed(0))


@ALL
def test_formulas_give_what_was_worked_by_hand(benchmark_: Benchmark) -> None:
    formulas = benchmark_.weight_bytes, benchmark_.activation_bytes, benchmark_.operations
    assert tuple(formula(HALF) for formula in formulas) == BY_HAND[benchmark_.name]


@ALL
def test_weight_bytes_at_full_width_are_those_of_the_weights(benchmark_: Benchmark) -> None:
    full = Problem(TOY, (3, 2), 1.0, torch.bfloat16)
    weights = benchmark_.weights(full, draw(torch.bfloat16))
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    # The backward reads the weight and writes two gradients, and reads no bias.
    written = full.C * full.e if benchmark_.direction == "backward" else 0
    assert benchmark_.weight_bytes(full) == size + written


def test_a_bert_base_forward_of_128_tokens_is_22_gflop() -> None:
    problem = Problem(SHAPES["bert-base"], (128,), 1.0, torch.bfloat16)
    layer = sum(REGISTRY[name].operations(problem) for name in ("elastic_attention", "elastic_ffn"))
    assert 12 * layer / 1e9 == pytest.approx(22.4, abs=0.1)


@ALL
@pytest.mark.parametrize("lengths", [(3, 2), (4, 4)], ids=["unequal lengths", "equal lengths"])
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_the_peer_computes_what_the_op_computes(benchmark_: Benchmark, lengths: tuple[int, ...], width: float) -> None:
    problem = Problem(TOY, lengths, width, torch.float64)
    draws = draw(torch.float64)
    tensors = benchmark_.weights(problem, draws) | benchmark_.activations(problem, draws)
    exact = verify.as_tuple(benchmark_.definition()(*benchmark_.arguments(problem, tensors)))
    peer = verify.as_tuple(benchmark_.peer(problem, tensors))
    assert len(peer) == len(benchmark_.checked)
    for ours, theirs in zip(exact, peer, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@ALL
def test_the_registered_op_takes_the_arguments(benchmark_: Benchmark) -> None:
    tensors = benchmark_.weights(HALF, draw(torch.float32)) | benchmark_.activations(HALF, draw(torch.float32))
    results = verify.as_tuple(benchmark_.function()(*benchmark_.arguments(HALF, tensors)))
    assert all(bool(result.isfinite().all()) for result in results[: len(benchmark_.checked)])


def test_weights_do_not_depend_on_the_width() -> None:
    for benchmark in REGISTRY.values():
        full, half = (
            benchmark.weights(Problem(TOY, (3,), width, torch.float32), draw(torch.float32)) for width in (1.0, 0.5)
        )
        assert all(torch.equal(full[name], half[name]) for name in full | half)


def test_the_two_shapes_are_those_of_the_models() -> None:
    assert SHAPES["minilm"] == ModelShape("minilm", 384, 12, 32, 1536)
    assert SHAPES["bert-base"] == ModelShape("bert-base", 768, 12, 64, 3072)
    narrow = Problem(SHAPES["bert-base"], (128,) * 8, 0.25, torch.bfloat16)
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
        Problem(SHAPES["minilm"], (8,), 0.8, torch.float32)
    with pytest.raises(ValueError, match=r"use 0.0833 \(1\)"):
        Problem(SHAPES["minilm"], (8,), 0.001, torch.float32)


def test_benchmarks_are_found_by_their_name_or_their_ops() -> None:
    both = ("forward", "backward")
    assert [b.name for b in registry.find(("elastic_linear",), both)] == [
        "elastic_linear.ffn_in",
        "elastic_linear.ffn_out",
    ]
    assert [b.name for b in registry.find(("add_layer_norm",), ("backward",))] == ["add_layer_norm.backward"]
    assert len(registry.find((), both)) == len(REGISTRY)
