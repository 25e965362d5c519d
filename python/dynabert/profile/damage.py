"""Checks of what a profile's file holds: each refusal names the field, what stands there and what may stand there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Puts ``where`` before what is found wrong with a part, whatever kind of error reading it raises."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{where}: {reason}") from error


def check_count(where: str, value: Any, least: int = 1) -> None:
    """Raises ``ValueError`` unless it is a whole number from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{where} is {value!r}; allowed: a whole number from {least}")


def check_number(where: str, value: Any) -> None:
    """Raises ``ValueError`` unless it is a finite number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < math.inf:
        raise ValueError(f"{where} is {value!r}; allowed: a number, 0 or more")


def check_text(where: str, value: Any) -> None:
    """Raises ``ValueError`` unless it is text."""
    if not isinstance(value, str):
        raise ValueError(f"{where} is {value!r}; allowed: text")


def check_counts(where: str, values: Any) -> None:
    """Raises ``ValueError`` unless it is a tuple of whole numbers from 1 on, at least one."""
    if not isinstance(values, tuple) or not values:
        raise ValueError(f"{where} is {values!r}; allowed: whole numbers from 1, at least one")
    for value in values:
        check_count(where, value)


def check_curve(where: str, nodes: Any, ms: Any) -> None:
    """Raises ``ValueError`` unless ``nodes`` are rising counts and ``ms`` has a time for each.

    ``where``: the name that both begin with: ``head`` for ``head_nodes`` and ``head_ms``.
    """
    check_counts(f"{where}_nodes", nodes)
    if any(a >= b for a, b in pairwise(nodes)):
        raise ValueError(f"{where}_nodes is {nodes!r}; allowed: rising numbers")
    if not isinstance(ms, tuple) or len(ms) != len(nodes):
        raise ValueError(f"{where}_ms is {ms!r}; allowed: {len(nodes)} times, one for each of {where}_nodes")
    for value in ms:
        check_number(f"{where}_ms", value)
