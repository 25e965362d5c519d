"""Checks that every op makes on its arguments before any provider sees them. They read no device memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dynabert_kernels.layout import LayerPlan

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ACTIVATIONS = {"none": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


def shape(op: str, name: str, tensor: Tensor, expected: tuple[int | None, ...], letters: str) -> None:
    """``tensor`` has the ``expected`` shape; None stands for any size."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor {letters}; got {type(tensor).__name__}")
    fits = tensor.dim() == len(expected) and all(
        want is None or have == want for have, want in zip(tensor.shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; allowed: {letters} = ({wanted})")


def same(op: str, first: tuple[str, Tensor], others: Mapping[str, Tensor | None]) -> None:
    """All tensors are on one device and of the first one's dtype, a floating one."""
    name, tensor = first
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} is {tensor.dtype}; allowed: float32, bfloat16, float16, float64")
    for other, value in others.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {other} must be a tensor or None; got {type(value).__name__}")
        if value.dtype != tensor.dtype:
            raise TypeError(
                f"{op}: {other} is {value.dtype}, {name} is {tensor.dtype}; allowed: one dtype; convert one of them"
            )
        if value.device != tensor.device:
            raise ValueError(
                f"{op}: {other} is on {value.device}, {name} is on {tensor.device}; put both on one device"
            )


def layer_plan(op: str, layer: LayerPlan) -> None:
    """``layer`` is the plan of one layer."""
    if not isinstance(layer, LayerPlan):
        raise TypeError(f"{op}: layer is a {type(layer).__name__}; allowed: a LayerPlan; give plan.layer(index)")


def dtype(op: str, name: str, tensor: Tensor | None, allowed: torch.dtype) -> None:
    """``tensor`` has the ``allowed`` dtype. For what the native library checks otherwise."""
    if tensor is not None and tensor.dtype != allowed:
        raise TypeError(f"{op}: {name} is {tensor.dtype}; allowed: {allowed}")


def layer_dtypes(
    op: str, first: tuple[str, Tensor], names: Sequence[str], tensors: Sequence[Tensor], allowed: list[torch.dtype]
) -> None:
    """All layers' ``tensors``, one layer behind the other, have the dtypes ``allowed``, those beside the first one's.

    One comparison of two lists, since every call for a short text waits for it; names only where they differ.
    """
    found = [tensor.dtype for tensor in tensors]
    wanted = allowed * (len(found) // len(allowed))
    if found == wanted:
        return
    layer, field, have, want = next(
        (i // len(allowed), names[i % len(allowed)], have, want)
        for i, (have, want) in enumerate(zip(found, wanted, strict=True))
        if have != want
    )
    name, beside = first[0], first[1].dtype
    raise TypeError(
        f"{op}: {field} of layer {layer} is {have}, {name} is {beside}; allowed: {want}; convert one of them"
    )


def indices(op: str, name: str, tensor: Tensor | None, device: torch.device, dtype: torch.dtype) -> None:
    """A one-dimensional integer tensor on ``device``, contiguous."""
    if not isinstance(tensor, Tensor) or tensor.dim() != 1:
        got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{op}: {name} must be a tensor of one dimension; got {got}")
    if tensor.dtype != dtype:
        raise TypeError(f"{op}: {name} is {tensor.dtype}; allowed: {dtype}")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, the data on {device}; put both on one device")
    if tensor.stride(0) != 1 and tensor.numel() > 1:
        raise ValueError(f"{op}: {name} has stride {tensor.stride(0)}; allowed: 1; pass it contiguous")


def dropout(op: str, name: str, probability: float, state: Tensor | None, device: torch.device) -> None:
    """A probability in [0, 1), and a state where it is not 0."""
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"{op}: {name} is {probability}; allowed: 0 up to but not including 1")
    if probability > 0.0 and state is None:
        raise ValueError(
            f"{op}: {name} is {probability} but dropout_state is None; "
            "give an int64 tensor [seed, offset], or set the probability to 0"
        )
    if state is not None and probability > 0.0:
        indices(op, "dropout_state", state, device, torch.int64)
        if state.shape[0] != 2:
            raise ValueError(f"{op}: dropout_state has {state.shape[0]} numbers; allowed: 2, [seed, offset]")


LAST_STREAM = 2**20 - 1


def stream(op: str, first: int, count: int = 1) -> None:
    """A dropout stream, or the first of ``count``: a number of 20 bits, which stands above a head's in a counter."""
    last = LAST_STREAM + 1 - count
    if not isinstance(first, torch.SymInt) and not 0 <= first <= last:
        raise ValueError(f"{op}: dropout_stream is {first}; allowed: 0 to {last}")


def activation_code(op: str, activation: str) -> int:
    """The number that kernels know an activation by."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def whole_batch(tokens: int, device: torch.device) -> Tensor:
    """Borders of one group that owns all rows. Made on the device: a copy from the host would wait for a GPU's queue,
    and no graph could capture it."""
    return torch.arange(2, dtype=torch.int32, device=device) * tokens
