"""Embeddings summed and normalised, forward and backward.

    h = word[ids] + position[places] + token_type[types]
    y = factor * ((h - mean(h)) * rstd * weight + bias),  factor 0 or 1 / (1 - p) by counter, 1 in rows of no group

Backward: with g = dy * factor * weight, dh = rstd * (g - mean(g) - xhat * mean(g * xhat)); dw and db are summed over
the rows; dh goes into the tables by :mod:`dynabert_kernels.triton.sums_by_id`.

Forward: one program computes `block_t` whole rows, held in registers: the mean first, then the variance about it. The
rows of the tables are read where they lie. Bytes: 3 reads and 1 write of T*C elements; operations: about 10*T*C.
Backward: a fixed number of programs walk over the rows; each writes dh in float32 and keeps its sums for dw and db in
registers; a second kernel adds the programs' sums in a fixed order. h is added up again from the tables: as much
traffic as reading it stored, and nothing to store. Bytes: 4 reads of T*C elements and T*C float32 written, before the
sums. Deterministic on one kind of device.

Statistics and sums are float32 (float64 for float64 input). A token with an id outside its table reads nothing: its row
of y is NaN, and so is what its gradient reaches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynabert_kernels.triton.add_layer_norm import _add_layer_norm_sum_partials_kernel
from dynabert_kernels.triton.borders import last_at_most
from dynabert_kernels.triton.checks import (
    require_columns,
    require_rows,
    require_tables,
    require_vectors,
    why_not_side_by_side,
)
from dynabert_kernels.triton.dependent_launch import begin_dependent, dependent_launch
from dynabert_kernels.triton.environment import (
    accumulator,
    accumulator_dtype,
    jit,
    launch_device,
    multiprocessors,
    tl,
    why_unavailable,
)
from dynabert_kernels.triton.hidden_dropout import dropout_factors, hidden_dropout
from dynabert_kernels.triton.row_statistics import row_statistics
from dynabert_kernels.triton.sums_by_id import sums_by_id
from dynabert_kernels.triton.tiles import (
    MAX_EMBEDDING_COLUMNS,
    ROW_PROGRAMS_PER_MULTIPROCESSOR,
    embedding_backward_tile,
    row_forward_tile,
    sum_tile,
)

__all__ = ["embed_layer_norm_bwd", "embed_layer_norm_fwd", "supports"]


def supports(*arguments: Tensor | float | None) -> str | None:
    """Why this provider refuses these arguments (of either op, in its order); None where it takes them."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    rows = next(tensor for tensor in tensors if tensor.is_floating_point())
    reason = why_unavailable(rows)
    if reason is not None:
        return reason
    if not 1 <= rows.shape[-1] <= MAX_EMBEDDING_COLUMNS:
        return f"C is {rows.shape[-1]}; a row is held in registers, so 1 to {MAX_EMBEDDING_COLUMNS} columns are allowed"
    return why_not_side_by_side(*tensors)


