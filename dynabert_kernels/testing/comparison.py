"""Error measures, and the one way kernels are compared: against float64, with PyTorch's own error as the yardstick.

A fixed tolerance is too loose for one shape and too tight for the next. PyTorch computes the same thing in the same
dtype; a kernel may err by `factor` times what PyTorch errs, or by a few roundings (`FLOOR`) where PyTorch happens to be
lucky.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# What a kernel may err, in units of PyTorch's own error: outputs, and gradients, whose sums are longer.
OUTPUT_FACTOR = 2.0
GRADIENT_FACTOR = 3.0

# In units of the dtype's eps, relative to the largest entry: below this, errors are rounding and a ratio of two of them
# is luck. One rounding at the store is half an eps. float64 is compared with float64: there the "reference" errs as
# much itself.
FLOOR = {torch.float32: 4.0, torch.bfloat16: 1.0, torch.float16: 1.0, torch.float64: 64.0}


def floor(dtype: torch.dtype) -> float:
    """The smallest tolerance that is asked of a dtype."""
    return FLOOR[dtype] * torch.finfo(dtype).eps


def max_error(actual: Tensor, reference64: Tensor) -> float:
    """``max |actual - reference| / max |reference|``; infinite where a NaN or infinity is in one and not in the other.

    Of empty tensors: 0. Where the reference is zero everywhere: the largest entry of ``actual``, absolute.
    """
    if actual.shape != reference64.shape:
        raise ValueError(f"max_error: shapes differ; got {tuple(actual.shape)} and {tuple(reference64.shape)}")
    if actual.numel() == 0:
        return 0.0
    ours, theirs = actual.detach().double().cpu(), reference64.detach().double().cpu()
    finite = theirs.isfinite()
    if not torch.equal(finite, ours.isfinite()):
        return math.inf
    if not torch.equal(ours[~finite].nan_to_num(0.0, 1.0, -1.0), theirs[~finite].nan_to_num(0.0, 1.0, -1.0)):
        return math.inf
    if not finite.any():
        return 0.0
    largest = theirs[finite].abs().max().item()
    error = (ours[finite] - theirs[finite]).abs().max().item()
    return error / largest if largest > 0 else error


def assert_close_to_float64(
    actual: Tensor, reference64: Tensor, torch_same_dtype: Tensor, *, factor: float = 2.0, name: str = "result"
) -> None:
    """Asserts that ``actual`` errs at most ``factor`` times as much as PyTorch does, or `floor`, if that is more.

    ``reference64``: the result computed in float64 from the same inputs. ``torch_same_dtype``: PyTorch's result in
    ``actual``'s dtype. Raises ``AssertionError`` with both errors.
    """
    assert actual.dtype == torch_same_dtype.dtype, (
        f"{name}: dtype is {actual.dtype}, PyTorch's {torch_same_dtype.dtype}"
    )
    assert actual.shape == reference64.shape, f"{name}: shape is {tuple(actual.shape)}, not {tuple(reference64.shape)}"
    error, yardstick = max_error(actual, reference64), max_error(torch_same_dtype, reference64)
    allowed = max(factor * yardstick, floor(actual.dtype))
    assert error <= allowed, (
        f"{name}: error {error:.3e} of the largest entry; allowed {allowed:.3e}, "
        f"the larger of {factor} times PyTorch's {yardstick:.3e} and {floor(actual.dtype):.3e} for {actual.dtype}"
    )


@dataclass(frozen=True)
class Check:
    """One result against float64. ``fault`` names what is wrong besides the numbers (shape, dtype, an exception)."""

    name: str
    error: float
    torch_error: float
    allowed_error: float
    fault: str | None = None

    @property
    def green(self) -> bool:
        # Not "error > allowed": a NaN must be red.
        return self.fault is None and self.error <= self.allowed_error

    def __str__(self) -> str:
        if self.fault is not None:
            return f"{self.name}: {self.fault}"
        limit = f"allowed {self.allowed_error:.2e} (PyTorch errs {self.torch_error:.2e})"
        return f"{self.name}: error {self.error:.2e}, {limit}"


def compare(
    name: str, actual: Tensor, exact: Tensor, torch_result: Tensor, *, factor: float = OUTPUT_FACTOR
) -> Check:
    """``actual`` against ``exact`` (float64), with PyTorch's result in the same dtype as the yardstick."""
    fault = None
    if actual.shape != exact.shape:
        fault = f"shape is {tuple(actual.shape)}, it must be {tuple(exact.shape)}"
    elif actual.dtype != torch_result.dtype:
        fault = f"dtype is {actual.dtype}, it must be {torch_result.dtype}"
    if fault is not None:
        return Check(name, float("nan"), float("nan"), float("nan"), fault)
    torch_error = max_error(torch_result, exact)
    allowed = max(factor * torch_error, floor(actual.dtype))
    return Check(name, max_error(actual, exact), torch_error, allowed)
