"""Choosing a cascade: which narrow sub-network answers first, how sure it must be, and which wider one goes after it.

The choice is made on labelled texts, and what it is worth is told from texts that had no part in it: the texts are cut
into folds, and each fold is answered by the cascade that the other folds chose. Of many cascades the best on a few
hundred texts is partly the luckiest; the folds' score has nothing of that luck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dynabert.configuration.cascade import Cascade
from dynabert.engine.cascades import logit_sureness

FloatArray = npt.NDArray[np.floating]
Rows = npt.NDArray[np.intp]
Score = Callable[[FloatArray, Rows], float]

# Shares of the texts that may go on to the second sub-network.
SHARES = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)
FOLDS = 10
MOST_SURE = 1.0 - 1e-9  # a least probability of 1 would send every text on


@dataclass(frozen=True)
class Way:
    """A sub-network, or a cascade of two, with its cost and score on some texts.

    Attributes:
        subnets: text forms, the first one first.
        least: the probability from which the first one's answer stands; None for a sub-network alone.
        share: of the texts that go on to the second.
        ms: mean milliseconds of a text.
        worst_ms: of a text that goes on.
        score: a fraction.
    """

    subnets: tuple[str, ...]
    least: float | None
    share: float
    ms: float
    worst_ms: float
    score: float

    def __str__(self) -> str:
        """As `--subnet` takes it."""
        return self.subnets[0] if self.least is None else str(Cascade(self.subnets, self.least))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"subnet": str(self), **asdict(self)}


@dataclass(frozen=True)
class HeldOut:
    """Score, mean milliseconds and logits (N, labels) of texts answered by what other texts chose, in their order."""

    score: float
    ms: float
    logits: FloatArray = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON, without the logits."""
        return {"score": self.score, "ms": self.ms}


@dataclass(frozen=True)
class CascadeChoice:
    """What was chosen, and what stands beside it.

    Attributes:
        chosen: the best way within the limits: a cascade, or a sub-network alone where none is better.
        single: the best sub-network alone within the limits; None where there is none.
        whole: the whole network.
        held_out, single_held_out: what choosing so is worth on other texts, with cascades and without.
        ways: how many were compared.
    """

    chosen: Way
    single: Way | None
    whole: Way
    held_out: HeldOut
    single_held_out: HeldOut | None
    ways: int


def choose_cascade(
    logits: Mapping[str, FloatArray],
    ms: Mapping[str, float],
    score: Score,
    problem: str,
    *,
    whole: str = "w1-d1",
    max_ms: float | None = None,
    min_retention: float | None = None,
    threshold: float = 0.5,
    folds: int = FOLDS,
    seed: int = 0,
) -> CascadeChoice:
    """The best of all cascades of two sub-networks, and of each alone.

    With ``max_ms``: the best score within it. With ``min_retention`` alone: the cheapest that keeps it. With both: the
    best score within both. Of equal scores the cheaper is taken.

    Args:
        logits: of each sub-network, by text form, (N, labels), for the same texts.
        ms: milliseconds of one text in each of them.
        score: scores logits as answers to the texts with these indices: `dynabert.evaluation.score_function`.
        problem: the model's; see `dynabert.data.model_problem`.
        whole: the whole network among them.
        max_ms: most mean milliseconds of a text.
        min_retention: least share of the whole network's score.
        threshold: from which a label is assigned, where a text has several.
        folds: into how many parts the texts are cut for the score on other texts.
        seed: of that cut.

    Raises:
        ValueError: no limit, or one that nothing keeps; logits of different texts; a sub-network without a time; fewer
            texts than folds; a regression; a whole network that scores 0 or less where a share of it is to be kept.
    """
    table = _Table(logits, ms, score, problem, whole, threshold)
    count = table.count
    if max_ms is None and min_retention is None:
        raise ValueError("choose_cascade: no limit; give max_ms, min_retention or both")
    if max_ms is not None and not max_ms >= (least := min(ms[name] for name in logits)):
        raise ValueError(f"choose_cascade: max_ms is {max_ms:.4g}, and the cheapest sub-network takes {least:.4g} ms")
    if min_retention is not None and not 0.0 < min_retention <= 1.0:
        raise ValueError(f"choose_cascade: min_retention is {min_retention:g}; allowed: above 0, up to 1")
    if not 2 <= folds <= count:
        raise ValueError(f"choose_cascade: {folds} folds of {count} texts; allowed: 2 to as many as there are texts")
    everything = np.arange(count)
    all_ways = list(table.ways(everything))
    whole_way = next(way for way in all_ways if way.subnets == (whole,))
    if min_retention is not None and whole_way.score <= 0.0:
        raise ValueError(
            f"choose_cascade: the whole network scores {whole_way.score:.4g}, so no share of it can be kept; give "
            "max_ms in place of min_retention"
        )
    chosen = _best(all_ways, whole_way, max_ms, min_retention)
    if chosen is None:
        assert max_ms is not None  # a share alone is kept by the whole network
        assert min_retention is not None
        nearest = max((way for way in all_ways if way.ms <= max_ms), key=lambda way: (way.score, -way.ms))
        raise ValueError(
            f"choose_cascade: nothing keeps {100 * min_retention:g} % of the whole network's score in {max_ms:.4g} ms; "
            f"nearest: {nearest}, {100 * nearest.score / whole_way.score:.2f} % in {nearest.ms:.4g} ms"
        )
    single = _best([way for way in all_ways if way.least is None], whole_way, max_ms, min_retention)
    cuts = np.array_split(np.random.default_rng(seed).permutation(count), folds)
    by_cascade, alone = (_held_out(table, cuts, max_ms, min_retention, cascades=cascades) for cascades in (True, False))
    return CascadeChoice(chosen, single, whole_way, by_cascade, None if single is None else alone, len(all_ways))


