"""A labelled set of texts as one frozen table: what every reader returns and every consumer takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

# Class indices, numbers of a regression, or for each text the indices of all its classes.
Labels = tuple[int, ...] | tuple[float, ...] | tuple[tuple[int, ...], ...]


class TextError(ValueError):
    """A text that cannot be answered.

    Args:
        told: what is wrong, in words; ``{text}`` stands for the text's name.
        index: the text's place in the caller's list.
    """

    def __init__(self, told: str, index: int) -> None:
        super().__init__(told, index)
        self.index = index

    def __str__(self) -> str:
        return self.named(f"text {self.index}")

    def named(self, text: str) -> str:
        """What is wrong, for a caller who knows a better name of the text, such as its line in a file."""
        return str(self.args[0]).replace("{text}", text)


@dataclass(frozen=True)
class Examples:
    """Texts (or pairs of texts) with or without labels, in the order of their source.

    Invariant: every column has the same length; no text is blank; a class label is an index into ``label_names``; the
    labels of a multi-label text are different indices, in order, or none; a regression label is a finite float and then
    ``label_names`` is empty.

    Attributes:
        texts: first (or only) text of each example.
        seconds: second text of each example, or None for single texts.
        labels: class indices, or floats for regression, or a tuple of class indices for each text (multi-label), or
            None for unlabelled text.
        label_names: names of the classes, index by index; empty for regression and for unlabelled text.
        source: where the examples came from, for messages.
        columns: names of the columns that were read, text first, label last.
        skipped: number of bad rows left out because the caller asked for that.
        unused: names of the columns that were not read.
        lines: the line (or, in a .parquet, the row) that each example stands at in its file, for messages; None where
            it is not known.
    """

    texts: tuple[str, ...]
    seconds: tuple[str, ...] | None = None
    labels: Labels | None = None
    label_names: tuple[str, ...] = ()
    source: str = "examples"
    columns: tuple[str, ...] = ()
    skipped: int = 0
    unused: tuple[str, ...] = ()
    lines: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.texts)
        if self.lines is not None and len(self.lines) != count:
            raise ValueError(f"Examples: lines are {len(self.lines)} for {count} texts; allowed: {count} or None")
        if self.seconds is not None and len(self.seconds) != count:
            raise ValueError(
                f"Examples: one second text is needed per text; got {len(self.seconds)} for {count}; allowed: "
                f"{count} or None"
            )
        if self.labels is not None and len(self.labels) != count:
            raise ValueError(
                f"Examples: one label is needed per text; got {len(self.labels)} for {count}; allowed: {count} or None"
            )
        for index in range(count):
            check_text(self.texts[index], f"Examples: text {index} of {self.source}")
            if self.seconds is not None:
                check_text(self.seconds[index], f"Examples: second text {index} of {self.source}")
        if self.labels is None:
            return
        many = is_multi_label(self.labels)
        for index, label in enumerate(self.labels):
            if many:
                self._check_label_set(index, label)
            elif self.label_names:
                if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(self.label_names):
                    raise ValueError(
                        f"Examples: label {index} of {self.source} is no class index; got {label!r}; "
                        f"allowed: 0 to {len(self.label_names) - 1} ({', '.join(self.label_names)})"
                    )
            elif isinstance(label, bool) or not isinstance(label, float) or not math.isfinite(label):
                raise ValueError(
                    f"Examples: label {index} of {self.source} is no finite float; got {label!r}; allowed: a float, "
                    "or class indices with label_names"
                )

    def _check_label_set(self, index: int, labels: object) -> None:
        found = labels if isinstance(labels, tuple) else None
        if found is None or not all(isinstance(label, int) and not isinstance(label, bool) for label in found):
            raise ValueError(
                f"Examples: the labels {index} of {self.source} are no tuple of class indices; got {labels!r}; "
                "allowed: a tuple for every text, () for one without a label"
            )
        in_order = all(low < high for low, high in pairwise(found))
        if not in_order or (found and not (found[0] >= 0 and found[-1] < len(self.label_names))):
            raise ValueError(
                f"Examples: the labels {index} of {self.source} are not different class indices in rising order; got "
                f"{labels!r}; allowed: 0 to {len(self.label_names) - 1}, each once"
            )

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def problem_type(self) -> str | None:
        """``single_label_classification``, ``multi_label_classification``, ``regression``, or None when there are no
        labels."""
        if self.labels is None:
            return None
        if is_multi_label(self.labels):
            return MULTI_LABEL
        return SINGLE_LABEL if self.label_names else REGRESSION

    @property
    def num_labels(self) -> int:
        """Outputs that a model of this set needs: the number of classes, 1 for regression, 0 without labels."""
        if self.labels is None:
            return 0
        return len(self.label_names) if is_multi_label(self.labels) else len(self.label_names) or 1

    def select(self, indices: Sequence[int]) -> Examples:
        """The examples with these indices, in the order given."""
        return replace(
            self,
            texts=tuple(self.texts[i] for i in indices),
            seconds=None if self.seconds is None else tuple(self.seconds[i] for i in indices),
            labels=None if self.labels is None else tuple(self.labels[i] for i in indices),  # type: ignore[arg-type]
            lines=None if self.lines is None else tuple(self.lines[i] for i in indices),
        )

    def head(self, count: int) -> Examples:
        """The first ``count`` examples, or all of them when there are fewer."""
        if count < 1:
            raise ValueError(f"head: count must be at least 1; got {count}")
        return self.select(range(min(count, len(self))))

    def label_counts(self) -> dict[str, int]:
        """Number of examples of each class name; empty for regression and for unlabelled text."""
        if self.labels is None or not self.label_names:
            return {}
        flat = [i for row in self.labels for i in row] if is_multi_label(self.labels) else self.labels  # type: ignore[union-attr]
        counts = np.bincount(np.asarray(flat, dtype=np.int64), minlength=len(self.label_names))
        return {name: int(count) for name, count in zip(self.label_names, counts, strict=True)}


def is_multi_label(labels: Sequence[object]) -> bool:
    """Whether these are the labels of a multi-label set: a tuple for each text. The first one tells: `Examples` holds
    labels of one kind."""
    return len(labels) > 0 and isinstance(labels[0], tuple)


def label_array(labels: Sequence[object], problem_type: str, num_labels: int) -> npt.NDArray[np.int64 | np.float32]:
    """Labels as a network takes them: (N,) int64 classes; (N,) float32 values of a regression; (N, num_labels) float32
    zeros and ones of a multi-label set."""
    if problem_type == SINGLE_LABEL:
        return np.asarray(labels, dtype=np.int64)
    if problem_type == REGRESSION:
        return np.asarray(labels, dtype=np.float32)
    found = np.zeros((len(labels), num_labels), dtype=np.float32)
    for row, own in enumerate(labels):
        found[row, list(own)] = 1.0  # type: ignore[call-overload]
    return found


def check_text(text: object, what: str) -> str:
    """Return ``text`` when it is a str with something in it; else TypeError or ValueError that begins with ``what``."""
    if not isinstance(text, str):
        raise TypeError(f"{what} is no str; got {type(text).__name__}; allowed: str")
    if not text.strip():
        raise ValueError(
            f"{what} is empty; got {text!r}; allowed: a text with at least one character that is not white space"
        )
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{what} is no valid Unicode (character {error.start} is half of a pair, or a byte that is not UTF-8); "
                "decode it with the encoding it was written in"
            ) from error
    return text
