"""What attention takes and what it refuses, asked on the host before pointers leave Python. Reads no device memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynabert_kernels.triton.checks import side_by_side, why_not_side_by_side
from dynabert_kernels.triton.environment import why_unavailable
from dynabert_kernels.triton.tiles import ATTENTION_HEAD_SIZES

__all__ = ["Sequences", "require_attention", "require_like", "supports_bwd", "supports_fwd", "why_not_attention"]

_SIZES = ", ".join(map(str, ATTENTION_HEAD_SIZES))
_NO_ZERO_SCALE = "scale is 0 with a position bias; the bias is divided by it; use another provider"


class Sequences(NamedTuple):
    """What attention knows of a batch: device tables that no launcher reads, and numbers."""

    cu_seqlens: Tensor  # (B+1,) int32
    rows: Tensor  # (G+1,) int32
    head_counts: Tensor | None  # (G,) int32; None: max_heads in every group
    position_bias: Tensor | None  # (at least max_heads, 2R-1)
    dropout_state: Tensor | None  # (2,) int64; None: nothing is dropped
    max_heads: int
    max_seqlen: int
    scale: float
    dropout_p: float
    dropout_stream: int

    @property
    def state(self) -> Tensor | None:
        """The dropout state where something is dropped."""
        return self.dropout_state if self.dropout_p > 0.0 else None


def why_not_attention(size: int, position_bias: Tensor | None, scale: float) -> str | None:
    """Why the kernels refuse this head size, or this scale beside a bias; None where they take both."""
    if size not in ATTENTION_HEAD_SIZES:
        return f"the head size is {size}; allowed: {_SIZES}"
    return _NO_ZERO_SCALE if position_bias is not None and scale == 0.0 else None


def supports_fwd(
    qkv: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    head_counts: Tensor | None,
    position_bias: Tensor | None,
    dropout_state: Tensor | None,
    max_heads: int,
    max_seqlen: int,
    scale: float,
    *_: object,
) -> str | None:
    """Why this provider refuses these arguments; None where it takes them."""
    reason = why_unavailable(qkv) or why_not_attention(qkv.shape[-1], position_bias, scale)
    if reason is not None:
        return reason
    tensors = (qkv, cu_seqlens, rows, head_counts, position_bias, dropout_state)
    return why_not_side_by_side(*(tensor for tensor in tensors if tensor is not None))


def supports_bwd(dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, *arguments: Any) -> str | None:
    """Why this provider refuses these arguments; None where it takes them."""
    return supports_fwd(qkv, *arguments) or why_not_side_by_side(dout, out, lse)


def require_attention(op: str, qkv: Tensor, sequences: Sequences) -> None:
    """What both launchers ask before pointers leave Python. Reads no device memory."""
    if qkv.dim() != 4 or qkv.shape[2] != 3 or qkv.shape[3] not in ATTENTION_HEAD_SIZES:
        raise ValueError(
            f"{op}: qkv has the wrong shape; got {tuple(qkv.shape)}; allowed: (T, H, 3, D) with "
            f"D one of {_SIZES}; use another provider for other sizes"
        )
    if not side_by_side(qkv):
        raise ValueError(
            f"{op}: the features of a head do not lie side by side; got qkv with strides {tuple(qkv.stride())}; "
            "allowed: any strides with a last stride of 1; call .contiguous()"
        )
    if not 0 <= sequences.max_heads <= qkv.shape[1]:
        raise ValueError(
            f"{op}: max_heads is out of range; got {sequences.max_heads}; allowed: 0 to qkv's {qkv.shape[1]} heads"
        )
    tables: dict[str, tuple[Tensor, int | None]] = {
        "cu_seqlens": (sequences.cu_seqlens, None),
        "rows": (sequences.rows, None),
    }
    if sequences.head_counts is not None:
        tables["head_counts"] = (sequences.head_counts, sequences.rows.shape[0] - 1)
    for name, (table, entries) in tables.items():
        _require_table(op, name, table, torch.int32, qkv.device, entries)
    if sequences.state is not None:
        _require_table(op, "dropout_state", sequences.state, torch.int64, qkv.device, 2)
    bias = sequences.position_bias
    if bias is None:
        return
    if sequences.scale == 0.0:
        raise ValueError(f"{op}: {_NO_ZERO_SCALE}")
    if bias.dim() != 2 or bias.shape[0] < sequences.max_heads or bias.shape[1] < max(2 * sequences.max_seqlen - 1, 1):
        raise ValueError(
            f"{op}: position_bias has the wrong shape; got {tuple(bias.shape)}; allowed: (at least "
            f"{sequences.max_heads}, 2R-1) with R at least max_seqlen, here {sequences.max_seqlen}"
        )
    if bias.shape[1] % 2 == 0 or bias.dtype != qkv.dtype or bias.device != qkv.device or not side_by_side(bias):
        raise ValueError(
            f"{op}: position_bias does not fit; got {bias.shape[1]} distances, strides {tuple(bias.stride())}, "
            f"{bias.dtype} on {bias.device}; allowed: an odd number, a last stride of 1, {qkv.dtype} on {qkv.device}"
        )


def _require_table(
    op: str, name: str, table: Tensor, dtype: torch.dtype, device: torch.device, entries: int | None
) -> None:
    fits = table.dim() == 1 and (table.shape[0] == entries if entries is not None else table.shape[0] >= 1)
    if not fits or table.dtype != dtype or table.device != device or not side_by_side(table):
        raise ValueError(
            f"{op}: {name} does not fit; got shape {tuple(table.shape)}, stride {tuple(table.stride())}, {table.dtype} "
            f"on {table.device}; allowed: {'at least 1' if entries is None else entries} contiguous entries, {dtype} "
            f"on {device}"
        )


def require_like(op: str, qkv: Tensor, dtype: torch.dtype, shape: tuple[int, ...], **tensors: Tensor) -> None:
    """All are of one shape and dtype, on qkv's device, their last stride 1."""
    for name, tensor in tensors.items():
        fits = tuple(tensor.shape) == shape and tensor.dtype == dtype and tensor.device == qkv.device
        if not fits or (tensor.numel() > 0 and not side_by_side(tensor)):
            raise ValueError(
                f"{op}: {name} does not fit; got shape {tuple(tensor.shape)}, strides {tuple(tensor.stride())}, "
                f"{tensor.dtype} on {tensor.device}; allowed: {shape} with a last stride of 1, {dtype} on {qkv.device}"
            )
