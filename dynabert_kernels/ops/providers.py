"""Who computes an op: the registry of providers, the stated rule that picks one, and the switch that forces one.

A provider is a set of functions with exactly the registered op's signature:

* ``reference``: plain PyTorch, the definition. Any device, any size.
* ``cpu``: C++ with SIMD, in the native library ``_C``.
* ``triton``: Triton kernels, on a GPU (or on a CPU under Triton's interpreter, when forced).
* ``cuda``: CUDA C++, in the native library ``_C``.

The rule: for a tensor's device, the first provider of ``RULE[device]`` that is there for this op and takes the
arguments. When a faster provider is there but refuses the arguments, a ``SlowerProviderWarning`` says so, once for each
op and reason. A forced provider never falls back: what it cannot take is a ``ValueError`` with its reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

RULE: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu", "reference"),
    "cuda": ("cuda", "triton", "reference"),
}
NAMES = ("reference", "cpu", "triton", "cuda")


class SlowerProviderWarning(UserWarning):
    """A slower provider computes an op, because the faster one cannot take these arguments or was not built."""


class Provider(NamedTuple):
    """One provider's function for one op. ``supports(*args)`` returns None, or why it cannot take the arguments."""

    name: str
    function: Callable[..., Any]
    supports: Callable[..., str | None] | None


_registry: dict[str, dict[str, Provider]] = {}
_unavailable: dict[str, str] = {}
_forced: ContextVar[str | None] = ContextVar("dynabert_provider", default=None)
_warned: set[tuple[str, str, str]] = set()


def register(
    op: str, name: str, function: Callable[..., Any], supports: Callable[..., str | None] | None = None
) -> None:
    """Makes ``function`` the provider ``name`` of ``op`` (for example ``"add_layer_norm_fwd"``)."""
    if name not in NAMES:
        raise ValueError(f"register: provider is {name!r}; allowed: {', '.join(NAMES)}")
    _registry.setdefault(op, {})[name] = Provider(name, function, supports)


def mark_unavailable(name: str, reason: str) -> None:
    """Records why a whole provider is missing, for ``show_config()`` and for error messages."""
    _unavailable[name] = reason


def unavailable() -> dict[str, str]:
    """Missing providers and the reason of each."""
    return dict(_unavailable)


def registered() -> dict[str, tuple[str, ...]]:
    """For each op, the providers that have it, in the order of ``NAMES``."""
    return {op: tuple(name for name in NAMES if name in table) for op, table in sorted(_registry.items())}


def has(op: str, name: str) -> bool:
    """Whether the provider ``name`` has ``op``."""
    return name in _registry[op]


def forced_provider() -> str | None:
    """The provider forced by :func:`use_provider` in this context, or None.

    None too while ``torch.compile`` traces: who computes an op is no part of a graph, and is asked when it runs.
    """
    if torch.compiler.is_compiling():  # it cannot trace the read of a context variable
        return None
    return _forced.get()


@contextmanager
def use_provider(name: str) -> Iterator[None]:
    """Forces one provider inside the ``with`` block, in this thread or task only. For tests and benchmarks.

    Raises ``ValueError`` on an unknown name. An op that the provider lacks or whose arguments it cannot take raises
    ``ValueError`` when it is called.
    """
    if name not in NAMES:
        raise ValueError(f"use_provider: {name!r} is not a provider; allowed: {', '.join(NAMES)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(op: str, args: tuple[Any, ...]) -> Provider:
    """The provider that computes ``op`` on ``args``, by the rule or as forced."""
    table = _registry[op]
    forced = _forced.get()
    if forced is not None:
        return _forced_choice(op, forced, table, args)
    device = next(argument.device.type for argument in args if isinstance(argument, Tensor))
    if device not in RULE:
        raise ValueError(f"{op}: tensors are on {device!r}; allowed: {', '.join(RULE)}; move them to one of these")
    for name in RULE[device]:
        provider = table.get(name)
        if provider is None:
            if name in _unavailable:
                _warn_once(op, name, _unavailable[name])
            continue
        reason = provider.supports(*args) if provider.supports is not None else None
        if reason is None:
            return provider
        _warn_once(op, name, reason)
    raise ValueError(f"{op}: no provider takes these arguments on {device!r}; see show_config()")


def _forced_choice(op: str, name: str, table: dict[str, Provider], args: tuple[Any, ...]) -> Provider:
    provider = table.get(name)
    if provider is None:
        reason = _unavailable.get(name, "it does not have this op")
        raise ValueError(f"{op}: provider {name!r} was forced, but {reason}; this op has: {', '.join(table)}")
    refusal = provider.supports(*args) if provider.supports is not None else None
    if refusal is not None:
        raise ValueError(f"{op}: provider {name!r} was forced, but {refusal}")
    return provider


def _warn_once(op: str, name: str, reason: str) -> None:
    # A missing provider is said once in all, a refused argument once for each op.
    key = ("", name, reason) if _unavailable.get(name) == reason else (op, name, reason)
    if key in _warned:
        return
    _warned.add(key)
    what = "its ops" if key[0] == "" else op
    warnings.warn(
        f"provider {name!r} does not compute {what}: {reason}; a slower provider does", SlowerProviderWarning, 2
    )
