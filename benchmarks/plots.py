"""Pictures of rows: time against width with the line a width would follow if time were its work alone, time against
tokens, and the roofline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dynabert_kernels.testing.timing import Ceilings

from . import rows
from .measure import FULL, PEER
from .rows import Row

# The same colour for a provider, and the same mark for an op, in every picture.
_COLOURS = {PEER: "#888888", "reference": "#c9a227", "cpu": "#1f77b4", "triton": "#d1495b", "cuda": "#2a9d5c"}
_MARKS = "osD^vP*X<>pdh8"
_COLUMNS = 4
Panels = dict[str, dict[str, list[Row]]]


def require_matplotlib() -> None:
    """Raises ``ValueError`` where pictures cannot be drawn, before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(f"benchmarks: --plot needs matplotlib ({error}); pip install 'matplotlib>=3.8'") from error


def timed(found: Sequence[Row]) -> list[Row]:
    """Rows with a time."""
    return [row for row in found if row.status == rows.MEASURED and row.median_ms is not None]


def _panels(found: Sequence[Row], title: Callable[[Row], str], place: Callable[[Row], float]) -> Panels:
    """Rows by panel title and provider, sorted by their place on the axis; panels where something varies."""
    grouped: Panels = {}
    for row in found:
        grouped.setdefault(title(row), {}).setdefault(row.provider, []).append(row)
    for lines in grouped.values():
        for line in lines.values():
            line.sort(key=place)
    return {
        name: lines
        for name, lines in grouped.items()
        if any(len({place(r) for r in line}) > 1 for line in lines.values())
    }


def width_panels(found: Sequence[Row]) -> Panels:
    """A panel for each op, batch, shape and dtype that was measured at several widths."""
    plain = [row for row in timed(found) if row.ideal_speedup is not None and "," not in row.plan]
    return _panels(
        plain, lambda row: f"{row.benchmark}\n{row.shape}, {row.tokens} tokens, {row.dtype}", lambda row: row.width
    )


def token_panels(found: Sequence[Row]) -> Panels:
    """A panel for each op, plan, shape and dtype that was measured at several numbers of tokens."""
    return _panels(
        timed(found), lambda row: f"{row.benchmark}\n{row.shape}, {row.plan}, {row.dtype}", lambda row: row.num_tokens
    )


def draw_all(found: Sequence[Row], ceilings: Ceilings, stem: Path, heading: str) -> list[Path]:
    """Writes the pictures that these rows give, as ``STEM-width-...png`` and so on; returns their paths.

    One file for each shape and dtype: a file of all would have a hundred panels.
    """
    written = []
    by_file = sorted(timed(found), key=lambda row: (row.shape, row.dtype))
    for (shape, dtype), group in groupby(by_file, key=lambda row: (row.shape, row.dtype)):
        chosen = list(group)
        order = {row.benchmark: place for place, row in reversed(list(enumerate(found)))}
        chosen.sort(key=lambda row: order[row.benchmark])
        where = f"{shape}-{dtype}.png"
        for kind, panels, panel in (
            ("width", width_panels(chosen), _width_panel),
            ("tokens", token_panels(chosen), _token_panel),
        ):
            if panels:
                path = stem.with_name(f"{stem.name}-{kind}-{where}")
                _draw_panels(panels, panel, path, f"time against {kind}. {heading}")
                written.append(path)
        working = [row for row in chosen if row.operations and row.gflop_s]
        if working:
            path = stem.with_name(f"{stem.name}-roofline-{where}")
            _draw_roofline(working, ceilings, path, f"{shape}, {dtype}. {heading}")
            written.append(path)
    return written


