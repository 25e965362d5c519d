"""The demo's picture: score against latency of twelve sub-networks, with and without rewiring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Colours that stay apart in grey and for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73")


def plot(results: dict[str, Any], path: str | Path) -> None:
    """Draw ``results`` (the content of ``results.json``) to a picture file.

    One colour for each depth; filled markers and full lines: rewired; hollow markers and dotted lines: not rewired. The
    width stands beside each rewired point.
    """
    depths: dict[str, list[dict[str, Any]]] = {}
    for row in results["subnets"]:
        depths.setdefault(row["subnet"].partition("-d")[2], []).append(row)
    figure = Figure(figsize=(8.0, 5.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for colour, (_, rows) in zip(COLOURS, depths.items(), strict=True):
        times = [row["latency_ms"] for row in rows]
        score = [100 * row["score"] for row in rows]
        plain = [100 * row["score_unrewired"] for row in rows]
        axes.plot(times, plain, ":", color=colour, marker="o", markersize=6, markerfacecolor="white", linewidth=1.2)
        axes.plot(times, score, "-", color=colour, marker="o", markersize=6, linewidth=1.8)
        for row, x, y in zip(rows, times, score, strict=True):
            width = row["subnet"].partition("-")[0].removeprefix("w")
            axes.annotate(
                width, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=colour
            )
    majority, teacher = 100 * results["majority_score"], 100 * results["teacher"]["score"]
    axes.axhline(majority, color="0.45", linestyle="--", linewidth=1)
    axes.axhline(teacher, color="0.15", linestyle="-.", linewidth=1)
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.02 * (high - low), high + 0.08 * (high - low))
    latency = results["latency"]
    axes.set_xlabel(f"latency, ms (median; 1 x {latency['seq_length']} tokens, {results['threads']} CPU threads)")
    axes.set_ylabel(f"{results['metric'].replace('_', ' ')}, % ({results['examples']} examples)")
    axes.set_title(f"{results['task']}: one checkpoint, twelve sub-networks", fontsize=11)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    handles = [Line2D([], [], color=c, marker="o", label=f"depth {d}") for c, d in zip(COLOURS, depths, strict=True)]
    handles += [
        Line2D([], [], color="0.3", marker="o", label="rewired (labels: width)"),
        Line2D([], [], color="0.3", marker="o", markerfacecolor="white", linestyle=":", label="not rewired"),
        Line2D([], [], color="0.15", linestyle="-.", linewidth=1, label=f"fine-tuned network, {teacher:.1f} %"),
        Line2D([], [], color="0.45", linestyle="--", linewidth=1, label=f"majority class, {majority:.1f} %"),
    ]
    axes.legend(handles=handles, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path)
