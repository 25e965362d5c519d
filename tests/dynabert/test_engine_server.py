"""The server: answers are the engine's, widths follow the load, and nothing that was asked is lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynabert import InferenceEngine, SubnetConfig
from dynabert.engine import ElasticServer, ServerOverloaded
from dynabert.engine import server as server_module
from dynabert.engine.ladder import SubnetTime, measure_ladder
from tests.dynabert.tiny_texts import some_texts, tiny_folder, tiny_model, tiny_tokenizer

LADDER = ("w1-d1", "w0.5-d1", "w0.25-d0.5")
SOON = 60_000.0  # a promise that no machine is too slow for


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    return InferenceEngine(tiny_model(), tiny_tokenizer())


class Held:
    """An engine's `logits` that waits until it is let go, and writes down what it was asked."""

    def __init__(self, engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.entered = threading.Event(), threading.Event()
        self.calls: list[list[Any]] = []
        self._logits = engine.logits
        monkeypatch.setattr(engine, "logits", self)

    def __call__(self, encoded: Any, subnets: Sequence[Any]) -> Any:
        self.calls.append(list(subnets))
        self.entered.set()
        assert self.go.wait(60)
        return self._logits(encoded, subnets)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ElasticServer, Held]]:
    """A server whose first batch, of one text, is held: what is asked next waits."""
    own = InferenceEngine(tiny_model(), tiny_tokenizer())
    with ElasticServer(own, LADDER, promise_ms=SOON, max_waiting=8) as server:
        hold = Held(own, monkeypatch)
        first = server.ask("the film")
        assert hold.entered.wait(60)
        try:
            yield server, hold
        finally:
            hold.go.set()
        assert first.result(60).subnet == "w1-d1"


# Which sub-network
# ----------------------------------------------------------------------------------------------------------------


