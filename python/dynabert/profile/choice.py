"""Choosing a sub-network under limits, and saying what is in reach of them.

The objective follows from the limits. A limit on cost (latency, parameters, GFLOP): the best score within it. Limits on
quality alone (score, retention): the cheapest that keeps them. Both kinds: the best score within all of them. Of equal
ones the cheaper, or the better, is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from dynabert.configuration import Subnet
from dynabert.configuration.grid import subnet_text
from dynabert.cost import subnet_cost
from dynabert_kernels import SubnetShape

if TYPE_CHECKING:
    from dynabert.configuration import ElasticBertConfig


@dataclass(frozen=True)
class Candidate:
    """One sub-network with all that is known of it; what is not known is None.

    Attributes:
        subnet: its text form.
        shape: heads and neurons of each layer.
        parameters: weights that it uses, embeddings included.
        gflop: 10^9 operations for one sequence of the length in question.
        latency_ms: of one batch, as the profile says or as it was measured.
        score: a fraction.
        retention: score over the whole network's score.
        corrected_retention: the same after the best constant answer's score was taken from both.
        agreement: share of texts with the whole network's decision.
    """

    subnet: str
    shape: SubnetShape
    parameters: int
    gflop: float
    latency_ms: float | None = None
    score: float | None = None
    retention: float | None = None
    corrected_retention: float | None = None
    agreement: float | None = None

    def cost(self) -> float:
        """What the cheapest is chosen by: latency where it is known, else GFLOP."""
        return self.gflop if self.latency_ms is None else self.latency_ms

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "shape"} | {
            "heads": list(self.shape.heads),
            "neurons": list(self.shape.neurons),
        }


_MILLION = 1e6


class _Kind(NamedTuple):
    """One kind of limit: the candidate's quantity, whether the limit is a most or a least, and how both are written."""

    option: str
    quantity: str
    most: bool
    words: str
    unit: str

    def text(self, value: float) -> str:
        """The value for people."""
        if self.unit == "M":
            return f"{value / 1e6:.2f} M" if value >= _MILLION else f"{value:,.0f}"
        if self.unit == "%":
            return f"{100 * value:.2f} %"
        return f"{value:.4g} {self.unit}"

    def given(self, value: float) -> str:
        """The value as the option takes it, rounded to the side on which ``value`` itself is allowed."""
        scale = 1e-6 if self.unit == "M" else 1.0
        step = 0.01 if self.unit in ("M", "ms") else 0.0001
        if 0.0 < value * scale < math.inf:  # of a small number its first three digits
            step = min(step, 10.0 ** (math.floor(math.log10(value * scale)) - 2))
        whole = int(value * scale / step) + (1 if self.most else 0)
        return f"{whole * step:.10g}{'M' if self.unit == 'M' else ''}"


_KINDS = (
    _Kind("max_latency_ms", "latency_ms", True, "latency", "ms"),
    _Kind("max_params", "parameters", True, "parameters", "M"),
    _Kind("max_gflops", "gflop", True, "arithmetic", "GFLOP"),
    _Kind("min_score", "score", False, "score", "%"),
    _Kind("min_retention", "retention", False, "retention", "%"),
)


