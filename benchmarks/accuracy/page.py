"""The tables of ``docs/results.md``, made from committed rows: ``python -m benchmarks.accuracy.page --write``.

Takes ``benchmarks/results/accuracy/TASK-MODEL-seedN.json``, rows of the campaign, and ``scoring/MODEL.json`` beside
them, what ``python -m benchmarks.accuracy.scoring`` made of its predictions. A test holds the page to them: it has no
number without a row.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynabert.configuration.grid import parse_subnets

from .predictions import TEACHER_PART
from .scoring import GOALS, STANDARD_ERRORS
from .tasks import TASKS
from .variants import RECIPES, TRIALS, VARIANTS, folder_name, split_name

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks" / "results" / "accuracy"
PAGE = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- results table: begin -->", "<!-- results table: end -->"
MODELS = {
    "minilm": "all-MiniLM-L6-v2 (6 layers of 384), the first two tasks",
    "minilm-campaign": "all-MiniLM-L6-v2 (6 layers of 384), the campaign",
    "mpnet": "all-mpnet-base-v2 (12 layers of 768)",
}
NO_NUMBER = ""

# DynaBERT, arXiv 2004.04037, Table 1: GLUE dev, from BERT-base, with augmentation. Its teacher first.
PAPER: dict[str, dict[str, float]] = {
    "teacher": {"cola": 58.1, "stsb": 89.8, "mrpc": 87.7, "rte": 71.1, "qqp": 90.9, "qnli": 92.0, "sst2": 92.9},
    "w1-d1": {"cola": 59.7, "stsb": 90.1, "mrpc": 86.3, "rte": 72.2, "qqp": 91.4, "qnli": 92.1, "sst2": 93.2},
    "w0.5-d1": {"cola": 58.4, "stsb": 89.8, "mrpc": 84.8, "rte": 72.2, "qqp": 91.3, "qnli": 92.2, "sst2": 93.3},
    "w0.25-d1": {"cola": 50.9, "stsb": 89.2, "mrpc": 83.8, "rte": 68.6, "qqp": 90.7, "qnli": 91.5, "sst2": 92.8},
    "w1-d0.5": {"cola": 54.6, "stsb": 88.6, "mrpc": 85.0, "rte": 66.1, "qqp": 91.1, "qnli": 90.6, "sst2": 92.7},
    "w0.5-d0.5": {"cola": 48.5, "stsb": 88.2, "mrpc": 83.1, "rte": 67.9, "qqp": 91.0, "qnli": 90.0, "sst2": 91.6},
    "w0.25-d0.5": {"cola": 43.7, "stsb": 87.0, "mrpc": 81.4, "rte": 63.2, "qqp": 90.4, "qnli": 88.5, "sst2": 92.0},
}


def paper_ratio(subnet: str, tasks: Sequence[str]) -> float | None:
    """The paper's plain ratio to its teacher, mean over these tasks; None where it has not all of them."""
    if subnet not in PAPER or not tasks or any(task not in PAPER[subnet] for task in tasks):
        return None
    return sum(PAPER[subnet][task] / PAPER["teacher"][task] for task in tasks) / len(tasks)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction times 100, or nothing."""
    return NO_NUMBER if value is None else f"{100.0 * value:.{digits}f}"


def interval(found: Mapping[str, float | None]) -> str:
    """A number and its interval, times 100."""
    if found["value"] is None:
        return "not defined"
    ends = "no interval" if found["low"] is None else f"{percent(found['low'])} to {percent(found['high'])}"
    return f"{percent(found['value'])} ({ends})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown lines."""
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def readable(subnet: str) -> str:
    """``0.5, 1`` of ``w0.5-d1``."""
    return subnet.removeprefix("w").replace("-d", ", ")


def title(task: str) -> str:
    """A task as a table names it."""
    return TASKS[task].title if task in TASKS else task


