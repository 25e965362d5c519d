"""How a launch over spans of different widths is shared by threads: fairly, and without a trace in the results."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch

import dynabert_kernels as dk
from dynabert_kernels import LayerWeights, Plan, SubnetShape
from dynabert_kernels.ops import NATIVE

pytestmark = pytest.mark.skipif(NATIVE is None, reason="the native library is not built")

HEADS, SIZE, WIDTH, NEURONS = 4, 16, 64, 256


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("parts", [1, 2, 3, 8, 61])
@pytest.mark.parametrize("seed", range(8))
def test_each_border_is_within_half_a_task_of_its_place(seed: int, parts: int) -> None:
    drawn = random.Random(seed)
    costs = [drawn.choice([0, 1, 7, 100, drawn.randrange(1000)]) for _ in range(drawn.randrange(1, 80))]
    borders = NATIVE.fair_borders(costs, parts)
    assert len(borders) == parts + 1
    assert borders[0] == 0
    assert borders[-1] == len(costs)
    assert borders == sorted(borders)
    for part, border in enumerate(borders[1:-1], 1):
        away = abs(sum(costs[:border]) - sum(costs) * part / parts)
        assert away <= max(costs) / 2 + 1e-9


@pytest.mark.parametrize("threads", [2, 4, 16])
@pytest.mark.parametrize("spans", [
    [(0, 512, 1536, 384), (512, 1024, 1152, 384), (1024, 1536, 768, 384), (1536, 2048, 384, 384)],
    [(0, 512, 384, 1536), (512, 1024, 384, 1152), (1024, 1536, 384, 768), (1536, 2048, 384, 384)],
    [(28 * i, 28 * i + 28, 384 * (1 + i % 4), 384) for i in range(64)],
])  # fmt: skip
def test_the_slowest_thread_has_little_more_than_its_share(
    spans: list[tuple[int, int, int, int]], threads: int
) -> None:
    """Equal numbers of tasks would give the thread with the widest rows up to 1.6 times its share."""
    costs, borders = NATIVE.product_shares(spans, threads)
    wanted = sum((end - begin) * k * -(-n // 32) for begin, end, n, k in spans)
    assert sum(costs) in (wanted, 2 * wanted)  # a panel has 32 or, with AVX2, 16 outputs
    loads = [sum(costs[a:b]) for a, b in itertools.pairwise(borders)]
    assert max(loads) <= sum(costs) / threads + max(costs)  # half a task at each border
    assert max(loads) <= 1.1 * sum(costs) / threads


def _network() -> list[LayerWeights]:
    drawn = torch.Generator().manual_seed(1)

    def some(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=drawn) * 0.2

    return [
        LayerWeights(
            some(HEADS, 3, SIZE, WIDTH), some(HEADS, 3, SIZE), some(WIDTH, HEADS * SIZE), some(WIDTH), some(WIDTH) + 1,
            some(WIDTH), some(NEURONS, WIDTH), some(NEURONS), some(WIDTH, NEURONS), some(WIDTH), some(WIDTH) + 1,
            some(WIDTH),
        )
        for _ in range(2)
    ]  # fmt: skip


def _batch(count: int) -> tuple[torch.Tensor, torch.Tensor, Plan]:
    """Many short texts, each with a width of its own, some of which skip a layer."""
    drawn = random.Random(5)
    shapes = []
    for _ in range(count):
        heads = drawn.randrange(HEADS + 1)
        neurons = drawn.randrange(1, NEURONS + 1) if heads else 0
        shapes.append(SubnetShape((heads, drawn.randrange(1, HEADS + 1)), (neurons, 77)))
    lengths = [[drawn.randrange(1, 40)] for _ in range(count)]
    plan = Plan.build(shapes, lengths, row_bucket=16)
    borders = torch.tensor([0, *(n for group in lengths for n in group)]).cumsum(0).to(torch.int32)
    return torch.randn(plan.num_rows, WIDTH, generator=torch.Generator().manual_seed(2)), borders, plan


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "int8"])
def test_the_number_of_threads_leaves_no_trace_in_many_short_texts(kind: str) -> None:
    x, borders, plan = _batch(40)
    layers = _network()
    int8 = [dk.quantise_layer(layer, torch.float32) for layer in layers]
    dtype = torch.float32 if kind == "int8" else getattr(torch, kind)
    cast = [LayerWeights(*(w.to(dtype) for w in layer)) for layer in layers]
    answers = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        answers.append(
            dk.elastic_encoder_int8(x, int8, borders, plan)
            if kind == "int8"
            else dk.elastic_encoder(x.to(dtype), cast, borders, plan)
        )
    assert all(torch.equal(answers[0], other) for other in answers[1:])


def test_nor_in_their_gradients() -> None:
    x, borders, plan = _batch(24)
    layer = _network()[0]
    gradients = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        leaves = [w.clone().requires_grad_() for w in layer]
        hidden = x.clone().requires_grad_()
        y = dk.elastic_attention(hidden, *leaves[:6], borders, plan.layer(0), max_seqlen=plan.max_seqlen)
        dk.elastic_ffn(y, *leaves[6:], plan.layer(0)).square().sum().backward()
        gradients.append([leaf.grad for leaf in (hidden, *leaves)])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))
