"""All works in one picture: how long each contender took, beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(rows: Sequence[Mapping[str, Any]], path: Path, heading: str) -> Path | None:
    """A panel for each work with times, contenders from top to bottom; None where nothing was timed."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if row["times"]]
    if not timed:
        return None
    bars = sum(len(row["times"]) + 1.6 for row in timed)
    figure = Figure(figsize=(8.0, 0.9 + 0.26 * bars), layout="constrained")
    heights = [len(row["times"]) + 1.6 for row in timed]
    axes = figure.subplots(len(timed), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    figure.suptitle(heading, fontsize=9)
    for axis, row in zip(axes, timed, strict=True):
        names = list(row["times"])
        medians = [row["times"][name]["median_ms"] for name in names]
        colours = ["tab:blue" if name.startswith("ours") else "tab:gray" for name in names]
        axis.barh(names, medians, color=colours)
        for place, median in enumerate(medians):
            axis.text(median, place, f" {median:.3g} ms", va="center", fontsize=7)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(row["work"], fontsize=8, loc="left")
        axis.tick_params(labelsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
