"""From a padded batch to packed tokens and a plan, with every check of what the user gave.

The device is asked once: lengths and the extremes of all ids come back in one read. On a GPU that is the first door's
one synchronisation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dynabert.configuration import Subnet, SubnetConfig
from dynabert.configuration.elastic import ElasticBertConfig
from dynabert.modeling.loss import IGNORED_LABEL
from dynabert_kernels import PackedBatch, Plan, SubnetShape, group_by_shape

logger = logging.getLogger(__name__)

_INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True, eq=False)
class PackedInputs:
    """A padded batch, packed. ``places``: (T,) int64, each packed token's place in the flattened (B, S) batch."""

    batch: PackedBatch
    plan: Plan
    places: Tensor
    padded_shape: tuple[int, int]

    def padded(self, x: Tensor) -> Tensor:
        """(T, C) packed rows as (B, S, C), zero at padding."""
        rows, columns = self.padded_shape
        out = x.new_zeros(rows * columns, x.shape[1]).index_copy(0, self.places, x)
        return out.view(rows, columns, x.shape[1])


def shapes_for(config: ElasticBertConfig, subnet: Subnet | Sequence[Subnet], num_sequences: int) -> list[SubnetShape]:
    """One shape for each sequence of a batch; one sub-network stands for all.

    Raises ``ValueError`` when a list has another length than the batch; errors of each entry as in
    ``ElasticBertConfig.shape``.
    """
    if not is_listed(subnet):
        return [config.shape(subnet)] * num_sequences  # type: ignore[arg-type]
    listed = list(subnet)  # type: ignore[arg-type]
    if len(listed) != num_sequences:
        raise ValueError(
            f"subnet has {len(listed)} entries for a batch of {num_sequences}; give one for all, or one a sequence"
        )
    known: dict[Subnet, SubnetShape] = {}
    for entry in listed:
        if entry is not None and not isinstance(entry, (SubnetConfig, SubnetShape, str)):
            config.shape(entry)  # raises: names the allowed types
        if entry not in known:
            known[entry] = config.shape(entry)
    return [known[entry] for entry in listed]


def is_listed(subnet: Subnet | Sequence[Subnet]) -> bool:
    """Whether ``subnet`` gives one sub-network for each sequence."""
    return isinstance(subnet, Sequence) and not isinstance(subnet, str)


# A compiler would trace the lists of lengths, and compile anew for nearly every batch.
@torch.compiler.disable(
    reason="a padded batch is packed by reading its lengths; for fullgraph=True pack with model.pack, and call the "
    "model with batch and plan"
)
def pack_padded(
    config: ElasticBertConfig,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    subnet: Subnet | Sequence[Subnet],
    *,
    device: torch.device,
    class_labels: Tensor | None = None,
) -> PackedInputs:
    """Checks a padded batch and packs its real tokens, sequences of one sub-network side by side, widest first.

    ``input_ids``: (B, S) int64 or int32; ``attention_mask``: (B, S) of 0 and 1, any dtype; ``token_type_ids``: (B, S);
    ``position_ids``: (B, S) or (1, S). Positions default to what transformers uses: the column in BERT; in RoBERTa and
    MPNet the count of non-padding ids so far, so that padding on the left does not shift them.
    ``class_labels``: integer labels whose range is checked in the same read.
    """
    if input_ids is None:
        raise ValueError("input_ids are missing; give input_ids, or batch and plan")
    ids = _checked("input_ids", input_ids, None, device)
    rows, columns = ids.shape
    if rows == 0 or columns == 0:
        raise ValueError(f"input_ids has shape {(rows, columns)}; allowed: at least one sequence of one token")
    shapes = shapes_for(config, subnet, rows)
    keep = _keep(attention_mask, ids, device)
    if token_type_ids is not None:
        token_type_ids = _checked("token_type_ids", token_type_ids, ids, device)
        if config.type_vocab_size == 0:
            raise ValueError(f"token_type_ids given, but {config.architecture} has no token types; leave them out")
    if position_ids is not None:
        if isinstance(position_ids, Tensor) and position_ids.dim() == 2 and position_ids.shape[0] == 1:
            position_ids = position_ids.expand(rows, position_ids.shape[1])
        positions = _checked("position_ids", position_ids, ids, device)
    else:
        positions = default_positions(config, ids)

    lengths = _read_and_check(
        config, ids, attention_mask, keep, token_type_ids, positions, position_ids is not None, class_labels
    )
    order: list[int] | None = None
    if is_listed(subnet):
        order, groups, sizes = group_by_shape(shapes)
        lengths = [lengths[index] for index in order]
    else:
        groups, sizes = [shapes[0]], [rows]
    places = _places(keep, order, sum(lengths))
    borders = [0]
    for length in lengths:
        borders.append(borders[-1] + length)
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    plan = Plan.build(groups, [lengths[a:b] for a, b in pairwise(starts)], device=device)
    batch = PackedBatch(
        input_ids=ids.reshape(-1)[places],
        position_ids=positions.reshape(-1)[places],
        token_type_ids=None if token_type_ids is None else token_type_ids.reshape(-1)[places],
        cu_seqlens=torch.tensor(borders, dtype=torch.int32, device="cpu").to(device, non_blocking=True),
        max_seqlen=max(lengths),
        num_sequences=rows,
        order=None
        if order is None
        else torch.tensor(order, dtype=torch.int64, device="cpu").to(device, non_blocking=True),
    )
    return PackedInputs(batch, plan, places, (rows, columns))


