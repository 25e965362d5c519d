"""``elastic_attention``: the whole attention sub-layer over each group's leading heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.layout import LayerPlan
from dynabert_kernels.ops import checks
from dynabert_kernels.ops.registration import define, dense_gradient, differentiate, needs_save
from dynabert_kernels.ops.varlen_attention import check_sequences
from dynabert_kernels.reference.add_layer_norm import statistics_dtype


def _fwd_fake(
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
    tokens, size = x.shape[0], qkv_weight.shape[2]
    wide = statistics_dtype(x.dtype)
    y = x.new_empty(x.shape)
    if not save:
        return (
            y,
            x.new_empty(0),
            x.new_empty(0),
            x.new_empty(0, dtype=wide),
            x.new_empty(0),
            x.new_empty(0, dtype=wide),
            x.new_empty(0, dtype=wide),
        )
    return (
        y,
        x.new_empty(tokens, max_heads, 3, size),
        x.new_empty(tokens, max_heads, size),
        x.new_empty((max_heads, tokens), dtype=wide),
        x.new_empty(x.shape),
        x.new_empty(tokens, dtype=wide),
        x.new_empty(tokens, dtype=wide),
    )


def _bwd_fake(
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
    *_: Any,
) -> tuple[Tensor, ...]:
    return (
        x.new_empty(x.shape),
        qkv_weight.new_empty(qkv_weight.shape),
        qkv_weight.new_empty(qkv_weight.shape[:3]),
        torch.empty_like(out_weight),
        out_weight.new_empty(out_weight.shape[0]),
        ln_weight.new_empty(ln_weight.shape),
        ln_weight.new_empty(ln_weight.shape),
        x.new_empty(0, dtype=statistics_dtype(x.dtype))
        if position_bias is None
        else position_bias.new_empty(position_bias.shape),
    )


_fwd = define(
    "elastic_attention_fwd",
    "(Tensor x, Tensor qkv_weight, Tensor qkv_bias, Tensor out_weight, Tensor out_bias, Tensor ln_weight,"
    " Tensor ln_bias, Tensor cu_seqlens, Tensor rows, Tensor head_counts, Tensor? position_bias,"
    " Tensor? dropout_state, SymInt max_heads, SymInt max_seqlen, float scale, float eps, float attention_dropout,"
    " float hidden_dropout, int dropout_stream, bool save)"
    " -> (Tensor y, Tensor qkv, Tensor context, Tensor lse, Tensor hidden, Tensor mean, Tensor rstd)",
    reference=reference.elastic_attention_fwd,
    fake=_fwd_fake,
)
_bwd = define(
    "elastic_attention_bwd",
    "(Tensor dy, Tensor x, Tensor qkv_weight, Tensor out_weight, Tensor ln_weight, Tensor qkv, Tensor context,"
    " Tensor lse, Tensor hidden, Tensor mean, Tensor rstd, Tensor cu_seqlens, Tensor rows, Tensor head_counts,"
    " Tensor? position_bias, Tensor? dropout_state, SymInt max_heads, SymInt max_seqlen, float scale,"
    " float attention_dropout, float hidden_dropout, int dropout_stream)"
    " -> (Tensor dx, Tensor dqkv_weight, Tensor dqkv_bias, Tensor dout_weight, Tensor dout_bias, Tensor dln_weight,"
    " Tensor dln_bias, Tensor dposition_bias)",
    reference=reference.elastic_attention_bwd,
    fake=_bwd_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    (x, qkv_weight, _, out_weight, _, ln_weight, _, cu_seqlens, rows, counts, position_bias, state) = inputs[:12]
    max_heads, max_seqlen, scale, _, attention_dropout, hidden_dropout, stream, save = inputs[12:]
    ctx.save_for_backward(
        x, qkv_weight, out_weight, ln_weight, *output[1:], cu_seqlens, rows, counts, position_bias, state
    )
    ctx.numbers = (max_heads, max_seqlen, scale, attention_dropout, hidden_dropout, stream)
    ctx.saved, ctx.has_bias = save, position_bias is not None


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 20
    if not ctx.saved:
        raise RuntimeError("elastic_attention: backward needs the forward to have run with save=True")
    *gradients, dposition_bias = _bwd(dense_gradient(dy), *ctx.saved_tensors, *ctx.numbers)
    return *gradients, None, None, None, dposition_bias if ctx.has_bias else None, *([None] * 9)


_call = differentiate("elastic_attention_fwd", setup=_setup, backward=_backward)


def elastic_attention(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    cu_seqlens: Tensor,
    layer: LayerPlan,
    *,
    max_seqlen: int,
    eps: float = 1e-12,
    scale: float | None = None,
    position_bias: Tensor | None = None,
    attention_dropout: float = 0.0,
    hidden_dropout: float = 0.0,
    dropout_state: Tensor | None = None,
    dropout_stream: int = 0,
) -> Tensor:
    """The attention sub-layer, residual and LayerNorm included, over each group's leading heads.

    With ``k`` heads in a row's group: ``y = LayerNorm(x + drop(attention(x @ Wqkv[:k].T + bqkv[:k]) @
    Wo[:, :k*D].T + bo))``. With 0 heads the layer is skipped: ``y = x``. Rows past the last border are zero.

    ``x``: (T, C). ``qkv_weight``: (H, 3, D, C), head by head, so that k heads are one contiguous block; ``qkv_bias``:
    (H, 3, D). ``out_weight``: (C, H*D), nn.Linear's layout; ``out_bias``: (C,). ``ln_weight``, ``ln_bias``: (C,). All
    of one dtype: float32, bfloat16, float16 or float64. ``cu_seqlens``: (B+1,) int32. ``layer``: the plan of this
    layer. ``eps``: LayerNorm's. ``max_seqlen``, ``scale``, ``position_bias`` and dropout (``attention_dropout`` and
    ``hidden_dropout``, with ``dropout_state``) as in :func:`varlen_attention`; the hidden
    dropout uses stream ``dropout_stream + 1``, so it is at most 1048574.

    Returns (T, C) in x's dtype. Differentiable in x, every weight and the position bias; a weight's gradient has its
    full shape and is zero in the inactive part. No weight is copied. Accumulates in float32 (float64 for float64).
    Deterministic. Does not synchronise, except with the reference provider on a GPU.

    Raises ``ValueError`` on a shape, device or bound that does not fit, ``TypeError`` on a dtype.

    Source: Vaswani et al., arXiv 1706.03762; the slicing is Hou et al., arXiv 2004.04037, section 2.1.
    """
    op = "elastic_attention"
    checks.layer_plan(op, layer)
    checks.shape(op, "x", x, (None, None), "(T, C)")
    width = x.shape[1]
    checks.shape(op, "qkv_weight", qkv_weight, (None, 3, None, width), "(H, 3, D, C)")
    heads, _, size, _ = qkv_weight.shape
    checks.shape(op, "qkv_bias", qkv_bias, (heads, 3, size), "(H, 3, D)")
    checks.shape(op, "out_weight", out_weight, (width, heads * size), "(C, H*D)")
    for name, vector in (("out_bias", out_bias), ("ln_weight", ln_weight), ("ln_bias", ln_bias)):
        checks.shape(op, name, vector, (width,), "(C,)")
    checks.same(
        op,
        ("x", x),
        {
            "qkv_weight": qkv_weight,
            "qkv_bias": qkv_bias,
            "out_weight": out_weight,
            "out_bias": out_bias,
            "ln_weight": ln_weight,
            "ln_bias": ln_bias,
            "position_bias": position_bias,
        },
    )
    if layer.max_heads > heads:
        raise ValueError(f"{op}: the plan uses {layer.max_heads} heads; allowed: up to qkv_weight's {heads}")
    check_sequences(op, x, cu_seqlens, layer.rows, layer.heads, position_bias, layer.max_heads, max_seqlen)
    checks.dropout(op, "attention_dropout", attention_dropout, dropout_state, x.device)
    checks.stream(op, dropout_stream, 2)
    checks.dropout(op, "hidden_dropout", hidden_dropout, dropout_state, x.device)
    dropping = attention_dropout > 0.0 or hidden_dropout > 0.0
    save = needs_save(x, qkv_weight, qkv_bias, out_weight, out_bias, ln_weight, ln_bias, position_bias)
    return _call(
        x,
        qkv_weight,
        qkv_bias,
        out_weight,
        out_bias,
        ln_weight,
        ln_bias,
        cu_seqlens,
        layer.rows,
        layer.heads,
        position_bias,
        dropout_state if dropping else None,
        layer.max_heads,
        max_seqlen,
        size**-0.5 if scale is None else float(scale),
        float(eps),
        float(attention_dropout),
        float(hidden_dropout),
        dropout_stream,
        save,
    )[0]


__all__ = ["elastic_attention"]
