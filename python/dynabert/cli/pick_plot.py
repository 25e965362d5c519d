"""Pictures of a choice: score against latency with the front and the chosen sub-network, and what each layer keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

# Colours that stay apart in grey and for colour-blind readers (Okabe and Ito).
_FRONT, _CHOSEN, _OTHER, _LIMIT, _LAYERED = "#0072B2", "#D55E00", "0.6", "#CC79A7", "#E69F00"
_RETAINED = (0.99, 0.98, 0.95)
_MOST_NAMED = 14  # points; more names than that lie over each other
_HALO = [Stroke(linewidth=2.5, foreground="white"), Normal()]


def plot_choice(results: dict[str, Any], path: str | Path) -> None:
    """Draw ``results`` (the content of ``pick.json``): score against latency, or GFLOP where latency is not known.

    Lines: the whole network's score and 99, 98 and 95 % of it; the Pareto front; the limits.
    """
    rows = results["candidates"]
    timed = rows[0]["latency_ms"] is not None
    key = "latency_ms" if timed else "gflop"
    figure = Figure(figsize=(8.0, 5.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    _retained_lines(axes, results)
    _limit_lines(axes, results, timed)
    for label, marker, colour, some in (
        ("candidate", "o", _OTHER, [row for row in rows if not _layered(row)]),
        ("different layers", "D", _LAYERED, [row for row in rows if _layered(row)]),
    ):
        if some:
            axes.scatter(
                [row[key] for row in some],
                [100 * row["score"] for row in some],
                color=colour,
                marker=marker,
                s=28,
                zorder=5 if marker == "D" else 3,  # over the front, whose own markers are larger
                label=label,
            )
    front = sorted((row for row in rows if row["front"]), key=lambda row: row[key])
    axes.plot(
        [row[key] for row in front],
        [100 * row["score"] for row in front],
        color=_FRONT,
        marker="o",
        markersize=6,
        linewidth=1.4,
        zorder=4,
        label="Pareto front",
    )
    chosen = [row for row in rows if row["subnet"] == results["chosen"]]
    if chosen:
        axes.scatter(
            [chosen[0][key]],
            [100 * chosen[0]["score"]],
            marker="*",
            s=260,
            color=_CHOSEN,
            edgecolor="white",
            zorder=6,
            label="chosen",
        )
    _name_points(axes, rows, key, results["chosen"])
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.03 * (high - low), high + 0.05 * (high - low))
    axes.set_xlim(0, 1.1 * max(row[key] for row in rows))
    axes.set_ylabel(f"{results['metric'].replace('_', ' ').capitalize()}, %")
    if timed:
        batch_size, seq_length, dtype, device = (
            results["latency"][name] for name in ("batch_size", "seq_length", "dtype", "device")
        )
        axes.set_xlabel(f"latency, ms ({batch_size} x {seq_length} tokens, {dtype}, {device})")
    else:
        axes.set_xlabel(f"GFLOP of one sequence of {results['cost_tokens']} tokens")
    title = f"chosen: {_short(results['chosen'])}" if chosen else "no sub-network keeps the limits"
    axes.set_title(f"{title}; {results['objective']}", fontsize=10)
    axes.grid(color="0.94")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(fontsize=8, loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path)


def plot_layers(results: dict[str, Any], path: str | Path) -> None:
    """A heat map for heads and one for neurons: a row for each sub-network of the front and the chosen one, a column
    for each layer, the count written in; darker keeps more of the layer's largest count."""
    rows = [row for row in results["candidates"] if row["front"] or row["subnet"] == results["chosen"]]
    layers = len(rows[0]["heads"])
    size = (2.6 + 2 * 0.62 * layers, 1.5 + 0.36 * len(rows))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("heads", "neurons"), strict=True):
        counts = np.array([row[kind] for row in rows])
        most = np.array([row[kind] for row in results["candidates"]]).max()
        axes.imshow(counts / max(1, most), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        for (row, layer), count in np.ndenumerate(counts):
            axes.text(
                layer,
                row,
                str(count) if count else "-",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if count > 0.6 * most else "0.2",
            )
        axes.set_title(f"{kind} kept", fontsize=10)
        axes.set_xlabel("layer")
        axes.set_xticks(range(layers))
        axes.tick_params(length=0, labelsize=8)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_yticks(
            range(len(rows)),
            [_short(row["subnet"]) + (" *" if row["subnet"] == results["chosen"] else "") for row in rows],
        )
    figure.suptitle("Pareto front, cheapest first; *: chosen; -: skipped", fontsize=10)
    figure.savefig(path)


def _retained_lines(axes: Axes, results: dict[str, Any]) -> None:
    whole = results["whole_score"]
    if whole is None:
        return
    axes.axhline(100 * whole, color="0.15", linestyle="-.", linewidth=1, label="whole network")
    lowest = min(row["score"] for row in results["candidates"])
    for share in _RETAINED:
        if share * whole < lowest - 0.02 * abs(whole):  # far below every point it would only stretch the axis
            continue
        axes.axhline(100 * share * whole, color="0.75", linestyle="--", linewidth=0.8)
        axes.annotate(
            f"{100 * share:.0f} %",
            (1.0, 100 * share * whole),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 1),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=7,
            color="0.45",
        )


def _limit_lines(axes: Axes, results: dict[str, Any], timed: bool) -> None:
    limits = results["limits"]
    across = limits.get("max_latency_ms" if timed else "max_gflops")
    if across is not None:
        axes.axvline(across, color=_LIMIT, linewidth=1.2, label="limit")
    for value in (limits.get("min_score"), _times(limits.get("min_retention"), results["whole_score"])):
        if value is not None:
            axes.axhline(100 * value, color=_LIMIT, linewidth=1.2, label=None if across is not None else "limit")


def _name_points(axes: Axes, rows: list[dict[str, Any]], key: str, chosen: str | None) -> None:
    for row in rows:
        if _layered(row) or (len(rows) > _MOST_NAMED and not row["front"] and row["subnet"] != chosen):
            continue
        axes.annotate(
            row["subnet"],
            (row[key], 100 * row["score"]),
            xytext=(0, 7 if row["front"] else -12),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color="0.25",
            path_effects=_HALO,
            zorder=7,
        )


def _layered(row: dict[str, Any]) -> bool:
    """Whether it is named layer by layer: too long a name for a picture."""
    return bool(row["subnet"].startswith("h"))


def _short(subnet: str) -> str:
    return "different layers" if subnet.startswith("h") else subnet


def _times(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value * other
