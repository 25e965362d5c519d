"""One timed pass, and how to tell that other work of the machine held it up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

Name = TypeVar("Name")

WAITED = 0.02  # share of a pass; a pass of one thread that waited longer was held up
FEWEST_QUIET = 3  # undisturbed passes, or half of all; with fewer the others count too
LOW_QUANTILE = 25
QUIET_MACHINE = 0.05  # share of passes that may be held up on one
# Distance of the quartiles over the median. Beside other work, int8 at 1 x 32 tokens scattered by 0.2 and more; medians
# of half the rounds then differed by 6 % from those of the other half, low quartiles by 3 %.
QUIET_SCATTER = 0.05
TRIES, SHORT_MS = 4, 8.0  # a pass as long as the system lets a process run would be held up again


class Sample(NamedTuple):
    """Milliseconds of a pass, and whether other work held it up.

    A disturbed pass of one thread has the thread's own processor time, which waiting is not part of; of several
    threads it has the time by the clock. ``wall_ms``: the time by the clock where ``ms`` is another; else None.
    """

    ms: float
    disturbed: bool
    wall_ms: float | None = None

    @property
    def clock_ms(self) -> float:
        """Milliseconds by the clock."""
        return self.ms if self.wall_ms is None else self.wall_ms


def timed(call: Callable[[], object], device: torch.device) -> Sample:
    """Run ``call`` once and wait for the device.

    A short pass that was held up is run again at once, a few times at most: it then finds the processor free for a
    while and its caches warm.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
        start = time.perf_counter()
        call()
        torch.accelerator.synchronize(device)
        return Sample(1e3 * (time.perf_counter() - start), False)
    alone = torch.get_num_threads() == 1
    sample = _timed_on_cpu(call, alone)
    for _ in range(TRIES - 1):
        if not sample.disturbed or sample.ms > SHORT_MS:
            break
        sample = _timed_on_cpu(call, alone)
    return sample


def _timed_on_cpu(call: Callable[[], object], alone: bool) -> Sample:
    switches = _involuntary_switches()
    start, own = time.perf_counter(), time.thread_time()
    call()
    own, wall = time.thread_time() - own, time.perf_counter() - start
    if alone:
        disturbed = wall - own > WAITED * wall
        return Sample(1e3 * own, True, 1e3 * wall) if disturbed else Sample(1e3 * wall, False)
    return Sample(1e3 * wall, _involuntary_switches() > switches)


def typical_times(samples: Mapping[Name, Sequence[Sample]]) -> dict[Name, float]:
    """What a pass of each would take on a quiet machine: the median where (nearly) nothing was disturbed or scattered.

    Else the low quartile, since caches are cold and memory is shared beside other work: of the undisturbed samples
    where there are three of them, or half; else of all, which for one thread are processor times. One rule for all, so
    that they compare.
    """
    quantile = typical_quantile(samples)
    return {name: _typical(taken, quantile) for name, taken in samples.items()}


def typical_quantile(samples: Mapping[Name, Sequence[Sample]]) -> int:
    """50 where (nearly) nothing was disturbed or scattered, else the low one: what `typical_times` takes of all."""
    every = [sample for taken in samples.values() for sample in taken]
    disturbed = sum(sample.disturbed for sample in every) > QUIET_MACHINE * len(every)
    return LOW_QUANTILE if disturbed or _scatter(samples) > QUIET_SCATTER else 50


def compared_time(samples: Sequence[Sample], quantile: int) -> str:
    """In words, which time of a sub-network's passes `typical_times` gave."""
    quiet = _counted(samples)
    if len(quiet) < len(samples):
        of = f"the {len(quiet)} of {len(samples)} passes that were not held up, by the clock"
    elif any(sample.wall_ms is not None for sample in samples):
        of = f"{len(samples)} passes, of those held up the thread's processor time"
    else:
        of = f"{len(samples)} passes by the clock"
    return f"{'median' if quantile == 50 else 'low quartile'} of {of}"


def _scatter(samples: Mapping[Name, Sequence[Sample]]) -> float:
    """Distance of the quartiles over the median, of the middling sub-network."""
    quartiles = [np.percentile([sample.ms for sample in taken], [25, 50, 75]) for taken in samples.values()]
    return float(np.median([(high - low) / middle for low, middle, high in quartiles])) if quartiles else 0.0


def _typical(samples: Sequence[Sample], quantile: int) -> float:
    return float(np.percentile([sample.ms for sample in _counted(samples)], quantile))


def _counted(samples: Sequence[Sample]) -> Sequence[Sample]:
    quiet = [sample for sample in samples if not sample.disturbed]
    return samples if len(quiet) < FEWEST_QUIET and 2 * len(quiet) < len(samples) else quiet


def _involuntary_switches() -> int:
    """How often the system took the processor from one of this process's threads; 0 where that cannot be asked."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
