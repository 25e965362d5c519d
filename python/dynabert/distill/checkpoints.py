"""A stage's checkpoints on disk: the last whole one, what was cut while it was written, and whether there is room.

Trainer writes a checkpoint file by file. A process that is killed, or a disk that fills, leaves part of one; going on
from it would fail, or go on with other weights.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

_NAME = re.compile(r"checkpoint-(\d+)$")
# In the order in which Trainer writes them. The processes' random states follow; training draws from the step's number.
_WEIGHTS, _OPTIMISER, _SCHEDULE, _STATE = "model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"


class CheckpointError(OSError):
    """A checkpoint could not be written; the message names the folder, the cause and what is kept."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a stage's folder, newest first, whole or not."""
    found = [(match, path) for path in folder.glob("checkpoint-*") if (match := _NAME.search(path.name))]
    return [path for match, path in sorted(found, key=lambda pair: -int(pair[0][1])) if path.is_dir()]


def missing(checkpoint: Path) -> str | None:
    """What a checkpoint lacks to go on from, such as ``optimizer.pt is cut``; None where it is whole."""
    for name in (_WEIGHTS, _OPTIMISER, _SCHEDULE, _STATE):
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is not there"
        if not _whole(path):
            return f"{name} is cut"
    return None


def _whole(path: Path) -> bool:
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return False
        return True
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):  # compares the header with the file's size
                return True
        except SafetensorError:
            return False
    return zipfile.is_zipfile(path)  # its list of contents is written last


def _without_state(checkpoint: Path) -> bool:
    """Whether it was written whole with ``save_only_model``: what is written last is there."""
    return not (checkpoint / _OPTIMISER).exists() and (checkpoint / _STATE).is_file() and _whole(checkpoint / _STATE)


def last_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, or None; and a line for each newer one that is not whole."""
    passed: list[str] = []
    for path in checkpoints(folder):
        lack = missing(path)
        if lack is None:
            return path, passed
        why = "holds the network alone" if _without_state(path) else "was cut while it was written"
        passed.append(f"{path} {why} ({lack}); it is passed over")
    return None, passed


def bring_best_here(checkpoint: Path) -> None:
    """Names the best checkpoint in ``checkpoint``'s state where it lies now, beside it.

    Trainer writes its path as the run saw it: relative to another working directory, or before the folder was moved.
    It would look there, find nothing or another run's, and forget which one was the best. One that is not beside
    ``checkpoint`` is left as it is.
    """
    path = checkpoint / _STATE
    state = json.loads(path.read_text(encoding="utf-8"))
    named = state.get("best_model_checkpoint")
    if named is None or not (here := checkpoint.parent / Path(named).name).is_dir() or str(here) == named:
        return
    draft = path.with_name(f"{_STATE}.part")
    draft.write_text(json.dumps(state | {"best_model_checkpoint": str(here)}, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def write_error(folder: Path, error: Exception) -> CheckpointError:
    """The one error for a checkpoint that could not be written, whatever library met it."""
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    last, _ = last_checkpoint(folder)
    kept = f"{last} is whole" if last is not None else "no checkpoint of this stage is there yet"
    cause = " ".join(str(error).split())
    return CheckpointError(
        f"a checkpoint could not be written in {folder}: {cause}; {free / 2**20:.0f} MB are free there; {kept}; mend "
        "that and give the same command again: it goes on from there"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.1f} MB"


def room_warning(folder: Path, model: nn.Module, save_total_limit: int | None, parts: int) -> str | None:
    """A line where the disk may be too small for a run of ``parts`` parts, else None.

    A checkpoint holds the weights and two numbers more for each (AdamW); a part keeps ``save_total_limit`` of them (the
    best one is among these), one more while it is written, and its own weights.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    needed = weights * (1 + 3 * ((save_total_limit or 1) + 1)) * parts
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free >= needed:
        return None
    return (
        f"{there} has {_size(free)} free; this run may need {_size(needed)} for its checkpoints; give "
        "another --output_dir, or a lower --save_total_limit"
    )
