"""Counter-based dropout inside a kernel: bit for bit the words of `reference/dropout.py`."""

from __future__ import annotations

from dynabert_kernels.triton.environment import jit, tl

__all__ = ["dropout_words", "keep_threshold"]


def keep_threshold(probability: float) -> int:
    """The smallest word that is kept; it needs 32 bits without a sign."""
    return int(probability * 2**32)


@jit
def dropout_words(
    state_ptr: tl.tensor,  # (2,) int64: seed, offset
    rows: tl.tensor,  # rows inside their group; broadcast against columns
    columns: tl.tensor,
    stream_and_head: tl.tensor,  # stream << 12 | head
    group: tl.tensor,  # the rows' group
) -> tl.tensor:
    """The random 32-bit word of each entry: word `column % 4` of Philox4x32-10 at counter `column // 4`."""
    seed = tl.load(state_ptr)
    low_offset = ((tl.load(state_ptr + 1) + group) & 0xFFFFFFFF).to(tl.uint32)
    nothing = (rows + columns) * 0
    word_0, word_1, word_2, word_3 = tl.philox(
        seed,
        (nothing + columns // 4).to(tl.uint32),
        (nothing + rows).to(tl.uint32),
        (nothing + stream_and_head).to(tl.uint32),
        nothing.to(tl.uint32) + low_offset,
    )
    word = columns % 4
    return tl.where(word < 2, tl.where(word == 0, word_0, word_1), tl.where(word == 2, word_2, word_3))
