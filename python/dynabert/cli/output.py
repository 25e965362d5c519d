"""Printing: tables for people, JSON for programs, nothing else on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

SHOWN_CHARACTERS = 60
PLAIN_WIDTH = 140  # where the output is no terminal, rich would cut tables at 80 columns


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None, left: int = 1
) -> None:
    """A table; the first ``left`` columns are aligned left, the others right."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    if title is not None:
        # Not the table's own title: that would be broken at the width of a narrow table.
        console.print(escape(title), style="bold", highlight=False, soft_wrap=True)
    console.print(table)


def short_text(text: str) -> str:
    """A text as a cell of a table: of at most 60 characters."""
    # A terminal would obey control characters, such as those that set its colours.
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[: SHOWN_CHARACTERS + 1])
    return shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 1] + "…"


def say(text: str) -> None:
    """A line for people on standard error, so that standard output holds results alone."""
    print(text, file=sys.stderr, flush=True)


def percent(score: float) -> str:
    """0.8312 as 83.1."""
    return f"{100 * score:.1f}"
