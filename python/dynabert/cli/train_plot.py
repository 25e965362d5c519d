"""Pictures of a training run: each sub-network's score against its work, and its score as it learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot as plt

Scores = Mapping[str, float]


def plot_scores(parts: Mapping[str, Scores], gflop: Scores, metric: str, majority: float, path: Path) -> None:
    """Score against GFLOP of one text: a line for each part (``rewired``, ``width``, ``depth``), a point for each
    sub-network; ``parts`` and ``gflop`` are by a sub-network's text form."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, scores in parts.items():
        order = sorted(scores, key=lambda subnet: gflop[subnet])
        points = [gflop[subnet] for subnet in order], [100 * scores[subnet] for subnet in order]
        axes.plot(*points, marker="o", markersize=4, linewidth=1, label=name)
    axes.axhline(100 * majority, color="grey", linewidth=0.8, linestyle=":", label="constant answer")
    axes.set_xlabel("GFLOP of one text")
    axes.set_ylabel(f"{metric.replace('_', ' ')}, times 100")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_learning(histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, path: Path) -> None:
    """The scores of each sub-network over the steps of each stage. ``histories``: Trainer's log of each stage."""
    shown = {name: [row for row in rows if "eval_score" in row] for name, rows in histories.items()}
    shown = {name: rows for name, rows in shown.items() if rows}
    if not shown:
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(5 * len(shown), 4.5), layout="constrained", squeeze=False)
    for place, (stage, rows) in zip(axes[0], shown.items(), strict=True):
        names = [key for key in rows[0] if key.startswith(("eval_w", "eval_h"))]
        colours = plt.get_cmap("viridis")
        for number, key in enumerate(names):
            steps, scores = [row["step"] for row in rows], [100 * row[key] for row in rows]
            colour = colours(number / max(1, len(names) - 1))
            place.plot(steps, scores, marker=".", linewidth=1, color=colour, label=key.removeprefix("eval_"))
        place.set_title(stage)
        place.set_xlabel("optimiser step")
        place.set_ylabel(f"{metric.replace('_', ' ')}, times 100")
        place.grid(alpha=0.3)
        place.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)
