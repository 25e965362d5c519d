"""What is measured: the sizes of one problem, and how a command line names them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import torch

import dynabert_kernels as dk
from dynabert_kernels.testing.timing import dtype_name

DTYPES = {dtype_name(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
WIDTHS = (1.0, 0.75, 0.5, 0.25)
TOKENS = ("128", "8x128")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of an encoder layer: hidden size C, heads H, head size D, neurons F."""

    name: str
    hidden: int
    heads: int
    head_size: int
    neurons: int


SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("minilm", hidden=384, heads=12, head_size=32, neurons=1536),
        ModelShape("bert-base", hidden=768, heads=12, head_size=64, neurons=3072),
    )
}


@dataclass(frozen=True)
class Problem:
    """One layer at one width over packed sequences. Letters as everywhere; ``k`` and ``f`` are the active heads and
    neurons, ``e`` the bytes of an element.

    Invariant: the width is a whole number of heads and of neurons, at least one.
    """

    shape: ModelShape
    lengths: tuple[int, ...]
    width: float
    dtype: torch.dtype

    def __post_init__(self) -> None:
        heads = self.shape.heads * self.width
        if not 0.0 < self.width <= 1.0 or abs(heads - round(heads)) > 0.01 or round(heads) < 1:
            below, above = max(1, int(heads)), min(self.shape.heads, int(heads) + 1)
            raise ValueError(
                f"benchmarks: width {self.width:g} is {heads:g} of {self.shape.heads} heads of {self.shape.name}; "
                f"allowed: whole heads; use {below / self.shape.heads:.3g} ({below}) or "
                f"{above / self.shape.heads:.3g} ({above})"
            )
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"benchmarks: sequence lengths are {self.lengths}; allowed: one or more, each at least 1")

    @property
    def T(self) -> int:
        return sum(self.lengths)

    @property
    def C(self) -> int:
        return self.shape.hidden

    @property
    def H(self) -> int:
        return self.shape.heads

    @property
    def D(self) -> int:
        return self.shape.head_size

    @property
    def F(self) -> int:
        return self.shape.neurons

    @property
    def k(self) -> int:
        return round(self.H * self.width)

    @property
    def f(self) -> int:
        return self.F * self.k // self.H

    @property
    def e(self) -> int:
        return self.dtype.itemsize

    @property
    def statistic_bytes(self) -> int:
        """Bytes of one mean or rstd: float32, and float64 for float64."""
        return 8 if self.dtype == torch.float64 else 4

    @property
    def squared_lengths(self) -> int:
        """Sum of the squared sequence lengths: the number of query and key pairs of one head."""
        return sum(length * length for length in self.lengths)

    @cached_property
    def plan(self) -> dk.Plan:
        """A plan of one layer and one group, on the host."""
        return dk.Plan.uniform(dk.SubnetShape((self.k,), (self.f,)), self.lengths)


def tokens_name(lengths: tuple[int, ...]) -> str:
    """As on the command line: ``128``, ``8x128``, or the sum of unequal lengths."""
    if len(lengths) > 1 and len(set(lengths)) == 1:
        return f"{len(lengths)}x{lengths[0]}"
    return "+".join(str(length) for length in lengths)


def parse_tokens(text: str) -> tuple[int, ...]:
    """Sequence lengths of ``128``, ``8x128`` or ``17+128+5``. Raises ``ValueError`` on anything else."""
    lengths: list[int] = []
    for part in text.split("+"):
        match = re.fullmatch(r"(?:(\d+)x)?(\d+)", part)
        if match is None or int(match[2]) < 1 or int(match[1] or 1) < 1:
            raise ValueError(
                f"benchmarks: --tokens {text!r} is not a batch; allowed: 128 (one sequence), 8x128 (eight) or 17+128+5"
            )
        lengths += [int(match[2])] * int(match[1] or 1)
    return tuple(lengths)
