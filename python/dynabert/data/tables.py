"""The user's own table of texts: which columns hold what, and what kind of labels they are.

Columns. A name given by the caller is taken as it is. Otherwise the header is compared, ignoring case, with
`PAIR_COLUMNS` (both names present: a pair of texts), then with `TEXT_COLUMNS`, and with `LABEL_COLUMNS`. Two candidates
for one place are refused, never guessed.

Labels. All whole numbers: classes, named by the numbers, in numeric order. All numbers, at least one with a point or an
exponent: regression. Otherwise: classes, in alphabetical order. Numbers are written with the digits 0 to 9; those of
other scripts are text. ``label_names`` fixes names and order (use the training set's for the evaluation set); where all
are whole numbers, a label 01 is 1. ``problem`` overrides the kind. A list in the first row: several labels for each
text (`dynabert.data.label_sets`); then every row has a list. In a .tsv or .csv ``label_separator`` cuts a text into
labels.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from dynabert.data.examples import Examples, Labels, check_text
from dynabert.data.label_sets import (
    are_numbers,
    check_known,
    check_length,
    refuse_look_alikes,
    row_label_set,
    type_label_sets,
    warn_of_written_lists,
)
from dynabert.data.rows import Row, RowReader, listed, shown

PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("#1 string", "#2 string"),
)
TEXT_COLUMNS = ("text", "sentence", "review", "content", "body", "comment", "document", "tweet", "message", "question")
LABEL_COLUMNS = (
    "label",
    "labels",
    "gold_label",
    "class",
    "category",
    "target",
    "score",
    "rating",
    "stars",
    "sentiment",
    "quality",
    "is_duplicate",
)

Problem = Literal["auto", "classification", "multi_label", "regression"]
BadRows = Literal["error", "skip"]
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)  # digits of other scripts are names


class Columns(NamedTuple):
    """Names of the columns to read: text, second text or None, label or None."""

    text: str
    second: str | None
    label: str | None

    def names(self) -> tuple[str, ...]:
        """The names that are set, text first, label last."""
        return tuple(name for name in self if name is not None)


class SkippedRows:
    """Counts the bad rows that a reader leaves out, and remembers the first, so that nothing is dropped in silence."""

    def __init__(self) -> None:
        self.count = 0
        self.first: ValueError | None = None

    def __call__(self, error: ValueError) -> None:
        self.count += 1
        self.first = self.first or error

    def warn(self, source: str) -> None:
        """One warning with the number of rows left out and the first reason; nothing when there were none."""
        if self.count:
            warnings.warn(f"{source}: {self.count} bad rows were left out; the first: {self.first}", stacklevel=3)


def skipped_rows(bad_rows: BadRows) -> SkippedRows | None:
    """What takes bad rows, or None where the first is an error; ``ValueError`` for another word."""
    if bad_rows not in get_args(BadRows):
        raise ValueError(f"bad_rows is {bad_rows!r}; allowed: {', '.join(get_args(BadRows))}")
    return SkippedRows() if bad_rows == "skip" else None


def _split_otherwise(columns: Sequence[str]) -> str:
    """A word where one column's name looks like a whole header that another sign splits; else empty."""
    sign = next((sign for sign in (";", "\t", "|") if len(columns) == 1 and sign in columns[0]), None)
    return (
        "" if sign is None else f"the header has {sign!r} in it: split a .csv file at commas, a .tsv file at tabs, or "
    )


