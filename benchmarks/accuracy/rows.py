"""The scores of a campaign's variants in one table, with the paper's measure and a chance-corrected one beside it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dynabert.evaluation import fidelity

from ..rows import commit
from .making import made
from .predictions import Predictions, complete, last_parts, teacher_folder, variants_there
from .variants import VARIANTS, is_apart, split_name


def collect(out: Path, variants: Sequence[str] | None = None) -> dict[str, Any]:
    """Every finished row under ``out``: score, plain retention, chance-corrected retention, and seconds of a part.

    Where `predictions` were kept, also each row's agreement with the teacher's decisions and its divergence from them;
    where the campaign made them, each variant's commands and commits, and its hours. ``variants``: their folders; None
    for all that are finished.
    """
    variants = variants_there(out) if variants is None else variants
    teacher = complete(teacher_folder(out))
    if teacher is None:
        raise ValueError(f"accuracy: {out} has no finished teacher")
    top = teacher["rows"][0]
    rows, seconds = [], {"teacher": teacher["seconds"]}
    for variant in variants:
        folder = out / variant
        names = ["rewired", "width", "depth", "final"]
        apart = is_apart(variant)
        if apart:
            names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        closeness = _closeness(out, variant)
        for name in names:
            part = complete(folder / name)
            if part is None:
                continue
            label = name
            if apart:
                label = "fine-tuned" if VARIANTS[split_name(variant)[1]].independent else "depth"
            ends = folder / name in last_parts(folder)
            key = f"{variant}/{label}"
            seconds[key] = round(seconds.get(key, 0.0) + part["seconds"], 1)
            for row in part["rows"]:
                rows.append(
                    {
                        "variant": variant,
                        "part": label,
                        "subnet": row["subnet"],
                        "score": round(row["score"], 5),
                        "retention": round(row["score"] / top["score"], 4) if top["score"] > 0.0 else None,
                        "corrected_retention": _corrected(row["score"], row["majority"], top["score"]),
                    }
                    | (closeness.get(row["subnet"], {}) if ends else {})
                )
    settings = {name: _settings(out / name) for name in ("dynabert", *variants)}
    told = next((found for found in settings.values() if found), {})
    makers = {name: made(out / name) for name in ("teacher", *variants) if made(out / name)}
    return {
        "metric": top["metric"],
        "examples": top["examples"],
        "majority": round(top["majority"], 5),
        "teacher": round(top["score"], 5),
        "seed": told.get("seed"),
        "learning_rate": told.get("learning_rate"),
        "epochs_a_stage": told.get("num_train_epochs"),
        "batch_size": told.get("per_device_train_batch_size"),
        "half": "bf16" if told.get("bf16") else "fp16" if told.get("fp16") else "none",
        "step": told.get("step"),
        "seconds": seconds,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}",
        "cpus": os.cpu_count(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        **({"made": makers, "commands": _commands(makers), "hours": _hours(makers, seconds)} if makers else {}),
        "rows": rows,
    }


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "settings.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["arguments"] if path.is_file() else {}
    return found


def _closeness(out: Path, variant: str) -> dict[str, dict[str, float | None]]:
    """Agreement and divergence of each sub-network, from the kept predictions; empty without them."""
    files = [out / "predictions" / f"{name}.npz" for name in ("teacher", variant)]
    if not all(path.is_file() for path in files):
        return {}
    whole, own = (Predictions.load(path) for path in files)
    (teacher,) = whole.logits.values()
    found = {}
    for name, logits in own.logits.items():
        close = fidelity(logits, teacher, regression=own.regression)
        agreement = None if close.agreement is None else round(close.agreement, 5)
        found[name] = {"agreement": agreement, "divergence": round(close.divergence, 6)}
    return found


def _commands(makers: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    return {name: list(dict.fromkeys(entry["command"] for entry in entries)) for name, entries in makers.items()}


def _hours(makers: dict[str, list[dict[str, Any]]], seconds: dict[str, float]) -> dict[str, Any]:
    """Hours of the teacher and of each variant, all its parts: of a GPU, or of a CPU's cores that were used."""
    gpu = torch.cuda.is_available()
    found: dict[str, Any] = {"of": "GPU" if gpu else "CPU core"}
    for name, entries in makers.items():
        cores = 1 if gpu else max(entry["threads"] for entry in entries)
        own = sum(value for key, value in seconds.items() if key.split("/")[0] == name)
        found[name] = round(cores * own / 3600.0, 3)
    return found


def _corrected(score: float, majority: float, teacher: float) -> float | None:
    """(score - majority) / (teacher - majority); None where the teacher is no better than a constant answer."""
    return round((score - majority) / (teacher - majority), 4) if teacher > majority else None


def final_scores(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """For each variant the scores after its last part, by sub-network; ``rewired only`` beside them."""
    scores: dict[str, dict[str, float]] = {}
    order = {"rewired": 0, "width": 1, "depth": 2, "final": 3, "fine-tuned": 3}
    last: dict[str, int] = {}
    for row in found["rows"]:
        if row["variant"] == "dynabert" and row["part"] == "rewired":
            scores.setdefault("rewired only", {})[row["subnet"]] = row["score"]
        if row["part"] == "rewired":
            continue
        place = order[row["part"]]
        if place > last.get(row["variant"], -1):
            last[row["variant"]] = place
            scores[row["variant"]] = {}
        if place == last[row["variant"]]:
            scores[row["variant"]][row["subnet"]] = row["score"]
    return scores


def shown(found: dict[str, Any]) -> str:
    """The table as text: a line a sub-network, a column a variant."""
    scores = final_scores(found)
    names = list(dict.fromkeys(name for column in scores.values() for name in column))
    lines = [
        f"{found['metric']} times 100 on {found['examples']} examples; teacher {100 * found['teacher']:.1f}, constant "
        f"answer {100 * found['majority']:.1f}",
        "",
        "| sub-network | " + " | ".join(name.replace("_", " ") for name in scores) + " |",
        "| --- |" + " ---: |" * len(scores),
    ]
    for name in names:
        cells = [f"{100 * column[name]:.1f}" if name in column else "" for column in scores.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> Path | None:
    """Score against relative work (width times depth), a line a variant; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from dynabert.configuration.grid import parse_subnets

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for variant, scores in final_scores(found).items():
        # Beside the variants stand "rewired only" and folders of recipes.
        share = 1.0 if variant == "rewired only" else VARIANTS[split_name(variant)[1]].depth
        points = []
        for name, score in scores.items():
            (subnet,) = parse_subnets(name)
            points.append((subnet.width_mult * subnet.depth_mult * share, 100 * score))
        points.sort()
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1, label=variant.replace("_", " "))
    axes.axhline(100 * found["teacher"], color="black", linewidth=0.8, linestyle="--", label="teacher")
    axes.axhline(100 * found["majority"], color="grey", linewidth=0.8, linestyle=":", label="constant answer")
    axes.set_xlabel("width times depth")
    axes.set_ylabel(f"{found['metric']}, times 100")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
