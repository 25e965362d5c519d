"""Loads the native library ``_C`` and registers the ops it holds, as providers ``cpu`` and ``cuda``."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

from dynabert_kernels.ops import cuda_limits, providers
from dynabert_kernels.ops.registration import OP_NAMES

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_MISSING = "the native library is not built (no C++ compiler was found at installation, or it was not installed)"


def _device_check(device: str) -> Any:
    def supports(*args: Any) -> str | None:
        for argument in args:
            if isinstance(argument, torch.Tensor):
                found = argument.device.type
                return None if found == device else f"it takes tensors on {device!r}, and these are on {found!r}"
        return None

    return supports


def load() -> ModuleType | None:
    """Imports ``_C``; registers what it provides; returns the module, or None when it is not built.

    A library that is there but does not load raises ``ImportError`` with its reason: a broken build is not a missing
    one.
    """
    try:
        module = importlib.import_module("dynabert_kernels._C")
    except ModuleNotFoundError as error:
        if error.name != "dynabert_kernels._C":
            raise
        for name in _KEYS:
            providers.mark_unavailable(name, _MISSING)
        return None
    found = dict.fromkeys(_KEYS, 0)
    for op in OP_NAMES:
        for name, key in _KEYS.items():
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"dynabert_{name}::{op}", key):
                function = getattr(getattr(torch.ops, f"dynabert_{name}"), op).default
                supports = cuda_limits.supports(op) if name == "cuda" else _device_check(name)
                providers.register(op, name, function, supports)
                found[name] += 1
    if not found["cuda"]:
        providers.mark_unavailable("cuda", "the native library was built without CUDA")
    return module
