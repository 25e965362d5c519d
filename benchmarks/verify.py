"""Nothing is timed before it is right: each provider's result on fresh random inputs, held against float64.

The yardstick is the project's (:mod:`dynabert_kernels.testing.comparison`): the largest error, relative to the largest
entry, may be twice what plain PyTorch errs in the same dtype (a gradient's three times), or a floor of a few roundings
where PyTorch errs less.
Allocations hold NaN while a provider runs, so an element that it forgot to write shows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dynabert_kernels.testing.comparison import Check, compare
from dynabert_kernels.testing.inputs import poisoned_allocations

from .problems import Problem
from .registry import Benchmark, Tensors


def compare_all(
    names: Sequence[str],
    actual: Sequence[Tensor],
    exact: Sequence[Tensor],
    torch_results: Sequence[Tensor],
    factor: float,
) -> list[Check]:
    """:func:`compare` for each of several results; the sequences may be longer than ``names``."""
    return [
        compare(name, ours, truth, theirs, factor=factor)
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
