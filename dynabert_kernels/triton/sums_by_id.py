"""Sums of rows by id: the way from the tokens' gradients back into the tables they were read from.

    out[table][r] = sum over the tokens t with ids[table][t] == r of rows[t],    0 where there is none

No atomics: two tokens with the same id would then be added in any order. The ids of each table are sorted, stably and
on the device, so that equal ids are neighbours and each run of them holds its tokens in their order. Sorted places are
cut every `CHUNK`: a piece is what one run has in one chunk. So a token that is everywhere ([CLS], position 0, type 0)
is many pieces and not one program's work.

First kernel: one program for each sorted place; where a piece begins there, it sums the piece's rows. A run in one
piece is finished and stored. A run in several leaves partial sums; a chunk has at most two, of the run that comes from
the chunk before and of the run that goes on into the next. Second kernel: one program for each chunk and block of
columns; where a run of several pieces begins in the chunk, it adds them in their order. What is added to what depends
on the ids alone: the same bits each time.

Bytes: each row once for each table, each stored row once, and the fill of the tables with zeros, which for a vocabulary
is most of it. Operations: T*C additions for each table. Sums are float32 (float64 for float64), rounded once.

An id outside its table takes part nowhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynabert_kernels.triton.borders import last_at_most
from dynabert_kernels.triton.environment import accumulator, architecture, jit, launch_device, tl
from dynabert_kernels.triton.tiles import next_power_of_2, row_forward_tile, sum_tile

__all__ = ["sums_by_id"]

# Unmeasured. A piece of 32 rows is 8 steps of 4 rows; a partial for 32 rows adds 3 % to the traffic.
CHUNK = 32
INTERPRETER_CHUNK = 4  # small, so that a test of few rows meets runs of many pieces
_ROWS = 4


@jit
def _table(
    table: tl.tensor,
    out_0: tl.tensor,
    out_1: tl.tensor,
    out_2: tl.tensor,
    size_0: tl.tensor,
    size_1: tl.tensor,
    size_2: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """The table of this program, and how many rows it has."""
    out, size = out_0, size_0.to(tl.int64)
    if table == 1:
        out, size = out_1, size_1.to(tl.int64)
    if table == 2:
        out, size = out_2, size_2.to(tl.int64)
    return out, size


@jit(do_not_specialize=["num_rows", "left_out", "size_0", "size_1", "size_2"])
def _sum_pieces_kernel(
    rows_ptr: tl.tensor,  # (T, C) of ACC, contiguous
    ids_ptr: tl.tensor,  # (tables, T) int64, each ascending
    order_ptr: tl.tensor,  # (tables, T) int64: the token of each sorted place
    partial_ptr: tl.tensor,  # (tables, 2 * chunks, C) of ACC
    out_0: tl.tensor,  # (size_0, C) contiguous, zeros
    out_1: tl.tensor,
    out_2: tl.tensor,
    size_0: tl.tensor,
    size_1: tl.tensor,
    size_2: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    left_out: tl.tensor,  # an id of table 0 that gets no sum
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    place, table = tl.program_id(0), tl.program_id(1)
    out_ptr, size = _table(table, out_0, out_1, out_2, size_0, size_1, size_2)
    ids_ptr += table.to(tl.int64) * num_rows
    order_ptr += table.to(tl.int64) * num_rows
    own = tl.load(ids_ptr + place)
    same_before = (tl.load(ids_ptr + place - 1, mask=place > 0, other=0) == own) & (place > 0)
    at_cut = place % CHUNK == 0
    wanted = (own >= 0) & (own < size) & ((own != left_out) | (table != 0))
    if wanted & (at_cut | (same_before == 0)):
        ahead = tl.arange(0, CHUNK)
        inside = (ahead < CHUNK - place % CHUNK) & (ahead < num_rows - place)
        equal = (tl.load(ids_ptr + place + ahead, mask=inside, other=0) == own) & inside
        count = tl.sum(equal.to(tl.int32), axis=0)  # sorted: the equal ones are the first ones

        columns = tl.arange(0, BLOCK_C)
        in_columns = columns < num_columns
        total = tl.zeros([BLOCK_C], dtype=ACC)
        for start in range(0, count, ROWS):
            taken = start + tl.arange(0, ROWS)
            tokens = tl.load(order_ptr + place + taken, mask=taken < count, other=0)
            tile_ptr = rows_ptr + tokens[:, None] * num_columns + columns[None, :]
            total += tl.sum(tl.load(tile_ptr, mask=(taken < count)[:, None] & in_columns[None, :], other=0.0), axis=0)

        end = place + count
        same_after = (tl.load(ids_ptr + end, mask=end < num_rows, other=0) == own) & (end < num_rows)
        if same_before | same_after:
            # The run that comes from before has the chunk's first slot, the one that only goes on the second.
            slot = 2 * (place // CHUNK) + (same_before == 0).to(tl.int32)
            chunks = (num_rows + CHUNK - 1) // CHUNK
            slot = table.to(tl.int64) * 2 * chunks + slot
            tl.store(partial_ptr + slot * num_columns + columns, total, mask=in_columns)
        else:
            tl.store(out_ptr + own * num_columns + columns, total.to(out_ptr.dtype.element_ty), mask=in_columns)


@jit(do_not_specialize=["num_rows", "left_out", "size_0", "size_1", "size_2"])
def _join_pieces_kernel(
    ids_ptr: tl.tensor,  # (tables, T) int64, each ascending
    partial_ptr: tl.tensor,  # (tables, 2 * chunks, C) of ACC
    out_0: tl.tensor,  # (size_0, C) contiguous
    out_1: tl.tensor,
    out_2: tl.tensor,
    size_0: tl.tensor,
    size_1: tl.tensor,
    size_2: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    left_out: tl.tensor,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    chunk, table = tl.program_id(0), tl.program_id(2)
    out_ptr, size = _table(table, out_0, out_1, out_2, size_0, size_1, size_2)
    ids_ptr += table.to(tl.int64) * num_rows
    begin, end = chunk * CHUNK, chunk * CHUNK + CHUNK  # another chunk follows: the grid ends before the last
    own = tl.load(ids_ptr + end - 1)
    goes_on = tl.load(ids_ptr + end) == own
    before = tl.load(ids_ptr + begin - 1, mask=begin > 0, other=0)
    came_in = (begin > 0) & (before == own)  # ascending: then the whole chunk is this run
    wanted = (own >= 0) & (own < size) & ((own != left_out) | (table != 0))
    if wanted & goes_on & (came_in == 0):
        last = last_at_most(ids_ptr, num_rows - 1, own).to(tl.int32) // CHUNK
        columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
        in_columns = columns < num_columns
        chunks = (num_rows + CHUNK - 1) // CHUNK
        partial_ptr += table.to(tl.int64) * 2 * chunks * num_columns
        first = tl.load(partial_ptr + (2 * chunk + 1).to(tl.int64) * num_columns + columns, mask=in_columns, other=0.0)
        total = tl.zeros([BLOCK_P, BLOCK_C], dtype=ACC)
        for start in range(chunk + 1, last + 1, BLOCK_P):
            following = start + tl.arange(0, BLOCK_P)
            inside = (following <= last)[:, None] & in_columns[None, :]
            tile_ptr = partial_ptr + (2 * following).to(tl.int64)[:, None] * num_columns + columns[None, :]
            total += tl.load(tile_ptr, mask=inside, other=0.0)
        joined = first + tl.sum(total, axis=0)
        tl.store(out_ptr + own * num_columns + columns, joined.to(out_ptr.dtype.element_ty), mask=in_columns)


def sums_by_id(rows: Tensor, ids: list[Tensor], tables: list[Tensor], *, left_out: int) -> list[Tensor]:
    """For each of up to three tables (size, C) its sums, in the table's dtype.

    ``rows``: (T, C) contiguous, of the accumulators' dtype. ``ids``: for each table (T,) int64. ``left_out``: a row of
    the first table that stays zero, or -1. Nothing is checked here. Does not synchronise.
    """
    outputs = [table.new_zeros(table.shape) for table in tables]
    num_rows, num_columns = rows.shape
    if num_rows == 0:  # an empty grid is a launch error
        return outputs
    sorted_ids, order = torch.sort(torch.stack(ids), dim=1, stable=True)
    chunk = INTERPRETER_CHUNK if architecture(rows) == "interpreter" else CHUNK
    chunks = -(-num_rows // chunk)
    partial = rows.new_empty((len(tables), 2 * chunks, num_columns))
    three = [*outputs, *[outputs[0]] * (3 - len(outputs))]
    sizes = [output.shape[0] for output in three]
    tile, second = row_forward_tile(num_columns), sum_tile(num_columns)
    with launch_device(rows):
        _sum_pieces_kernel[(num_rows, len(tables))](
            rows,
            sorted_ids,
            order,
            partial,
            *three,
            *sizes,
            num_rows,
            num_columns,
            left_out,
            ACC=accumulator(rows.dtype),
            CHUNK=chunk,
            ROWS=_ROWS,
            BLOCK_C=next_power_of_2(num_columns),
            num_warps=tile.num_warps,
        )
        if chunks > 1:
            _join_pieces_kernel[(chunks - 1, -(-num_columns // second.block_c), len(tables))](
                sorted_ids,
                partial,
                *three,
                *sizes,
                num_rows,
                num_columns,
                left_out,
                ACC=accumulator(rows.dtype),
                CHUNK=chunk,
                BLOCK_P=second.block_p,
                BLOCK_C=second.block_c,
                num_warps=second.num_warps,
            )
    return outputs
