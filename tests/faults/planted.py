"""What a fault is, and the list of all: a change of one place in a kernel that must turn a check red."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """``old`` in ``file`` becomes ``new``; ``old`` must stand there exactly once.

    ``seen_by``: the ops whose properties must see it, or files of tests, for what has no property of its own (int8,
    packed weights, the classifier's head); for ``cuda`` the host-shim program, and its case where one is enough.
    ``sanitizer``: what the host-shim program is built with.
    """

    name: str
    kind: str
    provider: str
    file: str
    old: str
    new: str
    seen_by: tuple[str, ...]
    sanitizer: str = "memory"


def all_faults() -> list[Fault]:
    """Of every provider, in an order in which C++ is rebuilt least."""
    from tests.faults import cpu, cuda, triton

    faults = [*triton.FAULTS, *cuda.FAULTS, *sorted(cpu.FAULTS, key=lambda fault: fault.file)]
    names = [fault.name for fault in faults]
    assert len(set(names)) == len(names), "two faults have one name"
    return faults