@dataclass(frozen=True)
class Limits:
    """What a sub-network must keep; None: no such limit.

    ``max_latency_ms``: milliseconds of one batch. ``max_params``: weights used, embeddings included. ``max_gflops``:
    10^9 operations for one sequence. ``min_score``: a fraction in the task's metric. ``min_retention``: share of the
    whole network's score.

    Raises ``ValueError`` for a limit that nothing or everything would keep.
    """

    max_latency_ms: float | None = None
    max_params: float | None = None
    max_gflops: float | None = None
    min_score: float | None = None
    min_retention: float | None = None

    def __post_init__(self) -> None:
        for kind in _KINDS:
            value = getattr(self, kind.option)
            if value is None:
                continue
            if kind.most and not 0.0 < value < float("inf"):
                raise ValueError(f"Limits: {kind.option} is {value:g}; allowed: above 0")
            if not kind.most and not 0.0 < value <= 1.0:
                advice = f"; fractions, not per cent: {value / 100:g}" if 1.0 < value <= 100.0 else ""
                raise ValueError(f"Limits: {kind.option} is {value:g}; allowed: above 0, up to 1{advice}")
        if all(getattr(self, kind.option) is None for kind in _KINDS):
            raise ValueError(f"Limits: no limit; give at least one of {', '.join(kind.option for kind in _KINDS)}")

    def __iter__(self) -> Iterator[tuple[_Kind, float]]:
        for kind in _KINDS:
            value = getattr(self, kind.option)
            if value is not None:
                yield kind, value

    @property
    def on_cost(self) -> bool:
        """Whether a cost is limited: then the score decides."""
        return any(kind.most for kind, _ in self)

    @property
    def on_quality(self) -> bool:
        """Whether score or retention is limited."""
        return any(not kind.most for kind, _ in self)

    def objective(self, latency: bool) -> str:
        """The objective in words. ``latency``: whether the candidates' latency is known."""
        if self.on_cost:
            return "the best score within the limits" + (", on cost and on quality" if self.on_quality else "")
        return f"the lowest {'latency' if latency else 'GFLOP'} that keeps the quality asked for"

    def within(self, candidate: Candidate, *, quality: bool = True) -> bool:
        """Whether all limits are kept; ``quality`` False: those on cost alone. What is not known breaks a limit."""
        return self.excess(candidate, quality=quality) == 0.0

    def excess(self, candidate: Candidate, *, quality: bool = True) -> float:
        """By how much the limits are missed, each as a share of its own, added up; 0.0 within all; infinite where a
        limited quantity is not known. NaN is not known either."""
        total = 0.0
        for kind, limit in self:
            value = getattr(candidate, kind.quantity)
            if not kind.most and not quality:
                continue
            if value is None or math.isnan(value):
                return math.inf
            total += max(0.0, value / limit - 1.0 if kind.most else 1.0 - value / limit)
        return total

    def broken(self, candidate: Candidate, *, quality: bool = True) -> list[str]:
        """Each limit that is missed, in words with both numbers."""
        return [
            f"{kind.words} {kind.text(getattr(candidate, kind.quantity))}, {'at most' if kind.most else 'at least'} "
            f"{kind.text(limit)} asked for"
            for kind, limit in self._missed(candidate, quality)
        ]

    def would_take(self, candidate: Candidate, *, quality: bool = True) -> list[str]:
        """The options under which the candidate would be within: ``--max_latency_ms 4.21``; without those that no
        value would bring there (`would_drop`)."""
        return [
            f"--{kind.option} {kind.given(getattr(candidate, kind.quantity))}"
            for kind, _ in self._missed(candidate, quality)
            if getattr(candidate, kind.quantity) > 0.0
        ]

    def would_drop(self, candidate: Candidate, *, quality: bool = True) -> list[str]:
        """The options that the candidate is within no allowed value of: ``--min_score`` for a score of 0 or below."""
        missed = self._missed(candidate, quality)
        return [f"--{kind.option}" for kind, _ in missed if not getattr(candidate, kind.quantity) > 0.0]

    def _missed(self, candidate: Candidate, quality: bool) -> Iterator[tuple[_Kind, float]]:
        for kind, limit in self:
            value = getattr(candidate, kind.quantity)
            if value is not None and (kind.most or quality) and (value > limit if kind.most else value < limit):
                yield kind, limit


def satisfiable(candidates: Sequence[Candidate], limits: Limits) -> list[str]:
    """What the candidates span, and how many keep each limit, a line for each quantity that is known by now."""
    lines = []
    for kind in _KINDS:
        values = [getattr(c, kind.quantity) for c in candidates]
        known = [value for value in values if value is not None and not math.isnan(value)]
        limit = getattr(limits, kind.option)
        if not known or (not kind.most and limit is None):
            continue
        line = f"{kind.words} {kind.text(min(known))} to {kind.text(max(known))}"
        if limit is not None:
            kept = sum(value <= limit if kind.most else value >= limit for value in known)
            line += f"; limit {kind.text(limit)}: {kept} of {len(known)} candidates"
        lines.append(line)
    costs = [kind for kind, _ in limits if kind.most]
    if len(costs) > 1:
        lines.append(
            f"all limits on cost together: {sum(limits.within(c, quality=False) for c in candidates)} of "
            f"{len(candidates)} candidates"
        )
    return lines


def ranked(candidates: Sequence[Candidate], limits: Limits, *, quality: bool = True) -> list[Candidate]:
    """The candidates within the limits, the chosen one first, then those that would take its place.

    ``quality`` False: only the limits on cost count, for candidates without a score.
    """
    within = [c for c in candidates if limits.within(c, quality=quality)]
    if limits.on_cost:
        return sorted(within, key=lambda c: (-_score(c), c.cost(), c.parameters, c.subnet))
    return sorted(within, key=lambda c: (c.cost(), -_score(c), c.parameters, c.subnet))


