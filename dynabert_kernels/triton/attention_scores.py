"""Device functions that attention's kernels share: a row's keys, a group's heads, a tile of scores."""

from __future__ import annotations

from dynabert_kernels.triton.borders import last_at_most
from dynabert_kernels.triton.environment import jit, tl

__all__ = ["active_heads", "keys_of_rows", "multiply_add", "probabilities", "scores"]


@jit
def multiply_add(a: tl.tensor, b: tl.tensor, c: tl.tensor, ACC: tl.constexpr) -> tl.tensor:
    """``a @ b + c`` in ACC; float32 operands keep float32 accuracy."""
    return tl.dot(a, b, c, input_precision="tf32x3", out_dtype=ACC)


@jit
def scores(
    a: tl.tensor,  # queries, or keys
    b: tl.tensor,  # keys, or queries, turned
    bias_ptr: tl.tensor,  # or None
    bias_offsets: tl.tensor,
    own: tl.tensor,
    scale: tl.tensor,
    unit: tl.tensor,
    ACC: tl.constexpr,
) -> tl.tensor:
    """A tile of scores times `unit`. Anything where not `own`."""
    prior = tl.zeros(own.shape, ACC)
    if bias_ptr is not None:
        # The product adds it: added afterwards, it would have the softmax computed in two layouts (triton 3.8).
        prior = tl.load(bias_ptr + bias_offsets, mask=own, other=0.0).to(ACC) * (1.0 / scale)
    return multiply_add(a, b, prior, ACC) * (scale * unit)


@jit
def probabilities(s: tl.tensor, lse: tl.tensor, own: tl.tensor) -> tl.tensor:
    """exp(s - lse) where `own`, else 0. The difference is small where it counts, so it is formed before log 2 e."""
    return tl.where(own, tl.exp2((s - lse) * 1.4426950408889634), 0.0)


@jit
def active_heads(counts_ptr: tl.tensor, group: tl.tensor, num_groups: tl.tensor, max_heads: tl.tensor) -> tl.tensor:
    """Active heads of a group; none past the last one."""
    count = tl.full([], max_heads, tl.int32)
    if counts_ptr is not None:
        count = tl.minimum(count, tl.load(counts_ptr + group, mask=group < num_groups, other=0))
    return tl.where(group < num_groups, count, 0)


@jit
def keys_of_rows(
    cu_seqlens_ptr: tl.tensor, num_sequences: tl.tensor, num_rows: tl.tensor, rows: tl.tensor, inside: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """First key and end of keys of each row: its sequence. Both 0 for rows that are not inside, or in no sequence."""
    sequence = last_at_most(cu_seqlens_ptr, num_sequences, rows)
    inside = inside & (sequence < num_sequences)
    begin = tl.load(cu_seqlens_ptr + sequence, mask=inside, other=0)
    end = tl.load(cu_seqlens_ptr + sequence + 1, mask=inside, other=0)
    return begin, tl.minimum(end, num_rows)  # borders past T reach no foreign memory
