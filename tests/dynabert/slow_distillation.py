"""An independent float64 computation of SPEC's distillation losses over `Slow` networks, text by text.

Sub-networks are given as lists of head and neuron numbers for each layer, both empty where the layer is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.dynabert.slow_model import NAMES, Slow

Text = tuple[list[int], list[int], list[int] | None]


def kept(layers: int, depth: float) -> list[int]:
    """The paper's stated purpose: the last layer always stays."""
    count = max(1, round(depth * layers))
    return [((i + 1) * layers) // count - 1 for i in range(count)]


def kept_reference(layers: int, depth: float) -> list[int]:
    """The released code's rule."""
    return [math.floor(i / depth) for i in range(max(1, round(depth * layers)))]


def parts(slow: Slow, width: float, layers: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Leading heads and neurons of the kept layers."""
    heads, neurons = slow.config.num_attention_heads, slow.config.intermediate_size
    k = round(heads * width)
    f = k * neurons // heads
    total = slow.config.num_hidden_layers
    return (
        [list(range(k)) if i in layers else [] for i in range(total)],
        [list(range(f)) if i in layers else [] for i in range(total)],
    )


def slow_loss(
    student: Slow,
    teacher: Slow,
    texts: Sequence[Text],
    *,
    width: float,
    depth: float,
    logit_weight: float,
    hidden_weight: float,
    teacher_width: str = "full",
    regression: bool = False,
    regression_logits: bool = True,
    layers: Sequence[int] | None = None,
    cut: tuple[list[list[int]], list[list[int]]] | None = None,
    relation_weight: float = 0.0,
    relation_heads: int = 0,
) -> Tensor:
    """One sub-network's loss on a batch: `logit_weight * SCE + hidden_weight * HID + relation_weight * REL`.

    ``layers``: those that are kept, in place of ``depth``'s. ``cut``: their heads and neurons, in place of ``width``'s.
    """
    total = student.config.num_hidden_layers
    layers = kept(total, depth) if layers is None else list(layers)
    heads, neurons = parts(student, width, layers) if cut is None else cut
    teacher_heads, teacher_neurons = parts(teacher, 1.0 if teacher_width == "full" else width, range(total))
    soft = torch.zeros((), dtype=torch.float64)
    squares, tokens = torch.zeros((), dtype=torch.float64), 0
    related = torch.zeros((), dtype=torch.float64)
    for ids, positions, types in texts:
        states, logits = student(ids, positions, types, heads, neurons)
        with torch.no_grad():
            told, target = teacher(ids, positions, types, teacher_heads, teacher_neurons)
        if regression:
            if regression_logits:
                soft = soft + ((logits - target) ** 2).mean()
        else:
            exp = torch.exp(target - target.max())
            log = logits - logits.max()
            log = log - torch.log(torch.exp(log).sum())
            soft = soft - (exp / exp.sum() * log).sum()
        # K: what enters each kept layer (the state after as many layers as stand before it), then the last.
        for state, place in zip(states, [*layers, total], strict=True):
            squares = squares + ((state - told[place]) ** 2).sum()
        tokens += len(ids)
        if relation_weight:
            # What enters the last kept layer is the last state but one.
            own = slow_vectors(student, states[-2], layers[-1], heads[layers[-1]])
            with torch.no_grad():
                aims = slow_vectors(teacher, told[-2], total - 1, teacher_heads[-1])
            for mine, aim in zip(own, aims, strict=True):
                related = related + slow_divergence(mine, aim, relation_heads)
    numbers = tokens * student.config.hidden_size
    both = logit_weight * soft / len(texts) + hidden_weight * squares / numbers
    return both + relation_weight * related / len(texts)


def slow_vectors(slow: Slow, state: Tensor, layer: int, heads: Sequence[int]) -> list[Tensor]:
    """Query, key and value of a text's tokens, those of these heads side by side."""
    size = slow.config.hidden_size // slow.config.num_attention_heads
    found = []
    for name in NAMES[slow.architecture][:3]:
        at = f"{slow.architecture}.encoder.layer.{layer}.{name}"
        parts = [slice(head * size, (head + 1) * size) for head in heads]
        rows = [
            torch.cat([slow.weights[f"{at}.weight"][p] @ x + slow.weights[f"{at}.bias"][p] for p in parts])
            for x in state
        ]
        found.append(torch.stack(rows))
    return found


def slow_divergence(mine: Tensor, aim: Tensor, heads: int) -> Tensor:
    """MiniLMv2's loss of one text's queries (or keys, or values): head by head and token by token, averaged."""
    total = torch.zeros((), dtype=torch.float64)
    for head in range(heads):
        rows = []
        for vectors in (mine, aim):
            size = vectors.shape[1] // heads
            part = vectors[:, head * size : (head + 1) * size]
            scores = [[(part[i] * part[j]).sum() / math.sqrt(size) for j in range(len(part))] for i in range(len(part))]
            rows.append([torch.softmax(torch.stack(row), 0) for row in scores])
        for found, wanted in zip(*rows, strict=True):
            total = total + (wanted * (torch.log(wanted) - torch.log(found))).sum()
    return total / (heads * len(mine))


def slow_task_loss(
    student: Slow, texts: Sequence[Text], labels: Sequence[float], *, width: float, depth: float, regression: bool
) -> Tensor:
    """One sub-network's mean loss on labels: cross-entropy, or squared error."""
    heads, neurons = parts(student, width, kept(student.config.num_hidden_layers, depth))
    total = torch.zeros((), dtype=torch.float64)
    for (ids, positions, types), label in zip(texts, labels, strict=True):
        _, logits = student(ids, positions, types, heads, neurons)
        if regression:
            total = total + (logits[0] - label) ** 2
        else:
            total = total + torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[int(label)]
    return total / len(texts)


def slow_gradients(student: Slow, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of every weight, 0 where the loss does not reach; the padding token's embedding gets none."""
    names = [name for name, weight in student.weights.items() if weight.requires_grad]
    found = torch.autograd.grad(loss, [student.weights[name] for name in names], allow_unused=True)
    gradients = {
        name: torch.zeros_like(student.weights[name]) if g is None else g for name, g in zip(names, found, strict=True)
    }
    for name, gradient in gradients.items():
        if name.endswith("word_embeddings.weight"):
            gradient[student.config.pad_token_id] = 0.0
    return gradients
