"""What is asked for, and what rows make of it: each goal is met, missed, or not measured for a reason that is told.

Where ours was timed eager and in a CUDA graph, one kind stands on both sides of a ratio of ours: the graph's where all
of them have one. Against others the faster of the two counts, and of a peer that was timed both ways the faster too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import rows

from . import kernels, networks, training
from .contender import GRAPH, OURS
from .setting import WIDTHS

MET, STRETCH, MISSED, NOT_MEASURED, REHEARSED = "met", "stretch met", "missed", "not measured", "rehearsed"
MICROSECONDS = 1e3  # in a millisecond
TERA = 1e3  # GFLOP/s in a TFLOP/s

Row = Mapping[str, Any]


class Missing(Exception):
    """Why a number cannot be told."""


class Found:
    """The rows of a run, by work and contender."""

    def __init__(self, found: Sequence[Row], skipped: Mapping[str, str]) -> None:
        self._rows = {(row["work"], row["contender"]): row for row in found}
        self._skipped = skipped

    def row(self, work: str, contender: str) -> Row:
        """A row that has a time. Raises `Missing` with what its row, or its work, says."""
        row = self._rows.get((work, contender))
        if row is None:
            raise Missing(self._skipped.get(work, f"{contender}: there is no such row"))
        if row["status"] != rows.MEASURED or row["median_ms"] is None:
            raise Missing(f"{contender}: {row['note'] or row['status']}")
        return row

    def number(self, work: str, contender: str, name: str) -> float:
        """A number of a row that has it."""
        value = self.row(work, contender)[name]
        if value is None:
            raise Missing(f"{contender}: {name} was not measured")
        return float(value)

    def time(self, work: str, contender: str) -> float:
        """Median of one contender, ms."""
        return self.number(work, contender, "median_ms")

    def fastest(self, work: str, contender: str) -> float:
        """Median of the faster of a contender and its CUDA graph; at least one must be there."""
        return min(self.time(work, name) for name in self.timed(work, contender, contender + GRAPH))

    def timed(self, work: str, *contenders: str) -> list[str]:
        """Which of some contenders have a time. Raises `Missing` with the first one's reason where none has."""
        names, reasons = [], []
        for name in contenders:
            try:
                self.row(work, name)
                names.append(name)
            except Missing as reason:
                reasons.append(str(reason))
        if not names:
            raise Missing(reasons[0])
        return names

    def alike(self, work: str, contenders: Sequence[str]) -> list[float]:
        """Medians of several of ours, all in graphs or, where one has none, all eager."""
        try:
            return [self.time(work, name + GRAPH) for name in contenders]
        except Missing:
            return [self.time(work, name) for name in contenders]


@dataclass(frozen=True)
class Goal:
    """A number with a target. ``at_least``: larger is better; else at most. ``unit``: for people."""

    work: str
    what: str
    measure: Callable[[Found], float]
    target: float
    stretch: float | None = None
    at_least: bool = True
    unit: str = ""

    def reached(self, value: float, limit: float) -> bool:
        """Whether a value keeps a limit."""
        return value >= limit if self.at_least else value <= limit


