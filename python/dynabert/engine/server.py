"""A queue before an engine: requests of many callers share batches, and under load they get narrower sub-networks.

A plain network that is asked faster than it answers lets its callers wait ever longer. One with widths has a way out:
`ElasticServer` is given a few sub-networks and a promise, and answers each batch at the first of them at which all that
waits is answered in time. A caller who wants a certain sub-network says so, and shares the batch all the same.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import statistics
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from numbers import Integral
from types import TracebackType

import numpy as np

from dynabert.configuration import Subnet
from dynabert.configuration.cascade import Cascade, as_cascade
from dynabert.data.tokenisation import Encoded
from dynabert.engine.cascades import sureness
from dynabert.engine.inference import InferenceEngine
from dynabert.engine.ladder import Choice, SubnetTime, Waiting, choose, measure_ladder
from dynabert.engine.prediction import Prediction, interpret
from dynabert.engine.requests import Text, as_list, split_pairs

AUTO = "auto"  # the server chooses
REMEMBERED = 10_000  # latencies that the quantiles are taken of
RESERVE = 0.2  # of a promise: for what the estimate misses
COUNTED = 1000  # sub-networks that are counted by name: callers may ask for ever others
OTHERS = "others"
RATIOS = 15  # of the last batches' times to the ladder's; their median is the slowdown, so one that stalled is nothing


_LOGGER = logging.getLogger(__name__)


class ServerOverloaded(RuntimeError):
    """So many requests wait already that another is refused."""


@dataclass(frozen=True)
class ServerStats:
    """What a server has done so far.

    Attributes:
        answered, failed, refused: requests. Failed: the engine raised. Refused: too many waited.
        waiting: requests that wait now.
        late: answers that came after their promise.
        batches: calls of the engine that gave answers.
        by_subnet: answers of each sub-network; of a cascade, the one whose answer stood. Beside the server's own,
            those after the first 1,000 are counted together, as "others".
        p50_ms, p95_ms, p99_ms: from the request to its answer, of the last 10,000; None before the first.
        slowdown: by which batches take longer now than when the server was made.
    """

    answered: int
    failed: int
    refused: int
    waiting: int
    late: int
    batches: int
    by_subnet: dict[str, int]
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    slowdown: float


class _Request:
    """A text that waits."""

    __slots__ = (
        "aim",
        "answer",
        "arrived",
        "begun",
        "ends",
        "fixed_tokens",
        "ids",
        "least",
        "steps",
        "subnet",
        "types",
    )

    def __init__(self, ids: list[int], types: list[int] | None, subnet: str, arrived: float, promise: float) -> None:
        self.ids, self.types, self.subnet, self.arrived = ids, types, subnet, arrived
        self.begun = False  # whether a batch has had it
        self.least = 0.0  # of a cascade: the probability from which an answer stands,
        self.steps: list[tuple[str, float]] = []  # and who is asked else
        self.ends, self.aim = arrived + promise, arrived + (1.0 - RESERVE) * promise
        self.fixed_tokens = 0.0  # see `Waiting`
        self.answer: Future[Prediction] = Future()


class ElasticServer:
    """Answers requests of many threads through one engine, in time where a sub-network is fast enough for that.

    Making one times each sub-network on the device as it is (`ladder`), which takes ten short batches of each.
    While it serves, it learns from its batches how much slower the device is now. Texts are tokenised on the caller's
    thread; a text that is refused raises there, and no other request notices. Requests are answered in the order in
    which they came. Close it, or use it in a ``with`` block: what waits is answered first.

    Args:
        engine: in whose batches the requests run.
        subnets: from which the server chooses, the one that is wanted most first: ``dynabert pick`` finds good ones.
            One alone: nothing is chosen, and requests share batches.
        promise_ms: milliseconds in which a request is to be answered; the server plans with four fifths of it. Not a
            limit: an answer that comes later is given, and counted (`ServerStats.late`).
        max_waiting: requests that may wait; more are refused.
        max_batch_tokens: of a batch; by default the engine's. A batch also takes a quarter of the promise at most, by
            the estimate, unless it is a single text.

    Raises:
        TypeError: a bound that is no int.
        ValueError: no sub-networks, one that does not fit the model or is there twice; a bound below 1; a promise that
            is not above 0.
        RuntimeError: the model is in training mode.

    Example:
        >>> with ElasticServer(engine, ["w1-d1", "w0.5-d1", "w0.25-d0.5"], promise_ms=50) as server:  # doctest: +SKIP
        ...     answers = [server.ask(text) for text in texts]
        ...     exact = server.ask("this one at half the width", subnet="w0.5-d1")
        ...     print([answer.result().subnet for answer in answers])
    """

    def __init__(
        self,
        engine: InferenceEngine,
        subnets: Sequence[Subnet],
        *,
        promise_ms: float,
        max_waiting: int = 4096,
        max_batch_tokens: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if isinstance(subnets, str) or not isinstance(subnets, Sequence):
            raise ValueError(f"ElasticServer: subnets are {subnets!r}; allowed: a list of one or more sub-networks")
        if not subnets:
            raise ValueError("ElasticServer: subnets are empty; allowed: a list of one or more sub-networks")
        if not promise_ms > 0:
            raise ValueError(f"ElasticServer: promise_ms is {promise_ms}; allowed: above 0")
        if max_batch_tokens is None:
            max_batch_tokens = engine.max_batch_tokens
        for name, bound in (("max_waiting", max_waiting), ("max_batch_tokens", max_batch_tokens)):
            if isinstance(bound, bool) or not isinstance(bound, Integral):
                raise TypeError(f"ElasticServer: {name} must be an int; got {type(bound).__name__}")
            if bound < 1:
                raise ValueError(f"ElasticServer: {name} is {bound}; allowed: 1 or more")
        if engine.model.training:
            raise RuntimeError("ElasticServer: the model was put in training mode; call model.eval()")
        names = [engine._resolve_one(subnet).text for subnet in subnets]
        if len(set(names)) < len(names):
            raise ValueError(f"ElasticServer: subnets are {names}; allowed: each once")
        self.engine, self.promise_ms = engine, float(promise_ms)
        self.max_waiting, self.max_batch_tokens = max_waiting, max_batch_tokens
        self._clock = clock
        self.ladder: tuple[SubnetTime, ...] = measure_ladder(engine, subnets, clock=clock)
        self._named = frozenset(own.subnet for own in self.ladder)
        self._first_cost = self._cost(self.ladder[0].subnet)
        self._waiting: OrderedDict[int, _Request] = OrderedDict()  # by its future's id, so that any is soon taken back
        self._tokens, self._fixed_tokens = 0, 0.0  # of what waits
        self._ratios: deque[float] = deque([1.0] * RATIOS, maxlen=RATIOS)
        self._closed = False
        self._changed = threading.Condition()
        self._counts: Counter[str] = Counter()
        self._by_subnet: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=REMEMBERED)
        self._thread = threading.Thread(target=self._work, name="dynabert-server", daemon=True)
        self._thread.start()
        # A program that ends without closing it would cut a batch off in the middle of a native call.
        atexit.register(self.close)

    def ask(
        self, text: Text, subnet: Subnet | Cascade = AUTO, *, within_ms: float | None = None, truncate: bool = False
    ) -> Future[Prediction]:
        """Puts a request into the queue, and returns at once.

        Args:
            text: a str, or a pair ``(first, second)``.
            subnet, within_ms, truncate: see :meth:`ask_all`.

        Returns, raises:
            As :meth:`ask_all`, for one text.
        """
        return self.ask_all([text], subnet, within_ms=within_ms, truncate=truncate)[0]

    def ask_all(
        self,
        texts: Sequence[Text],
        subnet: Subnet | Cascade = AUTO,
        *,
        within_ms: float | None = None,
        truncate: bool = False,
    ) -> list[Future[Prediction]]:
        """Puts a request for each text into the queue, all of them or none, and returns at once.

        Args:
            texts: one or more, each a str, or each a pair ``(first, second)``.
            subnet: ``"auto"``: one of the server's, whichever keeps the promises; `Prediction.subnet` tells which. Any
                other: this one, None the whole network. A `Cascade`: an answer that is not sure enough goes into a
                later batch, before what came after it.
            within_ms: a promise of its own. A short one makes what waits with it narrower too.
            truncate: see `InferenceEngine.predict`.

        Returns:
            For each text the future of its `Prediction`. Cancelling one takes its request back, unless its batch runs
            or has run (of a cascade: the first of them). Its callbacks run on the server's thread, which answers nobody
            meanwhile: they must not wait for another answer.

        Raises:
            TypeError, ValueError: what `InferenceEngine.predict` raises for a text and a sub-network; no texts;
                ``within_ms`` not above 0.
            ServerOverloaded: more than `max_waiting` requests would wait.
            RuntimeError: the server is closed, or was made before this process was forked.
        """
        if within_ms is not None and not within_ms > 0:
            raise ValueError(f"ask: within_ms is {within_ms}; allowed: above 0")
        if not self._closed and not self._thread.is_alive():  # before the lock, which another thread held at the fork
            raise RuntimeError("ask: the server was made before this process was forked; make one in each process")
        # A NumPy scalar of few bits would make the times that it is added to as coarse.
        promise = float(self.promise_ms if within_ms is None else within_ms)
        auto = isinstance(subnet, str) and subnet == AUTO
        cascade = as_cascade(subnet)
        if cascade is None:
            steps = [(AUTO if auto else self.engine._resolve_one(subnet).text, 0.0)]
        else:
            sureness(np.zeros((0, 1)), self.engine.problem_type)  # refuses a regression
            named = [self.engine._resolve_one(one).text for one in cascade.subnets]
            steps = list(zip(named, (*cascade.least, 0.0), strict=True))
        arrived = self._clock()
        listed = as_list(texts, "ask_all")
        if not listed:
            raise ValueError("ask_all: texts are empty; allowed: one or more")
        with self._changed:
            self._check_room(len(listed))  # what is refused should not cost its tokenising
        firsts, seconds = split_pairs(listed, 0)
        encoded = self.engine._encoder.encode(firsts, seconds, truncate=truncate)
        types = encoded.token_type_ids or [None] * len(encoded)
        requests = [
            _Request(ids, own, AUTO, arrived, 1e-3 * promise) for ids, own in zip(encoded.input_ids, types, strict=True)
        ]
        for request in requests:
            self._take_step(request, steps)
            request.answer.add_done_callback(self._forget_cancelled)
        with self._changed:
            self._check_room(len(requests))
            for request in requests:
                self._waiting[id(request.answer)] = request
                self._count_in(request, 1)
            self._changed.notify()
        return [request.answer for request in requests]

    def _check_room(self, count: int) -> None:
        """Raises where so many more may not wait; under the lock."""
        if self._closed:
            raise RuntimeError("ask: the server is closed; make another")
        if len(self._waiting) + count <= self.max_waiting:
            return
        self._counts["refused"] += count
        more = (
            "as many as max_waiting allows"
            if count == 1
            else f"{count} come at once, and max_waiting allows {self.max_waiting}"
        )
        raise ServerOverloaded(
            f"ask: {len(self._waiting)} requests wait already, {more}; ask "
            f"{'later' if count <= self.max_waiting else 'for fewer'}, or give the server narrower sub-networks or a "
            "larger max_waiting"
        )

    async def answer(
        self, text: Text, subnet: Subnet | Cascade = AUTO, *, within_ms: float | None = None, truncate: bool = False
    ) -> Prediction:
        """The same for ``asyncio``: waits for the prediction without holding up the loop. Arguments and errors as in
        :meth:`ask`. Cancelling it takes the request back."""
        return await asyncio.wrap_future(self.ask(text, subnet, within_ms=within_ms, truncate=truncate))

    @property
    def running(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._closed

    def stats(self) -> ServerStats:
        """What was done so far."""
        with self._changed:
            counts, by_subnet, waiting = Counter(self._counts), dict(self._by_subnet), len(self._waiting)
            latencies, slowdown = list(self._latencies), statistics.median(self._ratios)
        latencies.sort()  # not under the lock: it takes milliseconds
        p50, p95, p99 = (latencies[int(q * (len(latencies) - 1))] if latencies else None for q in (0.5, 0.95, 0.99))
        return ServerStats(
            answered=counts["answered"],
            failed=counts["failed"],
            refused=counts["refused"],
            waiting=waiting,
            late=counts["late"],
            batches=counts["batches"],
            by_subnet=by_subnet,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            slowdown=slowdown,
        )

    def close(self, *, cancel: bool = False) -> None:
        """Takes no more requests, answers what waits, and ends. A second call does nothing.

        Called by a callback of an answer, it returns at once; what waits is answered afterwards.

        Args:
            cancel: True takes back what waits instead: those futures are cancelled. A batch that runs is answered, and
                so is a cascade that a batch has begun.
        """
        if not self._thread.is_alive():  # ended, or left behind by a fork
            self._closed = True
            return
        with self._changed:
            self._closed = True
            taken_back = list(self._waiting.values()) if cancel else []
            self._changed.notify()
        for request in taken_back:
            request.answer.cancel()
        if threading.current_thread() is not self._thread:  # a callback of an answer runs there
            self._thread.join()

    def __enter__(self) -> ElasticServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_step(self, request: _Request, steps: list[tuple[str, float]]) -> None:
        """The next sub-network that a request is to ask, and those after it."""
        (request.subnet, request.least), *request.steps = steps
        if request.subnet != AUTO:
            request.fixed_tokens = len(request.ids) * self._weight(request.subnet)

    def _weight(self, subnet: str) -> float:
        """Of a token at this sub-network, in tokens of the ladder's first: by their times, or by their sizes."""
        first = self.ladder[0]
        for own in self.ladder:
            if own.subnet == subnet:
                return own.ms_per_token / first.ms_per_token
        return self._cost(subnet) / self._first_cost

    def _cost(self, subnet: Subnet) -> int:
        """Parameters of its matrices, a hidden size's worth each: four of a head's size for each head, two for each
        neuron."""
        shape = self.engine.model.shape(subnet)
        heads, neurons = shape.work
        return max(1, 4 * self.engine.model.config.head_dim * heads + 2 * neurons)

    def _count_in(self, request: _Request, sign: int) -> None:
        if request.subnet == AUTO:
            self._tokens += sign * len(request.ids)
        else:
            self._fixed_tokens += sign * request.fixed_tokens

    def _forget_cancelled(self, answer: Future[Prediction]) -> None:
        """Of a future that is done: one that was cancelled waits no longer, and narrows nobody."""
        if not answer.cancelled():
            return
        with self._changed:
            request = self._waiting.pop(id(answer), None)
            if request is not None:
                self._count_in(request, -1)

    def _worth(self, request: _Request, own: SubnetTime) -> float:
        """A request in a batch at this sub-network of the ladder, in tokens of it."""
        if request.subnet == AUTO:
            return len(request.ids)
        return request.fixed_tokens * self.ladder[0].ms_per_token / own.ms_per_token

    def _work(self) -> None:
        try:
            while taken := self._next():
                self._run(*taken)
        except BaseException as error:  # a fault of the server's own: nobody is to wait for ever
            with self._changed:
                self._closed = True
                left = list(self._waiting.values())
                self._waiting.clear()
            for request in left:
                if request.begun or _starts(request.answer):
                    self._fail(request, error)
            raise
        finally:
            atexit.unregister(self.close)

    def _first(self) -> _Request:
        return next(iter(self._waiting.values()))

    def _next(self) -> tuple[list[_Request], Choice] | None:
        """The next batch, and its sub-network; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            left = 1e3 * (min(request.aim for request in self._waiting.values()) - self._clock())
            state = Waiting(self._tokens, max(0.0, self._fixed_tokens), len(self._first().ids), left)
            choice = choose(self.ladder, state, self.promise_ms, self.max_batch_tokens, statistics.median(self._ratios))
            own = self.ladder[choice.place]
            batch: list[_Request] = []
            tokens, worth = 0, 0.0
            while self._waiting:
                request = self._first()
                tokens += len(request.ids)
                worth += self._worth(request, own)
                if batch and (tokens > self.max_batch_tokens or worth > choice.batch_tokens):
                    break
                del self._waiting[id(request.answer)]
                self._count_in(request, -1)
                batch.append(request)
        return batch, choice

    def _run(self, batch: list[_Request], choice: Choice) -> None:
        batch = [request for request in batch if request.begun or _starts(request.answer)]
        for request in batch:
            request.begun = True
        try:
            unsure = self._answer(batch, choice, learn=True) if batch else []
            with self._changed:
                for request in reversed(unsure):  # before what came after them
                    self._take_step(request, request.steps)
                    self._waiting[id(request.answer)] = request
                    self._waiting.move_to_end(id(request.answer), last=False)
                    self._count_in(request, 1)
        except BaseException as error:  # a fault of the server's own
            with self._changed:
                waits = set(self._waiting)
            for request in batch:
                if not request.answer.done() and id(request.answer) not in waits:
                    self._fail(request, error)

    def _fail(self, request: _Request, error: BaseException) -> None:
        with self._changed:
            self._counts["failed"] += 1
        _settle(request.answer, error)

    def _answer(self, batch: list[_Request], choice: Choice, *, learn: bool) -> list[_Request]:
        """Answers a batch; what a wider sub-network is to be asked, in the order of the batch."""
        own = self.ladder[choice.place]
        subnets = [own.subnet if request.subnet == AUTO else request.subnet for request in batch]
        types = None if batch[0].types is None else tuple(request.types or [] for request in batch)
        encoded = Encoded(tuple(request.ids for request in batch), types, source="requests")
        engine = self.engine
        begun = self._clock()
        try:
            logits = engine.logits(encoded, subnets)
            found = interpret(logits, engine.problem_type, engine.labels, subnets, engine.threshold)
        except BaseException as error:  # whatever it is, the callers are to hear of it, and the next batch is to run
            if len(batch) > 1:  # it may be of one request; the others are not to fail with it
                return [one for request in batch for one in self._answer([request], choice, learn=False)]
            self._fail(batch[0], error)
            return []
        now = self._clock()
        unsure = [
            request for request, one in zip(batch, found, strict=True) if request.steps and not self._sure(request, one)
        ]
        goes_on = set(map(id, unsure))
        ended = [one for one in zip(batch, found, strict=True) if id(one[0]) not in goes_on]
        with self._changed:
            self._counts["batches"] += 1
            self._counts["answered"] += len(ended)
            self._counts["late"] += sum(now > request.ends for request, _ in ended)
            for _, prediction in ended:
                name = prediction.subnet
                room = name in self._by_subnet or name in self._named or len(self._by_subnet) < COUNTED
                self._by_subnet[name if room else OTHERS] += 1
            self._latencies.extend(1e3 * (now - request.arrived) for request, _ in ended)
            # Sub-networks that were never timed teach nothing, where most of the work is theirs.
            free = sum(len(request.ids) for request in batch if request.subnet == AUTO)
            worth = sum(self._worth(request, own) for request in batch)
            if learn and now > begun and 2 * free >= worth:
                self._ratios.append(1e3 * (now - begun) / own.milliseconds(worth))
        for request, prediction in ended:
            _settle(request.answer, prediction)
        return unsure

    def _sure(self, request: _Request, prediction: Prediction) -> bool:
        scores = np.array([list(prediction.scores.values())])
        return bool(sureness(scores, self.engine.problem_type, self.engine.threshold)[0] >= request.least)


def _starts(answer: Future[Prediction]) -> bool:
    """Whether it is to be answered: it was not cancelled, and nobody else has set it."""
    try:
        return not answer.done() and answer.set_running_or_notify_cancel()
    except RuntimeError:  # it was set since
        return False


def _settle(answer: Future[Prediction], found: Prediction | BaseException) -> None:
    """Gives the caller its answer. What its callbacks raise, even `SystemExit`, must not end the server's thread."""
    try:
        if isinstance(found, BaseException):
            answer.set_exception(found)
        else:
            answer.set_result(found)
    except BaseException:
        _LOGGER.exception("ElasticServer: a callback of an answer raised, or somebody else has set the answer")
