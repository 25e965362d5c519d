"""``python -m benchmarks.profile_error``: how far a profile's latencies are from the measured ones.

Profiles this machine for all-MiniLM-L6-v2 and for a network of BERT-base's shape with random weights (the time does
not depend on the numbers), as ``dynabert profile`` does. At every dtype, batch size and sequence length random
sub-networks that the fit has not seen, half of them with one width and half with a width in each layer, are timed in
the same rounds as those it is fitted to; some of them again later. The errors are raw.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .rows import environment, said_options

if TYPE_CHECKING:
    from dynabert import ElasticBertForSequenceClassification
    from dynabert.profile import DeviceProfile

MODELS = ("minilm", "base")
MINUTES = {"minilm": 2.5, "base": 6.0}
MEAN_GOAL, WORST_GOAL = 0.05, 0.10


def opener(name: str) -> Callable[[str], ElasticBertForSequenceClassification]:
    """Gives the network in a dtype, in the form in which an engine holds it."""

    def open_model(dtype: str) -> ElasticBertForSequenceClassification:
        from dynabert import ElasticBertConfig, ElasticBertForSequenceClassification
        from dynabert.cli.demo import default_model_path
        from dynabert.cli.profile import open_to_serve

        if name == "minilm":
            return open_to_serve(str(default_model_path()), "cpu", dtype)
        torch.manual_seed(0)
        model = ElasticBertForSequenceClassification(ElasticBertConfig(num_labels=2)).eval()
        if dtype == "int8":
            return model.quantise_weights()
        return model.to(getattr(torch, dtype)).pack_weights()  # type: ignore[arg-type]

    return open_model


def rows_of(model: str, profile: DeviceProfile) -> list[dict[str, Any]]:
    """A row for each point: the stated error, and whether it is within the goals."""
    rows = []
    for cell in profile.cells:
        error = cell.error
        rows.append(
            {
                "model": model,
                "dtype": cell.dtype,
                "batch_size": cell.batch_size,
                "seq_length": cell.seq_length,
                **asdict(error),
                "fitted_networks": cell.fitted_networks,
                "samples": cell.samples,
                "disturbed": cell.disturbed,
                "within_goals": error.mean is not None
                and error.worst is not None
                and error.mean <= MEAN_GOAL
                and error.worst <= WORST_GOAL,
            }
        )
    return rows


def summary(model: str, profile: DeviceProfile) -> dict[str, Any]:
    """All points of a model together."""
    errors = [cell.error for cell in profile.cells if cell.error.networks]
    count = sum(error.networks for error in errors)
    return {
        "model": model,
        "minutes": round(profile.seconds / 60, 2),
        "networks": count,
        "mean": sum(error.networks * (error.mean or 0.0) for error in errors) / count,
        "worst": max(error.worst or 0.0 for error in errors),
        "mean_later": sum(error.mean_later or 0.0 for error in errors) / len(errors),
        "worst_later": max(error.worst_later or 0.0 for error in errors),
        "notes": list(profile.notes),
        "between": [
            {"dtype": dtype, "batch_size": batch, "seq_length": length, **asdict(error)}
            for dtype, batch, length, error in profile.between
        ],
    }


def shown(row: dict[str, Any]) -> str:
    """A row as a line."""
    place = f"{row['dtype']} {row['batch_size']} x {row['seq_length']}: " if "dtype" in row else "all points: "
    return (
        f"{row['model']} {place}{row['networks']} sub-networks, mean {100 * row['mean']:.2f} %, worst "
        f"{100 * row['worst']:.2f} % (later: {100 * row['mean_later']:.2f} %, {100 * row['worst_later']:.2f} %)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; ``--out`` writes the rows. Ends with 1 where a goal is missed."""
    from dynabert.cli.profile import default_dtypes, names, numbers
    from dynabert.profile import profile_device

    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.profile_error",
        description="A profile's latencies against measured ones.",
        allow_abbrev=False,
    )
    flags.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)}")
    flags.add_argument("--minutes", type=float, help="for each model; default: 2.5 for minilm, 6 for base")
    flags.add_argument("--dtypes", help="default: those of dynabert profile")
    flags.add_argument("--batch_sizes", default="1,8")
    flags.add_argument("--seq_lengths", default="32,128")
    flags.add_argument("--check", type=int, default=50, help="random sub-networks at every point")
    flags.add_argument("--threads", type=int, help="default: torch's")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--out", type=Path, help="write the rows here, as JSON")
    options = flags.parse_args(argv)
    chosen = options.models.split(",")
    unknown = [name for name in chosen if name not in MODELS]
    if unknown:
        flags.error(f"--models has {', '.join(unknown)}; allowed: {', '.join(MODELS)}")
    if options.check < 1:
        flags.error(f"--check is {options.check}; allowed: 1 or more")
    before = torch.get_num_threads()
    try:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        facts = environment(torch.device("cpu"), said_options(argv), module="benchmarks.profile_error")
        rows, summaries = [], []
        for name in chosen:
            profile = profile_device(
                opener(name),
                dtypes=default_dtypes("cpu") if options.dtypes is None else names(options.dtypes),
                batch_sizes=numbers("--batch_sizes", options.batch_sizes),
                seq_lengths=numbers("--seq_lengths", options.seq_lengths),
                max_minutes=MINUTES[name] if options.minutes is None else options.minutes,
                check=options.check,
                seed=options.seed,
                progress=None,
            )
            own = rows_of(name, profile)
            for row in own:
                print(shown(row), flush=True)
            summaries.append(summary(name, profile))
            print(shown(summaries[-1]), *summaries[-1]["notes"], sep="\n  ", flush=True)
            rows += own
    finally:
        torch.set_num_threads(before)
    if options.out is not None:
        goals = {"mean": MEAN_GOAL, "worst": WORST_GOAL}
        found = {"environment": facts, "goals": goals, "models": summaries, "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["within_goals"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