def find_columns(
    columns: Sequence[str],
    *,
    text_column: str | None = None,
    second_text_column: str | None = None,
    label_column: str | None = None,
    source: str = "table",
) -> Columns:
    """Choose the columns by the rule of this module; the label is None when no column has a known name.

    Args:
        columns: the table's column names.
        text_column, second_text_column, label_column: names that override the rule. With ``text_column`` given and
            ``second_text_column`` not, the texts are single.
        source: name of the table, for messages.

    Raises:
        ValueError: a given name is not there; no text column is known; two candidates for one place.
    """
    for flag, name in (
        ("text_column", text_column),
        ("second_text_column", second_text_column),
        ("label_column", label_column),
    ):
        if name is not None and name not in columns:
            raise ValueError(f"{source}: {flag} {name!r} is not in the table; its columns are {listed(columns)}")
    if second_text_column is not None and text_column is None:
        raise ValueError(
            f"{source}: second_text_column {second_text_column!r} was given without text_column; name both"
        )
    lowered = {name.lower(): name for name in reversed(columns)}
    second = second_text_column
    if text_column is not None:
        text = text_column
    else:
        pairs = [(lowered[a], lowered[b]) for a, b in PAIR_COLUMNS if a in lowered and b in lowered]
        taken = {name for pair in pairs for name in pair}
        singles = [lowered[name] for name in TEXT_COLUMNS if name in lowered and lowered[name] not in taken]
        candidates: list[tuple[str, ...]] = [*pairs, *((name,) for name in singles)]
        if not candidates:
            raise ValueError(
                f"{source}: no column has a known name for the text; its columns are {listed(columns)}; known names "
                "are "
                f"{listed(TEXT_COLUMNS)}; {_split_otherwise(columns)}name it with text_column"
            )
        if len(candidates) > 1:
            raise ValueError(
                f"{source}: more than one column could be the text "
                f"({' or '.join(' + '.join(map(repr, c)) for c in candidates)}); name it with text_column"
            )
        text = candidates[0][0]
        second = candidates[0][1] if len(candidates[0]) == 2 else None
    label = label_column
    if label is None:
        found = [lowered[name] for name in LABEL_COLUMNS if name in lowered and lowered[name] not in (text, second)]
        if len(found) > 1:
            raise ValueError(
                f"{source}: more than one column could be the label ({' or '.join(map(repr, found))}); name it with "
                "label_column"
            )
        label = found[0] if found else None
    chosen = Columns(text, second, label)
    if len(set(chosen.names())) != len(chosen.names()):
        raise ValueError(
            f"{source}: one column was given two uses; got text {text!r}, second text {second!r}, label {label!r}; "
            "use each column once"
        )
    return chosen


def read_examples(
    path: str | Path,
    *,
    text_column: str | None = None,
    second_text_column: str | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    problem: Problem = "auto",
    label_separator: str | None = None,
    bad_rows: BadRows = "error",
    need_labels: bool = True,
) -> Examples:
    """Read the user's own .tsv, .csv, .jsonl (each also .gz), .parquet or .txt file.

    Args:
        path: the file; its name says the format.
        text_column, second_text_column, label_column: see `find_columns`.
        label_names: the classes in the order of the model's outputs; a label outside them is a bad row.
        problem: ``"auto"`` follows the rule of this module; ``"classification"``, ``"multi_label"`` or
            ``"regression"`` force the kind.
        label_separator: what lies between the labels of a text, such as ``"|"``: the label column's texts are cut
            there, blanks around a label do not count, and an empty text is no label. None: a text is one label.
        bad_rows: ``"error"`` raises at the first row that does not fit; ``"skip"`` leaves such rows out, counts them in
            ``Examples.skipped`` and warns once.
        need_labels: False reads texts only, whatever other columns there are.

    Returns:
        The examples in file order.

    Raises:
        ValueError, naming file, line and what was found: a row that does not fit; no examples; labels of two kinds.
        FileNotFoundError, ImportError: see `RowReader`.
    """
    skipped = skipped_rows(bad_rows)
    with RowReader(path, on_bad_row=skipped) as reader:
        columns = find_columns(
            reader.columns,
            text_column=text_column,
            second_text_column=second_text_column,
            label_column=label_column,
            source=reader.name,
        )
        if not need_labels:
            columns = columns._replace(label=None)
        elif columns.label is None:
            raise ValueError(
                f"{reader.name}: no column has a known name for the label; its columns are "
                f"{listed(reader.columns)}; known names are "
                f"{listed(LABEL_COLUMNS)}; name it with label_column"
            )
        found = build_examples(
            reader,
            reader,
            columns,
            label_names=label_names,
            problem=problem,
            label_separator=label_separator,
            skipped=skipped,
        )
    if skipped is not None:
        skipped.warn(found.source)
    return found


