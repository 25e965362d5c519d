"""The demo's picture: score against latency of twelve sub-networks, not rewired, rewired and distilled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

# Colours that stay apart in grey and for colour-blind readers (Okabe and Ito).
# Later curves lie over earlier ones.
CURVES: dict[str, dict[str, Any]] = {
    "metrics_unrewired": {
        "label": "not rewired",
        "color": "#D55E00",
        "linestyle": ":",
        "markerfacecolor": "white",
    },
    "metrics": {"label": "rewired", "color": "#0072B2", "linestyle": "--", "marker": "s"},
    "metrics_distilled": {"label": "distilled", "color": "#009E73", "linewidth": 2.0},
}
# Where one class is frequent, accuracy hides a network that only ever answers that class; this does not: it scores 0.
BESIDE_ACCURACY = "matthews_correlation"


def plot(results: dict[str, Any], path: str | Path) -> None:
    """Draw ``results`` (the content of ``results.json``) to a picture file.

    One column of panels for each depth, on the same axes; a point is a width, named beside it. The other depths lie
    behind in grey, so that panels can be compared. Below accuracy stands Matthews' correlation.
    """
    depths: dict[str, list[dict[str, Any]]] = {}
    for row in results["subnets"]:
        depths.setdefault(row["subnet"].partition("-d")[2], []).append(row)
    metrics = [results["metric"]]
    if metrics == ["accuracy"]:
        metrics.append(BESIDE_ACCURACY)
    figure = Figure(figsize=(11.0, 1.2 + 3.4 * len(metrics)), dpi=150, layout="constrained")
    grid = figure.subplots(len(metrics), len(depths), sharex=True, sharey="row", squeeze=False)
    for panels, metric in zip(grid, metrics, strict=True):
        _row(list(panels), metric, depths, results)
    for axes, depth in zip(grid[0], depths, strict=True):
        axes.set_title(f"depth {depth}", fontsize=11)
    grid[0][0].set_xlim(0, 1.08 * max(row["latency_ms"] for row in results["subnets"]))
    latency, threads = results["latency"], results["threads"]
    grid[-1][len(depths) // 2].set_xlabel(
        f"median latency, ms (1 x {latency['seq_length']} tokens, {threads} CPU thread{'s' * (threads > 1)})"
    )
    distillation = results.get("distillation")
    seconds = sum(stage["seconds"] for stage in distillation["stages"]) if distillation else 0.0
    trained = f"distilled for {seconds / 60.0:.1f} minutes" if distillation else "no distillation"
    figure.suptitle(
        f"One checkpoint, twelve sub-networks, {trained}: {results['task']}, {results['examples']} examples",
        fontsize=12,
    )
    handles = [
        *(Line2D([], [], **{"marker": "o", **CURVES[key]}) for key in reversed(_curves(results["subnets"]))),
        Line2D([], [], linestyle="none", marker="$0.5$", markersize=14, color="0.25", label="width"),
        Line2D([], [], color="0.15", linestyle="-.", linewidth=1, label="fine-tuned network"),
        Line2D([], [], color="0.45", linestyle="--", linewidth=1, label="majority class"),
    ]
    figure.legend(handles=handles, fontsize=9, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path)


def _row(panels: list[Axes], metric: str, depths: dict[str, list[dict[str, Any]]], results: dict[str, Any]) -> None:
    """One panel for each depth, all in one metric."""
    own = metric == results["metric"]
    majority = 100 * results["majority_score"] if own else 0.0
    for axes, rows in zip(panels, depths.values(), strict=True):
        for other in depths.values():
            if other is not rows:
                best = _scores(other, metric, _curves(other)[-1])
                axes.plot(_times(other), best, color="0.87", marker="o", markersize=4, linewidth=1.2)
        axes.axhline(majority, color="0.45", linestyle="--", linewidth=1)
        axes.axhline(100 * results["teacher"]["metrics"][metric], color="0.15", linestyle="-.", linewidth=1)
        for key in _curves(rows):
            style = {name: value for name, value in CURVES[key].items() if name != "label"}
            axes.plot(_times(rows), _scores(rows, metric, key), **{"marker": "o", "markersize": 6, **style})
        _name_widths(axes, rows, metric)
        axes.grid(color="0.94")
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    panels[0].set_ylabel(f"{metric.replace('_', ' ').capitalize()}, %")


def _curves(rows: list[dict[str, Any]]) -> list[str]:
    return [key for key in CURVES if key in rows[0]]


def _name_widths(axes: Axes, rows: list[dict[str, Any]], metric: str) -> None:
    """The points of a width lie above each other; its name stands over the highest."""
    for row in rows:
        axes.annotate(
            row["subnet"].partition("-")[0].removeprefix("w"),
            (row["latency_ms"], max(100 * row[key][metric] for key in _curves(rows))),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="0.25",
            path_effects=[Stroke(linewidth=2.5, foreground="white"), Normal()],  # readable over a line
        )


def _times(rows: list[dict[str, Any]]) -> list[float]:
    return [row["latency_ms"] for row in rows]


def _scores(rows: list[dict[str, Any]], metric: str, key: str) -> list[float]:
    return [100 * row[key][metric] for row in rows]
