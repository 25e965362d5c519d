"""Texts that a sentence embedder is scored on: pairs with numbers, or texts alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynabert.data import Encoded, Examples
    from dynabert.similarity import SimilaritySet


def read_scored(path: str, label_column: str | None, columns: dict[str, Any]) -> Examples:
    """With its numbers, where it has pairs and a column of them; by name, or by one of the usual names.

    ``columns``: the other arguments of `dynabert.data.read_examples`, whose errors these are.
    """
    from dynabert.data import read_examples
    from dynabert.data.tables import LABEL_COLUMNS

    alone = read_examples(path, **columns, need_labels=False)
    usual = [name for name in alone.unused if name.lower() in LABEL_COLUMNS]
    if label_column is None and (alone.seconds is None or len(usual) != 1):
        return alone
    return read_examples(path, **columns, label_column=label_column or usual[0], problem="regression")


def only_numbers_of_pairs(examples: Examples) -> Examples:
    """Without its labels, unless they are numbers of pairs: nothing else says how alike two texts are."""
    if examples.seconds is not None and examples.problem_type == "regression":
        return examples
    return replace(examples, labels=None, label_names=())


def similarity_set(examples: Examples, encode: Callable[[Examples], Encoded]) -> SimilaritySet:
    """Token ids of what `only_numbers_of_pairs` left; ``encode``: of single texts without labels.

    Raises ``ValueError`` where all numbers are equal, and what ``encode`` raises.
    """
    from dynabert.data.examples import Examples
    from dynabert.similarity import SimilaritySet

    def alone(texts: tuple[str, ...]) -> Encoded:
        return encode(Examples(texts, source=examples.source, lines=examples.lines))

    labels: Any = examples.labels
    seconds = None if examples.seconds is None else alone(examples.seconds)
    return SimilaritySet(alone(examples.texts), seconds, labels, examples.source)
