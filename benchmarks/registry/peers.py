"""The peers: what a careful user of plain PyTorch runs instead of an op, one call for each width of the batch.

Forward: PyTorch's own pieces on views of the leading rows and columns of the weights, no copies. Backward:
``torch.autograd.grad`` of exactly that over a graph that was built once, before the time begins. Its weight gradients
have full size, since autograd pads the gradient of a view with zeros and adds up what several widths give: so does a
user who trains sub-networks in place.

A user keeps the rows of each width in a tensor of their own, so cutting the batch apart and joining the results lie
outside the time too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problems import Group, Problem

Tensors = dict[str, Tensor]
# Results of one group, or of the batch: a list of parts to be joined for each result.
Parts = list[list[Tensor]]
# (problem, group, the group's own tensors) -> the group's part of a result
Apply = Callable[[Problem, Group, Tensors], Tensor]
# (problem, group, all tensors) -> the group's own activations, contiguous, by name
Cut = Callable[[Problem, Group, Tensors], Tensors]


class Peer(Protocol):
    """Plain PyTorch on a problem."""

    def prepare(self, problem: Problem, sets: Sequence[Tensors]) -> Callable[[int], Parts]:
        """All that need not be timed; what comes back runs the peer on the set of that index."""


def results(peer: Peer, problem: Problem, tensors: Tensors) -> tuple[Tensor, ...]:
    """The peer's results in the layout of the op's: rows one after another, zero beyond a row's width."""
    return tuple(_joined(parts) for parts in peer.prepare(problem, [tensors])(0))


def _joined(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    columns = max(part.shape[1] for part in parts)
    padded = [
        torch.cat([part, part.new_zeros(part.shape[0], columns - part.shape[1], *part.shape[2:])], 1) for part in parts
    ]
    return torch.cat(padded)


@dataclass(frozen=True)
class ForwardPeer:
    """``apply`` for each group, on views of the weights and the group's own rows."""

    apply: Apply
    cut: Cut

    def prepare(self, problem: Problem, sets: Sequence[Tensors]) -> Callable[[int], Parts]:
        calls = [
            [(problem, group, tensors | self.cut(problem, group, tensors)) for group in problem.groups]
            for tensors in sets
        ]
        apply = self.apply
        return lambda index: [[apply(*call) for call in calls[index]]]


@dataclass(frozen=True)
class BackwardPeer:
    """Autograd's gradient of ``apply`` in the activations and weights named ``wrt``, in the op's order of results."""

    apply: Apply
    cut: Cut
    wrt: tuple[str, ...]

    def prepare(self, problem: Problem, sets: Sequence[Tensors]) -> Callable[[int], Parts]:
        graph = _Graph(sets)
        with torch.enable_grad(), graph:
            weights = {name: tensor.detach() for name, tensor in sets[0].items()}
            for name in self.wrt:
                weights[name].requires_grad_()
            own = [self.cut(problem, group, sets[0]) for group in problem.groups]
            for tensors in own:
                for name in set(self.wrt) & set(tensors):
                    # A view of its own, so that the caller's tensor does not begin to ask for gradients.
                    tensors[name] = tensors[name].detach().requires_grad_()
            outputs = [
                self.apply(problem, group, weights | tensors)
                for group, tensors in zip(problem.groups, own, strict=True)
            ]
        gradients = [tensors.pop("dy") for tensors in own]
        leaves, counts = [], []
        for name in self.wrt:
            parts = [tensors[name] for tensors in own] if name in own[0] else [weights[name]]
            leaves += parts
            counts.append(len(parts))

        def run(index: int) -> Parts:
            graph.index = index
            flat = iter(torch.autograd.grad(outputs, leaves, gradients, retain_graph=True))
            return [[next(flat) for _ in range(count)] for count in counts]

        return run


class _Graph:
    """A graph that is built once and reads, in each backward, the weights of another of several sets.

    The sets share their activations. One graph for each set would have saved activations of its own for each, and would
    meet them cold, where the ops that it is measured against meet the ones they share warm.
    """

    def __init__(self, sets: Sequence[Tensors]) -> None:
        self.index = 0
        rotating = {name for name in sets[0] if any(other[name] is not sets[0][name] for other in sets[1:])}
        self._copies = {
            sets[0][name].untyped_storage().data_ptr(): [tensors[name] for tensors in sets] for name in rotating
        }
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> None:
        if self._copies:
            self._hooks.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._copies:
            self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Tensor | list[Tensor]:
        copies = self._copies.get(tensor.untyped_storage().data_ptr())
        if copies is None:
            return tensor
        layout = tensor.shape, tensor.stride(), tensor.storage_offset()
        return [copy.detach().as_strided(*layout) for copy in copies]

    def _unpack(self, kept: Tensor | list[Tensor]) -> Tensor:
        return kept[self.index] if isinstance(kept, list) else kept


def dropped(p: Problem, x: Tensor) -> Tensor:
    """PyTorch's dropout where the problem has one. Its mask is not the ops'."""
    return F.dropout(x, p.dropout) if p.dropout > 0.0 else x


def torch_attention(p: Problem, group: Group, qkv: Tensor) -> Tensor:
    """(T, k, D) of a packed (T, k, 3, D): one batched call where lengths are equal, else one for each sequence."""
    if group.k == 0:
        return qkv[:, :, 0]
    if len(set(group.lengths)) == 1:
        batch = qkv.view(len(group.lengths), group.lengths[0], group.k, 3, p.D)
        q, key, value = batch.permute(3, 0, 2, 1, 4)
        out = F.scaled_dot_product_attention(q, key, value, dropout_p=p.dropout)
        return out.transpose(1, 2).reshape(group.T, group.k, p.D)
    outputs = []
    for part in qkv.split(group.lengths):
        q, key, value = part.permute(2, 1, 0, 3)
        out = F.scaled_dot_product_attention(q[None], key[None], value[None], dropout_p=p.dropout)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)
