"""Choosing under limits: who is within, which one is taken, what is said where none is, and the Pareto front."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from dynabert.cost import subnet_cost
from dynabert.profile import Candidate, Limits, list_candidates, pareto_front, ranked, satisfiable, with_scores
from dynabert.profile.choice import nearest, no_solution
from dynabert_kernels import SubnetShape
from tests.dynabert.tiny_texts import tiny_model


def candidate(name: str, latency_ms: float | None, score: float | None, **known: Any) -> Candidate:
    given = {"parameters": 1_000_000, "gflop": 1.0} | known
    return Candidate(name, SubnetShape((1,), (1,)), latency_ms=latency_ms, score=score, **given)


FOUR = [
    candidate("fast", 1.0, 0.70, retention=0.70 / 0.90, parameters=4_000_000),
    candidate("middle", 2.0, 0.85, retention=0.85 / 0.90, parameters=6_000_000),
    candidate("slower", 3.0, 0.84, retention=0.84 / 0.90, parameters=5_000_000),
    candidate("whole", 4.0, 0.90, retention=1.0, parameters=9_000_000),
]


def names(found: list[Candidate]) -> list[str]:
    return [c.subnet for c in found]


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ({"max_latency_ms": 10.0}, ["whole", "middle", "slower", "fast"]),
        ({"max_latency_ms": 3.0}, ["middle", "slower", "fast"]),  # the limit itself is within
        ({"max_latency_ms": 2.999}, ["middle", "fast"]),
        ({"max_params": 5e6}, ["slower", "fast"]),
        ({"min_score": 0.80}, ["middle", "slower", "whole"]),  # quality alone: the cheapest
        ({"min_retention": 1.0}, ["whole"]),
        ({"min_score": 0.80, "max_latency_ms": 3.5}, ["middle", "slower"]),
        ({"min_score": 0.91}, []),
        ({"max_latency_ms": 0.5}, []),
    ],
)
def test_ranking(limits: dict[str, float], wanted: list[str]) -> None:
    assert names(ranked(FOUR, Limits(**limits))) == wanted


def test_equal_scores_take_the_cheaper_and_equal_costs_the_better() -> None:
    same_score = [candidate("slow", 3.0, 0.8), candidate("quick", 2.0, 0.8)]
    assert names(ranked(same_score, Limits(max_latency_ms=9.0)))[0] == "quick"
    same_cost = [candidate("worse", 2.0, 0.8), candidate("better", 2.0, 0.81)]
    assert names(ranked(same_cost, Limits(min_score=0.5)))[0] == "better"


def test_without_latency_gflop_is_the_cost() -> None:
    some = [candidate("a", None, 0.8, gflop=2.0), candidate("b", None, 0.9, gflop=3.0)]
    assert names(ranked(some, Limits(min_score=0.5))) == ["a", "b"]
    assert ranked(some, Limits(max_latency_ms=5.0)) == []  # not known is not within


@pytest.mark.parametrize("seed", range(5))
def test_ranking_equals_trying_all(seed: int) -> None:
    chance = random.Random(seed)
    some = [
        candidate(f"c{i}", chance.uniform(1, 9), chance.random(), gflop=chance.uniform(1, 5), retention=chance.random())
        for i in range(40)
    ]
    limits = Limits(max_latency_ms=6.0, max_gflops=4.0, min_retention=0.3)
    allowed = [c for c in some if (c.latency_ms or 0) <= 6.0 and c.gflop <= 4.0 and (c.retention or 0) >= 0.3]
    assert ranked(some, limits) == sorted(allowed, key=lambda c: -(c.score or 0))


def test_objective_is_said() -> None:
    assert Limits(max_params=1e6).objective(True) == "the best score within the limits"
    assert "on cost and on quality" in Limits(max_params=1e6, min_score=0.5).objective(True)
    assert Limits(min_score=0.5).objective(True).startswith("the lowest latency")
    assert Limits(min_score=0.5).objective(False).startswith("the lowest GFLOP")


def test_satisfiable_counts_what_is_known() -> None:
    lines = satisfiable(FOUR, Limits(max_latency_ms=3.0, max_params=5e6))
    assert "latency 1 ms to 4 ms; limit 3 ms: 3 of 4 candidates" in lines
    assert "parameters 4.00 M to 9.00 M; limit 5.00 M: 2 of 4 candidates" in lines
    assert "all limits on cost together: 2 of 4 candidates" in lines
    unscored = [candidate("a", None, None)]
    assert satisfiable(unscored, Limits(min_score=0.5)) == [
        "parameters 1.00 M to 1.00 M",
        "arithmetic 1 GFLOP to 1 GFLOP",
    ]


def test_no_solution_names_the_nearest_and_what_takes_it() -> None:
    limits = Limits(max_latency_ms=0.8, min_score=0.6)
    assert nearest(FOUR, limits).subnet == "fast"
    text = no_solution(FOUR, limits)
    assert "none of 4 candidates" in text
    assert "nearest: fast (latency 1 ms, at most 0.8 ms asked for)" in text
    assert "--max_latency_ms 1" in text
    both = Limits(max_latency_ms=1.9, min_score=0.80)
    text = no_solution(FOUR, both)
    assert "nearest: middle" in text
    assert "--max_latency_ms 2" in text


@pytest.mark.parametrize("score", [0.0, -0.1])
def test_a_limit_that_would_be_refused_is_not_advised(score: float) -> None:
    near = candidate("near", 2.0, score)
    text = no_solution([near], Limits(min_score=0.5))
    assert text.endswith("at least 50.00 % asked for); to take it leave out --min_score")
    both = Limits(max_latency_ms=1.0, min_score=0.5)
    assert no_solution([near], both).endswith("to take it give --max_latency_ms 2.01 and leave out --min_score")
    assert ranked([near], Limits(max_latency_ms=2.01)) == [near]


@pytest.mark.parametrize("value", [0.7, 1.23456, 3.0, 8.965, 22.7000001])
def test_what_it_says_to_give_takes_the_nearest(value: float) -> None:
    near = [candidate("near", value, 0.123456, parameters=12_345_678, gflop=value, retention=0.654321)]
    limits = Limits(max_latency_ms=0.1, max_params=10.0, max_gflops=0.1, min_score=0.99, min_retention=0.99)
    said = limits.would_take(near[0])
    given = {}
    for option in said:
        name, text = option.removeprefix("--").split(" ")
        given[name] = float(text.removesuffix("M")) * (1e6 if text.endswith("M") else 1.0)
    assert len(given) == 5
    assert ranked(near, Limits(**given)) == near
    assert given["max_latency_ms"] <= value + 0.02  # and is no more generous than it says


@pytest.mark.parametrize(
    ("limits", "wrong"),
    [
        ({}, "no limit; give at least one of max_latency_ms"),
        ({"max_latency_ms": 0.0}, "max_latency_ms is 0; allowed: above 0"),
        ({"max_latency_ms": float("nan")}, "max_latency_ms is nan"),
        ({"max_params": -1.0}, "max_params is -1"),
        ({"min_score": 88.0}, "fractions, not per cent: 0.88"),
        ({"min_retention": 1.5}, "min_retention is 1.5; allowed: above 0, up to 1"),
        ({"min_retention": 0.0}, "min_retention is 0"),
    ],
)
def test_limits_that_nothing_or_everything_keeps_are_refused(limits: dict[str, float], wrong: str) -> None:
    with pytest.raises(ValueError, match="Limits: ") as error:
        Limits(**limits)
    assert wrong in str(error.value)


# Candidates
# ----------------------------------------------------------------------------------------------------------------------


def test_candidates_carry_their_costs() -> None:
    config = tiny_model().config
    found = list_candidates(config, ["w1", "w0.5-d0.5"], 20, [3.0, 1.0])
    assert names(found) == ["w1-d1", "w0.5-d0.5"]
    for one in found:
        cost = subnet_cost(config, one.subnet, seq_length=20)
        assert (one.parameters, one.gflop) == (cost.parameters, cost.gflop)
    assert [c.latency_ms for c in found] == [3.0, 1.0]
    assert found[1].to_dict()["heads"] == [0, 2, 0, 2]
    with pytest.raises(ValueError, match="2 sub-networks need as many latencies; got 1"):
        list_candidates(config, ["w1", "w0.5"], 20, [1.0])


def test_retention_is_a_share_of_the_whole() -> None:
    config = tiny_model().config
    some = list_candidates(config, ["w1", "w0.5"], 20)
    whole, half = with_scores(some, {"w1-d1": 0.9, "w0.5-d1": 0.72}, whole=0.9, majority=0.6)
    assert (whole.retention, whole.corrected_retention) == (1.0, pytest.approx(1.0))
    assert half.retention == pytest.approx(0.8)
    assert half.corrected_retention == pytest.approx(0.12 / 0.3)
    assert with_scores(some, {"w1-d1": 0.9, "w0.5-d1": 0.7}, whole=None)[1].retention is None
    assert with_scores(some, {"w1-d1": 0.0, "w0.5-d1": 0.1}, whole=0.0, majority=0.5)[1].retention is None
    with pytest.raises(ValueError, match=r"no score of w0\.5-d1; scored: w1-d1"):
        with_scores(some, {"w1-d1": 0.9}, whole=0.9)


# Pareto front
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_front_is_what_nothing_beats(seed: int) -> None:
    chance = random.Random(seed)
    costs = [chance.randint(1, 12) for _ in range(30)]  # whole numbers, so that some are equal
    scores = [chance.randint(1, 12) for _ in range(30)]
    front = pareto_front(costs, scores)

    def beats(a: int, b: int) -> bool:
        better = costs[a] < costs[b] or scores[a] > scores[b]
        return costs[a] <= costs[b] and scores[a] >= scores[b] and better

    unbeaten = [i for i in range(30) if not any(beats(j, i) for j in range(30))]
    assert {(costs[i], scores[i]) for i in front} == {(costs[i], scores[i]) for i in unbeaten}
    assert set(front) <= set(unbeaten)
    assert all(costs[a] < costs[b] and scores[a] < scores[b] for a, b in itertools.pairwise(front))


def test_front_edges() -> None:
    assert pareto_front([], []) == []
    assert pareto_front([2.0, 2.0, 1.0], [0.5, 0.5, 0.5]) == [2]
    assert pareto_front([1.0, 1.0], [0.5, 0.5]) == [0]
    with pytest.raises(ValueError, match="got 1 and 2"):
        pareto_front([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        pareto_front([float("nan")], [1.0])


def test_what_is_no_number_keeps_no_limit() -> None:
    nan = float("nan")
    shape = SubnetShape((1,), (1,))
    good = Candidate("w0.5-d1", shape, 10, 1.0, 2.0, 0.8)
    for limits, broken in (
        (Limits(max_latency_ms=5.0), Candidate("w1-d1", shape, 10, 1.0, nan, 0.9)),
        (Limits(min_score=0.5), Candidate("w1-d1", shape, 10, 1.0, 2.0, nan)),
    ):
        assert limits.excess(broken) == float("inf")
        assert not limits.within(broken)
        assert ranked([broken, good], limits) == [good]
        assert "nan" not in " ".join(satisfiable([broken, good], limits))
    unscored = Candidate("w1-d1", shape, 10, 1.0, 2.0, nan)
    assert ranked([unscored, good], Limits(max_latency_ms=5.0)) == [good, unscored]


def test_a_corrected_retention_of_noise_is_left_out() -> None:
    one = [candidate("w0.5-d1", 1.0, None)]
    scores = {"w0.5-d1": 0.6}
    for whole, examples, known in ((0.70, 1000, True), (0.51, 100, False), (0.51, 100_000, True), (0.51, None, True)):
        [found] = with_scores(one, scores, whole=whole, majority=0.5, examples=examples)
        assert (found.corrected_retention is not None) is known
        assert found.retention == pytest.approx(0.6 / whole)


def test_small_numbers_keep_their_digits() -> None:
    small = candidate("w0.5-d1", 0.0123, 0.5, parameters=12_345, gflop=0.0003146)
    limits = Limits(max_latency_ms=0.01, max_params=10_000, max_gflops=0.0001)
    assert limits.would_take(small) == ["--max_latency_ms 0.0124", "--max_params 0.0124M", "--max_gflops 0.000315"]
    words = " ".join(limits.broken(small))
    assert "parameters 12,345, at most 10,000" in words
    assert "0.0003146 GFLOP" in words
