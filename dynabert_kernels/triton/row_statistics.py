"""Mean and deviation of rows that a program holds whole, for every kernel that normalises.

The variance is taken about the mean, in the accumulator's type: the sum of squares less the squared mean would lose
what a row far from zero has.
"""

from __future__ import annotations

from dynabert_kernels.triton.environment import jit, tl

__all__ = ["row_statistics"]


@jit
def row_statistics(
    h: tl.tensor, in_columns: tl.tensor, num_columns: tl.tensor, eps: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Each row's mean, ``h - mean``, and ``1 / sqrt(variance + eps)``.

    ``h``: (rows, columns), 0 past the last column. ``in_columns``: (1, columns).
    """
    mean = tl.sum(h, axis=1) / num_columns
    # Columns past C hold zero, so they are -mean after centring: they must not reach the variance.
    centred = tl.where(in_columns, h - mean[:, None], 0.0)
    return mean, centred, 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / num_columns + eps)
