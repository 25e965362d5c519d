"""What a benchmark is: an op in one direction as data, and the random numbers it draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import GRADIENT_FACTOR, OUTPUT_FACTOR

from ..problems import Problem
from .peers import Peer, Tensors

EPS = 1e-12
GELU = 1  # the code of the exact GELU in the ops' schemas
DROPOUT_STREAM = 3
Formula = Callable[[Problem], int]


@dataclass(frozen=True)
class Draw:
    """Random tensors on a device, drawn in float64 and rounded once, so that every dtype sees the same numbers."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64, device=self.device)
        return (values * scale + shift).to(self.dtype)


def _nothing(*_: Any) -> Any:
    return {}


def _no_bytes(problem: Problem) -> int:
    return 0


@dataclass(frozen=True)
class Benchmark:
    """One op in one direction.

    ``registered``: the op that runs, ``torch.ops.dynabert.<registered>``, on ``arguments(problem, tensors)``; its
    leading ``len(checked)`` results are compared. ``weights`` draws full-size weights, whatever the width;
    ``activations`` what changes with each call; ``saved`` computes what a forward keeps for its backward, in the dtype
    of the tensors it is given, by the op's definition. ``weight_bytes`` come from memory in use, since the other
    layers' weights displace them; so do ``gradient_bytes``, the weights' gradients, which are written at full size;
    ``activation_bytes`` were just written by the op before. ``peer_text`` is the peer in words.
    """

    name: str
    op: str
    direction: str
    registered: str
    checked: tuple[str, ...]
    elastic: bool
    activations: Callable[[Problem, Draw], Tensors]
    arguments: Callable[[Problem, Tensors], tuple[Any, ...]]
    peer: Peer
    peer_text: str
    weight_bytes: Formula
    activation_bytes: Formula
    operations: Formula
    weights: Callable[[Problem, Draw], Tensors] = _nothing
    saved: Callable[[Problem, Tensors], Tensors] = _nothing
    gradient_bytes: Formula = _no_bytes

    @property
    def factor(self) -> float:
        """How many times PyTorch's own error a result may have."""
        return GRADIENT_FACTOR if self.direction == "backward" else OUTPUT_FACTOR

    def function(self) -> Callable[..., Any]:
        """The registered op, which chooses its provider."""
        return getattr(torch.ops.dynabert, self.registered).default

    def definition(self) -> Callable[..., Any]:
        """The op's definition in plain PyTorch, for float64 arguments."""
        return getattr(reference, self.registered)

    def tensors(self, problem: Problem, draw: Draw, weights: Tensors | None = None) -> Tensors:
        """Weights (drawn where none are given), activations and what the forward saved."""
        drawn = self.weights(problem, draw) if weights is None else weights
        given = drawn | self.activations(problem, draw)
        return given | self.saved(problem, given)


def layer_norm_weights(p: Problem, draw: Draw) -> Tensors:
    """LayerNorm's weight and bias, near 1 and 0."""
    return {"ln_weight": draw.normal(p.C, scale=0.1, shift=1.0), "ln_bias": draw.normal(p.C, scale=0.1)}


def plan_tensors(p: Problem, device: torch.device) -> Tensors:
    """The plan's table and the sequences' borders; dropout's seed and offset where there is dropout."""
    layer = p.plan.layer(0)
    tensors = {
        "rows": layer.rows.to(device),
        "heads": layer.heads.to(device),
        "neurons": layer.neurons.to(device),
        "cu_seqlens": torch.tensor([0, *p.lengths]).cumsum(0).to(torch.int32).to(device),
    }
    if p.dropout > 0.0:
        tensors["dropout_state"] = torch.tensor((1234567890123, 77), device=device)
    return tensors


def over_groups(p: Problem, formula: Callable[[Any], int]) -> int:
    """The sum of a formula over the problem's groups."""
    return sum(formula(group) for group in p.groups)
