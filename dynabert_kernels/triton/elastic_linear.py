"""A linear map over each group's leading features, forward and backward.

    y[t, :n] = act(x[t, :k] @ W[:n, :k].T + b[:n]) + residual[t, :n];  y[t, n:] = 0
    dz = dy * act'(pre);  dx[t, :k] = dz[t, :n] @ W[:n, :k];  dW[:n, :k] = sum_t dz[t, :n]^T x[t, :k];  db = sum_t dz

Composed of the ragged products (`ragged_gemm.py`) and of the sums over rows (`ragged_sums.py`). Everything past a row's
width, and every row of no group, is written as zeros, in y, dx and dw alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynabert_kernels.triton.checks import require_vectors, why_not_side_by_side
from dynabert_kernels.triton.environment import why_unavailable
from dynabert_kernels.triton.ragged_gemm import ragged_input_gradient, ragged_linear
from dynabert_kernels.triton.ragged_sums import gradient_and_sums, ragged_weight_gradient
from dynabert_kernels.triton.row_tiles import Widths, require_matrix, require_plan

__all__ = ["elastic_linear_bwd", "elastic_linear_fwd", "supports"]


def supports(*arguments: Tensor | int | bool | None) -> str | None:
    """Why this provider refuses these arguments (of either op, in its order); None where it takes them."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    return why_unavailable(tensors[0]) or why_not_side_by_side(*tensors)


def elastic_linear_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    rows: Tensor,
    out_counts: Tensor | None,
    in_counts: Tensor | None,
    out_unit: int,
    in_unit: int,
    max_out: int,
    max_in: int,
    activation: int,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """y (T, max_out) and pre (T, max_out), empty where it is not saved or equals y. Does not synchronise."""
    op = "elastic_linear_fwd (triton)"
    widths = Widths(rows, out_counts, in_counts, out_unit, in_unit, max_out, max_in)
    require_matrix(op, "x", x, x, 0, max_in)
    require_matrix(op, "weight", weight, x, max_out, max_in)
    if residual is not None:
        require_matrix(op, "residual", residual, x, x.shape[0], max_out)
    if bias is not None:
        require_vectors(op, x, weight.shape[0], "N", bias=bias)
    require_plan(op, widths, x)
    y = x.new_empty((x.shape[0], max_out))
    pre = x.new_empty((x.shape[0], max_out)) if save and activation != 0 else None
    ragged_linear(x, weight, bias, residual, y, pre, widths, activation=activation, zero_fill=True)
    return y, x.new_empty((0,)) if pre is None else pre


def elastic_linear_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    pre: Tensor,
    rows: Tensor,
    out_counts: Tensor | None,
    in_counts: Tensor | None,
    out_unit: int,
    in_unit: int,
    max_out: int,
    max_in: int,
    activation: int,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx in x's shape, dw in weight's, db (N,) or empty; zero in their inactive parts. Does not synchronise."""
    op = "elastic_linear_bwd (triton)"
    widths = Widths(rows, out_counts, in_counts, out_unit, in_unit, max_out, max_in)
    require_matrix(op, "x", x, x, 0, max_in)
    require_matrix(op, "dy", dy, x, x.shape[0], max_out)
    require_matrix(op, "weight", weight, x, max_out, max_in)
    if activation != 0:
        require_matrix(op, "pre", pre, x, x.shape[0], max_out)
    require_plan(op, widths, x)
    dx, dw = torch.empty_like(x), torch.empty_like(weight)
    db = weight.new_empty((weight.shape[0],)) if has_bias else None
    dz = x.new_empty((x.shape[0], max_out)) if activation != 0 else None
    # A group without inputs still adds its bias, so its gradients count: the inputs are not asked here.
    every_input = widths._replace(in_counts=None, max_in=1)
    gradient_and_sums(dy, None if dz is None else pre, dz, db, every_input, activation=activation)
    dz = dy if dz is None else dz
    ragged_input_gradient(dz, weight, None, None, dx, None, widths, activation=0, zero_fill=True)
    ragged_weight_gradient(dz, x, dw, widths)
    return dx, dw, weight.new_empty((0,)) if db is None else db
