"""Times several callables against each other, and the device they run on.

A time alone says little: machines are shared, clocks wander. So contenders are interleaved (each round runs every one,
and each round starts with another), the median stands beside the 20th and 80th percentile, and a share of the device's
own measured ceiling says how much is left to gain. The clock is an argument.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

Contender = Callable[[], object]

# Assumed where the machine does not say; `last_level_cache` returns it with that remark.
ASSUMED_CACHE_BYTES = 64 * 2**20


class Sample(NamedTuple):
    """Time of one call: on the device, and of the host that asked for it (equal on a CPU)."""

    device_ms: float
    host_ms: float


class Clock(Protocol):
    """Measures ``calls`` calls in a row. What it returns waits for the device and gives the time of one call.

    ``lead_ms``: how long the device is held first, so that the host has queued the calls before the measured time
    begins. A device that works while it is called has no use for it.
    """

    def measure(self, contender: Contender, calls: int, lead_ms: float = 0.0) -> Callable[[], Sample]: ...


class HostClock:
    """Wall-clock time of work that is done when the call returns; no lead. ``now_ns`` is replaced in tests."""

    def __init__(self, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._now_ns = now_ns

    def measure(self, contender: Contender, calls: int, lead_ms: float = 0.0) -> Callable[[], Sample]:
        begin = self._now_ns()
        for _ in range(calls):
            contender()
        taken_ms = (self._now_ns() - begin) / 1e6 / calls
        return lambda: Sample(taken_ms, taken_ms)


class CudaClock:
    """CUDA events around work queued behind a device that is held busy for ``lead_ms``.

    Once the host has queued all calls within the lead, the time is the device's own, as in a captured graph; the host's
    time to queue one call is told apart. A contender that synchronises waits the lead out: its host time holds that
    wait, and its device time holds the gaps that its synchronisation makes.
    """

    _CALIBRATION_CYCLES = 1_000_000
    _LONGEST_LEAD_MS = 20.0

    def __init__(self, device: torch.device | str = "cuda") -> None:
        self._device = torch.device(device)
        # A matrix product or a memset would hold the device too, but would leave other data in its cache.
        spin: Callable[[int], None] | None = getattr(torch.cuda, "_sleep", None)
        if spin is None:
            raise RuntimeError("CudaClock: PyTorch has no torch.cuda._sleep here; give time_interleaved another clock")
        self._spin = spin
        with torch.cuda.device(self._device):
            self._spin(self._CALIBRATION_CYCLES)
            begin, end = self._event(), self._event()
            begin.record()
            self._spin(self._CALIBRATION_CYCLES)
            end.record()
            end.synchronize()
            self._cycles_per_ms = self._CALIBRATION_CYCLES / max(begin.elapsed_time(end), 1e-3)

    @staticmethod
    def _event() -> Any:
        return torch.cuda.Event(enable_timing=True)

    def measure(self, contender: Contender, calls: int, lead_ms: float = 0.0) -> Callable[[], Sample]:
        with torch.cuda.device(self._device):
            begin, end = self._event(), self._event()
            if lead_ms > 0.0:
                self._spin(int(min(lead_ms, self._LONGEST_LEAD_MS) * self._cycles_per_ms))
            begin.record()
            started = time.perf_counter_ns()
            for _ in range(calls):
                contender()
            host_ms = (time.perf_counter_ns() - started) / 1e6 / calls
            end.record()

        def wait() -> Sample:
            end.synchronize()
            return Sample(begin.elapsed_time(end) / calls, host_ms)

        return wait


def clock_for(device: torch.device | str) -> Clock:
    """The clock of a device. Raises ``ValueError`` for one that has none here."""
    kind = torch.device(device).type
    if kind == "cpu":
        return HostClock()
    if kind == "cuda":
        return CudaClock(device)
    raise ValueError(f"clock_for: no clock for this device; got {kind!r}; allowed: cpu, cuda; write a Clock for it")


def why_lost(device: torch.device) -> str | None:
    """Why nothing more can run on the device in this process, as after an illegal address; None while it answers."""
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


class Rotation:
    """Deals input sets out in turn to all contenders that share it: none finds a set that its neighbour just warmed.

    Enough sets together exceed the last-level cache, and each call meets data that was displaced since its last use, as
    a layer's weights are by the other layers'.
    """

    def __init__(self, num_sets: int) -> None:
        if num_sets < 1:
            raise ValueError(f"Rotation: num_sets is out of range; got {num_sets}; allowed: 1 or more")
        self.num_sets = num_sets
        self._turn = 0

    def contender(self, function: Callable[..., object], arguments: Sequence[tuple[Any, ...]]) -> Contender:
        """Calls ``function`` on the next set of ``arguments``, whichever contender took the one before."""
        if len(arguments) != self.num_sets:
            raise ValueError(f"Rotation: wrong number of argument sets; got {len(arguments)}; allowed: {self.num_sets}")

        def call() -> object:
            self._turn = (self._turn + 1) % self.num_sets
            return function(*arguments[self._turn])

        return call


def sets_to_displace(cache_bytes: int, touched_bytes: int, *, most: int = 512) -> int:
    """How many input sets of ``touched_bytes`` a rotation needs to fill a cache twice; at most ``most``."""
    if touched_bytes <= 0:
        return 1
    return max(1, min(most, math.ceil(2 * cache_bytes / touched_bytes)))


@dataclass(frozen=True)
class Timing:
    """One contender's times of one call, over all rounds."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    best_ms: float
    host_ms: float
    rounds: int
    calls_per_sample: int

    @classmethod
    def from_samples(cls, samples: Sequence[Sample], calls_per_sample: int) -> Timing:
        times = [sample.device_ms for sample in samples]
        return cls(
            median_ms=quantile(times, 0.5),
            p20_ms=quantile(times, 0.2),
            p80_ms=quantile(times, 0.8),
            best_ms=min(times),
            host_ms=quantile([sample.host_ms for sample in samples], 0.5),
            rounds=len(samples),
            calls_per_sample=calls_per_sample,
        )