def nearest(candidates: Sequence[Candidate], limits: Limits, *, quality: bool = True) -> Candidate:
    """The candidate that misses the limits by least, summed over them as shares of each limit.

    Raises:
        ValueError: no candidate.
    """
    if not candidates:
        raise ValueError("nearest: no candidate; name sub-networks that fit the network")
    return min(candidates, key=lambda c: (limits.excess(c, quality=quality), -_score(c), c.cost(), c.subnet))


def no_solution(candidates: Sequence[Candidate], limits: Limits, *, quality: bool = True) -> str:
    """Why none of the candidates is within the limits, which one comes nearest, and what to change."""
    close = nearest(candidates, limits, quality=quality)
    give, drop = (words(close, quality=quality) for words in (limits.would_take, limits.would_drop))
    advice = [*([f"give {' '.join(give)}"] if give else []), *([f"leave out {' '.join(drop)}"] if drop else [])]
    return (
        f"none of {len(candidates)} candidates keeps the limits; nearest: {close.subnet} "
        f"({'; '.join(limits.broken(close, quality=quality))}); to take it "
        f"{' and '.join(advice)}"
    )


def _score(candidate: Candidate) -> float:
    return -math.inf if candidate.score is None or math.isnan(candidate.score) else candidate.score


def list_candidates(
    config: ElasticBertConfig,
    subnets: Sequence[Subnet],
    seq_length: int,
    latencies_ms: Sequence[float] | None = None,
) -> list[Candidate]:
    """The sub-networks with what they cost; scores come later (`with_scores`).

    Args:
        config: the network's configuration.
        subnets: the sub-networks, each once.
        seq_length: tokens of a sequence, for GFLOP.
        latencies_ms: of one batch, one for each sub-network, or None where it is not known.

    Raises:
        ValueError: a sub-network that does not fit; another number of latencies.
    """
    known: Sequence[float | None] = [None] * len(subnets) if latencies_ms is None else latencies_ms
    if len(known) != len(subnets):
        raise ValueError(f"list_candidates: {len(subnets)} sub-networks need as many latencies; got {len(known)}")
    found = []
    for subnet, latency in zip(subnets, known, strict=True):
        cost = subnet_cost(config, subnet, seq_length=seq_length)
        found.append(
            Candidate(
                subnet_text(subnet),
                config.shape(subnet),
                cost.parameters,
                cost.gflop,
                None if latency is None else float(latency),
            )
        )
    return found


def above_majority(whole: float, majority: float, examples: int | None) -> bool:
    """Whether the whole network scores above the best constant answer by more than the chance of so many examples.

    Where it is not, a share of the difference is a share of noise, and no retention. Chance: 1.96 standard errors of
    the constant answer's share; none is known where the number of examples is not, or the majority is no share.
    """
    noise = 0.0
    if examples and 0.0 < majority < 1.0:
        noise = 1.96 * math.sqrt(majority * (1.0 - majority) / examples)
    return whole - majority > noise


def with_scores(
    candidates: Sequence[Candidate],
    scores: Mapping[str, float],
    *,
    whole: float | None,
    majority: float | None = None,
    agreements: Mapping[str, float | None] | None = None,
    examples: int | None = None,
) -> list[Candidate]:
    """The candidates with their scores and what is left of the whole network's.

    Args:
        candidates: from `list_candidates`.
        scores: by a sub-network's text form.
        whole: the whole network's score; None leaves the retentions out.
        majority: the best constant answer's score; None leaves the corrected retention out, and so does a whole network
            that is not told apart from it (`above_majority`).
        examples: how many the scores are of.
        agreements: share of texts with the whole network's decision, by text form.

    Raises:
        ValueError: a candidate without a score.
    """
    missing = [c.subnet for c in candidates if c.subnet not in scores]
    if missing:
        raise ValueError(f"with_scores: no score of {', '.join(missing)}; scored: {', '.join(scores)}")
    corrects = whole is not None and majority is not None and above_majority(whole, majority, examples)
    found = []
    for candidate in candidates:
        score = scores[candidate.subnet]
        retention = corrected = None
        if whole is not None and whole > 0.0:
            retention = score / whole
        if corrects and whole is not None and majority is not None:
            corrected = (score - majority) / (whole - majority)
        found.append(
            replace(
                candidate,
                score=score,
                retention=retention,
                corrected_retention=corrected,
                agreement=None if agreements is None else agreements.get(candidate.subnet),
            )
        )
    return found
