"""``dynabert_kernels.testing.timing``: its arithmetic and its order of events, on a made-up clock and device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from dynabert_kernels.testing import timing
from dynabert_kernels.testing.timing import Ceilings, CudaClock, HostClock, Rotation, Sample, Timing, time_interleaved


class FakeTime:
    """A clock that only moves when a contender says what it took."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.calls: list[str] = []

    def clock(self) -> HostClock:
        return HostClock(lambda: self.now_ns)

    def contender(self, name: str, *costs_ms: float) -> Callable[[], None]:
        """Takes ``costs_ms`` in turn, the last one from then on."""
        left = list(costs_ms)

        def call() -> None:
            self.calls.append(name)
            self.now_ns += round(1e6 * (left.pop(0) if len(left) > 1 else left[0]))

        return call


def test_quantiles_interpolate_between_neighbours() -> None:
    assert timing.quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert timing.quantile([10.0, 20.0, 30.0, 40.0, 50.0, 60.0], 0.2) == 20.0
    assert timing.quantile([1.0, 2.0], 0.8) == pytest.approx(1.8)
    assert timing.quantile([7.0], 0.2) == 7.0
    with pytest.raises(ValueError, match="quantile: nothing to rank; got 0 values"):
        timing.quantile([], 0.5)


def test_a_timing_holds_median_percentiles_best_and_host_time() -> None:
    found = Timing.from_samples([Sample(float(ms), float(ms) / 10) for ms in (5, 1, 3, 2, 4, 6)], 7)
    assert found == Timing(3.5, 2.0, 5.0, 1.0, 0.35, 6, 7)


def test_one_slow_round_does_not_move_the_median() -> None:
    fake = FakeTime()
    found = time_interleaved(
        {"a": fake.contender("a", 1.0, 1.0, 1.0, 500.0, 1.0)}, clock=fake.clock(), rounds=5, warmup_rounds=2
    )
    assert found["a"].median_ms == 1.0
    assert found["a"].rounds == 5


def test_every_round_runs_all_and_begins_one_further_on() -> None:
    fake = FakeTime()
    contenders = {name: fake.contender(name, 1.0) for name in "abc"}
    time_interleaved(contenders, clock=fake.clock(), rounds=4, warmup_rounds=1)
    assert "".join(fake.calls) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_a_sample_repeats_a_short_call_until_it_lasts() -> None:
    fake = FakeTime()
    contenders = {"short": fake.contender("short", 0.05), "long": fake.contender("long", 3.0)}
    found = time_interleaved(contenders, clock=fake.clock(), rounds=2, warmup_rounds=1, min_sample_ms=0.2)
    assert (found["short"].calls_per_sample, found["long"].calls_per_sample) == (4, 1)
    assert found["short"].median_ms == pytest.approx(0.05)
    assert fake.calls.count("short") == 1 + 2 * 4


def test_a_flush_runs_before_every_sample_and_is_not_timed() -> None:
    fake = FakeTime()
    found = time_interleaved(
        {"a": fake.contender("a", 0.01), "b": fake.contender("b", 0.02)},
        clock=fake.clock(),
        rounds=3,
        warmup_rounds=1,
        before_sample=fake.contender("-", 100.0),
    )
    assert "".join(fake.calls) == "-a-b" + "-a-b" + "-b-a" + "-a-b"
    assert found["a"].calls_per_sample == 1
    assert found["b"].p80_ms == pytest.approx(0.02)


@pytest.mark.parametrize("numbers", [{"rounds": 0}, {"warmup_rounds": 0}])
def test_nothing_to_time_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="time_interleaved: nothing to time"):
        time_interleaved({"a": lambda: None}, clock=HostClock(), **numbers)
    with pytest.raises(ValueError, match="got 0 contenders"):
        time_interleaved({}, clock=HostClock())


def test_garbage_is_collected_again_after_timing_even_when_a_contender_fails() -> None:
    left = [None] * 3  # warm-up, then the first two rounds

    def failing() -> None:
        if not left:
            assert not gc.isenabled()
            raise RuntimeError("planted")
        left.pop()

    with pytest.raises(RuntimeError, match="planted"):
        time_interleaved({"a": failing}, clock=HostClock(), rounds=9, warmup_rounds=1, min_sample_ms=0.0)
    assert gc.isenabled()


def test_a_rotation_gives_no_one_the_set_its_neighbour_just_used() -> None:
    seen: list[tuple[str, int]] = []
    rotation = Rotation(3)
    a = rotation.contender(lambda number: seen.append(("a", number)), [(0,), (1,), (2,)])
    b = rotation.contender(lambda number: seen.append(("b", number)), [(0,), (1,), (2,)])
    for call in (a, b, a, b):
        call()
    assert seen == [("a", 1), ("b", 2), ("a", 0), ("b", 1)]
    with pytest.raises(ValueError, match="Rotation: wrong number of argument sets; got 1; allowed: 3"):
        rotation.contender(print, [()])
    with pytest.raises(ValueError, match="Rotation: num_sets is out of range; got 0"):
        Rotation(0)


def test_a_rotation_fills_the_cache_twice() -> None:
    assert timing.sets_to_displace(32, 10) == 7
    assert timing.sets_to_displace(32, 1000) == 1
    assert timing.sets_to_displace(2**30, 1) == 512
    assert timing.sets_to_displace(32, 0) == 1


