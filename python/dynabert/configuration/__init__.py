"""What a network is (:class:`ElasticBertConfig`) and which part of it to run (:class:`SubnetConfig`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynabert.configuration.subnet import (
    DEPTH_RULES,
    RoundedDepthWarning,
    Subnet,
    SubnetConfig,
    kept_layers,
    subnet_shape,
)

if TYPE_CHECKING:
    from dynabert.configuration.cascade import Cascade
    from dynabert.configuration.elastic import ElasticBertConfig

__all__ = [
    "DEPTH_RULES",
    "Cascade",
    "ElasticBertConfig",
    "RoundedDepthWarning",
    "Subnet",
    "SubnetConfig",
    "kept_layers",
    "subnet_shape",
]


def __getattr__(name: str) -> Any:
    # ElasticBertConfig imports transformers (seconds); naming a sub-network must not.
    if name == "ElasticBertConfig":
        from dynabert.configuration.elastic import ElasticBertConfig

        return ElasticBertConfig
    if name == "Cascade":  # which needs the names of sub-networks, and they this module
        from dynabert.configuration.cascade import Cascade

        return Cascade
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
