"""What every launcher asks of its tensors before pointers leave Python: a wrong shape would read foreign memory."""

from __future__ import annotations

import torch
from torch import Tensor


def _describe(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}, strides {tuple(tensor.stride())}, {tensor.dtype} on {tensor.device}"


def side_by_side(tensor: Tensor) -> bool:
    """Whether entries along the last dimension are neighbours in memory. A dimension of size 1 may carry any stride, as
    may an empty tensor."""
    return tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 or tensor.numel() == 0


def why_not_side_by_side(*tensors: Tensor) -> str | None:
    """The reason why a kernel that reads neighbours cannot take one of these tensors; None where it takes all."""
    for tensor in tensors:
        if not side_by_side(tensor):
            return f"a tensor has strides {tuple(tensor.stride())}; its last stride must be 1 (call .contiguous())"
    return None


def _require_alike(op: str, name: str, tensor: Tensor, like: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype or tensor.device != like.device:
        raise ValueError(
            f"{op}: {name} does not fit; got {_describe(tensor)}; allowed: {dtype} on {like.device}; convert it"
        )


def require_rows(op: str, **tensors: Tensor | None) -> None:
    """All are (T, C) of one shape, dtype and device, any row stride, columns side by side; the first sets the rest."""
    like = next(tensor for tensor in tensors.values() if tensor is not None)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dim() != 2 or tensor.shape != like.shape:
            allowed = "(T, C)" if tensor is like else f"{tuple(like.shape)}"
            raise ValueError(
                f"{op}: {name} has the wrong shape; got {tuple(tensor.shape)}; allowed: {allowed}; reshape it"
            )
        _require_alike(op, name, tensor, like, like.dtype)
        if not side_by_side(tensor):
            raise ValueError(
                f"{op}: the columns of {name} do not lie side by side; got strides {tuple(tensor.stride())}; "
                "allowed: any row stride with a column stride of 1; call .contiguous()"
            )


def require_tables(op: str, **tables: Tensor | None) -> None:
    """All are (rows, C) with any number of rows, of one C, dtype and device, columns side by side; the first says."""
    like = next(table for table in tables.values() if table is not None)
    for name, table in tables.items():
        if table is None:
            continue
        if table.dim() != 2 or (like.dim() == 2 and table.shape[1] != like.shape[1]):
            allowed = "(rows, C)" if table is like else f"(rows, {like.shape[1]})"
            raise ValueError(
                f"{op}: {name} has the wrong shape; got {tuple(table.shape)}; allowed: {allowed}; reshape it"
            )
        _require_alike(op, name, table, like, like.dtype)
        if not side_by_side(table):
            raise ValueError(
                f"{op}: the columns of {name} do not lie side by side; got strides {tuple(table.stride())}; "
                "allowed: any row stride with a column stride of 1; call .contiguous()"
            )


def require_vectors(
    op: str, like: Tensor, length: int, length_name: str, dtype: torch.dtype | None = None, **tensors: Tensor
) -> None:
    """All are contiguous vectors of one length, on `like`'s device and of its dtype (or of `dtype`)."""
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != (length,):
            raise ValueError(
                f"{op}: {name} has the wrong shape; got {tuple(tensor.shape)}; "
                f"allowed: ({length},), that is {length_name}; slice or reshape it"
            )
        _require_alike(op, name, tensor, like, like.dtype if dtype is None else dtype)
        if not side_by_side(tensor):
            raise ValueError(
                f"{op}: {name} is not contiguous; got strides {tuple(tensor.stride())}; "
                "allowed: a stride of 1; call .contiguous()"
            )


def require_columns(op: str, rows: Tensor, most: int) -> None:
    """C is at least 1 (the mean of nothing is undefined) and at most what a program can hold."""
    if not 1 <= rows.shape[1] <= most:
        raise ValueError(f"{op}: C is out of range; got {rows.shape[1]}; allowed: 1 to {most}; use another provider")
