"""Rows as a table for people, goals first, as a file, and as pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import plots, rows
from dynabert_kernels.testing.timing import Ceilings

from .contender import OURS
from .goals import MET, MISSED, NOT_MEASURED, REHEARSED, STRETCH, Verdict
from .measure import PeerRow

SCHEMA = 1
REHEARSAL = "REHEARSAL on the CPU with a tiny network: answers were checked; no time here says anything about a GPU"
_STYLES = {MET: "green", STRETCH: "bold green", MISSED: "red", NOT_MEASURED: "yellow", REHEARSED: ""}
_NOT_TIMED = {rows.RED: "WRONG", rows.FAILED: "FAILED", rows.UNAVAILABLE: "not here"}


def write(
    path: Path,
    found: Sequence[PeerRow],
    verdicts: Sequence[Verdict],
    skipped: Mapping[str, str],
    facts: Mapping[str, Any],
    ceilings: Ceilings,
    rehearsal: bool,
    slower: Sequence[str],
) -> None:
    """Writes rows and verdicts as JSON; every row repeats the facts, so that it stands alone. ``slower``: what ops said
    of providers that could not take them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "schema": SCHEMA,
        "rehearsal": rehearsal,
        "environment": dict(facts),
        "ceilings": ceilings.as_dict(),
        "rows": [rows.plain(row) | dict(facts) for row in found],
        "goals": [verdict.as_dict() for verdict in verdicts],
        "works_not_measured": dict(skipped),
        "slower_providers": list(slower),
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def print_all(out: Console, found: Sequence[PeerRow], verdicts: Sequence[Verdict], skipped: Mapping[str, str]) -> None:
    """Contenders, then goals, then who was left out and why."""
    if found:
        out.print(contenders_table(found))
    out.print(goals_table(verdicts))
    counts = {name: sum(verdict.verdict == name for verdict in verdicts) for name in _STYLES}
    said = [f"{count} {name}" for name, count in counts.items() if count]
    out.print(f"{len(verdicts)} goals: {', '.join(said)}")
    for row in found:
        if row.status == rows.MEASURED and row.note:
            out.print(escape(f"{row.work}: {row.contender}: {row.note}"))
    for name, title in _NOT_TIMED.items():
        for row in found:
            if row.status == name:
                out.print(escape(f"{title}: {row.work}: {row.contender}: {row.note}"))
    for work, reason in skipped.items():
        out.print(escape(f"not measured: {work}: {reason}"))


def goals_table(verdicts: Sequence[Verdict]) -> Table:
    """A line for each goal."""
    table = Table(title="goals", title_justify="left")
    for name in ("work", "what"):
        table.add_column(name, no_wrap=True)
    for name in ("measured", "goal", "stretch"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for verdict in verdicts:
        goal = verdict.goal
        sign = "\u2265" if goal.at_least else "\u2264"
        text = verdict.verdict + (f": {verdict.reason}" if verdict.reason else "")
        table.add_row(
            escape(goal.work),
            escape(goal.what),
            "" if verdict.value is None else f"{verdict.value:.3g} {goal.unit}".strip(),
            f"{sign} {goal.target:g} {goal.unit}".strip(),
            "" if goal.stretch is None else f"{sign} {goal.stretch:g}",
            escape(text),
            style=_STYLES[verdict.verdict],
        )
    return table


def contenders_table(found: Sequence[PeerRow]) -> Table:
    """A line for each contender that was timed."""
    table = Table(title="medians", title_justify="left")
    for name in ("work", "contender"):
        table.add_column(name, no_wrap=True)
    for name in ("median ms", "p20", "p80", "host ms", "TFLOP/s", "of ceiling", "peak MiB", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for row in found:
        if row.median_ms is None:
            continue
        if last and row.work != last:
            table.add_section()
        table.add_row(
            escape(row.work) if row.work != last else "",
            escape(row.contender),
            _number(row.median_ms),
            _number(row.p20_ms),
            _number(row.p80_ms),
            _number(row.host_ms),
            "" if row.gflop_s is None else _number(row.gflop_s / 1e3),
            "" if row.ceiling_share is None else f"{100 * row.ceiling_share:.0f} %",
            "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
            "" if row.difference is None else f"{row.difference:.1e}",
        )
        last = row.work
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def draw(found: Sequence[PeerRow], path: Path, heading: str) -> Path | None:
    """A panel for each work, a bar for each contender with its 20th and 80th percentile, ours in blue. None where
    nothing was timed."""
    timed = [row for row in found if row.median_ms is not None]
    works = list(dict.fromkeys(row.work for row in timed))
    if not works:
        return None
    columns = min(3, len(works))
    lines = -(-len(works) // columns)
    most = max(sum(row.work == work for row in timed) for work in works)
    figure, axes = plots.open_figure(lines, columns, 6.0 * columns, (0.22 * most + 1.0) * lines)
    for axis, work in zip(axes.flat, works, strict=False):
        bars = sorted((row for row in timed if row.work == work), key=lambda row: row.median_ms or 0.0)
        medians = [row.median_ms or 0.0 for row in bars]
        spread = [
            [median - (row.p20_ms or median) for row, median in zip(bars, medians, strict=True)],
            [(row.p80_ms or median) - median for row, median in zip(bars, medians, strict=True)],
        ]
        colours = ["#1f77b4" if row.contender.startswith(OURS) else "#aaaaaa" for row in bars]
        axis.barh([row.contender for row in bars], medians, xerr=spread, color=colours, ecolor="black")
        axis.invert_yaxis()
        axis.set_title(work, fontsize=8)
        axis.set_xlabel("median ms", fontsize=7)
        axis.tick_params(labelsize=6)
        axis.set_xlim(left=0)
    for axis in axes.flat[len(works) :]:
        axis.set_visible(False)
    plots.save_figure(figure, path, heading)
    return path
