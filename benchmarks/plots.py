"""A picture of time against width, with the line that a width would follow if time were its work alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import rows
from .rows import Row


def require_matplotlib() -> None:
    """Raises ``ValueError`` where pictures cannot be drawn, before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(f"benchmarks: --plot needs matplotlib ({error}); pip install 'matplotlib>=3.8'") from error


def panels(found: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Rows with a time and a width to vary, by panel title and provider, widest first."""
    grouped: dict[str, dict[str, list[Row]]] = {}
    for row in found:
        if row.status == rows.MEASURED and row.median_ms is not None and row.ideal_speedup is not None:
            title = f"{row.benchmark}, {row.shape}, {row.tokens} tokens, {row.dtype}"
            grouped.setdefault(title, {}).setdefault(row.provider, []).append(row)
    for lines in grouped.values():
        for line in lines.values():
            line.sort(key=lambda row: -row.width)
    return {title: lines for title, lines in grouped.items() if any(len(line) > 1 for line in lines.values())}


def draw(found: Sequence[Row], path: Path, heading: str) -> bool:
    """Writes one panel for each op, shape, batch and dtype; False, and no file, when there is nothing to draw."""
    grouped = panels(found)
    if not grouped:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(4, len(grouped))
    lines = -(-len(grouped) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.6 * columns, 3.6 * lines + 0.4), squeeze=False)
    for axis, (title, providers) in zip(axes.flat, grouped.items(), strict=False):
        _panel(axis, title, providers)
    for axis in axes.flat[len(grouped) :]:
        axis.set_visible(False)
    figure.suptitle(heading, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _panel(axis: Any, title: str, providers: dict[str, list[Row]]) -> None:
    for provider, line in providers.items():
        widths = [row.width for row in line]
        low, high = [row.p20_ms for row in line], [row.p80_ms for row in line]
        (drawn,) = axis.plot(widths, [row.median_ms for row in line], marker="o", label=provider)
        axis.fill_between(widths, low, high, color=drawn.get_color(), alpha=0.15)
        full = next((row for row in line if row.width == 1.0), None)
        if full is not None and full.median_ms is not None:
            ideal = [full.median_ms / row.ideal_speedup for row in line if row.ideal_speedup is not None]
            axis.plot(widths, ideal, linestyle="--", linewidth=1, color=drawn.get_color(), label=f"{provider}, ideal")
    axis.set_title(title, fontsize=8)
    axis.set_xlabel("width")
    axis.set_ylabel("median ms")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7)
