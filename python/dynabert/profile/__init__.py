"""What a sub-network costs on this device: measured, with its error stated."""

from __future__ import annotations

from dynabert.profile.latency import LatencyRow, measure_latency

__all__ = ["LatencyRow", "measure_latency"]