def quantile(values: Sequence[float], q: float) -> float:
    """The ``q`` quantile, with linear interpolation between neighbours. Raises ``ValueError`` on no values."""
    if not values or not 0.0 <= q <= 1.0:
        raise ValueError(f"quantile: nothing to rank; got {len(values)} values, q={q}; allowed: 1 or more, q in [0, 1]")
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def time_interleaved(
    contenders: Mapping[str, Contender],
    *,
    clock: Clock,
    rounds: int = 30,
    warmup_rounds: int = 3,
    min_sample_ms: float = 0.2,
    max_calls: int = 1000,
    before_sample: Contender | None = None,
) -> dict[str, Timing]:
    """Times ``contenders`` against each other.

    ``rounds``: samples of each; every round runs all of them and begins one further on, so no one always follows the
    same neighbour. ``warmup_rounds``: unmeasured rounds of single calls, which also size the samples.
    ``min_sample_ms``: a sample repeats its call until it lasts about that long, at most ``max_calls`` times.
    ``before_sample``: runs unmeasured before each sample (a :class:`CacheFlush`); samples are then one call, since a
    second would find what the first left in the cache.

    Returns the timing of each, by name. Synchronises at the end of each round. Raises ``ValueError`` when there is
    nothing to time.
    """
    if not contenders or rounds < 1 or warmup_rounds < 1:
        raise ValueError(
            f"time_interleaved: nothing to time; got {len(contenders)} contenders, rounds={rounds}, "
            f"warmup_rounds={warmup_rounds}; allowed: 1 or more of each"
        )
    names = list(contenders)
    least = {name: Sample(math.inf, math.inf) for name in names}
    for _ in range(warmup_rounds):
        for name in names:
            if before_sample is not None:
                before_sample()
            sample = clock.measure(contenders[name], 1)()
            least[name] = Sample(*map(min, least[name], sample))
    calls = dict.fromkeys(names, 1)
    if before_sample is None:
        for name in names:
            calls[name] = max(1, min(max_calls, math.ceil(min_sample_ms / max(least[name].device_ms, 1e-6))))
    # From the least host time, without a lead: one that synchronises must not be given more for having waited for it.
    leads_ms = {name: 2.0 * calls[name] * least[name].host_ms + 0.02 for name in names}
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    with _no_garbage_collection():
        for index in range(rounds):
            first = index % len(names)
            pending = []
            for name in names[first:] + names[:first]:
                if before_sample is not None:
                    before_sample()
                pending.append((name, clock.measure(contenders[name], calls[name], leads_ms[name])))
            for name, wait in pending:
                samples[name].append(wait())
    return {name: Timing.from_samples(samples[name], calls[name]) for name in names}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def last_level_cache(device: torch.device | str) -> tuple[int, str]:
    """Bytes of the last-level cache, and where that number comes from; an assumed size says that it is one."""
    target = torch.device(device)
    if target.type == "cuda":
        return int(torch.cuda.get_device_properties(target).L2_cache_size), "CUDA device properties"
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text[:-1].isdigit() and text[-1:] in units:
            sizes.append(int(text[:-1]) * units[text[-1]])
    if sizes:
        return max(sizes), "sysfs"
    return ASSUMED_CACHE_BYTES, "assumed, the machine does not say"


