"""``embed_layer_norm`` with BERT's tables: rows gathered from memory; backward, gradients of the tables' full size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynabert_kernels import reference

from ..problems import Group, Problem
from .benchmark import DROPOUT_STREAM, EPS, Benchmark, Draw, layer_norm_weights, plan_tensors
from .peers import BackwardPeer, ForwardPeer, Tensors, dropped

WORDS, POSITIONS, TYPES = 30522, 512, 2
_TABLES = ("word", "position", "token_type")


def _inputs(p: Problem, draw: Draw) -> Tensors:
    places = torch.cat([torch.arange(length) for length in p.lengths]) % POSITIONS
    ids = torch.randint(0, WORDS, (p.T,), generator=draw.generator, device=draw.device)
    # The tables are no rotating weights: of them only the rows of this batch are read.
    return {
        "input_ids": ids,
        "position_ids": places.to(draw.device),
        "token_type_ids": ids % TYPES,
        "word": draw.normal(WORDS, p.C),
        "position": draw.normal(POSITIONS, p.C),
        "token_type": draw.normal(TYPES, p.C),
    } | plan_tensors(p, draw.device)


def _gradients(p: Problem, draw: Draw) -> Tensors:
    return _inputs(p, draw) | {"dy": draw.normal(p.T, p.C)}


def _ids_and_tables(t: Tensors) -> tuple[Tensor, ...]:
    return tuple(t[name] for name in ("input_ids", "position_ids", "token_type_ids", *_TABLES))


def _arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    tensors = *_ids_and_tables(t), t["ln_weight"], t["ln_bias"], t["rows"], t.get("dropout_state")
    return *tensors, EPS, p.dropout, DROPOUT_STREAM, -1


def _saved(p: Problem, t: Tensors) -> Tensors:
    _, mean, rstd = reference.embed_layer_norm_fwd(*_arguments(p, t))
    return {"mean": mean, "rstd": rstd}


def _backward_arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    tensors = t["dy"], *_ids_and_tables(t), t["ln_weight"], t["mean"], t["rstd"], t["rows"], t.get("dropout_state")
    return *tensors, p.dropout, DROPOUT_STREAM, -1


def _apply(p: Problem, g: Group, t: Tensors) -> Tensor:
    total = F.embedding(t["input_ids"], t["word"]) + F.embedding(t["position_ids"], t["position"])
    total = total + F.embedding(t["token_type_ids"], t["token_type"])
    return dropped(p, F.layer_norm(total, (p.C,), t["ln_weight"], t["ln_bias"], EPS))


def _read_bytes(p: Problem) -> int:
    """The gathered rows of the tables, each once, the three ids of a token, and its mean and rstd."""
    rows = p.T + min(max(p.lengths), POSITIONS) + TYPES
    return rows * p.C * p.e + 3 * p.T * 8 + 2 * p.T * p.statistic_bytes


BENCHMARKS = (
    Benchmark(
        name="embed_layer_norm",
        op="embed_layer_norm",
        direction="forward",
        registered="embed_layer_norm_fwd",
        checked=("y",),
        elastic=False,
        weights=layer_norm_weights,
        activations=_inputs,
        arguments=_arguments,
        peer=ForwardPeer(_apply, lambda p, g, t: {}),
        peer_text="F.layer_norm of the sum of three F.embedding",
        weight_bytes=lambda p: 2 * p.C * p.e,
        activation_bytes=lambda p: _read_bytes(p) + p.T * p.C * p.e,
        operations=lambda p: 0,
    ),
    Benchmark(
        name="embed_layer_norm.backward",
        op="embed_layer_norm",
        direction="backward",
        registered="embed_layer_norm_bwd",
        checked=("dword", "dposition", "dtoken_type", "dw", "db"),
        elastic=False,
        weights=layer_norm_weights,
        activations=_gradients,
        saved=_saved,
        arguments=_backward_arguments,
        peer=BackwardPeer(_apply, lambda p, g, t: {"dy": t["dy"]}, (*_TABLES, "ln_weight", "ln_bias")),
        peer_text="autograd of the forward's peer, dense gradients of the tables",
        weight_bytes=lambda p: p.C * p.e,
        gradient_bytes=lambda p: (WORDS + POSITIONS + TYPES + 2) * p.C * p.e,
        activation_bytes=lambda p: _read_bytes(p) + p.T * p.C * p.e,
        operations=lambda p: 0,
    ),
)
