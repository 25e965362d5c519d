"""Attention over packed sequences, leading heads only, straight from the packed query, key and value.

``out[i] = sum_j drop(softmax_j(q_i . k_j * scale + bias[j - i])) v_j`` with i and j in the same sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynabert_kernels.reference.add_layer_norm import statistics_dtype
from dynabert_kernels.reference.dropout import dropout_scale
from dynabert_kernels.reference.groups import RowSpan, sequence_spans


def _probabilities(
    qkv: Tensor, position_bias: Tensor | None, span: RowSpan, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(probabilities, log-sum-exp, q, k, v)`` of one sequence, heads first; softmax in the statistics dtype."""
    wide = statistics_dtype(qkv.dtype)
    q, k, v = qkv[span.begin : span.end, : span.active].transpose(0, 1).unbind(2)
    scores = (q @ k.transpose(1, 2)).to(wide) * scale
    if position_bias is not None:
        scores = scores + position_bias[: span.active, _distances(span, position_bias)].to(wide)
    lse = torch.logsumexp(scores, 2)
    return torch.exp(scores - lse[..., None]), lse, q, k, v


def _distances(span: RowSpan, position_bias: Tensor) -> Tensor:
    """(n, n) column of the bias table for query i and key j: ``j - i + R - 1``."""
    places = torch.arange(span.end - span.begin, device=position_bias.device)
    return places[None, :] - places[:, None] + position_bias.shape[1] // 2


def _dropped(
    state: Tensor | None, p: float, stream: int, span: RowSpan, group_begin: int, like: Tensor
) -> Tensor | None:
    length = span.end - span.begin
    rows = range(span.begin - group_begin, span.end - group_begin)
    return dropout_scale(
        state, p, stream=stream, group=span.group, rows=rows, columns=length, heads=span.active, like=like
    )


def varlen_attention_fwd(
    qkv: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    head_counts: Tensor | None,
    position_bias: Tensor | None,
    dropout_state: Tensor | None,
    max_heads: int,
    max_seqlen: int,
    scale: float,
    dropout_p: float,
    dropout_stream: int,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """``(out, lse)``: out (T, max_heads, D), zero past a row's heads; lse (max_heads, T) or empty."""
    tokens, _, _, size = qkv.shape
    out = qkv.new_zeros(tokens, max_heads, size)
    lse = torch.zeros(max_heads, tokens, dtype=statistics_dtype(qkv.dtype), device=qkv.device)
    borders = rows.tolist()
    for span in sequence_spans(cu_seqlens, rows, head_counts, max_heads, max_seqlen):
        if span.active == 0:
            continue
        weights, sums, _, _, v = _probabilities(qkv, position_bias, span, scale)
        factor = _dropped(dropout_state, dropout_p, dropout_stream, span, borders[span.group], weights)
        if factor is not None:
            weights = weights * factor
        out[span.begin : span.end, : span.active] = (weights.to(v.dtype) @ v).transpose(0, 1)
        lse[: span.active, span.begin : span.end] = sums.detach()
    return out, lse if save else lse.new_empty(0)


def varlen_attention_bwd(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    head_counts: Tensor | None,
    position_bias: Tensor | None,
    dropout_state: Tensor | None,
    max_heads: int,
    max_seqlen: int,
    scale: float,
    dropout_p: float,
    dropout_stream: int,
) -> tuple[Tensor, Tensor]:
    """``(dqkv, dposition_bias)``: dqkv like qkv, zero past a row's heads; dposition_bias is empty without a bias."""
    dqkv = torch.zeros_like(qkv)
    wide = statistics_dtype(qkv.dtype)
    dbias = torch.zeros(0, dtype=wide, device=qkv.device)
    if position_bias is not None:
        dbias = torch.zeros(position_bias.shape, dtype=wide, device=qkv.device)
    borders = rows.tolist()
    for span in sequence_spans(cu_seqlens, rows, head_counts, max_heads, max_seqlen):
        if span.active == 0:
            continue
        weights, _, q, k, v = _probabilities(qkv, position_bias, span, scale)
        factor = _dropped(dropout_state, dropout_p, dropout_stream, span, borders[span.group], weights)
        gradient = dout[span.begin : span.end, : span.active].transpose(0, 1)
        output = out[span.begin : span.end, : span.active].transpose(0, 1)
        dropped = weights if factor is None else weights * factor
        dv = dropped.to(v.dtype).transpose(1, 2) @ gradient
        dweights = (gradient @ v.transpose(1, 2)).to(wide)
        if factor is not None:
            dweights = dweights * factor
        # sum_j p_ij dp_ij equals dout_i . out_i, with dropout too
        delta = (gradient.to(wide) * output.to(wide)).sum(2, keepdim=True)
        dscores = weights * (dweights - delta)
        if position_bias is not None:
            flat = _distances(span, position_bias).reshape(-1)
            dbias[: span.active].index_add_(1, flat, dscores.reshape(span.active, -1))
        dscores = (dscores * scale).to(q.dtype)
        target = dqkv[span.begin : span.end, : span.active]
        target[:, :, 0] = (dscores @ k).transpose(0, 1)
        target[:, :, 1] = (dscores.transpose(1, 2) @ q).transpose(0, 1)
        target[:, :, 2] = dv.transpose(0, 1)
    return dqkv, dbias if position_bias is None else dbias.to(position_bias.dtype)
