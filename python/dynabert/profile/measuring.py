"""Profiling: time designed sub-networks, fit the sum, time random ones that it has not seen, and state the error.

Every round times each sub-network once, in a new random order, so that a slow moment of the machine falls on all of
them alike. An anchor sub-network is part of every round: its times before and after the fit say how much the machine's
own speed changed in between.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

import dynabert_kernels as dk
from dynabert.profile.additive_model import fit_costs
from dynabert.profile.device_facts import DeviceFacts
from dynabert.profile.device_profile import DeviceProfile, ErrorStatement, ProfiledCell
from dynabert.profile.encoder_shape import EncoderShape
from dynabert.profile.sampling import anchor, fitting_networks, random_networks, whole_network
from dynabert.profile.timing import Sample, timed, typical_times
from dynabert_kernels import Plan, SubnetShape

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification

BATCH_SIZES, SEQ_LENGTHS = (1, 8), (32, 128)
INT8_PANEL = 32  # outputs in a panel of int8 weights, on every machine
DEVICE_PANEL = 16  # GPU kernels take neurons in multiples of this
AVERAGE_SHARE = 0.4  # of the whole network's time that a random sub-network takes
DTYPE_SHARE = {"float32": 1.0, "bfloat16": 0.7, "float16": 0.7, "int8": 0.5}  # of the time: a faster dtype needs less
FIT_SHARE = 0.6  # of a cell's passes, unless the sub-networks to be re-measured need more than the rest
FEWEST_FITTED, MOST_FITTED = 24, 48
FIT_ROUNDS, CHECK_ROUNDS = 3, 2  # at least
ENOUGH_ROUNDS = 20  # undisturbed ones; their median moves little with more
FEWEST_CHECKED = 6
EQUAL_SHARE = 0.25  # of the time of a dtype, for all its points alike
BETWEEN_CHECKED = 8
BUSY = 0.2  # share of passes held up; above it the profile says that the machine was busy

Timer = Callable[[SubnetShape], Sample]


@dataclass(frozen=True)
class CellBudget:
    """How much of what a cell gets: seconds, and sub-networks that are re-measured."""

    seconds: float
    check: int


def profile_device(
    open_model: Callable[[str], ElasticBertForSequenceClassification],
    *,
    dtypes: Sequence[str] = ("float32",),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seq_lengths: Sequence[int] = SEQ_LENGTHS,
    max_minutes: float = 5.0,
    check: int = 50,
    seed: int = 0,
    progress: bool | None = False,
) -> DeviceProfile:
    """Measure a network on its device at every dtype, batch size and sequence length, within a time.

    The pass that is timed is the model's own on packed random tokens; tokenising and packing are not in it. Torch's
    threads are used as they are set.

    Args:
        open_model: gives the network in a dtype (``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"``), on its
            device and in the form in which it serves: weights packed where they would be. Called once for each dtype;
            the one before is let go first.
        dtypes, batch_sizes, seq_lengths: what is measured, every combination.
        max_minutes: for everything. The fewest passes that a fit and a check need are done even if they take longer.
        check: random sub-networks that are re-measured at every combination; fewer where the time does not allow it.
        seed: decides tokens, sub-networks and order.
        progress: True shows a bar, False none, None one where stderr is a terminal.

    Raises:
        ValueError: an empty or repeated list, a number below 1, a sequence longer than the model's positions.
    """
    _check_options(dtypes, batch_sizes, seq_lengths, max_minutes, check)
    started = time.perf_counter()
    seconds = 60.0 * max_minutes
    chance = random.Random(seed)
    cells: list[ProfiledCell] = []
    between: list[tuple[str, int, int, ErrorStatement]] = []
    encoder: EncoderShape | None = None
    facts: DeviceFacts | None = None
    middle = _middle(batch_sizes), _middle(seq_lengths)
    has_between = middle[0] not in batch_sizes or middle[1] not in seq_lengths
    with (
        tqdm(
            total=round(seconds),
            unit=" s",
            desc="profile",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of at most {total} s",
            disable=None if progress is None else not progress,
        ) as bar,
        torch.inference_mode(),
    ):
        for index, dtype in enumerate(dtypes):
            model = open_model(dtype).eval()
            encoder, facts = EncoderShape.of(model.config), DeviceFacts.here(model.device)
            longest = model.config.max_sequence_length
            if max(seq_lengths) > longest:
                raise ValueError(
                    f"profile: seq_length {max(seq_lengths)} is beyond the model's {longest} positions; give shorter "
                    "--seq_lengths"
                )
            step = neuron_step(dtype, model.device)
            left = seconds - (time.perf_counter() - started)
            shares = [DTYPE_SHARE[name] for name in dtypes[index:]]
            own = left * shares[0] / sum(shares)
            points = [(batch, length) for batch in sorted(batch_sizes) for length in sorted(seq_lengths)]
            asked = [*points, middle] if has_between else points
            timers = [ModelTimer(model, batch, length, chance) for batch, length in asked]
            whole = whole_network(encoder)
            units = [AVERAGE_SHARE * _seconds_of_a_pass(timer, whole) for timer in timers]
            for place, (batch, length) in enumerate(asked):
                bar.set_description(f"profile {dtype} {batch} x {length}")
                left_here = own - (time.perf_counter() - started - (seconds - left))
                given = share_of_time(left_here, units[place:], FEWEST_FITTED * FIT_ROUNDS + check * CHECK_ROUNDS)
                if (batch, length) in points:
                    cell = profile_cell(
                        timers[place],
                        encoder,
                        CellBudget(given, check),
                        dtype=dtype,
                        batch_size=batch,
                        seq_length=length,
                        step=step,
                        unit_seconds=units[place],
                        threads=facts.threads if model.device.type == "cpu" else 1,
                        chance=chance,
                    )
                    cells.append(cell)
                elif check:
                    found = DeviceProfile(facts, encoder, tuple(c for c in cells if c.dtype == dtype), "", seed, 0.0)
                    error = check_between(timers[place], found, batch, length, dtype, given, chance=chance)
                    between.append((dtype, batch, length, error))
                bar.n = min(bar.total, round(time.perf_counter() - started))
                bar.refresh()
            del model, timers
    assert encoder is not None
    assert facts is not None
    taken = time.perf_counter() - started
    return DeviceProfile(
        facts=facts,
        encoder=encoder,
        cells=tuple(cells),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        seconds=round(taken, 1),
        notes=tuple(_notes(cells, check, facts)),
        between=tuple(between),
    )


def profile_cell(
    sample: Timer,
    encoder: EncoderShape,
    budget: CellBudget,
    *,
    dtype: str,
    batch_size: int,
    seq_length: int,
    step: int,
    unit_seconds: float,
    threads: int,
    chance: random.Random,
    now: Callable[[], float] = time.perf_counter,
) -> ProfiledCell:
    """Measure, fit and check one dtype, batch size and sequence length.

    ``sample`` times one pass of a sub-network; ``step``: neurons in a panel; ``unit_seconds``: about what a random one
    takes; ``threads``: those that share a pass's panels; ``now``: the clock that the budget is held against.
    """
    passes = budget.seconds / unit_seconds
    # The check gets what it needs before the fit gets more than it needs.
    fit_passes = max(FEWEST_FITTED * FIT_ROUNDS, min(FIT_SHARE * passes, passes - CHECK_ROUNDS * budget.check))
    begun = now()
    fit_count = min(MOST_FITTED, max(FEWEST_FITTED, int(fit_passes / (2 * FIT_ROUNDS))))
    networks = fitting_networks(encoder, fit_count, step, chance)
    still = anchor(encoder)
    until = begun + budget.seconds * min(1.0, fit_passes / max(1.0, passes))
    samples = run_rounds(sample, list(dict.fromkeys([still, *networks])), until, chance, now=now, least=FIT_ROUNDS)
    typical = typical_times(samples)
    costs = fit_costs(
        np.array([shape.heads for shape in typical]),
        np.array([shape.neurons for shape in typical]),
        np.array(list(typical.values())),
        max_heads=encoder.max_heads,
        max_neurons=encoder.max_neurons,
        step=step,
        threads=threads,
    )
    checked = min(budget.check, max(FEWEST_CHECKED, int((passes - fit_passes) / CHECK_ROUNDS)))
    fresh, uniform = random_networks(encoder, checked, chance, set(samples))
    again: dict[SubnetShape, list[Sample]] = {}
    if fresh:
        until = begun + budget.seconds
        again = run_rounds(sample, [still, *fresh], until, chance, now=now, least=CHECK_ROUNDS)
    everything = [one for found in (samples, again) for taken in found.values() for one in taken]
    measured = typical_times(again)
    predicted = costs.predict(
        np.array([shape.heads for shape in fresh]).reshape(-1, encoder.num_layers),
        np.array([shape.neurons for shape in fresh]).reshape(-1, encoder.num_layers),
    )
    error = state_error(
        predicted.tolist(),
        [measured[shape] for shape in fresh],
        uniform,
        drift=measured[still] / typical[still] if fresh else None,
    )
    return ProfiledCell(
        dtype=dtype,
        batch_size=batch_size,
        seq_length=seq_length,
        costs=costs,
        error=error,
        fitted_networks=len(samples),
        samples=sum(map(len, samples.values())),
        disturbed=round(sum(one.disturbed for one in everything) / len(everything), 3),
    )


def check_between(
    sample: Timer,
    profile: DeviceProfile,
    batch_size: int,
    seq_length: int,
    dtype: str,
    seconds: float,
    *,
    chance: random.Random,
) -> ErrorStatement:
    """How far interpolated times are from measured ones, at a point between those that were fitted."""
    networks, uniform = random_networks(profile.encoder, BETWEEN_CHECKED, chance, set())
    samples = run_rounds(sample, networks, time.perf_counter() + seconds, chance, least=CHECK_ROUNDS)
    predicted = [profile.latency_ms(shape, batch_size, seq_length, dtype) for shape in networks]
    measured = typical_times(samples)
    return state_error(predicted, [measured[shape] for shape in networks], uniform, drift=None)


def run_rounds(
    sample: Timer,
    networks: Sequence[SubnetShape],
    until: float,
    chance: random.Random,
    *,
    least: int,
    now: Callable[[], float] = time.perf_counter,
) -> dict[SubnetShape, list[Sample]]:
    """Time every sub-network once a round: at least ``least`` rounds, then until the time is up or there are enough
    undisturbed samples. A busy machine so gets more rounds."""
    taken: dict[SubnetShape, list[Sample]] = {shape: [] for shape in networks}
    turn, quiet = 0, 0
    while turn < least or (now() < until and quiet < ENOUGH_ROUNDS * len(networks)):
        for shape in chance.sample(list(networks), len(networks)):
            taken[shape].append(sample(shape))
            quiet += not taken[shape][-1].disturbed
        turn += 1
    return taken


def state_error(
    predicted: Sequence[float], measured: Sequence[float], uniform: int, *, drift: float | None
) -> ErrorStatement:
    """Mean and worst of ``|predicted / measured - 1|``, raw, and with the machine's ``drift`` divided out."""
    if not measured:
        return ErrorStatement(0, 0, None, None, None, None, None)
    raw = [abs(p / m - 1.0) for p, m in zip(predicted, measured, strict=True)]
    steady = None if drift is None else [abs(p * drift / m - 1.0) for p, m in zip(predicted, measured, strict=True)]
    return ErrorStatement(
        networks=len(raw),
        uniform=uniform,
        mean=sum(raw) / len(raw),
        worst=max(raw),
        mean_steady=None if steady is None else sum(steady) / len(steady),
        worst_steady=None if steady is None else max(steady),
        drift=drift,
    )


class ModelTimer:
    """Times one pass of a model at a batch size and a sequence length; plans are built before the clock starts."""

    def __init__(
        self, model: ElasticBertForSequenceClassification, batch_size: int, seq_length: int, chance: random.Random
    ) -> None:
        vocabulary = model.config.vocab_size
        tokens = [[chance.randrange(vocabulary) for _ in range(seq_length)] for _ in range(batch_size)]
        self._model = model
        self._batch, _ = model.pack(tokens)
        self._lengths = [seq_length] * batch_size
        self._plans: dict[SubnetShape, Plan] = {}

    def __call__(self, shape: SubnetShape) -> Sample:
        plan = self._plans.get(shape)
        if plan is None:
            plan = self._plans[shape] = Plan.uniform(shape, self._lengths, device=self._model.device)
        return timed(lambda: self._model(batch=self._batch, plan=plan), self._model.device)


def neuron_step(dtype: str, device: torch.device) -> int:
    """Neurons that a kernel computes as one."""
    if device.type != "cpu":
        return DEVICE_PANEL
    return INT8_PANEL if dtype == "int8" else max(1, dk.packed_panel(getattr(torch, dtype)))


def share_of_time(seconds: float, units: Sequence[float], fewest: int) -> float:
    """Seconds for the first of several points, whose passes take ``units`` seconds, when ``seconds`` are left for all.

    A part is shared equally, so that points of short passes, which are the restless ones, get many. Of the rest each
    gets its ``fewest`` passes, as far as the time goes; what is left is shared by the root of a pass's time, which
    makes the sum of the variances least.
    """
    seconds = max(0.0, seconds)
    equal = EQUAL_SHARE * seconds / len(units)
    seconds *= 1.0 - EQUAL_SHARE
    needed = fewest * sum(units)
    if seconds <= needed:
        return equal + seconds * units[0] / sum(units)
    return equal + fewest * units[0] + (seconds - needed) * math.sqrt(units[0]) / sum(map(math.sqrt, units))


def _seconds_of_a_pass(timer: Timer, whole: SubnetShape) -> float:
    """Of the whole network, warmed up, by the clock: what other work holds up costs of the budget too."""
    timer(whole)
    start = time.perf_counter()
    timer(whole)
    timer(whole)
    return max(1e-6, (time.perf_counter() - start) / 2)


def _middle(values: Sequence[int]) -> int:
    """Between the two largest: the gap that interpolation has to bridge."""
    last = sorted(values)[-2:]
    return round(math.sqrt(last[0] * last[-1]))


def _notes(cells: Sequence[ProfiledCell], check: int, facts: DeviceFacts) -> list[str]:
    notes = []
    held_up = sum(cell.disturbed for cell in cells) / len(cells)
    if held_up > BUSY:
        how = (
            "for those the processor's time was taken"
            if facts.threads == 1
            else "the low quartile of their times was taken"
        )
        notes.append(
            f"the machine was busy: {100 * held_up:.0f} % of the passes were held up by other work; {how}; profile "
            "again when it is quiet"
        )
    fewer = [cell for cell in cells if cell.error.networks < check]
    if fewer:
        least = min(cell.error.networks for cell in fewer)
        notes.append(
            f"fewer than {check} sub-networks were re-measured at {len(fewer)} of {len(cells)} points (at least "
            f"{least}): --max_minutes did not allow more"
        )
    return notes


def _check_options(
    dtypes: Sequence[str], batch_sizes: Sequence[int], seq_lengths: Sequence[int], max_minutes: float, check: int
) -> None:
    for name, values in (("dtypes", dtypes), ("batch_sizes", batch_sizes), ("seq_lengths", seq_lengths)):
        if not values or len(set(values)) < len(values):
            raise ValueError(f"profile: {name} are {list(values)}; allowed: at least one, each once")
    for name, numbers in (("batch_sizes", batch_sizes), ("seq_lengths", seq_lengths)):
        if min(numbers) < 1:
            raise ValueError(f"profile: {name} are {list(numbers)}; allowed: 1 or more")
    unknown = [name for name in dtypes if name not in DTYPE_SHARE]
    if unknown:
        raise ValueError(f"profile: dtype is {unknown[0]!r}; allowed: {', '.join(DTYPE_SHARE)}")
    if not 0.0 < max_minutes < math.inf:
        raise ValueError(f"profile: max_minutes is {max_minutes}; allowed: above 0")
    if check < 0:
        raise ValueError(f"profile: check is {check}; allowed: 0 or more")
