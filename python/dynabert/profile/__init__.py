"""What a sub-network costs on this device: measured, with its error stated; and the choice of one from it."""

from __future__ import annotations

from dynabert.profile.choice import Candidate, Limits, list_candidates, ranked, satisfiable, with_scores
from dynabert.profile.latency import LatencyRow, measure_latency
from dynabert.profile.pareto import pareto_front

__all__ = [
    "Candidate",
    "LatencyRow",
    "Limits",
    "list_candidates",
    "measure_latency",
    "pareto_front",
    "ranked",
    "satisfiable",
    "with_scores",
]
