"""Random packed batches: groups of any width in any order, skipped layers, empty groups, rows of no group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels.triton.environment import INTERPRETED


@dataclass(frozen=True)
class Limits:
    """What a provider takes, and how large samples may be so that hundreds of them take seconds.

    ``unit``: active features are multiples of it. ``lengths``: of sequences, the long ones rare; some lie past a tile.
    """

    unit: int
    head_sizes: tuple[int, ...]
    lengths: tuple[int, ...]
    most_units: int
    most_rows: int
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)


# 12, 13, 14: around a strip of rows; 33, 65: past a tile of queries; 129: past a block of keys.
_ANY = Limits(1, (1, 2, 3, 5, 8, 16, 19, 32, 40, 64, 67), (1, 1, 2, 3, 5, 7, 12, 13, 14, 33, 65, 129), 70, 220)
_TILED = Limits(16, (16, 16, 16, 32), (1, 1, 2, 3, 5, 7, 15, 17, 33), 3, 40)
LIMITS: dict[str, Limits] = {
    "triton": _TILED,
    "cuda": replace(_TILED, dtypes=(torch.float32, torch.bfloat16, torch.float16)),
}


# A GPU has the time for longer sequences and wider heads, and no float64.
_ON_GPU = Limits(16, (16, 32, 64, 64, 128), (1, 2, 3, 7, 15, 17, 33, 64, 65, 129, 257), 20, 600, LIMITS["cuda"].dtypes)


def device_of(provider: str) -> torch.device:
    """Where a provider's samples run: the GPU that is there for its kernels, else the CPU."""
    on_gpu = provider == "cuda" or (provider == "triton" and not INTERPRETED)
    if on_gpu and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def limits_of(provider: str) -> Limits:
    """The limits of a provider, on the device where its samples run; one that is not named takes anything."""
    if device_of(provider).type == "cuda":
        return _ON_GPU
    return LIMITS.get(provider, _ANY)


@dataclass(frozen=True)
class Batch:
    """Sequences in groups, and two counts for each group: heads and neurons (or rows and columns of a weight).

    ``lengths[g]``: of the group's sequences. ``padding``: rows past the last border. ``layers``, ``index``: the plan
    has so many layers, and this is the one; the others' counts are other numbers, to be stepped over.
    """

    lengths: tuple[tuple[int, ...], ...]
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    padding: int
    layers: int
    index: int
    state: tuple[int, int]

    @cached_property
    def borders(self) -> list[int]:
        """First row of each group, and one past the last."""
        found = [0]
        for group in self.lengths:
            found.append(found[-1] + sum(group))
        return found

    @property
    def num_groups(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return self.borders[-1]

    @property
    def num_rows(self) -> int:
        return self.num_tokens + self.padding

    @property
    def max_seqlen(self) -> int:
        return max((length for group in self.lengths for length in group), default=0)

    def rows_of(self, group: int) -> slice:
        return slice(self.borders[group], self.borders[group + 1])

    @property
    def groups_with_rows(self) -> list[int]:
        return [group for group, lengths in enumerate(self.lengths) if lengths]

    @property
    def rows(self) -> Tensor:
        return torch.tensor(self.borders, dtype=torch.int32)

    @property
    def cu_seqlens(self) -> Tensor:
        flat = [0, *[length for group in self.lengths for length in group]]
        return torch.tensor(flat).cumsum(0).to(torch.int32)

    @property
    def dropout_state(self) -> Tensor:
        return torch.tensor(self.state)

    @cached_property
    def layer(self) -> dk.LayerPlan:
        """The layer's view of a plan of several layers."""
        shapes = []
        for heads, neurons in zip(self.heads, self.neurons, strict=True):
            other = [(heads + 3, neurons + 5) for _ in range(self.layers)]
            other[self.index] = (heads, neurons)
            shapes.append(dk.SubnetShape(tuple(h for h, _ in other), tuple(n for _, n in other)))
        return dk.Plan.build(shapes, self.lengths).layer(self.index)

    def widths(self, counts: tuple[int, ...], unit: int = 1) -> Tensor:
        """(T,) active features of each row; 0 for rows of no group."""
        found = torch.zeros(self.num_rows, dtype=torch.int64)
        for group, count in enumerate(counts):
            found[self.rows_of(group)] = count * unit
        return found

    def past(self, counts: tuple[int, ...], columns: int, unit: int = 1) -> Tensor:
        """(T, columns) True where a column is past its row's width, and in rows of no group."""
        return torch.arange(columns)[None, :] >= self.widths(counts, unit)[:, None]

    @property
    def no_group(self) -> Tensor:
        """(T,) True in rows of no group."""
        return torch.arange(self.num_rows) >= self.num_tokens

    def alone(self, group: int) -> Batch:
        """One group as a batch of its own: same dropout, since its index moves into the offset."""
        seed, offset = self.state
        return Batch(
            lengths=(self.lengths[group],),
            heads=(self.heads[group],),
            neurons=(self.neurons[group],),
            padding=0,
            layers=self.layers,
            index=self.index,
            state=(seed, offset + group),
        )

    def __str__(self) -> str:
        groups = "; ".join(
            f"{heads} heads, {neurons} neurons: {'+'.join(map(str, lengths)) or 'empty'}"
            for lengths, heads, neurons in zip(self.lengths, self.heads, self.neurons, strict=True)
        )
        return f"[{groups}], {self.padding} rows of no group"


def random_batch(random: Random, limits: Limits, *, most_heads: int, most_neurons: int) -> Batch:
    """A batch of 1 to 6 groups. Neurons are multiples of the limits' unit; a group has both counts or neither."""
    lengths: list[tuple[int, ...]] = []
    heads, neurons = [], []
    left = limits.most_rows
    for _ in range(random.choice((1, 1, 2, 2, 3, 4, 5, 6))):
        group = []
        for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3))):
            length = random.choice(limits.lengths)
            if length <= left:
                group.append(length)
                left -= length
        lengths.append(tuple(group))
        skipped = random.random() < 0.15
        heads.append(0 if skipped else random.randint(1, most_heads))
        neurons.append(0 if skipped else random.randint(1, most_neurons // limits.unit) * limits.unit)
    layers = random.randint(1, 3)
    return Batch(
        lengths=tuple(lengths),
        heads=tuple(heads),
        neurons=tuple(neurons),
        padding=random.choice((0, 0, 1, 3, 16)),
        layers=layers,
        index=random.randrange(layers),
        state=(random.getrandbits(62), random.getrandbits(20)),
    )


def simpler_batch(batch: Batch, without: frozenset[str]) -> Batch:
    """The batch less what ``without`` names: ``padding``, ``long`` sequences, ``groups`` but the first with rows."""
    if "padding" in without:
        batch = replace(batch, padding=0)
    if "long" in without:
        batch = replace(batch, lengths=tuple(tuple(min(n, 2) for n in group[:2]) for group in batch.lengths))
    if "groups" in without and batch.groups_with_rows:
        batch = replace(batch.alone(batch.groups_with_rows[0]), padding=batch.padding)
    return batch


__all__ = ["LIMITS", "Batch", "Limits", "device_of", "limits_of", "random_batch", "simpler_batch"]
