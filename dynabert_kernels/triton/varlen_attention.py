"""Attention over packed sequences, forward (`varlen_attention_backward.py` holds the gradient).

    s[i, j] = q_i . k_j * scale + bias[h, j - i + R - 1];  p = softmax_j(s);  out_i = sum_j drop(p[i, j]) v_j

with i and j in one sequence, for each row's leading heads only, straight from the packed query, key and value.

One program computes up to `block_q` neighbouring rows of one group and one head, whatever sequences they belong to. It
searches `rows` for its group and `cu_seqlens` for the first and last key of each of its rows, walks over the keys from
the first to the last that any of them needs, `block_k` at a time, masks each row to its own sequence, and keeps a
running maximum and sum (online softmax). So short sequences share a tile, long ones take several steps, and the grid
follows from T, G and the head bound alone: nothing about the batch is known on the host. A table of tiles, made by a
kernel of its own, would cost each op a launch; this costs each program log2(G) + log2(B) loads, nearly all from cache,
and computes and masks the scores between sequences of one tile: for n sequences of one length in a tile, n times the
operations needed, in a range of lengths where memory is the bound.

A block never crosses a group's border (`borders.row_block`), so one head count holds for it, and all keys it meets are
of its own group: a narrower group's unwritten, perhaps NaN, keys never meet a wider group's rows. The price is at most
one more, smaller block for each group. Programs of inactive heads leave at once, after writing zeros if asked to.

Bytes, all heads: q and out once, k and v once for each row block that needs them (once from memory where a sequence
fits the cache), so 4*T*H*D elements and 4*T*H for lse. Operations: 4*D for each pair of query and key of a tile. At
D = 64 and half precision that is S/2 operations a byte: memory-bound up to about S = 512. The tiles are the largest
that spill neither with a bias nor with dropout (`tiles.py`); no speed was measured.

Where the host knows that no sequence is longer than a tile (`max_seqlen`), `short_attention.py` computes the same in
one step.

Scores, softmax and sums are float32 (float64 for float64); p is rounded to the input's dtype before it meets v. float32
products use three TF32 products each, about as accurate as float32 (the interpreter's tests lose what those lose). On a
GPU the scale is a float32. A bias is divided by the scale and added inside the product, which is why a scale of 0 is
refused with one. Dropout costs one Philox call for four scores (`attention_dropout.py`); lse is the one without
dropout.
"""

from __future__ import annotations

from torch import Tensor

from dynabert_kernels.triton.attention_arguments import Sequences, require_attention, require_like, supports_fwd
from dynabert_kernels.triton.attention_dropout import is_kept, keep_threshold, kept_bits
from dynabert_kernels.triton.attention_scores import active_heads, keys_of_rows, multiply_add, scores
from dynabert_kernels.triton.borders import num_row_blocks, row_block
from dynabert_kernels.triton.dependent_launch import begin_dependent, dependent_launch
from dynabert_kernels.triton.environment import accumulator, accumulator_dtype, jit, launch_device, tl
from dynabert_kernels.triton.short_attention import short_attention_forward
from dynabert_kernels.triton.tiles import attention_tile, short_attention_tile

__all__ = ["attention_forward", "supports_fwd", "varlen_attention_fwd"]


