"""What a sub-network costs on this device: measured, with its error stated; and the choice of one from it."""

from __future__ import annotations

from dynabert.profile.choice import Candidate, Limits, list_candidates, ranked, satisfiable, with_scores
from dynabert.profile.device_profile import DeviceProfile, ErrorStatement, ProfiledCell
from dynabert.profile.latency import LatencyRow, measure_latency
from dynabert.profile.measuring import profile_device
from dynabert.profile.pareto import pareto_front
from dynabert.profile.search import SearchResult, SearchSettings, search
from dynabert.profile.search_space import Budget, SearchSpace

__all__ = [
    "Budget",
    "Candidate",
    "DeviceProfile",
    "ErrorStatement",
    "LatencyRow",
    "Limits",
    "ProfiledCell",
    "SearchResult",
    "SearchSettings",
    "SearchSpace",
    "list_candidates",
    "measure_latency",
    "pareto_front",
    "profile_device",
    "ranked",
    "satisfiable",
    "search",
    "with_scores",
]
