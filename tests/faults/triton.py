"""Faults planted in the Triton kernels."""

from __future__ import annotations

from tests.faults.planted import Fault

_FOLDER = "dynabert_kernels/triton/"


def _fault(name: str, kind: str, file: str, old: str, new: str, *seen_by: str) -> Fault:
    return Fault(f"triton: {name}", kind, "triton", _FOLDER + file, old, new, seen_by)


FAULTS = [
    _fault(
        "the last column of a product is not stored",
        "one column too few",
        "ragged_gemm.py",
        "tl.store(tile, values, mask=in_rows[:, None] & (columns < num_columns)[None, :])",
        "tl.store(tile, values, mask=in_rows[:, None] & (columns < num_columns - 1)[None, :])",
        "elastic_linear",
    ),
    _fault(
        "the last feature is not summed",
        "one column too few",
        "ragged_gemm.py",
        "in_steps = steps < reduction",
        "in_steps = steps < reduction - 1",
        "elastic_linear",
    ),
    _fault(
        "db misses its last column",
        "one column too few",
        "ragged_sums.py",
        "tl.store(db_ptr + columns, tl.sum(db, axis=0).to(db_ptr.dtype.element_ty), mask=columns < num_entries)",
        "tl.store(db_ptr + columns, tl.sum(db, axis=0).to(db_ptr.dtype.element_ty), mask=columns < num_entries - 1)",
        "elastic_linear",
    ),
    _fault(
        "products begin a row late in each group",
        "group border off by one",
        "row_tiles.py",
        "begin = tl.load(rows_ptr + groups, mask=groups <= num_groups, other=num_rows)",
        "begin = tl.load(rows_ptr + groups, mask=groups <= num_groups, other=num_rows) + 1",
        "elastic_linear",
    ),
    _fault(
        "attention's row blocks end a row early",
        "group border off by one",
        "borders.py",
        "group_end = tl.load(rows_ptr + group + 1, mask=group < num_groups, other=num_rows)",
        "group_end = tl.load(rows_ptr + group + 1, mask=group < num_groups, other=num_rows) - 1",
        "varlen_attention",
    ),
    _fault(
        "the last key of a sequence is left out",
        "group border off by one",
        "attention_scores.py",
        "end = tl.load(cu_seqlens_ptr + sequence + 1, mask=inside, other=0)",
        "end = tl.load(cu_seqlens_ptr + sequence + 1, mask=inside, other=1) - 1",
        "varlen_attention",
    ),
    _fault(
        "the bias is missing in the last active column",
        "missing bias at a tile's edge",
        "ragged_gemm.py",
        "z += tl.load(bias_ptr + columns, mask=columns < width, other=0.0)",
        "z += tl.load(bias_ptr + columns, mask=columns < width - 1, other=0.0)",
        "elastic_linear",
    ),
    _fault(
        "the backward's hidden dropout counts rows from the batch's start",
        "wrong dropout mask in the backward",
        "ragged_sums.py",
        "state_ptr, rows - group_begin, group, first_column, counter, threshold, scale, ACC, BLOCK_T, BLOCK_C",
        "state_ptr, rows, group, first_column, counter, threshold, scale, ACC, BLOCK_T, BLOCK_C",
        "elastic_ffn",
    ),
    _fault(
        "dq takes another head's dropout",
        "wrong dropout mask in the backward",
        "varlen_attention_backward.py",
        """            if state_ptr is not None:
                first = start - begin
                low, high = kept_bits(state_ptr, rows - group_begin, first, stream + head, group, threshold, BLOCK_K)
                bits = (first & 3)[:, None] + tl.arange(0, BLOCK_K)[None, :]
                dp =""",
        """            if state_ptr is not None:
                first = start - begin
                low, high = kept_bits(state_ptr, rows - group_begin, first, stream, group, threshold, BLOCK_K)
                bits = (first & 3)[:, None] + tl.arange(0, BLOCK_K)[None, :]
                dp =""",
        "varlen_attention",
    ),
    _fault(
        "dv forgets the dropout",
        "wrong dropout mask in the backward",
        "varlen_attention_backward.py",
        "dropped = tl.where(keep, p * keep_scale, 0.0)",
        "dropped = p * keep_scale",
        "varlen_attention",
    ),
    _fault(
        "a product reads past the row's width",
        "a read beyond the active part",
        "row_tiles.py",
        "reduction = active_width(in_counts_ptr, group, in_unit, max_in, real)",
        "reduction = tl.where(real, max_in, 0)",
        "elastic_linear",
    ),
    _fault(
        "values past the batch's end are read",
        "a read beyond the active part",
        "varlen_attention.py",
        "v = tl.load(k_ptr + part_stride + kv_offsets, mask=(keys < end_key)[:, None], other=0.0)",
        "v = tl.load(k_ptr + part_stride + kv_offsets, mask=(keys < num_rows)[:, None], other=0.0)",
        "varlen_attention",
    ),
    _fault(
        "dW takes what lies past the widths",
        "a read beyond the active part",
        "ragged_sums.py",
        "acc += tl.where((n < run_n)[:, None] & (k < run_k)[None, :], part, 0.0)",
        "acc += part",
        "elastic_linear",
    ),
    _fault(
        "attention leaves inactive heads unwritten",
        "missing zero fill",
        "varlen_attention.py",
        "    elif FILL:\n",
        "    elif FILL and num_rows < 0:\n",
        "varlen_attention",
    ),
    _fault(
        "rows of no group keep the gradient of their result",
        "missing zero fill",
        "group_layer_norm.py",
        "tl.store(dx_ptr + offsets, arrived, mask=passive[:, None] & in_columns)",
        "tl.store(dx_ptr + offsets, arrived, mask=skips[:, None] & in_columns)",
        "elastic_ffn",
    ),
    _fault(
        "lse without the largest score",
        "lse not shifted",
        "varlen_attention.py",
        "(largest + tl.log2(divisor)) / LOG2_E",
        "tl.log2(divisor) / LOG2_E",
        "varlen_attention",
    ),
    _fault(
        "sums are not rescaled when a larger score comes",
        "softmax over several tiles",
        "varlen_attention.py",
        "total = total * rescale + tl.sum(p, axis=1)",
        "total = total + tl.sum(p, axis=1)",
        "varlen_attention",
    ),
    _fault(
        "dq is not scaled",
        "wrong scale",
        "varlen_attention_backward.py",
        "tl.store(dq_ptrs, (dq * scale).to(dqkv_ptr.dtype.element_ty), mask=inside[:, None])",
        "tl.store(dq_ptrs, dq.to(dqkv_ptr.dtype.element_ty), mask=inside[:, None])",
        "varlen_attention",
    ),
    _fault(
        "the bias of the next distance is added",
        "position bias off by one",
        "varlen_attention.py",
        "distances = keys[None, :] - rows[:, None] + bias_centre",
        "distances = keys[None, :] - rows[:, None] + bias_centre - 1",
        "varlen_attention",
    ),
    _fault(
        "the bias's gradient forgets what the tile before carried over",
        "position bias gradient at a tile's edge",
        "varlen_attention_backward.py",
        "carried += tl.sum(tl.where(overrun >= BLOCK_K, turned, 0.0), axis=0)",
        "carried = tl.sum(tl.where(overrun >= BLOCK_K, turned, 0.0), axis=0)",
        "varlen_attention",
    ),
    _fault(
        "the last active head is left out",
        "one head too few",
        "attention_scores.py",
        "return tl.where(group < num_groups, count, 0)",
        "return tl.where(group < num_groups, count - 1, 0)",
        "varlen_attention",
    ),
    _fault(
        "columns past C reach the variance",
        "tile padding in a statistic",
        "row_statistics.py",
        "centred = tl.where(in_columns, h - mean[:, None], 0.0)",
        "centred = h - mean[:, None]",
        "add_layer_norm",
    ),
    _fault(
        "the same inside a sub-layer",
        "tile padding in a statistic",
        "row_statistics.py",
        "centred = tl.where(in_columns, h - mean[:, None], 0.0)",
        "centred = h - mean[:, None]",
        "elastic_ffn",
    ),
    _fault(
        "the residual sum is rounded to the input's dtype",
        "accumulates in bfloat16",
        "add_layer_norm.py",
        """        h += tl.load(residual_tile, mask=inside, other=0.0).to(ACC)

    mean,""",
        """        h += tl.load(residual_tile, mask=inside, other=0.0).to(ACC)
        h = h.to(x_ptr.dtype.element_ty).to(ACC)

    mean,""",
        "add_layer_norm",
    ),
    _fault(
        "dw and db take turns on one place",
        "partial sums mixed up",
        "add_layer_norm.py",
        "tl.store(partial_ptr + num_columns + columns, db, mask=in_columns)",
        "tl.store(partial_ptr + num_columns + columns, dw, mask=in_columns)",
        "add_layer_norm",
    ),
    _fault(
        "a student row learns from its neighbour's teacher row",
        "wrong teacher row in the loss",
        "distillation_loss.py",
        "partner = tl.load(teacher_rows_ptr + rows, mask=counts, other=-1)",
        "partner = tl.maximum(tl.load(teacher_rows_ptr + rows, mask=counts, other=-1) - 1, -1)",
        "distillation_loss",
    ),
    _fault(
        "a group that skips its layer is counted",
        "a read beyond the active part",
        "distillation_loss.py",
        "counts = counts & (tl.load(active_ptr + group, mask=counts, other=0) > 0)",
        "counts = counts & (tl.load(active_ptr + group, mask=counts, other=0) >= 0)",
        "distillation_loss",
    ),
    _fault(
        "a piece of a cut reduction is lost",
        "part of a sum left out",
        "split_sums.py",
        "for split in tl.static_range(SPLITS):",
        "for split in tl.static_range(SPLITS - 1):",
        "elastic_attention",
    ),
    _fault(
        "what a cut reduction has past its last whole pieces is lost",
        "part of a sum left out",
        "split_sums.py",
        "length = (reduction + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K",
        "length = reduction // (SPLITS * BLOCK_K) * BLOCK_K",
        "tests/kernels/test_triton_split_sums.py",
    ),
    _fault(
        "a piece of a cut reduction goes on into the next group's width",
        "a read beyond the active part",
        "split_sums.py",
        "tl.minimum(start + length, reduction)",
        "start + length",
        "tests/kernels/test_triton_split_sums.py",
    ),
    _fault(
        "the bias of a cut product is forgotten",
        "term left out",
        "split_sums.py",
        "h = x + (sums + out_bias[None, :])",
        "h = x + sums",
        "elastic_attention",
    ),
    _fault(
        "the last entry of a table is not found",
        "one row too few",
        "embed_layer_norm.py",
        "found = in_rows & (ids >= 0) & (ids < size)",
        "found = in_rows & (ids >= 0) & (ids < size - 1)",
        "embed_layer_norm",
    ),
    _fault(
        "a token's position is forgotten",
        "term left out",
        "embed_layer_norm.py",
        "h += place\n",
        "h += 0.0 * place\n",
        "embed_layer_norm",
    ),
    _fault(
        "an embedding's gradient forgets that its row was centred",
        "term left out",
        "embed_layer_norm.py",
        "dh = rstd[:, None] * (g - mean_g[:, None] - xhat * mean_gx[:, None])",
        "dh = rstd[:, None] * (g - xhat * mean_gx[:, None])",
        "embed_layer_norm",
    ),
]
