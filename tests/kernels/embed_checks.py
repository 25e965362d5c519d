"""What is asked of every provider of ``embed_layer_norm``: CPU, Triton and CUDA tests call the same checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from dynabert_kernels.testing.inputs import poisoned_allocations, strided_rows

Forward = Callable[..., tuple[Tensor, ...]]
Backward = Callable[..., tuple[Tensor, ...]]
NAMES = ("y", "mean", "rstd", "dword", "dposition", "dtoken_type", "dw", "db")

# name: (C, V, P, Y, lengths of each group's sequences, rows past the last border)
SHAPES: dict[str, tuple[int, int, int, int, list[list[int]], int]] = {
    "one token": (5, 3, 4, 1, [[1]], 0),
    "no tokens": (64, 5, 6, 2, [[]], 0),
    "primes below every tile": (7, 11, 5, 3, [[5], [3, 2]], 0),
    "rows of no group, an empty group": (61, 13, 20, 2, [[17, 3], [], [9]], 5),
    "one past a tile": (129, 200, 40, 2, [[33]], 0),
    "runs of several chunks": (33, 3, 20, 1, [[20, 20], [20, 11]], 2),
    "MiniLM": (384, 30, 12, 2, [[12, 7], [9]], 0),
    "BERT-base": (768, 40, 8, 2, [[8]], 0),
    "1,025 columns": (1025, 9, 3, 2, [[3, 2]], 0),
}


class EmbedInput(NamedTuple):
    """Arguments of ``embed_layer_norm_fwd`` in its order, and a gradient of its result."""

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None
    word: Tensor
    position: Tensor
    token_type: Tensor | None
    weight: Tensor
    bias: Tensor
    rows: Tensor | None
    dropout_state: Tensor | None
    eps: float
    dropout_p: float
    dropout_stream: int
    padding_idx: int
    dy: Tensor

    def forward(self) -> tuple[Any, ...]:
        return tuple(self)[:-1]

    def backward(self, mean: Tensor, rstd: Tensor) -> tuple[Any, ...]:
        first = (self.dy, *tuple(self)[:7], mean, rstd, self.rows, self.dropout_state)
        return (*first, self.dropout_p, self.dropout_stream, self.padding_idx)

    def to(self, dtype: torch.dtype) -> EmbedInput:
        """The same numbers in another floating dtype."""
        return EmbedInput(*(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in self))

    def as_views(self) -> EmbedInput:
        """The same numbers in tables and a gradient whose rows are further apart; between them lies NaN."""
        token_type = None if self.token_type is None else strided_rows(self.token_type, gap=1, offset=5)
        tables = {"word": strided_rows(self.word, gap=8, offset=0), "position": strided_rows(self.position)}
        return self._replace(**tables, token_type=token_type, dy=strided_rows(self.dy, gap=2, offset=3))


def embed_input(
    name: str,
    dtype: torch.dtype,
    *,
    types: str = "given",  # or "type 0", "no table"
    dropout_p: float = 0.0,
    padding_idx: int = 0,
    device: torch.device | str = "cpu",
) -> EmbedInput:
    """Random arguments; a third of the tokens have one id, as [CLS] and [SEP] do."""
    columns, size, positions, kinds, lengths, extra = SHAPES[name]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, shift: float = 0.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) + shift).to(dtype).to(device)

    places = [torch.arange(n) for group in lengths for n in group]
    position_ids = torch.cat([*places, torch.zeros(extra, dtype=torch.int64)])
    tokens = position_ids.shape[0]
    ids = torch.randint(0, size, (tokens,), generator=generator)
    ids[::3] = 1
    kind_ids = torch.randint(0, kinds, (tokens,), generator=generator)
    borders = torch.tensor([0, *[sum(group) for group in lengths]]).cumsum(0).to(torch.int32)
    return EmbedInput(
        input_ids=ids.to(device),
        position_ids=position_ids.to(device),
        token_type_ids=kind_ids.to(device) if types == "given" else None,
        word=normal(size, columns, shift=1.0),
        position=normal(positions, columns),
        token_type=None if types == "no table" else normal(kinds, columns),
        weight=normal(columns, shift=1.0),
        bias=normal(columns),
        rows=borders.to(device),
        dropout_state=torch.tensor([1234567890123, 77]).to(device) if dropout_p > 0.0 else None,
        eps=1e-5,
        dropout_p=dropout_p,
        dropout_stream=3,
        padding_idx=padding_idx,
        dy=normal(tokens, columns),
    )


def definition(sample: EmbedInput) -> dict[str, Tensor]:
    """The reference, computed in the sample's dtype: float64 for the truth."""
    forward = reference.embed_layer_norm_fwd(*sample.forward())
    return dict(zip(NAMES, (*forward, *reference.embed_layer_norm_bwd(*sample.backward(*forward[1:]))), strict=True))


def results(forward: Forward, backward: Backward, sample: EmbedInput) -> dict[str, Tensor]:
    """Everything a provider returns, from allocations that hold NaN."""
    with poisoned_allocations():
        ours = forward(*sample.forward())
        gradients = backward(*sample.backward(*ours[1:]))
    return dict(zip(NAMES, (*ours, *gradients), strict=True))


def check_against_float64(forward: Forward, backward: Backward, sample: EmbedInput) -> None:
    """Result, statistics and every gradient err no more than plain PyTorch does in the same dtype."""
    ours, exact, yardstick = (
        results(forward, backward, sample),
        definition(sample.to(torch.float64)),
        definition(sample),
    )
    for name, value in yardstick.items():
        factor = 3.0 if name.startswith("d") else 2.0
        assert_close_to_float64(ours[name], exact[name], value, factor=factor, name=name)
    if sample.padding_idx >= 0 and not sample.word.isnan().any():
        assert not ours["dword"][sample.padding_idx].any()


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Bit for bit."""
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
