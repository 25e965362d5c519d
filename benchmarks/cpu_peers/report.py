"""Goals against rows, and a picture: ``python -m benchmarks.cpu_peers.report rows.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


class Ratio(NamedTuple):
    """A goal whose rows are there. ``limit``: the ratio if our products ran at the processor's peak and nothing else
    took time; None where it was not measured, or where the goal is no ratio of ours to a peer."""

    what: str
    measured: float
    goal: float
    larger: bool  # is better
    limit: float | None = None

    @property
    def met(self) -> bool:
        return self.measured >= self.goal if self.larger else self.measured <= self.goal

    @property
    def out_of_reach(self) -> bool:
        """Even at the processor's peak."""
        return self.larger and self.limit is not None and self.limit < self.goal


def least_ms(result: Mapping[str, Any], work: str, ours: str) -> float | None:
    """How long our products alone would take at the processor's peak; None where that was not measured."""
    rate = result.get("peak_multiplications_per_second", {}).get(ours.split()[-1])
    count = result.get("multiplications", {}).get(work)
    return None if not rate or count is None else float(1e3 * count / rate)


def ratios(result: Mapping[str, Any], key: str = "median_ms") -> list[Ratio]:
    """Every goal whose rows are there, from the times ``key``."""
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
                least = least_ms(result, work, ours)
                limit = None if least is None else times[work, peer] / least
                ratio = times[work, peer] / times[work, ours]
                found.append(Ratio(f"{work}: {ours} against {peer}", ratio, goal, True, limit))
    for ours in ("ours float32", "ours bfloat16", "ours int8"):
        for work, goal in WIDTH_GOALS:
            quarter = f"{work}, w0.25-d1"
            if (work, ours) in times and (quarter, ours) in times:
                what = f"{work}: {ours}, time(1) / time(0.25)"
                found.append(Ratio(what, times[work, ours] / times[quarter, ours], goal, True))
        alone = [times.get((f"16 x 128, {width}", ours)) for width in WIDTHS]
        mixed = times.get(("16 x 128, four widths", ours))
        if mixed is not None and all(alone):
            shares = sum(time for time in alone if time is not None) / len(alone)
            what = f"16 x 128: {ours}, four widths against the sum of shares"
            found.append(Ratio(what, mixed / shares, MIXED_GOAL, False))
    memory = result["memory"]
    held = memory["engine_bytes"] / memory["checkpoint_bytes"]
    found.append(Ratio("memory with all sub-networks served / checkpoint", held, MEMORY_GOAL, False))
    return found


def table(result: Mapping[str, Any]) -> str:
    """Goals and all medians, as Markdown."""
    # The clock decides. Beside other work the processor's time says which misses and hits are the neighbours' doing.
    lines = ["| what | measured | by processor time | at the peak | goal | |", "| --- | --- | --- | --- | --- | --- |"]
    for ratio, processor in zip(ratios(result), ratios(result, "cpu_median_ms"), strict=True):
        limit = "" if ratio.limit is None else f"{ratio.limit:.2f}"
        verdict = "met" if ratio.met else "missed; above the processor's peak" if ratio.out_of_reach else "missed"
        lines.append(
            f"| {ratio.what} | {ratio.measured:.2f} | {processor.measured:.2f} | {limit} | "
            f"{'at least' if ratio.larger else 'at most'} {ratio.goal:g} | {verdict} |"
        )
    times = _medians(result)
    apart = {peer for work, peer in times if work == "one text, with tokenising"}
    peers = list(dict.fromkeys(peer for _, peer in times if peer not in apart))
    lines += ["", "| work, ms | " + " | ".join(peers) + " |", "| --- |" + " --- |" * len(peers)]
    for work in dict.fromkeys(work for work, _ in times):
        shown = [f"{times[work, peer]:.1f}" if (work, peer) in times else "" for peer in peers]
        if any(shown):
            lines.append(f"| {work} | " + " | ".join(shown) + " |")
    for work, peer in times:
        if peer not in peers:
            lines.append(f"\n{work}, {peer}: {times[work, peer]:.2f} ms")
    shares = []
    for (work, ours), time in times.items():
        least = least_ms(result, work, ours)
        if ours.startswith("ours") and least is not None and work in ("1 x 128", "8 x 128"):
            shares.append(f"{work}, {ours}: {100 * least / time:.0f} %")
    if shares:
        lines.append("\nShare of the processor's peak (products only, over all of the time): " + "; ".join(shares))
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
    judged = [(SHOWN_MODELS[result["model"]], ratio) for result in results for ratio in ratios(result)]
    missed = [
        f"{model}, {ratio.what}: {ratio.measured:.2f} of {ratio.goal:g}"
        + (f" (at the processor's peak it would be {ratio.limit:.2f})" if ratio.out_of_reach else "")
        for model, ratio in judged
        if not ratio.met
    ]
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
        f"longest first. BERT-base has random weights. Of our {len(judged)} goals {len(missed)} are missed"
        + (": " + "; ".join(missed) if missed else "")
        + ". `python -m benchmarks.cpu_peers`; the rows: `benchmarks/results/cpu-peers-*.json`.",
    ]
    return "\n".join(lines)


def lengths_table(result: Mapping[str, Any]) -> str:
    """Real lengths of several tasks: a line for each task and order, ours beside the best time of the others."""
    times = _medians(result)
    works = [w for w in dict.fromkeys(work for work, _ in times) if "arrival order" in w or "sorted by length" in w]
    lines = ["| ms | padding | ours bfloat16 | ours int8 | fastest other | how many times as fast: bfloat16, int8 |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for work in works:
        row = next(row for row in result["rows"] if row["work"] == work)
        others = {peer: time for (w, peer), time in times.items() if w == work and not peer.startswith("ours")}
        best = min(others, key=lambda peer: others[peer])
        half, int8 = times[work, "ours bfloat16"], times[work, "ours int8"]
        lines.append(
            f"| {work} | {100 * (1 - row['tokens'] / row['padded_tokens']):.0f} % | {half:.0f} | {int8:.0f} | {best} "
            f"{others[best]:.0f} | {others[best] / half:.2f}, {others[best] / int8:.2f} |"
        )
    plural = "s" * (result["threads"] > 1)
    lines += [
        "",
        f"{SHOWN_MODELS[result['model']]}, {result['rows'][0]['texts']} texts of each task's dev set in batches of 32, "
        f"{result['device']}, {result['threads']} thread{plural}. *Padding*: the share of it in what the others "
        "compute. `" + result["command"] + "`; the rows: `benchmarks/results/cpu-peers-lengths.json`.",
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
