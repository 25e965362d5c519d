"""What a cascade keeps of the whole network's score in a half and a quarter of its time.

    python -m benchmarks.cascades

The answers of every sub-network to every dev example are those that the accuracy campaign left under
``benchmarks/results/accuracy/predictions``; nothing is trained or run. The times are those of ``make demo``: the same
network, one text of 128 tokens. For each task, one seed of the best recipe that was run on it. Both the cascade and the
best sub-network alone are chosen within the time, and scored on examples that had no part in the choice
(`dynabert.profile.cascades.choose_cascade`). The interval is a paired bootstrap over those examples. A second cascade
is chosen by its agreement with the whole network, without the labels, which then score it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.predictions import Predictions
from benchmarks.accuracy.tasks import TASKS
from benchmarks.rows import commit
from dynabert.data.examples import SINGLE_LABEL
from dynabert.data.metrics import AGREEMENT, compute_metric
from dynabert.profile.cascades import choose_cascade

ROOT = Path(__file__).parents[1]
PREDICTIONS = ROOT / "benchmarks" / "results" / "accuracy" / "predictions" / "minilm-campaign"
TIMES = ROOT / "benchmarks" / "results" / "demo" / "results.json"
OUT = ROOT / "benchmarks" / "results" / "cascades.json"
FOLDERS = {"best": "best", "paper": "dynabert", "short": "short"}  # of a recipe; the first that is there is taken
SHARES = (0.5, 0.25)  # of the whole network's time
RESAMPLES = 2000
WHOLE = "w1-d1"


def found_predictions(root: Path) -> dict[str, tuple[str, int, Predictions]]:
    """By task of classes: recipe, seed and answers."""
    found = {}
    for task in TASKS:
        for recipe, name in FOLDERS.items():
            paths = sorted(root.glob(f"{task}/seed*/predictions/{name}.npz"))
            if paths:
                predictions = Predictions.load(paths[0])
                if not predictions.regression:
                    found[task] = recipe, int(paths[0].parents[1].name.removeprefix("seed")), predictions
                break
    return found


def row(predictions: Predictions, times: dict[str, float], share: float) -> dict[str, Any]:
    """The cascade and the best alone within this share of the whole network's time."""
    labels, metric = predictions.labels, predictions.metric

    def score(logits: Any, rows: Any) -> float:
        return compute_metric(metric, logits.argmax(axis=1), labels[rows])

    answers = predictions.logits[WHOLE].argmax(axis=1)

    def agreement(logits: Any, rows: Any) -> float:
        return compute_metric(AGREEMENT, logits.argmax(axis=1), answers[rows])

    limit = share * times[WHOLE]
    choice = choose_cascade(predictions.logits, times, score, SINGLE_LABEL, max_ms=limit)
    assert choice.single_held_out is not None
    assert choice.single is not None
    ours, theirs = choice.held_out, choice.single_held_out
    chance = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        rows = chance.integers(0, len(labels), len(labels))
        drawn.append(score(ours.logits[rows], rows) - score(theirs.logits[rows], rows))
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    whole = choice.whole.score
    unlabelled = choose_cascade(predictions.logits, times, agreement, SINGLE_LABEL, max_ms=limit)
    unlabelled_score = score(unlabelled.held_out.logits, np.arange(len(labels)))
    return {
        "share": share,
        "cascade": str(choice.chosen),
        "cascade_score": ours.score,
        "cascade_retention": ours.score / whole,
        "cascade_time": ours.ms / choice.whole.ms,
        "goes_on": choice.chosen.share,
        "unlabelled": str(unlabelled.chosen),
        "unlabelled_agreement": unlabelled.held_out.score,
        "unlabelled_score": unlabelled_score,
        "unlabelled_retention": unlabelled_score / whole,
        "unlabelled_time": unlabelled.held_out.ms / unlabelled.whole.ms,
        "alone": str(choice.single),
        "alone_score": theirs.score,
        "alone_retention": theirs.score / whole,
        "alone_time": theirs.ms / choice.whole.ms,
        "difference": ours.score - theirs.score,
        "low": low,
        "high": high,
    }


def report(results: dict[str, Any]) -> str:
    """A Markdown table."""
    lines = [
        "| task, recipe | whole | time | cascade | keeps | without labels | alone | keeps | points more |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for own in results["tasks"]:
        for one in own["rows"]:
            lines.append(
                f"| {TASKS[own['task']].title}, `{own['recipe']}` | {100 * own['whole_score']:.1f} | "
                f"{one['share']:g} | `{one['cascade']}` | {100 * one['cascade_retention']:.1f} % | "
                f"{100 * one['unlabelled_retention']:.1f} % | `{one['alone']}` | "
                f"{100 * one['alone_retention']:.1f} % | "
                f"{100 * one['difference']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f}) |"
            )
    seeds = ", ".join(f"{TASKS[own['task']].title} {own['seed']}" for own in results["tasks"])
    lines += [
        "",
        "all-MiniLM-L6-v2; each task's own score, times 100, on dev examples that had no part in the choice (ten "
        "folds). *Time*: the most that a text may take in the mean, as a share of the whole network's. *Keeps*: of the "
        "whole network's score, without correction for chance. *Without labels*: what a cascade keeps that was chosen "
        "by its agreement with the whole network. *Points more*: of the cascade than of the best "
        f"sub-network alone, with a 95 % interval (paired bootstrap over the examples). Seeds: {seeds}. `python -m "
        "benchmarks.cascades`; the row: `benchmarks/results/cascades.json`.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the row and prints the table."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.cascades", description=__doc__.partition("\n")[0])
    flags.add_argument("--predictions", type=Path, default=PREDICTIONS, help="folder of a campaign's predictions")
    flags.add_argument("--times", type=Path, default=TIMES, help="results.json of make demo, of the same network")
    flags.add_argument("--out", type=Path, default=OUT, help="the row, JSON")
    options = flags.parse_args(argv)
    demo = json.loads(options.times.read_text(encoding="utf-8"))
    times = {entry["subnet"]: entry["latency_ms"] for entry in demo["subnets"]}
    found = found_predictions(options.predictions)
    if not found:
        flags.error(f"{options.predictions} holds no predictions of a task of classes")
    tasks = []
    for task, (recipe, seed, predictions) in found.items():
        print(f"{task}: {len(predictions.labels)} examples", file=sys.stderr, flush=True)
        whole = compute_metric(predictions.metric, predictions.logits[WHOLE].argmax(axis=1), predictions.labels)
        tasks.append(
            {
                "task": task,
                "recipe": recipe,
                "seed": seed,
                "metric": predictions.metric,
                "examples": len(predictions.labels),
                "whole_score": whole,
                "rows": [row(predictions, times, share) for share in SHARES],
            }
        )
    results = {
        "times_ms": times,
        "times": {name: demo["latency"][name] for name in ("batch_size", "seq_length", "dtype", "device")},
        "resamples": RESAMPLES,
        "commit": commit(),
        "tasks": tasks,
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
