"""Rows as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynabert_kernels.testing.timing import Ceilings

from . import rows
from .measure import CACHES
from .rows import Row

# Narrower terminals and pipes still get whole columns: a cut number is a wrong number.
MINIMUM_COLUMNS = 190


def console() -> Console:
    """A console wide enough for the table, also in a pipe."""
    found = Console(highlight=False)
    return found if found.width >= MINIMUM_COLUMNS else Console(highlight=False, width=MINIMUM_COLUMNS)


def print_header(out: Console, facts: Mapping[str, Any], ceilings: Ceilings, cache: str) -> None:
    """The machine, the code and the measured ceilings."""
    out.print(
        escape(f"{facts['device']}, {facts['threads']} threads, load {facts['load_average']}, driver {facts['driver']}")
    )
    native = "not built" if facts["native"] == "not built" else "built"
    out.print(f"torch {facts['torch']}, triton {facts['triton']}, CUDA {facts['cuda']}, native library {native}")
    out.print(escape(f"commit {facts['commit']}, sources {facts['source_digest']}, {facts['date']}"))
    copies = ", ".join(f"{size / 2**20:.3g} MiB {rate:.4g} GB/s" for size, rate in ceilings.copy_gb_s.items())
    rates = ", ".join(
        f"{name} {rate:.4g} GFLOP/s ({ceilings.matrix_sizes[name]})" for name, rate in ceilings.matrix_gflop_s.items()
    )
    out.print(f"ceilings measured now: copy (read + written) {copies}; matrix product {rates}")
    out.print(f"last-level cache {ceilings.cache_bytes / 2**20:.4g} MiB ({ceilings.cache_source})")
    out.print(f"cache {cache}: {CACHES[cache]}")


def table_of(found: Sequence[Row]) -> Table:
    """All rows but the unavailable ones, a line under each group."""
    table = Table(
        caption="share: of the measured ceiling; vs torch, vs width 1: above 1 is faster; (ideal): by operations"
    )
    for name in ("op", "provider", "direction", "shape", "tokens"):
        table.add_column(name, no_wrap=True)
    table.add_column("plan", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    for name in ("median ms", "p20", "p80", "rate", "share", "vs torch", "vs width 1"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = [row for row in found if row.status != rows.UNAVAILABLE]
    for row, following in zip(shown, [*shown[1:], None], strict=False):
        last = following is None or _group(row) != _group(following)
        table.add_row(*_cells(row), style=None if row.status == rows.MEASURED else "bold red", end_section=last)
    return table


def _group(row: Row) -> tuple[str, str, str, str]:
    return row.benchmark, row.shape, row.tokens, row.dtype


def _cells(row: Row) -> list[str]:
    names = [row.benchmark, row.provider, row.direction, row.shape, row.tokens, row.plan, row.dtype]
    if row.median_ms is None:
        return [*names, row.status.upper(), "", "", "", "", "", ""]
    rate = f"{row.gflop_s:.4g} GFLOP/s" if row.bound == "operations" else f"{row.gb_s:.4g} GB/s"
    versus_full = ""
    if row.speedup_vs_width_1 is not None and row.ideal_speedup is not None:
        versus_full = f"{row.speedup_vs_width_1:.2f} ({row.ideal_speedup:.2f})"
    return [
        *names,
        milliseconds(row.median_ms),
        milliseconds(row.p20_ms),
        milliseconds(row.p80_ms),
        rate,
        "" if row.ceiling_share is None else f"{100 * row.ceiling_share:.0f} %",
        "" if row.speedup_vs_torch is None else f"{row.speedup_vs_torch:.2f}",
        versus_full,
    ]


def milliseconds(value: float | None) -> str:
    """Four digits that count."""
    return "" if value is None else f"{value:.4g}"


def print_faults(out: Console, found: Sequence[Row]) -> None:
    """Wrong and failing rows with their error, then who is not available and why, each reason once."""
    for row in found:
        if row.status in (rows.RED, rows.FAILED):
            where = f"{row.benchmark}, {row.provider}, {row.shape}, {row.tokens}, {row.plan}, {row.dtype}"
            out.print(f"[bold red]{row.status.upper()}[/] {escape(where)}: {escape(row.note)}")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in found:
        if row.status == rows.UNAVAILABLE:
            names = reasons.setdefault((row.provider, row.note), [])
            if row.benchmark not in names:
                names.append(row.benchmark)
    for (provider, reason), names in reasons.items():
        out.print(escape(f"not measured: {provider}: {reason} [{', '.join(names)}]"))
