"""Attention over packed sequences, backward. Notation and tiles as in `varlen_attention.py`.

    p[i, j] = exp(s[i, j] - lse_i);  delta_i = sum_d dout_i out_i;  dp[i, j] = drop(dout_i . v_j)
    ds = p * (dp - delta_i);  dq_i = scale sum_j ds[i, j] k_j;  dk_j = scale sum_i ds[i, j] q_i
    dv_j = sum_i drop(p[i, j]) dout_i;  dbias[h, d] = sum over j - i = d - R + 1 of ds[i, j]

Three kernels and a sum, all without atomics, so deterministic:

* dq: one program for up to `block_q` rows of a group and one head walks over their keys, as the forward does. It
  computes delta from its own rows and keeps it for the other kernels. Three products.
* dk, dv: one program for up to `block_k` rows as keys walks over the queries of their sequences; scores are computed
  the other way round, so that no tile of probabilities is transposed. Four products.
* dbias, only with a bias: one program for up to `block_q` rows computes ds again (two products), sums it along its
  diagonals in registers and writes each distance at most once, into a table of its own. The tables, in all
  (T / block_q + G) * H * (2R-1) float32, are zeroed first and then added in a fixed order: with 64 rows and R = 128
  about 16*T*H bytes written and as many read, a twenty-fourth of q, k and v at D = 64 in half precision each way, and
  four times as much with 16 rows. Recomputing keeps the registers of the other kernels, which run without a bias too.

Where no sequence is longer than a tile, one kernel of `short_attention.py` takes the place of the first two.

Bytes, all heads: q, k, v, dout, out, dq, then q, k, v, dout, dk, dv, so 12*T*H*D elements, and k, v (or q, dout) once
more for each further block of a sequence that has left the cache. Operations: 14*D for each pair of query and key of a
tile, 4*D more with a bias. Tiles as in the forward: unmeasured, the largest that do not spill.

p is computed from the difference of score and lse in natural units, then times log2(e): the difference is small where p
is not, so less is lost than by scaling both first. ds and p are rounded to the input's dtype before they meet k, q and
dout; all sums are float32 (float64 for float64).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynabert_kernels.triton.attention_arguments import Sequences, require_attention, require_like, supports_bwd
from dynabert_kernels.triton.attention_dropout import is_kept, keep_threshold, kept_bits
from dynabert_kernels.triton.attention_scores import active_heads, keys_of_rows, multiply_add, probabilities, scores
from dynabert_kernels.triton.borders import num_row_blocks, row_block
from dynabert_kernels.triton.environment import accumulator, accumulator_dtype, jit, launch_device, tl
from dynabert_kernels.triton.short_attention import short_attention_backward
from dynabert_kernels.triton.tiles import attention_tile, short_attention_tile, sum_tile

__all__ = ["attention_backward", "supports_bwd", "varlen_attention_bwd"]


@jit(do_not_specialize=["num_rows", "num_sequences", "num_groups", "threshold", "stream"])
def _varlen_attention_bwd_dq_kernel(
    dout_ptr: tl.tensor,  # (T, max_heads, D)
    qkv_ptr: tl.tensor,  # (T, Hq, 3, D)
    out_ptr: tl.tensor,  # (T, max_heads, D)
    lse_ptr: tl.tensor,  # (max_heads, T) of ACC
    delta_ptr: tl.tensor,  # (max_heads, T) of ACC; written
    starts_ptr: tl.tensor,  # (T,) int32, each row's first key; written with dropout, else None
    dqkv_ptr: tl.tensor,  # (T, Hq, 3, D); dq is written
    cu_seqlens_ptr: tl.tensor,  # (B+1,) int32
    rows_ptr: tl.tensor,  # (G+1,) int32
    counts_ptr: tl.tensor,  # (G,) int32, or None: max_heads in every group
    bias_ptr: tl.tensor,  # (max_heads or more, 2R-1), or None
    state_ptr: tl.tensor,  # (2,) int64, or None: no dropout
    num_rows: tl.tensor,
    num_sequences: tl.tensor,
    num_groups: tl.tensor,
    max_heads: tl.tensor,
    dout_row_stride: tl.tensor,  # in elements; features lie side by side everywhere
    dout_head_stride: tl.tensor,
    row_stride: tl.tensor,  # of qkv
    head_stride: tl.tensor,
    part_stride: tl.tensor,
    out_row_stride: tl.tensor,
    out_head_stride: tl.tensor,
    dqkv_row_stride: tl.tensor,
    dqkv_head_stride: tl.tensor,
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
) -> None:
    head = tl.program_id(1)
    group, group_begin, first_row, end_row = row_block(tl.program_id(0), rows_ptr, num_groups, num_rows, BLOCK_Q)
    wide_head = head.to(tl.int64)
    rows = first_row + tl.arange(0, BLOCK_Q)
    inside = rows < end_row
    wide_rows = rows.to(tl.int64)[:, None]
    features = tl.arange(0, D)
    k_ptr = qkv_ptr + wide_head * head_stride + part_stride
    dq_ptrs = dqkv_ptr + wide_head * dqkv_head_stride + wide_rows * dqkv_row_stride + features[None, :]

    if first_row < end_row and head < active_heads(counts_ptr, group, num_groups, max_heads):
        begin, end = keys_of_rows(cu_seqlens_ptr, num_sequences, num_rows, rows, inside)
        some = begin < end
        first_key = tl.min(tl.where(some, begin, num_rows))
        end_key = tl.max(end)
        q_ptrs = qkv_ptr + wide_head * head_stride + wide_rows * row_stride + features[None, :]
        q = tl.load(q_ptrs, mask=some[:, None], other=0.0)
        dout_ptrs = dout_ptr + wide_head * dout_head_stride + wide_rows * dout_row_stride + features[None, :]
        dout = tl.load(dout_ptrs, mask=some[:, None], other=0.0)
        out_ptrs = out_ptr + wide_head * out_head_stride + wide_rows * out_row_stride + features[None, :]
        out = tl.load(out_ptrs, mask=some[:, None], other=0.0)
        delta = tl.sum(dout.to(ACC) * out.to(ACC), axis=1)
        tl.store(delta_ptr + wide_head * num_rows + rows, delta, mask=some)
        if state_ptr is not None and head == 0:
            tl.store(starts_ptr + rows, begin, mask=some)
        lse = tl.load(lse_ptr + wide_head * num_rows + rows, mask=some, other=0.0)
        dq = tl.zeros([BLOCK_Q, D], ACC)
        # From 0: a lower bound that comes from a reduction would cost the loads their 16 bytes (triton 3.8).
        for step in range(0, end_key - first_key, BLOCK_K):
            start = first_key + step
            keys = start + tl.arange(0, BLOCK_K)
            kv_offsets = keys.to(tl.int64)[:, None] * row_stride + features[None, :]
            k = tl.load(k_ptr + kv_offsets, mask=(keys < end_key)[:, None], other=0.0)
            v = tl.load(k_ptr + part_stride + kv_offsets, mask=(keys < end_key)[:, None], other=0.0)
            own = (keys[None, :] >= begin[:, None]) & (keys[None, :] < end[:, None])
            distances = keys[None, :] - rows[:, None] + bias_centre
            s = scores(q, tl.trans(k), bias_ptr, head * bias_stride + distances, own, scale, 1.0, ACC)
            p = probabilities(s, lse[:, None], own)
            dp = multiply_add(dout, tl.trans(v), tl.zeros([BLOCK_Q, BLOCK_K], ACC), ACC)
            if state_ptr is not None:
                first = start - begin
                low, high = kept_bits(state_ptr, rows - group_begin, first, stream + head, group, threshold, BLOCK_K)
                bits = (first & 3)[:, None] + tl.arange(0, BLOCK_K)[None, :]
                dp = tl.where(is_kept(low[:, None], high[:, None], bits, BLOCK_K), dp * keep_scale, 0.0)
            ds = p * (dp - delta[:, None])
            dq = multiply_add(ds.to(k.dtype), k, dq, ACC)
        tl.store(dq_ptrs, (dq * scale).to(dqkv_ptr.dtype.element_ty), mask=inside[:, None])
    elif FILL:
        tl.store(dq_ptrs, tl.zeros([BLOCK_Q, D], dqkv_ptr.dtype.element_ty), mask=inside[:, None])


@jit(do_not_specialize=["num_rows", "num_sequences", "num_groups", "threshold", "stream"])
def _varlen_attention_bwd_dkdv_kernel(
    dout_ptr: tl.tensor,  # (T, max_heads, D)
    qkv_ptr: tl.tensor,  # (T, Hq, 3, D)
    lse_ptr: tl.tensor,  # (max_heads, T) of ACC
    delta_ptr: tl.tensor,  # (max_heads, T) of ACC
    starts_ptr: tl.tensor,  # (T,) int32, or None
    dqkv_ptr: tl.tensor,  # (T, Hq, 3, D); dk and dv are written
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
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    head = tl.program_id(1)
    group, group_begin, first_key, end_key = row_block(tl.program_id(0), rows_ptr, num_groups, num_rows, BLOCK_K)
    wide_head = head.to(tl.int64)
    keys = first_key + tl.arange(0, BLOCK_K)
    inside = keys < end_key
    wide_keys = keys.to(tl.int64)[:, None]
    features = tl.arange(0, D)
    q_ptr = qkv_ptr + wide_head * head_stride
    dout_ptr += wide_head * dout_head_stride
    lse_ptr += wide_head * num_rows
    delta_ptr += wide_head * num_rows
    dk_ptrs = dqkv_ptr + wide_head * dqkv_head_stride + dqkv_part_stride
    dk_ptrs += wide_keys * dqkv_row_stride + features[None, :]

    if first_key < end_key and head < active_heads(counts_ptr, group, num_groups, max_heads):
        # A key's queries are the rows whose key it is: its own sequence.
        begin, end = keys_of_rows(cu_seqlens_ptr, num_sequences, num_rows, keys, inside)
        some = begin < end
        first_query = tl.min(tl.where(some, begin, num_rows))
        end_query = tl.max(end)
        k_ptrs = q_ptr + part_stride + wide_keys * row_stride + features[None, :]
        k = tl.load(k_ptrs, mask=some[:, None], other=0.0)
        v = tl.load(k_ptrs + part_stride, mask=some[:, None], other=0.0)
        dk = tl.zeros([BLOCK_K, D], ACC)
        dv = tl.zeros([BLOCK_K, D], ACC)
        for step in range(0, end_query - first_query, BLOCK_Q):
            queries = first_query + step + tl.arange(0, BLOCK_Q)
            real = queries < end_query
            wide_queries = queries.to(tl.int64)[:, None]
            q = tl.load(q_ptr + wide_queries * row_stride + features[None, :], mask=real[:, None], other=0.0)
            dout_ptrs = dout_ptr + wide_queries * dout_row_stride + features[None, :]
            dout = tl.load(dout_ptrs, mask=real[:, None], other=0.0)
            lse = tl.load(lse_ptr + queries, mask=real, other=0.0)
            delta = tl.load(delta_ptr + queries, mask=real, other=0.0)
            own = (queries[None, :] >= begin[:, None]) & (queries[None, :] < end[:, None])
            distances = keys[:, None] - queries[None, :] + bias_centre
            s = scores(k, tl.trans(q), bias_ptr, head * bias_stride + distances, own, scale, 1.0, ACC)
            p = probabilities(s, lse[None, :], own)
            dp = multiply_add(v, tl.trans(dout), tl.zeros([BLOCK_K, BLOCK_Q], ACC), ACC)
            dropped = p
            if state_ptr is not None:
                first = first_key - tl.load(starts_ptr + queries, mask=real, other=0)
                low, high = kept_bits(state_ptr, queries - group_begin, first, stream + head, group, threshold, BLOCK_K)
                bits = (first & 3)[None, :] + tl.arange(0, BLOCK_K)[:, None]
                keep = is_kept(low[None, :], high[None, :], bits, BLOCK_K)
                dp = tl.where(keep, dp * keep_scale, 0.0)
                dropped = tl.where(keep, p * keep_scale, 0.0)
            dv = multiply_add(dropped.to(dout.dtype), dout, dv, ACC)
            ds = p * (dp - delta[None, :])
            dk = multiply_add(ds.to(q.dtype), q, dk, ACC)
        tl.store(dk_ptrs, (dk * scale).to(dqkv_ptr.dtype.element_ty), mask=inside[:, None])
        tl.store(dk_ptrs + dqkv_part_stride, dv.to(dqkv_ptr.dtype.element_ty), mask=inside[:, None])
    elif FILL:
        nothing = tl.zeros([BLOCK_K, D], dqkv_ptr.dtype.element_ty)
        tl.store(dk_ptrs, nothing, mask=inside[:, None])
        tl.store(dk_ptrs + dqkv_part_stride, nothing, mask=inside[:, None])


@jit(do_not_specialize=["num_rows", "num_sequences", "num_groups", "threshold", "stream"])
def _varlen_attention_bwd_dbias_kernel(
    dout_ptr: tl.tensor,  # (T, max_heads, D)
    qkv_ptr: tl.tensor,  # (T, Hq, 3, D)
    lse_ptr: tl.tensor,  # (max_heads, T) of ACC
    delta_ptr: tl.tensor,  # (max_heads, T) of ACC
    partial_ptr: tl.tensor,  # (programs, max_heads, 2R-1) of ACC, zero
    cu_seqlens_ptr: tl.tensor,  # (B+1,) int32
    rows_ptr: tl.tensor,  # (G+1,) int32
    counts_ptr: tl.tensor,  # (G,) int32, or None
    bias_ptr: tl.tensor,  # (max_heads or more, 2R-1)
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
    bias_stride: tl.tensor,
    bias_centre: tl.tensor,
    scale: tl.tensor,
    keep_scale: tl.tensor,
    threshold: tl.tensor,
    stream: tl.tensor,
    ACC: tl.constexpr,
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,  # at most BLOCK_K
    BLOCK_K: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    head = tl.program_id(1)
    group, group_begin, first_row, end_row = row_block(program, rows_ptr, num_groups, num_rows, BLOCK_Q)
    wide_head = head.to(tl.int64)
    local = tl.arange(0, BLOCK_Q)
    columns = tl.arange(0, BLOCK_K)
    # Place c of a turned row holds the score whose distance is c, or c - BLOCK_K where the sum below overran.
    overrun = local[:, None] + columns[None, :]
    rows = first_row + local
    inside = rows < end_row
    wide_rows = rows.to(tl.int64)[:, None]
    features = tl.arange(0, D)
    k_ptr = qkv_ptr + wide_head * head_stride + part_stride
    num_distances = 2 * bias_centre + 1

    if first_row < end_row and head < active_heads(counts_ptr, group, num_groups, max_heads):
        begin, end = keys_of_rows(cu_seqlens_ptr, num_sequences, num_rows, rows, inside)
        some = begin < end
        first_key = tl.min(tl.where(some, begin, num_rows))
        end_key = tl.max(end)
        q_ptrs = qkv_ptr + wide_head * head_stride + wide_rows * row_stride + features[None, :]
        q = tl.load(q_ptrs, mask=some[:, None], other=0.0)
        dout_ptrs = dout_ptr + wide_head * dout_head_stride + wide_rows * dout_row_stride + features[None, :]
        dout = tl.load(dout_ptrs, mask=some[:, None], other=0.0)
        lse = tl.load(lse_ptr + wide_head * num_rows + rows, mask=some, other=0.0)
        delta = tl.load(delta_ptr + wide_head * num_rows + rows, mask=some, other=0.0)
        table_ptr = partial_ptr + (program.to(tl.int64) * max_heads + head) * num_distances
        # Each step ends what the step before began: its upper distances are the next one's lower ones.
        carried = tl.zeros([BLOCK_K], ACC)
        # The column of the first lower distance.
        lower = first_key - first_row - BLOCK_K + bias_centre
        for step in range(0, end_key - first_key, BLOCK_K):
            start = first_key + step
            keys = start + columns
            kv_offsets = keys.to(tl.int64)[:, None] * row_stride + features[None, :]
            k = tl.load(k_ptr + kv_offsets, mask=(keys < end_key)[:, None], other=0.0)
            v = tl.load(k_ptr + part_stride + kv_offsets, mask=(keys < end_key)[:, None], other=0.0)
            own = (keys[None, :] >= begin[:, None]) & (keys[None, :] < end[:, None])
            distances = keys[None, :] - rows[:, None] + bias_centre
            s = scores(q, tl.trans(k), bias_ptr, head * bias_stride + distances, own, scale, 1.0, ACC)
            p = probabilities(s, lse[:, None], own)
            dp = multiply_add(dout, tl.trans(v), tl.zeros([BLOCK_Q, BLOCK_K], ACC), ACC)
            if state_ptr is not None:
                first = start - begin
                low, high = kept_bits(state_ptr, rows - group_begin, first, stream + head, group, threshold, BLOCK_K)
                bits = (first & 3)[:, None] + columns[None, :]
                dp = tl.where(is_kept(low[:, None], high[:, None], bits, BLOCK_K), dp * keep_scale, 0.0)
            ds = p * (dp - delta[:, None])
            turned = tl.gather(ds, overrun % BLOCK_K, axis=1)
            carried += tl.sum(tl.where(overrun >= BLOCK_K, turned, 0.0), axis=0)
            places = lower + step + columns
            tl.store(table_ptr + places, carried, mask=(places >= 0) & (places < num_distances))
            carried = tl.sum(tl.where(overrun < BLOCK_K, turned, 0.0), axis=0)
        places = lower + (end_key - first_key + BLOCK_K - 1) // BLOCK_K * BLOCK_K + columns
        tl.store(table_ptr + places, carried, mask=(places >= 0) & (places < num_distances) & (first_key < end_key))


@jit
def _varlen_attention_sum_dbias_kernel(
    partial_ptr: tl.tensor,  # (P, max_heads, 2R-1) of ACC
    dbias_ptr: tl.tensor,  # (Hb, 2R-1) contiguous
    num_partials: tl.tensor,
    max_heads: tl.tensor,
    num_distances: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    columns = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    head = tl.program_id(1)
    in_columns = columns < num_distances
    total = tl.zeros([BLOCK_P, BLOCK_C], ACC)
    if head < max_heads:
        for start in range(0, num_partials, BLOCK_P):
            partials = start + tl.arange(0, BLOCK_P)
            inside = (partials < num_partials)[:, None] & in_columns[None, :]
            offsets = (partials.to(tl.int64)[:, None] * max_heads + head) * num_distances + columns[None, :]
            total += tl.load(partial_ptr + offsets, mask=inside, other=0.0)
    dbias = tl.sum(total, axis=0).to(dbias_ptr.dtype.element_ty)
    tl.store(dbias_ptr + head.to(tl.int64) * num_distances + columns, dbias, mask=in_columns)


def attention_backward(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    sequences: Sequences,
    dqkv: Tensor,
    dposition_bias: Tensor | None,
    *,
    fill: bool,
    op: str,
) -> None:
    """Writes dqkv, of qkv's shape and any strides with a last one of 1, and dposition_bias, of the bias's, contiguous.

    `fill`: also zeros past each row's heads, which a caller that never reads them (a sub-layer) can spare.
    """
    require_attention(op, qkv, sequences)
    num_rows, num_heads, _, size = qkv.shape
    max_heads, bias, state = sequences.max_heads, sequences.position_bias, sequences.state
    require_like(op, qkv, qkv.dtype, (num_rows, max_heads, size), dout=dout, out=out)
    require_like(op, qkv, accumulator_dtype(qkv.dtype), (max_heads, num_rows), lse=lse)
    require_like(op, qkv, qkv.dtype, tuple(qkv.shape), dqkv=dqkv)
    if lse.numel() > 0 and not lse.is_contiguous():
        raise ValueError(f"{op}: lse is not contiguous; got strides {tuple(lse.stride())}; call .contiguous()")
    if num_rows == 0 or max_heads == 0:  # an empty grid is a launch error
        if fill:
            dqkv.zero_()
        if dposition_bias is not None:
            dposition_bias.zero_()
        return
    short = short_attention_tile("backward", qkv, sequences.max_seqlen)
    delta = torch.empty_like(lse) if short is None or bias is not None else None
    # Dropout's words count from a query's first key; the dk, dv kernel meets a query without its sequence.
    starts = None if state is None or short is not None else torch.empty(num_rows, dtype=torch.int32, device=qkv.device)
    tables = (sequences.cu_seqlens, sequences.rows, sequences.head_counts, bias, state)
    num_groups = sequences.rows.shape[0] - 1
    sizes = (num_rows, sequences.cu_seqlens.shape[0] - 1, num_groups, max_heads)
    numbers = (
        0 if bias is None else bias.stride(0),
        0 if bias is None else bias.shape[1] // 2,
        sequences.scale,
        1.0 / (1.0 - sequences.dropout_p),
        keep_threshold(sequences.dropout_p),
        sequences.dropout_stream << 12,
    )
    acc, heads = accumulator(qkv.dtype), num_heads if fill else max_heads
    with launch_device(qkv):
        if short is not None:
            short_attention_backward(dout, qkv, out, lse, delta, sequences, dqkv, short, fill=fill)
        else:
            tile = attention_tile("dq", qkv)
            _varlen_attention_bwd_dq_kernel[(num_row_blocks(num_rows, num_groups, tile.block_q), heads)](
                *(dout, qkv, out, lse, delta, starts, dqkv, *tables, *sizes),
                *(*dout.stride()[:2], *qkv.stride()[:3], *out.stride()[:2], *dqkv.stride()[:2], *numbers),
                ACC=acc,
                FILL=fill,
                D=size,
                BLOCK_Q=tile.block_q,
                BLOCK_K=tile.block_k,
                num_warps=tile.num_warps,
                num_stages=tile.num_stages,
            )
            tile = attention_tile("dkdv", qkv)
            _varlen_attention_bwd_dkdv_kernel[(num_row_blocks(num_rows, num_groups, tile.block_k), heads)](
                *(dout, qkv, lse, delta, starts, dqkv, *tables, *sizes),
                *(*dout.stride()[:2], *qkv.stride()[:3], *dqkv.stride()[:3], *numbers),
                ACC=acc,
                FILL=fill,
                D=size,
                BLOCK_Q=tile.block_q,
                BLOCK_K=tile.block_k,
                num_warps=tile.num_warps,
                num_stages=tile.num_stages,
            )
        if bias is None or dposition_bias is None:
            return
        tile = attention_tile("dbias", qkv)
        blocks, num_distances = num_row_blocks(num_rows, num_groups, tile.block_q), bias.shape[1]
        partial = lse.new_zeros((blocks, max_heads, num_distances))
        _varlen_attention_bwd_dbias_kernel[(blocks, max_heads)](
            *(dout, qkv, lse, delta, partial, *tables, *sizes, *dout.stride()[:2], *qkv.stride()[:3], *numbers),
            ACC=acc,
            D=size,
            BLOCK_Q=tile.block_q,
            BLOCK_K=tile.block_k,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        second = sum_tile(num_distances)
        _varlen_attention_sum_dbias_kernel[(-(-num_distances // second.block_c), bias.shape[0])](
            *(partial, dposition_bias, partial.shape[0], max_heads, num_distances),
            ACC=acc,
            BLOCK_P=second.block_p,
            BLOCK_C=second.block_c,
            num_warps=second.num_warps,
        )


def varlen_attention_bwd(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
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
) -> tuple[Tensor, Tensor]:
    """dqkv like qkv, zero past a row's heads; dposition_bias like position_bias, or empty. Does not synchronise."""
    sequences = Sequences(
        *(cu_seqlens, rows, head_counts, position_bias, dropout_state),
        *(max_heads, max_seqlen, scale, dropout_p, dropout_stream),
    )
    dqkv = torch.empty_like(qkv)
    if position_bias is None:
        dbias = qkv.new_empty((0,), dtype=accumulator_dtype(qkv.dtype))
    else:
        dbias = position_bias.new_empty(position_bias.shape)
    attention_backward(
        *(dout, qkv, out, lse, sequences, dqkv, None if position_bias is None else dbias),
        fill=True,
        op="varlen_attention_bwd (triton)",
    )
    return dqkv, dbias
