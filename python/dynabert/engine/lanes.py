"""What waits for a server, in two lanes, and what the next batch takes of them, each at which sub-network.

A request whose own promise is shorter than the server's is *urgent*: it goes before the others, at the sub-network that
its lane can afford. The others keep their order and their widths. They ride along in an urgent batch as far as that
costs no urgent one its promise: kernels take a width for each text of a batch, so nobody has to be as narrow as the
one beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from dynabert.engine.ladder import BATCH_SHARE, SubnetTime, Waiting, choose
from dynabert.engine.prediction import Prediction

AUTO = "auto"  # the server chooses
RESERVE = 0.2  # of a promise: for what the estimate misses
_FEW_PLACES = 64  # that may be empty, however few requests wait


class Request:
    """A text that waits. ``promise``: seconds; ``urgent``: whether it is shorter than the server's."""

    __slots__ = (
        "aim",
        "answer",
        "arrived",
        "begun",
        "ends",
        "fixed_tokens",
        "ids",
        "least",
        "runs",
        "steps",
        "subnet",
        "types",
        "urgent",
    )

    def __init__(
        self, ids: list[int], types: list[int] | None, arrived: float, promise: float, *, urgent: bool = False
    ) -> None:
        self.ids, self.types, self.arrived, self.urgent = ids, types, arrived, urgent
        self.subnet = AUTO
        self.runs = AUTO  # the sub-network of the batch that it is in
        self.begun = False  # whether a batch has had it
        self.least = 0.0  # of a cascade: the probability from which an answer stands,
        self.steps: list[tuple[str, float]] = []  # and who is asked else
        self.ends, self.aim = arrived + promise, arrived + (1.0 - RESERVE) * promise
        self.fixed_tokens = 0.0  # see `Waiting`
        self.answer: Future[Prediction] = Future()

    def worth(self, own: SubnetTime, first: SubnetTime) -> float:
        """In a batch at this sub-network of the ladder, in tokens of it."""
        if self.subnet == AUTO:
            return len(self.ids)
        return self.fixed_tokens * first.ms_per_token / own.ms_per_token


class Lane:
    """Requests in their order, and what they are worth. Taking one back costs no search: its place stays, empty."""

    def __init__(self) -> None:
        self._places: deque[Request] = deque()
        self._here: dict[int, Request] = {}  # by their futures
        self.tokens, self._fixed_tokens = 0, 0.0

    def __len__(self) -> int:
        return len(self._here)

    def __iter__(self) -> Iterator[Request]:
        return (request for request in self._places if id(request.answer) in self._here)

    @property
    def first(self) -> Request:
        """The first one; ``IndexError`` where there is none."""
        while id(self._places[0].answer) not in self._here:
            self._places.popleft()
        return self._places[0]

    @property
    def fixed_tokens(self) -> float:
        """See `Waiting`; never below 0 by rounding."""
        return max(0.0, self._fixed_tokens)

    def append(self, request: Request) -> None:
        """At the end."""
        self._places.append(request)
        self._enter(request)

    def put_first(self, request: Request) -> None:
        """At the front."""
        self._places.appendleft(request)
        self._enter(request)

    def put_by_aim(self, request: Request) -> None:
        """After the last one that is to be answered as soon, or sooner."""
        place = len(self._places)
        while place and self._places[place - 1].aim > request.aim:
            place -= 1
        self._places.insert(place, request)
        self._enter(request)

    def pop(self) -> Request:
        """Takes the first one out."""
        request = self.first
        self._places.popleft()
        self._leave(request)
        return request

    def remove(self, answer: Future[Prediction]) -> bool:
        """Takes the request of this future out; False where it is not here."""
        request = self._here.get(id(answer))
        if request is None:
            return False
        self._leave(request)
        if len(self._places) > 2 * len(self._here) + _FEW_PLACES:
            self._places = deque(self)
        return True

    def left_ms(self, now: float) -> float:
        """Until the earliest promise of any."""
        return 1e3 * (min(request.aim for request in self) - now)

    def _enter(self, request: Request) -> None:
        self._here[id(request.answer)] = request
        self._count(request, 1)

    def _leave(self, request: Request) -> None:
        del self._here[id(request.answer)]
        self._count(request, -1)

    def _count(self, request: Request, sign: int) -> None:
        if request.subnet == AUTO:
            self.tokens += sign * len(request.ids)
        else:
            self._fixed_tokens += sign * request.fixed_tokens


class Batch(NamedTuple):
    """Requests that run together, each at its `Request.runs`.

    ``expected_ms``: by the ladder's times, on a device as it was then; ``timed``: whether most of that is of
    sub-networks that were timed.
    """

    requests: list[Request]
    expected_ms: float
    timed: bool


