"""Which sequences an optimiser step has, in each process, and how they are cut into launches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dynabert.data.batching import token_batches
from dynabert.data.tokenisation import Encoded


@dataclass(frozen=True)
class Sequences:
    """Token ids of some sequences, unpadded. Opaque to what moves batches about: nothing in it is a tensor."""

    input_ids: tuple[list[int], ...]
    token_type_ids: tuple[list[int], ...] | None
    labels: tuple[Any, ...] | None

    def __len__(self) -> int:
        return len(self.input_ids)

    def __contains__(self, name: object) -> bool:
        # Trainer asks whether a batch holds "labels", to count them its own way; the step's counts are made here.
        return False

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.input_ids))

    def launches(self, most_tokens: int) -> Iterator[Sequences]:
        """Runs of at most ``most_tokens`` tokens, in order; one longer sequence is a run of its own."""
        lengths = [len(ids) for ids in self.input_ids]
        types, labels = self.token_type_ids, self.labels
        for run in token_batches(lengths, most_tokens, order=range(len(lengths))):
            yield Sequences(
                tuple(self.input_ids[i] for i in run),
                None if types is None else tuple(types[i] for i in run),
                None if labels is None else tuple(labels[i] for i in run),
            )


class EncodedRows(Dataset[int]):
    """The index of each example of an encoded set; `sequences` makes a batch of them."""

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> int:
        return index

    def sequences(self, indices: Sequence[int]) -> Sequences:
        """The examples with these indices."""
        encoded = self.encoded
        ids, types = encoded.rows(indices)
        labels = None if encoded.labels is None else tuple(encoded.labels[i] for i in indices)
        return Sequences(tuple(ids), None if types is None else tuple(types), labels)


class StepSampler(Sampler[list[int]]):
    """Each process's share of each batch: an order that all processes know, cut without padding or repetition.

    A process may have no sequence in the last batch of an epoch.
    """

    def __init__(self, count: int, batch_size: int, *, num_processes: int, process: int, seed: int) -> None:
        self.count, self.batch_size = count, batch_size
        self.num_processes, self.process, self.seed = num_processes, process, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The order is drawn from the seed and the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // (self.batch_size * self.num_processes))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        size = self.batch_size * self.num_processes
        for start in range(0, self.count, size):
            yield order[start : start + size][self.process :: self.num_processes]


class StepLoader(DataLoader[Any]):
    """Batches of `Sequences` by a `StepSampler`."""

    def __init__(self, rows: EncodedRows, sampler: StepSampler) -> None:
        super().__init__(rows, batch_sampler=sampler, collate_fn=rows.sequences)

    def set_epoch(self, epoch: int) -> None:
        """Passed on to the sampler."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
