"""``elastic_ffn``: the whole FFN sub-layer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dynabert_kernels import reference

from ..problems import Group, Problem
from .benchmark import (
    DROPOUT_STREAM,
    EPS,
    GELU,
    Benchmark,
    Draw,
    layer_norm_weights,
    over_groups,
    plan_tensors,
)
from .peers import BackwardPeer, ForwardPeer, Tensors, dropped

_WEIGHTS = ("in_weight", "in_bias", "out_weight", "out_bias", "ln_weight", "ln_bias")
_SAVED = ("pre", "hidden", "mean", "rstd")


def _weights(p: Problem, draw: Draw) -> Tensors:
    return {
        "in_weight": draw.normal(p.F, p.C, scale=p.C**-0.5),
        "in_bias": draw.normal(p.F, scale=0.1),
        "out_weight": draw.normal(p.C, p.F, scale=p.F**-0.5),
        "out_bias": draw.normal(p.C, scale=0.1),
    } | layer_norm_weights(p, draw)


def _inputs(p: Problem, draw: Draw) -> Tensors:
    return {"x": draw.normal(p.T, p.C)} | plan_tensors(p, draw.device)


def _gradients(p: Problem, draw: Draw) -> Tensors:
    return _inputs(p, draw) | {"dy": draw.normal(p.T, p.C)}


def _arguments(p: Problem, t: Tensors, save: bool = False) -> tuple[Any, ...]:
    tensors = t["x"], *(t[name] for name in _WEIGHTS), t["rows"], t["neurons"], t.get("dropout_state")
    return *tensors, p.f, GELU, EPS, p.dropout, DROPOUT_STREAM, save


def _saved(p: Problem, t: Tensors) -> Tensors:
    return dict(zip(_SAVED, reference.elastic_ffn_fwd(*_arguments(p, t, save=True))[1:], strict=True))


def _backward_arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    tensors = (t[name] for name in ("dy", "x", "in_weight", "out_weight", "ln_weight", *_SAVED, "rows", "neurons"))
    return *tensors, t.get("dropout_state"), p.f, GELU, p.dropout, DROPOUT_STREAM


def _cut(p: Problem, g: Group, t: Tensors) -> Tensors:
    return {name: t[name][g.rows] for name in ("x", "dy") if name in t}


def _apply(p: Problem, g: Group, t: Tensors) -> Tensor:
    x = t["x"]
    if g.f == 0:
        return x
    inner = F.gelu(F.linear(x, t["in_weight"][: g.f], t["in_bias"][: g.f]))
    projected = F.linear(inner, t["out_weight"][:, : g.f], t["out_bias"])
    return F.layer_norm(x + dropped(p, projected), (p.C,), t["ln_weight"], t["ln_bias"], EPS)


BENCHMARKS = (
    Benchmark(
        name="elastic_ffn",
        op="elastic_ffn",
        direction="forward",
        registered="elastic_ffn_fwd",
        checked=("y",),
        elastic=True,
        weights=_weights,
        activations=_inputs,
        arguments=_arguments,
        peer=ForwardPeer(_apply, _cut),
        peer_text="F.linear, F.gelu, F.linear, F.layer_norm(x + ...), on views of f neurons",
        weight_bytes=lambda p: (2 * p.f * p.C + p.f + 3 * p.C) * p.e,
        activation_bytes=lambda p: 2 * p.T * p.C * p.e,
        operations=lambda p: over_groups(p, lambda g: 4 * g.T * p.C * g.f),
    ),
    Benchmark(
        name="elastic_ffn.backward",
        op="elastic_ffn",
        direction="backward",
        registered="elastic_ffn_bwd",
        checked=("dx", *(f"d{name}" for name in _WEIGHTS)),
        elastic=True,
        weights=_weights,
        activations=_gradients,
        saved=_saved,
        arguments=_backward_arguments,
        peer=BackwardPeer(_apply, _cut, ("x", *_WEIGHTS)),
        peer_text="autograd of the forward's peer, full-size zero-padded weight gradients",
        weight_bytes=lambda p: (2 * p.f * p.C + p.C) * p.e,
        gradient_bytes=lambda p: (2 * p.F * p.C + p.F + 3 * p.C) * p.e,
        # dy, dx; where the layer is not skipped x, the kept sum, its statistics and the values before the GELU
        activation_bytes=lambda p: (
            2 * p.T * p.C * p.e
            + over_groups(p, lambda g: 0 if g.f == 0 else g.T * ((2 * p.C + g.f) * p.e + 2 * p.statistic_bytes))
        ),
        operations=lambda p: over_groups(p, lambda g: 8 * g.T * p.C * g.f),
    ),
)
