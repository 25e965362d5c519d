"""Tile sizes of every kernel, in one place: by shape, with a stated default.

No entry was timed on a card yet. They were chosen from what the compiler reports (`make codegen`: no spills on sm_80
and sm_90, 16-byte loads) and from bytes in flight: a memory-bound kernel needs about 20 KB of loads under way per
multiprocessor.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dynabert_kernels.triton.environment import architecture, multiprocessors

# A row is held in registers, whole. Wider rows would spill; no BERT is wider than a quarter of this.
MAX_ROW_COLUMNS = 8192


class RowTile(NamedTuple):
    """One program's tile of whole rows: `block_t` rows of `block_c` columns (a power of two)."""

    block_t: int
    block_c: int
    num_warps: int


class SumTile(NamedTuple):
    """One program's tile when partial results are summed: `block_p` partials by `block_c` columns at a time."""

    block_p: int
    block_c: int
    num_warps: int


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def row_forward_tile(num_columns: int) -> RowTile:
    """Tile of a forward row reduction (LayerNorm).

    16 elements per thread. Depends on the row's width alone, never on the number of rows: so a row's result is the same
    bit for bit whatever else is in the batch.
    """
    block_c = next_power_of_2(num_columns)
    num_warps = 4 if block_c <= 2048 else 8
    return RowTile(block_t=min(16, max(1, num_warps * 32 * 16 // block_c)), block_c=block_c, num_warps=num_warps)


def row_backward_tile(num_columns: int) -> RowTile:
    """Tile of a backward row reduction that also sums over rows: 16 elements per thread, 8 warps."""
    block_c = next_power_of_2(num_columns)
    num_warps = 8 if block_c <= 4096 else 16
    return RowTile(block_t=min(16, max(1, num_warps * 32 * 16 // block_c)), block_c=block_c, num_warps=num_warps)


def row_pair_tile(num_columns: int) -> RowTile:
    """Tile of a reduction over two rows at once (a student's and its teacher's): 16 elements of each per thread.

    Narrow rows, such as logits, are many to a program. As in `row_forward_tile`, the width alone decides.
    """
    block_c = next_power_of_2(num_columns)
    num_warps = max(4, min(16, block_c // 512))
    return RowTile(block_t=min(128, max(1, num_warps * 32 * 16 // block_c)), block_c=block_c, num_warps=num_warps)


# One program adds a group's row losses, `block_t` at a time: unmeasured.
GROUP_SUM_TILE = RowTile(block_t=1024, block_c=1, num_warps=4)


# The embeddings' rows meet three tables and dropout, so fewer elements fit a thread's registers, and narrower rows a
# program. No BERT is wider than half of this.
MAX_EMBEDDING_COLUMNS = 4096


def embedding_backward_tile(num_columns: int) -> RowTile:
    """Tile of the embeddings' backward: 8 elements per thread. 16 spill in triton 3.6 (`make codegen`)."""
    block_c = next_power_of_2(num_columns)
    num_warps = 8 if block_c <= 2048 else 16
    return RowTile(block_t=min(16, max(1, num_warps * 32 * 8 // block_c)), block_c=block_c, num_warps=num_warps)


# Programs of a persistent row kernel per multiprocessor: two of 8 warps hide each other's barriers; more would only add
# partials.
ROW_PROGRAMS_PER_MULTIPROCESSOR = 2


def sum_tile(num_columns: int) -> SumTile:
    """Tile of the second pass over partial sums: 32 columns are one 128-byte line of float32."""
    return SumTile(block_p=64, block_c=min(32, next_power_of_2(num_columns)), num_warps=4)


# Head sizes that attention is written for: a power of two fills whole tensor-core tiles.
ATTENTION_HEAD_SIZES = (16, 32, 64, 128)


class AttentionTile(NamedTuple):
    """One program's tile of scores: `block_q` queries by `block_k` keys, and loads that are `num_stages` deep."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


_ATTENTION_FLOAT32 = {
    "forward": {
        16: AttentionTile(32, 32, 4, 2),
        32: AttentionTile(16, 32, 4, 2),
        64: AttentionTile(32, 32, 4, 2),
        128: AttentionTile(16, 16, 4, 2),
    },
    "dq": {
        16: AttentionTile(32, 32, 4, 2),
        32: AttentionTile(16, 32, 4, 2),
        64: AttentionTile(32, 32, 4, 2),
        128: AttentionTile(16, 32, 8, 1),
    },
    "dkdv": {64: AttentionTile(16, 32, 4, 1), 128: AttentionTile(16, 16, 8, 2)},
    "dbias": {64: AttentionTile(16, 32, 4, 2), 128: AttentionTile(16, 32, 8, 1)},
}
# All unmeasured: the largest that spill neither with a bias nor with dropout nor with both, in triton 3.8 and in 3.6
# (`make codegen`). By chip, bytes of an element, kernel, and the largest head size that an entry serves. Dropout bounds
# block_k by 64; the bias's gradient bounds block_q by block_k. On sm_90 a tile has 64 queries (or keys, in dkdv)
# wherever it fits, which wgmma needs; below that the older instruction multiplies.
ATTENTION_TILES: dict[tuple[str, int], dict[str, dict[int, AttentionTile]]] = {
    ("sm_90", 2): {
        "forward": {64: AttentionTile(64, 64, 4, 2), 128: AttentionTile(64, 32, 4, 2)},
        "dq": {64: AttentionTile(64, 64, 4, 2), 128: AttentionTile(64, 32, 4, 2)},
        "dkdv": {64: AttentionTile(32, 64, 4, 2), 128: AttentionTile(32, 32, 4, 2)},
        "dbias": {64: AttentionTile(64, 64, 4, 2), 128: AttentionTile(16, 32, 4, 2)},
    },
    ("sm_80", 2): {
        "forward": {64: AttentionTile(32, 64, 4, 2), 128: AttentionTile(32, 32, 4, 2)},
        "dq": {
            32: AttentionTile(32, 32, 4, 2),
            64: AttentionTile(32, 64, 4, 2),
            128: AttentionTile(32, 32, 4, 2),
        },
        "dkdv": {
            32: AttentionTile(32, 32, 4, 2),
            64: AttentionTile(64, 32, 4, 2),
            128: AttentionTile(32, 32, 4, 2),
        },
        "dbias": {128: AttentionTile(16, 32, 4, 2)},
    },
    # Three TF32 products for each of float32, with both operands' high and low parts in registers.
    ("sm_90", 4): {
        **_ATTENTION_FLOAT32,
        "dbias": {
            32: AttentionTile(16, 32, 4, 2),
            64: AttentionTile(16, 16, 8, 2),
            128: AttentionTile(16, 32, 8, 1),
        },
    },
    ("sm_80", 4): _ATTENTION_FLOAT32,
}
# Small, so that a test of few rows meets several tiles in each direction.
_INTERPRETER_ATTENTION_TILE = AttentionTile(block_q=32, block_k=32, num_warps=4, num_stages=1)


def attention_tile(kernel: str, qkv: Tensor) -> AttentionTile:
    """Tile of the kernel "forward", "dq", "dkdv" or "dbias". Depends on chip, dtype and head size alone.

    So a row's result does not depend on what else is in the batch, but for the order in which its keys are summed.
    """
    chip = architecture(qkv)
    if chip == "interpreter":
        return _INTERPRETER_ATTENTION_TILE
    by_size = ATTENTION_TILES[chip, qkv.element_size()][kernel]
    return next(tile for size, tile in by_size.items() if qkv.shape[3] <= size)


class ShortTile(NamedTuple):
    """One program's tile of scores where whole sequences fit: `block` queries by the same `block` keys."""

    block: int
    num_warps: int


# By chip, bytes of an element, kernel, and the largest head size that an entry serves; none: not with this kernel.
# Unmeasured; spill-free as above (`make codegen`).
SHORT_TILES: dict[tuple[str, int], dict[str, dict[int, ShortTile]]] = {
    ("sm_90", 2): {"forward": {64: ShortTile(64, 4)}, "backward": {64: ShortTile(64, 4)}},
    ("sm_80", 2): {"forward": {64: ShortTile(64, 4)}, "backward": {64: ShortTile(64, 4)}},
}
# So small that tests of a few rows meet windows with one program, two and none, and longer sequences the other kernels.
_INTERPRETER_SHORT_TILE = ShortTile(block=16, num_warps=4)


def short_attention_tile(kernel: str, qkv: Tensor, max_seqlen: int) -> ShortTile | None:
    """Tile of the one-step kernel "forward" or "backward"; None: sequences are too long for it, or it has no tile."""
    chip = architecture(qkv)
    if chip == "interpreter":
        tile: ShortTile | None = _INTERPRETER_SHORT_TILE
    else:
        by_size = SHORT_TILES.get((chip, qkv.element_size()), {}).get(kernel, {})
        tile = next((tile for size, tile in by_size.items() if qkv.shape[3] <= size), None)
    return tile if tile is not None and max_seqlen <= tile.block else None


class GemmTile(NamedTuple):
    """One program's tile of a ragged product.

    `block_m` rows by `block_n` columns, `block_k` of the reduction at a time and loads that are `num_stages` deep.
    `parts`: the epilogue takes the columns in so many parts, for its registers. `programs_per_multiprocessor`:
    the most that a launch makes; as many fit in the leanest epilogue, and where fewer do, the others wait their turn.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    parts: int
    programs_per_multiprocessor: int


# Largest first, all unmeasured. Only tiles that do not spill in any epilogue (`make codegen`). float32 is multiplied
# without tensor cores, whose operands are held in registers: smaller tiles.
GEMM_TILES: dict[tuple[str, int], tuple[GemmTile, ...]] = {  # by chip and bytes of an element
    ("sm_90", 2): (
        GemmTile(128, 128, 64, 8, 3, 2, 2),
        GemmTile(64, 128, 64, 8, 3, 2, 2),
        GemmTile(64, 64, 64, 4, 4, 1, 3),
        GemmTile(16, 64, 64, 4, 4, 1, 4),
    ),
    ("sm_80", 2): (
        GemmTile(128, 128, 64, 8, 3, 2, 1),
        GemmTile(64, 128, 64, 8, 3, 2, 2),
        GemmTile(64, 64, 64, 4, 3, 1, 4),
        GemmTile(16, 64, 64, 4, 4, 1, 3),
    ),
    ("sm_90", 4): (GemmTile(64, 64, 32, 8, 3, 1, 2), GemmTile(16, 64, 32, 4, 3, 1, 4)),
    # Steps of 16: with 32 the compiler spills in inference.
    ("sm_80", 4): (GemmTile(64, 64, 16, 8, 4, 1, 2), GemmTile(16, 64, 16, 4, 4, 1, 4)),
    # Small, so that a test of few rows meets several tiles in each direction.
    ("interpreter", 2): (GemmTile(16, 32, 32, 4, 1, 2, 1), GemmTile(16, 16, 16, 4, 1, 1, 1)),
    ("interpreter", 4): (GemmTile(16, 32, 32, 4, 1, 2, 1), GemmTile(16, 16, 16, 4, 1, 1, 1)),
    ("interpreter", 8): (GemmTile(16, 32, 32, 4, 1, 2, 1), GemmTile(16, 16, 16, 4, 1, 1, 1)),
}


def gemm_tile(x: Tensor, num_groups: int, num_columns: int) -> GemmTile:
    """Tile of a ragged product of x (T, ...) over `num_columns` columns: unmeasured.

    The largest that gives every multiprocessor a tile and is not taller than twice the mean group; else the smallest.
    """
    num_rows = x.shape[0]
    tiles = GEMM_TILES[architecture(x), x.element_size()]
    for tile in tiles:
        enough = -(-num_rows // tile.block_m) * -(-num_columns // tile.block_n) >= multiprocessors(x)
        if enough and tile.block_m * max(num_groups, 1) <= 2 * num_rows:
            return tile
    return tiles[-1]


# Blocks of the reduction that a piece has at the least, and pieces at the most: unmeasured. Fewer blocks would not
# cover a pipeline's start; more pieces would be bytes that the LayerNorm waits for.
SPLIT_BLOCKS = 4
MAX_SPLITS = 8
_INTERPRETER_SPLIT_BLOCKS = 1  # so that tests of few neurons meet pieces


def split_count(x: Tensor, num_groups: int, num_columns: int, max_in: int) -> int:
    """Pieces that a product's reduction is cut into, so that few rows keep two tasks a multiprocessor busy; 1: none.

    For x (T, max_in) with its `gemm_tile`. Two, four or eight, by sizes alone: unmeasured.
    """
    tile = gemm_tile(x, num_groups, num_columns)
    shortest = tile.block_k * (_INTERPRETER_SPLIT_BLOCKS if architecture(x) == "interpreter" else SPLIT_BLOCKS)
    tiles = -(-x.shape[0] // tile.block_m) * -(-num_columns // tile.block_n)
    splits = 1
    while (
        2 * splits <= MAX_SPLITS
        and 2 * splits * shortest <= max_in
        and 2 * splits * tiles <= 4 * multiprocessors(x)
        and tiles < multiprocessors(x)
    ):
        splits *= 2
    return splits


class ColumnSumTile(NamedTuple):
    """One program's tile when columns are summed: `block_t` rows of one group by `block_c` columns."""

    block_t: int
    block_c: int
    num_warps: int


# Unmeasured. 32 elements a thread; a partial of float32 for every 32 rows adds 6 % to bfloat16's traffic.
COLUMN_SUM_TILE = ColumnSumTile(block_t=32, block_c=128, num_warps=4)

# As GEMM_TILES, for the weight's gradient: `block_m` by `block_n` of the weight, `block_k` rows at a time. A tile holds
# two sums (of this run of rows, and of all runs), so it is smaller where the operands are held in registers too.
WEIGHT_GRADIENT_TILES: dict[tuple[str, int], tuple[GemmTile, ...]] = {
    ("sm_90", 2): (GemmTile(128, 128, 64, 8, 3, 1, 1), GemmTile(64, 64, 64, 4, 3, 1, 3)),
    ("sm_80", 2): (GemmTile(128, 64, 64, 8, 3, 1, 1), GemmTile(64, 64, 64, 4, 3, 1, 2)),
    ("sm_90", 4): (GemmTile(64, 64, 32, 8, 3, 1, 2),),
    ("sm_80", 4): (GemmTile(64, 64, 32, 8, 3, 1, 2),),
    ("interpreter", 2): (GemmTile(32, 32, 16, 4, 1, 1, 1),),
    ("interpreter", 4): (GemmTile(32, 32, 16, 4, 1, 1, 1),),
    ("interpreter", 8): (GemmTile(32, 32, 16, 4, 1, 1, 1),),
}


def weight_gradient_tile(x: Tensor, dw_rows: int, dw_columns: int) -> GemmTile:
    """Tile of a weight's gradient: the largest that gives every multiprocessor one, else the smallest; unmeasured."""
    tiles = WEIGHT_GRADIENT_TILES[architecture(x), x.element_size()]
    for tile in tiles:
        if -(-dw_rows // tile.block_m) * -(-dw_columns // tile.block_n) >= multiprocessors(x):
            return tile
    return tiles[-1]
