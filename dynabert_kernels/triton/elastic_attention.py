"""The attention sub-layer over each group's leading heads, residual and LayerNorm included.

    qkv = x @ Wqkv[:k].T + bqkv[:k];  c = attention(qkv) over k heads
    h = x + drop(c @ Wo[:, :k*D].T + bo);  y = LayerNorm(h)

A group with 0 heads skips the layer (y = x); rows of no group are zero. Forward: four launches, a ragged product with
bias (`ragged_gemm.py`; a head is 3*D neighbouring rows of the weight), attention straight on its result
(`varlen_attention.py`), a ragged reduction with bias, dropout and residual, and the LayerNorm of the active rows
(`group_layer_norm.py`); for few rows in inference the last two are those of `split_sums.py`. Between them qkv and c
pass through memory once: 4*T*H*D elements written and read at full width, and k/H of that at k heads.

    dh, dgamma, dbeta = LayerNorm's;  dp = dh * drop;  dbo = sum_t dp;  dc = dp @ Wo;  dWo = dp^T c
    dqkv, dbias = attention's (`varlen_attention_backward.py`)
    dbqkv = sum_t dqkv;  dWqkv = dqkv^T x;  dx = dh + dqkv @ Wqkv

What lies past a row's heads in qkv, c, lse and their gradients is neither written nor let into a result: the public
attention op writes zeros there, this one spares them. Rounded to x's dtype between the launches: qkv, c, h, dh, dp, dc,
dqkv. Sums in float32 (float64 for float64). Deterministic. Does not synchronise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynabert_kernels.triton.attention_arguments import Sequences, why_not_attention
from dynabert_kernels.triton.checks import require_columns, require_rows, require_vectors, why_not_side_by_side
from dynabert_kernels.triton.environment import accumulator_dtype, why_unavailable
from dynabert_kernels.triton.group_layer_norm import group_layer_norm_bwd, group_layer_norm_fwd
from dynabert_kernels.triton.hidden_dropout import hidden_dropout as dropout_of
from dynabert_kernels.triton.ragged_gemm import ragged_input_gradient, ragged_linear
from dynabert_kernels.triton.ragged_sums import gradient_and_sums, ragged_weight_gradient
from dynabert_kernels.triton.row_tiles import Widths, require_matrix, require_plan
from dynabert_kernels.triton.split_sums import split_linear_layer_norm
from dynabert_kernels.triton.tiles import MAX_ROW_COLUMNS, split_count
from dynabert_kernels.triton.varlen_attention import attention_forward
from dynabert_kernels.triton.varlen_attention_backward import attention_backward

__all__ = ["elastic_attention_bwd", "elastic_attention_fwd", "supports_bwd", "supports_fwd"]


def _evenly_spaced(qkv_weight: Tensor) -> bool:
    """Whether the rows of (H, 3, D, C) lie at one distance, so that all heads are one matrix of 3*H*D rows."""
    _, parts, size, _ = qkv_weight.shape
    between = qkv_weight.stride(2)
    wanted = (parts * size * between, size * between, between, 1)
    # A dimension of size 1 may carry any stride.
    return all(n <= 1 or s == w for n, s, w in zip(qkv_weight.shape, qkv_weight.stride(), wanted, strict=True))


def _why_not_weight(qkv_weight: Tensor) -> str | None:
    if _evenly_spaced(qkv_weight):
        return None
    return (
        f"qkv_weight has strides {tuple(qkv_weight.stride())}; its rows must lie at one distance, head by head, and "
        "its last stride must be 1 (call .contiguous())"
    )


def supports_fwd(x: Tensor, qkv_weight: Tensor, qkv_bias: Tensor, *arguments: Any) -> str | None:
    """Why this provider refuses these arguments; None where it takes them."""
    position_bias, scale = arguments[7], arguments[11]
    reason = _why_not(x, qkv_weight, position_bias, scale, *arguments[:9])
    if reason is None and not qkv_bias.is_contiguous():
        reason = f"qkv_bias has strides {tuple(qkv_bias.stride())}; it must be contiguous (call .contiguous())"
    return reason


def supports_bwd(dy: Tensor, x: Tensor, qkv_weight: Tensor, *arguments: Any) -> str | None:
    """Why this provider refuses these arguments; None where it takes them."""
    position_bias, scale = arguments[11], arguments[15]
    return _why_not(x, qkv_weight, position_bias, scale, dy, *arguments[:13])


def _why_not(
    x: Tensor, qkv_weight: Tensor, position_bias: Tensor | None, scale: float, *others: Tensor | None
) -> str | None:
    if not 1 <= x.shape[-1] <= MAX_ROW_COLUMNS:
        return f"C is {x.shape[-1]}; a row is held in registers, so 1 to {MAX_ROW_COLUMNS} columns are allowed"
    return (
        why_unavailable(x)
        or why_not_attention(qkv_weight.shape[2], position_bias, scale)
        or _why_not_weight(qkv_weight)
        or why_not_side_by_side(x, *(tensor for tensor in others if tensor is not None))
    )


def _products(
    op: str, x: Tensor, qkv_weight: Tensor, out_weight: Tensor, rows: Tensor, head_counts: Tensor, max_heads: int
) -> tuple[Tensor, Widths, Widths]:
    """The weight as one matrix (3*H*D, C), and the widths of the products into and out of the heads."""
    require_rows(op, x=x)
    require_columns(op, x, MAX_ROW_COLUMNS)
    width = x.shape[1]
    if qkv_weight.dim() != 4 or qkv_weight.shape[1] != 3 or qkv_weight.shape[3] != width:
        raise ValueError(
            f"{op}: qkv_weight has the wrong shape; got {tuple(qkv_weight.shape)}; allowed: (H, 3, D, C) with C {width}"
        )
    reason = _why_not_weight(qkv_weight)
    if reason is not None:
        raise ValueError(f"{op}: {reason}")
    heads, _, size, _ = qkv_weight.shape
    weight = qkv_weight.view(heads * 3 * size, width)
    into = Widths(rows, head_counts, None, 3 * size, 1, max_heads * 3 * size, width)
    out_of = Widths(rows, None, head_counts, 1, size, width, max_heads * size)
    require_matrix(op, "qkv_weight, head after head,", weight, x, into.max_out, width)
    require_matrix(op, "out_weight", out_weight, x, width, out_of.max_in)
    require_plan(op, into, x)
    return weight, into, out_of


def elastic_attention_fwd(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    head_counts: Tensor,
    position_bias: Tensor | None,
    dropout_state: Tensor | None,
    max_heads: int,
    max_seqlen: int,
    scale: float,
    eps: float,
    attention_dropout: float,
    hidden_dropout: float,
    dropout_stream: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y (T, C); qkv, context, lse, hidden, mean, rstd as the op saves them, or empty. Does not synchronise."""
    op = "elastic_attention_fwd (triton)"
    weight, into, out_of = _products(op, x, qkv_weight, out_weight, rows, head_counts, max_heads)
    (num_rows, width), size = x.shape, qkv_weight.shape[2]
    if not qkv_bias.is_contiguous():
        raise ValueError(f"{op}: qkv_bias is not contiguous; got strides {qkv_bias.stride()}; call .contiguous()")
    bias = qkv_bias.view(-1)
    require_vectors(op, x, weight.shape[0], "3*H*D", qkv_bias=bias)
    require_vectors(op, x, width, "C", out_bias=out_bias, ln_weight=ln_weight, ln_bias=ln_bias)
    dropout = dropout_of(dropout_state, hidden_dropout, dropout_stream + 1)
    if dropout is not None:
        require_vectors(op, x, 2, "seed and offset", torch.int64, dropout_state=dropout.state)
    sequences = Sequences(
        *(cu_seqlens, rows, head_counts, position_bias, dropout_state),
        *(max_heads, max_seqlen, scale, attention_dropout, dropout_stream),
    )
    qkv = x.new_empty((num_rows, max_heads, 3, size))
    context = x.new_empty((num_rows, max_heads, size))
    lse = x.new_empty((max_heads, num_rows) if save else (0,), dtype=accumulator_dtype(x.dtype))

    ragged_linear(x, weight, bias, None, qkv.flatten(1), None, into, activation=0, zero_fill=False)
    attention_forward(qkv, sequences, context, lse if save else None, fill=False, op=op)
    features = context.flatten(1)
    if not save and dropout is None:
        splits = split_count(features, into.num_groups, width, out_of.max_in)
        if splits > 1:
            y = split_linear_layer_norm(features, out_weight, out_bias, x, ln_weight, ln_bias, out_of, eps, splits)
            none, statistics = x.new_empty((0,)), lse.new_empty((0,))
            return y, none, none.clone(), lse, none.clone(), statistics, statistics.clone()
    hidden = x.new_empty((num_rows, width))
    ragged_linear(
        features, out_weight, out_bias, x, hidden, None, out_of, activation=0, zero_fill=False, dropout=dropout
    )
    y, mean, rstd = group_layer_norm_fwd(hidden, x, ln_weight, ln_bias, rows, head_counts, eps, save=save)
    if not save:
        return y, x.new_empty((0,)), x.new_empty((0,)), lse, x.new_empty((0,)), mean, rstd
    return y, qkv, context, lse, hidden, mean, rstd