@jit
def _table_rows(
    table_ptr: tl.tensor,  # (size, C)
    ids_ptr: tl.tensor,  # (T,) int64, or None: row 0 for every token
    tokens: tl.tensor,
    in_rows: tl.tensor,
    columns: tl.tensor,
    in_columns: tl.tensor,
    size: tl.tensor,
    stride: tl.tensor,
    ACC: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The tokens' rows of a table, and which tokens have one; zeros for the others."""
    ids = tokens.to(tl.int64) * 0
    if ids_ptr is not None:
        ids = tl.load(ids_ptr + tokens, mask=in_rows, other=0)
    found = in_rows & (ids >= 0) & (ids < size)
    tile_ptr = table_ptr + ids[:, None] * stride + columns[None, :]
    return tl.load(tile_ptr, mask=found[:, None] & in_columns[None, :], other=0.0).to(ACC), found


@jit
def _embedded_rows(
    input_ids_ptr: tl.tensor,
    position_ids_ptr: tl.tensor,
    token_type_ids_ptr: tl.tensor,
    word_ptr: tl.tensor,
    position_ptr: tl.tensor,
    token_type_ptr: tl.tensor,
    tokens: tl.tensor,
    in_rows: tl.tensor,
    columns: tl.tensor,
    in_columns: tl.tensor,
    word_size: tl.tensor,
    position_size: tl.tensor,
    token_type_size: tl.tensor,
    word_stride: tl.tensor,
    position_stride: tl.tensor,
    token_type_stride: tl.tensor,
    ACC: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """h of these tokens, and which of them have a row in every table."""
    h, found = _table_rows(word_ptr, input_ids_ptr, tokens, in_rows, columns, in_columns, word_size, word_stride, ACC)
    place, has_place = _table_rows(
        position_ptr, position_ids_ptr, tokens, in_rows, columns, in_columns, position_size, position_stride, ACC
    )
    h += place
    found = found & has_place
    if token_type_ptr is not None:
        kind, has_kind = _table_rows(
            token_type_ptr,
            token_type_ids_ptr,
            tokens,
            in_rows,
            columns,
            in_columns,
            token_type_size,
            token_type_stride,
            ACC,
        )
        h += kind
        found = found & has_kind
    return h, found


@jit
def _group_factors(
    state_ptr: tl.tensor,  # (2,) int64: seed, offset
    rows_ptr: tl.tensor,  # (G+1,) int32, or None: all tokens are group 0
    tokens: tl.tensor,
    num_groups: tl.tensor,
    counter: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tl.tensor:
    """Dropout factors of these tokens; 1 in rows of no group."""
    group, positions = tokens * 0, tokens
    if rows_ptr is not None:
        group = last_at_most(rows_ptr, num_groups, tokens)
        positions = tokens - tl.load(rows_ptr + group)
    factors = dropout_factors(state_ptr, positions, group[:, None], 0, counter, threshold, scale, ACC, BLOCK_T, BLOCK_C)
    if rows_ptr is not None:
        factors = tl.where((group < num_groups)[:, None], factors, 1.0)
    return factors


_NOT_SPECIALISED = ["num_tokens", "num_groups", "word_size", "position_size", "token_type_size", "counter", "threshold"]


@jit(do_not_specialize=_NOT_SPECIALISED)
def _embed_layer_norm_fwd_kernel(
    input_ids_ptr: tl.tensor,  # (T,) int64
    position_ids_ptr: tl.tensor,  # (T,) int64
    token_type_ids_ptr: tl.tensor,  # (T,) int64 or None
    word_ptr: tl.tensor,  # (V, C)
    position_ptr: tl.tensor,  # (P, C)
    token_type_ptr: tl.tensor,  # (Y, C) or None
    weight_ptr: tl.tensor,  # (C,) contiguous
    bias_ptr: tl.tensor,  # (C,) contiguous
    rows_ptr: tl.tensor,  # (G+1,) int32 or None
    state_ptr: tl.tensor,  # (2,) int64, or None: nothing is dropped
    y_ptr: tl.tensor,  # (T, C) contiguous
    mean_ptr: tl.tensor,  # (T,) of ACC
    rstd_ptr: tl.tensor,  # (T,) of ACC
    num_tokens: tl.tensor,
    num_columns: tl.tensor,
    num_groups: tl.tensor,
    word_size: tl.tensor,
    position_size: tl.tensor,
    token_type_size: tl.tensor,
    word_stride: tl.tensor,
    position_stride: tl.tensor,
    token_type_stride: tl.tensor,
    eps: tl.tensor,
    counter: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    if DEPENDENT:
        begin_dependent()
    tokens = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_C)
    in_rows = tokens < num_tokens
    in_columns = columns < num_columns

    # Asked for first, so that they arrive while the rows are summed.
    weight = tl.load(weight_ptr + columns, mask=in_columns, other=0.0).to(ACC)
    bias = tl.load(bias_ptr + columns, mask=in_columns, other=0.0).to(ACC)
    h, found = _embedded_rows(
        input_ids_ptr,
        position_ids_ptr,
        token_type_ids_ptr,
        word_ptr,
        position_ptr,
        token_type_ptr,
        tokens,
        in_rows,
        columns,
        in_columns,
        word_size,
        position_size,
        token_type_size,
        word_stride,
        position_stride,
        token_type_stride,
        ACC,
    )
    mean, centred, rstd = row_statistics(h, in_columns[None, :], num_columns, eps)
    mean = tl.where(found, mean, float("nan"))
    rstd = tl.where(found, rstd, float("nan"))
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    if state_ptr is not None:
        y *= _group_factors(state_ptr, rows_ptr, tokens, num_groups, counter, threshold, scale, ACC, BLOCK_T, BLOCK_C)
    tile_ptr = y_ptr + tokens.to(tl.int64)[:, None] * num_columns + columns[None, :]
    tl.store(tile_ptr, y.to(y_ptr.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])
    tl.store(mean_ptr + tokens, mean, mask=in_rows)
    tl.store(rstd_ptr + tokens, rstd, mask=in_rows)


@jit(do_not_specialize=_NOT_SPECIALISED)
def _embed_layer_norm_bwd_kernel(
    dy_ptr: tl.tensor,  # (T, C)
    input_ids_ptr: tl.tensor,  # (T,) int64
    position_ids_ptr: tl.tensor,  # (T,) int64
    token_type_ids_ptr: tl.tensor,  # (T,) int64 or None
    word_ptr: tl.tensor,  # (V, C)
    position_ptr: tl.tensor,  # (P, C)
    token_type_ptr: tl.tensor,  # (Y, C) or None
    weight_ptr: tl.tensor,  # (C,) contiguous
    mean_ptr: tl.tensor,  # (T,) of ACC
    rstd_ptr: tl.tensor,  # (T,) of ACC
    rows_ptr: tl.tensor,  # (G+1,) int32 or None
    state_ptr: tl.tensor,  # (2,) int64, or None: nothing is dropped
    dh_ptr: tl.tensor,  # (T, C) of ACC, contiguous
    partial_ptr: tl.tensor,  # (programs, 2, C) of ACC: this program's dw and db
    num_tokens: tl.tensor,
    num_columns: tl.tensor,
    num_groups: tl.tensor,
    word_size: tl.tensor,
    position_size: tl.tensor,
    token_type_size: tl.tensor,
    dy_stride: tl.tensor,
    word_stride: tl.tensor,
    position_stride: tl.tensor,
    token_type_stride: tl.tensor,
    counter: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK_C)
    in_columns = columns < num_columns
    weight = tl.load(weight_ptr + columns, mask=in_columns, other=0.0).to(ACC)
    dw = tl.zeros([BLOCK_C], dtype=ACC)
    db = tl.zeros([BLOCK_C], dtype=ACC)

    for start in range(program * BLOCK_T, num_tokens, tl.num_programs(0) * BLOCK_T):
        tokens = start + tl.arange(0, BLOCK_T)
        in_rows = tokens < num_tokens
        inside = in_rows[:, None] & in_columns[None, :]
        dy_tile = dy_ptr + tokens.to(tl.int64)[:, None] * dy_stride + columns[None, :]
        dy = tl.load(dy_tile, mask=inside, other=0.0).to(ACC)
        if state_ptr is not None:
            dy *= _group_factors(
                state_ptr, rows_ptr, tokens, num_groups, counter, threshold, scale, ACC, BLOCK_T, BLOCK_C
            )
        h, _ = _embedded_rows(
            input_ids_ptr,
            position_ids_ptr,
            token_type_ids_ptr,
            word_ptr,
            position_ptr,
            token_type_ptr,
            tokens,
            in_rows,
            columns,
            in_columns,
            word_size,
            position_size,
            token_type_size,
            word_stride,
            position_stride,
            token_type_stride,
            ACC,
        )
        mean = tl.load(mean_ptr + tokens, mask=in_rows, other=0.0)
        rstd = tl.load(rstd_ptr + tokens, mask=in_rows, other=0.0)

        # Outside the tile dy is zero, and with it every sum below: xhat may be anything finite there.
        xhat = (h - mean[:, None]) * rstd[:, None]
        g = dy * weight[None, :]
        mean_g = tl.sum(g, axis=1) / num_columns
        mean_gx = tl.sum(g * xhat, axis=1) / num_columns
        dh = rstd[:, None] * (g - mean_g[:, None] - xhat * mean_gx[:, None])
        tl.store(dh_ptr + tokens.to(tl.int64)[:, None] * num_columns + columns[None, :], dh, mask=inside)
        # A row of NaN holds it in the columns past C too, which are not stored.
        dw += tl.sum(dy * xhat, axis=0)
        db += tl.sum(dy, axis=0)

    partial_ptr += program.to(tl.int64) * 2 * num_columns
    tl.store(partial_ptr + columns, dw, mask=in_columns)
    tl.store(partial_ptr + num_columns + columns, db, mask=in_columns)


def _require_lookups(
    op: str,
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
) -> None:
    require_tables(op, word=word, position=position, token_type=token_type)
    require_columns(op, word, MAX_EMBEDDING_COLUMNS)
    ids = {"input_ids": input_ids, "position_ids": position_ids}
    if token_type_ids is not None:
        ids["token_type_ids"] = token_type_ids
    require_vectors(op, like=word, length=input_ids.shape[0], length_name="T", dtype=torch.int64, **ids)
    if token_type_ids is not None and token_type is None:
        raise ValueError(f"{op}: token_type_ids given but token_type is None; leave them out, or give the table")


def embed_layer_norm_fwd(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    rows: Tensor | None,
    dropout_state: Tensor | None,
    eps: float,
    dropout_p: float,
    dropout_stream: int,
    padding_idx: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (T, C) in the tables' dtype, mean and rstd (T,) in float32 (float64 for float64). Does not synchronise."""
    op = "embed_layer_norm_fwd (triton)"
    _require_lookups(op, input_ids, position_ids, token_type_ids, word, position, token_type)
    num_tokens, num_columns = input_ids.shape[0], word.shape[1]
    require_vectors(op, like=word, length=num_columns, length_name="C", weight=weight, bias=bias)
    y = word.new_empty((num_tokens, num_columns))
    mean = word.new_empty((num_tokens,), dtype=accumulator_dtype(word.dtype))
    rstd = mean.new_empty((num_tokens,))
    if num_tokens == 0:  # an empty grid is a launch error
        return y, mean, rstd
    dropout = hidden_dropout(dropout_state, dropout_p, dropout_stream)
    columns = max(num_columns, 4)  # dropout draws four columns at a time
    tile = row_forward_tile(columns)
    with launch_device(word):
        _embed_layer_norm_fwd_kernel[(-(-num_tokens // tile.block_t),)](
            input_ids,
            position_ids,
            token_type_ids,
            word,
            position,
            token_type,
            weight,
            bias,
            None if dropout is None else rows,
            None if dropout is None else dropout.state,
            y,
            mean,
            rstd,
            num_tokens,
            num_columns,
            0 if rows is None else rows.shape[0] - 1,
            word.shape[0],
            position.shape[0],
            0 if token_type is None else token_type.shape[0],
            word.stride(0),
            position.stride(0),
            0 if token_type is None else token_type.stride(0),
            eps,
            0 if dropout is None else dropout.counter,
            0 if dropout is None else dropout.threshold,
            1.0 if dropout is None else dropout.scale,
            ACC=accumulator(word.dtype),
            BLOCK_T=tile.block_t,
            BLOCK_C=tile.block_c,
            num_warps=tile.num_warps,
            **dependent_launch(word),
        )
    return y, mean, rstd


def embed_layer_norm_bwd(
    dy: Tensor,
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    rows: Tensor | None,
    dropout_state: Tensor | None,
    dropout_p: float,
    dropout_stream: int,
    padding_idx: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dword, dposition, dtoken_type (empty without that table), dw and db, in the tables' dtype. No synchronisation."""
    op = "embed_layer_norm_bwd (triton)"
    _require_lookups(op, input_ids, position_ids, token_type_ids, word, position, token_type)
    num_tokens, num_columns = input_ids.shape[0], word.shape[1]
    require_rows(op, dy=dy)
    require_tables(op, word=word, dy=dy)
    statistics = accumulator_dtype(word.dtype)
    require_vectors(op, like=word, length=num_columns, length_name="C", weight=weight)
    require_vectors(op, like=word, length=dy.shape[0], length_name="T", dtype=torch.int64, input_ids=input_ids)
    require_vectors(op, like=word, length=num_tokens, length_name="T", dtype=statistics, mean=mean, rstd=rstd)
    dh = word.new_empty((num_tokens, num_columns), dtype=statistics)
    dw, db = weight.new_zeros((num_columns,)), weight.new_zeros((num_columns,))
    if num_tokens > 0:
        dropout = hidden_dropout(dropout_state, dropout_p, dropout_stream)
        tile, second = embedding_backward_tile(max(num_columns, 4)), sum_tile(num_columns)
        num_programs = min(-(-num_tokens // tile.block_t), ROW_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(word))
        partial = dh.new_empty((num_programs, 2, num_columns))
        with launch_device(word):
            _embed_layer_norm_bwd_kernel[(num_programs,)](
                dy,
                input_ids,
                position_ids,
                token_type_ids,
                word,
                position,
                token_type,
                weight,
                mean,
                rstd,
                None if dropout is None else rows,
                None if dropout is None else dropout.state,
                dh,
                partial,
                num_tokens,
                num_columns,
                0 if rows is None else rows.shape[0] - 1,
                word.shape[0],
                position.shape[0],
                0 if token_type is None else token_type.shape[0],
                dy.stride(0),
                word.stride(0),
                position.stride(0),
                0 if token_type is None else token_type.stride(0),
                0 if dropout is None else dropout.counter,
                0 if dropout is None else dropout.threshold,
                1.0 if dropout is None else dropout.scale,
                ACC=accumulator(word.dtype),
                BLOCK_T=tile.block_t,
                BLOCK_C=tile.block_c,
                num_warps=tile.num_warps,
            )
            _add_layer_norm_sum_partials_kernel[(-(-num_columns // second.block_c),)](
                partial,
                dw,
                db,
                num_programs,
                num_columns,
                ACC=accumulator(word.dtype),
                BLOCK_P=second.block_p,
                BLOCK_C=second.block_c,
                num_warps=second.num_warps,
            )
    ids, tables = [input_ids, position_ids], [word, position]
    if token_type is not None:
        ids.append(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        tables.append(token_type)
    dword, dposition, *rest = sums_by_id(dh, ids, tables, left_out=padding_idx)
    return dword, dposition, rest[0] if rest else word.new_zeros((0,)), dw, db
