"""What a caller asks of the engine: texts or pairs, and sub-networks, each checked and named by its index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from dynabert.configuration import Subnet, SubnetConfig
from dynabert.configuration.cascade import Cascade
from dynabert.data.examples import check_text
from dynabert_kernels import SubnetShape

Text: TypeAlias = str | tuple[str, str]


def as_list(texts: object, call: str = "predict") -> list[Any]:
    """The texts of an iterable; ``TypeError`` for what holds none, for one text, and for what has no order."""
    if not isinstance(texts, Iterable) or isinstance(texts, (str, tuple, bytes, Mapping, set, frozenset)):
        one = {"predict": "a str, a pair (str, str), or a list of them", "embed": "a str, or a list of them"}
        allowed = one.get(call, "a list of str or of pairs")
        raise TypeError(f"{call}: texts are no texts; got {type(texts).__name__}; allowed: {allowed}")
    return list(texts)


def checked_stream(texts: object, call: str) -> Iterator[Any]:
    """An iterator over texts; ``TypeError`` for what holds none, for one text, and for a pair. ``call``: what takes
    one text."""
    if isinstance(texts, (str, bytes, tuple, dict)) or not isinstance(texts, Iterable):
        raise TypeError(
            f"{call}_iter: an iterable of texts is needed; got {type(texts).__name__}; for one text use {call}"
        )
    return iter(texts)


def other_count(call: str, found: int, count: int) -> str:
    """The message where there is not one sub-network for each text."""
    return f"{call}: one sub-network is needed per text; got {found} for {count} texts; give {count}"


def is_many(subnet: object) -> bool:
    """Whether these are several sub-networks in an order. A set has none, so it is no list of them."""
    one = (str, bytes, SubnetConfig, SubnetShape, Mapping, set, frozenset)
    return isinstance(subnet, Iterable) and not isinstance(subnet, one)


def listed_subnets(subnets: Subnet | Cascade | Sequence[Subnet | Cascade]) -> list[Any]:
    """One sub-network or cascade, or several, as a list."""
    return cast("list[Any]", list(cast("Any", subnets)) if is_many(subnets) else [subnets])


def split_pairs(texts: list[Text], first_index: int) -> tuple[list[str], list[str] | None]:
    """First texts and second texts (None for single texts), with every type checked."""
    paired = isinstance(texts[0], tuple)
    firsts: list[str] = []
    seconds: list[str] = []
    for index, text in enumerate(texts, start=first_index):
        if isinstance(text, tuple) != paired and isinstance(text, (tuple, str)):
            raise ValueError(
                f"predict: text {index} is {'a pair' if not paired else 'a single text'}, text {first_index} is not; "
                "do not mix them"
            )
        if isinstance(text, list):
            raise TypeError(f"predict: text {index} is a list; allowed: a str, or a pair as a tuple: (first, second)")
        if not paired:
            firsts.append(check_text(text, f"predict: text {index}"))
            continue
        if not isinstance(text, tuple) or len(text) != 2:
            raise TypeError(
                f"predict: text {index} is no pair; got {text!r}; allowed: a tuple of two str (for many texts give a "
                "list)"
            )
        firsts.append(check_text(text[0], f"predict: first text of pair {index}"))
        seconds.append(check_text(text[1], f"predict: second text of pair {index}"))
    return firsts, seconds if paired else None
