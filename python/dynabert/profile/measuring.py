"""Profiling: time designed sub-networks and random ones, fit the sum to the designed, state its error on the random.

Every round times each sub-network once, designed and random, in a new random order, so that a slow moment of the
machine falls on all of them alike. The fit sees no random one. At the end of a dtype some of the random ones are timed
again, with an anchor sub-network that says how much the machine's own speed has changed since.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

import dynabert_kernels as dk
from dynabert.profile.additive_model import Counts, fit_costs
from dynabert.profile.device_facts import DeviceFacts
from dynabert.profile.device_profile import DeviceProfile, ErrorStatement, ProfiledCell
from dynabert.profile.encoder_shape import EncoderShape
from dynabert.profile.sampling import anchor, fitting_networks, random_networks, whole_network
from dynabert.profile.served_pass import ServedPass
from dynabert.profile.timing import Sample, timed, typical_times
from dynabert_kernels import SubnetShape

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification

BATCH_SIZES, SEQ_LENGTHS = (1, 8), (32, 128)
INT8_PANEL = 32  # outputs in a panel of int8 weights, on every machine
DEVICE_PANEL = 16  # GPU kernels take neurons in multiples of this
AVERAGE_SHARE = 0.4  # of the whole network's time that a random sub-network takes
DTYPE_SHARE = {"float32": 1.0, "bfloat16": 0.7, "float16": 0.7, "int8": 0.5}  # of the time: a faster dtype needs less
FEWEST_FITTED, MOST_FITTED = 24, 48
FEWEST_CHECKED = 6
FEWEST_ROUNDS = 3
ENOUGH_ROUNDS = 20  # undisturbed ones; their median moves little with more
LATER_CHECKED, LATER_ROUNDS = 8, 4
EQUAL_SHARE = 0.25  # of the time of a dtype, at least, for all its points alike
BETWEEN_CHECKED = 8
MOST_TOKENS = 1 << 20  # of a timed pass; they are drawn one by one, and more would not return
DRIFTED = 0.1  # change of the anchor's time; above it the profile says that the machine's speed changed
BUSY = 0.2  # share of passes held up; above it the profile says that the machine was busy

Timer = Callable[[SubnetShape], Sample]


@dataclass(frozen=True)
class CellBudget:
    """How much of what a cell gets: seconds, and random sub-networks for its error."""

    seconds: float
    check: int


@dataclass(frozen=True)
class CellRun:
    """A cell, and the times in its rounds of the anchor (first) and of the random sub-networks."""

    cell: ProfiledCell
    checked_ms: dict[SubnetShape, float]


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

    The pass that is timed is the model's own on packed random tokens, on a GPU through the engine's CUDA graphs
    (`dynabert.profile.served_pass`); tokenising and packing are not in it. Torch's threads are used as they are set.

    Args:
        open_model: gives the network in a dtype (``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"``), on its
            device and in the form in which it serves: weights packed where they would be. Called once for each dtype;
            the one before is let go first.
        dtypes, batch_sizes, seq_lengths: what is measured, every combination.
        max_minutes: for everything. The fewest passes that a fit and a check need are done even if they take longer.
        check: random sub-networks that are measured, and not fitted, at every combination; fewer where the time
            does not allow it.
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
            fewest = (FEWEST_FITTED + check) * FEWEST_ROUNDS
            later = (LATER_CHECKED + 1) * LATER_ROUNDS * sum(units) if check else 0.0
            runs: list[CellRun] = []
            for place, (batch, length) in enumerate(asked):
                bar.set_description(f"profile {dtype} {batch} x {length}")
                left_here = own - later - (time.perf_counter() - started - (seconds - left))
                given = share_of_time(left_here, units[place:], fewest)
                if (batch, length) in points:
                    run = profile_cell(
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
                    runs.append(run)
                elif check:
                    found = DeviceProfile(facts, encoder, tuple(run.cell for run in runs), "", seed, 0.0)
                    error = check_between(timers[place], found, batch, length, dtype, given, chance=chance)
                    between.append((dtype, batch, length, error))
                bar.n = min(bar.total, round(time.perf_counter() - started))
                bar.refresh()
            bar.set_description(f"profile {dtype}, again")
            cells += [time_again(timer, run, chance) for timer, run in zip(timers, runs, strict=False)]
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
) -> CellRun:
    """Measure, fit and check one dtype, batch size and sequence length.

    ``sample`` times one pass of a sub-network; ``step``: neurons in a panel; ``unit_seconds``: about what a random one
    takes; ``threads``: those that share a pass's panels; ``now``: the clock that the budget is held against.
    """
    passes = budget.seconds / unit_seconds
    checked = min(budget.check, max(FEWEST_CHECKED, int(passes / FEWEST_ROUNDS) - FEWEST_FITTED))
    fitted = min(MOST_FITTED, max(FEWEST_FITTED, int(passes / (2 * FEWEST_ROUNDS)) - checked))
    still = anchor(encoder)
    designed = list(dict.fromkeys([still, *fitting_networks(encoder, fitted, step, chance)]))
    fresh, uniform = random_networks(encoder, checked, chance, set(designed))
    samples = run_rounds(sample, [*designed, *fresh], now() + budget.seconds, chance, least=FEWEST_ROUNDS, now=now)
    typical = typical_times(samples)
    costs = fit_costs(
        *_counts(designed, encoder),
        np.array([typical[shape] for shape in designed]),
        max_heads=encoder.max_heads,
        max_neurons=encoder.max_neurons,
        step=step,
        threads=threads,
    )
    predicted = costs.predict(*_counts(fresh, encoder)).tolist()
    every = [one for taken in samples.values() for one in taken]
    cell = ProfiledCell(
        dtype=dtype,
        batch_size=batch_size,
        seq_length=seq_length,
        costs=costs,
        error=state_error(predicted, [typical[shape] for shape in fresh], uniform),
        fitted_networks=len(designed),
        samples=sum(len(samples[shape]) for shape in designed),
        disturbed=round(sum(one.disturbed for one in every) / len(every), 3),
    )
    return CellRun(cell, {shape: typical[shape] for shape in (still, *fresh)})


def time_again(sample: Timer, run: CellRun, chance: random.Random) -> ProfiledCell:
    """The cell with what some of its random sub-networks, and the anchor, take now."""
    still, *fresh = run.checked_ms
    if not fresh:
        return run.cell
    networks = chance.sample(fresh, min(LATER_CHECKED, len(fresh)))
    # As often as the time was reserved for, and no longer.
    again = typical_times(run_rounds(sample, [still, *networks], -math.inf, chance, least=LATER_ROUNDS))
    heads = np.array([shape.heads for shape in networks])
    predicted = run.cell.costs.predict(heads, np.array([shape.neurons for shape in networks]))
    off = [abs(found / again[shape] - 1.0) for found, shape in zip(predicted.tolist(), networks, strict=True)]
    error = replace(
        run.cell.error,
        later_networks=len(off),
        mean_later=sum(off) / len(off),
        worst_later=max(off),
        drift=again[still] / run.checked_ms[still],
    )
    return replace(run.cell, error=error)


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
    samples = run_rounds(sample, networks, time.perf_counter() + seconds, chance, least=FEWEST_ROUNDS)
    predicted = [profile.latency_ms(shape, batch_size, seq_length, dtype) for shape in networks]
    measured = typical_times(samples)
    return state_error(predicted, [measured[shape] for shape in networks], uniform)


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


def state_error(predicted: Sequence[float], measured: Sequence[float], uniform: int) -> ErrorStatement:
    """Mean and worst of ``|predicted / measured - 1|``."""
    off = [abs(p / m - 1.0) for p, m in zip(predicted, measured, strict=True)]
    if not off:
        return ErrorStatement(0, 0, None, None)
    return ErrorStatement(len(off), uniform, sum(off) / len(off), max(off))


def _counts(networks: Sequence[SubnetShape], encoder: EncoderShape) -> tuple[Counts, Counts]:
    heads = np.array([shape.heads for shape in networks], dtype=np.int64).reshape(-1, encoder.num_layers)
    return heads, np.array([shape.neurons for shape in networks], dtype=np.int64).reshape(-1, encoder.num_layers)


def check_pass_size(batch_size: int, seq_length: int) -> None:
    """Raises ``ValueError`` for a pass of more tokens than one is timed with."""
    if batch_size * seq_length > MOST_TOKENS:
        raise ValueError(
            f"profile: batch_size {batch_size} x seq_length {seq_length} are {batch_size * seq_length:,} tokens of one "
            f"pass; allowed: up to {MOST_TOKENS:,}; give a smaller --batch_size (--batch_sizes)"
        )


class ModelTimer:
    """Times one pass of a model at a batch size and a sequence length; plans, and on a GPU graphs, are made before the
    clock starts."""

    def __init__(
        self, model: ElasticBertForSequenceClassification, batch_size: int, seq_length: int, chance: random.Random
    ) -> None:
        check_pass_size(batch_size, seq_length)
        vocabulary = model.config.vocab_size
        tokens = [[chance.randrange(vocabulary) for _ in range(seq_length)] for _ in range(batch_size)]
        self._device = model.device
        self._pass = ServedPass(model, tokens)

    def __call__(self, shape: SubnetShape) -> Sample:
        return timed(self._pass.of(shape), self._device)


def neuron_step(dtype: str, device: torch.device) -> int:
    """Neurons that a kernel computes as one."""
    if device.type != "cpu":
        return DEVICE_PANEL
    return INT8_PANEL if dtype == "int8" else max(1, dk.packed_panel(getattr(torch, dtype)))


def share_of_time(seconds: float, units: Sequence[float], fewest: int) -> float:
    """Seconds for the first of several points, whose passes take ``units`` seconds, when ``seconds`` are left for all.

    Each gets its ``fewest`` passes, as far as three quarters of the time go; the rest is shared equally. So points of
    short passes, which are the restless ones, get many; what they do not use goes to those that follow.
    """
    seconds = max(0.0, seconds)
    needed = min(fewest * sum(units), (1.0 - EQUAL_SHARE) * seconds)
    return needed * units[0] / sum(units) + (seconds - needed) / len(units)


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
            f"fewer than {check} random sub-networks were measured at {len(fewer)} of {len(cells)} points (at least "
            f"{least}): --max_minutes, or a network of few sub-networks, did not allow more"
        )
    drifted = [cell.error.drift for cell in cells if cell.error.drift is not None]
    furthest = max(drifted, key=lambda drift: abs(drift - 1.0), default=1.0)
    if abs(furthest - 1.0) > DRIFTED:
        notes.append(
            f"the machine's speed changed while it was measured: an anchor sub-network took {furthest:.2f} times as "
            "long later; times are those of the first rounds; profile again, and expect limits to be missed by as much"
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
    check_pass_size(max(batch_sizes), max(seq_lengths))
    unknown = [name for name in dtypes if name not in DTYPE_SHARE]
    if unknown:
        raise ValueError(f"profile: dtype is {unknown[0]!r}; allowed: {', '.join(DTYPE_SHARE)}")
    if not 0.0 < max_minutes < math.inf:
        raise ValueError(f"profile: max_minutes is {max_minutes}; allowed: above 0")
    if check < 0:
        raise ValueError(f"profile: check is {check}; allowed: 0 or more")
