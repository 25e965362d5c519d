"""Retention and its bootstrap, against plain loops over the resamples."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy.predictions import Predictions
from benchmarks.accuracy.resampling import draw_counts, resampled_scores
from benchmarks.accuracy.scoring import Interval, TaskScores, main, read_runs, summarise
from dynabert.data.metrics import compute_metric

N = 60


def drawn_rows(counts: np.ndarray) -> np.ndarray:
    """The examples that a row of counts stands for."""
    return np.repeat(np.arange(len(counts)), counts.astype(int))


def some_predictions(metric: str, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Three predictions, one constant, and labels; numbers with many ties for a correlation."""
    if metric == "spearman":
        labels = chance.integers(0, 11, N) / 2.0
        near = np.round(labels + chance.normal(0.0, 1.0, N), 0)
        return np.stack([near, chance.normal(size=N), np.full(N, 2.5)]), labels
    labels = chance.integers(0, 3, N)
    noisy = np.where(chance.random(N) < 0.3, chance.integers(0, 3, N), labels)
    return np.stack([noisy, chance.integers(0, 3, N), np.full(N, 1)]), labels


@pytest.mark.parametrize("metric", ["accuracy", "matthews_correlation", "spearman"])
def test_resampled_scores_are_those_of_the_drawn_examples(metric: str) -> None:
    chance = np.random.default_rng(3)
    predictions, labels = some_predictions(metric, chance)
    counts = draw_counts(N, 300, chance)
    assert (counts[0] == 1).all()
    assert (counts.sum(axis=1) == N).all()
    found = resampled_scores(metric, predictions, labels, counts)
    for row, scores in zip(counts, found, strict=True):
        rows = drawn_rows(row)
        wanted = [compute_metric(metric, own[rows], labels[rows]) for own in predictions]
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-12)
    if metric != "accuracy":
        assert (found[:, 2] == 0.0).all()  # a constant has no correlation


