"""Where a network can run, and in what."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT8 = "int8"  # no dtype of a model: its layers' matrices are int8, the rest is not


def checked_device(device: str | torch.device) -> torch.device:
    """``device`` as a torch device that is there.

    Raises ``ValueError``: an unknown kind of device, or a GPU that this machine or this PyTorch does not have.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {device!r}; allowed: cpu, cuda or cuda:N") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; allowed: cpu, cuda or cuda:N")
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise ValueError(f"device is {device!r}, and PyTorch finds {count} GPUs here; use cpu, or check the driver")
    return found


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The torch dtype of this name; ValueError for one that the engine does not run in."""
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise ValueError(
            f"dtype: not one the engine runs in; got {dtype!r}; allowed: {', '.join(DTYPES)}, and on a CPU {INT8}"
        )
    assert isinstance(chosen, torch.dtype)
    return chosen
