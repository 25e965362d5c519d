"""The relations between a layer's queries, keys and values, and how far the student's are from the teacher's.

    R_a = softmax(A_a A_a^T / sqrt(d))      A: the queries, the keys or the values of one sequence, d numbers a head
    REL = sum over q, k, v of the mean over relation heads a and positions t of KL(teacher R_a[t] || student R_a[t])

MiniLMv2, arXiv 2012.15828, all three weighing 1. The vectors of all heads are put side by side and cut
anew into ``relation_heads`` equal parts. So student and teacher may differ in heads: of ``h`` active heads of ``D``
numbers each relation head takes ``h * D / relation_heads``. The default is ``D`` relation heads: they divide ``h * D``
at every width. The paper, too, cuts into more relation heads than its networks have heads.

Sequences are packed; those of about one length are compared together, padded to the longest. The relations of a
sequence take ``3 * relation_heads * n * n`` numbers. So the gradient is computed at once, some sequences at a time, and
no relation is kept for the backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynabert_kernels import SubnetShape

if TYPE_CHECKING:
    from dynabert.modeling.encoder import ElasticLayer

MOST_NUMBERS = 2**21  # of the relations that are computed together, unless one sequence has more


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some sequences of a packed batch: ``b`` of them, the longest of ``n`` tokens.

    ``rows``: (b, n) int64, where each token stands; 0 in the padding. ``padding``: (b, n), whether it is padding; None
    where all are of one length. ``shares``: (b, n) float64, what a token's loss weighs: 1 over its sequence's tokens, 0
    in the padding.
    """

    rows: Tensor
    padding: Tensor | None
    shares: Tensor


@dataclass(frozen=True, eq=False)
class Relations:
    """The teacher's side: for each of its copies the last layer's queries, keys and values, (T, 3, h*D)."""

    projections: tuple[Tensor, ...]
    chunks: tuple[Chunk, ...]
    relation_heads: int


def resolved_relation_heads(relation_heads: int | None, head_dim: int, shapes: Sequence[SubnetShape]) -> int:
    """``relation_heads``, or where it is None the size of a head.

    ``shapes``: whose last kept layers are compared. Raises ``ValueError`` where a layer's numbers cannot be cut so.
    """
    if relation_heads is None:
        return head_dim
    if relation_heads < 1:
        raise ValueError(f"relation_heads is {relation_heads}; allowed: 1 or more")
    for shape in shapes:
        heads = shape.heads[shape.kept_layers[-1]]
        if heads * head_dim % relation_heads != 0:
            raise ValueError(
                f"relation_heads is {relation_heads} and a sub-network's last layer has {heads} heads of {head_dim}, "
                f"{heads * head_dim} numbers; allowed: what divides the numbers of every width, such as the divisors "
                f"of {head_dim}; leave it out for {head_dim}"
            )
    return relation_heads


def chunks_of(seqlens: Sequence[int], relation_heads: int, device: torch.device) -> tuple[Chunk, ...]:
    """The sequences of a packed batch, shortest first, in runs that are compared together."""
    starts = [0]
    for length in seqlens:
        starts.append(starts[-1] + length)
    runs: list[list[int]] = []
    for index in sorted(range(len(seqlens)), key=lambda i: seqlens[i]):
        numbers = 3 * relation_heads * seqlens[index] ** 2  # of each sequence in the run, this one is the longest
        if not runs or (len(runs[-1]) + 1) * numbers > MOST_NUMBERS:
            runs.append([])
        runs[-1].append(index)
    found = []
    for run in runs:
        first = torch.tensor([starts[i] for i in run])[:, None]
        lengths = torch.tensor([seqlens[i] for i in run])[:, None]
        places = torch.arange(int(lengths.max()))
        padding = places >= lengths
        rows = (first + places).masked_fill(padding, 0)
        shares = (1.0 / lengths.double()).expand_as(rows).masked_fill(padding, 0.0)
        some = padding.to(device) if bool(padding.any()) else None
        found.append(Chunk(rows.to(device), some, shares.to(device)))
    return tuple(found)


def project(layer: ElasticLayer, x: Tensor, heads: int) -> Tensor:
    """(T, 3, heads*D): query, key and value of the leading heads, side by side, of what enters the layer, (T, C)."""
    size = layer.config.head_dim
    weight, bias = layer.qkv_weight[:heads], layer.qkv_bias[:heads]
    found = F.linear(x, weight.reshape(-1, weight.shape[-1]), bias.reshape(-1))
    return found.view(-1, heads, 3, size).transpose(1, 2).reshape(-1, 3, heads * size)


def relation_sum(own: Tensor, told: Tensor, relations: Relations) -> Tensor:
    """The student's loss, added over sequences: a scalar, float32 (float64 for float64 vectors).

    ``own``: the student's queries, keys and values, (T, 3, h*D), differentiable once. ``told``: the teacher's, one of
    ``relations.projections``. Sums are float32 whatever the dtype of both.
    """
    found: Tensor = _RelationSum.apply(own, told, relations.chunks, relations.relation_heads)  # type: ignore[no-untyped-call]
    return found


class _RelationSum(torch.autograd.Function):
    """The sum with its gradient, in one pass over the chunks.

    Of a row of scores z, KL(p || softmax z) has the gradient softmax z - p, and z = A A^T / sqrt(d) hands a gradient G
    on to A as (G + G^T) A / sqrt(d).
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, told: Tensor, chunks: Sequence[Chunk], heads: int) -> Tensor:
        wide = torch.float64 if own.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=wide, device=own.device)
        gradient = torch.zeros_like(own, dtype=wide) if ctx.needs_input_grad[0] else None
        for chunk in chunks:
            target, _ = _log_relations(told, chunk, heads, wide)
            found, vectors = _log_relations(own, chunk, heads, wide)
            shares = (chunk.shares / heads).to(wide)[:, None, None, :]
            wanted = target.exp()
            difference = target - found
            if chunk.padding is not None:  # both -inf there, and no part of any relation
                difference = difference.masked_fill(chunk.padding[:, None, None, None, :], 0.0)
            total += ((wanted * difference).sum(-1) * shares).sum()
            if gradient is None:
                continue
            slope = found.exp_().sub_(wanted).mul_(shares[..., None])
            made = (slope + slope.transpose(-1, -2)) @ vectors / math.sqrt(vectors.shape[-1])
            flat = made.permute(0, 3, 1, 2, 4).reshape(-1, *own.shape[1:])
            gradient.index_add_(0, chunk.rows.flatten(), flat)  # the padding adds zeros to the first row
        ctx.save_for_backward(gradient)
        ctx.dtype = own.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else (gradient * slopes[0]).to(ctx.dtype), None, None, None


def _log_relations(projection: Tensor, chunk: Chunk, heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The relations' logarithms, (b, 3, relation heads, n, n), and the vectors, (b, 3, relation heads, n, d)."""
    b, n = chunk.rows.shape
    vectors = projection.index_select(0, chunk.rows.flatten()).to(dtype)
    vectors = vectors.view(b, n, 3, heads, -1).permute(0, 2, 3, 1, 4).contiguous()
    scores = vectors @ vectors.transpose(-1, -2) / math.sqrt(vectors.shape[-1])
    if chunk.padding is not None:
        scores.masked_fill_(chunk.padding[:, None, None, None, :], -math.inf)
    return torch.log_softmax(scores, -1), vectors
