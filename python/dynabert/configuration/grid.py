"""Naming sub-networks on the way in and out: text forms, lists of them, and the grid that DynaBERT is trained on."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dynabert.configuration import Subnet, SubnetConfig
from dynabert.configuration.subnet import GRID_DEPTHS

if TYPE_CHECKING:
    from dynabert.configuration import ElasticBertConfig

WIDTHS = (1.0, 0.75, 0.5, 0.25)
DEPTHS = GRID_DEPTHS

# A comma separates sub-networks only where the next one begins: "w0.5-l0,2,w1" is two.
_SEPARATOR = re.compile(r"[;\s]+|,\s*(?=[wdh])")


def subnet_text(subnet: Subnet) -> str:
    """The text form of a sub-network in any of its forms; ``"w1-d1"`` for None, the whole network.

    Raises:
        ValueError: a text that is no sub-network.
        TypeError: another type.
    """
    if subnet is None:
        return str(SubnetConfig())
    if isinstance(subnet, str):
        return str(SubnetConfig.parse(subnet))
    if isinstance(subnet, SubnetConfig):
        return str(subnet)
    heads, neurons = getattr(subnet, "heads", None), getattr(subnet, "neurons", None)
    if heads is None or neurons is None:
        raise TypeError(
            f"subnet: no sub-network; got {type(subnet).__name__}; allowed: SubnetConfig, its text form, SubnetShape "
            "or None"
        )
    return str(SubnetConfig(heads=heads, neurons=neurons))


def subnet_grid() -> list[SubnetConfig]:
    """The paper's 12 sub-networks: widths 1, 0.75, 0.5, 0.25 at depths 1, 0.75, 0.5, deepest and widest first."""
    return [SubnetConfig(width, depth) for depth in DEPTHS for width in WIDTHS]


def parse_subnets(text: str, config: ElasticBertConfig | None = None) -> list[SubnetConfig]:
    """Read ``"all"`` (the grid of 12) or a list such as ``"w1,w0.5-d0.75"``, separated by commas, semicolons or blanks.

    Args:
        text: what the user wrote.
        config: a network's configuration; with it each sub-network is checked to fit.

    Raises:
        ValueError: no sub-network in the text; one that cannot be read, that is named twice, or that does not fit the
            network.
        TypeError: what is no text.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"subnets: a text is needed, such as 'all' or 'w1,w0.5-d0.75'; got {text!r} ({type(text).__name__})"
        )
    subnets = (
        subnet_grid()
        if text.strip() == "all"
        else [SubnetConfig.parse(part) for part in _SEPARATOR.split(text.strip()) if part]
    )
    if not subnets:
        raise ValueError(f"subnets: none named; got {text!r}; allowed: all, or a list such as w1,w0.5-d0.75")
    doubled = [str(s) for i, s in enumerate(subnets) if s in subnets[:i]]
    if doubled:
        raise ValueError(f"subnets: {doubled[0]} is named twice; got {text!r}; name each once")
    if config is not None:
        for subnet in subnets:
            try:
                config.shape(subnet)
            except ValueError as error:
                raise ValueError(f"subnets: {subnet} does not fit this network: {error}") from error
    return subnets