def elastic_attention_bwd(
    dy: Tensor,
    x: Tensor,
    qkv_weight: Tensor,
    out_weight: Tensor,
    ln_weight: Tensor,
    qkv: Tensor,
    context: Tensor,
    lse: Tensor,
    hidden: Tensor,
    mean: Tensor,
    rstd: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    head_counts: Tensor,
    position_bias: Tensor | None,
    dropout_state: Tensor | None,
    max_heads: int,
    max_seqlen: int,
    scale: float,
    attention_dropout: float,
    hidden_dropout: float,
    dropout_stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dqkv_weight, dqkv_bias, dout_weight, dout_bias, dln_weight, dln_bias, dposition_bias (empty without one).

    Zero in their inactive parts. Does not synchronise.
    """
    op = "elastic_attention_bwd (triton)"
    weight, into, out_of = _products(op, x, qkv_weight, out_weight, rows, head_counts, max_heads)
    (num_rows, width), size = x.shape, qkv_weight.shape[2]
    require_rows(op, x=x, dy=dy)
    require_vectors(op, x, width, "C", ln_weight=ln_weight)
    require_vectors(op, x, num_rows, "T", accumulator_dtype(x.dtype), mean=mean, rstd=rstd)
    saved = {
        "qkv": (qkv, (num_rows, max_heads, 3, size)),
        "context": (context, (num_rows, max_heads, size)),
        "hidden": (hidden, (num_rows, width)),
    }
    for name, (tensor, shape) in saved.items():
        if not tensor.is_contiguous() or tuple(tensor.shape) != shape or tensor.dtype != x.dtype:
            raise ValueError(
                f"{op}: {name} is not what the forward saved; got {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"strides {tensor.stride()}; allowed: {x.dtype}, contiguous, of shape {shape}"
            )
    dropout = dropout_of(dropout_state, hidden_dropout, dropout_stream + 1)
    if dropout is not None:
        require_vectors(op, x, 2, "seed and offset", torch.int64, dropout_state=dropout.state)
    sequences = Sequences(
        *(cu_seqlens, rows, head_counts, position_bias, dropout_state),
        *(max_heads, max_seqlen, scale, attention_dropout, dropout_stream),
    )
    dx = x.new_empty((num_rows, width))
    dqkv_weight, dout_weight = qkv_weight.new_empty(qkv_weight.shape), torch.empty_like(out_weight)
    dqkv_bias, dout_bias = qkv_weight.new_empty(qkv_weight.shape[:3]), out_weight.new_empty((width,))
    if position_bias is None:
        dposition_bias = x.new_empty((0,), dtype=accumulator_dtype(x.dtype))
    else:
        dposition_bias = position_bias.new_empty(position_bias.shape)

    dhidden, dln_weight, dln_bias = group_layer_norm_bwd(dy, hidden, ln_weight, mean, rstd, rows, head_counts, dx)
    dropped = None if dropout is None else torch.empty_like(dhidden)
    gradient_and_sums(dhidden, None, dropped, dout_bias, out_of, dropout=dropout)
    dprojected = dhidden if dropped is None else dropped
    ragged_weight_gradient(dprojected, context.flatten(1), dout_weight, out_of)
    dcontext = torch.empty_like(context)
    ragged_input_gradient(
        dprojected, out_weight, None, None, dcontext.flatten(1), None, out_of, activation=0, zero_fill=False
    )
    dqkv = torch.empty_like(qkv)
    attention_backward(
        *(dcontext, qkv, context, lse, sequences, dqkv, None if position_bias is None else dposition_bias),
        fill=False,
        op=op,
    )
    gradient = dqkv.flatten(1)
    gradient_and_sums(gradient, None, None, dqkv_bias.view(-1), into)
    ragged_weight_gradient(gradient, x, dqkv_weight.view(weight.shape), into)
    ragged_input_gradient(gradient, weight, None, dhidden, dx, None, into, activation=0, zero_fill=False)
    return dx, dqkv_weight, dqkv_bias, dout_weight, dout_bias, dln_weight, dln_bias, dposition_bias
