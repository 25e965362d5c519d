"""Scores of a prediction against the truth: accuracy, F1, Matthews, Pearson, Spearman; micro and macro F1 and subset
accuracy of several labels a text; and the best constant answer's score.

Small float64 numpy versions of the textbook formulas. All scores are fractions (0.83, not 83). Where a formula divides
zero by zero (a constant prediction has no correlation with anything) the score is 0.0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Values = Sequence[int] | Sequence[float] | npt.NDArray[np.generic]


def accuracy(predictions: Values, labels: Values) -> float:
    """Share of predictions that equal their label."""
    p, t = _classes(predictions, labels, "accuracy")
    return float(np.mean(p == t))


def f1(predictions: Values, labels: Values) -> float:
    """F1 of class 1 when only the classes 0 and 1 occur; else the unweighted mean of the F1 of each class that occurs.

    ``F1 = 2 TP / (2 TP + FP + FN)``.
    """
    p, t = _classes(predictions, labels, "f1")
    classes = np.union1d(p, t)
    chosen = np.array([1]) if np.isin(classes, (0, 1)).all() else classes
    scores = []
    for c in chosen:
        hit = np.sum((p == c) & (t == c))
        scores.append(_ratio(2.0 * hit, float(np.sum(p == c) + np.sum(t == c))))
    return float(np.mean(scores))


def matthews_correlation(predictions: Values, labels: Values) -> float:
    """Matthews correlation for any number of classes (Gorodkin 2004): that of the two indicator matrices."""
    p, t = _classes(predictions, labels, "matthews_correlation")
    classes = np.union1d(p, t)
    predicted = np.array([np.sum(p == c) for c in classes], dtype=np.float64)
    true = np.array([np.sum(t == c) for c in classes], dtype=np.float64)
    count = float(len(p))
    covariance = float(np.sum(p == t)) * count - float(predicted @ true)
    return _ratio(covariance, float(np.sqrt((count**2 - predicted @ predicted) * (count**2 - true @ true))))


def pearson(predictions: Values, labels: Values) -> float:
    """Pearson's correlation of two series of numbers."""
    p, t = _numbers(predictions, labels, "pearson")
    if np.ptp(p) == 0.0 or np.ptp(t) == 0.0:
        return 0.0  # asked exactly: the mean of a constant can differ from it by rounding
    p, t = p - p.mean(), t - t.mean()
    return float(np.clip(_ratio(float(p @ t), float(np.sqrt((p @ p) * (t @ t)))), -1.0, 1.0))


def spearman(predictions: Values, labels: Values) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    p, t = _numbers(predictions, labels, "spearman")
    return pearson(_ranks(p), _ranks(t))


def micro_f1(predictions: Values, labels: Values) -> float:
    """F1 over all decisions: each label of each text counts the same. Arguments: (N, L) zeros and ones."""
    p, t = _indicators(predictions, labels, "micro_f1")
    return _ratio(2.0 * float(np.sum(p & t)), float(p.sum() + t.sum()))


def macro_f1(predictions: Values, labels: Values) -> float:
    """The mean of each label's F1, over all L labels; one that neither occurs nor is predicted counts 0, as in
    scikit-learn. Arguments: (N, L) zeros and ones."""
    p, t = _indicators(predictions, labels, "macro_f1")
    hits, sizes = np.sum(p & t, axis=0), p.sum(axis=0) + t.sum(axis=0)
    return float(np.mean([_ratio(2.0 * float(hit), float(size)) for hit, size in zip(hits, sizes, strict=True)]))


def subset_accuracy(predictions: Values, labels: Values) -> float:
    """Share of texts with exactly their labels. Arguments: (N, L) zeros and ones."""
    p, t = _indicators(predictions, labels, "subset_accuracy")
    return float(np.mean((p == t).all(axis=1)))


def agreement(predictions: Values, others: Values) -> float:
    """Share of texts that two networks answer alike: class indices, or (N, L) zeros and ones for several labels."""
    both = np.asarray(predictions).ndim == 2
    return subset_accuracy(predictions, others) if both else accuracy(predictions, others)


Metric = Callable[[Values, Values], float]
METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
    "micro_f1": micro_f1,
    "macro_f1": macro_f1,
    "subset_accuracy": subset_accuracy,
    "agreement": agreement,
}
AGREEMENT = "agreement"  # with the whole network's answers: the one that needs no labels
REGRESSION_METRICS = ("pearson", "spearman")
# The first is the score: subset accuracy moves little while most labels become right, and is 0 for long where there are
# many; macro F1 hangs on the rarest labels of a small set.
MULTI_LABEL_METRICS = ("micro_f1", "macro_f1", "subset_accuracy")


