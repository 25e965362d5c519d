"""Embeddings and LayerNorm: ``y = dropout(LayerNorm(word[ids] + position[places] + token_type[types]))``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynabert_kernels.reference.add_layer_norm import add_layer_norm_bwd, add_layer_norm_fwd, statistics_dtype
from dynabert_kernels.reference.elastic_attention import hidden_dropout_scale
from dynabert_kernels.reference.groups import RowSpan, row_spans


def _embedded(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
) -> Tensor:
    wide = statistics_dtype(word.dtype)
    # Not by indexing, which takes a negative id for one counted from the end.
    total = F.embedding(input_ids, word).to(wide) + F.embedding(position_ids, position).to(wide)
    if token_type is not None:
        types = token_type[0] if token_type_ids is None else F.embedding(token_type_ids, token_type)
        total = total + types.to(wide)
    return total


def _spans(rows: Tensor | None, tokens: int) -> list[RowSpan]:
    return [RowSpan(0, tokens, 0, 0)] if rows is None else row_spans(rows, None, 0)


def embed_layer_norm_fwd(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    rows: Tensor | None,
    dropout_state: Tensor | None,
    eps: float,
    dropout_p: float,
    dropout_stream: int,
    padding_idx: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, mean, rstd)``: y (T, C) in the tables' dtype; no token type ids means type 0."""
    total = _embedded(input_ids, position_ids, token_type_ids, word, position, token_type)
    y, mean, rstd = add_layer_norm_fwd(total, None, weight, bias, eps)
    y = y.to(word.dtype)
    if dropout_p > 0.0 and dropout_state is not None:
        parts = []
        for span in _spans(rows, y.shape[0]):
            factor = hidden_dropout_scale(dropout_state, dropout_p, dropout_stream, span, y)
            parts.append(y[span.begin : span.end] if factor is None else y[span.begin : span.end] * factor)
        covered = sum(part.shape[0] for part in parts)
        y = torch.cat([*parts, y[covered:]])
    return y, mean, rstd


def embed_layer_norm_bwd(
    dy: Tensor,
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    rows: Tensor | None,
    dropout_state: Tensor | None,
    dropout_p: float,
    dropout_stream: int,
    padding_idx: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(dword, dposition, dtoken_type, dw, db)``; the padding token's row of dword is zero."""
    wide = mean.dtype
    gradient = dy.to(wide)
    if dropout_p > 0.0 and dropout_state is not None:
        gradient = gradient.clone()
        for span in _spans(rows, dy.shape[0]):
            factor = hidden_dropout_scale(dropout_state, dropout_p, dropout_stream, span, gradient)
            if factor is not None:
                gradient[span.begin : span.end] *= factor
    total = _embedded(input_ids, position_ids, token_type_ids, word, position, token_type)
    dtotal, dw, db = add_layer_norm_bwd(gradient, total, None, weight.to(wide), mean, rstd)
    dword = torch.zeros(word.shape, dtype=wide, device=word.device).index_add_(0, input_ids, dtotal)
    if padding_idx >= 0:
        dword[padding_idx] = 0.0
    dposition = torch.zeros(position.shape, dtype=wide, device=word.device).index_add_(0, position_ids, dtotal)
    dtoken_type = word.new_zeros(0)
    if token_type is not None:
        dtoken_type = torch.zeros(token_type.shape, dtype=wide, device=word.device)
        if token_type_ids is None:
            dtoken_type[0] = dtotal.sum(0)
        else:
            dtoken_type.index_add_(0, token_type_ids, dtotal)
    dtype = word.dtype
    return (
        dword.to(dtype),
        dposition.to(dtype),
        dtoken_type.to(dtype),
        dw.to(weight.dtype),
        db.to(weight.dtype),
    )
