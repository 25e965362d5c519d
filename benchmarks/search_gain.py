"""Is a search over heads and neurons layer by layer worth it? Its best network against the best uniform sub-network.

Run: ``python -m benchmarks.search_gain --task_name sst2 --model FOLDER --data_dir FOLDER --profile FILE --at
w0.25-d0.75 --out row.json``. The limit is the latency that the profile gives ``--at``. For each seed: a fresh sample of
the training split, a search within the limit, its finalists and the uniform sub-networks within the limit judged on
other training texts. Uniform are all whose kept layers are alike: those of the grid, the widest of each depth in steps
of one head, and what the search came upon. Of the finalists of different layers, and of the uniform ones, the best that
takes no longer than ``--at`` when all are measured in turns. Then both are scored on the validation split, which
nothing before has looked at. The difference comes with a 95 % interval from a paired bootstrap, for each seed and for
the mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.rows import environment
from dynabert.configuration.grid import subnet_grid, subnet_text
from dynabert.data import align_labels, compute_metric, load_task, model_labels, model_problem, task_metric, tokenise
from dynabert.engine import load_model, load_tokenizer
from dynabert.evaluation import compute_logits, paired_difference, score_logits
from dynabert.profile import Budget, DeviceProfile, SearchSettings
from dynabert.profile.layer_search import search_layers
from dynabert.profile.remeasure import remeasure

LONGER = 1.02  # measured latency over the uniform one's, up to which the two count as equal


def pooled_interval(
    pairs: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    labels: npt.NDArray[Any],
    metric: str,
    *,
    resamples: int,
    seed: int = 0,
) -> tuple[float, float, float]:
    """The mean difference of several pairs of class predictions on the same texts, and its 95 % interval: every pair is
    scored on the same resampled texts."""
    chance = np.random.default_rng(seed)

    def mean(rows: Any) -> float:
        return float(
            np.mean(
                [
                    compute_metric(metric, ours[rows], labels[rows])
                    - compute_metric(metric, theirs[rows], labels[rows])
                    for ours, theirs in pairs
                ]
            )
        )

    found = [mean(chance.integers(0, len(labels), len(labels))) for _ in range(resamples)]
    low, high = np.percentile(found, [2.5, 97.5]).tolist()
    return mean(np.arange(len(labels))), low, high


def verdict(low: float, high: float) -> str:
    """What the interval of the difference says."""
    if low > 0.0:
        return "better"
    return "worse" if high < 0.0 else "not told apart"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The row; see the module."""
    profile = DeviceProfile.load(options.profile, check_device=not options.any_device, device="cpu")
    model = load_model(options.model).pack_weights()
    profile.check_model(model.config)
    tokenizer = load_tokenizer(options.model)
    longest = model.config.max_sequence_length
    metric = task_metric(options.task_name)

    def encoded(examples: Any) -> Any:
        aligned = align_labels(examples, model_labels(model.config), model_problem(model.config))
        return tokenise(aligned, tokenizer, longest, True)

    validation = encoded(load_task(options.task_name, "validation", data_dir=options.data_dir))
    training = load_task(options.task_name, "train", data_dir=options.data_dir)
    shape = options.batch_size, options.seq_length
    limit = profile.latency_ms(options.at, *shape)
    budget = Budget("latency", limit, lambda heads, neurons: profile.latencies_ms(heads, neurons, *shape))
    at = model.shape(options.at)
    uniform = [s for s in subnet_grid() if profile.latency_ms(model.shape(s), *shape) <= limit * (1.0 + 1e-9)]
    print(f"limit {limit:.3f} ms; uniform within: {', '.join(map(str, uniform))}", flush=True)

    seeds = []
    logits: dict[str, Any] = compute_logits(model, validation, [subnet_text(s) for s in uniform])
    logits |= compute_logits(model, validation, [None])
    pairs = []
    for seed in options.seeds:
        begin = time.monotonic()
        count = min(2 * options.samples, len(training))
        chosen = random.Random(seed).sample(range(len(training)), count)
        texts = encoded(training.select(chosen))
        half = count // 2
        found = search_layers(
            model,
            texts.select(range(half)),
            texts.select(range(half, count)),
            [budget],
            uniform=uniform,
            fitness=options.search_by,
            metric=metric,
            settings=SearchSettings(evaluations=options.evaluations, seed=seed),
            progress=None,
        )
        times = remeasure(
            model, [at, *(one.shape for one in found.finalists)], *shape, rounds=options.rounds, seed=seed
        )
        at_ms, *finalists_ms = (one.ms for one in times)
        fast = [one for one in zip(found.finalists, finalists_ms, strict=True) if one[1] <= LONGER * at_ms]
        kept = [one for one in fast if not one[0].uniform]
        alike = [one for one in fast if one[0].uniform]
        if not alike:  # all were held up: the one that sets the limit stands for them
            alike = [(one, at_ms) for one in found.finalists if one.shape == at]
        theirs, theirs_ms = alike[0]
        row: dict[str, Any] = {
            "seed": seed,
            "seconds": round(time.monotonic() - begin, 1),
            "evaluations": len(found.result.found),
            "fresh_texts": count - half,
            "at_ms": at_ms,
            "uniform": theirs.subnet,
            "uniform_ms": theirs_ms,
            "uniform_fresh": theirs.fresh,
            "finalists": [
                {"subnet": one.subnet, "uniform": one.uniform, "fresh": one.fresh, "ms": ms}
                for one, ms in zip(found.finalists, finalists_ms, strict=True)
            ],
            "layered": None,
        }
        seeds.append(row)
        if not kept:
            print(f"seed {seed}: no finalist was as fast as {options.at} when measured", flush=True)
            continue
        ours, ours_ms = kept[0]
        missing = [one.shape for one in (ours, theirs) if one.subnet not in logits]
        if missing:
            logits |= compute_logits(model, validation, missing)
        a, b = logits[ours.subnet], logits[theirs.subnet]
        scores = {one.subnet: one.score for one in score_logits(model, validation, logits, metric=metric)}
        difference = paired_difference(model, validation, a, b, metric=metric, resamples=options.resamples)
        pairs.append((a.argmax(1), b.argmax(1)))
        row |= {
            "layered": ours.subnet,
            "layered_ms": ours_ms,
            "layered_fresh": ours.fresh,
            "latency_ratio": ours_ms / at_ms,
            "layered_score": scores[ours.subnet],
            "uniform_score": scores[theirs.subnet],
            "difference": difference.difference,
            "low": difference.low,
            "high": difference.high,
            "verdict": verdict(difference.low, difference.high),
        }
        print(json.dumps(row), flush=True)
    result: dict[str, Any] = {
        "task": options.task_name,
        "metric": metric,
        "examples": len(validation),
        "at": options.at,
        "limit_ms": limit,
        "batch_size": options.batch_size,
        "seq_length": options.seq_length,
        "threads": options.threads,
        "samples": options.samples,
        "search_by": options.search_by,
        "profile_error": {
            "mean": profile.cell(*shape).error.mean,
            "worst": profile.cell(*shape).error.worst,
        },
        "whole_score": score_logits(model, validation, {"w1-d1": logits["w1-d1"]}, metric=metric)[0].score,
        "uniform_scores": {
            one.subnet: one.score
            for one in score_logits(model, validation, {str(s): logits[str(s)] for s in uniform}, metric=metric)
        },
        "seeds": seeds,
    }
    if pairs:
        assert validation.labels is not None
        mean, low, high = pooled_interval(pairs, np.asarray(validation.labels), metric, resamples=options.resamples)
        result |= {"mean_difference": mean, "low": low, "high": high, "verdict": verdict(low, high)}
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of ``python -m benchmarks.search_gain``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_gain", description=__doc__.splitlines()[0])
    parser.add_argument("--task_name", required=True, help="a GLUE task with classes")
    parser.add_argument("--model", required=True, help="folder of a distilled elastic checkpoint")
    parser.add_argument("--data_dir", required=True, help="folder of GLUE .tsv files")
    parser.add_argument("--profile", required=True, help="this device's profile, from dynabert profile")
    parser.add_argument("--any_device", action="store_true", help="accept another device's profile")
    parser.add_argument("--at", default="w0.25-d0.75", help="uniform sub-network whose latency is the limit")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--seq_length", type=int, default=128)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=512, help="texts of the search, and as many of the last choice")
    parser.add_argument("--search_by", default="agreement", choices=("agreement", "divergence", "score"))
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=30, help="timed passes of each finalist")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="write the row to this file")
    options = parser.parse_args(arguments)
    given = list(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(options.threads)
    facts = environment(torch.device("cpu"), given, module="benchmarks.search_gain")  # of the tree that is run now
    text = json.dumps(run(options) | facts, indent=1)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
