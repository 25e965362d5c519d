"""``varlen_attention``: the products of scores and values; no weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dynabert_kernels import reference

from ..problems import Group, Problem
from .benchmark import DROPOUT_STREAM, Benchmark, Draw, over_groups, plan_tensors
from .peers import BackwardPeer, ForwardPeer, Tensors, torch_attention


def _inputs(p: Problem, draw: Draw) -> Tensors:
    return {"qkv": draw.normal(p.T, p.k, 3, p.D)} | plan_tensors(p, draw.device)


def _gradients(p: Problem, draw: Draw) -> Tensors:
    return _inputs(p, draw) | {"dy": draw.normal(p.T, p.k, p.D)}


def _plan(p: Problem, t: Tensors) -> tuple[Any, ...]:
    tensors = t["cu_seqlens"], t["rows"], t["heads"], None, t.get("dropout_state")
    return *tensors, p.k, max(p.lengths), p.D**-0.5, p.dropout, DROPOUT_STREAM


def _arguments(p: Problem, t: Tensors, save: bool = False) -> tuple[Any, ...]:
    return t["qkv"], *_plan(p, t), save


def _saved(p: Problem, t: Tensors) -> Tensors:
    out, lse = reference.varlen_attention_fwd(*_arguments(p, t, save=True))
    return {"out": out, "lse": lse}


def _cut(p: Problem, g: Group, t: Tensors) -> Tensors:
    own = {"qkv": t["qkv"][g.rows, : g.k].contiguous()}
    return own | {"dy": t["dy"][g.rows, : g.k].contiguous()} if "dy" in t else own


def _apply(p: Problem, g: Group, t: Tensors) -> Tensor:
    return torch_attention(p, g, t["qkv"])


BENCHMARKS = (
    Benchmark(
        name="varlen_attention",
        op="varlen_attention",
        direction="forward",
        registered="varlen_attention_fwd",
        checked=("out",),
        elastic=True,
        activations=_inputs,
        arguments=_arguments,
        peer=ForwardPeer(_apply, _cut),
        peer_text="F.scaled_dot_product_attention, batched where lengths are equal, else one call a sequence",
        weight_bytes=lambda p: 0,
        # query, key, value; out
        activation_bytes=lambda p: (over_groups(p, lambda g: 3 * g.T * g.k) + p.T * p.k) * p.D * p.e,
        operations=lambda p: over_groups(p, lambda g: 4 * g.squared_lengths * g.k * p.D),
    ),
    Benchmark(
        name="varlen_attention.backward",
        op="varlen_attention",
        direction="backward",
        registered="varlen_attention_bwd",
        checked=("dqkv",),
        elastic=True,
        activations=_gradients,
        saved=_saved,
        arguments=lambda p, t: (t["dy"], t["qkv"], t["out"], t["lse"], *_plan(p, t)),
        peer=BackwardPeer(_apply, _cut, ("qkv",)),
        peer_text="autograd of F.scaled_dot_product_attention from the packed query, key and value",
        weight_bytes=lambda p: 0,
        # dout, out, query, key, value and log-sum-exp; dqkv
        activation_bytes=lambda p: (
            over_groups(p, lambda g: 5 * g.T * g.k * p.D * p.e + g.T * g.k * p.statistic_bytes)
            + 3 * p.T * p.k * p.D * p.e
        ),
        # scores again, dv, dp, dq, dk
        operations=lambda p: over_groups(p, lambda g: 10 * g.squared_lengths * g.k * p.D),
    ),
)
