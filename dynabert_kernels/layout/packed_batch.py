"""A batch without padding: all tokens of all sequences end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """``B`` sequences laid end to end without padding: ``T`` tokens and the borders between sequences.

    ``input_ids``, ``position_ids``: (T,) int64. ``token_type_ids``: (T,) int64 or None (all 0). ``cu_seqlens``: (B+1,)
    int32, rising from 0: sequence ``i`` owns tokens ``cu_seqlens[i]`` to ``cu_seqlens[i+1]-1``. ``max_seqlen``: the
    longest sequence, known on the host; ``num_sequences`` is B. ``order``: (B,) int64, the caller's index of each
    packed sequence, or None when they stand in the caller's order. With a row bucket, ``T`` may exceed
    ``cu_seqlens[B]``; the rows past it are padding that no op reads.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int
    num_sequences: int
    order: Tensor | None = None

    @classmethod
    def from_lists(
        cls,
        input_ids: Sequence[Sequence[int]],
        *,
        token_type_ids: Sequence[Sequence[int]] | None = None,
        position_offset: int = 0,
        order: Sequence[int] | None = None,
        row_bucket: int = 1,
        pad_id: int = 0,
        device: torch.device | str | None = None,
    ) -> PackedBatch:
        """Packs lists of token ids.

        ``order``: packed sequence ``i`` is ``input_ids[order[i]]`` (a permutation of all sequences); None keeps the
        order. ``position_offset``: the first token's position (RoBERTa and MPNet count from ``padding_idx + 1``).
        ``row_bucket``: ``T`` is rounded up to a multiple of it and filled with ``pad_id`` at position
        ``position_offset``.

        Raises ``ValueError`` when there is no sequence, a sequence is empty, ``order`` is not a permutation, or
        ``token_type_ids`` does not match ``input_ids`` in shape.
        """
        if len(input_ids) == 0:
            raise ValueError("PackedBatch: no sequence given; give at least one")
        if row_bucket < 1:
            raise ValueError(f"PackedBatch: row_bucket is {row_bucket}; allowed: 1 or more")
        sequence_order = list(range(len(input_ids))) if order is None else [int(index) for index in order]
        if sorted(sequence_order) != list(range(len(input_ids))):
            raise ValueError(
                f"PackedBatch: order must name each of the {len(input_ids)} sequences once; got {sequence_order}"
            )
        if token_type_ids is not None and len(token_type_ids) != len(input_ids):
            raise ValueError(
                f"PackedBatch: {len(input_ids)} sequences but token_type_ids for {len(token_type_ids)}; "
                "give one list a sequence"
            )
        device = torch.get_default_device() if device is None else device
        ids: list[int] = []
        positions: list[int] = []
        types: list[int] = []
        borders = [0]
        for index in sequence_order:
            sequence = input_ids[index]
            if len(sequence) == 0:
                raise ValueError(f"PackedBatch: sequence {index} has no tokens; allowed: 1 or more")
            ids.extend(sequence)
            positions.extend(range(position_offset, position_offset + len(sequence)))
            if token_type_ids is not None:
                if len(token_type_ids[index]) != len(sequence):
                    raise ValueError(
                        f"PackedBatch: sequence {index} has {len(sequence)} tokens "
                        f"but {len(token_type_ids[index])} token_type_ids; give one for each token"
                    )
                types.extend(token_type_ids[index])
            borders.append(len(ids))
        padding = -len(ids) % row_bucket
        ids.extend([pad_id] * padding)
        positions.extend([position_offset] * padding)
        if token_type_ids is not None:
            types.extend([0] * padding)
        return cls(
            input_ids=torch.tensor(ids, dtype=torch.int64, device="cpu").to(device=device, non_blocking=True),
            position_ids=torch.tensor(positions, dtype=torch.int64, device="cpu").to(device=device, non_blocking=True),
            token_type_ids=None
            if token_type_ids is None
            else torch.tensor(types, dtype=torch.int64, device="cpu").to(device=device, non_blocking=True),
            cu_seqlens=torch.tensor(borders, dtype=torch.int32, device="cpu").to(device=device, non_blocking=True),
            max_seqlen=max(len(sequence) for sequence in input_ids),
            num_sequences=len(input_ids),
            order=None
            if order is None
            else torch.tensor(sequence_order, dtype=torch.int64, device="cpu").to(device=device, non_blocking=True),
        )

    @classmethod
    def from_padded(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        order: Sequence[int] | None = None,
    ) -> PackedBatch:
        """Packs a padded batch: keeps the tokens whose mask is not 0.

        ``input_ids``, ``attention_mask``, ``token_type_ids``, ``position_ids``: (B, S); no mask keeps all tokens.
        ``position_ids`` defaults to the column, so that padding on the left and gaps count as they do in BERT.
        ``order`` as in :meth:`from_lists`. With a mask this reads the lengths back from the device: one
        synchronisation on a GPU.

        Raises ``ValueError`` on shapes that do not match, no sequence, or a sequence whose mask is all 0;
        ``TypeError`` when ``input_ids`` are not integers.
        """
        if input_ids.dim() != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] == 0:
            raise ValueError(
                f"PackedBatch: input_ids has shape {tuple(input_ids.shape)}; allowed: (sequences, tokens), "
                "at least one of each"
            )
        if input_ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"PackedBatch: input_ids are {input_ids.dtype}; allowed: torch.int64 or torch.int32")
        named = (("attention_mask", attention_mask), ("token_type_ids", token_type_ids), ("position_ids", position_ids))
        for name, tensor in named:
            if tensor is None:
                continue
            if tensor.shape != input_ids.shape:
                raise ValueError(
                    f"PackedBatch: {name} has shape {tuple(tensor.shape)}; "
                    f"allowed: that of input_ids, {tuple(input_ids.shape)}"
                )
            if tensor.device != input_ids.device:
                raise ValueError(
                    f"PackedBatch: {name} is on {tensor.device}, input_ids on {input_ids.device}; put both on one"
                )
        batch, width = input_ids.shape
        device = input_ids.device
        sequence_order = None
        if order is not None:
            listed = [int(index) for index in order]
            if sorted(listed) != list(range(batch)):
                raise ValueError(f"PackedBatch: order must name each of the {batch} sequences once; got {listed}")
            sequence_order = torch.tensor(listed, dtype=torch.int64, device="cpu").to(device, non_blocking=True)

        def arranged(tensor: Tensor) -> Tensor:
            return tensor if sequence_order is None else tensor[sequence_order]

        ids = arranged(input_ids)
        positions = torch.arange(width, device=device).expand(batch, width) if position_ids is None else position_ids
        positions = arranged(positions)
        types = None if token_type_ids is None else arranged(token_type_ids)
        if attention_mask is None:
            lengths = [width] * batch
            flat: Tensor | slice = slice(None)
        else:
            keep = arranged(attention_mask) != 0
            lengths = keep.sum(1).tolist()
            empty = [index for index, length in enumerate(lengths) if length == 0]
            if empty:
                callers = empty if order is None else [int(order[index]) for index in empty]
                raise ValueError(
                    f"PackedBatch: the attention_mask of sequence {callers[0]} is 0 everywhere; "
                    "allowed: at least one real token"
                )
            flat = keep.reshape(-1).nonzero().squeeze(1)
        borders = [0]
        for length in lengths:
            borders.append(borders[-1] + int(length))
        return cls(
            input_ids=ids.reshape(-1)[flat].to(torch.int64),
            position_ids=positions.reshape(-1)[flat].to(torch.int64),
            token_type_ids=None if types is None else types.reshape(-1)[flat].to(torch.int64),
            cu_seqlens=torch.tensor(borders, dtype=torch.int32, device="cpu").to(device, non_blocking=True),
            max_seqlen=int(max(lengths)),
            num_sequences=batch,
            order=sequence_order,
        )

    @property
    def num_rows(self) -> int:
        """``T``: rows of the packed batch, bucket padding included."""
        return self.input_ids.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.input_ids.device

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedBatch:
        """The same batch on ``device``; itself when it is there already."""
        if self.input_ids.device == torch.device(device):
            return self

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return PackedBatch(
            input_ids=self.input_ids.to(device, non_blocking=non_blocking),
            position_ids=self.position_ids.to(device, non_blocking=non_blocking),
            token_type_ids=moved(self.token_type_ids),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=non_blocking),
            max_seqlen=self.max_seqlen,
            num_sequences=self.num_sequences,
            order=moved(self.order),
        )
