"""How much of the teacher's score is kept, and how sure that is: ``python -m benchmarks.accuracy.scoring``.

    python -m benchmarks.accuracy.scoring RUNS --out benchmarks/results/accuracy/scoring/minilm.json

``RUNS/TASK/seedN/predictions`` are what the campaign kept (or ``python -m benchmarks.accuracy.predictions``); with its
``--rows FOLDER`` they are also under ``FOLDER/predictions/LABEL``.

* *Retention* is chance-corrected: ``(score - majority) / (teacher - majority)``, scores being means over the seeds,
  each seed with its own teacher. ``majority`` is the score of the dev split's most frequent class; of a correlation, 0.
* Its 95 % interval is a paired bootstrap: each resample draws the dev examples once, for teacher, sub-networks and
  variants alike, and the seeds too. With one seed it says nothing of other training runs.
* A task counts for the mean where its teacher stands at least 5 standard errors above the majority: elsewhere the ratio
  divides by little more than noise. The others are shown.
* *Agreement* with the teacher's decisions and the *divergence* (mean KL of the probabilities from the teacher's; of a
  regression the mean square) need no labels, and are far less noisy.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dynabert.configuration.grid import parse_subnets
from dynabert.data.metrics import REGRESSION_METRICS
from dynabert.evaluation import fidelity

from ..rows import commit, said_options
from .predictions import Predictions
from .resampling import Array, draw_counts, resampled_scores
from .tasks import TASKS
from .variants import RECIPES, VARIANTS, split_name

STANDARD_ERRORS = 5.0  # that a teacher stands above chance, where its task counts
UNDEFINED = 0.01  # share of resamples without a retention, above which there is no interval
TEACHER = ("teacher", "w1-d1")
# Mean retention without augmentation, and met when the interval's lower end passes.
GOALS = {"w0.5-d1": 0.995, "w0.25-d1": 0.98, "w0.25-d0.5": 0.955}
Column = tuple[str, str]  # variant's folder, sub-network


@dataclass(frozen=True)
class Interval:
    """A number, and the 2.5th and 97.5th percentile over the resamples; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Array) -> Interval:
        """Of a number (first) and its resamples; NaN is a resample in which it is not defined."""
        whole = None if np.isnan(values[0]) else float(values[0])
        drawn = values[1:]
        if whole is None or not len(drawn) or float(np.isnan(drawn).mean()) > UNDEFINED:
            return cls(whole, None, None)
        low, high = np.nanpercentile(drawn, [2.5, 97.5]).tolist()
        return cls(whole, low, high)

    def rounded(self) -> dict[str, float | None]:
        """For JSON."""
        found = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if number is None else round(number, 5) for name, number in found.items()}


