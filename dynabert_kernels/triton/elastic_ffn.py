"""The feed-forward sub-layer over each group's leading neurons, residual and LayerNorm included.

    z = x @ Win[:f].T + bin[:f];  h = x + drop(act(z) @ Wout[:, :f].T + bout);  y = LayerNorm(h)

A group with 0 neurons skips the layer (y = x); rows of no group are zero. Forward: three launches, a ragged product
with bias and activation, a ragged reduction with bias, dropout and residual (`ragged_gemm.py`), and the LayerNorm of
the active rows (`group_layer_norm.py`); for few rows in inference the last two are those of `split_sums.py`. The
activated values pass through memory once, T*F elements written and read.

    dh, dgamma, dbeta = LayerNorm's;  dp = dh * drop;  dbout = sum_t dp
    dz = (dp @ Wout) * act'(z);  dWout = dp^T act(z);  dbin = sum_t dz;  dWin = dz^T x;  dx = dh + dz @ Win

Backward: act(z) is not kept but written again by the product that reads z for act'(z). What lies past a row's width in
z, act(z), h and their gradients is neither written nor let into a result. Rounded to x's dtype between the launches: z,
act(z), h, dh, dp, dz. Sums in float32 (float64 for float64). Deterministic. Does not synchronise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynabert_kernels.triton.checks import require_columns, require_rows, require_vectors, why_not_side_by_side
from dynabert_kernels.triton.environment import accumulator_dtype, why_unavailable
from dynabert_kernels.triton.group_layer_norm import group_layer_norm_bwd, group_layer_norm_fwd
from dynabert_kernels.triton.hidden_dropout import hidden_dropout as dropout_of
from dynabert_kernels.triton.ragged_gemm import ragged_input_gradient, ragged_linear
from dynabert_kernels.triton.ragged_sums import gradient_and_sums, ragged_weight_gradient
from dynabert_kernels.triton.row_tiles import Widths, require_matrix, require_plan
from dynabert_kernels.triton.split_sums import split_linear_layer_norm
from dynabert_kernels.triton.tiles import MAX_ROW_COLUMNS, split_count

__all__ = ["elastic_ffn_bwd", "elastic_ffn_fwd", "supports"]


def supports(*arguments: Tensor | float | None) -> str | None:
    """Why this provider refuses these arguments (of either op, in its order); None where it takes them."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    reason = why_unavailable(tensors[0])
    if reason is not None:
        return reason
    if not 1 <= tensors[0].shape[-1] <= MAX_ROW_COLUMNS:
        return f"C is {tensors[0].shape[-1]}; a row is held in registers, so 1 to {MAX_ROW_COLUMNS} columns are allowed"
    return why_not_side_by_side(*tensors)


def _widths(rows: Tensor, neuron_counts: Tensor, width: int, max_neurons: int) -> tuple[Widths, Widths]:
    """Of the products into and out of the neurons."""
    into = Widths(rows, neuron_counts, None, 1, 1, max_neurons, width)
    return into, into.turned()


def _require(
    op: str, x: Tensor, in_weight: Tensor, out_weight: Tensor, into: Widths, dropout_state: Tensor | None
) -> None:
    require_rows(op, x=x)
    require_columns(op, x, MAX_ROW_COLUMNS)
    width = x.shape[1]
    require_matrix(op, "in_weight", in_weight, x, into.max_out, width)
    require_matrix(op, "out_weight", out_weight, x, width, into.max_out)
    require_plan(op, into, x)
    if dropout_state is not None:
        require_vectors(op, x, 2, "seed and offset", torch.int64, dropout_state=dropout_state)


