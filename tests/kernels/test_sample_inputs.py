"""Sample inputs are what they claim: poison is there, views are views, allocations hold NaN."""

from __future__ import annotations

import pytest
import torch

from dynabert_kernels.testing.inputs import add_layer_norm_input, poison, poisoned_allocations, strided_rows


def test_strided_rows_hold_the_values_between_poison() -> None:
    tensor = torch.arange(12.0).view(3, 4)
    view = strided_rows(tensor, gap=2, offset=3)
    assert torch.equal(view, tensor)
    assert view.stride() == (6, 1)
    assert view.storage_offset() == 3
    assert torch.as_strided(view, (21,), (1,), 0).isnan().sum() == 21 - 12


def test_inputs_are_the_same_for_one_seed_and_dtype() -> None:
    first, second = (add_layer_norm_input(3, 5, torch.float32) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one == other if isinstance(one, float) else torch.equal(one, other)
    # The values of another dtype are the same numbers, rounded.
    assert torch.equal(
        add_layer_norm_input(3, 5, torch.bfloat16).x, add_layer_norm_input(3, 5, torch.float64).x.bfloat16()
    )
    assert add_layer_norm_input(3, 5, torch.float32, residual=False).residual is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_poison_is_nan(dtype: torch.dtype) -> None:
    assert poison(torch.zeros(3, dtype=dtype)).isnan().all()


def test_allocations_are_poisoned_inside_and_settings_come_back() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with poisoned_allocations():
        assert torch.empty(1000).isnan().all()
        assert torch.zeros(3).new_empty((50, 2), dtype=torch.float64).isnan().all()
    assert torch.are_deterministic_algorithms_enabled() == before
