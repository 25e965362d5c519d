"""The shape of one sub-network: how many leading heads and neurons each layer keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def _counts(name: str, values: Sequence[int]) -> tuple[int, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"SubnetShape: {name} must be one whole number per layer; got {type(values).__name__}")
    out = []
    for layer, value in enumerate(values):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(
                f"SubnetShape: {name}[{layer}] must be a whole number; got {value!r} ({type(value).__name__})"
            )
        count = int(value.__index__())
        if count < 0:
            raise ValueError(
                f"SubnetShape: {name}[{layer}] is {count}; allowed: 0 (the layer is skipped) or more; use 0 to skip"
            )
        out.append(count)
    return tuple(out)


@dataclass(frozen=True)
class SubnetShape:
    """Heads and neurons of every layer. A layer has both, or neither (it is skipped).

    ``heads`` and ``neurons`` hold one whole number for each of the ``L`` layers: the number of *leading* heads and FFN
    neurons that are active. Both 0: the layer is skipped and the hidden state passes through it unchanged.

    Raises ``ValueError`` when the two differ in length, are empty, are negative, or when a layer has heads but no
    neurons or neurons but no heads; ``TypeError`` when an entry is not a whole number.
    """

    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", _counts("heads", self.heads))
        object.__setattr__(self, "neurons", _counts("neurons", self.neurons))
        if len(self.heads) != len(self.neurons):
            raise ValueError(
                f"SubnetShape: heads has {len(self.heads)} layers and neurons has {len(self.neurons)}; "
                "both need one entry for each layer"
            )
        if not self.heads:
            raise ValueError("SubnetShape: no layers given; give one entry for each layer")
        for layer, (heads, neurons) in enumerate(zip(self.heads, self.neurons, strict=True)):
            if (heads == 0) != (neurons == 0):
                raise ValueError(
                    f"SubnetShape: layer {layer} has {heads} heads and {neurons} neurons; "
                    "a layer keeps at least one of both, or is skipped with 0 of both"
                )

    @property
    def num_layers(self) -> int:
        """Number of layers ``L`` of the full network, skipped ones included."""
        return len(self.heads)

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """0-based indices of the layers that are not skipped."""
        return tuple(layer for layer, heads in enumerate(self.heads) if heads > 0)

    @property
    def work(self) -> tuple[int, int]:
        """(active heads, active neurons) summed over layers: the order in which groups are sorted, widest first."""
        return sum(self.heads), sum(self.neurons)

    @classmethod
    def uniform(
        cls, num_layers: int, heads: int, neurons: int, kept_layers: Sequence[int] | None = None
    ) -> SubnetShape:
        """The shape with the same ``heads`` and ``neurons`` in each kept layer (all layers by default).

        Raises ``ValueError`` when ``kept_layers`` names a layer outside ``0 .. num_layers-1`` or one layer twice.
        """
        kept = tuple(range(num_layers) if kept_layers is None else kept_layers)
        wrong = [layer for layer in kept if not 0 <= layer < num_layers]
        if wrong:
            raise ValueError(f"SubnetShape: kept_layers names {wrong}; allowed: 0 to {num_layers - 1}")
        chosen = set(kept)
        if len(chosen) != len(kept):
            raise ValueError(f"SubnetShape: kept_layers names a layer twice: {list(kept)}; name each layer once")
        return cls(
            tuple(heads if layer in chosen else 0 for layer in range(num_layers)),
            tuple(neurons if layer in chosen else 0 for layer in range(num_layers)),
        )
