"""What a prediction is, and how logits become one for each kind of problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynabert.data.examples import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TextError
from dynabert.data.labels import label_probabilities, model_labels
from dynabert.data.rows import listed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Prediction:
    """The answer for one text.

    Attributes:
        label: the likeliest label; None for regression.
        score: its probability; for regression the (first) predicted value.
        scores: probability of every label by name (softmax for one label, sigmoid for several); for regression the
            values.
        labels: all labels at or above the threshold for a multi-label model; ``(label,)`` for a single-label one; empty
            for regression.
        logits: the network's raw outputs.
        subnet: the sub-network that answered, as text.
    """

    label: str | None
    score: float
    scores: dict[str, float]
    labels: tuple[str, ...]
    logits: tuple[float, ...]
    subnet: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "label": self.label,
            "score": self.score,
            "scores": dict(self.scores),
            "labels": list(self.labels),
            "logits": list(self.logits),
            "subnet": self.subnet,
        }


def output_names(config: PreTrainedConfig, outputs: int) -> tuple[str, ...]:
    """Names of a model's ``outputs``, in order; ``ValueError`` where ``id2label`` does not give each one of its own."""
    keys: Any = () if config.id2label is None else config.id2label.keys()
    if set(keys) != set(range(outputs)):
        raise ValueError(
            f"InferenceEngine: id2label names the outputs {listed(list(keys)) or 'none'}; allowed: one name for each "
            f"of the model's {outputs}, counted from 0; mend config.id2label"
        )
    names = model_labels(config)
    if len(set(names)) < outputs:
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"InferenceEngine: id2label gives the name {twice!r} to several outputs; allowed: a name of its own for "
            "each, since answers go by names; mend config.id2label"
        )
    return names


def check_finite(
    call: str, values: npt.NDArray[np.floating], subnets: list[str], places: Sequence[int] | None = None
) -> None:
    """`TextError` where a network's numbers (N, outputs), one row a text, are not all finite.

    ``subnets``: the text form of each row's sub-network; ``places``: of the rows among all texts; None: from 0.
    """
    if np.isfinite(values).all():
        return
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    first = int(broken[0])
    raise TextError(
        f"{call}: the network's outputs are not finite for {len(broken)} of {len(values)} texts (the first: "
        f"{{text}}, sub-network {subnets[first]}); its weights hold NaN or infinity, or its dtype overflows; check "
        "the checkpoint, or run it in float32",
        first if places is None else places[first],
    )


def interpret(
    logits: npt.NDArray[np.floating],
    problem: str,
    names: tuple[str, ...],
    subnets: list[str],
    threshold: float = 0.5,
    *,
    places: Sequence[int] | None = None,
) -> list[Prediction]:
    """Turn logits (N, labels) into predictions, in float64 so that probabilities sum to one.

    Args:
        logits: raw outputs, one row a text.
        problem: ``single_label_classification``, ``multi_label_classification`` or ``regression``.
        names: names of the outputs.
        subnets: text form of the sub-network of each row.
        threshold: least probability of a label that a multi-label model assigns.
        places: of the rows among all texts, for messages; None: from 0.
    """
    values = logits.astype(np.float64)
    check_finite("predict", values, subnets, places)
    if problem == SINGLE_LABEL:
        exponentials = np.exp(values - values.max(axis=1, keepdims=True))
        scores = exponentials / exponentials.sum(axis=1, keepdims=True)
    elif problem == MULTI_LABEL:
        scores = label_probabilities(values)
    elif problem == REGRESSION:
        scores = values
    else:
        raise ValueError(
            f"interpret: unknown problem_type {problem!r}; allowed: {SINGLE_LABEL}, {MULTI_LABEL}, {REGRESSION}"
        )
    found = []
    for row, raw, subnet in zip(scores.tolist(), values.tolist(), subnets, strict=True):
        named = dict(zip(names, row, strict=True))
        if problem == REGRESSION:
            found.append(Prediction(None, row[0], named, (), tuple(raw), subnet))
            continue
        best = int(np.argmax(row))
        labels = (
            (names[best],)
            if problem == SINGLE_LABEL
            else tuple(n for n, p in zip(names, row, strict=True) if p >= threshold)
        )
        found.append(Prediction(names[best], row[best], named, labels, tuple(raw), subnet))
    return found
