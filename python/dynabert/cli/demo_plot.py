"""The demo's picture: score against latency of twelve sub-networks, with and without rewiring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

# Colours that stay apart in grey and for colour-blind readers (Okabe and Ito).
REWIRED, PLAIN = "#0072B2", "#D55E00"


def plot(results: dict[str, Any], path: str | Path) -> None:
    """Draw ``results`` (the content of ``results.json``) to a picture file.

    One panel for each depth, on the same axes; a point is a width, named beside it. The other depths lie behind in
    grey, so that panels can be compared.
    """
    depths: dict[str, list[dict[str, Any]]] = {}
    for row in results["subnets"]:
        depths.setdefault(row["subnet"].partition("-d")[2], []).append(row)
    figure = Figure(figsize=(11.0, 4.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(depths), sharex=True, sharey=True, squeeze=False)[0]
    majority, teacher = 100 * results["majority_score"], 100 * results["teacher"]["score"]
    for axes, (depth, rows) in zip(panels, depths.items(), strict=True):
        for other in depths.values():
            if other is not rows:
                axes.plot(
                    _times(other), _scores(other, "score"), "-", color="0.87", marker="o", markersize=4, linewidth=1.2
                )
        axes.axhline(majority, color="0.45", linestyle="--", linewidth=1)
        axes.axhline(teacher, color="0.15", linestyle="-.", linewidth=1)
        _curve(axes, rows, "score_unrewired", PLAIN)
        _curve(axes, rows, "score", REWIRED)
        axes.set_title(f"depth {depth}", fontsize=11)
        axes.grid(color="0.94")
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_xlim(0, 1.08 * max(row["latency_ms"] for row in results["subnets"]))
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low - 0.05 * (high - low), high + 0.07 * (high - low))
    panels[0].set_ylabel(f"{results['metric'].replace('_', ' ')}, % of {results['examples']} examples")
    latency = results["latency"]
    panels[len(panels) // 2].set_xlabel(
        f"median latency, ms (1 x {latency['seq_length']} tokens, {results['threads']} CPU threads)"
    )
    figure.suptitle(f"One checkpoint, twelve sub-networks: {results['task']}, no distillation", fontsize=12)
    handles = [
        Line2D([], [], color=REWIRED, marker="o", label="rewired (number: width)"),
        Line2D([], [], color=PLAIN, marker="o", markerfacecolor="white", linestyle=":", label="not rewired"),
        Line2D([], [], color="0.15", linestyle="-.", linewidth=1, label=f"fine-tuned network, {teacher:.1f} %"),
        Line2D([], [], color="0.45", linestyle="--", linewidth=1, label=f"majority class, {majority:.1f} %"),
    ]
    figure.legend(handles=handles, fontsize=9, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path)


def _curve(axes: Axes, rows: list[dict[str, Any]], key: str, colour: str) -> None:
    """One line through the widths of a depth; the higher of two points has its label above, the lower one below."""
    rewired = key == "score"
    style: dict[str, Any] = {"linewidth": 1.8} if rewired else {"linestyle": ":", "markerfacecolor": "white"}
    axes.plot(_times(rows), _scores(rows, key), color=colour, marker="o", markersize=6, **style)
    for row in rows:
        other = row["score_unrewired" if rewired else "score"]
        if not rewired and other == row[key]:
            continue  # one point, one label
        above = row[key] > other or (rewired and row[key] == other)
        axes.annotate(
            row["subnet"].partition("-")[0].removeprefix("w"),
            (row["latency_ms"], 100 * row[key]),
            xytext=(0, 7 if above else -14),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=colour,
            path_effects=[Stroke(linewidth=2.5, foreground="white"), Normal()],  # readable over a line
        )


def _times(rows: list[dict[str, Any]]) -> list[float]:
    return [row["latency_ms"] for row in rows]


def _scores(rows: list[dict[str, Any]], key: str) -> list[float]:
    return [100 * row[key] for row in rows]
