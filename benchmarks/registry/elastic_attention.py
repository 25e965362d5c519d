"""``elastic_attention``: the whole attention sub-layer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dynabert_kernels import reference

from ..problems import Group, Problem
from .benchmark import (
    DROPOUT_STREAM,
    EPS,
    Benchmark,
    Draw,
    layer_norm_weights,
    over_groups,
    plan_tensors,
)
from .peers import BackwardPeer, ForwardPeer, Tensors, dropped, torch_attention

_WEIGHTS = ("qkv_weight", "qkv_bias", "out_weight", "out_bias", "ln_weight", "ln_bias")
_SAVED = ("qkv", "context", "lse", "hidden", "mean", "rstd")


def _weights(p: Problem, draw: Draw) -> Tensors:
    return {
        "qkv_weight": draw.normal(p.H, 3, p.D, p.C, scale=p.C**-0.5),
        "qkv_bias": draw.normal(p.H, 3, p.D, scale=0.1),
        "out_weight": draw.normal(p.C, p.H * p.D, scale=(p.H * p.D) ** -0.5),
        "out_bias": draw.normal(p.C, scale=0.1),
    } | layer_norm_weights(p, draw)


def _inputs(p: Problem, draw: Draw) -> Tensors:
    return {"x": draw.normal(p.T, p.C)} | plan_tensors(p, draw.device)


def _gradients(p: Problem, draw: Draw) -> Tensors:
    return _inputs(p, draw) | {"dy": draw.normal(p.T, p.C)}


def _arguments(p: Problem, t: Tensors, save: bool = False) -> tuple[Any, ...]:
    weights = (t[name] for name in _WEIGHTS)
    plan = t["cu_seqlens"], t["rows"], t["heads"], None, t.get("dropout_state")
    numbers = p.k, max(p.lengths), p.D**-0.5, EPS, p.dropout, p.dropout, DROPOUT_STREAM, save
    return t["x"], *weights, *plan, *numbers


def _saved(p: Problem, t: Tensors) -> Tensors:
    return dict(zip(_SAVED, reference.elastic_attention_fwd(*_arguments(p, t, save=True))[1:], strict=True))


def _backward_arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    tensors = (t[name] for name in ("dy", "x", "qkv_weight", "out_weight", "ln_weight", *_SAVED))
    plan = t["cu_seqlens"], t["rows"], t["heads"], None, t.get("dropout_state")
    return *tensors, *plan, p.k, max(p.lengths), p.D**-0.5, p.dropout, p.dropout, DROPOUT_STREAM


def _cut(p: Problem, g: Group, t: Tensors) -> Tensors:
    return {name: t[name][g.rows] for name in ("x", "dy") if name in t}


def _apply(p: Problem, g: Group, t: Tensors) -> Tensor:
    x = t["x"]
    if g.k == 0:
        return x
    qkv = F.linear(x, t["qkv_weight"][: g.k].flatten(0, 2), t["qkv_bias"][: g.k].flatten()).view(g.T, g.k, 3, p.D)
    context = torch_attention(p, g, qkv).flatten(1)
    projected = F.linear(context, t["out_weight"][:, : g.k * p.D], t["out_bias"])
    return F.layer_norm(x + dropped(p, projected), (p.C,), t["ln_weight"], t["ln_bias"], EPS)


BENCHMARKS = (
    Benchmark(
        name="elastic_attention",
        op="elastic_attention",
        direction="forward",
        registered="elastic_attention_fwd",
        checked=("y",),
        elastic=True,
        weights=_weights,
        activations=_inputs,
        arguments=_arguments,
        peer=ForwardPeer(_apply, _cut),
        peer_text="F.linear, F.scaled_dot_product_attention, F.linear, F.layer_norm(x + ...), on views of k heads",
        weight_bytes=lambda p: (4 * p.k * p.D * p.C + 3 * p.k * p.D + 3 * p.C) * p.e,
        activation_bytes=lambda p: 2 * p.T * p.C * p.e,
        operations=lambda p: over_groups(p, lambda g: 8 * g.T * p.C * g.k * p.D + 4 * g.squared_lengths * g.k * p.D),
    ),
    Benchmark(
        name="elastic_attention.backward",
        op="elastic_attention",
        direction="backward",
        registered="elastic_attention_bwd",
        checked=("dx", *(f"d{name}" for name in _WEIGHTS)),
        elastic=True,
        weights=_weights,
        activations=_gradients,
        saved=_saved,
        arguments=_backward_arguments,
        peer=BackwardPeer(_apply, _cut, ("x", *_WEIGHTS)),
        peer_text="autograd of the forward's peer, full-size zero-padded weight gradients",
        weight_bytes=lambda p: (4 * p.k * p.D * p.C + p.C) * p.e,
        gradient_bytes=lambda p: (4 * p.H * p.D * p.C + 3 * p.H * p.D + 3 * p.C) * p.e,
        # dy, dx; unless the layer is skipped x, the kept sum, its statistics, query, key, value, context, log-sum-exp
        activation_bytes=lambda p: (
            2 * p.T * p.C * p.e
            + over_groups(
                p,
                lambda g: 0 if g.k == 0 else g.T * ((2 * p.C + 4 * g.k * p.D) * p.e + (2 + g.k) * p.statistic_bytes),
            )
        ),
        operations=lambda p: over_groups(p, lambda g: 16 * g.T * p.C * g.k * p.D + 10 * g.squared_lengths * g.k * p.D),
    ),
)