def build_examples(
    reader: RowReader,
    rows: Iterable[Row],
    columns: Columns,
    *,
    label_names: Sequence[str] | None = None,
    problem: Problem = "auto",
    label_separator: str | None = None,
    skipped: SkippedRows | None = None,
    source: str | None = None,
) -> Examples:
    """Turn rows into `Examples`: texts checked, labels typed. The reader names file and line in errors."""
    if problem not in get_args(Problem):
        raise ValueError(f"{reader.name}: problem is {problem!r}; allowed: {', '.join(get_args(Problem))}")
    if label_names is not None:
        _check_names(reader, label_names)
    if label_separator is not None:
        if not isinstance(label_separator, str) or not label_separator or problem not in ("auto", "multi_label"):
            raise ValueError(
                f"{reader.name}: label_separator is {label_separator!r} and problem {problem!r}; allowed: a text that "
                "is not empty, for several labels of a text"
            )
        problem = "multi_label"
    if problem == "regression" and label_names is not None and columns.label is not None:
        raise ValueError(f"{reader.name}: label_names were given for a regression; leave one of the two out")
    texts: list[str] = []
    seconds: list[str] = []
    labels: list[tuple[int, tuple[str, ...]]] = []
    known = frozenset(label_names or ())
    numbered = are_numbers(label_names or ())
    names_seen = dict.fromkeys(reader.columns)
    many = None if problem == "auto" else problem == "multi_label"
    for row in rows:
        names_seen |= dict.fromkeys(row.values)  # the lines of a .jsonl file may differ in theirs
        kind = many
        found: tuple[str, ...] = ()
        try:
            text = row_text(reader, row, columns.text)
            second = row_text(reader, row, columns.second) if columns.second is not None else ""
            if columns.label is not None:
                kind = isinstance(row.values.get(columns.label), list) if many is None else many
                found = (
                    row_label_set(reader, row, columns.label, label_separator, numbered)
                    if kind
                    else (_row_label(reader, row, columns.label, numbered),)
                )
                if problem == "regression" and _as_number(found[0]) is None:
                    raise _no_number(reader, row.line, found[0], columns.label, "as a regression needs")
                if label_names is not None and not known.issuperset(found):
                    check_known(reader, row.line, found, label_names, columns.label)
        except ValueError as error:
            if skipped is None:
                raise
            skipped(error)
            continue
        many = kind  # the first row that fits decides
        texts.append(text)
        seconds.append(second)
        labels.append((row.line, found))
    if columns.label is not None and not many and problem == "auto" and label_names is None:
        wrong = _no_scores(reader, [(line, found[0]) for line, found in labels], columns.label)
        for refusal in wrong.values():
            if skipped is None:
                raise refusal
            skipped(refusal)
        if wrong:
            kept = [index for index in range(len(texts)) if index not in wrong]
            texts, seconds = [texts[i] for i in kept], [seconds[i] for i in kept]
            labels = [labels[i] for i in kept]
    if not texts:
        if skipped is not None and skipped.count:
            raise ValueError(f"{reader.name}: all {skipped.count} rows are bad; the first: {skipped.first}")
        needed = "line of text is needed" if reader.format == "txt" else "row below the header is needed"
        raise ValueError(f"{reader.name}: no examples in it; at least one {needed}")
    values: Labels | None = None
    names: tuple[str, ...] = ()
    if columns.label is not None and many:
        values, names = type_label_sets(reader, labels, label_names, columns.label)
    elif columns.label is not None:
        single = [found[0] for _, found in labels]
        values, names = _type_labels(single, label_names, problem)
        if label_names is None:
            if names:
                refuse_look_alikes(reader, labels, columns.label)
            warn_of_written_lists(reader.name, single, columns.label)
    return Examples(
        texts=tuple(texts),
        seconds=tuple(seconds) if columns.second is not None else None,
        labels=values,
        label_names=names,
        source=source or reader.name,
        columns=columns.names(),
        skipped=0 if skipped is None else skipped.count,
        unused=tuple(name for name in names_seen if name not in columns.names()),
        lines=tuple(line for line, _ in labels),
    )


