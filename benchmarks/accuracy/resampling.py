"""Scores under a bootstrap: every resample of the examples at once, as counts of how often each was drawn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_CHUNK = 256  # resamples whose ranks are in memory together


def draw_counts(examples: int, resamples: int, chance: np.random.Generator) -> Array:
    """(1 + resamples, examples): how often each example was drawn. The first row is the set as it is."""
    drawn = chance.multinomial(examples, np.full(examples, 1.0 / examples), size=resamples)
    return np.concatenate([np.ones((1, examples)), drawn]).astype(np.float64)


def resampled_scores(
    metric: str, predictions: npt.NDArray[np.generic], labels: npt.NDArray[np.generic], counts: Array
) -> Array:
    """The metric of (K, N) ``predictions`` in every resample: (R, K). Definitions as `dynabert.data.metrics` has them,
    also where one divides zero by zero: a constant prediction has no correlation, 0.

    Raises ``ValueError`` for a metric that is not here.
    """
    if metric == "accuracy":
        right = (predictions == labels).astype(np.float64)
        return counts @ right.T / counts.sum(axis=1, keepdims=True)
    columns = {"matthews_correlation": _matthews, "spearman": _spearman}
    if metric not in columns:
        raise ValueError(f"resampled_scores: metric is {metric!r}; allowed: accuracy, {', '.join(columns)}")
    return np.stack([columns[metric](own, labels, counts) for own in predictions], axis=1)


def _matthews(predictions: npt.NDArray[np.generic], labels: npt.NDArray[np.generic], counts: Array) -> Array:
    """Of the confusion matrix, whose cells are sums of counts (Gorodkin 2004)."""
    classes = np.union1d(predictions, labels)
    predicted, true = ((values[:, None] == classes).astype(np.float64) for values in (predictions, labels))
    total = counts.sum(axis=1)
    right = counts @ (predicted * true).sum(axis=1)
    p, t = counts @ predicted, counts @ true
    covariance = right * total - (p * t).sum(axis=1)
    scale = np.sqrt((total**2 - (p * p).sum(axis=1)) * (total**2 - (t * t).sum(axis=1)))
    return _ratio(covariance, scale)


def _spearman(predictions: npt.NDArray[np.generic], labels: npt.NDArray[np.generic], counts: Array) -> Array:
    """Pearson's correlation of the ranks within the resample; equal values share their mean rank there too."""
    own, true = _Ranking(predictions), _Ranking(labels)
    found = []
    for begin in range(0, len(counts), _CHUNK):
        part = counts[begin : begin + _CHUNK]
        p, t = own.ranks(part), true.ranks(part)
        total = part.sum(axis=1, keepdims=True)
        p -= (part * p).sum(axis=1, keepdims=True) / total
        t -= (part * t).sum(axis=1, keepdims=True) / total
        both = (part * p * t).sum(axis=1)
        squares = (part * p * p).sum(axis=1), (part * t * t).sum(axis=1)
        # Ranks are halves of whole numbers: a square sum below this is rounding, of values that are all equal.
        constant = (squares[0] < 1e-6) | (squares[1] < 1e-6)
        scale = np.where(constant, 0.0, np.sqrt(squares[0] * squares[1]))
        found.append(np.clip(_ratio(both, scale), -1.0, 1.0))
    return np.concatenate(found)


class _Ranking:
    """The order of a series of numbers, and each one's rank where every value was drawn some times."""

    def __init__(self, values: npt.NDArray[np.generic]) -> None:
        self.order = np.argsort(values, kind="stable")
        _, self.group, sizes = np.unique(values, return_inverse=True, return_counts=True)
        self.begins = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def ranks(self, counts: Array) -> Array:
        """(R, N). What was not drawn has a rank too, that no sum with its count of 0 sees."""
        drawn = np.add.reduceat(counts[:, self.order], self.begins, axis=1)
        middle = np.cumsum(drawn, axis=1) - (drawn - 1.0) / 2.0
        return np.asarray(middle[:, self.group], dtype=np.float64)


def _ratio(numerator: Array, denominator: Array) -> Array:
    safe = np.where(denominator > 0.0, denominator, 1.0)
    return np.asarray(np.where(denominator > 0.0, numerator / safe, 0.0), dtype=np.float64)
