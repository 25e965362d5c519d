"""Checks and times one work: build each contender, compare its answer, then all that are right in turns.

A contender that is not here, fails, is wrong, or runs out of memory is a row that says so, and the others go on.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks import rows
from benchmarks.cpu_peers.peers import NotHere
from dynabert_kernels.testing.timing import CacheFlush, Ceilings, Timing, dtype_name, time_interleaved

from .contender import Answer, Call, Contender, Work, note_of
from .setting import Setting

WRONG = rows.RED
LEAST_SAMPLES = 3  # of each contender, however little time is left


class DeviceLost(RuntimeError):
    """The device no longer answers: nothing more can be measured in this process."""


@dataclass(frozen=True)
class PeerRow:
    """One contender of one work. A number that was not measured is None, never 0.

    ``status``: as in `benchmarks.rows`; ``unavailable`` where it is not here or the time was over; ``note`` says why,
    or how it does the work.
    ``difference``: from the reference, the largest of all tensors, each over its largest entry; ``allowed``: what is
    timed. ``ceiling_share``: the products at the measured matrix rate over the median. ``gb_s``: bytes by formula over
    the median. ``peak_bytes``: the most that one call held at once, beyond what lies there between calls.
    """

    work: str
    contender: str
    dtype: str
    cache: str
    tokens: int
    padded_tokens: int
    status: str
    rehearsal: bool
    note: str = ""
    difference: float | None = None
    allowed: float | None = None
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    best_ms: float | None = None
    host_ms: float | None = None
    rounds: int | None = None
    calls_per_sample: int | None = None
    operations: int | None = None
    size_bytes: int | None = None
    gflop_s: float | None = None
    gb_s: float | None = None
    ceiling_share: float | None = None
    copy_share: float | None = None
    peak_bytes: int | None = None


def difference(found: Answer, wanted: Answer) -> float:
    """The largest difference over a tensor's largest entry, of all tensors; infinite where one is missing or no number.

    A tensor whose entries are all small beside the others' (a thousandth) is judged by that: its own scale is rounding.
    """
    largest = max((float(tensor.abs().max()) for tensor in wanted.values()), default=0.0)
    worst = 0.0
    for name, tensor in wanted.items():
        if name not in found or found[name].shape != tensor.shape:
            return math.inf
        scale = max(float(tensor.abs().max()), 1e-3 * largest)
        off = float((found[name].to(tensor.dtype) - tensor).abs().max())
        if not math.isfinite(off):
            return math.inf
        worst = max(worst, off / scale if scale > 0 else off)
    return worst


def measure(
    work: Work, setting: Setting, ceilings: Ceilings, chosen: Sequence[str] | None = None, until: float = math.inf
) -> list[PeerRow]:
    """A row for each contender. ``chosen``: parts of names, None for all. ``until``: `time.monotonic` at which no
    further contender is built. Raises `DeviceLost` where the device stopped answering."""
    blank = PeerRow(
        work.name,
        "",
        dtype_name(setting.dtype),
        work.cache,
        work.tokens,
        work.padded_tokens,
        rows.MEASURED,
        setting.rehearse,
        allowed=work.allowed,
    )
    # PyTorch counts what it compiled of one function over all networks, and refuses after a few.
    torch.compiler.reset()
    with torch.set_grad_enabled(work.gradients):
        wanted: dict[str, Answer] = {}
        found: dict[str, PeerRow] = {}
        calls: dict[str, Call] = {}
        for contender in work.contenders:
            row = replace(
                blank,
                contender=contender.name,
                operations=contender.operations,
                size_bytes=contender.size_bytes,
            )
            if chosen is not None and not any(part in contender.name for part in chosen):
                row = replace(row, status=rows.UNAVAILABLE, note="left out by --peers")
            elif time.monotonic() > until:
                row = replace(row, status=rows.UNAVAILABLE, note="the time limit was over")
            else:
                row = _checked(row, contender, work, wanted, calls)
                still_there(setting)
            found[contender.name] = row
        wanted.clear()
        release()
        timings, faults = _timed(calls, work, setting, until)
        still_there(setting)
        peaks = _peaks(calls, setting) if work.memory else {}
    for name, fault in faults.items():
        found[name] = replace(found[name], status=rows.FAILED, note=fault)
    return [
        _with_times(row, timings[name], ceilings, setting, peaks.get(name)) if name in timings else row
        for name, row in found.items()
    ]


def _checked(
    row: PeerRow, contender: Contender, work: Work, wanted: dict[str, Answer], calls: dict[str, Call]
) -> PeerRow:
    label = contender.wanted
    try:
        if label not in wanted:
            # Kept apart from what a later call may overwrite.
            wanted[label] = {name: tensor.detach().clone() for name, tensor in work.references[label]().items()}
        call = contender.build()
        off = math.inf
        for _ in range(2):  # the second call of a compiler's graph or a captured one is not the first
            off = difference(contender.answer(call()), wanted[label])
            if not off <= work.allowed:
                break
    except NotHere as reason:
        return replace(row, status=rows.UNAVAILABLE, note=str(reason))
    except Exception as error:  # a compiler may raise anything, and the others must go on
        release()
        return replace(row, status=rows.FAILED, note=said(error))
    if not off <= work.allowed:
        note = f"its answer differs by {off:.2g} of the largest; allowed: {work.allowed:g}"
        return replace(row, status=WRONG, note=note, difference=off)
    calls[contender.name] = call
    return replace(row, difference=off, note=note_of(call))


def said(error: Exception) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"raised {type(error).__name__}: {lines[0] if lines else 'without a message'}"


def still_there(setting: Setting) -> None:
    """Raises `DeviceLost` where a kernel has lost the device."""
    if setting.device.type == "cuda":
        try:
            torch.cuda.synchronize(setting.device)
        except RuntimeError as error:
            raise DeviceLost(said(error)) from error


def release() -> None:
    """Gives back what nothing holds any more."""
    gc.collect()  # compiled functions and networks hold each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _timed(
    calls: dict[str, Call], work: Work, setting: Setting, until: float
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times of all calls, and why some have none. Where one fails, it is found, left out, and the rest is timed."""
    faults: dict[str, str] = {}
    while calls:
        try:
            begun = time.monotonic()
            for call in calls.values():
                call()
            still_there(setting)
            each = time.monotonic() - begun
            left = max(0.0, until - time.monotonic())
            # Three rounds warm up.
            affordable = setting.rounds if math.isinf(left) else int(left / max(each, 1e-6)) - 3
            flush = CacheFlush(setting.device, setting.cache_bytes or None) if work.cache == "cold" else None
            timings = time_interleaved(
                calls,
                clock=setting.clock,
                rounds=max(LEAST_SAMPLES, min(setting.rounds, affordable)),
                before_sample=flush,
            )
            return timings, faults
        except DeviceLost:
            raise
        except Exception as error:
            release()
            named = _failing(calls)
            for name in named or list(calls):
                # With nobody to blame alone, all of them together are too much.
                faults[name] = named.get(name, f"timing together {said(error)}")
                del calls[name]
    return {}, faults


