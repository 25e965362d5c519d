"""One training run in a folder at a time: two would delete each other's checkpoints."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

LOCK = "running.lock"


@contextmanager
def run_lock(folder: Path, wanted: bool = True) -> Iterator[None]:
    """Holds ``folder`` for this run, while the block runs; the system lets go of it when the process ends, however it
    ends. ``wanted`` False (a process that writes nothing): holds nothing. The folder is made, and where nothing was
    put into it taken away again.

    Raises:
        ValueError: another run holds it; which one is said.
    """
    if not wanted or fcntl is None:
        yield
        return
    there = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    number = _taken(path, folder)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(number)
        if not there and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _taken(path: Path, folder: Path) -> int:
    """The descriptor of the lock file, which is held and is still the one that others would open."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(number, 200).decode(errors="replace").strip()
            os.close(number)
            raise ValueError(
                f"train: another run works in {folder} ({holder or 'it has just begun'}); wait for it, end it, or give "
                "another --output_dir"
            ) from error
        if path.exists() and os.fstat(number).st_ino == path.stat().st_ino:
            os.ftruncate(number, 0)
            os.write(number, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return number
        os.close(number)  # the run that held it has ended since, and its file with it
