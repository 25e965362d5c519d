"""The definition refuses borders and counts that no plan has, as the kernels do, and computes nothing else instead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk

X, WEIGHT = torch.randn(4, 8), torch.randn(5, 8)
QKV = torch.randn(5, 2, 3, 4)


def numbers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("rows", "counts", "told"),
    [
        ((0, 4), (-1,), "the count of group 0 is -1; allowed: 0 to 5"),
        ((0, 4), (9,), "the count of group 0 is 9; allowed: 0 to 5"),
        ((-1, 4), (5,), "rows starts at -1; allowed: one border more than there are parts, the first 0 or more"),
        ((0, 3, 2), (5, 5), "rows goes backwards from 3 to 2 at 1"),
    ],
)
def test_counts_and_borders(rows: tuple[int, ...], counts: tuple[int, ...], told: str) -> None:
    with dk.use_provider("reference"), pytest.raises(ValueError, match=told):
        dk.elastic_linear(X, WEIGHT, rows=numbers(*rows), out_counts=numbers(*counts))


def test_a_sequence_is_in_one_group() -> None:
    with dk.use_provider("reference"), pytest.raises(ValueError, match="rows 0 to 5 and crosses the border 2"):
        dk.varlen_attention(QKV, numbers(0, 5), max_seqlen=5, rows=numbers(0, 2, 5), head_counts=numbers(2, 1))


@pytest.mark.parametrize("bias", [None, torch.randn(2, 2 * 3 - 1)])
def test_a_sequence_is_not_longer_than_said(bias: Tensor | None) -> None:
    """As the kernels say it, with and without a table of biases that need not reach farther."""
    with dk.use_provider("reference"), pytest.raises(ValueError, match="sequence 1 has 4 tokens; allowed: up to max_s"):
        dk.varlen_attention(QKV, numbers(0, 1, 5), max_seqlen=3, position_bias=bias)
