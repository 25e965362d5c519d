"""Nothing is timed before it is right: each provider's result on fresh random inputs, held against float64.

The yardstick is the project's (:mod:`dynabert_kernels.testing.comparison`): the largest error, relative to the largest
entry, may be twice what plain PyTorch errs in the same dtype, or a floor of a few roundings where PyTorch errs less.
Allocations hold NaN while a provider runs, so an element that it forgot to write shows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynabert_kernels.testing.comparison import floor, max_error
from dynabert_kernels.testing.inputs import poisoned_allocations

from .problems import Problem
from .registry import Benchmark, Tensors

FACTOR = 2.0


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


def compare(name: str, actual: Tensor, exact: Tensor, torch_result: Tensor) -> Check:
    """``actual`` against ``exact`` (float64), with PyTorch's result in the same dtype as the yardstick."""
    fault = None
    if actual.shape != exact.shape:
        fault = f"shape is {tuple(actual.shape)}, it must be {tuple(exact.shape)}"
    elif actual.dtype != torch_result.dtype:
        fault = f"dtype is {actual.dtype}, it must be {torch_result.dtype}"
    if fault is not None:
        return Check(name, float("nan"), float("nan"), float("nan"), fault)
    torch_error = max_error(torch_result, exact)
    allowed = max(FACTOR * torch_error, floor(actual.dtype))
    return Check(name, max_error(actual, exact), torch_error, allowed)


def compare_all(
    names: Sequence[str], actual: Sequence[Tensor], exact: Sequence[Tensor], torch_results: Sequence[Tensor]
) -> list[Check]:
    """:func:`compare` for each of several results; the sequences may be longer than ``names``."""
    return [
        compare(name, ours, truth, theirs)
        for name, ours, truth, theirs in zip(names, actual, exact, torch_results, strict=False)
    ]


def worst(checks: Sequence[Check]) -> Check:
    """The first red one, or the one nearest to its limit."""
    red = [check for check in checks if not check.green]
    return red[0] if red else max(checks, key=lambda check: check.error / check.allowed_error)


def exact_results(benchmark: Benchmark, problem: Problem, tensors: Tensors) -> tuple[Tensor, ...]:
    """The op's definition in float64; what a forward saves for it is computed in float64 too."""
    wide = {name: t.to(torch.float64) if t.is_floating_point() else t for name, t in tensors.items()}
    wide |= benchmark.saved(problem, wide)
    return as_tuple(benchmark.definition()(*benchmark.arguments(problem, wide)))


def as_tuple(results: Any) -> tuple[Tensor, ...]:
    """An op's results, also where it has only one."""
    return (results,) if isinstance(results, Tensor) else tuple(results)


@contextmanager
def poisoned() -> Iterator[None]:
    """Allocations hold NaN inside the block; ops that PyTorch calls non-deterministic still run, without a warning."""
    with poisoned_allocations(), warnings.catch_warnings():
        # cuBLAS refuses deterministic mode unless its workspace was configured before the process started.
        torch.use_deterministic_algorithms(True, warn_only=True)
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        warnings.filterwarnings("ignore", message=".*[Dd]eterministic behavior was enabled.*")
        yield
