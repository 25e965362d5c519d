"""What transformers' ways of opening a model pass along, and what each means here: taken, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from dynabert.configuration.elastic import ElasticBertConfig

# transformers' Auto classes pass these along; they decide nothing here.
_DECIDE_NOTHING = ("_from_auto", "_from_pipeline", "adapter_kwargs", "trust_remote_code", "code_revision")
_ONE_DEVICE = ("auto", "balanced", "balanced_low_0", "sequential")


def take_options(
    kwargs: dict[str, Any],
    config: PreTrainedConfig | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
) -> tuple[torch.dtype | str | None, torch.device | str | None]:
    """dtype and device after transformers' own names for them, which are taken out of ``kwargs``.

    Raises ``ValueError`` for an attention implementation, or a map of several devices; ``TypeError`` for two names of
    one thing that differ.
    """
    for name in _DECIDE_NOTHING:
        kwargs.pop(name, None)
    kwargs.pop("low_cpu_mem_usage", None)  # holds always: no weight is drawn before it is read
    # An Auto class puts it into the elastic configuration that it hands on.
    asked = getattr(config, "_attn_implementation", None) if isinstance(config, ElasticBertConfig) else None
    check_attention("from_pretrained", kwargs.pop("attn_implementation", None) or asked)
    if (old := kwargs.pop("torch_dtype", None)) is not None:
        if dtype not in (torch.float32, old):
            raise TypeError(f"from_pretrained: dtype is {dtype} and torch_dtype, its old name, {old}; give dtype alone")
        dtype = old
    if (device_map := kwargs.pop("device_map", None)) is not None:
        if device is not None:
            raise TypeError(f"from_pretrained: device is {device} and device_map {device_map!r}; give one of them")
        device = _only_device(device_map)
    return dtype, device


def check_attention(what: str, asked: Any) -> None:
    """Raises ``ValueError`` for any attention implementation of transformers' but the default."""
    if asked not in (None, "eager"):
        raise ValueError(
            f"{what}: attn_implementation is {asked!r}; allowed: None or 'eager'; attention is computed by this "
            "package's own kernels: leave it out (dynabert_kernels.use_provider chooses among those)"
        )


def _only_device(device_map: Any) -> torch.device | str:
    if isinstance(device_map, Mapping):
        places = {str(place) for place in device_map.values()}
        if len(places) != 1:
            raise ValueError(
                f"from_pretrained: device_map names {', '.join(sorted(places)) or 'no device'}; allowed: one device "
                "for all of the network; use device='cuda:0'"
            )
        (device_map,) = places
    if isinstance(device_map, torch.device):
        return device_map
    if isinstance(device_map, int) or (isinstance(device_map, str) and device_map.isdigit()):
        kind = torch.accelerator.current_accelerator()
        return f"{'cuda' if kind is None else kind.type}:{device_map}"
    if device_map in _ONE_DEVICE:
        return torch.accelerator.current_accelerator() or "cpu"
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"from_pretrained: device_map is {device_map!r}; allowed: 'auto', one device, or {{'': device}}"
        ) from error
