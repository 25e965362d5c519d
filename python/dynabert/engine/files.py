"""Answering for every row of a file, window by window, so that a file of any length fits in memory."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tqdm.auto import tqdm

from dynabert.configuration.cascade import Cascade, answering_text
from dynabert.data.examples import MULTI_LABEL, TextError
from dynabert.data.rows import Row, RowReader, shown, table_format
from dynabert.data.tables import find_columns, row_text
from dynabert.engine.limits import checked_count
from dynabert.engine.prediction import Prediction
from dynabert.engine.requests import listed_subnets

if TYPE_CHECKING:
    from dynabert.configuration import Subnet
    from dynabert.engine.inference import InferenceEngine

PART = ".part"  # ends the name of what is not complete
WRITABLE = ("tsv", "csv", "jsonl")
_JOIN = "|"  # between the labels of a multi-label answer in a .tsv or .csv
ANSWER_COLUMNS = ("predicted_label", "predicted_score")


@dataclass(frozen=True)
class FileSummary:
    """What `predict_file` or `embed_file` did: rows answered, sub-networks used, where the answers are, and the time it
    took."""

    rows: int
    subnets: tuple[str, ...]
    path: str
    seconds: float


def predict_file(
    engine: InferenceEngine,
    path_in: str | Path,
    path_out: str | Path,
    *,
    subnets: Subnet | Cascade | Sequence[Subnet | Cascade] = None,
    text_column: str | None = None,
    second_text_column: str | None = None,
    truncate: bool = False,
    overwrite: bool = False,
    lookahead: int = 1024,
    progress: bool | None = None,
) -> FileSummary:
    """Answer for every row of a table and write the rows, in order, with their answers beside them.

    The output has the input's columns, then ``predicted_label`` and ``predicted_score`` (for ``.jsonl`` also
    ``predicted_scores``). The labels of a multi-label model are a list in .jsonl, else joined by ``|``. With several
    sub-networks each answers every row, and the columns end in ``@w0.5-d0.75``. A .tsv or .csv has the columns of the
    first row; a list, an object, true and false stand there as JSON, null as nothing. Dates, times and decimals of a
    .parquet are written as text. The file appears under its name when it is complete; after an error it is not there.

    Args:
        engine: the engine that answers.
        path_in: .txt (a text in each line), .tsv, .csv, .jsonl (each also .gz) or .parquet.
        path_out: .tsv, .csv or .jsonl, each also .gz.
        subnets: one sub-network or cascade, or a list of them; None is the whole network.
        text_column, second_text_column: see `dynabert.data.find_columns`.
        truncate: cut texts that are too long, else refuse them.
        overwrite: False refuses an output file that exists.
        lookahead: rows held at a time.
        progress: see `InferenceEngine.predict`.

    Raises:
        ValueError: a bad row (file, line, what was found); a text that is too long; a column that would be written
            twice; a value that the file cannot hold (bytes; in a .tsv a tab); a row of a .jsonl with a key that is no
            column of a .tsv or .csv.
        FileExistsError, FileNotFoundError: the output is there, the input or the output's folder is not.
        OSError: the output cannot be written.
    """
    started = time.perf_counter()
    kind = table_format(path_out)
    target = Path(path_out)
    if kind not in WRITABLE:
        raise ValueError(
            f"predict_file: cannot write {target.name!r}; allowed: .tsv, .csv or .jsonl, each also with .gz"
        )
    check_target("predict_file", target, overwrite)
    checked_count("predict_file", "lookahead", lookahead)
    many = listed_subnets(subnets)
    if not many:
        raise ValueError(
            "predict_file: the list of sub-networks is empty; give at least one, or None for the whole network"
        )
    names = [answering_text(subnet) for subnet in many]
    if len(set(names)) < len(names):
        raise ValueError(f"predict_file: a sub-network is named twice in {', '.join(names)}; name each once")
    endings = [f"@{name}" for name in names] if len(names) > 1 else [""]
    part = target.with_name(target.name + PART)
    count = 0
    with RowReader(path_in) as reader:
        columns = find_columns(
            reader.columns, text_column=text_column, second_text_column=second_text_column, source=reader.name
        )
        writer = _Writer(
            part,
            kind,
            reader.columns,
            endings,
            reader.name,
            compressed=target.name.endswith(".gz"),
            many=engine.problem_type == MULTI_LABEL,
        )
        try:
            with writer, tqdm(unit=" rows", disable=None if progress is None else not progress) as bar:
                for rows in row_windows(iter(reader), lookahead):
                    texts: list[Any] = [row_text(reader, row, columns.text) for row in rows]
                    if columns.second is not None:
                        texts = [
                            (text, row_text(reader, row, columns.second)) for text, row in zip(texts, rows, strict=True)
                        ]
                    answers = _answer(engine, texts, many, truncate, reader, rows)
                    for index, row in enumerate(rows):
                        writer.write(row, [found[index] for found in answers])
                    count += len(rows)
                    bar.update(len(rows))
            if count == 0:
                raise ValueError(f"{reader.name}: no rows in it; at least one is needed")
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return FileSummary(count, tuple(names), str(target), time.perf_counter() - started)


def check_target(call: str, target: Path, overwrite: bool) -> None:
    """``OSError`` where a file cannot be written under this name: a folder, a folder that is not there, or, unless
    ``overwrite``, a file that is."""
    if target.is_dir():
        raise IsADirectoryError(f"{call}: {target} is a folder; give the name of a file in it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{call}: there is no folder {target.parent}; make it, or give another path")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{call}: {target} exists; give another name or ask for overwriting")


def row_windows(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """So many rows at a time."""
    while window := list(itertools.islice(rows, size)):
        yield window


def _answer(
    engine: InferenceEngine, texts: list[Any], subnets: list[Any], truncate: bool, reader: RowReader, rows: list[Row]
) -> list[list[Prediction]]:
    """Answers of each sub-network."""
    with errors_named_by_line(reader, rows):
        return engine.predict_each(texts, subnets, truncate=truncate, progress=False)


@contextmanager
def errors_named_by_line(reader: RowReader, rows: list[Row]) -> Iterator[None]:
    """What is wrong with the texts of these rows is said with the file and the line."""
    try:
        yield
    except TextError as error:
        line = rows[error.index].line
        raise ValueError(f"{reader.name}: {error.named(f'the text of line {line}')}") from error
    except ValueError as error:
        raise ValueError(f"{reader.name}, lines {rows[0].line} to {rows[-1].line}: {error}") from error


@contextmanager
def errors_of_the_target(draft: Path) -> Iterator[None]:
    """An ``OSError`` names the file that the caller named, not the draft beside it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(draft).removesuffix(PART)) from error


