"""Goals against rows, and a picture: ``python -m benchmarks.cpu_peers.report rows.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cpu_peers.works import WIDTHS

# work (a part of its name), ours, the peer, the goal of their ratio, by model
GOALS: dict[str, tuple[tuple[str, str, str, float], ...]] = {
    "base": (
        ("1 x 128", "ours bfloat16", "OpenVINO bfloat16", 1.0),
        ("1 x 128", "ours bfloat16", "torch eager bfloat16", 1.7),
        ("arrival order", "ours bfloat16", "OpenVINO bfloat16", 1.7),
        ("sorted by length", "ours bfloat16", "OpenVINO bfloat16", 1.15),
    ),
    "minilm": (
        ("1 x 128", "ours bfloat16", "OpenVINO bfloat16", 1.3),
        ("arrival order", "ours bfloat16", "OpenVINO bfloat16", 2.2),
        ("sorted by length", "ours bfloat16", "OpenVINO bfloat16", 1.4),
        ("one text, with tokenising", "ours float32, w0.25-d1", "transformers pipeline float32", 3.0),
    ),
}
INT8_GOALS = (("OpenVINO bfloat16", 1.6), ("torch dynamic int8", 1.2), ("ONNX Runtime int8", 1.9))
WIDTH_GOALS = (("1 x 128", 3.2), ("8 x 128", 3.5))
MIXED_GOAL = 1.06
MEMORY_GOAL = 1.01  # of 1.0: the packed matrices end in whole panels


def _medians(result: Mapping[str, Any], key: str = "median_ms") -> dict[tuple[str, str], float]:
    return {(row["work"], row["peer"]): row[key] for row in result["rows"]}


def ratios(result: Mapping[str, Any], key: str = "median_ms") -> list[tuple[str, float, float, bool]]:
    """(what, measured, goal, whether larger is better) of every goal whose rows are there, from the times ``key``."""
    times = _medians(result, key)
    works = list(dict.fromkeys(work for work, _ in times))
    found = []
    goals = [*GOALS.get(str(result["model"]), ())]
    goals += [("1 x 128", "ours int8", peer, goal) for peer, goal in INT8_GOALS]
    goals += [("arrival order", "ours int8", peer, goal) for peer, goal in INT8_GOALS]
    for part, ours, peer, goal in goals:
        for work in works:
            named = work == part if part == "1 x 128" else part in work
            if named and (work, ours) in times and (work, peer) in times:
                found.append((f"{work}: {ours} against {peer}", times[work, peer] / times[work, ours], goal, True))
    for ours in ("ours float32", "ours bfloat16", "ours int8"):
        for work, goal in WIDTH_GOALS:
            quarter = f"{work}, w0.25-d1"
            if (work, ours) in times and (quarter, ours) in times:
                what = f"{work}: {ours}, time(1) / time(0.25)"
                found.append((what, times[work, ours] / times[quarter, ours], goal, True))
        alone = [times.get((f"16 x 128, {width}", ours)) for width in WIDTHS]
        mixed = times.get(("16 x 128, four widths", ours))
        if mixed is not None and all(alone):
            shares = sum(time for time in alone if time is not None) / len(alone)
            found.append(
                (f"16 x 128: {ours}, four widths against the sum of shares", mixed / shares, MIXED_GOAL, False)
            )
    memory = result["memory"]
    found.append(
        (
            "memory with all sub-networks served / checkpoint",
            memory["engine_bytes"] / memory["checkpoint_bytes"],
            MEMORY_GOAL,
            False,
        )
    )
    return found


def table(result: Mapping[str, Any]) -> str:
    """Goals and all medians, as Markdown."""
    # The clock decides. Beside other work the processor's time says which misses and hits are the neighbours' doing.
    lines = ["| what | measured | by processor time | goal | |", "| --- | --- | --- | --- | --- |"]
    by_processor = [measured for _, measured, _, _ in ratios(result, "cpu_median_ms")]
    for (what, measured, goal, larger), processor in zip(ratios(result), by_processor, strict=True):
        met = measured >= goal if larger else measured <= goal
        sign = "at least" if larger else "at most"
        lines.append(f"| {what} | {measured:.2f} | {processor:.2f} | {sign} {goal:g} | {'met' if met else 'missed'} |")
    times = _medians(result)
    peers = list(dict.fromkeys(peer for _, peer in times if "," not in peer and "pipeline" not in peer))
    lines += ["", "| work, ms | " + " | ".join(peers) + " |", "| --- |" + " --- |" * len(peers)]
    for work in dict.fromkeys(work for work, _ in times):
        shown = [f"{times[work, peer]:.1f}" if (work, peer) in times else "" for peer in peers]
        if any(shown):
            lines.append(f"| {work} | " + " | ".join(shown) + " |")
    for work, peer in times:
        if peer not in peers:
            lines.append(f"\n{work}, {peer}: {times[work, peer]:.2f} ms")
    for name, reason in result["not_measured"].items():
        lines.append(f"\nnot measured: {name}: {reason}")
    lines.append(
        f"\nMedians of interleaved rounds; {result['model']}, {result['device']}, {result['threads']} threads, load "
        f"{result['load_average']}, commit {result['commit']}. `{result['command']}`"
    )
    return "\n".join(lines)


SHOWN_WORKS = {"1 x 128": "1 x 128", "arrival order": "real lengths", "sorted by length": "sorted"}
SHOWN_MODELS = {"minilm": "MiniLM", "base": "BERT-base"}


def readme(results: Sequence[Mapping[str, Any]]) -> str:
    """Engines in rows, works of each model in columns, goals missed below: the README's table."""
    columns: list[tuple[str, dict[str, float]]] = []
    for result in results:
        times = _medians(result)
        for part, title in SHOWN_WORKS.items():
            work = next(w for w, _ in times if w == part or (part != "1 x 128" and part in w))
            found = {peer: time for (w, peer), time in times.items() if w == work}
            columns.append((f"{SHOWN_MODELS[result['model']]}, {title}", found))
    names = list(dict.fromkeys(peer for _, found in columns for peer in found))
    lines = ["| ms | " + " | ".join(title for title, _ in columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name in names:
        cells = [f"{found[name]:.1f}" if name in found else "" for _, found in columns]
        mark = "**" if name.startswith("ours") else ""
        lines.append(f"| {mark}{name}{mark} | " + " | ".join(cells) + " |")
    missed = []
    goals = 0
    for result in results:
        for what, measured, goal, larger in ratios(result):
            goals += 1
            if not (measured >= goal if larger else measured <= goal):
                missed.append(f"{SHOWN_MODELS[result['model']]}, {what}: {measured:.2f} of {goal:g}")
    facts = results[0]
    versions = ", ".join(sorted({v for result in results for v in result["versions"].values()} - {"this library"}))
    texts = next(row["texts"] for row in facts["rows"] if "arrival order" in row["work"])
    plural = "s" * (facts["threads"] > 1)
    lines += [
        "",
        f"Whole network, {facts['device']}, {facts['threads']} thread{plural}, medians of interleaved rounds, "
        f"{versions}. *Real lengths*: {texts} sentences of SST-2's dev set (BERT-base: "
        f"{next(row['texts'] for row in results[-1]['rows'] if 'arrival order' in row['work'])}) in batches of 32 in "
        "the order they came; ours without padding, the others padded to the longest of the batch. *Sorted*: the same, "
        f"longest first. BERT-base has random weights. Of our {goals} goals {len(missed)} are missed"
        + (": " + "; ".join(missed) if missed else "")
        + ". `python -m benchmarks.cpu_peers`; the rows: `benchmarks/results/cpu-peers-*.json`.",
    ]
    return "\n".join(lines)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """One panel for each work that peers take part in: a bar for each engine's median, ours in blue."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    times = _medians(result)
    works = [
        work for work in dict.fromkeys(work for work, _ in times)
        if any(work == w and not peer.startswith("ours") for w, peer in times)
    ]  # fmt: skip
    if not works:
        return
    figure, axes = plt.subplots(1, len(works), figsize=(5.2 * len(works), 3.6), squeeze=False)
    for axis, work in zip(axes[0], works, strict=True):
        bars = sorted((time, peer) for (w, peer), time in times.items() if w == work)
        axis.barh(
            [peer for _, peer in bars],
            [time for time, _ in bars],
            color=["#1f77b4" if peer.startswith("ours") else "#aaaaaa" for _, peer in bars],
        )
        for place, (time, _) in enumerate(bars):
            axis.text(time, place, f" {time:.3g}", va="center", fontsize=8)
        axis.invert_yaxis()
        axis.set_title(work, fontsize=10)
        axis.set_xlabel("ms, median")
        axis.margins(x=0.15)
        axis.tick_params(labelsize=8)
    figure.suptitle(f"{result['model']}, {result['device']}, {result['threads']} threads", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of ``python -m benchmarks.cpu_peers.report``."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        print("usage: python -m benchmarks.cpu_peers.report ROWS.json", file=sys.stderr)
        return 2
    print(table(json.loads(Path(given[0]).read_text(encoding="utf-8"))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