@dataclass(frozen=True)
class Verdict:
    """A goal beside what was measured; ``value`` is None, and ``reason`` says why, where nothing was."""

    goal: Goal
    verdict: str
    value: float | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a file."""
        goal = self.goal
        return {
            "work": goal.work,
            "what": goal.what,
            "bound": "at least" if goal.at_least else "at most",
            "target": goal.target,
            "stretch": goal.stretch,
            "unit": goal.unit,
            "value": self.value,
            "verdict": self.verdict,
            "reason": self.reason,
        }


def judge(found: Sequence[Row], skipped: Mapping[str, str], rehearsal: bool = False) -> list[Verdict]:
    """Every goal's verdict; a rehearsal's are neither met nor missed. ``skipped``: work to why it has no rows."""
    told = Found(found, skipped)
    verdicts = []
    for goal in GOALS:
        try:
            value = goal.measure(told)
        except Missing as reason:
            verdicts.append(Verdict(goal, NOT_MEASURED, reason=str(reason)))
            continue
        if not math.isfinite(value):
            verdicts.append(Verdict(goal, NOT_MEASURED, reason="a time of 0"))
            continue
        if rehearsal:
            verdict = REHEARSED
        elif goal.stretch is not None and goal.reached(value, goal.stretch):
            verdict = STRETCH
        else:
            verdict = MET if goal.reached(value, goal.target) else MISSED
        verdicts.append(Verdict(goal, verdict, value))
    return verdicts


# Measures ------------------------------------------------------------------------------------------------------------


def _against(work: str, ours: str, peer: str) -> Callable[[Found], float]:
    return lambda found: found.fastest(work, peer) / found.fastest(work, ours)


def _against_compiled_loop(work: str) -> Callable[[Found], float]:
    def measure(found: Found) -> float:
        own = found.fastest(work, f"{OURS} in one")
        return min(found.time(work, name) for name in found.timed(work, *training.COMPILED_LOOPS)) / own

    return measure


def _share(work: str, ours: str) -> Callable[[Found], float]:
    def measure(found: Found) -> float:
        shares = [found.number(work, name, "ceiling_share") for name in found.timed(work, ours, ours + GRAPH)]
        return max(shares)

    return measure


def _of_width_1(width: float) -> Callable[[Found], float]:
    def measure(found: Found) -> float:
        narrow, full = found.alike("widths", [f"{OURS} w{width:g}", f"{OURS} w1"])
        return narrow / full

    return measure


def _price_of_place(width: float) -> Callable[[Found], float]:
    def measure(found: Found) -> float:
        placed, cut = found.alike("widths", [f"{OURS} w{width:g}", f"{OURS} w{width:g}, cut out"])
        return 100 * (placed / cut - 1)

    return measure


def _of_shares(found: Found) -> float:
    mixed, *alone = found.alike("widths", [f"{OURS} mixed", *(f"{OURS} w{width:g}" for width in WIDTHS)])
    return mixed * len(alone) / sum(alone)


def _all_products(found: Found) -> float:
    ours = sum(found.time("products", f"{OURS} {label}") for label in kernels.PRODUCTS)
    return sum(found.time("products", f"{kernels.TORCH} {label}") for label in kernels.PRODUCTS) / ours


def _of_dense(found: Found) -> float:
    def rate(label: str) -> float:
        return found.number("ragged product", f"{OURS} {label}", "gflop_s")

    return 100 * rate("ragged") / rate("dense")


def _micro(name: str) -> Callable[[Found], float]:
    def measure(found: Found) -> float:
        work = "distillation 32 x 128"
        return found.number(work, name, "peak_bytes") / found.number(work, training.LOOP, "peak_bytes")

    return measure


def _latency(cache: str, width: str) -> Callable[[Found], float]:
    return lambda found: MICROSECONDS * found.fastest(f"single, {cache}", f"{OURS} {width}")


def _ragged(work: str, compiled: tuple[float, float | None], unpadded: tuple[float, float | None]) -> list[Goal]:
    own = f"{OURS} w1"
    return [
        Goal(work, "against padded HF compile", _against(work, own, networks.COMPILED), *compiled, unit="x"),
        Goal(work, "against unpadded torch", _against(work, own, networks.UNPADDED), *unpadded, unit="x"),
    ]


def _mixed(work: str) -> list[Goal]:
    own, four = f"{OURS} mixed", f"four {networks.CUT_OUT}"
    return [
        Goal(work, "four widths against four compiled networks", _against(work, own, four), 3.0, 5.0, unit="x"),
        Goal(work, "against the staircase in torch", _against(work, own, networks.STAIRCASE), 1.3, 1.6, unit="x"),
    ]


def _steps(work: str, eager: tuple[float, float | None], compiled: tuple[float, float | None]) -> list[Goal]:
    own = f"{OURS} in one"
    return [
        Goal(work, "against the loop", _against(work, own, training.LOOP), *eager, unit="x"),
        Goal(work, "against the compiled loop", _against_compiled_loop(work), *compiled, unit="x"),
    ]


def _percent(measure: Callable[[Found], float]) -> Callable[[Found], float]:
    return lambda found: 100 * measure(found)


def _attention_rate(label: str) -> Callable[[Found], float]:
    return lambda found: found.number("attention", f"{OURS} {label}", "gflop_s") / TERA


def _attention_copy(label: str) -> Callable[[Found], float]:
    return lambda found: 100 * found.number("attention", f"{OURS} {label}", "copy_share")


GOALS: list[Goal] = [
    *(
        Goal("widths", f"time({width:g}) / time(1)", _of_width_1(width), width + 0.05, width + 0.02, at_least=False)
        for width in WIDTHS[1:]
    ),
    *(
        Goal("widths", f"price of zero copy at {width:g}", _price_of_place(width), 2.0, 0.5, at_least=False, unit="%")
        for width in WIDTHS[1:]
    ),
    Goal("products", "four products against F.linear", _all_products, 0.95, 1.0, unit="x"),
    Goal(
        "products",
        "product with GELU against F.linear and F.gelu",
        _against("products", f"{OURS} FFN in with GELU", f"{kernels.TORCH} FFN in with GELU"),
        1.15,
        1.3,
        unit="x",
    ),
    Goal("ragged product", "rate of ragged over dense", _of_dense, 92.0, 96.0, unit="%"),
    Goal("widths", "four widths mixed against the sum of shares", _of_shares, 1.08, 1.03, at_least=False),
    *_mixed("mixed 16 x 128"),
    *_mixed("mixed 32 x 128"),
    Goal("widths", "share of the matrix ceiling", _percent(_share("widths", f"{OURS} w1")), 68.0, 76.0, unit="%"),
    Goal("widths", "against HF compile", _against("widths", f"{OURS} w1", networks.COMPILED), 1.3, unit="x"),
    Goal(
        "large 32 x 384",
        "share of the matrix ceiling",
        _percent(_share("large 32 x 384", f"{OURS} w1")),
        72.0,
        80.0,
        unit="%",
    ),
    *_ragged("squad-like", (2.2, None), (1.25, 1.5)),
    *_ragged("short ragged", (2.2, 2.6), (1.4, 1.7)),
    *(
        Goal("attention", f"{label}, share of copy bandwidth", _attention_copy(label), 80.0, 90.0, unit="%")
        for label in ("256 x 64 forward", "128 x 128 forward")
    ),
    Goal("attention", "32 x 512 forward", _attention_rate("32 x 512 forward"), 340.0, 380.0, unit="TFLOP/s"),
    Goal("attention", "32 x 512 backward", _attention_rate("32 x 512 backward"), 270.0, 330.0, unit="TFLOP/s"),
    *_steps("distillation 32 x 128", (3.5, 5.0), (1.8, 2.5)),
    *_steps("distillation 128 x 128", (2.2, None), (1.35, None)),
    Goal(
        "distillation 128 x 128",
        "share of the matrix ceiling",
        _percent(_share("distillation 128 x 128", f"{OURS} in one")),
        55.0,
        62.0,
        unit="%",
    ),
    Goal(
        "distillation 32 x 128",
        "peak activations in two micro-batches over the loop's",
        _micro(training.IN_TWO),
        0.7,
        0.5,
        at_least=False,
    ),
    Goal(
        "distillation 32 x 128",
        "peak activations in one launch over the loop's",
        _micro(f"{OURS} in one"),
        1.3,
        1.0,
        at_least=False,
    ),
    *(
        goal
        for cache in ("warm", "cold")
        for goal in (
            Goal(
                f"single, {cache}", "1 x 128, width 1", _latency(cache, "w1"), 250.0, 200.0, at_least=False, unit="us"
            ),
            Goal(
                f"single, {cache}",
                "1 x 128, width 1, against HF compile",
                _against(f"single, {cache}", f"{OURS} w1", networks.COMPILED),
                2.0,
                unit="x",
            ),
            Goal(
                f"single, {cache}",
                "1 x 128, width 0.25",
                _latency(cache, "w0.25"),
                150.0,
                110.0,
                at_least=False,
                unit="us",
            ),
        )
    ),
]
