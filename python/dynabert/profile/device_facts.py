"""Which machine this is, and whether a file's times were taken on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

import torch

import dynabert_kernels as dk
from dynabert.processor import cpu_name
from dynabert.profile.damage import check_count, check_text

Device: TypeAlias = torch.device | str

# What a person reads for each fact in a refusal.
_NAMES = {
    "device": "the device",
    "cpu": "the CPU",
    "cores": "the number of CPUs",
    "isa": "the kernels' instruction set",
    "threads": "the number of threads",
    "torch": "torch's version",
    "dynabert_kernels": "this package's version",
    "native": "the native library",
}


@dataclass(frozen=True)
class DeviceFacts:
    """What decides how fast a pass is, besides the network.

    ``device``: ``"cpu"`` or the GPU's name. ``isa``: the instruction set that the kernels picked. ``native``: whether
    the native library is there.
    """

    device: str
    cpu: str
    cores: int
    isa: str
    threads: int
    torch: str
    dynabert_kernels: str
    native: bool

    def __post_init__(self) -> None:
        for name in ("device", "cpu", "isa", "torch", "dynabert_kernels"):
            check_text(name, getattr(self, name))
        for name in ("cores", "threads"):
            check_count(name, getattr(self, name))

    @property
    def kind(self) -> str:
        """``"cpu"`` or ``"cuda"``: the kind of device that the times are of."""
        return "cpu" if self.device == "cpu" else "cuda"

    @classmethod
    def here(cls, device: Device = "cpu") -> DeviceFacts:
        """Those of this process, with the threads torch has now."""
        kind = torch.device(device)
        features = dk.config()["cpu_features"]
        return cls(
            device=torch.cuda.get_device_name(kind) if kind.type == "cuda" else kind.type,
            cpu=cpu_name() or platform.machine() or "unknown",
            cores=os.cpu_count() or 1,
            isa="none" if features is None else str(features["isa"]),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            dynabert_kernels=dk.__version__,
            native=features is not None,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DeviceFacts:
        """Read back what ``to_dict`` gave."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def differences(self, here: DeviceFacts) -> list[str]:
        """What differs on the machine ``here``, in words."""
        return [
            f"{_NAMES[field.name]} is {getattr(here, field.name)} here and {getattr(self, field.name)} in the profile"
            for field in fields(self)
            if getattr(here, field.name) != getattr(self, field.name)
        ]
