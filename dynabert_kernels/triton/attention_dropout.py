"""Device function of attention's dropout: the bits of `reference/dropout.py`, computed where they are used, never kept.

Philox4x32-10; a score's counter is (key position // 4, query row inside its group, stream and head, offset plus group),
its word is `key position % 4`. About 100 integer operations for each call, which yields four words.
"""

from __future__ import annotations

from dynabert_kernels.triton.environment import jit, tl

__all__ = ["keep_threshold", "kept"]


def keep_threshold(probability: float) -> int:
    """A score is kept when its 32-bit word is at least this."""
    return int(probability * 2**32)


@jit
def kept(
    state_ptr: tl.tensor,  # (2,) int64: seed, offset
    rows: tl.tensor,  # query rows inside their group; broadcasts against positions
    positions: tl.tensor,  # key positions inside their sequence; anything where the caller masks
    stream_and_head: tl.tensor,  # stream << 12 | head
    group: tl.tensor,
    threshold: tl.tensor,
) -> tl.tensor:
    """Which scores are kept."""
    seed = tl.load(state_ptr)
    low_offset = ((tl.load(state_ptr + 1) + group) & 0xFFFFFFFF).to(tl.uint32)
    nothing = (rows * 0 + positions * 0).to(tl.uint32)  # the rounds mix the counters: all need the whole shape
    word_0, word_1, word_2, word_3 = tl.philox(
        seed,
        nothing + (positions >> 2).to(tl.uint32),
        nothing + rows.to(tl.uint32),
        nothing + stream_and_head.to(tl.uint32),
        nothing + low_offset,
    )
    which = positions & 3
    word = tl.where(which < 2, tl.where(which == 0, word_0, word_1), tl.where(which == 2, word_2, word_3))
    # A threshold of 2^31 and more is no int32, and the launch decides its type by its value.
    return word >= tl.full([], threshold, tl.uint32)