class TaskScores:
    """Every score of one task in every resample.

    Args:
        seeds: for each seed the predictions of the teacher and of each variant, by the names of their files.
        resamples, chance: of the bootstrap; the first of ``1 + resamples`` is the dev split as it is.

    Raises:
        ValueError: no seed; seeds that were not scored on the same dev split.
    """

    def __init__(
        self, seeds: Mapping[int, Mapping[str, Predictions]], resamples: int, chance: np.random.Generator
    ) -> None:
        if not seeds:
            raise ValueError("scoring: no seed of the task is there")
        first = next(iter(seeds.values()))["teacher"]
        for seed, files in seeds.items():
            for name, own in files.items():
                if own.metric != first.metric or not np.array_equal(own.labels, first.labels):
                    raise ValueError(
                        f"scoring: {name} of seed {seed} was scored on other labels, or by another metric; the seeds "
                        "of a task need one dev split"
                    )
        self.metric, self.labels, self.regression = first.metric, first.labels, first.regression
        self.seeds = sorted(seeds)
        self._chance, self._resamples = chance, resamples
        counts = draw_counts(len(first.labels), resamples, chance)
        self.majority = self._majority(counts)
        self._scores: dict[tuple[int, Column], Array] = {}
        self._logits: dict[tuple[int, Column], npt.NDArray[np.float32]] = {}
        for seed, files in seeds.items():
            columns = {(name, subnet): logits for name, own in files.items() for subnet, logits in own.logits.items()}
            decisions = np.stack([self._decisions(logits) for logits in columns.values()])
            found = resampled_scores(self.metric, decisions, self.labels, counts)
            for place, (column, logits) in enumerate(columns.items()):
                self._scores[seed, column] = found[:, place]
                self._logits[seed, column] = logits
        self._weights: dict[tuple[int, ...], Array] = {}

    def _majority(self, counts: Array) -> Array:
        if self.metric in REGRESSION_METRICS:
            return np.zeros(len(counts))
        classes, sizes = np.unique(self.labels, return_counts=True)
        constant = np.full((1, len(self.labels)), classes[np.argmax(sizes)])
        return resampled_scores(self.metric, constant, self.labels, counts)[:, 0]

    def _decisions(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
        return logits[:, 0] if self.regression else logits.argmax(axis=1)

    @property
    def columns(self) -> list[Column]:
        """Every variant's sub-network that some seed has; variants in their table's order, largest network first."""
        found = {column for _, column in self._scores if column != TEACHER}
        return sorted(found, key=lambda column: (_place(column[0]), _size(column[1])))

    def seeds_of(self, *columns: Column) -> tuple[int, ...]:
        """The seeds that have all of these."""
        return tuple(seed for seed in self.seeds if all((seed, column) in self._scores for column in columns))

    def score(self, column: Column, seeds: tuple[int, ...]) -> Array:
        """The mean score over seeds, which each resample draws anew: the same for all that have these seeds."""
        weights = self._weights.get(seeds)
        if weights is None:
            weights = draw_counts(len(seeds), self._resamples, self._chance)
            self._weights[seeds] = weights
        scores = np.stack([self._scores[seed, column] for seed in seeds], axis=1)
        return np.asarray((weights * scores).sum(axis=1) / weights.sum(axis=1), dtype=np.float64)

    def retention(self, column: Column, seeds: tuple[int, ...]) -> Array:
        """Chance-corrected; NaN where the teacher is no better than the majority."""
        top = self.score(TEACHER, seeds) - self.majority
        own = self.score(column, seeds) - self.majority
        return np.where(top > 0.0, own / np.where(top > 0.0, top, 1.0), np.nan)

    def above_chance(self) -> tuple[float, float]:
        """By how many standard errors the teacher stands above the majority, and that error; of all seeds."""
        over = self.score(TEACHER, self.seeds_of(TEACHER)) - self.majority
        error = float(np.std(over[1:])) if len(over) > 1 else 0.0
        if error == 0.0:
            return (float("inf") if over[0] > 0.0 else 0.0), 0.0
        return float(over[0]) / error, error

    def closeness(self, column: Column, seeds: tuple[int, ...]) -> tuple[float | None, float]:
        """Agreement (None of a regression) and divergence, means over the seeds."""
        found = [
            fidelity(self._logits[seed, column], self._logits[seed, TEACHER], regression=self.regression)
            for seed in seeds
        ]
        agreements = [one.agreement for one in found if one.agreement is not None]
        return (
            float(np.mean(agreements)) if agreements else None,
            float(np.mean([one.divergence for one in found])),
        )


def _place(folder: str) -> tuple[int, int]:
    recipe, variant = split_name(folder)
    return list(RECIPES).index(recipe), list(VARIANTS).index(variant)


def _size(subnet: str) -> tuple[float, float]:
    (found,) = parse_subnets(subnet)
    return -found.depth_mult, -found.width_mult


def summarise(tasks: Mapping[str, TaskScores]) -> dict[str, Any]:
    """All numbers as plain data: each task's rows, the means over those that count, differences, and the goals."""
    shown = {name: _task(scores) for name, scores in tasks.items()}
    counted = [name for name, found in shown.items() if found["counted"]]
    columns = list(dict.fromkeys(column for scores in tasks.values() for column in scores.columns))
    columns.sort(key=lambda column: (_place(column[0]), _size(column[1])))
    means, differences = [], []
    for column in columns:
        there = [name for name in counted if tasks[name].seeds_of(column, TEACHER)]
        if there:
            means.append(_mean(column, {name: tasks[name] for name in there}, shown))
        base = split_name(column[0])[0]
        # A recipe's own variants change the recipe; the recipe as a whole is held against the paper's.
        against = ("dynabert" if base in ("paper", column[0]) else base, column[1])
        if column[0] != against[0]:
            both = {name: tasks[name] for name in counted if tasks[name].seeds_of(column, against, TEACHER)}
            if both:
                differences.append(_difference(column, against, both))
    return {"tasks": shown, "means": means, "differences": differences, "goals": _goals(means)}


def _task(scores: TaskScores) -> dict[str, Any]:
    errors, error = scores.above_chance()
    all_seeds = scores.seeds_of(TEACHER)
    rows = []
    for column in scores.columns:
        seeds = scores.seeds_of(column, TEACHER)
        score, teacher = (float(scores.score(one, seeds)[0]) for one in (column, TEACHER))
        agreement, divergence = scores.closeness(column, seeds)
        rows.append(
            {
                "variant": column[0],
                "subnet": column[1],
                "seeds": list(seeds),
                "score": round(score, 5),
                "plain": round(score / teacher, 5) if teacher > 0.0 else None,
                "retention": Interval.of(scores.retention(column, seeds)).rounded(),
                "agreement": None if agreement is None else round(agreement, 5),
                "divergence": round(divergence, 6),
            }
        )
    return {
        "metric": scores.metric,
        "examples": len(scores.labels),
        "seeds": list(all_seeds),
        "majority": round(float(scores.majority[0]), 5),
        "teacher": round(float(scores.score(TEACHER, all_seeds)[0]), 5),
        "standard_error": round(error, 5),
        "errors_above_chance": round(errors, 2) if np.isfinite(errors) else None,
        "counted": errors >= STANDARD_ERRORS,
        "rows": rows,
    }


def _mean(column: Column, tasks: Mapping[str, TaskScores], shown: Mapping[str, Any]) -> dict[str, Any]:
    retention = np.mean([own.retention(column, own.seeds_of(column, TEACHER)) for own in tasks.values()], axis=0)
    rows = [
        row
        for name in tasks
        for row in shown[name]["rows"]
        if (row["variant"], row["subnet"]) == column and row["plain"] is not None
    ]
    agreements = [row["agreement"] for row in rows if row["agreement"] is not None]
    # A regression's divergence is of another unit.
    divergences = [row["divergence"] for row in rows if row["agreement"] is not None]
    return {
        "variant": column[0],
        "subnet": column[1],
        "tasks": list(tasks),
        "seeds": min(len(row["seeds"]) for row in rows) if rows else 0,
        "retention": Interval.of(np.asarray(retention)).rounded(),
        "plain": round(float(np.mean([row["plain"] for row in rows])), 5) if rows else None,
        "agreement": round(float(np.mean(agreements)), 5) if agreements else None,
        "divergence": round(float(np.mean(divergences)), 6) if divergences else None,
    }


def _difference(column: Column, against: Column, tasks: Mapping[str, TaskScores]) -> dict[str, Any]:
    """How much more a variant keeps than the method it changes, on the same examples and seeds."""
    parts, used = [], {}
    for name, own in tasks.items():
        seeds = own.seeds_of(column, against, TEACHER)
        used[name] = list(seeds)
        parts.append(own.retention(column, seeds) - own.retention(against, seeds))
    found = Interval.of(np.mean(parts, axis=0)).rounded()
    return {
        "variant": column[0],
        "subnet": column[1],
        "against": against[0],
        "tasks": list(tasks),
        "seeds": used,
        "difference": found,
    }


def _goals(means: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for row in means:
        if split_name(row["variant"])[1] == "dynabert" and row["subnet"] in GOALS:
            goal, low = GOALS[row["subnet"]], row["retention"]["low"]
            met = None if low is None else bool(low >= goal)
            found.append({"variant": row["variant"], "subnet": row["subnet"], "goal": goal, "met": met})
    return found


def read_runs(roots: Sequence[Path]) -> dict[str, dict[int, dict[str, Predictions]]]:
    """All predictions under ``ROOT/TASK/seedN/predictions``, by task and seed; ``ValueError`` where there are none, or
    one task and seed is in two roots."""
    found: dict[str, dict[int, dict[str, Predictions]]] = {}
    for root in roots:
        for teacher in sorted(root.glob("*/seed*/predictions/teacher.npz")):
            cell = teacher.parents[1]
            task, seed = cell.parent.name, int(cell.name.removeprefix("seed"))
            if seed in found.get(task, {}):
                raise ValueError(f"scoring: {task} with seed {seed} is in two folders, one of them {root}")
            files = {path.stem: Predictions.load(path) for path in sorted(teacher.parent.glob("*.npz"))}
            found.setdefault(task, {})[seed] = files
    if not found:
        raise ValueError(f"scoring: no TASK/seedN/predictions/teacher.npz under {', '.join(map(str, roots))}")
    return found


def score_runs(roots: Sequence[Path], resamples: int, seed: int) -> dict[str, Any]:
    """The summary of all runs under these folders."""
    tasks = {}
    for name, seeds in read_runs(roots).items():
        index = list(TASKS).index(name) if name in TASKS else len(TASKS)
        tasks[name] = TaskScores(seeds, resamples, np.random.default_rng([seed, index]))
    return summarise(dict(sorted(tasks.items(), key=lambda item: _task_place(item[0]))))


def _task_place(name: str) -> int:
    return list(TASKS).index(name) if name in TASKS else len(TASKS)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``python -m benchmarks.accuracy.scoring``."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.scoring", description="Retention, with intervals."
    )
    flags.add_argument("runs", nargs="+", type=Path, help="folders of TASK/seedN, as the campaign leaves them")
    flags.add_argument("--resamples", type=int, default=2000)
    flags.add_argument("--bootstrap_seed", type=int, default=0)
    flags.add_argument("--out", type=Path, help="write the summary here")
    options = flags.parse_args(argv)
    if options.resamples < 100:
        flags.error(f"--resamples is {options.resamples}; allowed: 100 or more")
    found = score_runs(options.runs, options.resamples, options.bootstrap_seed)
    facts = {
        "resamples": options.resamples,
        "bootstrap_seed": options.bootstrap_seed,
        "command": "python -m benchmarks.accuracy.scoring " + shlex.join(said_options(argv)),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    text = json.dumps(facts | found, indent=1) + "\n"
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    for row in found["means"]:
        kept = row["retention"]
        print(
            f"{row['variant']:24} {row['subnet']:12} {', '.join(row['tasks'])}: retention {_percent(kept['value'])} "
            f"[{_percent(kept['low'])}, {_percent(kept['high'])}], agreement {_percent(row['agreement'])}"
        )
    return 0


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100.0 * value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
