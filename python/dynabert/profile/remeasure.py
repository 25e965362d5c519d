"""Timing a few sub-networks again, in the way a profile times them, to see whether a limit holds on the device."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from dynabert.modeling.modes import evaluating
from dynabert.profile.measuring import ModelTimer
from dynabert.profile.timing import Sample, compared_time, typical_quantile, typical_times
from dynabert_kernels import SubnetShape

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification


class Remeasured(NamedTuple):
    """What passes of one shape took.

    ``ms``: the typical time, which compares with a profile's. ``wall_median_ms``: the median by the clock of the same
    passes, waiting for other work included. ``held_up``: share of the passes that other work held up. ``compared``:
    which time ``ms`` is, in words.
    """

    ms: float
    wall_median_ms: float
    held_up: float
    compared: str


def remeasure(
    model: ElasticBertForSequenceClassification,
    shapes: Sequence[SubnetShape],
    batch_size: int,
    seq_length: int,
    *,
    rounds: int = 20,
    warmup: int = 2,
    seed: int = 0,
) -> list[Remeasured]:
    """The times of each shape, in the given order, with what the machine's other work did to them.

    Each round times every shape once in a new order; passes that other work held up are set aside, as in a profile.

    Raises:
        ValueError: a number below 1; ``seq_length`` beyond the model's positions.
    """
    for name, value in (("batch_size", batch_size), ("rounds", rounds), ("number of shapes", len(shapes))):
        if value < 1:
            raise ValueError(f"remeasure: {name} is {value}; allowed: 1 or more")
    if not 1 <= seq_length <= model.config.max_sequence_length:
        raise ValueError(f"remeasure: seq_length is {seq_length}; allowed: 1 to {model.config.max_sequence_length}")
    chance = random.Random(seed)
    taken: dict[int, list[Sample]] = {index: [] for index in range(len(shapes))}
    with evaluating(model), torch.inference_mode():
        timer = ModelTimer(model, batch_size, seq_length, chance)
        for _ in range(warmup):
            for shape in shapes:
                timer(shape)
        for _ in range(rounds):
            for index in chance.sample(range(len(shapes)), len(shapes)):
                taken[index].append(timer(shapes[index]))
    quantile = typical_quantile(taken)
    return [
        Remeasured(
            ms,
            float(np.median([sample.clock_ms for sample in own])),
            sum(sample.disturbed for sample in own) / len(own),
            compared_time(own, quantile),
        )
        for ms, own in zip(typical_times(taken).values(), taken.values(), strict=True)
    ]