class _Table:
    """Everything that is known of the texts, checked."""

    def __init__(
        self,
        logits: Mapping[str, FloatArray],
        ms: Mapping[str, float],
        score: Score,
        problem: str,
        whole: str,
        threshold: float,
    ) -> None:
        if whole not in logits:
            raise ValueError(f"choose_cascade: no logits of {whole}, the whole network; there are {', '.join(logits)}")
        shapes = {values.shape for values in logits.values()}
        if len(shapes) != 1 or not len(logits[whole]):
            raise ValueError(f"choose_cascade: logits have shapes {sorted(shapes)}; allowed: one, (texts, labels)")
        if missing := [name for name in logits if name not in ms]:
            raise ValueError(f"choose_cascade: no time of {', '.join(missing)}; give milliseconds of each")
        self.count = len(logits[whole])
        self.whole = whole
        self._logits, self._ms, self._score = logits, ms, score
        self._sure = {name: logit_sureness(values, problem, threshold) for name, values in logits.items()}

    def ways(self, rows: Rows, *, cascades: bool = True) -> Iterator[Way]:
        """Each sub-network alone, and each cascade of a cheaper one and a dearer one, on these texts."""
        for name, values in self._logits.items():
            yield Way((name,), None, 0.0, self._ms[name], self._ms[name], self._score(values[rows], rows))
        if not cascades:
            return
        for first, own in self._logits.items():
            sure = self._sure[first][rows]
            ordered = np.sort(sure)
            # Where many texts are equally sure two shares may be one.
            leasts = dict.fromkeys(_short(float(ordered[round(share * (len(rows) - 1))])) for share in SHARES)
            for second, others in self._logits.items():
                if self._ms[first] >= self._ms[second]:
                    continue
                for least in leasts:
                    goes_on = sure < least
                    if not goes_on.any():
                        continue
                    merged = np.where(goes_on[:, None], others[rows], own[rows])
                    share, both = float(goes_on.mean()), self._ms[first] + self._ms[second]
                    yield Way(
                        (first, second),
                        least,
                        share,
                        self._ms[first] + share * self._ms[second],
                        both,
                        self._score(merged, rows),
                    )

    @property
    def answers_of_whole(self) -> FloatArray:
        """The whole network's logits."""
        return self._logits[self.whole]

    def answers(self, way: Way, rows: Rows) -> tuple[FloatArray, FloatArray]:
        """Logits and milliseconds of these texts by a way that was chosen on others."""
        first = self._logits[way.subnets[0]][rows]
        spent = np.full(len(rows), self._ms[way.subnets[0]])
        if way.least is None:
            return first, spent
        goes_on = self._sure[way.subnets[0]][rows] < way.least
        spent[goes_on] += self._ms[way.subnets[1]]
        return np.where(goes_on[:, None], self._logits[way.subnets[1]][rows], first), spent

    def score(self, logits: FloatArray, rows: Rows) -> float:
        """Of these texts."""
        return self._score(logits, rows)


def _short(probability: float) -> float:
    """A probability in four digits, or, near 1, with what it lacks of 1 in two; never 1 itself."""
    lacking = float(f"{1.0 - probability:.2g}")
    return min(float(f"{probability:.4g}") if lacking > 1e-3 else round(1.0 - lacking, 12), MOST_SURE)


def _best(ways: Sequence[Way], whole: Way, max_ms: float | None, min_retention: float | None) -> Way | None:
    kept = [
        way
        for way in ways
        if (max_ms is None or way.ms <= max_ms) and (min_retention is None or way.score >= min_retention * whole.score)
    ]
    if max_ms is None:
        return min(kept, key=lambda way: (way.ms, -way.score), default=None)
    return max(kept, key=lambda way: (way.score, -way.ms), default=None)


def _held_out(
    table: _Table, cuts: Sequence[Rows], max_ms: float | None, min_retention: float | None, *, cascades: bool
) -> HeldOut:
    answers = np.empty_like(table.answers_of_whole)
    spent = np.empty(table.count)
    for index, fold in enumerate(cuts):
        rest = np.concatenate([cut for other, cut in enumerate(cuts) if other != index])
        ways = list(table.ways(rest, cascades=cascades))
        whole = next(way for way in ways if way.subnets == (table.whole,))
        # A limit on both may fail by a hair on a part of the texts: then the best within the time.
        way = _best(ways, whole, max_ms, min_retention) or _best(ways, whole, max_ms, None)
        assert way is not None
        answers[fold], spent[fold] = table.answers(way, fold)
    return HeldOut(table.score(answers, np.arange(table.count)), float(spent.mean()), answers)
