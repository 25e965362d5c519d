"""Matching the labels of a data set with the outputs of a model: by name where both have names, else by number."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynabert.data.examples import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Examples

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_GENERIC = re.compile(r"LABEL_\d+", re.ASCII)
_NUMBER = re.compile(r"\d+", re.ASCII)  # digits of other scripts are names


def model_problem(config: PreTrainedConfig) -> str:
    """What a model answers: its ``problem_type``, else regression for one output and one label for several."""
    if config.problem_type is not None:
        return str(config.problem_type)
    return REGRESSION if config.num_labels == 1 else SINGLE_LABEL


def model_labels(config: PreTrainedConfig) -> tuple[str, ...]:
    """Names of a model's outputs, in order."""
    names: Any = config.id2label  # transformers allows None and str keys here; a loaded configuration has neither
    return tuple(str(names[index]) for index in range(len(names)))


def align_labels(examples: Examples, model_names: Sequence[str], problem_type: str) -> Examples:
    """The examples with class indices of the model's outputs.

    Every class name of the data must be a name of the model, then indices follow the names. Case does not matter, but
    where names of the model differ in nothing else the data must have just the model's. A model without names of its
    own (``LABEL_0``, ...), or data whose classes are plain numbers, is matched by number. Numbers are counted from 0;
    where they could as well be counted from 1 with a class missing, a warning says how they were read.

    Args:
        examples: labelled examples.
        model_names: the model's outputs in order, ``id2label``.
        problem_type: the model's; a multi-label model needs a list of labels for each text.

    Raises:
        ValueError: no labels; a regression set for a classifier or the other way round; names that do not match.
    """
    if examples.labels is None:
        raise ValueError(f"{examples.source}: the examples have no labels; name the label column")
    if examples.problem_type != problem_type:
        advice = "use data of the model's kind, or say the kind of the labels (--problem_type)"
        if problem_type == MULTI_LABEL:
            advice = "write a list of labels in each row (.jsonl, .parquet), or give --label_separator"
        raise ValueError(
            f"{examples.source}: the labels are for {examples.problem_type}, the model is for {problem_type}; {advice}"
        )
    if problem_type == REGRESSION:
        return examples
    names, outputs = examples.label_names, tuple(model_names)
    exact = {name: index for index, name in enumerate(outputs)}
    folded = {name.lower(): index for index, name in enumerate(outputs)}
    if set(names) == set(outputs) or (problem_type == MULTI_LABEL and all(name in exact for name in names)):
        places = [exact[name] for name in names]
    elif all(name.lower() in folded for name in names) and len(folded) == len(outputs):
        places = [folded[name.lower()] for name in names]
    elif (
        all(_NUMBER.fullmatch(name) for name in names)
        and max(map(int, names)) < len(outputs)
        # Where the model's names are numbers, a number that is none of them is another label, not a place.
        and not (problem_type == MULTI_LABEL and all(_NUMBER.fullmatch(name) for name in outputs))
    ):
        places = [int(name) for name in names]
        if min(places) > 0:
            warnings.warn(
                f"{examples.source}: no class of the data is 0; {_some(names)} are read as the model's outputs counted "
                f"from 0, and {names[0]} is {outputs[places[0]]!r}; where the data counts from 1 every score is wrong: "
                "write the model's names in the data, or the data's in id2label of the model's config.json",
                stacklevel=2,
            )
    elif all(_GENERIC.fullmatch(name) for name in outputs) and len(names) == len(outputs):
        places = list(range(len(names)))
    else:
        advice = ""
        if all(_NUMBER.fullmatch(name) for name in names) and {int(name) for name in names} <= set(
            range(1, len(outputs) + 1)
        ):
            advice = (
                "; where the data counts from 1 and has not every class, write the model's names in the data, or the "
                "data's in id2label of the model's config.json"
            )
        raise ValueError(
            f"{examples.source}: the classes of the data are not those of the model; the data has {_some(names)}; "
            f"the model has {_some(outputs)}{_first_line(examples, folded)}; use the model's names or the numbers 0 to "
            f"{len(outputs) - 1}{advice}"
        )
    if problem_type == MULTI_LABEL:
        rows: Any = examples.labels
        return replace(
            examples, labels=tuple(tuple(sorted(places[i] for i in row)) for row in rows), label_names=outputs
        )
    indices: Any = examples.labels
    return replace(examples, labels=tuple(places[label] for label in indices), label_names=outputs)


def label_probabilities(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The sigmoid of a multi-label model's outputs, in float64, without overflow. A label is assigned where it is at
    the threshold or above."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def _first_line(examples: Examples, known: Collection[str]) -> str:
    """Where the first label stands that is none of the model's names, which are in lower case; empty where that is not
    known, or where there is none of them at all and so a row is not to blame."""
    names = examples.label_names
    if examples.lines is None or not any(name.lower() in known for name in names):
        return ""
    rows: Any = examples.labels
    for line, label in zip(examples.lines, rows, strict=True):
        for index in label if isinstance(label, tuple) else (label,):
            if names[index].lower() not in known:
                return f"; the first other one, {names[index]!r}, is in line {line}"
    return ""


def _some(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
