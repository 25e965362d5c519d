"""Several sub-networks in turn: a narrow one answers, and where it is not sure a wider one answers again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from dynabert.configuration.grid import subnet_text
from dynabert.configuration.subnet import Subnet, SubnetConfig, decimal_text

CASCADE_FORM = '"w0.25-d0.5@0.9/w1" (half the depth at a quarter of the width; the whole network where that is unsure)'
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True)
class Cascade:
    """Sub-networks in turn, the cheapest first. Each text goes on to the next one until an answer is sure enough.

    An argument of `InferenceEngine.predict`, in the place of one sub-network. Most texts are easy: with a cheap
    sub-network in front of the whole one, most answers cost little, and the unsure ones are the whole network's own.
    `dynabert cascade` finds one for a checkpoint, a task and a device.

    ``subnets``: two or more, each once, in any of a sub-network's forms; kept as `SubnetConfig`.
    ``least``: for each but the last, the probability from which its answer stands, above 0 and below 1; one number
    where there are two sub-networks. The probability of an answer is that of its label; where a text has several, that
    of the most doubtful decision.

    Text form, for :meth:`parse` and ``str()``: ``"w0.25-d0.5@0.9/w1-d1"``.

    >>> str(Cascade(("w0.25-d0.5", "w1"), 0.9))
    'w0.25-d0.5@0.9/w1-d1'

    Raises ``ValueError`` for fewer than two sub-networks, one that is named twice, another number of probabilities, or
    one that is out of range; ``TypeError`` for a wrong type.
    """

    subnets: tuple[SubnetConfig, ...]
    least: tuple[float, ...]

    def __init__(self, subnets: Iterable[Subnet], least: float | Iterable[float]) -> None:
        if isinstance(subnets, (str, SubnetConfig)) or not isinstance(subnets, Iterable):
            raise TypeError(
                f"Cascade: subnets are {type(subnets).__name__}; allowed: a list of two or more sub-networks; a "
                "cascade's text form is read by Cascade.parse"
            )
        chosen = tuple(_config(subnet) for subnet in subnets)
        numbers = tuple(_probability(one) for one in (least if isinstance(least, Iterable) else (least,)))
        if len(chosen) < 2:
            raise ValueError(f"Cascade: {len(chosen)} sub-network(s); allowed: two or more, the cheapest first")
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"Cascade: subnets are {', '.join(map(str, chosen))}; allowed: each once")
        if len(numbers) != len(chosen) - 1:
            raise ValueError(
                f"Cascade: {len(numbers)} probabilities for {len(chosen)} sub-networks; allowed: one for each but the "
                f"last, {len(chosen) - 1}"
            )
        object.__setattr__(self, "subnets", chosen)
        object.__setattr__(self, "least", numbers)

    @classmethod
    def parse(cls, text: str) -> Cascade:
        """Reads the text form back: ``Cascade.parse(str(cascade)) == cascade``.

        Raises ``ValueError`` naming the form, ``TypeError`` when ``text`` is not a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"Cascade.parse: needs a string; got {type(text).__name__}")
        *firsts, last = text.split("/")
        named = [part.rpartition("@") for part in firsts]
        if not firsts or "@" in last or not all(subnet and _NUMBER.fullmatch(number) for subnet, _, number in named):
            raise ValueError(f"Cascade.parse: unknown cascade {text!r}; allowed: {CASCADE_FORM}")
        return cls([*(subnet for subnet, _, _ in named), last], [float(number) for _, _, number in named])

    def __str__(self) -> str:
        parts = [
            f"{subnet}@{decimal_text(number)}" for subnet, number in zip(self.subnets[:-1], self.least, strict=True)
        ]
        return "/".join([*parts, str(self.subnets[-1])])


def as_cascade(subnet: Any) -> Cascade | None:
    """The cascade that is meant, by itself or as text; None for anything else."""
    if isinstance(subnet, str) and ("/" in subnet or "@" in subnet):
        return Cascade.parse(subnet)
    return subnet if isinstance(subnet, Cascade) else None


def answering_text(subnet: Subnet | Cascade) -> str:
    """The text form of a cascade, or of a sub-network in any of its forms. Errors as in `subnet_text`."""
    cascade = as_cascade(subnet)
    return subnet_text(subnet) if cascade is None else str(cascade)  # type: ignore[arg-type]


def _config(subnet: Any) -> SubnetConfig:
    return subnet if isinstance(subnet, SubnetConfig) else SubnetConfig.parse(subnet_text(subnet))


def _probability(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Cascade: least is {value!r}; allowed: numbers above 0 and below 1")
    number = float(value)
    if not 0.0 < number < 1.0:
        raise ValueError(f"Cascade: least is {number:g}; allowed: above 0 and below 1")
    return number
