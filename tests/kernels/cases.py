"""Small inputs of every op, over plans that mix widths, skip layers and leave groups empty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import dynabert_kernels as dk

DROPOUT_STATE = (1234567890123, 77)


@dataclass(frozen=True)
class Network:
    """Sizes of one toy layer and its random weights."""

    width: int
    heads: int
    size: int
    neurons: int
    dtype: torch.dtype

    def tensor(self, *shape: int, scale: float = 0.3) -> Tensor:
        return (torch.randn(*shape, dtype=torch.float64) * scale).to(self.dtype)

    def attention(self) -> list[Tensor]:
        """qkv weight and bias, output weight and bias, LayerNorm weight and bias."""
        h, d, c = self.heads, self.size, self.width
        return [
            self.tensor(h, 3, d, c),
            self.tensor(h, 3, d),
            self.tensor(c, h * d),
            self.tensor(c),
            1 + self.tensor(c, scale=0.1),
            self.tensor(c),
        ]

    def ffn(self) -> list[Tensor]:
        """FFN in weight and bias, out weight and bias, LayerNorm weight and bias."""
        f, c = self.neurons, self.width
        return [
            self.tensor(f, c),
            self.tensor(f),
            self.tensor(c, f),
            self.tensor(c),
            1 + self.tensor(c, scale=0.1),
            self.tensor(c),
        ]


# name: (heads of each group, lengths of each group's sequences), for a network of 4 heads
PLANS: dict[str, tuple[list[int], list[list[int]]]] = {
    "one token": ([4], [[1]]),
    "uniform, full": ([4], [[5, 3, 7]]),
    "uniform, one head": ([1], [[6, 1]]),
    "mixed, widest first": ([4, 2, 1], [[5, 2], [7], [3, 1]]),
    "mixed, not sorted": ([1, 4, 3], [[3], [4, 2], [5]]),
    "a group skips the layer": ([3, 0, 2], [[4], [3, 2], [6]]),
    "an empty group": ([4, 2, 1], [[3, 2], [], [5]]),
    "all skip": ([0, 0], [[3], [2]]),
    "no tokens": ([4], [[]]),
}


def plan_of(name: str, *, neurons_per_head: int = 3, row_bucket: int = 1) -> tuple[dk.Plan, Tensor]:
    """The one-layer plan ``name`` and its ``cu_seqlens``."""
    heads, lengths = PLANS[name]
    shapes = [dk.SubnetShape((k,), (k * neurons_per_head,)) for k in heads]
    plan = dk.Plan.build(shapes, lengths, row_bucket=row_bucket)
    borders = torch.tensor([0, *[n for group in lengths for n in group]]).cumsum(0).to(torch.int32)
    return plan, borders


def bias_table(network: Network, max_seqlen: int) -> Tensor:
    """A relative position bias that reaches two places further than needed."""
    return network.tensor(network.heads, 2 * (max_seqlen + 2) - 1)