class CacheFlush:
    """Displaces what is in the last-level cache by writing a buffer twice its size. Does not synchronise."""

    def __init__(self, device: torch.device | str, cache_bytes: int | None = None) -> None:
        size = last_level_cache(device)[0] if cache_bytes is None else cache_bytes
        self.buffer = torch.zeros(max(1, 2 * size // 4), dtype=torch.int32, device=device)

    def __call__(self) -> None:
        self.buffer.add_(1)


@dataclass(frozen=True)
class Ceilings:
    """What a device was measured to do at best, shortly before other times are held against it.

    ``copy_gb_s``: bytes a copy touches (read plus written) -> rate; the largest is several times the last-level cache.
    ``matrix_gflop_s``: dtype name -> rate of a square product of ``matrix_sizes`` (2 operations a multiply-add), the
    best of a few sizes. Rates are those of the best sample: a ceiling must not sink because a neighbour was busy.
    """

    copy_gb_s: Mapping[int, float]
    matrix_gflop_s: Mapping[str, float]
    matrix_sizes: Mapping[str, int]
    cache_bytes: int
    cache_source: str

    def bandwidth_gb_s(self, size_bytes: float, *, cached: bool) -> float:
        """The copy rate that bounds ``size_bytes``: memory's, or for cached data the best from this size up."""
        largest = max(self.copy_gb_s)
        if not cached:
            return self.copy_gb_s[largest]
        rates = [rate for size, rate in self.copy_gb_s.items() if size >= size_bytes]
        return max(rates, default=self.copy_gb_s[largest])

    def floor_ms(self, *, cold_bytes: float, cached_bytes: float, operations: float, dtype: torch.dtype) -> float:
        """The least time for moving these bytes and doing these matrix operations, whichever takes longer."""
        return max(
            self.bytes_ms(cold_bytes=cold_bytes, cached_bytes=cached_bytes), self.operations_ms(operations, dtype)
        )

    def bytes_ms(self, *, cold_bytes: float, cached_bytes: float) -> float:
        """The time to move bytes from memory and from the cache."""
        cold = cold_bytes / self.bandwidth_gb_s(cold_bytes, cached=False)
        return (cold + cached_bytes / self.bandwidth_gb_s(cached_bytes, cached=True)) / 1e6

    def operations_ms(self, operations: float, dtype: torch.dtype) -> float:
        """The time of matrix operations. Raises ``KeyError`` on a dtype that was not measured."""
        return operations / self.matrix_gflop_s[dtype_name(dtype)] / 1e6

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a file."""
        return {
            "copy_gb_s": {str(size): rate for size, rate in self.copy_gb_s.items()},
            "matrix_gflop_s": dict(self.matrix_gflop_s),
            "matrix_sizes": dict(self.matrix_sizes),
            "cache_bytes": self.cache_bytes,
            "cache_source": self.cache_source,
        }


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def measure_ceilings(
    device: torch.device | str,
    dtypes: Sequence[torch.dtype],
    *,
    clock: Clock | None = None,
    rounds: int = 10,
    matrix_size: int | None = None,
    cache_bytes: int | None = None,
) -> Ceilings:
    """Copy bandwidth at four sizes around the last-level cache, and the matrix rate of each dtype, on random data.

    ``matrix_size``: None is 1024 on a CPU and 8192 on a GPU; a dtype that the device multiplies slowly gets a smaller
    one. float32 products follow PyTorch's own TF32 switch, off by default. Takes seconds and synchronises.
    """
    target = torch.device(device)
    timer = clock_for(target) if clock is None else clock
    found, source = last_level_cache(target)
    cache = found if cache_bytes is None else cache_bytes
    size = matrix_size if matrix_size is not None else (8192 if target.type == "cuda" else 1024)
    copies: dict[int, float] = {}
    for touched in (cache // 64, cache // 16, cache // 4, cache * 8):
        # Half of the bytes are read, half are written. Random values, since zeros can run faster than data.
        origin = torch.randn(max(1, touched // 8), dtype=torch.float32, device=target)
        goal = torch.empty_like(origin)
        timing = time_interleaved({"copy": _copier(origin, goal)}, clock=timer, rounds=rounds, warmup_rounds=2)["copy"]
        copies[2 * origin.numel() * 4] = 2 * origin.numel() * 4 / timing.best_ms / 1e6
        del origin, goal
    rates: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for dtype in dtypes:
        name = dtype_name(dtype)
        largest = size
        # A quarter of the size fills a large device already, so its time foretells the whole one's.
        probe = max(1, size // 4)
        probe_ms = _matrix_ms(target, dtype, probe, timer, rounds=1)
        while largest > probe and probe_ms * (largest / probe) ** 3 > _SLOW_PRODUCT_MS:
            largest //= 2
        # The smaller one fits between two interruptions of a shared CPU, the larger one fills a large device.
        for side in sorted({max(1, largest // 2), largest}):
            rate = 2.0 * side**3 / _matrix_ms(target, dtype, side, timer, rounds=rounds) / 1e6
            if rate > rates.get(name, 0.0):
                rates[name], sizes[name] = rate, side
    return Ceilings(copies, rates, sizes, cache, source if cache_bytes is None else "given")


# A product that takes longer is not worth its time as a ceiling: a smaller one then stands for it.
_SLOW_PRODUCT_MS = 200.0


def _matrix_ms(device: torch.device, dtype: torch.dtype, size: int, clock: Clock, *, rounds: int) -> float:
    left, right = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    product = {"product": _multiplier(left, right)}
    return time_interleaved(product, clock=clock, rounds=rounds, warmup_rounds=2)["product"].best_ms


def _copier(origin: torch.Tensor, goal: torch.Tensor) -> Contender:
    return lambda: goal.copy_(origin)


def _multiplier(left: torch.Tensor, right: torch.Tensor) -> Contender:
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


__all__ = [
    "CacheFlush",
    "Ceilings",
    "Clock",
    "Contender",
    "CudaClock",
    "HostClock",
    "Rotation",
    "Sample",
    "Timing",
    "clock_for",
    "dtype_name",
    "last_level_cache",
    "measure_ceilings",
    "quantile",
    "sets_to_displace",
    "time_interleaved",
    "why_lost",
]
