"""Where a network can run."""

from __future__ import annotations

import torch


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
