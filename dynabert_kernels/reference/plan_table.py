"""A plan's table and its sequences' borders, from lengths and widths that are on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def plan_table(seqlens: Tensor, group_sizes: Tensor, heads: Tensor, neurons: Tensor) -> tuple[Tensor, Tensor]:
    """``(table, cu_seqlens)``: the int32 table of :class:`dynabert_kernels.Plan`, and (B+1,) int32 borders."""
    start = seqlens.new_zeros(1)
    cu_seqlens = torch.cat([start, seqlens.cumsum(0, dtype=torch.int32)])
    # A group cannot end past the last sequence, whatever its size says: nothing is read outside the borders.
    ends = group_sizes.cumsum(0, dtype=torch.int32).clamp(0, seqlens.shape[0])
    rows = torch.cat([start, cu_seqlens.index_select(0, ends)])
    counts = torch.stack([heads.t(), neurons.t()], 1)  # (L, 2, G)
    return torch.cat([rows, counts.reshape(-1)]), cu_seqlens
