"""What a sub-network costs on this device: measured, with its error stated."""

from __future__ import annotations

from dynabert.profile.device_profile import DeviceProfile, ErrorStatement, ProfiledCell
from dynabert.profile.latency import LatencyRow, measure_latency
from dynabert.profile.measuring import profile_device

__all__ = ["DeviceProfile", "ErrorStatement", "LatencyRow", "ProfiledCell", "measure_latency", "profile_device"]
