"""Answers of a cascade: each text goes on to the next sub-network until an answer is sure enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dynabert.configuration.cascade import Cascade
from dynabert.configuration.subnet import SubnetConfig
from dynabert.data.examples import MULTI_LABEL, REGRESSION
from dynabert.data.labels import label_probabilities
from dynabert.engine.prediction import Prediction

FloatArray = npt.NDArray[np.floating]


def sureness(scores: FloatArray, problem: str, threshold: float = 0.5) -> FloatArray:
    """How sure each answer is, (N,): the probability of its label, or, where a text has several, that of the most
    doubtful decision. ``scores``: the labels' probabilities, (N, labels); ``threshold``: from which one of several
    labels is assigned.

    Raises:
        ValueError: a regression, whose answers have no probability.
    """
    if problem == REGRESSION:
        raise ValueError(
            "a cascade goes by the probability of an answer, and this model's answers are numbers (regression); give "
            "one sub-network"
        )
    if problem == MULTI_LABEL:
        return np.where(scores >= threshold, scores, 1.0 - scores).min(axis=1)
    return scores.max(axis=1)


def logit_sureness(logits: FloatArray, problem: str, threshold: float = 0.5) -> FloatArray:
    """`sureness` of answers that are logits, (N, labels)."""
    values = logits.astype(np.float64)
    if problem == MULTI_LABEL:
        return sureness(label_probabilities(values), problem, threshold)
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return sureness(exponentials / exponentials.sum(axis=1, keepdims=True), problem)


def answer_in_turn(
    answer: Callable[[list[Any], SubnetConfig, list[int]], list[Prediction]],
    texts: list[Any],
    cascade: Cascade,
    problem: str,
    threshold: float = 0.5,
) -> list[Prediction]:
    """One answer for each text, of the first sub-network that is sure enough, or else of the last.

    ``answer``: the answers of a sub-network to texts, whose places among all of ``texts`` it is told, for messages;
    ``threshold`` as in `sureness`.
    """
    sureness(np.zeros((0, 1)), problem)  # refuses a regression before anything runs
    found: dict[int, Prediction] = {}
    going = list(range(len(texts)))
    for subnet, least in zip(cascade.subnets, (*cascade.least, 0.0), strict=True):
        if not going:
            break
        answers = answer([texts[i] for i in going], subnet, going)
        sure = sureness(np.array([list(one.scores.values()) for one in answers]), problem, threshold)
        found.update(zip(going, answers, strict=True))
        going = [index for index, own in zip(going, sure.tolist(), strict=True) if own < least]
    return [found[index] for index in range(len(texts))]
