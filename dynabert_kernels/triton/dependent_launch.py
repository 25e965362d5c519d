"""Programmatic dependent launch: a kernel's blocks are brought to the device while the kernel before still runs.

Between two kernels of a stream the device drains: the last blocks of one end, then the first of the next are started.
With a few hundred tokens a kernel runs for some microseconds, and that gap is a good part of them. On compute
capability 9.0 and later a launch may be marked as *dependent*: it starts as soon as every block of the kernel before
has given leave, and waits inside, on the device, until that kernel is complete with all that it wrote.

What makes it safe here: every dependent kernel waits before it reads or writes anything, and gives leave only after
that. So a kernel that has begun its work knows all before it complete, as in a stream; at most one more lies waiting.
Launches that are not dependent (PyTorch's, copies) wait for all before them as ever.

Off unless asked for: it is unmeasured. The arithmetic is the same, to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED, architecture, jit

if IMPORT_ERROR is None:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["begin_dependent", "dependent_launch", "programmatic_launch", "why_not_programmatic"]

OLDEST_CAPABILITY = (9, 0)
_ASKED_FOR: ContextVar[bool] = ContextVar("programmatic_launch", default=False)


@contextlib.contextmanager
def programmatic_launch(enabled: bool = True) -> Iterator[None]:
    """Marks this thread's launches of inference kernels inside the block as dependent ones, or does not.

    Where the device has no such launches, and in the interpreter, they are launched as usual:
    `why_not_programmatic` tells. A CUDA graph that is captured inside keeps it.
    """
    token = _ASKED_FOR.set(enabled)
    try:
        yield
    finally:
        _ASKED_FOR.reset(token)


def why_not_programmatic(device: torch.device) -> str | None:
    """Why launches on a device cannot be dependent ones, in plain words; None where they can."""
    if IMPORT_ERROR is not None:
        return IMPORT_ERROR
    if INTERPRETED or device.type != "cuda":
        return f"the model is on {device}; a CUDA device is needed"
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"{name} has compute capability {found[0]}.{found[1]}; needed: 9.0 (H100) or later"
    return None


def dependent_launch(tensor: Tensor) -> dict[str, Any]:
    """What to add to the arguments of a kernel that has ``DEPENDENT`` and calls `begin_dependent` first of all."""
    if _ASKED_FOR.get() and architecture(tensor) == "sm_90":
        return {"DEPENDENT": True, "launch_pdl": True}
    return {"DEPENDENT": False}


@jit
def begin_dependent() -> None:
    """Waits for all kernels before, then lets the next one's blocks come. Every block must get here."""
    gdc_wait()
    gdc_launch_dependents()
