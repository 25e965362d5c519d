"""Device functions of attention's dropout: the bits of `reference/dropout.py`, computed where used, never kept.

Philox4x32-10; a score's counter is (key position // 4, query row inside its group, stream and head, offset plus group),
its word is `key position % 4`. A call is about 100 integer operations and yields the four words of four neighbours.

Where a row's fours begin depends on where its sequence begins, so in a tile they are shifted from row to row and no
tile of words fits all rows. So words become bits first: a row's tile of up to 64 keys meets one group of four more than
its keys need, whose bits make one 64-bit number and the last four a second; a score then tests one bit.
"""

from __future__ import annotations

from dynabert_kernels.triton.environment import jit, tl

__all__ = ["MAX_KEYS", "is_kept", "keep_threshold", "kept_bits"]

MAX_KEYS = 64  # of a tile, so that a row's bits fit


def keep_threshold(probability: float) -> int:
    """A score is kept when its 32-bit word is at least this."""
    return int(probability * 2**32)


@jit
def _kept_of_four(
    state_ptr: tl.tensor,  # (2,) int64: seed, offset
    quads: tl.tensor,  # key position // 4, of one shape with rows
    rows: tl.tensor,
    stream_and_head: tl.tensor,
    group: tl.tensor,
    threshold: tl.tensor,
) -> tl.tensor:
    """Bit w is set where word w is kept, as int64."""
    seed = tl.load(state_ptr)
    low_offset = ((tl.load(state_ptr + 1) + group) & 0xFFFFFFFF).to(tl.uint32)
    nothing = (quads * 0).to(tl.uint32)  # the rounds mix the counters: all need the whole shape
    word_0, word_1, word_2, word_3 = tl.philox(
        seed,
        quads.to(tl.uint32),
        nothing + rows.to(tl.uint32),
        nothing + stream_and_head.to(tl.uint32),
        nothing + low_offset,
    )
    # A threshold of 2^31 and more is no int32, and the launch decides its type by its value.
    least = tl.full([], threshold, tl.uint32)
    low = (word_0 >= least).to(tl.int32) + (word_1 >= least).to(tl.int32) * 2
    return (low + (word_2 >= least).to(tl.int32) * 4 + (word_3 >= least).to(tl.int32) * 8).to(tl.int64)


@jit
def kept_bits(
    state_ptr: tl.tensor,  # (2,) int64: seed, offset
    rows: tl.tensor,  # (Q,): query rows inside their group
    first_positions: tl.tensor,  # (Q,): the tile's first key, as a position in the row's sequence; may be negative
    stream_and_head: tl.tensor,  # stream << 12 | head
    group: tl.tensor,
    threshold: tl.tensor,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Two numbers for each row: bit b of them together tells of position `first_positions // 4 * 4 + b`."""
    first_quads = first_positions >> 2
    slots = tl.arange(0, KEYS // 4)[None, :]
    quads = first_quads[:, None] + slots
    fours = _kept_of_four(state_ptr, quads, rows[:, None] + slots * 0, stream_and_head, group, threshold)
    low = tl.sum(fours << (slots * 4).to(tl.int64), axis=1)
    high = _kept_of_four(state_ptr, first_quads + KEYS // 4, rows, stream_and_head, group, threshold)
    return low, high


@jit
def is_kept(low: tl.tensor, high: tl.tensor, bits: tl.tensor, KEYS: tl.constexpr) -> tl.tensor:
    """Whether the score is kept whose key is `bits` places after the tile's first group of four."""
    word = tl.where(bits < KEYS, low, high)
    return ((word >> (bits % KEYS).to(tl.int64)) & 1) != 0
