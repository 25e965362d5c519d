"""Attention over packed sequences that are no longer than a tile: whole sequences, several to a tile, in one step.

The formulas are those of `varlen_attention.py` and `varlen_attention_backward.py`, which serve longer sequences and
whatever this module has no tile for. The host chooses by `max_seqlen` alone (`tiles.short_attention_tile`).

What one program computes: one head of the sequences that start in a window of `block` rows, forward in one step, and
backward dq, dk and dv together. Rows are cut into windows at every multiple of `block` and at every group's border
(`borders.row_block`). If the sequences that start in a window have at most `block` rows, its first program takes them
all; if not, the first takes all but the last, which has `block` rows at most, and the second takes the last. Two always
suffice, since only the last can reach past the window: so the device finds its sequences by two searches, no tile waits
for another, and nothing is read on the host. Scores between sequences of a tile are computed and masked.

Pairs of query and key that are multiplied for each row, and the share of the tiles' rows in use, computed (not
measured) for batches of 128 drawn from tokenised sentences: SST-2 (mean 25 tokens, longest 55), MRPC's pairs of up to
64 (mean 49), and all of MRPC's (mean 53, longest 86), which tiles of 64 cannot hold:

| scheme | SST-2 | MRPC to 64 | MRPC |
| --- | --- | --- | --- |
| within sequences, what is needed | 29 | 51 | 56 |
| this one, tiles of 64 (of 128 for MRPC) | 95, 67 % | 84, 76 % | 190, 68 % |
| running softmax (`varlen_attention.py`), 64 queries, 64 keys at a time | 129, 100 % | 142, 100 % | 149, 100 % |
| greedy packing over four windows, one search more a tile | 87, 74 % | 84, 77 % | 170, 75 % |
| one program a window of 65 rows, in a tile of 128 | 254, 50 % | 253, 51 % | |

So tiles of 128 for longer sequences would lose, and greedy packing gains too little for its chain of searches.

Forward, all heads: q, k, v and out once, so 4*T*H*D elements (the running softmax reads each key 1.4 times for SST-2,
from cache), and 4*D operations a pair. Backward: q, k, v, dout, out, dq, dk, dv once, so 8*T*H*D elements where the
running softmax moves 12*T*H*D, and 10*D operations a pair instead of 14*D. Of the programs launched 28 % (SST-2) find
no sequence and leave. Deterministic: no atomics. The gradient of a position bias stays with
`varlen_attention_backward.py`.

Tiles: 64 rows is what wgmma needs; up to D = 64 nothing spills with bias and dropout (`make codegen`). For wider heads,
and for float32, whose products take three times the registers, there is no entry. No speed was measured.
"""

from __future__ import annotations

from torch import Tensor

from dynabert_kernels.triton.attention_arguments import Sequences
from dynabert_kernels.triton.attention_dropout import is_kept, keep_threshold, kept_bits
from dynabert_kernels.triton.attention_scores import active_heads, keys_of_rows, multiply_add, probabilities, scores
from dynabert_kernels.triton.borders import last_at_most, num_row_blocks, row_block
from dynabert_kernels.triton.dependent_launch import begin_dependent, dependent_launch
from dynabert_kernels.triton.environment import accumulator, jit, launch_device, tl
from dynabert_kernels.triton.tiles import ShortTile

__all__ = ["short_attention_backward", "short_attention_forward"]


