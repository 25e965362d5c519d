"""Rows of a text table, read one at a time: .txt, .tsv, .csv, .jsonl (each also .gz) and .parquet.

A ``.tsv`` file is split on tabs and nothing else: a quotation mark is plain text, as in GLUE's files, where quoting
would swallow lines. A ``.csv`` file follows RFC 4180 (quoted fields may hold commas and line ends). Every refusal names
the file and the line.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

FORMATS = ("txt", "tsv", "csv", "jsonl", "parquet")
_SUFFIXES = {".txt": "txt", ".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

# The csv module stops at 131072 characters, and texts can be longer. Not without bound: after a broken quote the rest
# of the file is one field.
FIELD_LIMIT = 2**24

BadRow = Callable[[ValueError], None]


class Row(NamedTuple):
    """One record: the line it starts at (1-based; in a parquet file its number) and its values by column name."""

    line: int
    values: dict[str, Any]


def table_format(path: str | Path) -> str:
    """Format of a file by its name (a trailing ``.gz`` is looked through); ValueError for a name that says none,
    TypeError for what is no path."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"read_rows: a file is given by its path; got {path!r} ({type(path).__name__})")
    name = Path(path).name.lower()
    stem = name[:-3] if name.endswith(".gz") else name
    found = _SUFFIXES.get(Path(stem).suffix)
    if found is None or (found == "parquet" and name.endswith(".gz")):
        raise ValueError(
            f"read_rows: the file name does not say its format; got {Path(path).name!r}; allowed: .txt, .tsv, .csv, "
            ".jsonl "
            "(each also with .gz) or .parquet; rename the file"
        )
    return found


