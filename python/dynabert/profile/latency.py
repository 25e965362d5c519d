"""Latency of sub-networks on this device.

Rounds are interleaved: each round times every sub-network once, in a new random order, so that a slow moment of the
machine falls on all of them alike. The median and the 20th and 80th percentile over rounds are reported.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from dynabert.configuration import Subnet, SubnetConfig
from dynabert.configuration.grid import subnet_text
from dynabert.modeling.model import check_classifier
from dynabert.modeling.modes import evaluating
from dynabert.profile.served_pass import ServedPass
from dynabert_kernels import SubnetShape

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification


@dataclass(frozen=True)
class LatencyRow:
    """Time of one forward pass of one sub-network, in milliseconds, and the conditions it was taken under.

    ``p20_ms`` and ``p80_ms`` are the 20th and 80th percentile over ``rounds``; ``threads`` is torch's thread count.
    ``dtype`` is the weights', or ``"int8"``.
    """

    subnet: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    rounds: int
    batch_size: int
    seq_length: int
    threads: int
    device: str
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def measure_latency(
    model: ElasticBertForSequenceClassification,
    subnets: Sequence[Subnet],
    batch_size: int = 1,
    seq_length: int = 128,
    *,
    rounds: int = 20,
    warmup: int = 3,
    seed: int = 0,
    progress: bool | None = False,
) -> list[LatencyRow]:
    """Time the engine's forward pass of each sub-network on packed random tokens; packing and tokenising left out. On a
    GPU through its CUDA graphs, as `dynabert.profile.served_pass` says.

    Args:
        model: the network, on the device to be measured; its mode is put back afterwards.
        subnets: the sub-networks, each once.
        batch_size: sequences of the pass.
        seq_length: tokens of each sequence, up to the model's positions.
        rounds: timed passes of each sub-network.
        warmup: passes of each before timing begins.
        seed: decides tokens and order.
        progress: True shows a bar, False none, None one where stderr is a terminal.

    Returns:
        One row for each sub-network, in the given order.

    Raises:
        TypeError: another kind of model; one sub-network in place of a list.
        ValueError: a count below 1; ``seq_length`` beyond the model's positions; no sub-network, or one named twice.
    """
    check_classifier("measure_latency", model)
    if subnets is None or isinstance(subnets, (str, SubnetConfig, SubnetShape)):
        raise TypeError("measure_latency: subnets is one sub-network; give a list of them")
    for name, value, least in (("batch_size", batch_size, 1), ("rounds", rounds, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"measure_latency: {name} is {value}; allowed: {least} or more")
    if not 1 <= seq_length <= model.config.max_sequence_length:
        raise ValueError(
            f"measure_latency: seq_length is {seq_length}; allowed: 1 to {model.config.max_sequence_length}"
        )
    names = [subnet_text(subnet) for subnet in subnets]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"measure_latency: each sub-network is needed once; got {', '.join(names) or 'none'}")
    chance = random.Random(seed)
    sequences = [[chance.randrange(model.config.vocab_size) for _ in range(seq_length)] for _ in range(batch_size)]
    times: list[list[float]] = [[] for _ in names]
    with (
        evaluating(model),
        torch.inference_mode(),
        tqdm(total=rounds, unit=" rounds", desc="latency", disable=None if progress is None else not progress) as bar,
    ):
        served = ServedPass(model, sequences)
        calls = [served.of(model.shape(subnet)) for subnet in subnets]
        for _ in range(warmup):
            for call in calls:
                call()
        _wait(model.device)
        for _ in range(rounds):
            for index in chance.sample(range(len(calls)), len(calls)):
                start = time.perf_counter()
                calls[index]()
                _wait(model.device)
                times[index].append(1e3 * (time.perf_counter() - start))
            bar.update()
    dtype = "int8" if model.has_int8_weights else str(model.dtype).removeprefix("torch.")
    rows = []
    for name, taken in zip(names, times, strict=True):
        low, median, high = np.percentile(taken, [20, 50, 80]).tolist()
        rows.append(
            LatencyRow(
                subnet=name,
                median_ms=median,
                p20_ms=low,
                p80_ms=high,
                rounds=rounds,
                batch_size=batch_size,
                seq_length=seq_length,
                threads=torch.get_num_threads(),
                device=str(model.device),
                dtype=dtype,
            )
        )
    return rows


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