def open_figure(lines: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes as a (lines, columns) array; needs no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(lines, columns, figsize=(width, height), squeeze=False, layout="constrained")


def save_figure(figure: Any, path: Path, heading: str) -> None:
    """Writes the figure under its heading, and closes it."""
    from matplotlib import pyplot

    figure.suptitle(heading, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_panels(panels: Panels, panel: Callable[[Any, dict[str, list[Row]]], None], path: Path, heading: str) -> None:
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = open_figure(lines, columns, 3.9 * columns, 3.1 * lines + 0.5)
    for axis, (title, providers) in zip(axes.flat, panels.items(), strict=False):
        panel(axis, providers)
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    save_figure(figure, path, heading)


def _line(axis: Any, provider: str, places: list[float], line: list[Row]) -> None:
    colour = _COLOURS.get(provider)
    axis.plot(places, [row.median_ms for row in line], marker="o", markersize=4, color=colour, label=provider)
    axis.fill_between(places, [row.p20_ms for row in line], [row.p80_ms for row in line], color=colour, alpha=0.15)


def _width_panel(axis: Any, providers: dict[str, list[Row]]) -> None:
    for provider, line in providers.items():
        places = [row.width for row in line]
        _line(axis, provider, places, line)
        full = next((row for row in line if row.plan == FULL), None)
        if full is not None and full.median_ms is not None:
            ideal = [full.median_ms / row.ideal_speedup for row in line if row.ideal_speedup is not None]
            axis.plot(
                places,
                ideal,
                linestyle="--",
                linewidth=1,
                color=_COLOURS.get(provider),
                label=f"{provider}, by its work",
            )
    axis.set_xlabel("width", fontsize=7)
    axis.set_ylabel("median ms", fontsize=7)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)


def _token_panel(axis: Any, providers: dict[str, list[Row]]) -> None:
    for provider, line in providers.items():
        _line(axis, provider, [row.num_tokens for row in line], line)
    from matplotlib.ticker import NullLocator

    _logarithmic(axis, "x")
    _logarithmic(axis, "y")
    # The batches that were measured, by their names.
    ticks = {row.num_tokens: row.tokens for line in providers.values() for row in line}
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("tokens", fontsize=7)
    axis.set_ylabel("median ms", fontsize=7)


def _logarithmic(axes: Any, name: str) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_roofline(found: Sequence[Row], ceilings: Ceilings, path: Path, heading: str) -> None:
    figure, axes = open_figure(1, 1, 11.0, 6.5)
    axis = axes[0, 0]
    intensities = [_intensity(row) for row in found]
    rate = ceilings.matrix_gflop_s[found[0].dtype]
    copies = ceilings.copy_gb_s
    roofs = {"memory": copies[max(copies)], "cache": max(copies.values())}
    # Wide enough for both slopes to show.
    low, high = min(*intensities, rate / roofs["cache"]) / 2, max(*intensities, rate / roofs["memory"]) * 2
    for (name, bandwidth), style in zip(roofs.items(), ("-", "--"), strict=True):
        knee = rate / bandwidth
        points = sorted({low, high} | ({knee} if low < knee < high else set()))
        label = f"{name}, {bandwidth:.3g} GB/s copied; products {rate:.4g} GFLOP/s"
        axis.plot(points, [min(rate, x * bandwidth) for x in points], style, color="black", linewidth=1, label=label)
    marks = {name: _MARKS[place % len(_MARKS)] for place, name in enumerate(dict.fromkeys(r.benchmark for r in found))}
    for row, intensity in zip(found, intensities, strict=True):
        # Filled: the whole width. The narrower, the smaller.
        axis.plot(
            intensity,
            row.gflop_s,
            marks[row.benchmark],
            color=_COLOURS.get(row.provider),
            markersize=4 + 5 * row.width,
            fillstyle="full" if row.plan == FULL else "none",
        )
    _logarithmic(axis, "x")
    _logarithmic(axis, "y")
    axis.set_xlabel("operations for each byte (formulas)")
    axis.set_ylabel("GFLOP/s (operations over median time)")
    axis.grid(alpha=0.25, which="both")
    _legends(axis, marks, dict.fromkeys(row.provider for row in found))
    save_figure(figure, path, f"roofline. {heading}")


def _intensity(row: Row) -> float:
    return (row.operations or 0) / (row.size_bytes or 1)


def _legends(axis: Any, marks: Mapping[str, str], providers: Mapping[str, None]) -> None:
    """Roofs below right; ops and providers beside the picture, where they hide no point."""
    from matplotlib.lines import Line2D

    axis.add_artist(axis.legend(fontsize=7, loc="lower right"))
    entries = [Line2D([], [], linestyle="", marker="s", color=_COLOURS.get(name), label=name) for name in providers]
    entries += [
        Line2D([], [], linestyle="", marker=mark, color="black", fillstyle="none", label=name)
        for name, mark in marks.items()
    ]
    axis.legend(
        handles=entries,
        fontsize=7,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        title="filled: whole width",
        title_fontsize=7,
    )
