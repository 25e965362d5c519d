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
        ModelShape("bert-large", hidden=1024, heads=16, head_size=64, neurons=4096),
    )
}
DEFAULT_SHAPES = ("minilm", "bert-base")


def parse_shape(text: str) -> ModelShape:
    """A named shape, or one such as ``C768-H12-D64-F3072``. Raises ``ValueError`` on anything else."""
    if text in SHAPES:
        return SHAPES[text]
    match = re.fullmatch(r"C(\d+)-H(\d+)-D(\d+)-F(\d+)", text)
    sizes = [int(size) for size in match.groups()] if match else []
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"benchmarks: --shape {text!r} is unknown; allowed: {', '.join(SHAPES)}, or hidden size, heads, head size "
            "and neurons as C768-H12-D64-F3072"
        )
    return ModelShape(text, *sizes)


@dataclass(frozen=True)
class Mix:
    """Which widths a batch mixes: shares of its sequences, in packing order, and the width of each. Width 0 skips.

    Invariant: at least one share is above 0 and has a width above 0.
    """

    parts: tuple[tuple[float, int], ...]

    def __post_init__(self) -> None:
        if not any(width > 0 and share > 0 for width, share in self.parts):
            raise ValueError(
                f"benchmarks: plan {self.name!r} computes nothing; allowed: at least one share with a width, w0.5:1"
            )

    @property
    def name(self) -> str:
        """As on the command line: ``w0.5`` where all sequences have one width."""
        names = ["skip" if width == 0 else f"w{width:g}" for width, _ in self.parts]
        if len(self.parts) == 1:
            return names[0]
        return ",".join(f"{name}:{share}" for name, (_, share) in zip(names, self.parts, strict=True))


def uniform(width: float) -> Mix:
    """One width for the whole batch."""
    return Mix(((width, 1),))


def parse_plan(text: str) -> Mix:
    """``w1:2,w0.5:1,skip:1``: of every four sequences, in packing order by share, two at width 1, one at width 0.5, one
    that skips the layer. A share may be left out (it is 1) or 0 (an empty group). Raises ``ValueError`` otherwise.
    """
    parts = []
    for part in text.split(","):
        match = re.fullmatch(r"(?:skip|w(\d*\.?\d+))(?::(\d+))?", part)
        if match is None:
            raise ValueError(
                f"benchmarks: --plan {text!r} is not a plan; allowed: shares of the batch by width, or skip, "
                "as in w1:2,w0.5:1,skip:1"
            )
        parts.append((float(match[1] or 0.0), int(match[2] or 1)))
    return Mix(tuple(parts))


@dataclass(frozen=True)
class Group:
    """The sequences of one width, from row ``begin`` of the batch: ``k`` active heads, ``f`` neurons; both 0 where the
    the layer is skipped.
    """

    begin: int
    lengths: tuple[int, ...]
    k: int
    f: int

    @property
    def T(self) -> int:
        return sum(self.lengths)

    @property
    def rows(self) -> slice:
        return slice(self.begin, self.begin + self.T)

    @property
    def squared_lengths(self) -> int:
        """Sum of the squared sequence lengths: the number of query and key pairs of one head."""
        return sum(length * length for length in self.lengths)


@dataclass(frozen=True)
class Problem:
    """One layer at one mix of widths over packed sequences. Letters as everywhere; ``k`` and ``f`` are the heads and
    neurons of the widest group, ``e`` the bytes of an element.

    Invariant: every width is a whole number of heads, at least one, and the mix's shares divide the sequences.
    """

    shape: ModelShape
    lengths: tuple[int, ...]
    mix: Mix
    dtype: torch.dtype
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"benchmarks: sequence lengths are {self.lengths}; allowed: one or more, each at least 1")
        for width, _ in self.mix.parts:
            if width:
                self._heads(width)
        shares = sum(share for _, share in self.mix.parts)
        if len(self.lengths) % shares:
            raise ValueError(
                f"benchmarks: plan {self.mix.name!r} deals out {shares} sequences at a time and the batch "
                f"{tokens_name(self.lengths)} has {len(self.lengths)}; allowed: a multiple of {shares}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"benchmarks: --dropout is {self.dropout:g}; allowed: from 0 to below 1")

    def _heads(self, width: float) -> int:
        heads = self.shape.heads * width
        if not 0.0 < width <= 1.0 or abs(heads - round(heads)) > 0.01 or round(heads) < 1:
            below, above = max(1, int(heads)), min(self.shape.heads, int(heads) + 1)
            raise ValueError(
                f"benchmarks: width {width:g} is {heads:g} of {self.shape.heads} heads of {self.shape.name}; "
                f"allowed: whole heads; use {below / self.shape.heads:.3g} ({below}) or "
                f"{above / self.shape.heads:.3g} ({above})"
            )
        return round(heads)

    @cached_property
    def all_groups(self) -> tuple[Group, ...]:
        """The groups of the mix, in packing order; an empty one has no sequences."""
        step = len(self.lengths) // sum(share for _, share in self.mix.parts)
        groups, first, begin = [], 0, 0
        for width, share in self.mix.parts:
            heads = self._heads(width) if width else 0
            lengths = self.lengths[first : first + share * step]
            groups.append(Group(begin, lengths, heads, self.F * heads // self.H))
            first, begin = first + len(lengths), begin + sum(lengths)
        return tuple(groups)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups that have sequences."""
        return tuple(group for group in self.all_groups if group.lengths)

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
        return max(group.k for group in self.groups)

    @property
    def f(self) -> int:
        return max(group.f for group in self.groups)

    @property
    def width(self) -> float:
        """The width of a token, on average."""
        return sum(group.T * group.k for group in self.groups) / (self.T * self.H)

    @property
    def e(self) -> int:
        return self.dtype.itemsize

    @property
    def statistic_bytes(self) -> int:
        """Bytes of one mean, rstd or log-sum-exp: float32, and float64 for float64."""
        return 8 if self.dtype == torch.float64 else 4

    @cached_property
    def plan(self) -> dk.Plan:
        """A plan of one layer, on the host."""
        groups = self.all_groups
        return dk.Plan.build([dk.SubnetShape((g.k,), (g.f,)) for g in groups], [g.lengths for g in groups])


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
