"""Runs works one by one, checks every answer before it is timed, and holds the times to the goals."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.gpu_peers.works import Goal, Setting, Times, Work
from dynabert_kernels.testing.timing import CacheFlush, Clock, time_interleaved

# The largest difference from plain PyTorch in the same dtype, as a share of the largest logit, that is timed.
ALLOWED = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-3}


def run_work(work: Work, setting: Setting, clock: Clock, rounds: int) -> dict[str, Any]:
    """A work's row: the times of each contender that gave the right answer, why the others were left out, and goals.

    Whatever a contender raises leaves it out: the others are still to be measured.
    """
    ready: dict[str, Callable[[], Tensor]] = {}
    left_out: dict[str, str] = {}
    differences: dict[str, float] = {}
    torch._dynamo.reset()  # the work before compiled networks of other sizes
    with torch.inference_mode(not work.training):
        for name, make in work.contenders.items():
            try:
                run = make()
                wanted = work.wanted(name)().float()
                # Three times: a compiler's graphs are captured in the second call, and replayed in the third.
                differences[name] = max(_difference(run(), wanted) for _ in range(3))
            except Exception as error:
                left_out[name] = _said(error)
                continue
            finally:
                gc.collect()
            ready[name] = run
            _leave_out_wrong(name, setting.dtype, ready, differences, left_out)
        flush = CacheFlush(setting.device) if work.cold else None
        timed = {}
        try:
            timed = time_interleaved(ready, clock=clock, rounds=rounds, before_sample=flush) if ready else {}
        except Exception as error:
            left_out |= dict.fromkeys(ready, f"the timing {_said(error)}")
            ready.clear()
        for name in list(ready):  # and once more: memory that was given away would hold another's numbers by now
            differences[name] = max(differences[name], _difference(ready[name](), work.wanted(name)().float()))
            _leave_out_wrong(name, setting.dtype, ready, differences, left_out)
        timed = {name: timing for name, timing in timed.items() if name in ready}
        peaks = peak_bytes(ready, setting.device) if work.training else {}
    times = {name: timing.median_ms for name, timing in timed.items()}
    times |= {f"bytes: {name}": float(peak) for name, peak in peaks.items()}
    return {
        "work": work.name,
        **work.facts,
        "times": {name: asdict(timing) for name, timing in timed.items()},
        "peak_bytes": peaks,
        "differences": differences,
        "left_out": left_out,
        "goals": [judge(goal, times, rehearse=setting.rehearse) for goal in work.goals],
    }


def peak_bytes(ready: Mapping[str, Callable[[], Tensor]], device: torch.device) -> dict[str, int]:
    """What each call holds at its peak beyond what was there before; empty where the device does not count."""
    if device.type != "cuda":
        return {}
    found = {}
    for name, run in ready.items():
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        found[name] = torch.cuda.max_memory_allocated(device) - before
    return found


def _said(error: Exception) -> str:
    return f"raised {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _difference(answer: Tensor, wanted: Tensor) -> float:
    return float((answer.float() - wanted).abs().max() / wanted.abs().max())


def _leave_out_wrong(
    name: str,
    dtype: torch.dtype,
    ready: dict[str, Callable[[], Tensor]],
    differences: dict[str, float],
    left_out: dict[str, str],
) -> None:
    if not differences[name] <= ALLOWED[dtype]:
        left_out[name] = (
            f"WRONG: differs by {differences.pop(name):.3g} of the largest logit; allowed: {ALLOWED[dtype]}"
        )
        del ready[name]


def judge(goal: Goal, times: Times, *, rehearse: bool = False) -> dict[str, Any]:
    """A goal with its number and verdict: met, stretch, missed or not measured; a rehearsal has none of them."""
    number = goal.number(times)

    def within(bound: float) -> bool:
        return number is not None and (number <= bound if goal.most else number >= bound)

    verdict = "not measured" if number is None else "missed"
    if within(goal.target):
        verdict = "stretch" if within(goal.stretch) else "met"
    if rehearse:
        verdict = "rehearsal"
    bounds = {"target": goal.target, "stretch": goal.stretch, "most": goal.most}
    return {"goal": goal.name, "number": number, **bounds, "verdict": verdict}


def table_of(row: Mapping[str, Any], *, rehearse: bool) -> Table:
    """A work's contenders and goals for a terminal."""
    table = Table(title=("REHEARSAL, says nothing: " if rehearse else "") + str(row["work"]), title_justify="left")
    for name in ("who, or which goal", "median", "20th to 80th percentile", "host"):
        table.add_column(name, justify="left" if name.startswith("who") else "right")
    for name, timing in row["times"].items():
        between = f"{timing['p20_ms']:.3f} to {timing['p80_ms']:.3f}"
        table.add_row(name, f"{timing['median_ms']:.3f} ms", between, f"{timing['host_ms']:.3f}")
    for name, why in row["left_out"].items():
        table.add_row(name, "left out", why, "")
    for goal in row["goals"]:
        number = "-" if goal["number"] is None else f"{goal['number']:.3f}"
        sign = "at most" if goal["most"] else "at least"
        table.add_row(goal["goal"], number, f"{sign} {goal['target']:g} ({goal['stretch']:g})", goal["verdict"])
    return table