@pytest.mark.parametrize("metric", ["matthews_correlation", "spearman"])
def test_a_resample_of_one_class_or_value_has_no_correlation(metric: str) -> None:
    labels = np.array([0, 0, 0, 1]) if metric != "spearman" else np.array([0.1, 0.1, 0.1, 0.7])
    counts = np.array([[2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = resampled_scores(metric, labels[None], labels, counts)
    np.testing.assert_allclose(found[:, 0], [0.0, 1.0], atol=1e-12)


def test_another_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="metric is 'f1'; allowed: accuracy"):
        resampled_scores("f1", np.zeros((1, 2), int), np.zeros(2, int), np.ones((1, 2)))


def classes(decisions: np.ndarray) -> np.ndarray:
    """Logits of two classes with these decisions."""
    return np.stack([1.0 - decisions, decisions], axis=1).astype(np.float32) * 4.0


def files(labels: np.ndarray, right: dict[tuple[str, str], float], seed: int) -> dict[str, Predictions]:
    """Predictions that are right with these chances."""
    chance = np.random.default_rng(seed)
    found: dict[str, Predictions] = {}
    for (variant, subnet), share in right.items():
        decisions = np.where(chance.random(len(labels)) < share, labels, 1 - labels)
        own = found.setdefault(variant, Predictions(labels, "accuracy", {}))
        own.logits[subnet] = classes(decisions)
    return found


RIGHT = {("teacher", "w1-d1"): 0.9, ("dynabert", "w1-d1"): 0.88, ("dynabert", "w0.5-d1"): 0.8}
LABELS = (np.arange(200) % 5 < 3).astype(np.int64)


def test_retention_is_of_means_over_seeds_each_with_its_own_teacher() -> None:
    seeds = {seed: files(LABELS, RIGHT, seed) for seed in (1, 2, 3)}
    scores = TaskScores(seeds, 400, np.random.default_rng(0))
    own = scores.retention(("dynabert", "w0.5-d1"), (1, 2, 3))

    def mean(variant: str, subnet: str) -> float:
        return float(np.mean([(s[variant].logits[subnet].argmax(1) == LABELS).mean() for s in seeds.values()]))

    majority = 0.6
    wanted = (mean("dynabert", "w0.5-d1") - majority) / (mean("teacher", "w1-d1") - majority)
    assert math.isclose(float(own[0]), wanted)
    interval = Interval.of(own)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < wanted < interval.high
    errors, error = scores.above_chance()
    assert math.isclose(errors * error, mean("teacher", "w1-d1") - majority)
    # Each example's own error, of three seeds that answer alone: about the share's, in which the majority's has a part.
    assert 0.02 < error < 0.06
    found = summarise({"sst2": scores})
    assert [row["subnet"] for row in found["means"]] == ["w1-d1", "w0.5-d1"]
    assert found["means"][1]["retention"]["value"] == round(wanted, 5)
    assert found["goals"] == [{"variant": "dynabert", "subnet": "w0.5-d1", "goal": 0.995, "met": False}]


def test_the_interval_is_that_of_a_loop() -> None:
    """Examples and seeds both drawn: another stream of numbers, so the ends are the same up to the draw."""
    seeds = {seed: files(LABELS, RIGHT, seed) for seed in (1, 2, 3)}
    right = {
        name: np.stack([(s[name[0]].logits[name[1]].argmax(1) == LABELS).astype(float) for s in seeds.values()])
        for name in (("teacher", "w1-d1"), ("dynabert", "w0.5-d1"))
    }
    chance = np.random.default_rng(11)
    loop = []
    for _ in range(4000):
        rows, drawn = chance.integers(0, len(LABELS), len(LABELS)), chance.integers(0, 3, 3)
        top, own = (right[name][drawn][:, rows].mean() for name in right)
        constant = LABELS[rows].mean()
        loop.append((own - constant) / (top - constant))
    low, high = np.percentile(loop, [2.5, 97.5])
    found = Interval.of(TaskScores(seeds, 4000, np.random.default_rng(5)).retention(("dynabert", "w0.5-d1"), (1, 2, 3)))
    assert found.low is not None
    assert found.high is not None
    assert abs(found.low - low) < 0.04 * (high - low)
    assert abs(found.high - high) < 0.04 * (high - low)


def test_a_teacher_that_is_constant_has_no_retention() -> None:
    own = files(LABELS, RIGHT, 1)
    own["teacher"] = Predictions(LABELS, "accuracy", {"w1-d1": classes(np.ones_like(LABELS))})
    scores = TaskScores({1: own}, 200, np.random.default_rng(0))
    assert scores.above_chance() == (0.0, 0.0)
    found = summarise({"rte": scores})
    assert found["means"] == found["differences"] == found["goals"] == []
    task = found["tasks"]["rte"]
    assert task["counted"] is False
    assert all(row["retention"] == {"value": None, "low": None, "high": None} for row in task["rows"])
    json.dumps(found, allow_nan=False)


def test_a_teacher_near_chance_has_no_interval_and_does_not_count() -> None:
    right = RIGHT | {("teacher", "w1-d1"): 0.62}
    scores = TaskScores({seed: files(LABELS, right, seed) for seed in (4, 5)}, 400, np.random.default_rng(0))
    task = summarise({"rte": scores})["tasks"]["rte"]
    assert task["counted"] is False
    assert all(row["retention"]["low"] is None for row in task["rows"])


def test_a_variant_of_fewer_seeds_is_held_against_the_same_seeds() -> None:
    more = RIGHT | {("no_rewiring", "w0.5-d1"): 0.7}
    seeds = {1: files(LABELS, more, 1), 2: files(LABELS, RIGHT, 2), 3: files(LABELS, RIGHT, 3)}
    scores = TaskScores(seeds, 300, np.random.default_rng(0))
    (row,) = summarise({"sst2": scores})["differences"]
    assert (row["variant"], row["against"]) == ("no_rewiring", "dynabert")
    kept = [scores.retention((name, "w0.5-d1"), (1,))[0] for name in ("no_rewiring", "dynabert")]
    assert row["difference"]["value"] == round(float(kept[0] - kept[1]), 5)


def test_a_regression_has_no_agreement() -> None:
    chance = np.random.default_rng(2)
    labels = chance.integers(0, 11, 120) / 2.0
    made = {
        name: Predictions(
            labels, "spearman", {"w1-d1": (labels + chance.normal(0, s, 120)).astype(np.float32)[:, None]}
        )
        for name, s in (("teacher", 0.5), ("dynabert", 0.8))
    }
    found = summarise({"stsb": TaskScores({1: made}, 200, chance)})
    (row,) = found["tasks"]["stsb"]["rows"]
    assert found["tasks"]["stsb"]["majority"] == 0.0
    assert row["agreement"] is None
    assert row["divergence"] > 0.0
    (mean,) = found["means"]
    assert mean["agreement"] is None
    assert mean["divergence"] is None


def test_seeds_of_other_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="of seed 2 was scored on other labels"):
        TaskScores({1: files(LABELS, RIGHT, 1), 2: files(1 - LABELS, RIGHT, 2)}, 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no seed"):
        TaskScores({}, 10, np.random.default_rng(0))


def test_the_command_reads_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        for name, own in files(LABELS, RIGHT, seed).items():
            own.save(tmp_path / "runs" / "sst2" / f"seed{seed}" / "predictions" / f"{name}.npz")
    kept = read_runs([tmp_path / "runs"])["sst2"][2]["dynabert"]
    assert kept.metric == "accuracy"
    assert (kept.labels == LABELS).all()
    out = tmp_path / "scoring.json"
    given = [str(tmp_path / "runs"), "--resamples", "200", "--out", str(out)]
    assert main(given) == 0
    first = json.loads(out.read_text())
    assert first["tasks"]["sst2"]["seeds"] == [1, 2]
    assert str(tmp_path) not in first["command"]
    assert "w0.5-d1" in capsys.readouterr().out
    assert main(given) == 0
    assert json.loads(out.read_text()) == first  # the same numbers again
    with pytest.raises(ValueError, match="is in two folders"):
        read_runs([tmp_path / "runs", tmp_path / "runs"])
    with pytest.raises(ValueError, match="no TASK"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "runs" / "sst2" / "seed1" / "predictions" / "dynabert.npz").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"dynabert\.npz holds no predictions"):
        read_runs([tmp_path / "runs"])