def default_positions(config: ElasticBertConfig, ids: Tensor) -> Tensor:
    """(B, S) positions as transformers counts them; in RoBERTa and MPNet a padding id stands at ``padding_idx``."""
    if config.architecture == "bert":
        return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    real = ids.ne(config.padding_idx).to(torch.int64)
    return real.cumsum(1) * real + config.padding_idx


def packed_positions(config: ElasticBertConfig, sequences: Sequence[Sequence[int]], num_rows: int) -> Tensor:
    """(num_rows,) positions of packed lists of ids, as :func:`default_positions` counts them."""
    found = [default_positions(config, torch.tensor([list(sequence)], device="cpu"))[0] for sequence in sequences]
    filled = sum(len(sequence) for sequence in sequences)
    return torch.cat([*found, torch.full((num_rows - filled,), config.position_offset, device="cpu")])


def _checked(name: str, tensor: Tensor, ids: Tensor | None, device: torch.device) -> Tensor:
    """``tensor`` as int64, its type, device and shape checked."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(tensor).__name__}")
    if tensor.dtype not in _INTEGERS:
        raise TypeError(f"{name} are {tensor.dtype}; allowed: torch.int64 or torch.int32")
    if tensor.device != device:
        raise ValueError(f"{name} are on {tensor.device}, the model on {device}; put both on one")
    if ids is None and tensor.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; allowed: (sequences, tokens)")
    if ids is not None and tensor.shape != ids.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; allowed: that of input_ids, {tuple(ids.shape)}")
    return tensor.to(torch.int64)


def _keep(attention_mask: Tensor | None, ids: Tensor, device: torch.device) -> Tensor:
    """(B, S) bool, True at real tokens."""
    if attention_mask is None:
        return torch.ones(ids.shape, dtype=torch.bool, device=device)
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor; got {type(attention_mask).__name__}")
    if attention_mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; allowed: that of input_ids, {tuple(ids.shape)}"
        )
    if attention_mask.device != device:
        raise ValueError(f"attention_mask is on {attention_mask.device}, the model on {device}; put both on one")
    return attention_mask != 0


def _read_and_check(
    config: ElasticBertConfig,
    ids: Tensor,
    attention_mask: Tensor | None,
    keep: Tensor,
    token_type_ids: Tensor | None,
    positions: Tensor,
    positions_given: bool,
    class_labels: Tensor | None,
) -> list[int]:
    """The lengths, and every check that looks at values, in one read from the device."""
    rows = ids.shape[0]

    def extremes(values: Tensor, where: Tensor) -> list[Tensor]:
        # Padding may hold anything: it takes the first allowed value instead.
        chosen = torch.where(where, values, values.new_zeros(()))
        return [chosen.min(), chosen.max()]

    wrong_mask = ids.new_zeros(())
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        wrong_mask = ((attention_mask != 0) & (attention_mask != 1)).sum()
    numbers = [wrong_mask, keep[:, 0].sum(), _with_gap(keep), *extremes(ids, keep), *extremes(positions, keep)]
    if token_type_ids is not None:
        numbers += extremes(token_type_ids, keep)
    if class_labels is not None:
        labels = class_labels.view(-1).to(torch.int64)
        numbers += extremes(labels, labels != IGNORED_LABEL)
    read = torch.cat([torch.stack(numbers), keep.sum(1)]).tolist()
    lengths, values = read[-rows:], read[:-rows]

    if values[0]:
        raise ValueError("attention_mask has values other than 0 and 1; allowed: 1 at real tokens, 0 at padding")
    if 0 in lengths:
        raise ValueError(f"the attention_mask of sequence {lengths.index(0)} is 0 everywhere; keep at least one token")
    if values[2] and config.has_relative_bias:
        raise ValueError(
            f"the attention_mask has a gap inside {values[2]} sequences; {config.architecture} counts distances across "
            "it, and a packed batch does not know it; take the masked tokens out of the text"
        )
    _check_range("input_ids", values[3:5], config.vocab_size, "the vocabulary")
    longest = max(lengths)
    if longest > config.max_sequence_length or (not positions_given and values[6] >= config.max_position_embeddings):
        found = longest if positions_given else max(longest, values[6] - config.position_offset + 1)
        raise ValueError(
            f"a sequence of {found} tokens is longer than the {config.max_sequence_length} positions of this model; "
            "truncate it"
        )
    _check_range("position_ids", values[5:7], config.max_position_embeddings, "the positions")
    if token_type_ids is not None:
        _check_range("token_type_ids", values[7:9], config.type_vocab_size, "the token types")
    if class_labels is not None:
        _check_range("labels", values[-2:], config.num_labels or 0, "the classes (and -100, which does not count)")
    if values[1] < rows:
        _say_once_first_column_masked()
    return lengths


def _with_gap(keep: Tensor) -> Tensor:
    """How many sequences have padding between real tokens."""
    columns = torch.arange(keep.shape[1], device=keep.device)
    last = torch.where(keep, columns, -1).amax(1)
    first = torch.where(keep, columns, keep.shape[1]).amin(1)
    return (last - first + 1 != keep.sum(1)).sum()


def _check_range(name: str, extremes: Sequence[int], count: int, what: str) -> None:
    low, high = extremes
    if low < 0 or high >= count:
        raise ValueError(f"{name} hold {low if low < 0 else high}; allowed: 0 to {count - 1}, {what}")


_said: set[str] = set()


def _say_once_first_column_masked() -> None:
    if "first column" not in _said:
        _said.add("first column")
        logger.warning(
            "attention_mask hides the first column of some sequences: the pooled token is the first real one of each "
            "sequence, where transformers takes the padding that stands in column 0."
        )


def say_once_of_autocast(weight: Tensor) -> None:
    """Under autocast to another dtype than the weights': it saves no time, and who asked for it is to know."""
    asked = torch.get_autocast_dtype(weight.device.type)
    if asked != weight.dtype and "autocast" not in _said:
        _said.add("autocast")
        logger.warning(
            "autocast to %s is on (as with bf16=True in transformers' Trainer): the layers compute in the weights' "
            "dtype, %s, and only pooler and head in the other. To train in half precision use DistillationTrainer or "
            "'dynabert train' with bf16; to serve in it load the model with that dtype.",
            str(asked).removeprefix("torch."),
            str(weight.dtype).removeprefix("torch."),
        )


def _places(keep: Tensor, order: Sequence[int] | None, tokens: int) -> Tensor:
    """(T,) int64: places of the real tokens in the flattened batch, in packing order. Does not synchronise."""
    if order is None:
        return torch.nonzero_static(keep.reshape(-1), size=tokens).squeeze(1)
    ordered = torch.tensor(order, dtype=torch.int64, device="cpu").to(keep.device)
    pairs = torch.nonzero_static(keep[ordered], size=tokens)
    return ordered[pairs[:, 0]] * keep.shape[1] + pairs[:, 1]
