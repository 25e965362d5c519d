"""Triton's interpreter, multiplying as a GPU does, for all kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dynabert_kernels.testing.interpreter import products_of_a_gpu
from dynabert_kernels.triton.environment import INTERPRETED


@pytest.fixture(scope="session", autouse=True)
def _products_of_a_gpu_in_the_interpreter() -> Iterator[None]:
    if not INTERPRETED:
        yield
        return
    with products_of_a_gpu():
        yield