@jit(do_not_specialize=["num_rows", "num_sequences", "num_groups", "threshold", "stream"])
def _varlen_attention_fwd_kernel(
    qkv_ptr: tl.tensor,  # (T, Hq, 3, D)
    out_ptr: tl.tensor,  # (T, max_heads, D)
    lse_ptr: tl.tensor,  # (max_heads, T) of ACC, or None: not kept
    cu_seqlens_ptr: tl.tensor,  # (B+1,) int32
    rows_ptr: tl.tensor,  # (G+1,) int32
    counts_ptr: tl.tensor,  # (G,) int32, or None: max_heads in every group
    bias_ptr: tl.tensor,  # (max_heads or more, 2R-1), or None
    state_ptr: tl.tensor,  # (2,) int64, or None: no dropout
    num_rows: tl.tensor,
    num_sequences: tl.tensor,
    num_groups: tl.tensor,
    max_heads: tl.tensor,
    row_stride: tl.tensor,  # of qkv, in elements; features lie side by side
    head_stride: tl.tensor,
    part_stride: tl.tensor,  # from query to key and from key to value
    out_row_stride: tl.tensor,
    out_head_stride: tl.tensor,
    bias_stride: tl.tensor,
    bias_centre: tl.tensor,  # R - 1, the column of distance 0
    scale: tl.tensor,
    keep_scale: tl.tensor,  # 1 / (1 - p)
    threshold: tl.tensor,
    stream: tl.tensor,
    ACC: tl.constexpr,
    FILL: tl.constexpr,  # write zeros past a row's heads
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        begin_dependent()
    LOG2_E: tl.constexpr = 1.4426950408889634
    head = tl.program_id(1)
    group, group_begin, first_row, end_row = row_block(tl.program_id(0), rows_ptr, num_groups, num_rows, BLOCK_Q)
    rows = first_row + tl.arange(0, BLOCK_Q)
    inside = rows < end_row
    features = tl.arange(0, D)
    wide_rows = rows.to(tl.int64)
    q_ptrs = qkv_ptr + head.to(tl.int64) * head_stride + wide_rows[:, None] * row_stride + features[None, :]
    k_ptr = qkv_ptr + head.to(tl.int64) * head_stride + part_stride
    out_ptrs = out_ptr + head.to(tl.int64) * out_head_stride + wide_rows[:, None] * out_row_stride + features[None, :]
    lse_ptrs = lse_ptr
    if lse_ptr is not None:
        lse_ptrs = lse_ptr + head.to(tl.int64) * num_rows + rows

    if first_row < end_row and head < active_heads(counts_ptr, group, num_groups, max_heads):
        begin, end = keys_of_rows(cu_seqlens_ptr, num_sequences, num_rows, rows, inside)
        some = begin < end
        first_key = tl.min(tl.where(some, begin, num_rows))
        end_key = tl.max(end)
        q = tl.load(q_ptrs, mask=some[:, None], other=0.0)
        largest = tl.full([BLOCK_Q], float("-inf"), ACC)
        total = tl.zeros([BLOCK_Q], ACC)
        acc = tl.zeros([BLOCK_Q, D], ACC)
        # From 0: a lower bound that comes from a reduction would cost the loads their 16 bytes (triton 3.8).
        for step in range(0, end_key - first_key, BLOCK_K):
            start = first_key + step
            keys = start + tl.arange(0, BLOCK_K)
            kv_offsets = keys.to(tl.int64)[:, None] * row_stride + features[None, :]
            k = tl.load(k_ptr + kv_offsets, mask=(keys < end_key)[:, None], other=0.0)
            v = tl.load(k_ptr + part_stride + kv_offsets, mask=(keys < end_key)[:, None], other=0.0)
            own = (keys[None, :] >= begin[:, None]) & (keys[None, :] < end[:, None])
            distances = keys[None, :] - rows[:, None] + bias_centre
            # In units of log 2: exp2 is one instruction.
            s = scores(q, tl.trans(k), bias_ptr, head * bias_stride + distances, own, scale, LOG2_E, ACC)
            s = tl.where(own, s, float("-inf"))
            new_largest = tl.maximum(largest, tl.max(s, axis=1))
            # A row that has met no key yet: -inf - (-inf) would be NaN.
            shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
            p = tl.exp2(s - shift[:, None])
            rescale = tl.exp2(largest - shift)
            total = total * rescale + tl.sum(p, axis=1)
            if state_ptr is not None:
                first = start - begin
                low, high = kept_bits(state_ptr, rows - group_begin, first, stream + head, group, threshold, BLOCK_K)
                bits = (first & 3)[:, None] + tl.arange(0, BLOCK_K)[None, :]
                p = tl.where(is_kept(low[:, None], high[:, None], bits, BLOCK_K), p, 0.0)
            acc = multiply_add(p.to(v.dtype), v, acc * rescale[:, None], ACC)
            largest = new_largest
        # Rows in no sequence have met no key: zero, not 0 / 0.
        divisor = tl.where(total > 0.0, total, 1.0)
        factor = 1.0 / divisor
        if state_ptr is not None:
            factor *= keep_scale
        tl.store(out_ptrs, (acc * factor[:, None]).to(out_ptr.dtype.element_ty), mask=inside[:, None])
        if lse_ptr is not None:
            lse = tl.where(total > 0.0, (largest + tl.log2(divisor)) / LOG2_E, 0.0)
            tl.store(lse_ptrs, lse, mask=inside)
    elif FILL:
        tl.store(out_ptrs, tl.zeros([BLOCK_Q, D], out_ptr.dtype.element_ty), mask=inside[:, None])
        if lse_ptr is not None:
            tl.store(lse_ptrs, tl.zeros([BLOCK_Q], ACC), mask=inside)


def attention_forward(
    qkv: Tensor, sequences: Sequences, out: Tensor, lse: Tensor | None, *, fill: bool, op: str
) -> None:
    """Writes out (T, max_heads, D), any row and head stride, and lse (max_heads, T), contiguous, or None.

    `fill`: also zeros past each row's heads, which a caller that never reads them (a sub-layer) can spare.
    """
    require_attention(op, qkv, sequences)
    num_rows, size = qkv.shape[0], qkv.shape[3]
    require_like(op, qkv, qkv.dtype, (num_rows, sequences.max_heads, size), out=out)
    if num_rows == 0 or sequences.max_heads == 0:  # an empty grid is a launch error
        return
    short = short_attention_tile("forward", qkv, sequences.max_seqlen)
    if short is not None:
        short_attention_forward(qkv, sequences, out, lse, short, fill=fill)
        return
    tile, num_groups = attention_tile("forward", qkv), sequences.rows.shape[0] - 1
    bias = sequences.position_bias
    with launch_device(qkv):
        _varlen_attention_fwd_kernel[(num_row_blocks(num_rows, num_groups, tile.block_q), sequences.max_heads)](
            qkv,
            out,
            lse,
            sequences.cu_seqlens,
            sequences.rows,
            sequences.head_counts,
            bias,
            sequences.state,
            num_rows,
            sequences.cu_seqlens.shape[0] - 1,
            num_groups,
            sequences.max_heads,
            *qkv.stride()[:3],
            *out.stride()[:2],
            0 if bias is None else bias.stride(0),
            0 if bias is None else bias.shape[1] // 2,
            sequences.scale,
            1.0 / (1.0 - sequences.dropout_p),
            keep_threshold(sequences.dropout_p),
            sequences.dropout_stream << 12,
            ACC=accumulator(qkv.dtype),
            FILL=fill,
            D=size,
            BLOCK_Q=tile.block_q,
            BLOCK_K=tile.block_k,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **dependent_launch(qkv),
        )


def varlen_attention_fwd(
    qkv: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    head_counts: Tensor | None,
    position_bias: Tensor | None,
    dropout_state: Tensor | None,
    max_heads: int,
    max_seqlen: int,
    scale: float,
    dropout_p: float,
    dropout_stream: int,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """out (T, max_heads, D) in qkv's dtype, zero past a row's heads; lse (max_heads, T), or empty. No synchronising."""
    sequences = Sequences(
        *(cu_seqlens, rows, head_counts, position_bias, dropout_state),
        *(max_heads, max_seqlen, scale, dropout_p, dropout_stream),
    )
    num_rows, _, _, size = qkv.shape
    out = qkv.new_empty((num_rows, max_heads, size))
    lse = qkv.new_empty((max_heads, num_rows) if save else (0,), dtype=accumulator_dtype(qkv.dtype))
    attention_forward(qkv, sequences, out, lse if save else None, fill=True, op="varlen_attention_fwd (triton)")
    return out, lse