def _failing(calls: Mapping[str, Call]) -> dict[str, str]:
    found = {}
    for name, call in calls.items():
        try:
            for _ in range(3):
                call()
        except Exception as error:
            found[name] = said(error)
            release()
    return found


def _peaks(calls: Mapping[str, Call], setting: Setting) -> dict[str, int]:
    """What each call held at most, beyond what lay there before it; of a GPU's allocator only."""
    if setting.device.type != "cuda":
        return {}
    found = {}
    for name, call in calls.items():
        try:
            call()  # buffers that are kept from step to step lie there now
            torch.cuda.synchronize(setting.device)
            before = torch.cuda.memory_allocated(setting.device)
            torch.cuda.reset_peak_memory_stats(setting.device)
            call()
            torch.cuda.synchronize(setting.device)
            found[name] = torch.cuda.max_memory_allocated(setting.device) - before
        except RuntimeError:
            release()
    return found


def _with_times(row: PeerRow, timing: Timing, ceilings: Ceilings, setting: Setting, peak: int | None) -> PeerRow:
    median = timing.median_ms
    done, size = row.operations, row.size_bytes
    copied = None if size is None else size / median / 1e6
    return replace(
        row,
        median_ms=median,
        p20_ms=timing.p20_ms,
        p80_ms=timing.p80_ms,
        best_ms=timing.best_ms,
        host_ms=timing.host_ms,
        rounds=timing.rounds,
        calls_per_sample=timing.calls_per_sample,
        gflop_s=None if done is None else done / median / 1e6,
        gb_s=copied,
        ceiling_share=None if done is None else ceilings.operations_ms(done, setting.dtype) / median,
        copy_share=None if copied is None else copied / ceilings.copy_gb_s[max(ceilings.copy_gb_s)],
        peak_bytes=peak,
    )
