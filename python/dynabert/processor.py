"""What the system tells of the processor: its name, and the instruction sets that it has."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

_TOLD = Path("/proc/cpuinfo")


def cpu_name() -> str | None:
    """The processor's name, where Linux tells it; else what Python knows; None for nothing."""
    named = next((value for key, value in _entries() if key == "model name"), None)
    return named or platform.processor() or None


def cpu_flags() -> frozenset[str]:
    """Its instruction sets, as Linux names them (x86 and Arm); empty where the system does not list them."""
    listed = (value.split() for key, value in _entries() if key in ("flags", "Features"))
    return frozenset(flag for flags in listed for flag in flags)


def _entries() -> Iterator[tuple[str, str]]:
    try:
        text = _TOLD.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()
