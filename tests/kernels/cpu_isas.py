"""Runs a test once for each instruction set this processor has, with uninitialised memory full of NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from tests.kernels.usable_isas import usable_isas

NATIVE = dk.NATIVE
if NATIVE is None:
    pytest.skip("the native library is not built: there is no cpu provider to test", allow_module_level=True)

ISAS = usable_isas()
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

each_isa = pytest.mark.parametrize("isa", ISAS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small shapes: a second thread only waits, the longer the busier the machine is. Imported by each test module."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def poisoned() -> Iterator[None]:
    """Every new tensor is full of NaN until something is written to it."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)


@contextmanager
def using_isa(name: str) -> Iterator[None]:
    """Forces an instruction set, and allocations of NaN, inside the block."""
    NATIVE.set_cpu_isa(name)
    try:
        with poisoned():
            yield
    finally:
        NATIVE.set_cpu_isa("auto")


def cpu_op(name: str) -> Callable[..., Any]:
    """The native implementation, past the rule that chooses providers."""
    return getattr(torch.ops.dynabert_cpu, name).default


def double(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments with every floating tensor in float64."""
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def borders(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def strided(tensor: Tensor, padding: int = 3, offset: int = 1) -> Tensor:
    """The same values as a view of a wider tensor: rows further apart, first number not at the storage's start."""
    wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + padding), float("nan"))
    view = wide[..., offset : offset + tensor.shape[-1]]
    view.copy_(tensor)
    return view