class Queue:
    """The two lanes. It has no lock of its own."""

    def __init__(self) -> None:
        self.urgent, self.usual = Lane(), Lane()

    def __len__(self) -> int:
        return len(self.urgent) + len(self.usual)

    def __iter__(self) -> Iterator[Request]:
        yield from self.urgent
        yield from self.usual

    def add(self, request: Request) -> None:
        """A new one."""
        if request.urgent:
            self.urgent.put_by_aim(request)
        else:
            self.usual.append(request)

    def put_back(self, requests: Sequence[Request]) -> None:
        """Those of a cascade that go on: before what came after them."""
        for request in reversed(requests):
            if request.urgent:
                self.urgent.put_first(request)
            else:
                self.usual.put_first(request)

    def remove(self, answer: Future[Prediction]) -> None:
        """The request of this future, if it is here."""
        if not self.urgent.remove(answer):
            self.usual.remove(answer)

    def clear(self) -> list[Request]:
        """Takes all of them out."""
        left = list(self)
        self.urgent, self.usual = Lane(), Lane()
        return left

    def take(
        self, ladder: Sequence[SubnetTime], promise_ms: float, most_tokens: int, now: float, slowdown: float
    ) -> Batch:
        """The next batch; something must wait.

        Args:
            ladder: the server's sub-networks, the one that is wanted most first.
            promise_ms, most_tokens, slowdown: see `dynabert.engine.ladder.choose`.
            now: by the clock of `Request.arrived`.
        """
        filling = _Filling(ladder, most_tokens)
        try:
            self._fill(filling, ladder, promise_ms, most_tokens, now, slowdown)
        except BaseException:  # nobody is to be lost
            self.put_back(filling.requests)
            raise
        return filling.batch()

    def _fill(
        self,
        filling: _Filling,
        ladder: Sequence[SubnetTime],
        promise_ms: float,
        most_tokens: int,
        now: float,
        slowdown: float,
    ) -> None:
        if self.urgent:
            left_ms = self.urgent.left_ms(now)
            choice = choose(ladder, self._state(self.urgent, left_ms), promise_ms, most_tokens, slowdown)
            filling.take_worth(self.urgent, ladder[choice.place], choice.batch_tokens)
            if self.urgent or not self.usual:
                return
            ahead_ms = slowdown * filling.milliseconds
            state = self._state(self.usual, self.usual.left_ms(now) - ahead_ms)
            choice = choose(ladder, state, promise_ms, most_tokens, slowdown)
            within_ms = min(left_ms, BATCH_SHARE * promise_ms) / slowdown
            # Urgent ones without end are not to hold the others up for ever: one that is late goes with every batch.
            late = self.usual.first.aim < now
            filling.take_within(self.usual, ladder[choice.place], within_ms, at_least=1 if late else 0)
            return
        state = self._state(self.usual, self.usual.left_ms(now))
        choice = choose(ladder, state, promise_ms, most_tokens, slowdown)
        filling.take_worth(self.usual, ladder[choice.place], choice.batch_tokens)

    @staticmethod
    def _state(lane: Lane, left_ms: float) -> Waiting:
        return Waiting(lane.tokens, lane.fixed_tokens, len(lane.first.ids), left_ms)


class _Filling:
    """A batch that is being filled."""

    def __init__(self, ladder: Sequence[SubnetTime], most_tokens: int) -> None:
        self._first, self._most_tokens = ladder[0], most_tokens
        self.requests: list[Request] = []
        self._tokens, self._fixed_ms, self._timed_ms, self._other_ms = 0, 0.0, 0.0, 0.0

    @property
    def milliseconds(self) -> float:
        """Expected so far."""
        return self._fixed_ms + self._timed_ms + self._other_ms

    def take_worth(self, lane: Lane, own: SubnetTime, most: float) -> None:
        """The lane's first one, and those after it while they are worth so many tokens at ``own``."""
        worth = 0.0
        while lane:
            worth += lane.first.worth(own, self._first)
            if self.requests and (self._tokens + len(lane.first.ids) > self._most_tokens or worth > most):
                return
            self._add(lane.pop(), own)

    def take_within(self, lane: Lane, own: SubnetTime, most_ms: float, *, at_least: int) -> None:
        """The lane's first ones while the batch takes no longer than ``most_ms``."""
        taken = 0
        while lane:
            added = lane.first.worth(own, self._first) * own.ms_per_token + max(0.0, own.fixed_ms - self._fixed_ms)
            fits = self._tokens + len(lane.first.ids) <= self._most_tokens and self.milliseconds + added <= most_ms
            if not fits and taken >= at_least:
                return
            self._add(lane.pop(), own)
            taken += 1

    def _add(self, request: Request, own: SubnetTime) -> None:
        ms = request.worth(own, self._first) * own.ms_per_token
        self._fixed_ms = max(self._fixed_ms, own.fixed_ms)
        self._tokens += len(request.ids)
        if request.subnet == AUTO:
            request.runs = own.subnet
            self._timed_ms += ms
        else:
            request.runs = request.subnet
            self._other_ms += ms
        self.requests.append(request)

    def batch(self) -> Batch:
        """As it is now."""
        return Batch(self.requests, self.milliseconds, self._timed_ms >= self._other_ms)
