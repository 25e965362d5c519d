"""Weights in the order in which a product on the CPU reads them, packed once for every width.

A matrix (N, K) becomes (panels, units, panel, numbers): panels of neighbouring outputs, one behind the other; in each
of them unit after unit along the inputs; in each unit one or two numbers for every output of the panel. The leading
outputs are the leading panels and the leading inputs the leading units of each panel, so that a sub-network reads a
part of the same buffer. Past N and K there is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def numbers_per_unit(dtype: torch.dtype) -> int:
    """A unit is 32 bits: one float32, or two bfloat16 that one instruction multiplies and adds."""
    return 4 // dtype.itemsize


def pack_matrix(weight: Tensor, panel: int) -> Tensor:
    """(N, K) float32 or bfloat16, any strides, to (ceil(N / panel), units, panel, numbers per unit), contiguous."""
    outputs, inputs = weight.shape
    numbers = numbers_per_unit(weight.dtype)
    panels, units = -(-outputs // panel), -(-inputs // numbers)
    packed = weight.new_zeros(panels, units, panel, numbers)
    # Panel by panel, so that the padded copy is small beside a large weight.
    for index in range(panels):
        rows = weight[index * panel : (index + 1) * panel]
        padded = weight.new_zeros(panel, units * numbers)
        padded[: rows.shape[0], :inputs] = rows
        packed[index] = padded.view(panel, units, numbers).transpose(0, 1)
    return packed


def unpack_matrix(packed: Tensor, outputs: int, inputs: int) -> Tensor:
    """The (outputs, inputs) that `pack_matrix` packed, contiguous."""
    panels, units, panel, numbers = packed.shape
    rows = packed.transpose(1, 2).reshape(panels * panel, units * numbers)
    return rows[:outputs, :inputs].contiguous()
