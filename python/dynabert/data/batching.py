"""Which examples go into a batch together: bounded by tokens, which memory and time follow where nothing is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def token_batches(
    lengths: Sequence[int],
    max_tokens: int,
    *,
    max_sequences: int | None = None,
    order: Sequence[int] | None = None,
) -> Iterator[list[int]]:
    """Split examples into runs of at most ``max_tokens`` tokens (and ``max_sequences`` examples), in the given order.

    Args:
        lengths: tokens of each example.
        max_tokens: most tokens in a batch; an example that is longer on its own is a batch of its own.
        max_sequences: most examples in a batch; None for no bound.
        order: indices into ``lengths``; None takes them longest first, so that the largest batch comes first and a lack
            of memory shows at once.

    Yields:
        Lists of indices; each index of ``order`` once.

    Raises:
        ValueError: a bound below 1.
    """
    if max_tokens < 1 or (max_sequences is not None and max_sequences < 1):
        raise ValueError(
            f"token_batches: bounds must be at least 1; got max_tokens {max_tokens} and max_sequences {max_sequences}"
        )
    if order is None:
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    run: list[int] = []
    tokens = 0
    for index in order:
        if run and (tokens + lengths[index] > max_tokens or len(run) == max_sequences):
            yield run
            run, tokens = [], 0
        run.append(index)
        tokens += lengths[index]
    if run:
        yield run
