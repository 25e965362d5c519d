"""Counter-based dropout: which entries are kept is a function of their place, not of the order of computation.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The key is the seed; the counter
is (column // 4, row inside the group, stream and head, offset plus group). A column takes word ``column % 4``. An entry
is kept when its word is at least ``floor(p * 2**32)``, and scaled by ``1 / (1 - p)``.

The row counts from the start of its group and the group's index is added to the offset. So a group in a stacked batch
gets exactly the mask it gets alone with ``offset + group``.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
HEAD_BITS = 12  # the stream stands above the head number in one counter word


def philox(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words, as int64 tensors, for each counter (broadcast against each other)."""
    key_0, key_1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # int64 products wrap as two's complement; the 64 bits are those of the unsigned product.
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((product_1 >> 32) & _MASK) ^ c1 ^ key_0,
            product_1 & _MASK,
            ((product_0 >> 32) & _MASK) ^ c3 ^ key_1,
            product_0 & _MASK,
        )
        key_0, key_1 = (key_0 + _WEYL_0) & _MASK, (key_1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def dropout_scale(
    state: Tensor | None, p: float, *, stream: int, group: int, rows: range, columns: int, heads: int, like: Tensor
) -> Tensor | None:
    """Factors ``0`` or ``1/(1-p)`` of shape (heads, len(rows), columns); None when nothing is dropped.

    ``rows``: positions inside the group. ``like``: gives dtype and device.
    """
    if p == 0.0 or state is None:
        return None
    device = like.device
    blocks = -(-columns // 4)
    counter_0 = torch.arange(blocks, device=device).view(1, 1, blocks)
    counter_1 = torch.arange(rows.start, rows.stop, device=device).view(1, len(rows), 1)
    counter_2 = (stream << HEAD_BITS) + torch.arange(heads, device=device).view(heads, 1, 1)
    counter_3 = ((state[1] + group) & _MASK).view(1, 1, 1)
    words = torch.stack(torch.broadcast_tensors(*philox(counter_0, counter_1, counter_2, counter_3, state[0])), -1)
    kept = words.reshape(heads, len(rows), blocks * 4)[..., :columns] >= int(p * 2**32)
    return kept.to(like.dtype) * (1.0 / (1.0 - p))
