"""``distillation_loss``: what a stage-1 step asks of it, four widths of one batch stacked, against one teacher.

Hidden states have a row for each token and the squared error, logits a row for each sequence and the soft
cross-entropy. The problem's own mix of widths plays no part: hidden states and logits are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problems import Problem
from .benchmark import Benchmark, Draw
from .peers import Parts, Tensors

WIDTHS = 4
CLASSES = 3  # MNLI
SOFT_CROSS_ENTROPY, SQUARED_ERROR = 0, 1


def _stacked(draw: Draw, count: int, columns: int) -> Tensors:
    borders = torch.arange(WIDTHS + 1, dtype=torch.int32, device=draw.device) * count
    partners = torch.arange(count, dtype=torch.int32, device=draw.device).repeat(WIDTHS)
    tensors = {"student": draw.normal(WIDTHS * count, columns), "teacher": draw.normal(count, columns)}
    return tensors | {"rows": borders, "teacher_rows": partners}


def _hidden(p: Problem, draw: Draw) -> Tensors:
    return _stacked(draw, p.T, p.C)


def _logits(p: Problem, draw: Draw) -> Tensors:
    return _stacked(draw, len(p.lengths), CLASSES)


def _with_gradient(inputs: Callable[[Problem, Draw], Tensors]) -> Callable[[Problem, Draw], Tensors]:
    def drawn(p: Problem, draw: Draw) -> Tensors:
        kept = torch.float64 if p.dtype == torch.float64 else torch.float32  # a loss is float32
        return inputs(p, draw) | {"dloss": draw.normal(WIDTHS).to(kept)}

    return drawn


def _arguments(kind: int) -> Callable[[Problem, Tensors], tuple[Any, ...]]:
    def given(p: Problem, t: Tensors) -> tuple[Any, ...]:
        first = (t["dloss"],) if "dloss" in t else ()
        return *first, t["student"], t["teacher"], t["rows"], t["teacher_rows"], None, kind

    return given


def _mean_squares(student: Sequence[Tensor], teacher: Tensor) -> list[Tensor]:
    return [F.mse_loss(own, teacher, reduction="sum") for own in student]


def _cross_entropies(student: Sequence[Tensor], teacher: Tensor) -> list[Tensor]:
    wanted = teacher.softmax(1)
    return [F.cross_entropy(own, wanted, reduction="sum") for own in student]


class _Peer:
    """One call for each width, each on rows of its own; the teacher's softmax once. Backward: autograd of that."""

    def __init__(self, losses: Callable[[Sequence[Tensor], Tensor], list[Tensor]]) -> None:
        self.losses = losses

    def prepare(self, problem: Problem, sets: Sequence[Tensors]) -> Callable[[int], Parts]:
        # The sets differ in weights alone, of which there are none.
        tensors = sets[0]
        student, teacher, losses = tensors["student"].chunk(WIDTHS), tensors["teacher"], self.losses
        if "dloss" not in tensors:
            kept = torch.float64 if problem.dtype == torch.float64 else torch.float32
            return lambda index: [[torch.stack(losses(student, teacher)).to(kept)]]
        with torch.enable_grad():
            leaves = [own.detach().requires_grad_() for own in student]
            outputs = losses(leaves, teacher)
        gradients = list(tensors["dloss"].to(problem.dtype).unbind())
        return lambda index: [list(torch.autograd.grad(outputs, leaves, gradients, retain_graph=True))]


def _pair(
    name: str,
    kind: int,
    inputs: Callable[[Problem, Draw], Tensors],
    elements: Callable[[Problem], int],
    peer: _Peer,
    text: str,
) -> tuple[Benchmark, Benchmark]:
    """Forward and backward. ``elements``: of the teacher."""
    forward = Benchmark(
        name=f"distillation_loss.{name}",
        op="distillation_loss",
        direction="forward",
        registered="distillation_loss_fwd",
        checked=("loss",),
        elastic=False,
        activations=inputs,
        arguments=_arguments(kind),
        peer=peer,
        peer_text=f"{text} of each width",
        weight_bytes=lambda p: 0,
        # student and teacher; a loss for each width
        activation_bytes=lambda p: (WIDTHS + 1) * elements(p) * p.e + WIDTHS * p.statistic_bytes,
        operations=lambda p: 0,
    )
    backward = Benchmark(
        name=f"distillation_loss.{name}.backward",
        op="distillation_loss",
        direction="backward",
        registered="distillation_loss_bwd",
        checked=("dstudent",),
        elastic=False,
        activations=_with_gradient(inputs),
        arguments=_arguments(kind),
        peer=peer,
        peer_text=f"autograd of {text} of each width",
        weight_bytes=lambda p: 0,
        # student, teacher, dstudent; a gradient for each width
        activation_bytes=lambda p: (2 * WIDTHS + 1) * elements(p) * p.e + WIDTHS * p.statistic_bytes,
        operations=lambda p: 0,
    )
    return forward, backward


BENCHMARKS = (
    *_pair("hidden", SQUARED_ERROR, _hidden, lambda p: p.T * p.C, _Peer(_mean_squares), "F.mse_loss"),
    *_pair(
        *("logits", SOFT_CROSS_ENTROPY, _logits, lambda p: len(p.lengths) * CLASSES),
        *(_Peer(_cross_entropies), "F.cross_entropy with the teacher's softmax"),
    ),
)
