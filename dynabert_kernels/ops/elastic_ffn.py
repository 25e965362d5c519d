"""``elastic_ffn``: the whole feed-forward sub-layer over each group's leading neurons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.layout import LayerPlan
from dynabert_kernels.ops import checks
from dynabert_kernels.ops.registration import define, dense_gradient, differentiate, needs_save
from dynabert_kernels.reference.add_layer_norm import statistics_dtype


def _fwd_fake(
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
    wide = statistics_dtype(x.dtype)
    tokens = x.shape[0] if save else 0
    return (
        x.new_empty(x.shape),
        x.new_empty(tokens, max_neurons) if save else x.new_empty(0),
        x.new_empty(x.shape) if save else x.new_empty(0),
        x.new_empty(tokens, dtype=wide),
        x.new_empty(tokens, dtype=wide),
    )


def _bwd_fake(
    dy: Tensor, x: Tensor, in_weight: Tensor, out_weight: Tensor, ln_weight: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return (
        x.new_empty(x.shape),
        torch.empty_like(in_weight),
        in_weight.new_empty(in_weight.shape[0]),
        torch.empty_like(out_weight),
        out_weight.new_empty(out_weight.shape[0]),
        ln_weight.new_empty(ln_weight.shape),
        ln_weight.new_empty(ln_weight.shape),
    )


_fwd = define(
    "elastic_ffn_fwd",
    "(Tensor x, Tensor in_weight, Tensor in_bias, Tensor out_weight, Tensor out_bias, Tensor ln_weight,"
    " Tensor ln_bias, Tensor rows, Tensor neuron_counts, Tensor? dropout_state, SymInt max_neurons, int activation,"
    " float eps, float hidden_dropout, int dropout_stream, bool save)"
    " -> (Tensor y, Tensor pre, Tensor hidden, Tensor mean, Tensor rstd)",
    reference=reference.elastic_ffn_fwd,
    fake=_fwd_fake,
)
_bwd = define(
    "elastic_ffn_bwd",
    "(Tensor dy, Tensor x, Tensor in_weight, Tensor out_weight, Tensor ln_weight, Tensor pre, Tensor hidden,"
    " Tensor mean, Tensor rstd, Tensor rows, Tensor neuron_counts, Tensor? dropout_state, SymInt max_neurons,"
    " int activation, float hidden_dropout, int dropout_stream)"
    " -> (Tensor dx, Tensor din_weight, Tensor din_bias, Tensor dout_weight, Tensor dout_bias, Tensor dln_weight,"
    " Tensor dln_bias)",
    reference=reference.elastic_ffn_bwd,
    fake=_bwd_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, in_weight, _, out_weight, _, ln_weight, _, rows, counts, state = inputs[:10]
    max_neurons, activation, _, hidden_dropout, stream, save = inputs[10:]
    ctx.save_for_backward(x, in_weight, out_weight, ln_weight, *output[1:], rows, counts, state)
    ctx.numbers, ctx.saved = (max_neurons, activation, hidden_dropout, stream), save


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 16
    if not ctx.saved:
        raise RuntimeError("elastic_ffn: backward needs the forward to have run with save=True")
    return *_bwd(dense_gradient(dy), *ctx.saved_tensors, *ctx.numbers), *([None] * 9)


_call = differentiate("elastic_ffn_fwd", setup=_setup, backward=_backward)


def elastic_ffn(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    layer: LayerPlan,
    *,
    activation: str = "gelu",
    eps: float = 1e-12,
    hidden_dropout: float = 0.0,
    dropout_state: Tensor | None = None,
    dropout_stream: int = 0,
) -> Tensor:
    """The feed-forward sub-layer, residual and LayerNorm included, over each group's leading neurons.

    With ``f`` neurons in a row's group: ``y = LayerNorm(x + drop(act(x @ Win[:f].T + bin[:f]) @ Wout[:, :f].T +
    bout))``. With 0 neurons the layer is skipped: ``y = x``. Rows past the last border are zero.

    ``x``: (T, C). ``in_weight``: (F, C), ``in_bias``: (F,), ``out_weight``: (C, F), ``out_bias``, ``ln_weight``,
    ``ln_bias``: (C,): nn.Linear's layout, all of one dtype, float32, bfloat16, float16 or float64. ``layer``: the plan
    of this layer. ``activation``: ``"gelu"`` (exact), ``"gelu_tanh"``, ``"relu"`` or ``"none"``. ``eps``:
    LayerNorm's. ``hidden_dropout``, with ``dropout_state`` and ``dropout_stream``, as in :func:`varlen_attention`.

    Returns (T, C) in x's dtype. Differentiable in x and every weight; a weight's gradient has its full shape and is
    zero in the inactive part. No weight is copied. Accumulates in float32 (float64 for float64). Deterministic. Does
    not synchronise, except with the reference provider on a GPU.

    Raises ``ValueError`` on a shape, device or bound that does not fit, ``TypeError`` on a dtype.

    Source: Vaswani et al., arXiv 1706.03762; the slicing is Hou et al., arXiv 2004.04037, section 2.1.
    """
    op = "elastic_ffn"
    checks.layer_plan(op, layer)
    checks.shape(op, "x", x, (None, None), "(T, C)")
    width = x.shape[1]
    checks.shape(op, "in_weight", in_weight, (None, width), "(F, C)")
    neurons = in_weight.shape[0]
    checks.shape(op, "in_bias", in_bias, (neurons,), "(F,)")
    checks.shape(op, "out_weight", out_weight, (width, neurons), "(C, F)")
    for name, vector in (("out_bias", out_bias), ("ln_weight", ln_weight), ("ln_bias", ln_bias)):
        checks.shape(op, name, vector, (width,), "(C,)")
    checks.same(
        op,
        ("x", x),
        {
            "in_weight": in_weight,
            "in_bias": in_bias,
            "out_weight": out_weight,
            "out_bias": out_bias,
            "ln_weight": ln_weight,
            "ln_bias": ln_bias,
        },
    )
    if layer.max_neurons > neurons:
        raise ValueError(f"{op}: the plan uses {layer.max_neurons} neurons; allowed: up to in_weight's {neurons}")
    checks.indices(op, "layer.rows", layer.rows, x.device, torch.int32)
    checks.indices(op, "layer.neurons", layer.neurons, x.device, torch.int32)
    if layer.neurons.shape[0] != layer.rows.shape[0] - 1:
        raise ValueError(
            f"{op}: layer.neurons has {layer.neurons.shape[0]} entries; allowed: one a group, {layer.rows.shape[0] - 1}"
        )
    checks.dropout(op, "hidden_dropout", hidden_dropout, dropout_state, x.device)
    checks.stream(op, dropout_stream)
    save = needs_save(x, in_weight, in_bias, out_weight, out_bias, ln_weight, ln_bias)
    return _call(
        x,
        in_weight,
        in_bias,
        out_weight,
        out_bias,
        ln_weight,
        ln_bias,
        layer.rows,
        layer.neurons,
        dropout_state if hidden_dropout > 0.0 else None,
        layer.max_neurons,
        checks.activation_code(op, activation),
        float(eps),
        float(hidden_dropout),
        dropout_stream,
        save,
    )[0]


__all__ = ["elastic_ffn"]
