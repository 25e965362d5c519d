"""``embed_layer_norm``: word, position and type embeddings, their LayerNorm and dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.ops import checks
from dynabert_kernels.ops.registration import define, dense_gradient, differentiate
from dynabert_kernels.reference.add_layer_norm import statistics_dtype


def _fwd_fake(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, wide = input_ids.shape[0], statistics_dtype(word.dtype)
    return (
        word.new_empty(tokens, word.shape[1]),
        word.new_empty(tokens, dtype=wide),
        word.new_empty(tokens, dtype=wide),
    )


def _bwd_fake(
    dy: Tensor,
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    weight: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        word.new_empty(word.shape),
        position.new_empty(position.shape),
        word.new_empty(0) if token_type is None else token_type.new_empty(token_type.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape),
    )


_fwd = define(
    "embed_layer_norm_fwd",
    "(Tensor input_ids, Tensor position_ids, Tensor? token_type_ids, Tensor word, Tensor position, Tensor? token_type,"
    " Tensor weight, Tensor bias, Tensor? rows, Tensor? dropout_state, float eps, float dropout_p, int dropout_stream,"
    " int padding_idx) -> (Tensor y, Tensor mean, Tensor rstd)",
    reference=reference.embed_layer_norm_fwd,
    fake=_fwd_fake,
)
_bwd = define(
    "embed_layer_norm_bwd",
    "(Tensor dy, Tensor input_ids, Tensor position_ids, Tensor? token_type_ids, Tensor word, Tensor position,"
    " Tensor? token_type, Tensor weight, Tensor mean, Tensor rstd, Tensor? rows, Tensor? dropout_state,"
    " float dropout_p, int dropout_stream, int padding_idx)"
    " -> (Tensor dword, Tensor dposition, Tensor dtoken_type, Tensor dw, Tensor db)",
    reference=reference.embed_layer_norm_bwd,
    fake=_bwd_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ids, places, types, word, position, token_type, weight, _, rows, state, _, *numbers = inputs
    _, mean, rstd = output
    ctx.save_for_backward(ids, places, types, word, position, token_type, weight, mean, rstd, rows, state)
    ctx.numbers, ctx.has_types = numbers, token_type is not None


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 14
    dword, dposition, dtoken_type, dw, db = _bwd(dense_gradient(dy), *ctx.saved_tensors, *ctx.numbers)
    return None, None, None, dword, dposition, dtoken_type if ctx.has_types else None, dw, db, *([None] * 6)


_call = differentiate("embed_layer_norm_fwd", setup=_setup, backward=_backward)


def embed_layer_norm(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-12,
    padding_idx: int = -1,
    rows: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_state: Tensor | None = None,
    dropout_stream: int = 0,
) -> Tensor:
    """Sum of the embeddings of each packed token, LayerNorm, dropout.

    ``y = drop(LayerNorm(word[input_ids] + position[position_ids] + token_type[token_type_ids]))``.

    ``input_ids``, ``position_ids``: (T,) int64. ``token_type_ids``: (T,) int64, or None for type 0 throughout.
    ``word``: (V, C), ``position``: (P, C), ``token_type``: (Y, C) or None (no such table), ``weight``, ``bias``: (C,);
    all of one dtype. ``padding_idx``: a row of ``word`` that gets no gradient; -1 for none. ``rows``: (G+1,) int32
    group borders, used to place dropout only. ``eps``: LayerNorm's. ``dropout_p``, with ``dropout_state`` and
    ``dropout_stream``, as in :func:`varlen_attention`.

    Returns (T, C). Sums and statistics in float32 (float64 for float64), rounded once at the store. Deterministic,
    except with the reference provider on a GPU: a table's gradient sums the tokens of each id in their order. Does not
    synchronise; so on a GPU an id outside its table raises nothing, to prevent it is the caller's: ``triton`` and
    ``cuda`` then read no foreign memory and make the token's row NaN, ``reference`` ends in PyTorch's device-side
    assertion.

    Raises ``ValueError`` on a shape or device that does not match, ``TypeError`` on a dtype that does not,
    ``IndexError`` on an id outside its table, on a CPU.
    """
    op = "embed_layer_norm"
    checks.shape(op, "word", word, (None, None), "(V, C)")
    width = word.shape[1]
    checks.shape(op, "position", position, (None, width), "(P, C)")
    if token_type is not None:
        checks.shape(op, "token_type", token_type, (None, width), "(Y, C)")
    checks.shape(op, "weight", weight, (width,), "(C,)")
    checks.shape(op, "bias", bias, (width,), "(C,)")
    checks.same(op, ("word", word), {"position": position, "token_type": token_type, "weight": weight, "bias": bias})
    for name, ids in (("input_ids", input_ids), ("position_ids", position_ids), ("token_type_ids", token_type_ids)):
        if name == "token_type_ids" and ids is None:
            continue
        checks.indices(op, name, ids, word.device, torch.int64)
        assert ids is not None  # the check above has refused None
        if ids.shape != input_ids.shape:
            raise ValueError(f"{op}: {name} has {ids.shape[0]} entries; allowed: one a token, {input_ids.shape[0]}")
    if token_type_ids is not None and token_type is None:
        raise ValueError(f"{op}: token_type_ids given but token_type is None; leave them out, or give the table")
    if not -1 <= padding_idx < word.shape[0]:
        raise ValueError(f"{op}: padding_idx is {padding_idx}; allowed: -1 (none) to {word.shape[0] - 1}")
    if rows is not None:
        checks.indices(op, "rows", rows, word.device, torch.int32)
    checks.dropout(op, "dropout_p", dropout_p, dropout_state, word.device)
    checks.stream(op, dropout_stream)
    return _call(
        input_ids,
        position_ids,
        token_type_ids,
        word,
        position,
        token_type,
        weight,
        bias,
        rows,
        dropout_state if dropout_p > 0.0 else None,
        float(eps),
        float(dropout_p),
        dropout_stream,
        padding_idx,
    )[0]


__all__ = ["embed_layer_norm"]