class RowReader:
    """An open table: its ``columns``, then its rows by iteration, once, in constant memory.

    Args:
        path: the file; its name says the format (see `table_format`).
        on_bad_row: called with the error of each row that does not fit, which is then left out. None: the error is
            raised.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown format, empty file, doubled column name; while iterating, a row that does not fit.
        ImportError: a parquet file where pyarrow is not installed.
    """

    def __init__(self, path: str | Path, *, on_bad_row: BadRow | None = None) -> None:
        if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
            raise IsADirectoryError(f"read_rows: {path} is a folder; give the path of a table in it")
        self.format = table_format(path)
        self.path = Path(path)
        self.name = str(path)
        self._on_bad_row = on_bad_row
        self._stack = ExitStack()
        if not self.path.is_file():
            raise FileNotFoundError(f"read_rows: there is no file {self.name}; give the path of a table")
        try:
            if self.format == "parquet":
                self.columns, self._rows = self._open_parquet()
            else:
                opener = gzip.open if self.path.name.lower().endswith(".gz") else open
                stream = cast("Iterable[bytes]", self._stack.enter_context(opener(self.path, "rb")))
                self.columns, self._rows = self._open_lines(stream)
        except BaseException:
            self._stack.close()
            raise

    @classmethod
    def from_lines(
        cls,
        lines: Iterable[bytes],
        *,
        table_format: str,
        name: str,
        on_bad_row: BadRow | None = None,
        delimiter: str = ",",
    ) -> RowReader:
        """A reader over lines of bytes that are already at hand (a member of an archive), in the named format."""
        self = cls.__new__(cls)
        self.path, self.name, self.format, self._on_bad_row, self._stack = (
            Path(name),
            name,
            table_format,
            on_bad_row,
            ExitStack(),
        )
        self.columns, self._rows = self._open_lines(lines, delimiter=delimiter)
        return self

    def __enter__(self) -> RowReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    def close(self) -> None:
        """Close the file; iterating further is not allowed."""
        self._stack.close()

    def bad(self, line: int, what: str) -> ValueError:
        """The error for a row of this file: file, line and what is wrong with it."""
        return ValueError(f"{self.name}, line {line}: {what}")

    def refuse(self, line: int, what: str) -> None:
        """Raise the error for a row, or hand it to ``on_bad_row`` when the caller gave one."""
        error = self.bad(line, what)
        if self._on_bad_row is None:
            raise error
        self._on_bad_row(error)

    def _open_lines(self, raw: Iterable[bytes], *, delimiter: str = ",") -> tuple[tuple[str, ...], Iterator[Row]]:
        lines = self._decode(raw)
        if self.format == "txt":
            return ("text",), self._text_rows(lines)
        if self.format == "jsonl":
            return self._open_jsonl(lines)
        if self.format == "tsv":
            return self._open_tsv(lines)
        return self._open_csv(lines, delimiter)

    def _decode(self, raw: Iterable[bytes]) -> Iterator[tuple[int, str]]:
        """(line number, text with its line end); a byte order mark at the very start is dropped."""
        stream = iter(raw)
        number = 0
        while True:
            number += 1
            try:
                line = next(stream)
            except StopIteration:
                return
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise self.bad(number, f"the compressed data is damaged ({error})") from error
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise self.bad(
                    number,
                    f"not UTF-8 (byte {line[error.start]:#04x} at column {error.start + 1}); convert the file to UTF-8",
                ) from error

    def _content(self, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        """Lines without their line end. Blank lines end a file; one before more text is refused."""
        blank = 0
        for number, line in lines:
            text = line.removesuffix("\n").removesuffix("\r")
            if not text.strip(" \r"):
                blank = blank or number
                continue
            if blank:
                self.refuse(blank, "the line is blank, and more text follows; remove it")
                blank = 0
            yield number, text

    def _text_rows(self, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
        for number, text in self._content(lines):
            yield Row(number, {"text": text})

    def _open_tsv(self, lines: Iterator[tuple[int, str]]) -> tuple[tuple[str, ...], Iterator[Row]]:
        first = next(lines, None)
        if first is None:
            raise ValueError(f"{self.name}: the file is empty; a header line with the column names is needed")
        # "\r\n" ends a line only in a file whose header does: in GLUE's files a "\r" inside a field is text.
        end = "\r\n" if first[1].endswith("\r\n") else "\n"
        columns = self._check_columns(tuple(first[1].removesuffix(end).split("\t")))
        return columns, self._tsv_rows(lines, columns, end)

    def _tsv_rows(self, lines: Iterator[tuple[int, str]], columns: tuple[str, ...], end: str) -> Iterator[Row]:
        blank = 0
        for number, line in lines:
            text = line.removesuffix(end).removesuffix("\n")
            if not text:
                blank = blank or number
                continue
            if blank:
                self.refuse(blank, "the line is blank, and more rows follow; remove it")
                blank = 0
            fields = text.split("\t")
            if len(fields) != len(columns):
                self.refuse(
                    number,
                    f"{len(fields)} fields between tabs, the header has {len(columns)} ({', '.join(columns)}); found "
                    f"{_short(text)}",
                )
                continue
            yield Row(number, dict(zip(columns, fields, strict=True)))

    def _open_csv(self, lines: Iterator[tuple[int, str]], delimiter: str) -> tuple[tuple[str, ...], Iterator[Row]]:
        csv.field_size_limit(max(csv.field_size_limit(), FIELD_LIMIT))  # of the process; never lowered
        reader = csv.reader((text for _, text in lines), delimiter=delimiter, strict=True)
        try:
            header = next(reader)
        except StopIteration:
            raise ValueError(f"{self.name}: the file is empty; a header line with the column names is needed") from None
        except csv.Error as error:
            raise self.bad(1, _csv_fault(error)) from error
        columns = self._check_columns(tuple(header))

        def rows() -> Iterator[Row]:
            blank = 0
            while True:
                start = reader.line_num + 1
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    # The reader cannot find the next record after a broken quote: never skipped.
                    raise self.bad(start, _csv_fault(error)) from error
                if not fields:
                    blank = blank or start
                    continue
                if blank:
                    self.refuse(blank, "the line is blank, and more rows follow; remove it")
                    blank = 0
                if len(fields) != len(columns):
                    self.refuse(
                        start,
                        f"{len(fields)} fields, the header has {len(columns)} ({', '.join(columns)}); found "
                        f"{_short(delimiter.join(fields))}",
                    )
                    continue
                yield Row(start, dict(zip(columns, fields, strict=True)))

        return columns, rows()

    def _open_jsonl(self, lines: Iterator[tuple[int, str]]) -> tuple[tuple[str, ...], Iterator[Row]]:
        content = self._content(lines)
        refused = 0

        def rows() -> Iterator[Row]:
            nonlocal refused
            for number, text in content:
                refused += 1
                try:
                    values = _JSON.decode(text)
                except (ValueError, RecursionError) as error:
                    self.refuse(
                        number,
                        f"not a JSON object ({_json_fault(error)}); found {_short(text)}; allowed: one object in each "
                        "line",
                    )
                    continue
                if not isinstance(values, dict):
                    self.refuse(
                        number,
                        f"not a JSON object but {type(values).__name__}; found {_short(text)}; allowed: one object in "
                        "each line",
                    )
                    continue
                refused -= 1
                yield Row(number, values)

        found = rows()
        first = next(found, None)
        if first is None:
            lack = "the file is empty" if not refused else f"none of the {refused} lines is a JSON object"
            raise ValueError(f"{self.name}: {lack}; one JSON object in each line is needed")

        def chained() -> Iterator[Row]:
            yield first
            yield from found

        return tuple(first.values), chained()

    def _open_parquet(self) -> tuple[tuple[str, ...], Iterator[Row]]:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise ImportError(
                f"read_rows: {self.name} is a parquet file and pyarrow is not installed; pip install pyarrow, or "
                "convert the file to .csv or .jsonl"
            ) from error
        try:
            table = parquet.ParquetFile(self.path)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise ValueError(f"{self.name}: not a readable parquet file ({error})") from error
        self._stack.callback(table.close)
        columns = self._check_columns(tuple(table.schema_arrow.names))

        def rows() -> Iterator[Row]:
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)

        return columns, rows()

    def _check_columns(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        if not any(columns):
            raise self.bad(1, "the header names no column; the column names are needed there")
        doubled = sorted({name for name in columns if columns.count(name) > 1})
        if doubled:
            raise self.bad(1, f"the header names a column twice ({', '.join(map(repr, doubled))}); rename one")
        return columns


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ``ValueError`` where a key is there twice, of which json keeps the last in silence."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {shown(next(name for name in names if names.count(name) > 1))} is there twice")
    return values


def _fraction(text: str) -> float:
    """A JSON number with a point or an exponent; ``ValueError`` where a float would be infinite, or zero, in its
    place."""
    value = float(text)
    digits = text.lower().partition("e")[0]
    if math.isinf(value) or (value == 0.0 and any(digit in "123456789" for digit in digits)):
        raise ValueError(f"the number {shown(text)} is too {'small' if value == 0.0 else 'large'} for a 64-bit float")
    return value


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_float=_fraction)


def _csv_fault(error: csv.Error) -> str:
    """What the csv module refuses, in words of the file."""
    told = str(error)
    if "new-line character" in told:
        return "not valid CSV (a line ends in a carriage return alone); save the file with the line end LF or CRLF"
    if "unexpected end of data" in told:
        return "not valid CSV (a quotation mark is opened and not closed before the file ends); close it, or double it"
    return f"not valid CSV ({told})"


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "lists or objects within each other, too many"
    # Else of `_object`, or of int(): that one advises to change the interpreter's limit.
    return "a number has too many digits" if "int_max_str_digits" in str(error) else str(error)


def _short(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names for a message: in quotation marks, and no more of them than one reads."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def shown(value: object, limit: int = 80) -> str:
    """A value for a message: as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
