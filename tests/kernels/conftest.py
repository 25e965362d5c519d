"""Triton's interpreter, with its bfloat16 mended, for all kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dynabert_kernels.testing.interpreter import exact_bfloat16
from dynabert_kernels.triton.environment import INTERPRETED


@pytest.fixture(scope="session", autouse=True)
def _exact_bfloat16_in_the_interpreter() -> Iterator[None]:
    if not INTERPRETED:
        yield
        return
    with exact_bfloat16():
        yield