def _check_names(reader: RowReader, label_names: Sequence[str]) -> None:
    listed_names = isinstance(label_names, Sequence) and not isinstance(label_names, str)
    if not listed_names or not all(isinstance(name, str) for name in label_names):
        raise TypeError(f"{reader.name}: label_names are {shown(label_names)}; allowed: a list of texts")
    if not label_names or len(set(label_names)) < len(label_names):
        raise ValueError(f"{reader.name}: label_names are {shown(label_names)}; allowed: at least one, each once")


def row_text(reader: RowReader, row: Row, column: str) -> str:
    """The text in a column of a row; ValueError naming file and line when it is missing, no text, blank, or no valid
    Unicode."""
    if column not in row.values:
        raise reader.bad(row.line, f"column {column!r} is missing; found {listed(tuple(row.values))}")
    value = row.values[column]
    if not isinstance(value, str):
        raise reader.bad(row.line, f"column {column!r} holds {type(value).__name__} {value!r}, not a text")
    if not value.strip():
        raise reader.bad(row.line, f"the text in column {column!r} is empty; found {value!r}")
    return check_text(value, f"{reader.name}, line {row.line}: the text in column {column!r}")


def _row_label(reader: RowReader, row: Row, column: str, numbered: bool) -> str:
    value = row.values.get(column)
    if isinstance(value, list):
        raise reader.bad(
            row.line,
            f"column {column!r} holds a list, {shown(value)}; allowed here: one label; several labels of a text are a "
            "list in every row",
        )
    missing = isinstance(value, float) and not math.isfinite(value)  # what pandas writes for no value
    if missing or isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise reader.bad(
            row.line, f"no label in column {column!r}; found {value!r}; allowed: a text or a number, or a list of them"
        )
    # repr of a float keeps its point, so that 1.0 stays a regression target and 1 a class.
    text = value.strip() if isinstance(value, str) else repr(value)
    if not text:
        raise reader.bad(row.line, f"the label in column {column!r} is empty; found {value!r}")
    check_length(reader, row.line, text, column)
    return str(int(text)) if numbered and _WHOLE.fullmatch(text) else text


def _no_scores(reader: RowReader, labels: list[tuple[int, str]], column: str) -> dict[int, ValueError]:
    """By index the labels that are no number, where most of the others are scores (numbers with parts): one of them
    would make a class of each score."""
    numbers = [_as_number(label) for _, label in labels]
    if 2 * sum(n is not None and not n.is_integer() for n in numbers) <= len(labels):
        return {}
    return {
        index: _no_number(reader, line, label, column, "and most of the others are scores")
        for index, ((line, label), number) in enumerate(zip(labels, numbers, strict=True))
        if number is None
    }


def _no_number(reader: RowReader, line: int, label: str, column: str, why: str) -> ValueError:
    return reader.bad(line, f"label {label!r} in column {column!r} is no finite number, {why}")


def _type_labels(
    labels: list[str], label_names: Sequence[str] | None, problem: Problem
) -> tuple[tuple[int, ...] | tuple[float, ...], tuple[str, ...]]:
    if label_names is not None:
        names = tuple(label_names)
        return tuple(names.index(label) for label in labels), names
    numbers = [_as_number(label) for label in labels]
    whole = all(_WHOLE.fullmatch(label) for label in labels)
    if problem == "regression" or (problem == "auto" and not whole and all(n is not None for n in numbers)):
        return tuple(float(n) for n in numbers if n is not None), ()
    # The same class written 1 and 01 would be two classes in silence; numbers are compared as numbers.
    names = tuple(str(n) for n in sorted({int(label) for label in labels})) if whole else tuple(sorted(set(labels)))
    place = {name: index for index, name in enumerate(names)}
    return tuple(place[str(int(label)) if whole else label] for label in labels), names


def _as_number(label: str) -> float | None:
    if "_" in label or not label.isascii():  # float() takes 1_1 for 11 and other scripts' digits; here both are names
        return None
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