def default_metrics(regression: bool = False, *, multi_label: bool = False) -> tuple[str, ...]:
    """Metrics that are reported when none is named, the first being the score."""
    if multi_label:
        return MULTI_LABEL_METRICS
    return ("spearman", "pearson") if regression else ("accuracy", "f1", "matthews_correlation")


def compute_metric(name: str, predictions: Values, labels: Values) -> float:
    """The metric of this name; ValueError for an unknown name, for no examples and for lengths that differ."""
    if name not in METRICS:
        raise ValueError(f"compute_metric: no metric of this name; got {name!r}; allowed: {', '.join(METRICS)}")
    return METRICS[name](predictions, labels)


def majority_score(labels: Values, metric: str = "accuracy") -> float:
    """What the best constant prediction scores in ``metric``; 0.0 for a correlation.

    That is the most frequent class; in the F1 of class 1 (see `f1`) it is class 1, for any other answer scores 0. For a
    metric of several labels a text, with (N, L) ``labels``, the constant is a set of labels: the one that scores best.
    """
    if metric in REGRESSION_METRICS:
        return 0.0
    t = np.asarray(labels)
    if t.size == 0:
        raise ValueError("majority_score: no labels; at least one is needed")
    if metric in MULTI_LABEL_METRICS or (metric == AGREEMENT and t.ndim == 2):
        return _best_constant_set(t, metric)
    classes, counts = np.unique(t, return_counts=True)
    best = 1 if metric == "f1" and np.isin(classes, (0, 1)).all() else classes[np.argmax(counts)]
    return compute_metric(metric, np.full(t.shape, best), t)


def _best_constant_set(labels: npt.NDArray[np.generic], metric: str) -> float:
    _, t = _indicators(labels, labels, metric)
    counts = t.sum(axis=0)
    if metric in ("subset_accuracy", AGREEMENT):
        return float(np.unique(np.packbits(t, axis=1), axis=0, return_counts=True)[1].max()) / len(t)
    if metric == "macro_f1":  # each label on its own: one that is predicted scores, one that is not scores 0
        return float(np.mean(2.0 * counts / (counts + len(t))))
    # Of all sets of k labels the k most frequent ones hit most.
    hits, sizes = np.cumsum(np.sort(counts)[::-1]), len(t) * np.arange(1, len(counts) + 1)
    return float(np.max(2.0 * hits / (sizes + counts.sum())))


def _indicators(predictions: Values, labels: Values, name: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    p, t = np.asarray(predictions), np.asarray(labels)
    if p.size == 0 and t.size == 0:
        raise ValueError(f"{name}: no examples; at least one is needed")
    if p.ndim != 2 or p.shape != t.shape:
        raise ValueError(
            f"{name}: predictions and labels differ in shape; got {p.shape} and {t.shape}; allowed: two arrays of one "
            "shape, (texts, labels)"
        )
    for what, values in (("predictions", p), ("labels", t)):
        if values.dtype != np.bool_ and not ((values == 0) | (values == 1)).all():
            raise ValueError(f"{name}: {what} hold something else than 0 and 1; allowed: 1 where a text has the label")
    return p.astype(bool), t.astype(bool)


def _classes(predictions: Values, labels: Values, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    p, t = np.asarray(predictions), np.asarray(labels)
    _same_length(p, t, name)
    for what, values in (("predictions", p), ("labels", t)):
        if values.dtype.kind not in "iu":
            raise TypeError(f"{name}: {what} are no class indices; got {values.dtype}; allowed: integers")
    return p.astype(np.int64), t.astype(np.int64)


def _numbers(predictions: Values, labels: Values, name: str) -> tuple[Array, Array]:
    p, t = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    _same_length(p, t, name)
    for what, values in (("predictions", p), ("labels", t)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name}: {what} hold a value that is not finite, at index "
                f"{int(np.flatnonzero(~np.isfinite(values))[0])}"
            )
    return p, t


def _same_length(p: npt.NDArray[np.generic], t: npt.NDArray[np.generic], name: str) -> None:
    if p.ndim != 1 or p.shape != t.shape:
        raise ValueError(
            f"{name}: predictions and labels differ in shape; got {p.shape} and {t.shape}; allowed: two lists of one "
            "length"
        )
    if p.size == 0:
        raise ValueError(f"{name}: no examples; at least one is needed")


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts - 1) / 2.0
    return np.asarray(mean_rank[inverse], dtype=np.float64)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0.0 else 0.0
