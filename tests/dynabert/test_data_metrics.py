"""Metrics against values worked by hand, and everything constant, tied or wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dynabert.data.metrics import (
    METRICS,
    accuracy,
    compute_metric,
    default_metrics,
    f1,
    majority_score,
    matthews_correlation,
    pearson,
    spearman,
)


def test_accuracy() -> None:
    assert accuracy([1, 0, 1, 1], [1, 1, 1, 0]) == 0.5


def test_f1_of_two_classes_is_that_of_class_one() -> None:
    # TP 2, FP 1, FN 1: 4 / 6
    assert f1([1, 1, 1, 0, 0], [1, 1, 0, 1, 0]) == pytest.approx(4 / 6)


def test_f1_of_three_classes_is_the_plain_mean() -> None:
    # class 0: TP 1, FP 0, FN 1 -> 2/3; class 1: TP 1, FP 1, FN 0 -> 2/3; class 2: TP 1, FP 0, FN 0 -> 1
    assert f1([0, 1, 1, 2], [0, 0, 1, 2]) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_matthews_of_two_classes() -> None:
    # TP 3, TN 2, FP 1, FN 2: (3*2 - 1*2) / sqrt(4 * 5 * 3 * 4)
    predictions = [1, 1, 1, 0, 0, 1, 0, 0]
    labels = [1, 1, 1, 0, 0, 0, 1, 1]
    assert matthews_correlation(predictions, labels) == pytest.approx(4 / math.sqrt(240))


def test_matthews_of_three_classes() -> None:
    # Gorodkin: n 5, hits 3, predicted (2, 2, 1), true (2, 1, 2): (3*5 - (4+2+2)) / sqrt((25-9) * (25-9))
    assert matthews_correlation([0, 0, 1, 1, 2], [0, 0, 1, 2, 2]) == pytest.approx((4 * 5 - 8) / 16)
    assert matthews_correlation([0, 1, 1, 0, 2], [0, 0, 1, 2, 2]) == pytest.approx((3 * 5 - 8) / 16)


def test_matthews_runs_from_minus_one_to_one() -> None:
    assert matthews_correlation([0, 1, 0, 1], [0, 1, 0, 1]) == pytest.approx(1.0)
    assert matthews_correlation([1, 0, 1, 0], [0, 1, 0, 1]) == pytest.approx(-1.0)


def test_pearson() -> None:
    # deviations (-1, 0, 1) and (-4/3, -1/3, 5/3): 3 / sqrt(2 * 42/9)
    assert pearson([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]) == pytest.approx(3 / math.sqrt(2 * 42 / 9))
    assert pearson([1.0, 2.0, 3.0], [6.0, 4.0, 2.0]) == pytest.approx(-1.0)


def test_spearman_shares_ranks_between_equal_values() -> None:
    # ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): deviations give 4.5 / sqrt(4.5 * 5)
    assert spearman([1.0, 2.0, 2.0, 9.0], [10.0, 20.0, 30.0, 40.0]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1.0, 10.0, 100.0], [0.1, 0.2, 0.3]) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", ["matthews_correlation", "f1"])
def test_constant_class_scores_zero(metric: str) -> None:
    assert compute_metric(metric, [0, 0, 0, 0], [0, 1, 0, 1]) == 0.0


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize("constant", [0.1, -3.0, 1e300])
def test_constant_number_scores_zero(metric: str, constant: float) -> None:
    numbers = [float(i) for i in range(10)]
    assert compute_metric(metric, [constant] * 10, numbers) == 0.0
    assert compute_metric(metric, numbers, [constant] * 10) == 0.0


def test_one_example() -> None:
    assert accuracy([1], [1]) == 1.0
    assert pearson([1.0], [2.0]) == 0.0
    assert matthews_correlation([1], [1]) == 0.0


def test_majority() -> None:
    assert majority_score([0, 1, 1, 2]) == 0.5
    assert majority_score([0, 1, 1], "matthews_correlation") == 0.0
    assert majority_score([0, 1, 1], "f1") == pytest.approx(0.8)  # all of class 1: TP 2, FP 1
    assert majority_score([2.5, 3.0], "pearson") == 0.0
    assert majority_score([1, 0]) == 0.5


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.sampled_from(["accuracy", "f1"]))
@example([0] * 60 + [1] * 40, "f1")  # class 1 is the best answer, and the rarer one
@example([0, 0], "f1")
def test_majority_is_the_best_constant(labels: list[int], metric: str) -> None:
    best = max(compute_metric(metric, [answer] * len(labels), labels) for answer in range(5))
    assert majority_score(labels, metric) == pytest.approx(best)


@pytest.mark.parametrize("metric", METRICS)
def test_refusals(metric: str) -> None:
    with pytest.raises(ValueError, match="no examples"):
        compute_metric(metric, [], [])
    with pytest.raises(ValueError, match="differ in shape"):
        compute_metric(metric, [1, 2], [1])


def test_refuses_what_is_no_class() -> None:
    with pytest.raises(TypeError, match="no class indices"):
        accuracy([0.5, 1.0], [0, 1])


def test_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite, at index 1"):
        pearson([0.0, math.nan], [0.0, 1.0])


def test_unknown_metric() -> None:
    with pytest.raises(ValueError, match="no metric of this name; got 'bleu'"):
        compute_metric("bleu", [1], [1])


def test_no_labels_have_no_majority() -> None:
    with pytest.raises(ValueError, match="no labels"):
        majority_score([])


def test_default_metrics_begin_with_the_score() -> None:
    assert default_metrics(False)[0] == "accuracy"
    assert default_metrics(True)[0] == "spearman"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_matthews_is_the_correlation_of_indicators(pairs: list[tuple[int, int]]) -> None:
    p, t = (np.array(side) for side in zip(*pairs, strict=True))
    a, b = np.eye(4)[p], np.eye(4)[t]
    a, b = a - a.mean(0), b - b.mean(0)
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    expected = float((a * b).sum()) / scale if scale > 1e-12 else 0.0
    assert matthews_correlation(p, t) == pytest.approx(expected, abs=1e-9)