def elastic_ffn_fwd(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    rows: Tensor,
    neuron_counts: Tensor,
    dropout_state: Tensor | None,
    max_neurons: int,
    activation: int,
    eps: float,
    hidden_dropout: float,
    dropout_stream: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y (T, C); pre (T, max_neurons), hidden (T, C), mean, rstd (T,), empty unless saved. Does not synchronise."""
    op = "elastic_ffn_fwd (triton)"
    num_rows, width = x.shape[0], x.shape[-1]
    into, out_of = _widths(rows, neuron_counts, width, max_neurons)
    _require(op, x, in_weight, out_weight, into, dropout_state)
    require_vectors(op, x, in_weight.shape[0], "F", in_bias=in_bias)
    require_vectors(op, x, width, "C", out_bias=out_bias, ln_weight=ln_weight, ln_bias=ln_bias)
    activated = x.new_empty((num_rows, max_neurons))
    # Without an activation the two are one.
    pre = x.new_empty((num_rows, max_neurons)) if save and activation != 0 else None
    ragged_linear(x, in_weight, in_bias, None, activated, pre, into, activation=activation, zero_fill=False)
    dropout = dropout_of(dropout_state, hidden_dropout, dropout_stream)
    if not save and dropout is None:
        splits = split_count(activated, into.num_groups, width, max_neurons)
        if splits > 1:
            y = split_linear_layer_norm(activated, out_weight, out_bias, x, ln_weight, ln_bias, out_of, eps, splits)
            statistics = x.new_empty((0,), dtype=accumulator_dtype(x.dtype))
            return y, x.new_empty((0,)), x.new_empty((0,)), statistics, torch.empty_like(statistics)
    hidden = x.new_empty((num_rows, width))
    ragged_linear(
        activated, out_weight, out_bias, x, hidden, None, out_of, activation=0, zero_fill=False, dropout=dropout
    )
    y, mean, rstd = group_layer_norm_fwd(hidden, x, ln_weight, ln_bias, rows, neuron_counts, eps, save=save)
    if not save:
        return y, x.new_empty((0,)), x.new_empty((0,)), mean, rstd
    return y, activated if pre is None else pre, hidden, mean, rstd


def elastic_ffn_bwd(
    dy: Tensor,
    x: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    ln_weight: Tensor,
    pre: Tensor,
    hidden: Tensor,
    mean: Tensor,
    rstd: Tensor,
    rows: Tensor,
    neuron_counts: Tensor,
    dropout_state: Tensor | None,
    max_neurons: int,
    activation: int,
    hidden_dropout: float,
    dropout_stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, din_weight, din_bias, dout_weight, dout_bias, dln_weight, dln_bias, zero in their inactive parts."""
    op = "elastic_ffn_bwd (triton)"
    num_rows, width = x.shape[0], x.shape[-1]
    into, out_of = _widths(rows, neuron_counts, width, max_neurons)
    _require(op, x, in_weight, out_weight, into, dropout_state)
    require_rows(op, x=x, dy=dy)
    require_matrix(op, "pre", pre, x, num_rows, max_neurons)
    require_vectors(op, x, width, "C", ln_weight=ln_weight)
    require_vectors(op, x, num_rows, "T", accumulator_dtype(x.dtype), mean=mean, rstd=rstd)
    if not hidden.is_contiguous() or hidden.shape != x.shape or hidden.dtype != x.dtype:
        raise ValueError(
            f"{op}: hidden is not what the forward saved; got {hidden.dtype} of shape {tuple(hidden.shape)}, strides "
            f"{hidden.stride()}; allowed: {x.dtype}, contiguous, of x's shape {tuple(x.shape)}"
        )
    dx = x.new_empty((num_rows, width))
    din_weight, dout_weight = torch.empty_like(in_weight), torch.empty_like(out_weight)
    din_bias, dout_bias = in_weight.new_empty((in_weight.shape[0],)), out_weight.new_empty((width,))

    dhidden, dln_weight, dln_bias = group_layer_norm_bwd(dy, hidden, ln_weight, mean, rstd, rows, neuron_counts, dx)
    dropout = dropout_of(dropout_state, hidden_dropout, dropout_stream)
    dropped = None if dropout is None else torch.empty_like(dhidden)
    gradient_and_sums(dhidden, None, dropped, dout_bias, out_of, dropout=dropout)
    dprojected = dhidden if dropped is None else dropped

    dz = x.new_empty((num_rows, max_neurons))
    activated = None if activation == 0 else torch.empty_like(dz)
    ragged_input_gradient(
        *(dprojected, out_weight, None if activated is None else pre, None, dz, activated, out_of),
        activation=activation,
        zero_fill=False,
    )
    ragged_weight_gradient(dprojected, pre if activated is None else activated, dout_weight, out_of)
    gradient_and_sums(dz, None, None, din_bias, into)
    ragged_weight_gradient(dz, x, din_weight, into)
    ragged_input_gradient(dz, in_weight, None, dhidden, dx, None, into, activation=0, zero_fill=False)
    return dx, din_weight, din_bias, dout_weight, dout_bias, dln_weight, dln_bias
