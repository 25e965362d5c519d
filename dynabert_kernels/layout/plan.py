"""The plan of a packed batch: for every layer, how many heads and neurons each group of rows uses.

One idea serves every use. A single width is a plan with one group; a width per request is a plan with one group for
each distinct sub-network; all training widths in one launch are a plan whose groups repeat the same sequences.

Kernels read the counts from one int32 tensor, never from Python numbers: a new batch is then new data for the same
compiled graph, not a new graph. Only the maxima live on the host, because they size buffers and grids.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynabert_kernels.layout.subnet_shape import SubnetShape


class LayerPlan(NamedTuple):
    """One layer's view of a plan. The tensors are views of the plan's one table; nothing is copied.

    ``rows``: (G+1,) int32, borders of the groups' rows: group ``g`` owns rows ``rows[g]`` to ``rows[g+1]-1``.
    ``heads``, ``neurons``: (G,) int32, active leading heads and neurons of each group, 0 where it skips the layer.
    ``max_heads``, ``max_neurons``: the largest of each over the groups, known on the host.
    """

    rows: Tensor
    heads: Tensor
    neurons: Tensor
    max_heads: int
    max_neurons: int


@dataclass(frozen=True, eq=False)
class Plan:
    """Which leading heads and neurons each row of a packed batch uses, layer by layer.

    Invariant: ``table`` is int32 and holds the group borders (G+1 numbers, rising from 0), then for each layer the
    heads of every group (G numbers) and the neurons of every group (G numbers). ``max_heads[l]`` and
    ``max_neurons[l]`` are their maxima, or bounds of them; ``max_seqlen`` is the longest sequence, or a bound of it;
    ``num_groups`` is G. ``num_rows`` is the number of rows the batch is padded to
    (at least the last border); rows past the last border belong to no group.

    Build one with :meth:`build` or :meth:`uniform`; they check everything, ops then trust the plan. Where lengths and
    widths are on a GPU already, :func:`dynabert_kernels.plan_on_device` builds it there. Groups may stand in any order;
    widest first (:func:`group_by_shape`) is what kernels run fastest.
    """

    table: Tensor
    num_groups: int
    max_heads: tuple[int, ...]
    max_neurons: tuple[int, ...]
    max_seqlen: int
    num_rows: int

    @classmethod
    def build(
        cls,
        shapes: Sequence[SubnetShape],
        seqlens: Sequence[Sequence[int]],
        *,
        row_bucket: int = 1,
        device: torch.device | str | None = None,
    ) -> Plan:
        """Plan with one group for each entry of ``shapes``, in that order.

        ``seqlens[g]``: lengths in tokens of the group's sequences, in packing order; may be empty.
        ``row_bucket``: the row count is rounded up to a multiple of it, so that few distinct sizes occur.
        ``device``: where the table goes. The copy from the host is the only one, and is queued: it does not wait for
        what the device has still to do.

        Raises ``ValueError`` when the two differ in length, when there is no group, when the shapes have different
        numbers of layers, when a length is not positive, when ``row_bucket`` is not positive, or when there are more
        than 2^31-1 rows; ``TypeError`` when a length is no whole number.
        """
        if len(shapes) != len(seqlens):
            raise ValueError(
                f"Plan: {len(shapes)} shapes and {len(seqlens)} lists of lengths; give one list of lengths a shape"
            )
        if not shapes:
            raise ValueError("Plan: no group given; give at least one shape")
        if row_bucket < 1:
            raise ValueError(f"Plan: row_bucket is {row_bucket}; allowed: 1 or more")
        for group, shape in enumerate(shapes):
            if not isinstance(shape, SubnetShape):
                raise TypeError(f"Plan: shapes[{group}] must be a SubnetShape; got {type(shape).__name__}")
        num_layers = shapes[0].num_layers
        rows, max_seqlen = [0], 0
        for group, (shape, lengths) in enumerate(zip(shapes, seqlens, strict=True)):
            if shape.num_layers != num_layers:
                raise ValueError(
                    f"Plan: shapes[{group}] has {shape.num_layers} layers, shapes[0] has {num_layers}; "
                    "all groups of a plan belong to one network"
                )
            try:
                whole = [operator.index(length) for length in lengths]
            except TypeError:
                raise TypeError(f"Plan: the lengths of group {group} are {lengths}; allowed: whole numbers") from None
            if whole and min(whole) < 1:
                raise ValueError(f"Plan: group {group} has a sequence of {min(whole)} tokens; allowed: 1 or more")
            max_seqlen = max([max_seqlen, *whole])
            rows.append(rows[-1] + sum(whole))
        num_rows = -(-rows[-1] // row_bucket) * row_bucket
        if num_rows > 2**31 - 1:
            raise ValueError(f"Plan: {num_rows} rows; allowed: up to 2147483647; split the batch")
        device = torch.get_default_device() if device is None else device
        numbers = list(rows)
        for layer in range(num_layers):
            numbers += [shape.heads[layer] for shape in shapes]
            numbers += [shape.neurons[layer] for shape in shapes]
        return cls(
            table=torch.tensor(numbers, dtype=torch.int32, device="cpu").to(device=device, non_blocking=True),
            num_groups=len(shapes),
            max_heads=tuple(max(shape.heads[layer] for shape in shapes) for layer in range(num_layers)),
            max_neurons=tuple(max(shape.neurons[layer] for shape in shapes) for layer in range(num_layers)),
            max_seqlen=max_seqlen,
            num_rows=num_rows,
        )

    @classmethod
    def uniform(
        cls,
        shape: SubnetShape,
        seqlens: Sequence[int],
        *,
        row_bucket: int = 1,
        device: torch.device | str | None = None,
    ) -> Plan:
        """Plan with one group: every sequence uses ``shape``. Errors as in :meth:`build`."""
        return cls.build([shape], [seqlens], row_bucket=row_bucket, device=device)

    @property
    def num_layers(self) -> int:
        """Number of layers ``L``, skipped ones included."""
        return len(self.max_heads)

    @property
    def device(self) -> torch.device:
        """Where the table lies."""
        return self.table.device

    @property
    def rows(self) -> Tensor:
        """(G+1,) int32 view of the group borders."""
        return self.table[: self.num_groups + 1]

    def layer(self, index: int) -> LayerPlan:
        """The plan of layer ``index`` (0-based), as views of the table; ``IndexError`` where there is no such layer."""
        if not 0 <= index < self.num_layers:
            raise IndexError(f"Plan: layer {index} is not there; allowed: 0 to {self.num_layers - 1}")
        groups = self.num_groups
        start = groups + 1 + 2 * groups * index
        return LayerPlan(
            rows=self.table[: groups + 1],
            heads=self.table[start : start + groups],
            neurons=self.table[start + groups : start + 2 * groups],
            max_heads=self.max_heads[index],
            max_neurons=self.max_neurons[index],
        )

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        """The plans of all layers, first to last."""
        return tuple(self.layer(index) for index in range(self.num_layers))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Plan:
        """The same plan with its table on ``device``; itself when it is there already."""
        table = self.table.to(device, non_blocking=non_blocking)
        if table is self.table:
            return self
        return Plan(table, self.num_groups, self.max_heads, self.max_neurons, self.max_seqlen, self.num_rows)


def group_by_shape(shapes: Sequence[SubnetShape]) -> tuple[list[int], list[SubnetShape], list[int]]:
    """Sorts sequences by their sub-network, widest first, so that equal ones form one group.

    ``shapes``: one for each sequence. Returns ``(order, group_shapes, group_sizes)``: ``order[i]`` is the caller's
    index of the i-th packed sequence; the sort is stable, so equal shapes keep the caller's order.
    """
    shapes = list(shapes)
    first_seen: dict[SubnetShape, int] = {}
    for shape in shapes:
        first_seen.setdefault(shape, len(first_seen))
    ranked = sorted(first_seen, key=lambda shape: (tuple(-work for work in shape.work), first_seen[shape]))
    members: dict[SubnetShape, list[int]] = {shape: [] for shape in ranked}
    for index, shape in enumerate(shapes):
        members[shape].append(index)
    order = [index for shape in ranked for index in members[shape]]
    return order, ranked, [len(members[shape]) for shape in ranked]
