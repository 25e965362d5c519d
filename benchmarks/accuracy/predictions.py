"""What every sub-network answers, example by example: ``python -m benchmarks.accuracy.predictions CELL --task_name T``.

A cell is the folder of one task and seed. Logits of the teacher and of every sub-network after each variant's last part
go to ``predictions/VARIANT.npz`` there (``--out``: elsewhere). The campaign does this when a variant is complete; the
command does it for a run that is there already. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .variants import RECIPES, VARIANTS, is_apart, split_name

STAGES = ("width", "depth", "final")
TEACHER_PART = "teacher"
SAME = 0.01  # of a score, when it is taken again


@dataclass(frozen=True)
class Predictions:
    """Logits, (N, labels) float32, by the name of the sub-network, in the order of the dev split; and its labels."""

    labels: npt.NDArray[Any]
    metric: str
    logits: dict[str, npt.NDArray[np.float32]]

    @property
    def regression(self) -> bool:
        """Whether the labels are numbers."""
        return self.labels.dtype.kind == "f"

    def save(self, path: Path) -> None:
        """All of it or nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part.npz")
        arrays: dict[str, Any] = {f"logits/{name}": values for name, values in self.logits.items()}
        np.savez_compressed(aside, labels=self.labels, metric=np.array(self.metric), **arrays)
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """From a file; ``ValueError`` where it is not whole."""
        try:
            with np.load(path, allow_pickle=False) as found:
                logits = {k.removeprefix("logits/"): found[k] for k in found.files if k.startswith("logits/")}
                return cls(found["labels"], str(found["metric"]), logits)
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"accuracy: {path} holds no predictions ({error}); delete it") from error


def teacher_folder(cell: Path) -> Path:
    """Where the cell's teacher is: a folder of its own, or (runs of ``python -m benchmarks.accuracy``) the method's."""
    own = cell / "teacher"
    return own if own.is_dir() else cell / "dynabert" / "teacher"


def complete(folder: Path) -> dict[str, Any] | None:
    """What a finished part says, or None."""
    path = folder / "complete.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def variants_there(cell: Path) -> list[str]:
    """The variants that have something finished, in the order of their names' table."""
    found = []
    for path in cell.iterdir():
        try:
            recipe, variant = split_name(path.name)
        except ValueError:
            continue
        if last_parts(path):
            found.append((list(RECIPES).index(recipe), list(VARIANTS).index(variant), path.name))
    return [name for _, _, name in sorted(found)]


def last_parts(folder: Path) -> dict[Path, tuple[str, ...]]:
    """Folder and sub-networks of the parts that a variant ends with; empty where it is not finished."""
    if is_apart(folder.name):
        parts = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    else:
        # A variant is finished with its results, which are written last.
        done = [folder / name for name in STAGES if complete(folder / name) is not None]
        parts = done[-1:] if (folder / "results.json").is_file() else []
    found = {}
    for part in parts:
        content = complete(part)
        if content is not None:
            found[part] = tuple(row["subnet"] for row in content["rows"])
    return found


def predict(
    parts: dict[Path, tuple[str, ...]], tokenizer: Path, task: str, data_dir: Path, max_seq_length: int = 128
) -> Predictions:
    """The logits of these parts' sub-networks on the task's dev split.

    Raises:
        ValueError: a score that is not the one that the part was left with: another dev split, or other weights.
    """
    from dynabert.cli.options import encode
    from dynabert.data import load_task, task_metric
    from dynabert.engine import load_model, load_tokenizer
    from dynabert.evaluation import compute_logits, score_logits

    metric = task_metric(task)
    examples = load_task(task, "validation", data_dir=data_dir)
    words = load_tokenizer(tokenizer)
    logits: dict[str, npt.NDArray[np.float32]] = {}
    labels: npt.NDArray[Any] | None = None
    for part, names in parts.items():
        model = load_model(part)
        length = min(max_seq_length, model.config.max_sequence_length)
        encoded = encode(examples, model, words, max_seq_length=length, truncate=True)
        found = compute_logits(model, encoded, names)
        known = {row["subnet"]: row["score"] for row in (complete(part) or {"rows": []})["rows"]}
        for row in score_logits(model, encoded, found, metric=metric):
            if abs(row.score - known[row.subnet]) > SAME:
                raise ValueError(
                    f"accuracy: {row.subnet} of {part} scores {row.score:.4f}, and {known[row.subnet]:.4f} when it was "
                    "trained; give the dev split that it was scored on"
                )
        logits |= {name: values.astype(np.float32) for name, values in found.items()}
        labels = np.asarray(encoded.labels)
    if labels is None:
        raise ValueError("accuracy: no finished part to predict with")
    return Predictions(labels, metric, logits)


def keep_predictions(cell: Path, task: str, data_dir: Path, out: Path | None = None) -> list[Path]:
    """Writes what is missing or older than its part: ``teacher.npz``, and a file for each variant. Returns all."""
    out = cell / "predictions" if out is None else out
    teacher = teacher_folder(cell)
    if complete(teacher) is None:
        raise ValueError(f"accuracy: {cell} has no finished teacher")
    wanted: dict[str, dict[Path, tuple[str, ...]]] = {"teacher": {teacher: ("w1-d1",)}}
    wanted |= {name: last_parts(cell / name) for name in variants_there(cell)}
    files = []
    for name, parts in wanted.items():
        path = out / f"{name}.npz"
        newest = max((part / "complete.json").stat().st_mtime for part in parts)
        if not path.is_file() or path.stat().st_mtime < newest:
            predict(parts, teacher, task, data_dir).save(path)
        files.append(path)
    return files


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``python -m benchmarks.accuracy.predictions``."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.predictions", description="Predictions of a finished run; no training."
    )
    flags.add_argument("cell", type=Path, help="the folder of one task and seed")
    flags.add_argument("--task_name", required=True)
    flags.add_argument("--data_dir", type=Path, required=True, help="folder of GLUE .tsv files")
    flags.add_argument("--out", type=Path, help="where the files go; default: CELL/predictions")
    options = flags.parse_args(argv)
    for path in keep_predictions(options.cell, options.task_name, options.data_dir, options.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