def test_times_are_the_best_of_interleaved_rounds(engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    calls: list[tuple[str, int]] = []

    def logits(encoded: Any, subnets: Sequence[Any]) -> None:
        tokens, name = sum(encoded.lengths), engine._resolve_one(subnets[0]).text
        calls.append((name, tokens))
        late = 1.0 if len(calls) % 5 == 0 else 0.0
        now[0] += 1e-3 * (2.0 + {"w1-d1": 0.5, "w0.5-d1": 0.25}[name] * tokens) + late

    monkeypatch.setattr(engine, "logits", logits)
    wide, half = measure_ladder(engine, ["w1-d1", SubnetConfig(0.5, 1.0)], rounds=5, clock=lambda: now[0])
    assert (wide.subnet, half.subnet) == ("w1-d1", "w0.5-d1")
    assert [*wide[1:], *half[1:]] == pytest.approx([2.0, 0.5, 2.0, 0.25])
    assert len({tokens for _, tokens in calls}) == 2
    assert [name for name, _ in calls[:4]] == ["w1-d1", "w1-d1", "w0.5-d1", "w0.5-d1"]


# Answers
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_answers_are_the_engines(architecture: str) -> None:
    engine = InferenceEngine(tiny_model(architecture), tiny_tokenizer(architecture))
    texts: list[Any] = [*some_texts(40), ("the film", "was dull"), ("good", "bad")]
    wanted = ["auto", "w0.5-d0.75", "h4,0,2,1-n40,0,7,3", SubnetConfig(0.25, 0.5), None]
    with ElasticServer(engine, LADDER, promise_ms=SOON) as server:
        asked = [(text, wanted[index % 5], server.ask(text, wanted[index % 5])) for index, text in enumerate(texts)]
        for text, subnet, future in asked:
            own = "w1-d1" if subnet == "auto" else subnet  # there is time enough
            answer, alone = future.result(60), engine.predict(text, subnet=own)
            assert answer.subnet == alone.subnet
            np.testing.assert_allclose(answer.logits, alone.logits, rtol=1e-5, atol=1e-5)
        stats = server.stats()
    assert (stats.answered, stats.failed, stats.refused, stats.late, stats.waiting) == (42, 0, 0, 0, 0)
    assert sum(stats.by_subnet.values()) == 42
    assert stats.by_subnet["w0.5-d0.75"] == 9
    assert 1 <= stats.batches <= 42
    assert stats.p50_ms is not None
    assert stats.p99_ms is not None
    assert 0 < stats.p50_ms <= stats.p99_ms


def test_what_waits_shares_batches_in_its_order(held: tuple[ElasticServer, Held]) -> None:
    server, hold = held
    asked = [server.ask(text, subnet) for text, subnet in (("good", "auto"), ("bad", "w0.25-d1"), ("dull", "auto"))]
    assert server.stats().waiting == 3
    hold.go.set()
    assert [future.result(60).subnet for future in asked] == ["w1-d1", "w0.25-d1", "w1-d1"]
    assert hold.calls[1:] == [["w1-d1", "w0.25-d1", "w1-d1"]]


def test_a_load_that_is_too_high_makes_them_narrower(held: tuple[ElasticServer, Held]) -> None:
    server, hold = held
    server.ladder = TIMES_OF_LADDER
    server.promise_ms = 4000.0
    asked = [server.ask("good bad dull film") for _ in range(5)]  # 30 tokens: 30, 15 and 0.3 s
    server.ask("warm", "w1-d1")
    quick = server.ask("slow", within_ms=1e-3)
    hold.go.set()
    assert {future.result(60).subnet for future in asked} == {"w0.25-d0.5"}
    assert quick.result(60).subnet == "w0.25-d0.5"
    assert server.ask("quiet").result(60).subnet == "w1-d1"  # 3 tokens: in time again
    assert server.stats().late == 1
    # The urgent one first, and alone: no promise of a millisecond is kept. The last takes 3 s: more than a quarter of
    # the promise.
    assert hold.calls[1:4] == [["w0.25-d0.5"], 5 * ["w0.25-d0.5"], ["w1-d1"]]


TIMES_OF_LADDER = tuple(SubnetTime(name, 0.0, each) for name, each in zip(LADDER, (1000.0, 500.0, 10.0), strict=True))


def test_a_batch_is_no_longer_for_those_that_chose_their_own(held: tuple[ElasticServer, Held]) -> None:
    server, hold = held
    server.ladder, server.promise_ms = TIMES_OF_LADDER, 120_000.0  # a batch of 30 s: 30 tokens at w1-d1
    asked = [server.ask("good bad dull film", "w1-d1") for _ in range(6)]  # 36 tokens
    asked += [server.ask("slow", within_ms=1.0), server.ask("good bad dull film", "w0.25-d0.5")]
    hold.go.set()
    for future in asked:
        future.result(60)
    assert hold.calls[1:] == [["w0.25-d0.5"], 5 * ["w1-d1"], ["w1-d1", "w0.25-d0.5"]]


def test_a_sub_network_of_the_ladder_counts_by_its_time(held: tuple[ElasticServer, Held]) -> None:
    server, _ = held
    server.ladder = TIMES_OF_LADDER
    server.ask("good bad dull film", "w0.25-d0.5")  # a hundredth of the time, more of the parameters
    assert server._queue.usual.fixed_tokens == pytest.approx(0.06)


def test_a_server_learns_from_mixed_batches(held: tuple[ElasticServer, Held]) -> None:
    server, hold = held
    server.ladder = tuple(own._replace(fixed_ms=1e-4, ms_per_token=1e-6) for own in server.ladder)
    server.max_batch_tokens = 9
    asked = [server.ask(*each) for _ in range(4) for each in (("the film", "auto"), ("good", "w0.25-d1"))]
    hold.go.set()
    for future in asked:
        future.result(60)
    assert len(hold.calls) == 5
    assert sum(ratio > 2.0 for ratio in server._ratios) == 5


def test_a_server_learns_how_slow_the_device_is_now(engine: InferenceEngine) -> None:
    with ElasticServer(engine, LADDER, promise_ms=SOON) as server:
        server.ladder = tuple(own._replace(fixed_ms=1e-4, ms_per_token=1e-6) for own in server.ladder)
        for _ in range(20):
            server.ask("the film").result(60)
        assert server.stats().slowdown > 2.0


def test_asyncio(engine: InferenceEngine) -> None:
    texts = some_texts(20)

    async def all_of_them(server: ElasticServer) -> list[Any]:
        return await asyncio.gather(*(server.answer(text, "w0.5-d1") for text in texts))

    with ElasticServer(engine, LADDER, promise_ms=SOON) as server:
        found = asyncio.run(all_of_them(server))
    alone = engine.predict(texts, subnet="w0.5-d1")
    np.testing.assert_allclose([one.logits for one in found], [one.logits for one in alone], rtol=1e-5, atol=1e-5)


def test_many_threads(engine: InferenceEngine) -> None:
    texts = some_texts(30)
    alone = {name: engine.predict(texts, subnet=name) for name in LADDER}
    wrong: list[Any] = []

    def client(seed: int) -> None:
        for round_ in range(40):
            place = (seed + 7 * round_) % len(texts)
            found = server.ask(texts[place], ("auto", *LADDER)[round_ % 4]).result(60)
            wanted = alone[found.subnet][place]
            if not np.allclose(found.logits, wanted.logits, rtol=1e-5, atol=1e-5):
                wrong.append((texts[place], found.subnet))

    with ElasticServer(engine, LADDER, promise_ms=0.5) as server:
        clients = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        assert server.stats().answered == 240
    assert not wrong


# What goes wrong
# ----------------------------------------------------------------------------------------------------------------


def test_a_text_that_is_refused_raises_at_once(engine: InferenceEngine) -> None:
    with ElasticServer(engine, LADDER, promise_ms=SOON) as server:
        for text, error, message in (
            ("", ValueError, "is empty"),
            ("good " * 600, ValueError, "too long"),
            (3, TypeError, "text 0"),
            (("one", "two", "three"), TypeError, "no pair"),
        ):
            with pytest.raises(error, match=message):
                server.ask(text)  # type: ignore[arg-type]
        for subnet, message in (("w9-d1", "width_mult is 9.0; allowed: above 0, up to 1"), ("fast", "fast")):
            with pytest.raises(ValueError, match=message):
                server.ask("good", subnet)
        with pytest.raises(ValueError, match="within_ms is 0; allowed: above 0"):
            server.ask("good", within_ms=0)
        cut = server.ask("good " * 600, truncate=True)
        assert cut.result(60).subnet == "w1-d1"
        assert server.stats().answered == 1


def test_more_than_may_wait_are_refused(held: tuple[ElasticServer, Held]) -> None:
    server, hold = held
    asked = [server.ask("good") for _ in range(8)]
    with pytest.raises(ServerOverloaded, match="8 requests wait already, as many as max_waiting allows; ask later"):
        server.ask("bad")
    hold.go.set()
    assert len([future.result(60) for future in asked]) == 8
    assert server.stats().refused == 1


def test_one_that_is_refused_is_not_read_first(
    held: tuple[ElasticServer, Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more is asked than can be answered, each text that is read for nothing takes time from the others."""
    server, hold = held
    asked = [server.ask("good") for _ in range(8)]
    monkeypatch.setattr(server.engine, "_encoder", None)
    with pytest.raises(ServerOverloaded, match="8 requests wait already"):
        server.ask("bad")
    monkeypatch.undo()
    hold.go.set()
    assert len([future.result(60) for future in asked]) == 8
    assert server.stats().refused == 1


def test_sub_networks_that_callers_invent_are_counted_in_bounded_memory(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "NAMED", 3)
    with ElasticServer(engine, LADDER, promise_ms=SOON) as server:
        invented = [f"h4,4,4,4-n{count},40,40,40" for count in range(1, 6)]
        for subnet in (*invented, "w1-d1", "w1-d1", invented[0]):
            server.ask("good", subnet).result(60)
        found = server.stats().by_subnet
    assert found == {**dict.fromkeys(invented[:3], 1), "others": 2, "w1-d1": 2} | {invented[0]: 2}


def test_what_was_cancelled_is_not_answered(held: tuple[ElasticServer, Held]) -> None:
    server, hold = held
    asked = [server.ask("good"), server.ask("bad"), server.ask("dull")]
    assert asked[1].cancel()
    hold.go.set()
    assert asked[0].result(60).subnet == asked[2].result(60).subnet == "w1-d1"
    with pytest.raises(CancelledError):
        asked[1].result(1)
    assert [len(call) for call in hold.calls] == [1, 2]


def test_one_that_fails_fails_alone(engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with ElasticServer(engine, LADDER, promise_ms=SOON) as server:
        hold = Held(engine, monkeypatch)
        bad = len(server.engine._encoder.encode(["a the film story"]).input_ids[0])

        def logits(encoded: Any, subnets: Sequence[Any]) -> Any:
            found = hold(encoded, subnets)
            found[[length == bad for length in encoded.lengths]] = np.nan
            return found

        monkeypatch.setattr(engine, "logits", logits)
        first = server.ask("good")
        assert hold.entered.wait(60)
        asked = [server.ask(text) for text in ("good", "a the film story", "bad")]
        hold.go.set()
        assert first.result(60)
        assert asked[0].result(60).label
        assert asked[2].result(60).label
        with pytest.raises(ValueError, match="not finite"):
            asked[1].result(60)
        stats = server.stats()
    assert (stats.answered, stats.failed) == (3, 1)


def test_closing_answers_what_waits(engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ElasticServer(engine, LADDER, promise_ms=SOON)
    hold = Held(engine, monkeypatch)
    asked = [server.ask(text) for text in ("good", "bad", "dull")]
    assert hold.entered.wait(60)
    closing = threading.Thread(target=server.close)
    closing.start()
    while not server._closed:
        time.sleep(0.001)
    with pytest.raises(RuntimeError, match="the server is closed; make another"):
        server.ask("late")
    hold.go.set()
    closing.join(60)
    assert all(future.done() for future in asked)
    server.close()


def test_an_answer_may_close_it(engine: InferenceEngine) -> None:
    server = ElasticServer(engine, LADDER, promise_ms=SOON)
    done = threading.Event()

    def close(_: Any) -> None:
        server.close()
        done.set()

    server.ask("good").add_done_callback(close)
    assert done.wait(60)
    server._thread.join(60)
    assert not server._thread.is_alive()


def test_a_program_that_forgets_to_close_ends(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    code = (
        "from dynabert import InferenceEngine\n"
        "from dynabert.engine import ElasticServer\n"
        f"server = ElasticServer(InferenceEngine.from_pretrained({str(folder)!r}), ['w1-d1'], promise_ms=1e6)\n"
        "future = server.ask('good film')\n"
        "future.add_done_callback(lambda f: print('answered', f.result().subnet, flush=True))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "answered w1-d1\n"), done.stderr


def test_what_was_cancelled_waits_no_longer(held: tuple[ElasticServer, Held]) -> None:
    server, hold = held
    asked = [server.ask("good", within_ms=1.0), *(server.ask("bad", "w0.5-d1") for _ in range(7))]
    for future in asked[:3]:
        assert future.cancel()
    assert server.stats().waiting == 5
    assert server._queue.usual.tokens == 0
    again = [server.ask("dull") for _ in range(3)]  # there is room for them
    hold.go.set()
    assert {future.result(60).subnet for future in again} == {"w1-d1"}  # none of them for the one in a hurry


def test_a_cancelled_answer_of_asyncio_is_taken_back(held: tuple[ElasticServer, Held]) -> None:
    server, hold = held

    async def impatient() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(server.answer("good"), 0.01)

    asyncio.run(impatient())
    assert server.stats().waiting == 0
    assert len(hold.calls) == 1


def test_closing_may_cancel_what_waits(held: tuple[ElasticServer, Held]) -> None:
    server, hold = held
    asked = [server.ask("good") for _ in range(5)]
    closing = threading.Thread(target=server.close, kwargs={"cancel": True})
    closing.start()
    with pytest.raises(CancelledError):
        asked[4].result(60)
    hold.go.set()
    closing.join(60)
    assert all(future.cancelled() for future in asked)
    assert server.stats().answered == 1
    assert not server._thread.is_alive()


@pytest.mark.parametrize("error", [SystemExit, ValueError])
def test_a_callback_that_raises_ends_nothing(engine: InferenceEngine, error: type[BaseException]) -> None:
    def raises(_: Any) -> None:
        raise error("of a callback")

    with ElasticServer(engine, LADDER, promise_ms=SOON) as server:
        server.ask("good").add_done_callback(raises)
        assert server.ask("bad").result(60).subnet == "w1-d1"


def test_an_answer_that_its_caller_has_set_ends_nothing(held: tuple[ElasticServer, Held]) -> None:
    server, hold = held
    asked = [server.ask("good"), server.ask("bad")]
    asked[0].set_exception(KeyError("mine"))
    hold.go.set()
    assert asked[1].result(60).subnet == "w1-d1"
    assert [len(call) for call in hold.calls] == [1, 1]


def test_an_engine_that_wants_to_exit_fails_its_request(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ElasticServer(engine, LADDER, promise_ms=SOON) as server:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "logits", lambda *_: sys.exit(3))
            with pytest.raises(SystemExit):
                server.ask("good").result(60)
        assert server.ask("good").result(60).subnet == "w1-d1"
        assert server.stats().failed == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_server_leaves_nobody_waiting(
    held: tuple[ElasticServer, Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, hold = held
    asked = [server.ask("good"), server.ask("bad")]
    monkeypatch.setattr("dynabert.engine.lanes.choose", lambda *_: 1 // 0)
    hold.go.set()
    for future in asked:
        with pytest.raises(ZeroDivisionError):
            future.result(60)
    with pytest.raises(RuntimeError, match="the server is closed"):
        server.ask("dull")
    assert server.stats().waiting == 0


def test_a_fault_between_engine_and_answer_is_told(engine: InferenceEngine) -> None:
    ticks = [0]

    def clock() -> float:
        ticks[0] += 1
        if ticks[0] == broken:
            raise OSError("no clock")
        return time.perf_counter()

    broken = -1
    with ElasticServer(engine, LADDER, promise_ms=SOON, clock=clock) as server:
        broken = ticks[0] + 4  # asked, chosen, begun, ended
        with pytest.raises(OSError, match="no clock"):
            server.ask("good").result(60)
        assert server.ask("good").result(60).subnet == "w1-d1"


def test_a_clock_that_stands_still_ends_nothing(engine: InferenceEngine) -> None:
    with ElasticServer(engine, LADDER, promise_ms=SOON, clock=lambda: 1.0) as server:
        for _ in range(20):
            assert server.ask("good").result(60).subnet == "w1-d1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_no_server(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    code = (
        "import os, sys\n"
        "from dynabert import InferenceEngine\n"
        "from dynabert.engine import ElasticServer\n"
        f"server = ElasticServer(InferenceEngine.from_pretrained({str(folder)!r}), ['w1-d1'], promise_ms=1e6)\n"
        "server.ask('good film').result(60)\n"
        "server._changed.acquire()\n"  # as another thread may hold it
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        server.ask('good film').result(20)\n"
        "    except RuntimeError as error:\n"
        "        print(error, flush=True)\n"
        "    print(server.stats().answered, flush=True)\n"
        "    server.close()\n"
        "    print(server.stats().answered, flush=True)\n"
        "    sys.exit(0)\n"
        "server._changed.release()\n"
        "print(os.waitpid(child, 0)[1], server.ask('good film').result(60).subnet, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    said = "ask: the server was made before this process was forked; make one in each process\n1\n1\n0 w1-d1\n"
    assert (done.returncode, done.stdout) == (0, said), done.stderr


def test_a_program_that_closes_in_an_answer_answers_the_others(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    code = (
        "import time\n"
        "from dynabert import InferenceEngine\n"
        "from dynabert.engine import ElasticServer\n"
        f"engine = InferenceEngine.from_pretrained({str(folder)!r})\n"
        "server = ElasticServer(engine, ['w1-d1'], promise_ms=1e6, max_batch_tokens=1)\n"
        "logits = engine.logits\n"
        "engine.logits = lambda *given: (time.sleep(0.2), logits(*given))[1]\n"
        "first, *others = [server.ask('good film') for _ in range(5)]\n"
        "for future in others:\n"
        "    future.add_done_callback(lambda f: print('answered', flush=True))\n"
        "first.add_done_callback(lambda f: server.close())\n"
        "first.result()\n"
        "time.sleep(0.1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, 4 * "answered\n"), done.stderr


def test_promises_of_few_bits_are_kept_exactly(engine: InferenceEngine) -> None:
    with ElasticServer(
        engine, LADDER, promise_ms=np.float16(10_000), clock=lambda: time.perf_counter() + 1e6
    ) as server:  # type: ignore[arg-type]
        for _ in range(5):
            assert server.ask("good").result(60).subnet == "w1-d1"
            assert server.ask("good", within_ms=np.float16(10_000)).result(60).subnet == "w1-d1"  # type: ignore[arg-type]
        assert server.stats().late == 0


@pytest.mark.parametrize(
    ("subnets", "options", "message"),
    [
        ([], {}, "subnets are empty; allowed: a list of one or more"),
        ("w1-d1", {}, "subnets are 'w1-d1'; allowed: a list"),
        (["w1-d1", "w1-d1"], {}, r"subnets are \['w1-d1', 'w1-d1'\]; allowed: each once"),
        (["w1-d1", "w7-d1"], {}, "width_mult is 7.0; allowed: above 0, up to 1"),
        (["w1-d1"], {"promise_ms": 0.0}, "promise_ms is 0.0; allowed: above 0"),
        (["w1-d1"], {"max_waiting": 0}, "max_waiting is 0; allowed: 1 or more"),
        (["w1-d1"], {"max_batch_tokens": 0}, "max_batch_tokens is 0; allowed: 1 or more"),
    ],
)
def test_wrong_settings(engine: InferenceEngine, subnets: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElasticServer(engine, subnets, **{"promise_ms": 10.0, **options})


@pytest.mark.parametrize("name", ["max_waiting", "max_batch_tokens"])
@pytest.mark.parametrize("bound", [float("nan"), 8.0, True, "8"])
def test_bounds_are_ints(engine: InferenceEngine, name: str, bound: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be an int; got {type(bound).__name__}"):
        ElasticServer(engine, LADDER, promise_ms=10.0, **{name: bound})


def test_training_mode_is_refused() -> None:
    engine = InferenceEngine(tiny_model(), tiny_tokenizer())
    engine.model.train()
    with pytest.raises(RuntimeError, match="training mode; call model"):
        ElasticServer(engine, LADDER, promise_ms=10.0)


def test_many_that_are_taken_back_cost_no_search(held: tuple[ElasticServer, Held]) -> None:
    server, hold = held
    asked = server.ask_all(["good", "bad", "dull", "warm"])
    asked[2].cancel()
    asked[0].cancel()
    assert server.stats().waiting == 2
    hold.go.set()
    assert [one.result(60).subnet for one in (asked[1], asked[3])] == ["w1-d1"] * 2


def test_what_is_refused_is_not_tokenised(held: tuple[ElasticServer, Held], monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = held
    monkeypatch.setattr(server.engine._encoder, "encode", lambda *_, **__: 1 // 0)
    with pytest.raises(ServerOverloaded, match="ask for fewer"):
        server.ask_all(["good"] * 9)