class _Writer:
    """Writes rows with their answers to a .tsv, .csv or .jsonl file."""

    def __init__(
        self,
        path: Path,
        kind: str,
        columns: tuple[str, ...],
        endings: list[str],
        source: str,
        *,
        compressed: bool,
        many: bool,
    ) -> None:
        self._kind = kind
        self._columns = columns
        self._endings = endings
        self._source = source
        self._many = many
        added = [column + ending for ending in endings for column in ANSWER_COLUMNS]
        if kind == "jsonl":
            added += [f"predicted_scores{ending}" for ending in endings]
        self._added = frozenset(added)
        clash = [column for column in added if column in columns]
        if clash:
            raise ValueError(f"predict_file: {source} already has a column {clash[0]!r}; rename it")
        with errors_of_the_target(path):
            raw: Any = gzip.open(path, "wb") if compressed else path.open("wb")  # noqa: SIM115  (closed by __exit__)
        self._stream: IO[str] = io.TextIOWrapper(raw, encoding="utf-8", newline="")
        self._csv = csv.writer(self._stream) if kind == "csv" else None
        self._header = [*columns, *added]

    def __enter__(self) -> _Writer:
        try:
            if self._kind != "jsonl":
                self._put(self._header, 1)
        except ValueError:
            self._stream.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, row: Row, answers: list[Prediction]) -> None:
        """One row: its own values, then the answer of each sub-network."""
        self._check_keys(row)
        if self._kind == "jsonl":
            record = dict(row.values)
            for ending, answer in zip(self._endings, answers, strict=True):
                # A multi-label model's answer is always a list, also of one label: so it can be read back as labels.
                record[f"predicted_label{ending}"] = list(answer.labels) if self._many else answer.label
                record[f"predicted_score{ending}"] = answer.score
                record[f"predicted_scores{ending}"] = answer.scores
            self._put_json(record, row.line)
            return
        fields = [row.values.get(column) for column in self._columns]
        for answer in answers:
            if self._many and any(_JOIN in label for label in answer.labels):
                raise ValueError(
                    f"{self._source}, line {row.line}: the labels {answer.labels} cannot be joined by {_JOIN!r}, "
                    "which is part of one; write .jsonl"
                )
            fields += [_JOIN.join(answer.labels), format(answer.score, ".6g")]
        try:
            texts = [_field(field) for field in fields]
        except _NoText as error:
            raise ValueError(f"{self._source}, line {row.line}: {error}") from error
        self._put(texts, row.line)

    def _check_keys(self, row: Row) -> None:
        """Rows of a .jsonl need not have the keys of the first, which are all that is known before."""
        clash = self._added.intersection(row.values)
        if clash:
            raise ValueError(f"{self._source}, line {row.line}: the row has a {min(clash)!r} already; rename it")
        if self._kind == "jsonl":
            return
        more = [key for key in row.values if key not in self._columns]
        if more:
            raise ValueError(
                f"{self._source}, line {row.line}: the key {more[0]!r} is not in the first row, so the .{self._kind} "
                "has no column for it; give it to the first row too (null will do), or write .jsonl"
            )

    def _put_json(self, record: dict[str, Any], line: int) -> None:
        try:
            text = json.dumps(record, ensure_ascii=False, default=_text)
        except _NoText as error:
            raise ValueError(f"{self._source}, line {line}: {error}") from error
        try:
            self._stream.write(text + "\n")
        except UnicodeEncodeError:  # half of a pair, which only an escape can say: as it came
            self._stream.write(json.dumps(record, default=_text) + "\n")

    def _put(self, fields: list[str], line: int) -> None:
        try:
            self._put_fields(fields, line)
        except UnicodeEncodeError as error:
            near = error.object[max(0, error.start - 20) : error.end + 20]
            raise ValueError(
                f"{self._source}, line {line}: no valid Unicode in {near!a} (half of a pair), which a .{self._kind} "
                "cannot hold; write .jsonl"
            ) from error

    def _put_fields(self, fields: list[str], line: int) -> None:
        if self._csv is not None:
            self._csv.writerow(fields)
            return
        for field in fields:
            if "\t" in field or "\n" in field or "\r" in field:
                raise ValueError(
                    f"{self._source}, line {line}: a .tsv cannot hold the tab or line end in {field[:60]!r}; write "
                    ".csv or .jsonl"
                )
        self._stream.write("\t".join(fields) + "\n")


class _NoText(ValueError):
    """A value that no text stands for."""


def _text(value: Any) -> str:
    """A date, time or decimal of a parquet file, for which JSON has no form."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise _NoText(f"a value is bytes, {shown(value)}; allowed: text, numbers, dates; leave its column out")
    return str(value)


def _field(value: Any) -> str:
    """A value as a .tsv or .csv holds it."""
    if value is None:
        return ""
    if isinstance(value, (bool, dict, list)):
        return json.dumps(value, ensure_ascii=False, default=_text)
    return _text(value)
