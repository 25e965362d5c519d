"""Counter-based dropout of (T, C) tiles inside a kernel: bit for bit the masks of `reference/dropout.py`.

Philox4x32-10 gives four words for four neighbouring columns, so a tile draws a quarter of its entries' counters and
spreads the words over the columns.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dynabert_kernels.triton.environment import jit, tl

HEAD_BITS = 12  # the stream stands above the head number in one counter word


class HiddenDropout(NamedTuple):
    """Dropout of a (T, C) tensor whose rows count from the start of their group. `state`: int64 [seed, offset]."""

    state: Tensor
    probability: float
    stream: int

    @property
    def counter(self) -> int:
        """The counter word of the stream, head 0, as the int32 of these bits: from 2^31 on a launch makes it an int64."""
        word = (self.stream << HEAD_BITS) & 0xFFFFFFFF
        return word - 2**32 if word >= 2**31 else word

    @property
    def threshold(self) -> int:
        """The smallest word that is kept."""
        return int(self.probability * 2**32)

    @property
    def scale(self) -> float:
        return 1.0 / (1.0 - self.probability)


def hidden_dropout(state: Tensor | None, probability: float, stream: int) -> HiddenDropout | None:
    """None where nothing is dropped."""
    return None if state is None or probability == 0.0 else HiddenDropout(state, probability, stream)


@jit
def dropout_factors(
    state_ptr: tl.tensor,  # (2,) int64: seed, offset
    positions: tl.tensor,  # (ROWS,) int32: rows inside their group
    group: tl.tensor,  # of all rows
    first_column: tl.tensor,  # a multiple of 4
    counter: tl.tensor,  # stream << 12 | head
    threshold: tl.tensor,
    scale: tl.tensor,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,  # a power of two, at least 4
) -> tl.tensor:
    """(ROWS, COLUMNS) of 0 or scale."""
    seed = tl.load(state_ptr)
    low_offset = (tl.load(state_ptr + 1) + group).to(tl.int32)  # its low 32 bits
    quads = (first_column // 4 + tl.arange(0, COLUMNS // 4))[None, :]
    nothing = tl.zeros([ROWS, COLUMNS // 4], dtype=tl.int32)
    words = tl.philox(seed, nothing + quads, nothing + positions[:, None], nothing + counter, nothing + low_offset)
    # Entry [.., p, q] of the joined words is word 2 p + q.
    even, odd = tl.join(words[0], words[2]), tl.join(words[1], words[3])
    spread = tl.reshape(tl.join(even, odd), [ROWS, COLUMNS])
    # Compared as int64: a threshold of 2^31 and more is no int32, and the launch decides its type by its value.
    kept = spread.to(tl.int64) >= threshold
    return tl.where(kept, scale, 0.0).to(ACC)
