"""What a CUDA graph would do with a function, on any device, so that a machine without a GPU can test it.

A captured graph repeats the calls it saw: at the addresses of then, with the numbers of then, and without Python. So
does `FrozenReplay`: it runs a function once and keeps every op with its arguments; `replay` calls the ops again on the
same tensors and puts what they give where their results lay. What the function learned from its input's values on the
host, or from an object made anew at each call, is thus frozen, and a test that fills the inputs with another batch and
replays sees it. What it does not tell: whether a stream may capture the kernels, and their order on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Ops whose result, or its size, the host has to wait for.
HOST_READS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
# Ops that bring numbers of the host: at each call others, but frozen in a graph.
HOST_WRITES = ("lift_fresh",)
_EMPTY = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


class NoHostReads(TorchDispatchMode):
    """Inside it an op that reads a tensor's values on the host, which a GPU's queue would have to run dry for, raises
    ``RuntimeError``. Works on any device; what an op does inside itself is not seen."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in HOST_READS:
            raise RuntimeError(f"{name} reads a tensor's values on the host; neither a graph nor a full queue may")
        return func(*args, **(kwargs or {}))


class _Recorder(NoHostReads):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in HOST_WRITES:
            raise RuntimeError(f"{name} makes a tensor of numbers on the host; a captured graph would freeze them")
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append((func, args, kwargs or {}, result))
        return result


class FrozenReplay:
    """One run of ``function``, to be repeated by `replay`.

    ``output`` is what the function returned; `replay` writes the next result into it. Floating-point memory that the
    function asked for empty is filled with NaN before each replay, so that nothing of an earlier one can be read.

    Raises ``RuntimeError`` for an op that reads a tensor's values on the host, or makes a tensor of the host's numbers.
    """

    def __init__(self, function: Callable[[], Tensor]) -> None:
        recorder = _Recorder()
        with recorder:
            self.output = function()
        self._calls = recorder.calls

    def replay(self) -> None:
        """Calls every op again."""
        for func, args, kwargs, result in self._calls:
            name = func._schema.name.partition("::")[2]
            if name in _EMPTY:
                for tensor in _tensors(result):
                    if tensor.is_floating_point():
                        tensor.fill_(torch.nan)
                continue
            aliases = [out.alias_info for out in func._schema.returns]
            if any(alias is not None and not alias.is_write for alias in aliases):
                continue  # a view shows what its base holds
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    @property
    def ops(self) -> list[str]:
        """The names of the ops, in order."""
        return [func._schema.name for func, *_ in self._calls]


class FrozenCapture:
    """Makes a `FrozenReplay` of a function and keeps it in ``made``: what stands for a GPU's capture in a test."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.made: list[FrozenReplay] = []

    def __call__(self, function: Callable[[], Tensor]) -> FrozenReplay:
        self.made.append(FrozenReplay(function))
        return self.made[-1]

    def run(self, function: Callable[[], Tensor]) -> Tensor:
        """Calls it: there is one stream."""
        return function()

    def alone(self) -> AbstractContextManager[None]:
        """Always: nothing goes on beside it."""
        return nullcontext()
