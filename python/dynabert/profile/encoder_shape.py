"""What of a network decides its times: the sizes of its encoder, not its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynabert.configuration.subnet import Subnet, subnet_shape
from dynabert.profile.damage import check_count, check_counts, check_text

if TYPE_CHECKING:
    from dynabert.configuration import ElasticBertConfig
    from dynabert_kernels import SubnetShape


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of the profiled encoder; ``layer_heads`` and ``layer_neurons`` are those of its whole network.

    Raises ``ValueError`` for sizes that no encoder has, naming the field.
    """

    architecture: str
    hidden_size: int
    head_dim: int
    activation: str
    relative_bias: bool
    layer_heads: tuple[int, ...]
    layer_neurons: tuple[int, ...]
    depth_rule: str

    def __post_init__(self) -> None:
        for name in ("architecture", "activation", "depth_rule"):
            check_text(name, getattr(self, name))
        for name in ("hidden_size", "head_dim"):
            check_count(name, getattr(self, name))
        for name in ("layer_heads", "layer_neurons"):
            check_counts(name, getattr(self, name))
        if len(self.layer_heads) != len(self.layer_neurons):
            raise ValueError(
                f"layer_heads names {len(self.layer_heads)} layers and layer_neurons "
                f"{len(self.layer_neurons)}; allowed: the same number"
            )

    @classmethod
    def of(cls, config: ElasticBertConfig) -> EncoderShape:
        """That of a network's configuration."""
        return cls(
            config.architecture,
            config.hidden_size,
            config.head_dim,
            config.activation,
            config.has_relative_bias,
            tuple(config.layer_heads),
            tuple(config.layer_neurons),
            config.depth_rule,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderShape:
        """Read back what ``to_dict`` gave."""
        lists = ("layer_heads", "layer_neurons")
        given: dict[str, Any] = {
            key: tuple(value) if key in lists and isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def num_layers(self) -> int:
        """Layers of the whole network."""
        return len(self.layer_heads)

    @property
    def max_heads(self) -> int:
        """Heads of the widest layer."""
        return max(self.layer_heads)

    @property
    def max_neurons(self) -> int:
        """Neurons of the widest layer."""
        return max(self.layer_neurons)

    def shape(self, subnet: Subnet) -> SubnetShape:
        """Heads and neurons of every layer that ``subnet`` means here; errors as in ``subnet_shape``."""
        return subnet_shape(subnet, self.layer_heads, self.layer_neurons, self.depth_rule)

    def misfit(self, config: ElasticBertConfig) -> str | None:
        """Why another network's times are not this one's; None when they are, a smaller network's among them."""
        other = EncoderShape.of(config)
        for name in ("hidden_size", "head_dim", "activation", "relative_bias"):
            own, its = getattr(self, name), getattr(other, name)
            if own != its:
                return f"{name} is {its}, the profile's {own}"
        for name, own, its in (
            ("layers", self.num_layers, other.num_layers),
            ("heads in a layer", self.max_heads, other.max_heads),
            ("neurons in a layer", self.max_neurons, other.max_neurons),
        ):
            if its > own:
                return f"it has {its} {name}, the profile's network {own}"
        return None

    def check_counts(self, heads: npt.NDArray[Any], neurons: npt.NDArray[Any]) -> None:
        """Raises ``ValueError`` (``TypeError``) unless both are (N, L) whole numbers that fit this encoder."""
        for name, counts, most in (("heads", heads, self.max_heads), ("neurons", neurons, self.max_neurons)):
            if not np.issubdtype(counts.dtype, np.integer):
                raise TypeError(f"latencies_ms: {name} must be whole numbers; got {counts.dtype}")
            if counts.ndim != 2 or counts.shape != heads.shape or not 1 <= counts.shape[1] <= self.num_layers:
                raise ValueError(
                    f"latencies_ms: {name} has shape {counts.shape}; allowed: (sub-networks, layers), the same for "
                    f"both, up to {self.num_layers} layers"
                )
            if counts.size and not (counts.min() >= 0 and counts.max() <= most):
                raise ValueError(
                    f"latencies_ms: {name} are {counts.min()} to {counts.max()}; allowed: 0 (skipped) to {most}"
                )
        if not np.array_equal(heads > 0, neurons > 0):
            raise ValueError(
                "latencies_ms: a layer has heads but no neurons, or neurons but no heads; 0 both to skip it"
            )
        if heads.size and not (heads > 0).any(axis=1).all():
            raise ValueError("latencies_ms: a sub-network skips all layers; keep at least one")
