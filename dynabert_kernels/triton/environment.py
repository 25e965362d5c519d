"""Whether Triton is there, how it runs here, and what a launch must know of its device.

Kernel modules take `jit` and `tl` from here instead of importing Triton, so that the package imports where Triton is
not installed. Triton decides at decoration whether a kernel is compiled or interpreted: `INTERPRETED` is read at the
same moment.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError as error:
    triton = tl = None
    IMPORT_ERROR: str | None = f"triton cannot be imported ({error}); install it with: pip install 'triton>=3.6'"
    INTERPRETED = False
else:
    IMPORT_ERROR = None
    INTERPRETED = bool(triton.knobs.runtime.interpret)

# A handful, so that a test of ten rows still meets programs with several steps, one step and none.
CHIP_MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132}  # A100, H100 SXM
INTERPRETER_MULTIPROCESSORS = 3

FLOATING_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _MissingKernel:
    """Stands for a kernel where Triton is not installed: it exists, and says so when launched."""

    def __getitem__(self, grid: object) -> Any:
        raise RuntimeError(f"triton provider: {IMPORT_ERROR}")


# A layer's counts are a view of its plan's table and begin anywhere in it. Those that do not begin at a multiple of 16
# bytes would be another build of each kernel, compiled in the middle of serving, which `make codegen` does not see.
_VIEWS_OF_A_PLAN = frozenset({"counts_ptr", "out_counts_ptr", "in_counts_ptr", "active_ptr"})


def jit(function: Any = None, **options: Any) -> Any:
    """`triton.jit` with its options, or a stand-in that refuses to be launched where Triton is missing."""
    if function is None:
        return functools.partial(jit, **options)
    if triton is None:
        return _MissingKernel()
    anywhere = [name for name in inspect.signature(function).parameters if name in _VIEWS_OF_A_PLAN]
    return triton.jit(function, do_not_specialize_on_alignment=anywhere, **options)


def accumulator(dtype: torch.dtype) -> Any:
    """The type of sums and statistics: float64 for float64 input, float32 for all others."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """`accumulator`, as PyTorch names it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# What the kernels are compiled for at the least: bfloat16 on tensor cores, asynchronous copies.
OLDEST_CAPABILITY = (8, 0)


@functools.cache
def why_too_old(device: torch.device) -> str | None:
    """The reason why a CUDA device runs no GPU kernel of this package; None where it does."""
    if not torch.cuda.is_available():
        return None  # a tensor without data, of a device that is not here
    found = torch.cuda.get_device_capability(device)
    if found >= OLDEST_CAPABILITY:
        return None
    return (
        f"{torch.cuda.get_device_name(device)} has compute capability {found[0]}.{found[1]}; GPU kernels here need "
        f"{OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]} (A100) or later"
    )


def why_unavailable(tensor: torch.Tensor) -> str | None:
    """The reason why no Triton kernel takes this tensor, in plain words; None where one may."""
    if IMPORT_ERROR is not None:
        return IMPORT_ERROR
    if INTERPRETED:
        allowed: tuple[torch.dtype, ...] = (*FLOATING_DTYPES, torch.float64)
    elif tensor.device.type != "cuda":
        return (
            f"tensors are on {tensor.device}; Triton kernels need a CUDA device, "
            "or TRITON_INTERPRET=1 set before dynabert_kernels is imported"
        )
    elif (reason := why_too_old(tensor.device)) is not None:
        return reason
    else:
        allowed = FLOATING_DTYPES
    if tensor.dtype not in allowed:
        return f"dtype is {tensor.dtype}; allowed: {', '.join(str(dtype) for dtype in allowed)}"
    return None


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETER_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def multiprocessors(tensor: torch.Tensor) -> int:
    """Streaming multiprocessors of the tensor's device; a small fixed number in the interpreter.

    Of a tensor without a device (see `architecture`): those of the chip that is stood in for.
    """
    if tensor.device.type == "meta" and not INTERPRETED:
        return CHIP_MULTIPROCESSORS[architecture(tensor)]
    return _multiprocessors(tensor.device)


def launch_device(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's device the current one: Triton launches on the current device, not on its arguments'."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def _device_architecture(device: torch.device) -> str:
    return "sm_90" if torch.cuda.get_device_capability(device) >= (9, 0) else "sm_80"


def architecture(tensor: torch.Tensor) -> str:
    """Which column of the tile tables holds: "sm_80", "sm_90" (and later chips), or "interpreter".

    A tensor without a device (of `testing/offline_triton.py`) is compiled for the architecture that is stood in for.
    """
    if INTERPRETED:
        return "interpreter"
    if tensor.device.type == "cuda":
        return _device_architecture(tensor.device)
    return "sm_90" if triton.runtime.driver.active.get_current_target().arch >= 90 else "sm_80"


def tensor_descriptor(matrix: torch.Tensor, block_rows: int, block_columns: int) -> Any:
    """A descriptor of a (rows, columns) tensor, loaded in blocks of the given size; past its edges it gives zeros."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(matrix, list(matrix.shape), [matrix.stride(0), 1], [block_rows, block_columns])
