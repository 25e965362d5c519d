"""Several labels of one text: a list in each row (.jsonl, .parquet), or one text that a separator cuts (.tsv, .csv).

An entry is a name or a whole number. The classes are the different entries: in numeric order where all are whole
numbers, else in alphabetical order, as for single labels. An empty list, or an empty text, is a text without a label.
"""

from __future__ import annotations

import ast
import re
import unicodedata
import warnings
from collections.abc import Sequence
from itertools import pairwise

from dynabert.data.rows import Row, RowReader, listed, shown

_NO_NAME = ("Cc", "Cs")  # control characters and lone surrogates
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)  # digits of other scripts are names
_MOST_CHARACTERS = 1000


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all names are whole numbers in their shortest form, as the readers write them: then a label 01 is 1."""
    return bool(names) and all(_WHOLE.fullmatch(name) and str(int(name)) == name for name in names)


def row_label_set(
    reader: RowReader, row: Row, column: str, separator: str | None, numbered: bool = False
) -> tuple[str, ...]:
    """The labels of a row as text, in the order found; with ``numbered`` whole numbers in their shortest form.

    Raises ``ValueError`` with file and line: a value that is no list (with ``separator``: no text), an entry that is no
    name or whole number, one that is empty or there twice.
    """
    value = row.values.get(column)
    if separator is not None:
        if not isinstance(value, str):
            raise reader.bad(
                row.line,
                f"column {column!r} holds {shown(value)}, which is no text for the label separator {separator!r} to "
                "cut; leave the separator out where the labels are lists",
            )
        entries: list[object] = [part.strip() for part in value.split(separator)] if value.strip() else []
    elif isinstance(value, list):
        entries = value
    else:
        raise reader.bad(
            row.line,
            f"no list of labels in column {column!r}; found {shown(value)}; allowed: a list in every row, [] for a "
            "text without a label",
        )
    found: list[str] = []
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, (str, int)):
            raise reader.bad(
                row.line, f"a label in column {column!r} is {shown(entry)}; allowed in a list: names and whole numbers"
            )
        label = entry.strip() if isinstance(entry, str) else str(entry)
        if not label:
            raise reader.bad(row.line, f"a label in column {column!r} is empty; found {shown(value)}")
        check_length(reader, row.line, label, column)
        if any(unicodedata.category(character) in _NO_NAME for character in label):
            raise reader.bad(
                row.line,
                f"the label {label!r} in column {column!r} has a control character, or half of one of two halves; "
                "allowed: a name that can be written to a table",
            )
        if numbered and _WHOLE.fullmatch(label):
            label = str(int(label))
        if label in found:
            raise _doubled(reader, row.line, label, column)
        found.append(label)
    return tuple(found)


def check_length(reader: RowReader, line: int, label: str, column: str) -> None:
    """``ValueError`` with file and line for a label as long as a text: it is none, and Python reads no such number."""
    if len(label) > _MOST_CHARACTERS:
        raise reader.bad(
            line,
            f"the label {shown(label)} in column {column!r} has {len(label)} characters; allowed: up to "
            f"{_MOST_CHARACTERS}; is it the right column?",
        )


def type_label_sets(
    reader: RowReader, sets: Sequence[tuple[int, tuple[str, ...]]], label_names: Sequence[str] | None, column: str
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """Class indices of each row, in rising order, and the classes' names. ``sets``: each row's line and its labels."""
    used = {label for _, found in sets for label in found}
    # The same class written 1 and 01 would be two classes in silence; numbers are compared as numbers.
    whole = label_names is None and bool(used) and all(_WHOLE.fullmatch(label) for label in used)
    if label_names is not None:
        names = tuple(label_names)
    elif whole:
        names = tuple(str(number) for number in sorted({int(label) for label in used}))
    else:
        names = tuple(sorted(used))
    if label_names is None:
        refuse_look_alikes(reader, sets, column)
    place = {name: index for index, name in enumerate(names)}
    rows = []
    for line, found in sets:
        row = sorted(place[str(int(label)) if whole else label] for label in found)
        for low, high in pairwise(row):
            if low == high:
                raise _doubled(reader, line, names[low], column)
        rows.append(tuple(row))
    return tuple(rows), names


def refuse_look_alikes(reader: RowReader, sets: Sequence[tuple[int, tuple[str, ...]]], column: str) -> None:
    """``ValueError`` for two names of the same characters in other codes, such as an accent of its own and one that is
    part of a letter: they would be two classes that nobody can tell apart."""
    used = {label for _, found in sets for label in found}
    if len({unicodedata.normalize("NFC", label) for label in used}) == len(used):
        return
    seen: dict[str, str] = {}
    for line, found in sets:
        for label in found:
            other = seen.setdefault(unicodedata.normalize("NFC", label), label)
            if other != label:
                raise reader.bad(
                    line,
                    f"label {label!a} in column {column!r} is the same text as {other!a} above, in "
                    "other codes; bring the file to one Unicode form, such as NFC",
                )


def warn_of_written_lists(source: str, labels: Sequence[str], column: str) -> None:
    """A warning where single labels look like lists that were saved as text, such as pandas leaves in a .csv."""
    if all(label.startswith("[") and label.endswith("]") for label in labels) and any(map(_is_list, set(labels))):
        warnings.warn(
            f"{source}: column {column!r} holds texts such as {shown(labels[0])}, and each different one is taken as a "
            "class; for several labels of a text write lists into a .jsonl or .parquet file, or join them with a "
            "separator and give label_separator (--label_separator)",
            stacklevel=4,
        )


def _is_list(label: str) -> bool:
    try:
        found = ast.literal_eval(label)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(found, list) and len(found) > 1


def _doubled(reader: RowReader, line: int, label: str, column: str) -> ValueError:
    advice = "; for a row of zeros and ones write the numbers of the labels that are 1" if label in ("0", "1") else ""
    return reader.bad(line, f"label {label!r} is twice in column {column!r}; allowed: each once{advice}")


def check_known(reader: RowReader, line: int, found: Sequence[str], label_names: Sequence[str], column: str) -> None:
    """``ValueError`` with file and line for the first label that is none of ``label_names``."""
    for label in found:
        if label not in label_names:
            raise reader.bad(line, f"label {label!r} in column {column!r}; allowed: {listed(label_names)}")
