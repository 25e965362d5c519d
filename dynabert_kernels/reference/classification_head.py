"""The definition of the classification head, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def classification_head(
    x: Tensor,
    cu_seqlens: Tensor,
    dense_weight: Tensor | None,
    dense_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor,
) -> Tensor:
    """(B, labels): ``out(tanh(dense(x[first])))`` for each sequence's first row; without ``dense`` ``out(x[first])``.

    As PyTorch's modules compute it, each product rounded once to the dtype.
    """
    first = x.index_select(0, cu_seqlens[:-1])
    if dense_weight is not None:
        first = torch.tanh(torch.nn.functional.linear(first, dense_weight, dense_bias))
    return torch.nn.functional.linear(first, out_weight, out_bias)
