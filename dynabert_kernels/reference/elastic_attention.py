"""The attention sub-layer: ``y = LayerNorm(x + dropout(attention(x Wqkv) Wo + bo))`` over each group's leading heads.

A group with 0 heads skips the layer: its rows pass through unchanged. Rows of no group are zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynabert_kernels.reference.add_layer_norm import add_layer_norm_bwd, add_layer_norm_fwd, statistics_dtype
from dynabert_kernels.reference.dropout import dropout_scale
from dynabert_kernels.reference.groups import RowSpan, row_spans
from dynabert_kernels.reference.varlen_attention import varlen_attention_bwd, varlen_attention_fwd


def hidden_dropout_scale(state: Tensor | None, p: float, stream: int, span: RowSpan, like: Tensor) -> Tensor | None:
    """Dropout factors (rows, C) of a sub-layer's output; the row counts from the start of its group."""
    factor = dropout_scale(
        state,
        p,
        stream=stream,
        group=span.group,
        rows=range(span.end - span.begin),
        columns=like.shape[1],
        heads=1,
        like=like,
    )
    return None if factor is None else factor[0]


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
    """``(y, qkv, context, lse, hidden, mean, rstd)``; all but y are empty unless saved."""
    tokens, size = x.shape[0], qkv_weight.shape[2]
    spans = row_spans(rows, head_counts, max_heads, max_heads)
    qkv = x.new_zeros(tokens, max_heads, 3, size)
    for begin, end, heads, _ in spans:
        projected = F.linear(x[begin:end], qkv_weight[:heads].flatten(0, 2), qkv_bias[:heads].flatten())
        qkv[begin:end, :heads] = projected.view(end - begin, heads, 3, size)
    context, lse = varlen_attention_fwd(
        qkv,
        cu_seqlens,
        rows,
        head_counts,
        position_bias,
        dropout_state,
        max_heads,
        max_seqlen,
        scale,
        attention_dropout,
        dropout_stream,
        save,
    )
    y, hidden = torch.zeros_like(x), torch.zeros_like(x)
    mean = torch.zeros(tokens, dtype=statistics_dtype(x.dtype), device=x.device)
    rstd = torch.zeros_like(mean)
    for span in spans:
        begin, end, heads, _ = span
        if heads == 0:
            y[begin:end] = x[begin:end]
            continue
        features = context.flatten(1)[begin:end, : heads * size]
        projected = F.linear(features, out_weight[:, : heads * size], out_bias)
        factor = hidden_dropout_scale(dropout_state, hidden_dropout, dropout_stream + 1, span, projected)
        total = x[begin:end] + (projected if factor is None else projected * factor)
        y[begin:end], mean_rows, rstd_rows = add_layer_norm_fwd(total, None, ln_weight, ln_bias, eps)
        if save:
            hidden[begin:end], mean[begin:end], rstd[begin:end] = total.detach(), mean_rows.detach(), rstd_rows.detach()
    if not save:
        return (
            y,
            x.new_empty(0),
            x.new_empty(0),
            mean.new_empty(0),
            x.new_empty(0),
            mean.new_empty(0),
            mean.new_empty(0),
        )
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
    """``(dx, dqkv_weight, dqkv_bias, dout_weight, dout_bias, dln_weight, dln_bias, dposition_bias)``."""
    size = qkv_weight.shape[2]
    dx, dcontext = torch.zeros_like(x), torch.zeros_like(context)
    # Head behind head whatever the weight's strides: below it is added to as a matrix.
    dqkv_weight, dout_weight = qkv_weight.new_zeros(qkv_weight.shape), torch.zeros_like(out_weight)
    dqkv_bias = qkv_weight.new_zeros(qkv_weight.shape[:3])
    dout_bias = out_weight.new_zeros(out_weight.shape[0])
    dln_weight, dln_bias = torch.zeros_like(ln_weight), torch.zeros_like(ln_weight)
    spans = row_spans(rows, head_counts, max_heads, max_heads)
    for span in spans:
        begin, end, heads, _ = span
        if heads == 0:
            dx[begin:end] = dy[begin:end]
            continue
        dhidden, dw, db = add_layer_norm_bwd(
            dy[begin:end], hidden[begin:end], None, ln_weight, mean[begin:end], rstd[begin:end]
        )
        dln_weight += dw
        dln_bias += db
        dx[begin:end] = dhidden
        factor = hidden_dropout_scale(dropout_state, hidden_dropout, dropout_stream + 1, span, dhidden)
        dprojected = dhidden if factor is None else dhidden * factor
        features = context.flatten(1)[begin:end, : heads * size]
        dout_bias += dprojected.sum(0)
        dout_weight[:, : heads * size].addmm_(dprojected.t(), features)
        torch.mm(dprojected, out_weight[:, : heads * size], out=dcontext.flatten(1)[begin:end, : heads * size])
    dqkv, dposition_bias = varlen_attention_bwd(
        dcontext,
        qkv,
        context,
        lse,
        cu_seqlens,
        rows,
        head_counts,
        position_bias,
        dropout_state,
        max_heads,
        max_seqlen,
        scale,
        attention_dropout,
        dropout_stream,
    )
    for begin, end, heads, _ in spans:
        if heads == 0:
            continue
        gradient = dqkv.flatten(1)[begin:end, : heads * 3 * size]
        dx[begin:end].addmm_(gradient, qkv_weight[:heads].flatten(0, 2))
        dqkv_weight[:heads].flatten(0, 2).addmm_(gradient.t(), x[begin:end])
        dqkv_bias.view(-1)[: heads * 3 * size] += gradient.sum(0)
    return dx, dqkv_weight, dqkv_bias, dout_weight, dout_bias, dln_weight, dln_bias, dposition_bias
