"""The GLUE tasks: columns, label names, metric, and where their files are.

`load_task` reads a folder of GLUE-style ``.tsv[.gz]`` files, or the hub through the optional `datasets` package. Test
splits
are refused: their labels are not public.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dynabert.data.drugreview import TASK as DRUGREVIEW
from dynabert.data.drugreview import read_drugreview
from dynabert.data.examples import Examples
from dynabert.data.rows import Row, RowReader
from dynabert.data.tables import BadRows, Columns, build_examples, skipped_rows

HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True)
class Task:
    """What a task is: where its columns are and what is reported.

    Attributes:
        name: Hugging Face's name of the task.
        folders: names that the task's folder may have.
        text, second, label: columns in the .tsv files (second is None for single texts).
        label_values: class labels as written in the files, in the order of the model's outputs; empty for regression.
        label_names: names of those classes.
        metric: the score that is reported (GLUE's selection metric).
        hub_columns: text, second text and label in the hub's tables.
        splits: split name to the file's stem.
    """

    name: str
    folders: tuple[str, ...]
    text: str
    second: str | None
    label: str
    label_values: tuple[str, ...]
    label_names: tuple[str, ...]
    metric: str
    hub_columns: tuple[str, str | None, str]
    splits: tuple[tuple[str, str], ...] = (("train", "train"), ("validation", "dev"))


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "sst2",
            ("SST-2", "SST2", "sst2", "sst-2"),
            "sentence",
            None,
            "label",
            _BINARY,
            ("negative", "positive"),
            "accuracy",
            ("sentence", None, "label"),
        ),
        Task(
            "cola",
            ("CoLA", "cola"),
            "sentence",
            None,
            "label",
            _BINARY,
            ("unacceptable", "acceptable"),
            "matthews_correlation",
            ("sentence", None, "label"),
        ),
        Task(
            "mrpc",
            ("MRPC", "mrpc"),
            "#1 String",
            "#2 String",
            "Quality",
            _BINARY,
            ("not_equivalent", "equivalent"),
            "accuracy",
            ("sentence1", "sentence2", "label"),
        ),
        Task(
            "rte",
            ("RTE", "rte"),
            "sentence1",
            "sentence2",
            "label",
            _ENTAILMENT,
            _ENTAILMENT,
            "accuracy",
            ("sentence1", "sentence2", "label"),
        ),
        Task(
            "stsb",
            ("STS-B", "STSB", "stsb", "sts-b"),
            "sentence1",
            "sentence2",
            "score",
            (),
            (),
            "spearman",
            ("sentence1", "sentence2", "label"),
        ),
        Task(
            "qnli",
            ("QNLI", "qnli"),
            "question",
            "sentence",
            "label",
            _ENTAILMENT,
            _ENTAILMENT,
            "accuracy",
            ("question", "sentence", "label"),
        ),
        Task(
            "qqp",
            ("QQP", "QQP-subset", "qqp"),
            "question1",
            "question2",
            "is_duplicate",
            _BINARY,
            ("not_duplicate", "duplicate"),
            "accuracy",
            ("question1", "question2", "label"),
        ),
        Task(
            "wnli",
            ("WNLI", "wnli"),
            "sentence1",
            "sentence2",
            "label",
            _BINARY,
            _ENTAILMENT[::-1],
            "accuracy",
            ("sentence1", "sentence2", "label"),
        ),
        Task(
            "mnli",
            ("MNLI", "mnli"),
            "sentence1",
            "sentence2",
            "gold_label",
            _MNLI,
            _MNLI,
            "accuracy",
            ("premise", "hypothesis", "label"),
            (("train", "train"), ("validation_matched", "dev_matched"), ("validation_mismatched", "dev_mismatched")),
        ),
    )
}


def task_names() -> tuple[str, ...]:
    """Every name that `load_task` takes."""
    return (*TASKS, DRUGREVIEW)


def task_metric(task_name: str) -> str:
    """The metric that a task is reported in."""
    name = _task_key(task_name)
    return "accuracy" if name == DRUGREVIEW else TASKS[name].metric


def load_task(
    task_name: str, split: str = "validation", *, data_dir: str | Path | None = None, bad_rows: BadRows = "error"
) -> Examples:
    """Read one split of a named task.

    Args:
        task_name: one of `task_names`; case and hyphens do not matter (``SST-2`` is ``sst2``).
        split: ``"train"`` or ``"validation"`` (``"dev"`` means the same). MNLI has ``"validation_matched"`` (also under
            the name ``"validation"``) and ``"validation_mismatched"``.
        data_dir: folder that holds the task's folder, or the task's folder itself. None: the hub, through `datasets`.
            The drug reviews come from their own package and take none.
        bad_rows: see `read_examples`.

    Raises:
        ValueError: unknown task or split; another task's folder; a bad row (file, line, what was found).
        FileNotFoundError: the folder or the split's file is not there.
        ImportError: no ``data_dir`` and `datasets` is not installed, or the drug reviews' package is missing.
        RuntimeError: the hub could not be read.
    """
    name = _task_key(task_name)
    if name == DRUGREVIEW:
        if data_dir is not None:
            raise ValueError(
                f"load_task: {DRUGREVIEW} comes from its own package; got data_dir {str(data_dir)!r}; leave data_dir "
                "out"
            )
        return read_drugreview("validation" if split == "dev" else split)
    task = TASKS[name]
    split = _split_key(task, split)
    if data_dir is None:
        return _load_hub(task, split)
    path = _find_file(task, split, Path(data_dir))
    skipped = skipped_rows(bad_rows)
    with RowReader(path, on_bad_row=skipped) as reader:
        columns, rows = _task_rows(task, reader)
        wanted = Columns(task.text, task.second, task.label)
        absent = [column for column in wanted.names() if column not in columns]
        if absent:
            raise ValueError(
                f"{path}: the columns of {task.name} are not all there; missing {', '.join(absent)}; found "
                f"{', '.join(columns)}"
            )
        found = build_examples(
            reader,
            rows,
            wanted,
            label_names=task.label_values or None,
            problem="classification" if task.label_values else "regression",
            skipped=skipped,
        )
    if skipped is not None:
        skipped.warn(str(path))
    if not task.label_names:
        return found
    return Examples(
        found.texts,
        found.seconds,
        found.labels,
        task.label_names,
        str(path),
        wanted.names(),
        found.skipped,
        lines=found.lines,
    )


def plain_task_name(task_name: str) -> str:
    """A task's name as `TASKS` writes it, known or not: case, hyphens and underscores do not matter."""
    if not isinstance(task_name, str):
        raise TypeError(f"load_task: a task is given by its name; got {task_name!r} ({type(task_name).__name__})")
    return task_name.lower().replace("-", "").replace("_", "")


def _task_key(task_name: str) -> str:
    name = plain_task_name(task_name)
    if name not in task_names():
        raise ValueError(
            f"load_task: no task of this name; got {task_name!r}; allowed: {', '.join(task_names())}; read other "
            "data with read_examples"
        )
    return name


def _split_key(task: Task, split: str) -> str:
    names = [name for name, _ in task.splits]
    wanted = split.replace("dev", "validation") if split.startswith("dev") else split
    if wanted == "validation" and wanted not in names:
        wanted = names[1]
    if wanted not in names:
        why = "; the test labels of GLUE are not public" if split.startswith("test") else ""
        raise ValueError(f"load_task: {task.name} has no split {split!r}{why}; allowed: {', '.join(names)}")
    return wanted


def _find_file(task: Task, split: str, data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise FileNotFoundError(
            f"load_task: there is no folder {data_dir}; give the folder with the GLUE tasks as data_dir"
        )
    here = data_dir.resolve().name
    for other in TASKS.values():
        if other is not task and here in other.folders:
            raise ValueError(
                f"load_task: {data_dir} is the folder of {other.name}, not of {task.name}; give the folder of "
                f"{task.name}, or the one above it, as data_dir"
            )
    stem = dict(task.splits)[split]
    folders = [data_dir / name for name in task.folders if (data_dir / name).is_dir()] or [data_dir]
    for folder in folders:
        for name in (f"{stem}.tsv", f"{stem}.tsv.gz"):
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(
        f"load_task: no {stem}.tsv or {stem}.tsv.gz of {task.name} under {data_dir}; looked in "
        f"{', '.join(str(f) for f in folders)}; "
        f"the task's folder may be called {', '.join(task.folders)}"
    )


def _task_rows(task: Task, reader: RowReader) -> tuple[tuple[str, ...], Iterator[Row]]:
    """Columns and rows. CoLA's own files have no header line: then the first line is a row of its four columns."""
    first = reader.columns
    if task.name == "cola" and len(first) == 4 and first[1] in task.label_values:
        columns = ("source", "label", "notation", "sentence")
        rest = (Row(row.line, dict(zip(columns, row.values.values(), strict=True))) for row in reader)
        return columns, itertools.chain([Row(1, dict(zip(columns, first, strict=True)))], rest)
    return first, iter(reader)


def _load_hub(task: Task, split: str) -> Examples:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"load_task: {task.name} without data_dir is read from the hub, which needs the package datasets; "
            "pip install datasets, or give a folder of GLUE .tsv files as data_dir"
        ) from error
    try:
        table = load_dataset(HUB_NAME, task.name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"load_task: {task.name} could not be read from the hub ({type(error).__name__}: {error}); give a folder "
            "of GLUE .tsv files as data_dir"
        ) from error
    text, second, label = task.hub_columns
    labels = table[label]
    return Examples(
        texts=tuple(table[text]),
        seconds=None if second is None else tuple(table[second]),
        labels=tuple(int(v) for v in labels) if task.label_names else tuple(float(v) for v in labels),
        label_names=task.label_names,
        source=f"{HUB_NAME} {task.name} {split}",
        columns=tuple(name for name in task.hub_columns if name is not None),
    )