def section(label: str, scoring: Mapping[str, Any], rows: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[str]:
    """All that is known of one network."""
    tasks = scoring["tasks"]
    lines = [f"## {MODELS.get(label, label)}", ""]
    lines += table(
        ["task", "score", "dev examples", "seeds", "majority", "teacher", "standard errors above it", "counts"],
        [
            [
                title(name),
                found["metric"].replace("_correlation", ""),
                str(found["examples"]),
                str(len(found["seeds"])),
                percent(found["majority"]),
                percent(found["teacher"]),
                NO_NUMBER if found["errors_above_chance"] is None else f"{found['errors_above_chance']:.1f}",
                "yes" if found["counted"] else "no",
            ]
            for name, found in tasks.items()
        ],
    )
    for recipe in RECIPES:
        lines += _means(scoring, recipe)
    if (ROWS / "scoring" / f"{label}.png").is_file():
        lines += [f"![Retention of every sub-network](../benchmarks/results/accuracy/scoring/{label}.png)", ""]
    lines += _changes(scoring)
    for name, found in tasks.items():
        lines += _task(name, found)
    lines += _hours(rows)
    return lines


def _means(scoring: Mapping[str, Any], recipe: str) -> list[str]:
    folder = "dynabert" if recipe == "paper" else recipe
    found = [row for row in scoring["means"] if row["variant"] == folder]
    if not found:
        return []
    goals = {row["subnet"]: row["met"] for row in scoring["goals"] if row["variant"] == folder}
    tasks = list(dict.fromkeys(task for row in found for task in row["tasks"]))
    many = "mean over " if len(tasks) > 1 else ""
    lines = [f"### Recipe `{recipe}`: {many}{', '.join(title(task) for task in tasks)}", ""]
    rows = []
    for row in found:
        subnet = row["subnet"]
        met = goals.get(subnet)
        goal = "" if subnet not in GOALS else f"{percent(GOALS[subnet])}: {'met' if met else 'not met'}"
        rows.append(
            [
                readable(subnet),
                interval(row["retention"]),
                goal,
                percent(row["agreement"]),
                NO_NUMBER if row["divergence"] is None else f"{row['divergence']:.3f}",
                percent(row["plain"]),
                percent(paper_ratio(subnet, row["tasks"])),
            ]
        )
    heads = ["width, depth", "retention", "goal", "agreement", "KL, nats", "plain ratio", "the paper's plain ratio"]
    return [*lines, *table(heads, rows)]


def _changes(scoring: Mapping[str, Any]) -> list[str]:
    """What each variant keeps more or less than the recipe it changes."""
    names = list(dict.fromkeys(row["variant"] for row in scoring["differences"]))
    if not names:
        return []
    found = {(row["variant"], row["subnet"]): row for row in scoring["differences"]}
    rows = []
    for name in names:
        recipe, variant = split_name(name)
        change = RECIPES[recipe].change if variant == "dynabert" else VARIANTS[variant].change
        if recipe != "paper" and variant != "dynabert":
            change += f"; of `{recipe}`"
        cells = [
            interval(found[name, subnet]["difference"]) if (name, subnet) in found else NO_NUMBER for subnet in GOALS
        ]
        seeds = {task: own for key, row in found.items() if key[0] == name for task, own in row["seeds"].items()}
        told = (f"{title(task)} ({', '.join(map(str, own))})" for task, own in seeds.items())
        rows.append([f"`{name}`", change, *cells, ", ".join(told)])
    heads = ["variant", "what it changes", *(f"at {readable(subnet)}" for subnet in GOALS), "tasks (seeds)"]
    return ["### One change at a time: difference in retention from the recipe", "", *table(heads, rows)]


def _task(name: str, found: Mapping[str, Any]) -> list[str]:
    """A line for each sub-network of one task."""
    by_name = {(row["variant"], row["subnet"]): row for row in found["rows"]}
    whole = [folder_name(recipe, "dynabert") for recipe in RECIPES]
    recipes = [folder for folder in whole if any(key[0] == folder for key in by_name)]
    lines = []
    for folder in recipes:
        alone = "independent" if folder == "dynabert" else f"{folder}-independent"
        rows = []
        for (variant, subnet), row in by_name.items():
            if variant == folder:
                other = by_name.get((alone, subnet))
                ours = PAPER.get(subnet, {}).get(name)
                rows.append(
                    [
                        readable(subnet),
                        percent(row["score"]),
                        interval(row["retention"]),
                        percent(row["agreement"]),
                        f"{row['divergence']:.3f}",
                        percent(row["plain"]),
                        percent(None if ours is None else ours / PAPER["teacher"][name]),
                        NO_NUMBER if other is None else percent(other["score"]),
                    ]
                )
        close = "mean square" if all(row["agreement"] is None for row in found["rows"]) else "KL, nats"
        heads = ["width, depth", "score", "retention", "agreement", close, "plain ratio", "the paper's", "independent"]
        more = "" if folder == "dynabert" else f", recipe `{folder}`"
        own = {seed for (variant, _), row in by_name.items() if variant == folder for seed in row["seeds"]}
        seeds = ", ".join(str(seed) for seed in sorted(own))
        lines += [f"### {title(name)}{more} (seeds: {seeds})", "", *table(heads, rows)]
    return lines


def _hours(rows: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[str]:
    """Hours by the wall clock of each row file's variants, all parts."""
    names: list[str] = []
    own: dict[tuple[str, int], dict[str, float]] = {}
    for key, found in rows.items():
        hours = own.setdefault(key, {})
        for part, seconds in found["seconds"].items():
            name = part.split("/")[0]
            hours[name] = hours.get(name, 0.0) + seconds / 3600.0
            if name not in names:
                names.append(name)
    names.sort(key=lambda name: (-1, -1) if name == TEACHER_PART else _order(name))
    lines = [
        [f"`{name}`", *(f"{hours[name]:.2f}" if name in hours else NO_NUMBER for hours in own.values())]
        for name in names
    ]
    lines.append(["on", *(_device(rows[key]) for key in own)])
    heads = ["variant", *(f"{title(task)}, {seed}" for task, seed in own)]
    return ["### Hours by the wall clock", "", *table(heads, lines)]


def _device(found: Mapping[str, Any]) -> str:
    hours = found.get("hours")
    if hours is None:
        return f"{found['device']}, {found['cpus']} cores, shared"
    threads = max(entry["threads"] for entries in found["made"].values() for entry in entries)
    return found["device"] if hours["of"] == "GPU" else f"{found['device']}, {threads} threads"


def _order(folder: str) -> tuple[int, int]:
    recipe, variant = split_name(folder)
    return list(RECIPES).index(recipe), list(VARIANTS).index(variant)


def rows_of(label: str, folder: Path = ROWS) -> dict[tuple[str, int], dict[str, Any]]:
    """The rows of a network, by task and seed; tasks in their table's order."""
    found = {}
    for path in folder.glob(f"*-{label}-seed*.json"):
        task, seed = path.stem.split(f"-{label}-seed")
        found[task, int(seed)] = json.loads(path.read_text(encoding="utf-8"))
    places = list(TASKS)
    return dict(sorted(found.items(), key=lambda item: (places.index(item[0][0]), item[0][1])))


def scorings(folder: Path = ROWS) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every network's summary, by its label."""
    for path in sorted((folder / "scoring").glob("*.json")):
        yield path.stem, json.loads(path.read_text(encoding="utf-8"))


def block() -> str:
    """The Markdown text between the markers."""
    lines: list[str] = []
    for label, scoring in scorings():
        lines += section(label, scoring, rows_of(label))
        lines += [
            f"`{scoring['command']}`, {scoring['resamples']} resamples. Rows: `benchmarks/results/accuracy/`. A task "
            f"counts where its teacher stands at least {STANDARD_ERRORS:g} standard errors above the majority.",
            "",
        ]
    tried = {split_name(row["variant"])[1] for _, scoring in scorings() for row in scoring["differences"]}
    left = [name for name in VARIANTS if name not in tried and name != "dynabert"]
    if left:
        lines += [f"Variants without rows: {', '.join(f'`{name}`' for name in left)}.", ""]
    return "\n".join(lines).rstrip()


def _work(subnet: str) -> tuple[float, float]:
    (found,) = parse_subnets(subnet)
    return found.width_mult * found.depth_mult, found.depth_mult


def draw(scoring: Mapping[str, Any], path: Path) -> None:
    """Mean retention of each sub-network, smallest first, with its interval: a colour a variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = dict.fromkeys(row["variant"] for row in scoring["means"])
    # Of a trial only the recipe: its changes would hide the rest.
    names = [name for name in found if name in TRIALS or split_name(name)[0] not in TRIALS]
    subnets = sorted({row["subnet"] for row in scoring["means"]}, key=_work)
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for place, name in enumerate(names):
        kept_of = {row["subnet"]: row["retention"] for row in scoring["means"] if row["variant"] == name}
        shift = 0.7 * ((place + 0.5) / len(names) - 0.5)  # side by side
        points = [
            (x + shift, kept_of[s]) for x, s in enumerate(subnets) if s in kept_of and kept_of[s]["value"] is not None
        ]
        axes.errorbar(
            [x for x, _ in points],
            [100 * kept["value"] for _, kept in points],
            yerr=[
                [0 if kept["low"] is None else 100 * (kept["value"] - kept["low"]) for _, kept in points],
                [0 if kept["high"] is None else 100 * (kept["high"] - kept["value"]) for _, kept in points],
            ],
            fmt="o",
            markersize=4,
            linewidth=1,
            label=name,
        )
    axes.set_xticks(range(len(subnets)), [readable(subnet) for subnet in subnets], fontsize=8)
    axes.axhline(100, color="black", linewidth=0.8, linestyle="--", label="teacher")
    axes.set_xlabel("width, depth")
    axes.set_ylabel("retention over chance, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the block; with ``--write``, puts it into the page and draws the pictures."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.page", description="The tables of the results.")
    flags.add_argument("--write", action="store_true", help="write them into docs/results.md, and the pictures")
    if flags.parse_args(argv).write:
        for label, scoring in scorings():
            draw(scoring, ROWS / "scoring" / f"{label}.png")
        pattern = re.compile(re.escape(BEGIN) + r".*?" + re.escape(END), re.S)
        old = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(pattern.sub(lambda _: f"{BEGIN}\n{block()}\n{END}", old), encoding="utf-8")
    print(block())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