def test_a_flush_writes_twice_the_cache() -> None:
    flush = timing.CacheFlush("cpu", 1024)
    assert flush.buffer.numel() * flush.buffer.element_size() == 2048
    flush()
    assert bool((flush.buffer == 1).all())


CEILINGS = Ceilings(
    copy_gb_s={1_000: 50.0, 10_000: 200.0, 100_000: 100.0, 10_000_000: 10.0},
    matrix_gflop_s={"float32": 100.0},
    matrix_sizes={"float32": 1024},
    cache_bytes=1_000_000,
    cache_source="given",
)


def test_the_floor_is_the_slower_of_bytes_and_operations() -> None:
    # Memory: the largest copy. Cache: the best rate from this size up; past every size, memory's.
    assert CEILINGS.bandwidth_gb_s(500, cached=False) == 10.0
    assert CEILINGS.bandwidth_gb_s(500, cached=True) == 200.0
    assert CEILINGS.bandwidth_gb_s(20_000, cached=True) == 100.0
    assert CEILINGS.bandwidth_gb_s(10**9, cached=True) == 10.0
    # 1 MB from memory at 10 GB/s: 0.1 ms; 50 KB from the cache at 100 GB/s: 0.0005 ms.
    assert CEILINGS.bytes_ms(cold_bytes=1e6, cached_bytes=5e4) == pytest.approx(0.1005)
    # 50 MFLOP at 100 GFLOP/s: 0.5 ms.
    assert CEILINGS.operations_ms(5e7, torch.float32) == pytest.approx(0.5)
    assert CEILINGS.floor_ms(cold_bytes=1e6, cached_bytes=0, operations=5e7, dtype=torch.float32) == pytest.approx(0.5)
    assert CEILINGS.floor_ms(cold_bytes=1e7, cached_bytes=0, operations=5e7, dtype=torch.float32) == pytest.approx(1.0)


def test_ceilings_are_measured_on_this_device_at_sizes_around_its_cache() -> None:
    found = timing.measure_ceilings(
        "cpu", [torch.float32, torch.bfloat16], rounds=2, matrix_size=64, cache_bytes=1 << 16
    )
    assert list(found.copy_gb_s) == [1 << 10, 1 << 12, 1 << 14, 1 << 19]
    assert set(found.matrix_gflop_s) == {"float32", "bfloat16"}
    assert all(rate > 0 for rate in (*found.copy_gb_s.values(), *found.matrix_gflop_s.values()))
    assert found.cache_source == "given"
    assert found.as_dict()["copy_gb_s"][str(1 << 19)] == found.copy_gb_s[1 << 19]


def test_a_device_without_a_clock_is_refused() -> None:
    assert isinstance(timing.clock_for("cpu"), HostClock)
    with pytest.raises(ValueError, match="clock_for: no clock for this device; got 'meta'; allowed: cpu, cuda"):
        timing.clock_for("meta")


class FakeDevice:
    """Stands for ``torch.cuda``: one queue, on which a spin takes its cycles and a call 0.5 ms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue_ms = 0.0
        self.spins_ms: list[float] = []
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at_ms = -1.0

            def record(self) -> None:
                self.at_ms = device.queue_ms

            def synchronize(self) -> None:
                assert self.at_ms >= 0.0

            def elapsed_time(self, end: Event) -> float:
                return end.at_ms - self.at_ms

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", self.spin, raising=False)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())

    def spin(self, cycles: int) -> None:
        self.spins_ms.append(cycles / 1e6)
        self.queue_ms += cycles / 1e6

    def call(self) -> None:
        self.queue_ms += 0.5


def test_a_device_clock_holds_the_device_outside_the_measured_time(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(monkeypatch)
    clock = CudaClock()
    device.spins_ms.clear()
    assert clock.measure(device.call, 4)().device_ms == pytest.approx(0.5)
    assert device.spins_ms == []
    assert clock.measure(device.call, 4, lead_ms=3.0)().device_ms == pytest.approx(0.5)
    assert clock.measure(device.call, 4, lead_ms=1e9)().device_ms == pytest.approx(0.5)
    assert device.spins_ms == [pytest.approx(3.0), pytest.approx(20.0)]


def test_the_lead_is_twice_what_queuing_takes_and_does_not_grow_for_one_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = FakeDevice(monkeypatch)
    clock = CudaClock()
    now_ms = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: round(1e6 * now_ms[0]))

    def queued() -> None:
        device.call()
        now_ms[0] += 0.01

    def waiting() -> None:
        device.call()
        now_ms[0] = device.queue_ms

    device.spins_ms.clear()
    found = time_interleaved({"queued": queued, "waiting": waiting}, clock=clock, rounds=6, min_sample_ms=0.5)
    assert found["queued"].host_ms == pytest.approx(0.01)
    assert min(device.spins_ms) == pytest.approx(2 * 0.01 + 0.02)
    assert max(device.spins_ms) < 3.0


def test_a_device_clock_says_when_it_cannot_hold_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "_sleep", raising=False)
    with pytest.raises(RuntimeError, match=r"CudaClock: PyTorch has no torch.cuda._sleep"):
        CudaClock()


def test_the_cache_size_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    size, source = timing.last_level_cache("cpu")
    assert size > 0
    assert source

    def nothing(self: object, pattern: str) -> Sequence[object]:
        return []

    monkeypatch.setattr(timing.Path, "glob", nothing)
    assert timing.last_level_cache("cpu") == (timing.ASSUMED_CACHE_BYTES, "assumed, the machine does not say")
