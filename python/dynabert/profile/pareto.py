"""Which sub-networks nothing beats: no other is at least as good and as cheap, and better in one of the two."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices of the entries that no other one beats, cheapest first.

    Of entries that are equal in both the first stays.

    Args:
        costs: lower is better.
        scores: higher is better; one for each cost.

    Raises:
        ValueError: lists of different lengths; a value that is NaN.
    """
    if len(costs) != len(scores):
        raise ValueError(f"pareto_front: each entry has a cost and a score; got {len(costs)} and {len(scores)}")
    if any(value != value for value in (*costs, *scores)):
        raise ValueError("pareto_front: a value is NaN; allowed: numbers; leave out what was not measured")
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i], i)):
        if not front or scores[index] > scores[front[-1]]:
            front.append(index)
    return front
