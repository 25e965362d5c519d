"""``varlen_attention``: attention over packed sequences, leading heads only, straight from the packed QKV."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.ops import checks
from dynabert_kernels.ops.registration import define, dense_gradient, differentiate, needs_save
from dynabert_kernels.reference.add_layer_norm import statistics_dtype


def _fwd_fake(
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
    tokens, _, _, size = qkv.shape
    out = qkv.new_empty(tokens, max_heads, size)
    wide = statistics_dtype(qkv.dtype)
    return out, qkv.new_empty((max_heads, tokens) if save else (0,), dtype=wide)


def _bwd_fake(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    head_counts: Tensor | None,
    position_bias: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    if position_bias is None:
        return torch.empty_like(qkv), torch.empty(0, dtype=statistics_dtype(qkv.dtype), device=qkv.device)
    return torch.empty_like(qkv), position_bias.new_empty(position_bias.shape)


_fwd = define(
    "varlen_attention_fwd",
    "(Tensor qkv, Tensor cu_seqlens, Tensor rows, Tensor? head_counts, Tensor? position_bias, Tensor? dropout_state,"
    " SymInt max_heads, SymInt max_seqlen, float scale, float dropout_p, int dropout_stream, bool save)"
    " -> (Tensor out, Tensor lse)",
    reference=reference.varlen_attention_fwd,
    fake=_fwd_fake,
)
_bwd = define(
    "varlen_attention_bwd",
    "(Tensor dout, Tensor qkv, Tensor out, Tensor lse, Tensor cu_seqlens, Tensor rows, Tensor? head_counts,"
    " Tensor? position_bias, Tensor? dropout_state, SymInt max_heads, SymInt max_seqlen, float scale, float dropout_p,"
    " int dropout_stream) -> (Tensor dqkv, Tensor dposition_bias)",
    reference=reference.varlen_attention_bwd,
    fake=_bwd_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    qkv, cu_seqlens, rows, head_counts, position_bias, dropout_state, *numbers, save = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens, rows, head_counts, position_bias, dropout_state)
    ctx.numbers, ctx.saved = numbers, save


def _backward(ctx: Any, dout: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 12
    if not ctx.saved:
        raise RuntimeError("varlen_attention: backward needs the forward to have run with save=True")
    qkv, out, lse, cu_seqlens, rows, head_counts, position_bias, dropout_state = ctx.saved_tensors
    dqkv, dposition_bias = _bwd(
        dense_gradient(dout),
        qkv,
        out,
        lse,
        cu_seqlens,
        rows,
        head_counts,
        position_bias,
        dropout_state,
        *ctx.numbers,
    )
    return dqkv, None, None, None, None if position_bias is None else dposition_bias, *([None] * 7)


_call = differentiate("varlen_attention_fwd", setup=_setup, backward=_backward)


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    *,
    max_seqlen: int,
    rows: Tensor | None = None,
    head_counts: Tensor | None = None,
    max_heads: int | None = None,
    scale: float | None = None,
    position_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_state: Tensor | None = None,
    dropout_stream: int = 0,
) -> Tensor:
    """Softmax attention inside each packed sequence, over each group's leading heads.

    ``out[i, h] = sum_j drop(softmax_j(q_i . k_j * scale + position_bias[h, j - i + R - 1])) v_j``, i and j in one
    sequence.

    ``qkv``: (T, at least max_heads, 3, D), float32, bfloat16, float16 or float64; rows and heads may be strided.
    ``cu_seqlens``: (B+1,) int32. ``max_seqlen``: the longest sequence. ``rows``: (G+1,) int32 borders of groups of
    whole sequences (None: one group). ``head_counts``: (G,) int32 (None: ``max_heads``). ``max_heads``: None is all of
    qkv's. ``scale``: None is ``1/sqrt(D)``. ``position_bias``: (at least max_heads, 2R-1) with ``R >= max_seqlen``, of
    qkv's dtype, differentiable. ``dropout_p`` with ``dropout_state``, an int64 tensor [seed, offset];
    ``dropout_stream`` tells the ops of one step apart (0 to 1048575).

    Returns (T, max_heads, D): zero past a row's heads and past the last border. Softmax in float32 (float64 for
    float64). Deterministic. Does not synchronise, except with the reference provider on a GPU.

    Raises ``ValueError`` on a shape, device or bound that does not fit, ``TypeError`` on a dtype.
    """
    op = "varlen_attention"
    checks.shape(op, "qkv", qkv, (None, None, 3, None), "(T, H, 3, D)")
    checks.same(op, ("qkv", qkv), {"position_bias": position_bias})
    if qkv.shape[3] == 0:
        raise ValueError(f"{op}: qkv has shape {tuple(qkv.shape)}; allowed: a head size D of at least 1")
    heads = qkv.shape[1] if max_heads is None else max_heads
    if not 0 <= heads <= qkv.shape[1]:
        raise ValueError(f"{op}: max_heads is {heads}; allowed: 0 to qkv's {qkv.shape[1]} heads")
    borders = checks.whole_batch(qkv.shape[0], qkv.device) if rows is None else rows
    check_sequences(op, qkv, cu_seqlens, borders, head_counts, position_bias, heads, max_seqlen)
    checks.dropout(op, "dropout_p", dropout_p, dropout_state, qkv.device)
    checks.stream(op, dropout_stream)
    factor = qkv.shape[3] ** -0.5 if scale is None else float(scale)
    save = needs_save(qkv, position_bias)
    out, _ = _call(
        qkv,
        cu_seqlens,
        borders,
        head_counts,
        position_bias,
        dropout_state if dropout_p > 0.0 else None,
        heads,
        max_seqlen,
        factor,
        float(dropout_p),
        dropout_stream,
        save,
    )
    return out


def check_sequences(
    op: str,
    data: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    head_counts: Tensor | None,
    position_bias: Tensor | None,
    max_heads: int,
    max_seqlen: int,
) -> None:
    """What attention needs of borders, counts and bias; reads no device memory."""
    checks.indices(op, "cu_seqlens", cu_seqlens, data.device, torch.int32)
    checks.indices(op, "rows", rows, data.device, torch.int32)
    if head_counts is not None:
        checks.indices(op, "head_counts", head_counts, data.device, torch.int32)
        if head_counts.shape[0] != rows.shape[0] - 1:
            raise ValueError(
                f"{op}: head_counts has {head_counts.shape[0]} entries; allowed: one a group, {rows.shape[0] - 1}"
            )
    if max_seqlen < 0:
        raise ValueError(f"{op}: max_seqlen is {max_seqlen}; allowed: 0 or more")
    if position_bias is not None:
        checks.shape(op, "position_bias", position_bias, (None, None), "(H, 2R-1)")
        if position_bias.shape[0] < max_heads or position_bias.shape[1] % 2 == 0:
            raise ValueError(
                f"{op}: position_bias has shape {tuple(position_bias.shape)}; allowed: at least {max_heads} heads and "
                "an odd number 2R-1 of distances"
            )
        if (position_bias.shape[1] + 1) // 2 < max_seqlen:
            raise ValueError(
                f"{op}: position_bias reaches distance {position_bias.shape[1] // 2}; max_seqlen is {max_seqlen}; "
                f"allowed: 2R-1 distances with R at least max_seqlen, here {2 * max_seqlen - 1}"
            )


__all__ = ["varlen_attention"]
