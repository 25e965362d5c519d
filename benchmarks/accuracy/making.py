"""Which commands and commits made what lies in a folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from ..rows import commit

MADE = "made.json"


def note(folder: Path, command: str) -> None:
    """Keeps who made what is in the folder: each command and commit once."""
    path = folder / MADE
    known = made(folder)
    entry = {
        "command": command,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "threads": torch.get_num_threads(),
    }
    if entry not in known:
        path.write_text(json.dumps([*known, entry], indent=1) + "\n", encoding="utf-8")


def made(folder: Path) -> list[dict[str, Any]]:
    """The commands and commits that made what is in a folder, oldest first."""
    path = folder / MADE
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found