@jit
def _sequences_of_program(
    second: tl.tensor,  # 1 for a window's second program, else 0
    window_begin: tl.tensor,
    window_end: tl.tensor,  # more than window_begin
    cu_seqlens_ptr: tl.tensor,
    num_sequences: tl.tensor,
    num_rows: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """(first sequence, how many, first row, row past the last) of a program. No sequences: the rows are none."""
    first = last_at_most(cu_seqlens_ptr, num_sequences, window_begin)
    # The sequence that holds the window's first row is another window's, unless it starts there.
    first += (tl.load(cu_seqlens_ptr + first) < window_begin).to(tl.int32)
    first = tl.minimum(first, num_sequences)
    # It holds the window's last row; rows past the last sequence are held by none.
    last = last_at_most(cu_seqlens_ptr, num_sequences, window_end - 1)
    past = tl.minimum(last + 1, num_sequences)
    begin = tl.load(cu_seqlens_ptr + first)
    end = tl.load(cu_seqlens_ptr + past)
    if end - begin > BLOCK:
        middle = tl.load(cu_seqlens_ptr + last)
    else:
        middle = end
        last = past
    if second == 1:
        begin = middle
        first = last
    else:
        end = middle
        past = last
    return first, past - first, begin, tl.minimum(end, num_rows)


@jit(do_not_specialize=["num_rows", "num_sequences", "num_groups", "threshold", "stream"])
def _short_attention_fwd_kernel(
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
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        begin_dependent()
    LOG2_E: tl.constexpr = 1.4426950408889634
    window, second, head = tl.program_id(0) // 2, tl.program_id(0) % 2, tl.program_id(1)
    group, group_begin, window_begin, window_end = row_block(window, rows_ptr, num_groups, num_rows, BLOCK)
    features = tl.arange(0, D)[None, :]
    wide_head = head.to(tl.int64)
    out_ptr += wide_head * out_head_stride
    lse_head_ptr = lse_ptr
    if lse_ptr is not None:
        lse_head_ptr = lse_ptr + wide_head * num_rows

    empty_from = window_end  # rows of the window from here on are zero
    if window_begin < window_end:
        if head < active_heads(counts_ptr, group, num_groups, max_heads):
            first, count, begin_row, end_row = _sequences_of_program(
                second, window_begin, window_end, cu_seqlens_ptr, num_sequences, num_rows, BLOCK
            )
            empty_from = tl.load(cu_seqlens_ptr + num_sequences)
            if begin_row < end_row:
                rows = begin_row + tl.arange(0, BLOCK)
                inside = rows < end_row
                begin, end = keys_of_rows(cu_seqlens_ptr + first, count, num_rows, rows, inside)
                wide_rows = rows.to(tl.int64)[:, None]
                q_ptrs = qkv_ptr + wide_head * head_stride + wide_rows * row_stride + features
                q = tl.load(q_ptrs, mask=inside[:, None], other=0.0)
                k = tl.load(q_ptrs + part_stride, mask=inside[:, None], other=0.0)
                v = tl.load(q_ptrs + 2 * part_stride, mask=inside[:, None], other=0.0)
                own = (rows[None, :] >= begin[:, None]) & (rows[None, :] < end[:, None])
                distances = rows[None, :] - rows[:, None] + bias_centre
                # In units of log 2: exp2 is one instruction.
                s = scores(q, tl.trans(k), bias_ptr, head * bias_stride + distances, own, scale, LOG2_E, ACC)
                s = tl.where(own, s, float("-inf"))
                largest = tl.max(s, axis=1)
                # A row without keys, or whose bias masks them all: -inf - (-inf) would be NaN.
                shift = tl.where(largest == float("-inf"), 0.0, largest)
                p = tl.exp2(s - shift[:, None])
                total = tl.sum(p, axis=1)
                if state_ptr is not None:
                    places = begin_row - begin
                    low, high = kept_bits(state_ptr, rows - group_begin, places, stream + head, group, threshold, BLOCK)
                    bits = (places & 3)[:, None] + tl.arange(0, BLOCK)[None, :]
                    p = tl.where(is_kept(low[:, None], high[:, None], bits, BLOCK), p, 0.0)
                acc = multiply_add(p.to(v.dtype), v, tl.zeros([BLOCK, D], ACC), ACC)
                divisor = tl.where(total > 0.0, total, 1.0)
                factor = 1.0 / divisor
                if state_ptr is not None:
                    factor *= keep_scale
                out_ptrs = out_ptr + wide_rows * out_row_stride + features
                tl.store(out_ptrs, (acc * factor[:, None]).to(out_ptr.dtype.element_ty), mask=inside[:, None])
                if lse_ptr is not None:
                    lse = tl.where(total > 0.0, (shift + tl.log2(divisor)) / LOG2_E, 0.0)
                    tl.store(lse_head_ptr + rows, lse, mask=inside)
        elif FILL:
            empty_from = window_begin
    # Rows that no sequence holds, and heads past a row's.
    if (second == 0) & (empty_from < window_end):
        rows = window_begin + tl.arange(0, BLOCK)
        empty = (rows >= empty_from) & (rows < window_end)
        out_ptrs = out_ptr + rows.to(tl.int64)[:, None] * out_row_stride + features
        tl.store(out_ptrs, tl.zeros([BLOCK, D], out_ptr.dtype.element_ty), mask=empty[:, None])
        if lse_ptr is not None:
            tl.store(lse_head_ptr + rows, tl.zeros([BLOCK], ACC), mask=empty)


def short_attention_forward(
    qkv: Tensor, sequences: Sequences, out: Tensor, lse: Tensor | None, tile: ShortTile, *, fill: bool
) -> None:
    """`varlen_attention.attention_forward` where no sequence is longer than the tile. Nothing is checked here."""
    num_rows, num_groups, bias = qkv.shape[0], sequences.rows.shape[0] - 1, sequences.position_bias
    with launch_device(qkv):
        _short_attention_fwd_kernel[(2 * num_row_blocks(num_rows, num_groups, tile.block), sequences.max_heads)](
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
            D=qkv.shape[3],
            BLOCK=tile.block,
            num_warps=tile.num_warps,
            num_stages=1,
            **dependent_launch(qkv),
        )


@jit(do_not_specialize=["num_rows", "num_sequences", "num_groups", "threshold", "stream"])
def _short_attention_bwd_kernel(
    dout_ptr: tl.tensor,  # (T, max_heads, D)
    qkv_ptr: tl.tensor,  # (T, Hq, 3, D)
    out_ptr: tl.tensor,  # (T, max_heads, D)
    lse_ptr: tl.tensor,  # (max_heads, T) of ACC
    delta_ptr: tl.tensor,  # (max_heads, T) of ACC, written for the bias's gradient; or None
    dqkv_ptr: tl.tensor,  # (T, Hq, 3, D), written
    cu_seqlens_ptr: tl.tensor,  # (B+1,) int32
    rows_ptr: tl.tensor,  # (G+1,) int32
    counts_ptr: tl.tensor,  # (G,) int32, or None
    bias_ptr: tl.tensor,  # (max_heads or more, 2R-1), or None
    state_ptr: tl.tensor,  # (2,) int64, or None
    num_rows: tl.tensor,
    num_sequences: tl.tensor,
    num_groups: tl.tensor,
    max_heads: tl.tensor,
    dout_row_stride: tl.tensor,
    dout_head_stride: tl.tensor,
    row_stride: tl.tensor,
    head_stride: tl.tensor,
    part_stride: tl.tensor,
    out_row_stride: tl.tensor,
    out_head_stride: tl.tensor,
    dqkv_row_stride: tl.tensor,
    dqkv_head_stride: tl.tensor,
    dqkv_part_stride: tl.tensor,
    bias_stride: tl.tensor,
    bias_centre: tl.tensor,
    scale: tl.tensor,
    keep_scale: tl.tensor,
    threshold: tl.tensor,
    stream: tl.tensor,
    ACC: tl.constexpr,
    FILL: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    window, second, head = tl.program_id(0) // 2, tl.program_id(0) % 2, tl.program_id(1)
    group, group_begin, window_begin, window_end = row_block(window, rows_ptr, num_groups, num_rows, BLOCK)
    features = tl.arange(0, D)[None, :]
    wide_head = head.to(tl.int64)
    dqkv_ptr += wide_head * dqkv_head_stride

    empty_from = window_end
    if window_begin < window_end:
        if head < active_heads(counts_ptr, group, num_groups, max_heads):
            first, count, begin_row, end_row = _sequences_of_program(
                second, window_begin, window_end, cu_seqlens_ptr, num_sequences, num_rows, BLOCK
            )
            empty_from = tl.load(cu_seqlens_ptr + num_sequences)
            if begin_row < end_row:
                rows = begin_row + tl.arange(0, BLOCK)
                inside = rows < end_row
                begin, end = keys_of_rows(cu_seqlens_ptr + first, count, num_rows, rows, inside)
                wide_rows = rows.to(tl.int64)[:, None]
                q_ptrs = qkv_ptr + wide_head * head_stride + wide_rows * row_stride + features
                q = tl.load(q_ptrs, mask=inside[:, None], other=0.0)
                k = tl.load(q_ptrs + part_stride, mask=inside[:, None], other=0.0)
                dout_ptrs = dout_ptr + wide_head * dout_head_stride + wide_rows * dout_row_stride + features
                dout = tl.load(dout_ptrs, mask=inside[:, None], other=0.0)
                out_ptrs = out_ptr + wide_head * out_head_stride + wide_rows * out_row_stride + features
                out = tl.load(out_ptrs, mask=inside[:, None], other=0.0)
                delta = tl.sum(dout.to(ACC) * out.to(ACC), axis=1)
                if delta_ptr is not None:
                    tl.store(delta_ptr + wide_head * num_rows + rows, delta, mask=inside)
                lse = tl.load(lse_ptr + wide_head * num_rows + rows, mask=inside, other=0.0)
                own = (rows[None, :] >= begin[:, None]) & (rows[None, :] < end[:, None])
                distances = rows[None, :] - rows[:, None] + bias_centre
                s = scores(q, tl.trans(k), bias_ptr, head * bias_stride + distances, own, scale, 1.0, ACC)
                p = probabilities(s, lse[:, None], own)
                v = tl.load(q_ptrs + 2 * part_stride, mask=inside[:, None], other=0.0)
                dp = multiply_add(dout, tl.trans(v), tl.zeros([BLOCK, BLOCK], ACC), ACC)
                dropped = p
                if state_ptr is not None:
                    places = begin_row - begin
                    low, high = kept_bits(state_ptr, rows - group_begin, places, stream + head, group, threshold, BLOCK)
                    bits = (places & 3)[:, None] + tl.arange(0, BLOCK)[None, :]
                    keep = is_kept(low[:, None], high[:, None], bits, BLOCK)
                    dp = tl.where(keep, dp * keep_scale, 0.0)
                    dropped = tl.where(keep, p * keep_scale, 0.0)
                dq_ptrs = dqkv_ptr + wide_rows * dqkv_row_stride + features
                dv = multiply_add(tl.trans(dropped.to(dout.dtype)), dout, tl.zeros([BLOCK, D], ACC), ACC)
                tl.store(dq_ptrs + 2 * dqkv_part_stride, dv.to(dqkv_ptr.dtype.element_ty), mask=inside[:, None])
                ds = (p * (dp - delta[:, None])).to(q.dtype)
                dk = multiply_add(tl.trans(ds), q, tl.zeros([BLOCK, D], ACC), ACC)
                tl.store(dq_ptrs + dqkv_part_stride, (dk * scale).to(dqkv_ptr.dtype.element_ty), mask=inside[:, None])
                dq = multiply_add(ds, k, tl.zeros([BLOCK, D], ACC), ACC)
                tl.store(dq_ptrs, (dq * scale).to(dqkv_ptr.dtype.element_ty), mask=inside[:, None])
        elif FILL:
            empty_from = window_begin
    if (second == 0) & (empty_from < window_end):
        rows = window_begin + tl.arange(0, BLOCK)
        empty = ((rows >= empty_from) & (rows < window_end))[:, None]
        dq_ptrs = dqkv_ptr + rows.to(tl.int64)[:, None] * dqkv_row_stride + features
        nothing = tl.zeros([BLOCK, D], dqkv_ptr.dtype.element_ty)
        tl.store(dq_ptrs, nothing, mask=empty)
        tl.store(dq_ptrs + dqkv_part_stride, nothing, mask=empty)
        tl.store(dq_ptrs + 2 * dqkv_part_stride, nothing, mask=empty)


def short_attention_backward(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    delta: Tensor | None,
    sequences: Sequences,
    dqkv: Tensor,
    tile: ShortTile,
    *,
    fill: bool,
) -> None:
    """Writes dqkv, and delta where the bias's gradient needs it. Nothing is checked here."""
    num_rows, num_groups, bias = qkv.shape[0], sequences.rows.shape[0] - 1, sequences.position_bias
    heads = qkv.shape[1] if fill else sequences.max_heads
    with launch_device(qkv):
        _short_attention_bwd_kernel[(2 * num_row_blocks(num_rows, num_groups, tile.block), heads)](
            *(dout, qkv, out, lse, delta, dqkv, sequences.cu_seqlens, sequences.rows, sequences.head_counts, bias),
            *(sequences.state, num_rows, sequences.cu_seqlens.shape[0] - 1, num_groups, sequences.max_heads),
            *(*dout.stride()[:2], *qkv.stride()[:3], *out.stride()[:2], *dqkv.stride()[:3]),
            0 if bias is None else bias.stride(0),
            0 if bias is None else bias.shape[1] // 2,
            sequences.scale,
            1.0 / (1.0 - sequences.dropout_p),
            keep_threshold(sequences.dropout_p),
            sequences.dropout_stream << 12,
            ACC=accumulator(qkv.dtype),
            FILL=fill,
            D=qkv.shape[3],
            BLOCK=tile.block,
            num_warps=tile.num_warps,
            num_stages=1,
        )
