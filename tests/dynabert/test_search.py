"""The search: limits hold for all it judges, a known optimum is found, and the same seed finds the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dynabert.configuration.grid import subnet_text
from dynabert.importance import Importance
from dynabert.profile import Budget, SearchSettings, SearchSpace, search
from dynabert.profile.fitness import make_judge
from dynabert.profile.layer_search import make_space, search_layers
from dynabert.profile.search_space import is_uniform, starting_shapes, widest_uniform
from dynabert.rewiring import rewire
from dynabert_kernels import SubnetShape
from tests.dynabert.tiny_texts import some_texts, tiny_model, tiny_tokenizer

LAYERS, HEADS, NEURONS, STEP = 4, 4, 40, 10


class Known:
    """A device on which every layer has its own prices, and a task in which it has its own worth: the best network
    within a share of the whole one's cost is found by trying each layer's options against each cost."""

    def __init__(self, seed: int, share: float) -> None:
        chance = np.random.default_rng(seed)
        self.per_head, self.per_neuron = chance.uniform(0.5, 2.0, LAYERS), chance.uniform(0.02, 0.2, LAYERS)
        self.head_worth, self.neuron_worth = chance.uniform(0.2, 3.0, LAYERS), chance.uniform(0.2, 3.0, LAYERS)
        whole = float(self.cost(np.full((1, LAYERS), HEADS), np.full((1, LAYERS), NEURONS))[0])
        self.budget = Budget("latency", share * whole, self.cost)
        self.space = SearchSpace((HEADS,) * LAYERS, (NEURONS,) * LAYERS, [self.budget], neuron_step=STEP)

    def cost(self, heads: Any, neurons: Any) -> Any:
        return (heads * self.per_head + neurons * self.per_neuron + 0.5 * (heads > 0)).sum(-1)

    def value(self, shape: SubnetShape) -> float:
        logs = np.log1p(shape.heads) @ self.head_worth + np.log1p(np.array(shape.neurons) / STEP) @ self.neuron_worth
        return float(logs)

    def judge(self, shapes: Sequence[SubnetShape]) -> list[float]:
        return [self.value(shape) for shape in shapes]

    def best(self) -> float:
        front = [(0.0, 0.0)]  # cost and value of the layers so far, none beaten by another
        for layer in range(LAYERS):
            options = [(0.0, 0.0)]
            for heads in range(1, HEADS + 1):
                for neurons in range(STEP, NEURONS + 1, STEP):
                    price = heads * self.per_head[layer] + neurons * self.per_neuron[layer] + 0.5
                    worth = self.head_worth[layer] * np.log1p(heads)
                    options.append((price, worth + self.neuron_worth[layer] * np.log1p(neurons / STEP)))
            both = sorted(((c + p, v + w) for c, v in front for p, w in options), key=lambda pair: (pair[0], -pair[1]))
            front = []
            for cost, value in both:
                if cost <= self.budget.limit + 1e-9 and (not front or value > front[-1][1]):
                    front.append((cost, value))
        return front[-1][1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.4, 0.6])
def test_finds_the_known_optimum(seed: int, share: float) -> None:
    known = Known(seed, share)
    found = search(known.space, known.judge, settings=SearchSettings(evaluations=250, seed=seed))
    assert found.found[0].fitness == pytest.approx(known.best(), rel=1e-9)
    assert all(one.load <= 1.0 for one in found.found)
    assert len({one.shape for one in found.found}) == len(found.found) <= 250
    fitness = [one.fitness for one in found.found]
    assert fitness == sorted(fitness, reverse=True)


def test_same_seed_finds_the_same_and_judges_each_once() -> None:
    known = Known(0, 0.5)
    asked: list[SubnetShape] = []

    def judge(shapes: Sequence[SubnetShape]) -> list[float]:
        asked.extend(shapes)
        return known.judge(shapes)

    settings = SearchSettings(evaluations=80, seed=7)
    first = search(known.space, judge, settings=settings)
    assert len(asked) == len(set(asked)) == 80
    again = search(known.space, known.judge, settings=settings)
    assert again.found == first.found
    other = search(known.space, known.judge, settings=SearchSettings(evaluations=80, seed=8))
    assert {one.shape for one in other.found} != {one.shape for one in first.found}


def test_goes_on_from_what_was_judged_before() -> None:
    known = Known(1, 0.5)
    settings = SearchSettings(evaluations=80, seed=3)
    kept: dict[str, float] = {}
    whole = search(known.space, known.judge, settings=settings)
    search(
        known.space,
        known.judge,
        settings=SearchSettings(evaluations=36, seed=3),
        on_round=lambda judged: kept.update(judged),
    )
    assert len(kept) == 36
    asked: list[SubnetShape] = []

    def judge(shapes: Sequence[SubnetShape]) -> list[float]:
        asked.extend(shapes)
        return known.judge(shapes)

    resumed = search(known.space, judge, settings=settings, known=kept)
    assert resumed.found == whole.found
    assert len(asked) == 80 - 36
    assert not {subnet_text(shape) for shape in asked} & set(kept)


def test_interruption_keeps_the_best_so_far() -> None:
    known = Known(0, 0.5)
    rounds = 0

    def judge(shapes: Sequence[SubnetShape]) -> list[float]:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            raise KeyboardInterrupt
        return known.judge(shapes)

    found = search(known.space, judge, settings=SearchSettings(evaluations=80, round_size=10))
    assert found.stopped == "interrupted"
    assert 10 < len(found.found) <= 20
    rounds = 2
    with pytest.raises(KeyboardInterrupt):  # nothing to keep
        search(known.space, judge)


def test_ends_by_time_and_when_nothing_is_new() -> None:
    known = Known(0, 0.5)
    found = search(known.space, known.judge, settings=SearchSettings(evaluations=10_000, minutes=1e-9))
    assert found.stopped == "minutes"
    tiny = SearchSpace((1, 1), (2, 2), [Budget("any", 10.0, lambda h, n: h.sum(-1) * 1.0)], neuron_step=2)
    found = search(tiny, lambda shapes: [float(sum(s.heads)) for s in shapes])
    assert found.stopped == "exhausted"
    assert found.found[0].shape == SubnetShape((1, 1), (2, 2))


def test_several_limits_hold_together() -> None:
    known = Known(2, 0.6)
    neurons = Budget("neurons", 70.0, lambda h, n: n.sum(-1).astype(float))
    space = SearchSpace((HEADS,) * LAYERS, (NEURONS,) * LAYERS, [known.budget, neurons], neuron_step=STEP)
    found = search(space, known.judge, settings=SearchSettings(evaluations=60))
    for one in found.found:
        assert sum(one.shape.neurons) <= 70
        cost = known.cost(np.array(one.shape.heads), np.array(one.shape.neurons))
        assert cost <= known.budget.limit
        assert one.load == pytest.approx(max(sum(one.shape.neurons) / 70.0, cost / known.budget.limit))


def test_no_network_within() -> None:
    known = Known(0, 0.01)
    with pytest.raises(
        ValueError,
        match=r"search: no network keeps the limits; the smallest, h.*, takes \S+ [\d.e-]+ of [\d.e-]+; allow more",
    ):
        search(known.space, known.judge)


def test_a_fitness_that_is_no_number() -> None:
    known = Known(0, 0.5)
    with pytest.raises(ValueError, match="is NaN"):
        search(known.space, lambda shapes: [float("nan")] * len(shapes))


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [({"evaluations": 0}, "evaluations is 0"), ({"minutes": 0.0}, "minutes is 0"), ({"population": 0}, "population")],
)
def test_settings_are_checked(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        SearchSettings(**settings)


# The space
# ----------------------------------------------------------------------------------------------------------------------


def free(limit: float) -> Budget:
    return Budget("units", limit, lambda heads, neurons: (heads + neurons / STEP).sum(-1))


def test_shrink_takes_the_least_worth_first() -> None:
    heads = np.array([[9.0, 8.0, 7.0, 6.0], [5.0, 0.4, 0.3, 0.2]])
    neurons = np.ones((2, NEURONS))
    space = SearchSpace((4, 4), (NEURONS,) * 2, [free(13.0)], neuron_step=STEP, head_worth=heads, neuron_worth=neurons)
    assert space.shrink(space.whole) == SubnetShape((4, 1), (40, 40))
    assert space.worth(space.whole) == pytest.approx(2.0)


def test_shrink_and_grow_from_anywhere_keep_the_limits() -> None:
    chance = random.Random(0)
    for seed in range(20):
        known = Known(seed, 0.4)
        counts = [(chance.randint(0, 9), chance.randint(0, 99)) for _ in range(LAYERS)]
        shape = known.space.fitted([h for h, _ in counts], [n for _, n in counts])
        if shape is None:
            continue
        for heads, neurons in zip(shape.heads, shape.neurons, strict=True):
            assert (heads == 0) == (neurons == 0)
            assert heads <= HEADS
            assert neurons == 0 or STEP <= neurons <= NEURONS
        small = known.space.shrink(shape, chance, 1.0)
        assert small is not None
        large = known.space.grow(small, chance, 1.0)
        assert known.space.load([small, large]).max() <= 1.0
        assert all(a <= b for a, b in zip(small.heads + small.neurons, large.heads + large.neurons, strict=True))


def test_layers_of_different_size_and_steps_that_do_not_divide() -> None:
    space = SearchSpace((2, 5), (7, 33), [free(4.0)], neuron_step=10)
    shape = space.shrink(space.whole)
    assert shape is not None
    assert space.load([shape])[0] <= 1.0
    assert shape.neurons[0] in (0, 7)
    large = SearchSpace((2, 5), (7, 33), [free(99.0)], neuron_step=10)
    assert large.grow(SubnetShape((1, 1), (7, 10))) == large.whole


def test_beginnings_are_within_and_different() -> None:
    known = Known(0, 0.5)
    start = starting_shapes(known.space, "keep_last")
    assert len(set(start)) == len(start) >= LAYERS
    assert known.space.load(start).max() <= 1.0
    assert {len(shape.kept_layers) for shape in start} == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"budgets": []}, "no budget"),
        ({"neuron_step": 0}, "neuron_step is 0"),
        ({"head_worth": np.ones((1, 4))}, r"head_worth has shape \(1, 4\); allowed: 2 layers of 4 or more"),
        ({"neuron_worth": np.full((2, 40), -1.0)}, "neuron_worth holds a value that is negative"),
    ],
)
def test_space_refuses(options: dict[str, Any], wrong: str) -> None:
    given: dict[str, Any] = {"budgets": [free(9.0)], "neuron_step": STEP} | options
    with pytest.raises(ValueError, match=wrong):
        SearchSpace((4, 4), (40, 40), **given)


# On a network
# ----------------------------------------------------------------------------------------------------------------------


def texts_of(count: int, seed: int = 0, labels: tuple[Any, ...] | None = None) -> Any:
    from dynabert.data import Examples, tokenise

    names = ("a", "b", "c") if labels is not None and not isinstance(labels[0], float) else ()
    examples = Examples(tuple(some_texts(count, seed)), labels=labels, label_names=names)
    return tokenise(examples, tiny_tokenizer(), 50)


def judged(fitness: str, model: Any, encoded: Any) -> Callable[[Sequence[SubnetShape]], list[float]]:
    return make_judge(model, encoded, fitness)


def test_fitness_is_best_where_nothing_is_left_out() -> None:
    model = tiny_model()
    encoded = texts_of(24, labels=tuple(i % 3 for i in range(24)))
    shapes = [model.shape(name) for name in ("w1", "w0.75", "w0.25-d0.5")]
    agreement = judged("agreement", model, encoded)(shapes)
    divergence = judged("divergence", model, encoded)(shapes)
    score = judged("score", model, encoded)(shapes)
    assert agreement[0] == pytest.approx(1.0)
    assert divergence[0] == pytest.approx(0.0, abs=1e-9)
    assert agreement[0] > max(agreement[1:])
    assert divergence[0] > divergence[1]
    assert all(0.0 <= value <= 1.0 for value in (round(s, 4) for s in score))
    assert judged("agreement", model, encoded)(shapes[1:]) == agreement[1:]
    with pytest.raises(ValueError, match="fitness is 'speed'; allowed: agreement, divergence, score"):
        make_judge(model, encoded, "speed")


def test_fitness_of_a_regression_and_of_several_labels() -> None:
    number = tiny_model(num_labels=1, problem_type="regression")
    shapes = [number.shape(name) for name in ("w1", "w0.5")]
    found = judged("agreement", number, texts_of(12))(shapes)
    assert found[0] == pytest.approx(0.0, abs=1e-9)
    assert found[1] < -1e-3
    many = tiny_model(num_labels=3, problem_type="multi_label_classification")
    encoded = texts_of(12, labels=tuple((i % 3,) for i in range(12)))
    for kind in ("agreement", "divergence", "score"):
        found = judged(kind, many, encoded)([many.shape("w1"), many.shape("w0.25-d0.5")])
        assert kind == "score" or found[0] > found[1]


def test_search_on_a_network_beats_or_equals_the_uniform_it_began_with() -> None:
    model = tiny_model()
    rewire(model, Importance(torch.rand(4, 4) + 0.1, torch.rand(4, 40) + 0.1))
    units = Budget("units", 0.5 * (16 + 16), lambda heads, neurons: (heads + neurons / 10).sum(-1))
    assert make_space(model, [units]).neuron_step == 10
    options: dict[str, Any] = {
        "uniform": ["w0.5", "w0.5-d0.5", "w1-d0.5"],
        "fitness": "divergence",
        "settings": SearchSettings(evaluations=40),
    }
    texts, fresh = texts_of(20), texts_of(20, seed=1)
    found = search_layers(model, texts, fresh, [units], **options)
    uniform, layered = found.best(uniform=True), found.best(uniform=False)
    assert uniform is not None
    assert layered is not None
    judge = make_judge(model, texts, "divergence")
    assert found.result.found[0].fitness >= max(judge([model.shape(name) for name in options["uniform"]]))
    assert found.finalists[0].fresh == max(uniform.fresh, layered.fresh)
    # The named ones, and the widest of three layers and of one, which no name stands for.
    alike = {one.subnet: one.shape for one in found.finalists if one.uniform}
    assert {"w0.5-d1", "w0.5-d0.5", "w1-d0.5"} <= set(alike)
    assert {subnet_text(shape) for shape in widest_uniform(make_space(model, [units]), "keep_last")} - set(alike) <= {
        subnet_text(model.shape(name)) for name in options["uniform"]
    }
    assert all(is_uniform(one.shape) is one.uniform for one in found.finalists)
    assert all(one.load <= 1.0 for one in found.finalists)
    assert search_layers(model, texts, fresh, [units], **options).finalists == found.finalists


def test_uniform_is_decided_by_the_shape() -> None:
    assert is_uniform(SubnetShape((3, 0, 3, 3), (30, 0, 30, 30)))
    assert is_uniform(SubnetShape((0, 0, 0, 2), (0, 0, 0, 7)))
    assert not is_uniform(SubnetShape((3, 3, 3, 2), (30, 30, 30, 30)))
    assert not is_uniform(SubnetShape((3, 0, 3, 3), (30, 0, 20, 30)))


def test_widest_uniform_is_the_widest_of_each_depth() -> None:
    units = Budget("units", 16, lambda heads, neurons: (heads + neurons / 10).sum(-1))
    space = SearchSpace((4,) * 4, (40,) * 4, [units], neuron_step=10)
    found = widest_uniform(space, "keep_last")
    assert [(len(s.kept_layers), max(s.heads), max(s.neurons)) for s in found] == [
        (4, 2, 20),
        (3, 2, 20),
        (2, 4, 40),
        (1, 4, 40),
    ]


def test_a_uniform_network_of_the_search_is_no_network_of_different_layers() -> None:
    """No grid candidate fits: all that the search begins with is uniform, and none of it may count as layered."""
    model = tiny_model()
    units = Budget("units", 9.0, lambda heads, neurons: (heads + neurons / 10).sum(-1))
    mixed = "h1,1,0,2-n10,10,0,10"
    found = search_layers(
        model,
        texts_of(10),
        texts_of(10, seed=1),
        [units],
        uniform=[mixed],
        fitness="divergence",
        settings=SearchSettings(evaluations=30),
    )
    layered = [one for one in found.finalists if not one.uniform]
    assert mixed in {one.subnet for one in layered}  # named, and yet of different layers
    assert all(len({pair for pair in zip(o.shape.heads, o.shape.neurons, strict=True) if pair[0]}) > 1 for o in layered)
    best = found.best(uniform=True)
    assert best is not None
    assert is_uniform(best.shape)
    assert {subnet_text(s) for s in widest_uniform(make_space(model, [units]), "keep_last")} <= {
        one.subnet for one in found.finalists if one.uniform
    }
