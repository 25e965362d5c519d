"""What a batch takes at each of a few sub-networks, and which of them answers all that waits in time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dynabert.configuration import Subnet
from dynabert.data.tokenisation import Encoded

if TYPE_CHECKING:
    from dynabert.engine.inference import InferenceEngine

SHORT_TOKENS = 16  # of the smaller batch that is timed: one text
LONG_TEXTS, LONG_TOKENS = 8, 64  # and of the larger one
BATCH_SHARE = 0.25  # of the promise: the longest that a batch may run, and a new request has to wait for it


class SubnetTime(NamedTuple):
    """Measured times of a sub-network: a batch takes ``fixed_ms + ms_per_token * tokens``."""

    subnet: str
    fixed_ms: float
    ms_per_token: float

    def milliseconds(self, tokens: float, batches: int = 1) -> float:
        """Of so many tokens in so many batches."""
        return self.fixed_ms * batches + self.ms_per_token * tokens

    def tokens_in(self, milliseconds: float) -> float:
        """Of a batch that takes so long; 0 where none is so fast."""
        return max(0.0, (milliseconds - self.fixed_ms) / self.ms_per_token)


class Waiting(NamedTuple):
    """What a server has to answer.

    ``tokens``: of the requests that take any sub-network; ``fixed_tokens``: of the others, each as many tokens of the
    ladder's first sub-network as its own costs; ``first_tokens``: of the request that came first; ``left_ms``: until
    the earliest promise of any.
    """

    tokens: int
    fixed_tokens: float
    first_tokens: int
    left_ms: float


class Choice(NamedTuple):
    """A sub-network by its place in the ladder, and how many tokens of it the next batch may be worth."""

    place: int
    batch_tokens: int


def choose(
    ladder: Sequence[SubnetTime], waiting: Waiting, promise_ms: float, most_tokens: int, slowdown: float = 1.0
) -> Choice:
    """The first sub-network at which all that waits would be answered before the earliest promise ends; where there is
    none, the one that is done first.

    Args:
        ladder: the one that is wanted most first.
        waiting: what is to be answered.
        promise_ms: in which a request is to be answered; a batch takes at most a quarter of it, but is not so small
            that most of its time is what any batch takes, nor smaller than the first text.
        most_tokens: of a batch.
        slowdown: by which batches take longer now than when the ladder was measured.
    """
    found: list[tuple[float, Choice]] = []
    for index, own in enumerate(ladder):
        room = max(own.tokens_in(BATCH_SHARE * promise_ms / slowdown), own.fixed_ms / own.ms_per_token)
        room = min(float(most_tokens), room)
        batch_tokens = max(waiting.first_tokens, int(room))
        all_tokens = waiting.tokens + waiting.fixed_tokens * ladder[0].ms_per_token / own.ms_per_token
        batches = max(1, math.ceil(all_tokens / batch_tokens))
        needed = own.milliseconds(all_tokens, batches)
        if needed * slowdown <= waiting.left_ms:
            return Choice(index, batch_tokens)
        found.append((needed, Choice(index, batch_tokens)))
    return min(found)[1]


def measure_ladder(
    engine: InferenceEngine,
    subnets: Sequence[Subnet],
    *,
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[SubnetTime, ...]:
    """Times a short and a long batch at each sub-network, the best of ``rounds``, all of them interleaved.

    Args:
        engine: whose network is timed, on its device.
        subnets: any that fit it.
        rounds: of each batch, after two that warm up.
        clock: seconds.
    """
    named = [engine._resolve_one(subnet).text for subnet in subnets]
    long = min(LONG_TOKENS, engine.max_length)
    batches = [_made_up(engine, 1, min(SHORT_TOKENS, max(1, long // 2))), _made_up(engine, LONG_TEXTS, long)]
    best = [[math.inf, math.inf] for _ in subnets]
    for turn in range(rounds + 2):  # a graph is captured when a batch is met for the second time
        for index, subnet in enumerate(subnets):
            for which, batch in enumerate(batches):
                begun = clock()
                engine.logits(batch, [subnet] * len(batch))
                took = 1e3 * (clock() - begun)
                if turn >= 2:
                    best[index][which] = min(best[index][which], took)
    few, many = (sum(batch.lengths) for batch in batches)
    ladder = []
    for name, (short_ms, long_ms) in zip(named, best, strict=True):
        per_token = max(long_ms - short_ms, 1e-6) / (many - few)
        ladder.append(SubnetTime(name, max(0.0, short_ms - few * per_token), per_token))
    return tuple(ladder)


def _made_up(engine: InferenceEngine, texts: int, tokens: int) -> Encoded:
    types = tuple([0] * tokens for _ in range(texts)) if engine._encoder.token_types else None
    return Encoded(tuple([engine._any_id] * tokens for _ in range(texts)), types, source="made-up texts")
