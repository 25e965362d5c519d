"""Sample inputs of the ops: shapes that each cover a path, views that catch wrong strides, and poison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# (T, C): what the shape covers
ADD_LAYER_NORM_SHAPES: dict[tuple[int, int], str] = {
    (1, 1): "one of all; variance zero",
    (0, 64): "no rows: nothing is launched, gradients of the weights are zero",
    (5, 7): "primes below every tile",
    (31, 61): "primes, several row tiles, the last one ragged",
    (16, 128): "whole tiles exactly",
    (17, 129): "one past the tile in both directions",
    (33, 312): "a width that is a multiple of 8 but not of 16 (TinyBERT)",
    (70, 384): "MiniLM; more row tiles than programs of the backward pass",
    (9, 768): "BERT-base",
    (3, 1025): "one past 1,024 columns: other tiles, other kernels",
}


class AddLayerNormInput(NamedTuple):
    """Arguments of ``add_layer_norm`` and a gradient of its result."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor
    eps: float
    dy: Tensor


def add_layer_norm_input(
    num_rows: int,
    num_columns: int,
    dtype: torch.dtype,
    *,
    residual: bool = True,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> AddLayerNormInput:
    """Random arguments with a mean away from zero, so that a variance computed as a difference of squares shows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, shift: float = 0.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) + shift).to(dtype).to(device)

    return AddLayerNormInput(
        x=normal(num_rows, num_columns, shift=3.0),
        residual=normal(num_rows, num_columns) if residual else None,
        weight=normal(num_columns, shift=1.0),
        bias=normal(num_columns),
        eps=1e-5,
        dy=normal(num_rows, num_columns),
    )


def poison(tensor: Tensor) -> Tensor:
    """Fills with NaN, in place: whoever reads it shows it."""
    return tensor.fill_(float("nan"))


def strided_rows(tensor: Tensor, *, gap: int = 3, offset: int = 1) -> Tensor:
    """The same (T, C) values as a view: ``gap`` elements between rows and ``offset`` before the first, all NaN.

    Rows then start at addresses that are no multiple of 16 bytes, and a kernel that takes C for the row stride reads
    poison.
    """
    num_rows, num_columns = tensor.shape
    storage = poison(tensor.new_empty(offset + num_rows * (num_columns + gap)))
    view = storage[offset:].view(num_rows, num_columns + gap)[:, :num_columns]
    return view.copy_(tensor)


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Every ``empty`` tensor holds NaN inside the ``with`` block: an unwritten output shows.

    Integers hold their largest value.
    """
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=warn_only)
        memory.fill_uninitialized_memory = before[1]
