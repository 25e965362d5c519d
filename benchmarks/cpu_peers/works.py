"""What is timed: single texts, real lengths in both orders, widths, a mixed batch, and a text from end to end."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks.training_step import SST2_LENGTHS

Ids = list[list[int]]
Name = TypeVar("Name")
WIDTHS = ("w1-d1", "w0.75-d1", "w0.5-d1", "w0.25-d1")
BATCH = 32
SHORT = 0.2  # seconds; what takes longer does not notice how it began


@dataclass(frozen=True)
class Work:
    """Batches of token ids that one sample runs through. ``subnet``: for ours; peers run the whole network."""

    name: str
    batches: tuple[Ids, ...]
    subnet: str | tuple[str, ...] | None = None
    only_ours: bool = False

    @property
    def real_tokens(self) -> int:
        return sum(len(text) for batch in self.batches for text in batch)

    @property
    def padded_tokens(self) -> int:
        return sum(len(batch) * max(map(len, batch)) for batch in self.batches)


def random_texts(lengths: Sequence[int], vocabulary: int, seed: int) -> Ids:
    """Texts of these lengths with random ids."""
    drawn = random.Random(seed)
    return [[drawn.randrange(1000, vocabulary) for _ in range(length)] for length in lengths]


def sst2_like(count: int, vocabulary: int, seed: int) -> Ids:
    """Texts with the lengths of SST-2's dev sentences, drawn by the seed."""
    lengths, weights = zip(*SST2_LENGTHS, strict=True)
    return random_texts(random.Random(seed).choices(lengths, weights, k=count), vocabulary, seed)


def in_batches(texts: Ids) -> tuple[Ids, ...]:
    """Batches of 32 in the order given."""
    return tuple(texts[i : i + BATCH] for i in range(0, len(texts), BATCH))


def dev_texts(task: str, data_dir: Path, tokenizer: object, count: int) -> Ids:
    """Token ids of the first texts of a task's dev set."""
    from dynabert.data import load_task, tokenise

    encoded = tokenise(load_task(task, data_dir=data_dir), tokenizer, 128, truncate=True)  # type: ignore[arg-type]
    return [list(ids) for ids in encoded.input_ids[:count]]


def works(vocabulary: int, real: Mapping[str, Ids], seed: int) -> list[Work]:
    """All works from token ids to logits."""
    found = []
    for texts in (1, 8):
        batch = (random_texts([128] * texts, vocabulary, seed),)
        found.append(Work(f"{texts} x 128", batch))
        narrower = [f"w{width}-d{depth}" for depth in (1, 0.5) for width in (1, 0.75, 0.5, 0.25)][1:]
        found += [Work(f"{texts} x 128, {subnet}", batch, subnet, only_ours=True) for subnet in narrower]
    for task, texts in real.items():
        found.append(Work(f"{task}, arrival order", in_batches(texts)))
        if len(texts) > BATCH:  # one batch pads alike in any order: its row would be read as one of sorted texts
            found.append(Work(f"{task}, sorted by length", in_batches(sorted(texts, key=len, reverse=True))))
    # A quarter of the texts at each width, in one batch, against each width alone on the same batch.
    batch = (random_texts([128] * 16, vocabulary, seed),)
    found += [Work(f"16 x 128, {width}", batch, width, only_ours=True) for width in WIDTHS]
    mixed = tuple(width for width in WIDTHS for _ in range(4))
    found.append(Work("16 x 128, four widths", batch, mixed, only_ours=True))
    return found


@dataclass
class Times:
    """Seconds of each sample: by the clock, and of the processor in all threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def numbers(self) -> dict[str, object]:
        quartiles = statistics.quantiles(self.wall, n=4) if len(self.wall) > 1 else [self.wall[0]] * 3
        return {
            "samples": len(self.wall),
            "median_ms": 1e3 * statistics.median(self.wall),
            "quartiles_ms": [1e3 * quartiles[0], 1e3 * quartiles[2]],
            "min_ms": 1e3 * min(self.wall),
            "cpu_median_ms": 1e3 * statistics.median(self.cpu),
        }


def interleave(
    contenders: Mapping[Name, Callable[[], object]],
    seconds: float,
    rounds: int = 3,
    most: int = 40,
    rest: float = 0.0,
) -> dict[Name, Times]:
    """Rounds in which each contender runs once, each round starting with another, until the time is up.

    One round warms up; at least ``rounds`` are timed, and at most ``most``. ``rest``: seconds of sleep before each run,
    which do not count: an engine's threads may go on spinning after its answer, and would take the next one's cores.
    After the rest a short contender runs once untimed, since cores that slept take a while to wake.
    """
    names = list(contenders)
    short = set()
    for name in names:
        begun = time.perf_counter()
        contenders[name]()
        if time.perf_counter() - begun < SHORT:
            short.add(name)
    times = {name: Times() for name in names}
    until = time.perf_counter() + seconds
    for turn in range(most):
        if turn >= rounds and time.perf_counter() > until:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if rest > 0:
                begun = time.perf_counter()
                time.sleep(rest)
                if name in short:
                    contenders[name]()
                until += time.perf_counter() - begun
            wall, cpu = time.perf_counter(), time.process_time()
            contenders[name]()
            times[name].cpu.append(time.process_time() - cpu)
            times[name].wall.append(time.perf_counter() - wall)
    return times
