"""``elastic_linear`` as the FFN uses it: ragged rows of the weight with bias and GELU, ragged columns with residual."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dynabert_kernels import reference

from ..problems import Group, Problem
from .benchmark import GELU, Benchmark, Draw, over_groups, plan_tensors
from .peers import BackwardPeer, ForwardPeer, Tensors


def _in_weights(p: Problem, draw: Draw) -> Tensors:
    return {"weight": draw.normal(p.F, p.C, scale=p.C**-0.5), "bias": draw.normal(p.F, scale=0.1)}


def _in_inputs(p: Problem, draw: Draw) -> Tensors:
    return {"x": draw.normal(p.T, p.C)} | plan_tensors(p, draw.device)


def _in_gradients(p: Problem, draw: Draw) -> Tensors:
    return _in_inputs(p, draw) | {"dy": draw.normal(p.T, p.f)}


def _in_arguments(p: Problem, t: Tensors, save: bool = False) -> tuple[Any, ...]:
    return t["x"], t["weight"], t["bias"], None, t["rows"], t["neurons"], None, 1, 1, p.f, p.C, GELU, save


def _in_saved(p: Problem, t: Tensors) -> Tensors:
    return {"pre": reference.elastic_linear_fwd(*_in_arguments(p, t, save=True))[1]}


def _in_backward_arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    tensors = t["dy"], t["x"], t["weight"], t["pre"], t["rows"], t["neurons"], None
    return *tensors, 1, 1, p.f, p.C, GELU, True


def _in_apply(p: Problem, g: Group, t: Tensors) -> Tensor:
    return F.gelu(F.linear(t["x"], t["weight"][: g.f], t["bias"][: g.f]))


def _in_cut(p: Problem, g: Group, t: Tensors) -> Tensors:
    own = {"x": t["x"][g.rows]}
    return own | {"dy": t["dy"][g.rows, : g.f].contiguous()} if "dy" in t else own


def _out_weights(p: Problem, draw: Draw) -> Tensors:
    return {"weight": draw.normal(p.C, p.F, scale=p.F**-0.5), "bias": draw.normal(p.C, scale=0.1)}


def _out_inputs(p: Problem, draw: Draw) -> Tensors:
    return {"x": draw.normal(p.T, p.f), "residual": draw.normal(p.T, p.C)} | plan_tensors(p, draw.device)


def _out_gradients(p: Problem, draw: Draw) -> Tensors:
    return _out_inputs(p, draw) | {"dy": draw.normal(p.T, p.C)}


def _out_arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    return t["x"], t["weight"], t["bias"], t["residual"], t["rows"], None, t["neurons"], 1, 1, p.C, p.f, 0, False


def _out_backward_arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    # Without an activation nothing is saved but the inputs.
    tensors = t["dy"], t["x"], t["weight"], t["dy"].new_empty(0), t["rows"], None, t["neurons"]
    return *tensors, 1, 1, p.C, p.f, 0, True


def _out_apply(p: Problem, g: Group, t: Tensors) -> Tensor:
    return F.linear(t["x"], t["weight"][:, : g.f], t["bias"]) + t["residual"]


def _out_cut(p: Problem, g: Group, t: Tensors) -> Tensors:
    own = {"x": t["x"][g.rows, : g.f].contiguous(), "residual": t["residual"][g.rows]}
    return own | {"dy": t["dy"][g.rows]} if "dy" in t else own


BENCHMARKS = (
    Benchmark(
        name="elastic_linear.ffn_in",
        op="elastic_linear",
        direction="forward",
        registered="elastic_linear_fwd",
        checked=("y",),
        elastic=True,
        weights=_in_weights,
        activations=_in_inputs,
        arguments=_in_arguments,
        peer=ForwardPeer(_in_apply, _in_cut),
        peer_text="F.gelu(F.linear(x, W[:f], b[:f]))",
        weight_bytes=lambda p: (p.f * p.C + p.f) * p.e,
        activation_bytes=lambda p: (p.T * p.C + p.T * p.f) * p.e,
        operations=lambda p: over_groups(p, lambda g: 2 * g.T * p.C * g.f),
    ),
    Benchmark(
        name="elastic_linear.ffn_out",
        op="elastic_linear",
        direction="forward",
        registered="elastic_linear_fwd",
        checked=("y",),
        elastic=True,
        weights=_out_weights,
        activations=_out_inputs,
        arguments=_out_arguments,
        peer=ForwardPeer(_out_apply, _out_cut),
        peer_text="F.linear(x, W[:, :f], b) + residual",
        weight_bytes=lambda p: (p.C * p.f + p.C) * p.e,
        # x, residual, y
        activation_bytes=lambda p: over_groups(p, lambda g: g.T * g.f + 2 * g.T * p.C) * p.e,
        operations=lambda p: over_groups(p, lambda g: 2 * g.T * p.C * g.f),
    ),
    Benchmark(
        name="elastic_linear.ffn_in.backward",
        op="elastic_linear",
        direction="backward",
        registered="elastic_linear_bwd",
        checked=("dx", "dw", "db"),
        elastic=True,
        weights=_in_weights,
        activations=_in_gradients,
        saved=_in_saved,
        arguments=_in_backward_arguments,
        peer=BackwardPeer(_in_apply, _in_cut, ("x", "weight", "bias")),
        peer_text="autograd of F.gelu(F.linear(x, W[:f], b[:f])), full-size zero-padded weight gradients",
        weight_bytes=lambda p: p.f * p.C * p.e,
        gradient_bytes=lambda p: (p.F * p.C + p.F) * p.e,
        # dy, pre, x, dx
        activation_bytes=lambda p: over_groups(p, lambda g: 2 * g.T * g.f + 2 * g.T * p.C) * p.e,
        operations=lambda p: over_groups(p, lambda g: 4 * g.T * p.C * g.f),
    ),
    Benchmark(
        name="elastic_linear.ffn_out.backward",
        op="elastic_linear",
        direction="backward",
        registered="elastic_linear_bwd",
        checked=("dx", "dw", "db"),
        elastic=True,
        weights=_out_weights,
        activations=_out_gradients,
        arguments=_out_backward_arguments,
        peer=BackwardPeer(_out_apply, _out_cut, ("x", "weight", "bias")),
        peer_text="autograd of F.linear(x, W[:, :f], b) + residual, full-size zero-padded weight gradients",
        weight_bytes=lambda p: p.C * p.f * p.e,
        gradient_bytes=lambda p: (p.C * p.F + p.C) * p.e,
        # dy, x, dx
        activation_bytes=lambda p: (over_groups(p, lambda g: g.T * p.C + g.T * g.f) + p.T * p.f) * p.e,
        operations=lambda p: over_groups(p, lambda g: 4 * g.T * p.C * g.f),
    ),
)
