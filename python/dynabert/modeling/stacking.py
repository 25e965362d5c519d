"""The same sequences once for each sub-network, in one packed batch with one plan: a step's widths in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynabert_kernels import PackedBatch, Plan, SubnetShape


@dataclass(frozen=True, eq=False)
class Stack:
    """``S`` copies of a batch of ``B`` sequences and ``T`` tokens; copy ``s`` runs as group ``s`` of the plan.

    ``token_rows``: (S*T,) int32, the row in the single batch of each stacked token; ``sequence_rows``: (S*B,) int32,
    the same for sequences; ``sequence_borders``: (S+1,) int32, each copy's border among the sequences; ``shapes``: the
    sub-network of each copy, as the host knows it.
    """

    batch: PackedBatch
    plan: Plan
    token_rows: Tensor
    sequence_rows: Tensor
    sequence_borders: Tensor
    shapes: tuple[SubnetShape, ...]

    @property
    def num_groups(self) -> int:
        """``S``."""
        return self.plan.num_groups


def stack(batch: PackedBatch, seqlens: Sequence[int], shapes: Sequence[SubnetShape]) -> Stack:
    """Stacks ``batch`` once for each of ``shapes``.

    ``batch``: ``B`` sequences without row padding, in any order. ``seqlens``: their lengths, in the batch's order.
    Reads no device memory. The groups stand in the order of ``shapes``: kernels do not rely on it, and are fastest with
    the widest first.
    """
    tokens, device = batch.num_rows, batch.device
    if sum(seqlens) != tokens:
        raise ValueError(
            f"stack: the lengths add up to {sum(seqlens)} and the batch has {tokens} rows; allowed: a batch without "
            "row padding, and the lengths of its sequences"
        )
    copies, count = len(shapes), len(seqlens)
    plan = Plan.build(list(shapes), [seqlens] * copies, device=device)
    starts = torch.arange(copies, dtype=torch.int32, device=device)[:, None] * tokens
    borders = (batch.cu_seqlens[None, :-1] + starts).reshape(-1)
    types = batch.token_type_ids
    stacked = replace(
        batch,
        input_ids=batch.input_ids.repeat(copies),
        position_ids=batch.position_ids.repeat(copies),
        token_type_ids=None if types is None else types.repeat(copies),
        cu_seqlens=torch.cat([borders, borders.new_full((1,), copies * tokens)]),
        num_sequences=copies * count,
        order=None,
    )
    return Stack(
        stacked,
        plan,
        torch.arange(tokens, dtype=torch.int32, device=device).repeat(copies),
        torch.arange(count, dtype=torch.int32, device=device).repeat(copies),
        torch.arange(copies + 1, dtype=torch.int32, device=device) * count,
        tuple(shapes),
    )
