"""``add_layer_norm``: memory traffic only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dynabert_kernels import reference

from ..problems import Group, Problem
from .benchmark import EPS, Benchmark, Draw, layer_norm_weights
from .peers import ForwardPeer, Parts, Tensors


def _inputs(p: Problem, draw: Draw) -> Tensors:
    return {"x": draw.normal(p.T, p.C), "residual": draw.normal(p.T, p.C, shift=0.5)}


def _gradients(p: Problem, draw: Draw) -> Tensors:
    return _inputs(p, draw) | {"dy": draw.normal(p.T, p.C)}


def _saved(p: Problem, t: Tensors) -> Tensors:
    _, mean, rstd = reference.add_layer_norm_fwd(t["x"], t["residual"], t["ln_weight"], t["ln_bias"], EPS)
    return {"mean": mean, "rstd": rstd}


def _apply(p: Problem, g: Group, t: Tensors) -> Tensor:
    return F.layer_norm(t["x"] + t["residual"], (p.C,), t["ln_weight"], t["ln_bias"], EPS)


class _AtenBackward:
    """Autograd's node called by itself: a small LayerNorm is over sooner than autograd's engine has started."""

    def prepare(self, problem: Problem, sets: Sequence[Tensors]) -> Callable[[int], Parts]:
        # The peer reads what its own forward pass keeps: the sum, and statistics in the dtype of its choice.
        calls = []
        for t in sets:
            total = t["x"] + t["residual"]
            _, mean, rstd = torch.native_layer_norm(total, (problem.C,), None, None, EPS)
            calls.append((t["dy"], total, [problem.C], mean, rstd, t["ln_weight"], t["ln_bias"], [True, True, True]))
        backward = torch.ops.aten.native_layer_norm_backward
        return lambda index: [[result] for result in backward(*calls[index])]


BENCHMARKS = (
    Benchmark(
        name="add_layer_norm",
        op="add_layer_norm",
        direction="forward",
        registered="add_layer_norm_fwd",
        checked=("y",),
        elastic=False,
        weights=layer_norm_weights,
        activations=_inputs,
        arguments=lambda p, t: (t["x"], t["residual"], t["ln_weight"], t["ln_bias"], EPS),
        peer=ForwardPeer(_apply, lambda p, g, t: {}),
        peer_text="F.layer_norm(x + residual)",
        weight_bytes=lambda p: 2 * p.C * p.e,
        # x, residual, y; mean and rstd of each row
        activation_bytes=lambda p: 3 * p.T * p.C * p.e + 2 * p.T * p.statistic_bytes,
        operations=lambda p: 0,
    ),
    Benchmark(
        name="add_layer_norm.backward",
        op="add_layer_norm",
        direction="backward",
        registered="add_layer_norm_bwd",
        checked=("dx", "dw", "db"),
        elastic=False,
        weights=layer_norm_weights,
        activations=_gradients,
        saved=_saved,
        arguments=lambda p, t: tuple(t[name] for name in ("dy", "x", "residual", "ln_weight", "mean", "rstd")),
        peer=_AtenBackward(),
        peer_text="aten.native_layer_norm_backward on the kept sum",
        weight_bytes=lambda p: p.C * p.e,
        gradient_bytes=lambda p: 2 * p.C * p.e,
        # dy, x, residual, dx; mean and rstd of each row
        activation_bytes=lambda p: 4 * p.T * p.C * p.e + 2 * p.T * p.statistic_bytes,
        operations=lambda p: 0,
    ),
)
