"""Fixtures of the tests of models and what uses them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.dynabert.tiny_networks import CONFIGS


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in, or read from, the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNABERT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Uninitialised memory is NaN: an entry that is read without having been written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(params=sorted(CONFIGS))
def architecture(request: pytest.FixtureRequest) -> str:
    """Each of the three architectures."""
    return request.param
