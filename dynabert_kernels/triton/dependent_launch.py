"""Programmatic dependent launch: a kernel's blocks are brought to the device while the kernel before still runs.

Between two kernels of a stream the device drains: the last blocks of one end, then the first of the next are started.
With a few hundred tokens a kernel runs for some microseconds, and that gap is a good part of them. On compute
capability 9.0 and later a launch may be marked as *dependent*: it starts as soon as every block of the kernel before
has given leave, and waits inside, on the device, until that kernel is complete with all that it wrote.

What makes it safe here: every dependent kernel waits before it reads or writes anything, and gives leave only after
that. So a kernel that has begun its work knows all before it complete, as in a stream; at most one more lies waiting.
Launches that are not dependent (PyTorch's, copies) wait for all before them as ever.

While a product waits, its weight is asked for: with few rows, reading it is most of what the product does. The programs
together name every line of its active part to the L2 cache (`prefetch.global.L2`). That is a hint: nothing is read into
a register, and what another kernel writes meanwhile is seen, since L2 is where it is written.

Off unless asked for: it is unmeasured. The arithmetic is the same, to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED, architecture, jit, tl

if IMPORT_ERROR is None:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["ask_for_weight", "begin_dependent", "dependent_launch", "programmatic_launch", "why_not_programmatic"]

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


@jit
def ask_for_weight(
    weight_ptr: tl.tensor,  # (rows, at least columns)
    weight_stride: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    num_tokens: tl.tensor,
    MOST_TOKENS: tl.constexpr = 1024,  # with more, the products themselves hide the reading
    LINE_BYTES: tl.constexpr = 128,
    LINES_AT_ONCE: tl.constexpr = 128,
) -> None:
    """Has the leading part of a weight brought to L2; each program of the launch names its share of the lines."""
    entries: tl.constexpr = LINE_BYTES * 8 // weight_ptr.dtype.element_ty.primitive_bitwidth
    lines_of_a_row = (columns + entries - 1) // entries
    total = tl.where(num_tokens <= MOST_TOKENS, rows * lines_of_a_row, 0)
    for start in tl.range(tl.program_id(0) * LINES_AT_ONCE, total, tl.num_programs(0) * LINES_AT_ONCE):
        line = tl.minimum(start + tl.arange(0, LINES_AT_ONCE), total - 1)
        row, place = line // lines_of_a_row, line % lines_of_a_row
        address = (weight_ptr + row.to(tl.int64) * weight_stride + place * entries).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
            "=r,l",
            [address],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
