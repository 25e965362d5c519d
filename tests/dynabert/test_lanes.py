"""How wide a batch is; and the two lanes of what waits: who goes first, and who rides along."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dynabert.engine import lanes
from dynabert.engine.ladder import Choice, SubnetTime, Waiting, choose
from dynabert.engine.lanes import Lane, Queue, Request

# 10 tokens: 11, 6 and 2 ms.
LADDER = (SubnetTime("wide", 1.0, 1.0), SubnetTime("half", 1.0, 0.5), SubnetTime("narrow", 1.0, 0.1))
TIMES = (SubnetTime("wide", 1.0, 0.1), SubnetTime("half", 1.0, 0.05), SubnetTime("narrow", 1.0, 0.01))
PROMISE = 400.0  # a batch of 100 ms: 99 tokens of the wide one


def test_the_first_that_answers_all_in_time_is_chosen() -> None:
    # 100 tokens: 11, 6 and 2 ms, in one batch while the promise is long.
    for left, place in ((12.0, 0), (10.0, 1), (5.0, 2), (1.0, 2), (-3.0, 2)):
        assert choose(TIMES, Waiting(100, 0.0, 10, left), 1000.0, 4096).place == place
    # Everything takes twice as long now.
    assert choose(TIMES, Waiting(100, 0.0, 10, 12.0), 1000.0, 4096, slowdown=2.0).place == 1


def test_a_batch_takes_a_quarter_of_the_promise() -> None:
    # 40 ms: a batch of 10, which are 90 tokens at the first. 1000 tokens are 12 batches and 112 ms; 6 and 56; 2 and 12.
    assert choose(TIMES, Waiting(1000, 0.0, 10, 200.0), 40.0, 4096) == Choice(0, 90)
    assert choose(TIMES, Waiting(1000, 0.0, 10, 60.0), 40.0, 4096) == Choice(1, 180)
    assert choose(TIMES, Waiting(1000, 0.0, 10, 13.0), 40.0, 4096) == Choice(2, 900)
    assert choose(TIMES, Waiting(1000, 0.0, 10, 1.0), 40.0, 500) == Choice(2, 500)
    # A text that is longer: alone. A promise that no batch keeps: as many as take what the batch itself does.
    assert choose(TIMES, Waiting(1000, 0.0, 300, 200.0), 40.0, 4096) == Choice(0, 300)
    assert choose(TIMES, Waiting(1000, 0.0, 7, 400.0), 0.1, 4096) == Choice(0, 10)
    assert choose(TIMES, Waiting(1000, 0.0, 7, 0.0), 0.1, 4096) == Choice(2, 100)
    assert choose(TIMES, Waiting(1000, 0.0, 7, 0.0), 0.1, 64) == Choice(2, 64)


def test_requests_of_their_own_sub_network_are_counted_by_their_cost() -> None:
    # 100 tokens of any, and others that cost as much as 60 at the first: 1 + 10 + 6 ms, 1 + 5 + 6.
    assert choose(TIMES, Waiting(100, 60.0, 10, 17.5), 1000.0, 4096).place == 0
    assert choose(TIMES, Waiting(100, 60.0, 10, 16.0), 1000.0, 4096).place == 1
    assert choose(TIMES, Waiting(0, 60.0, 10, 1.0), 1000.0, 4096).place == 0  # nothing to choose
    # Nor are there fewer batches of them at a narrower one.
    assert choose(TIMES, Waiting(0, 1000.0, 10, 1.0), 40.0, 4096).place == 0


def test_one_sub_network_alone_is_always_chosen() -> None:
    assert choose(TIMES[:1], Waiting(10**6, 0.0, 10, -1.0), 100.0, 64) == Choice(0, 64)


def request(tokens: int = 10, *, arrived: float = 0.0, within_ms: float = PROMISE, subnet: str = "auto") -> Request:
    made = Request([0] * tokens, None, arrived, 1e-3 * within_ms / (1.0 - lanes.RESERVE), urgent=within_ms < PROMISE)
    if subnet != "auto":
        weights = {own.subnet: own.ms_per_token for own in LADDER}
        made.subnet, made.fixed_tokens = subnet, tokens * weights[subnet]
    return made


def filled(*requests: Request) -> Queue:
    queue = Queue()
    for one in requests:
        queue.add(one)
    return queue


def taken(queue: Queue, now: float = 0.0, slowdown: float = 1.0, most_tokens: int = 4096) -> Any:
    return queue.take(LADDER, PROMISE, most_tokens, now, slowdown)


def test_an_urgent_one_goes_first_and_nobody_else_is_narrower() -> None:
    usual = [request() for _ in range(5)]
    urgent = request(within_ms=4.0)
    queue = filled(*usual, urgent)
    first = taken(queue)
    assert first.requests == [urgent]  # 2 ms at the narrow one; the others would take 5 and more
    assert urgent.runs == "narrow"
    assert first.expected_ms == pytest.approx(2.0)
    second = taken(queue, now=0.002)
    assert second.requests == usual
    assert {one.runs for one in usual} == {"wide"}
    assert len(queue) == 0


def test_others_ride_along_as_far_as_no_promise_is_lost() -> None:
    usual = [request() for _ in range(5)]
    urgent = request(within_ms=35.0)
    batch = taken(filled(urgent, *usual))
    assert batch.requests == [urgent, *usual[:2]]  # 1 + 10 for each: 31 of 35 ms
    assert [one.runs for one in batch.requests] == ["wide", "wide", "wide"]
    assert batch.expected_ms == pytest.approx(31.0)
    # On a device that takes twice as long now: it alone.
    queue = filled(request(within_ms=35.0), *(request() for _ in range(5)))
    assert len(taken(queue, slowdown=2.0).requests) == 1


def test_a_batch_with_urgent_ones_is_no_longer_than_others() -> None:
    usual = [request(40) for _ in range(5)]
    batch = taken(filled(request(within_ms=399.0), *usual))
    assert len(batch.requests) == 3  # 1 + 10 + 80 of 100 ms, though there is more time


def test_each_text_of_a_batch_has_the_width_of_its_lane() -> None:
    urgent = [request(40, within_ms=60.0) for _ in range(2)]  # 81 ms wide, 41 half
    usual = request(10)
    batch = taken(filled(*urgent, usual))
    assert batch.requests == [*urgent, usual]
    assert [one.runs for one in batch.requests] == ["half", "half", "wide"]
    assert batch.expected_ms == pytest.approx(51.0)
    assert batch.timed


def test_urgent_ones_go_by_when_they_must_be_answered() -> None:
    asked = [request(within_ms=ms, arrived=at) for ms, at in ((90.0, 0.0), (20.0, 0.0), (20.0, 0.05), (90.0, 0.0))]
    batch = taken(filled(*asked), now=-1.0)
    assert batch.requests == [asked[1], asked[2], asked[0], asked[3]]


def test_urgent_ones_without_end_let_a_late_one_pass() -> None:
    queue = filled(*(request(arrived=0.0) for _ in range(3)))
    for turn in range(3):
        queue.add(request(within_ms=2.0, arrived=1.0 + turn))
        batch = taken(queue, now=1.0 + turn)  # the usual ones were to be answered at 0.4
        assert [one.urgent for one in batch.requests] == [True, False]
        assert batch.requests[1].runs == "narrow"
    queue.add(request(arrived=9.0))
    queue.add(request(within_ms=2.0, arrived=9.0))
    assert [one.urgent for one in taken(queue, now=9.0).requests] == [True]


def test_more_urgent_ones_than_a_batch_takes() -> None:
    urgent = [request(60, within_ms=399.0) for _ in range(3)]
    queue = filled(request(), *urgent)
    assert taken(queue).requests == urgent[:1]  # 61 ms; two are 121 of 100
    assert taken(queue, most_tokens=64).requests == urgent[1:2]
    assert len(taken(queue).requests) == 2


def test_a_sub_network_of_their_own_counts_by_its_time() -> None:
    named = request(10, within_ms=30.0, subnet="narrow")  # a millisecond, and one of the batch
    other = request(1000, subnet="narrow")  # 100 ms
    queue = filled(named, other, request())
    batch = taken(queue)
    assert batch.requests == [named]
    assert batch.expected_ms == pytest.approx(2.0)
    assert not batch.timed
    assert queue.usual.tokens == 10
    assert queue.usual.fixed_tokens == pytest.approx(100.0)


def test_what_goes_on_is_before_what_came_later() -> None:
    first, second, third = (request(within_ms=ms) for ms in (50.0, PROMISE, PROMISE))
    queue = filled(request(within_ms=60.0), request())
    queue.put_back([first, second, third])
    assert next(iter(queue)) is first
    assert list(queue.usual)[:2] == [second, third]


def test_nobody_is_lost_where_choosing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = filled(request(within_ms=50.0), request(within_ms=60.0), request())
    before = list(queue)
    choose = lanes.choose
    calls: list[int] = []

    def second_fails(*given: Any) -> Any:
        calls.append(1)
        return choose(*given) if len(calls) == 1 else 1 // 0

    monkeypatch.setattr(lanes, "choose", second_fails)
    with pytest.raises(ZeroDivisionError):
        taken(queue)
    assert list(queue) == before
    assert queue.urgent.tokens == 20


def test_counts_hold_through_any_order_of_calls() -> None:
    chance = random.Random(0)
    queue = Queue()
    alive: list[Request] = []
    for _ in range(2000):
        kind = chance.random()
        if kind < 0.5:
            one = request(
                chance.randint(1, 30),
                within_ms=chance.choice([5.0, 50.0, PROMISE, 900.0]),
                subnet=chance.choice(["auto", "auto", "half"]),
                arrived=chance.random(),
            )
            queue.add(one)
            alive.append(one)
        elif kind < 0.6 and alive:
            one = alive.pop(chance.randrange(len(alive)))
            queue.remove(one.answer)
        elif alive:
            batch = taken(queue, now=chance.random())
            assert batch.requests
            back = [one for one in batch.requests if chance.random() < 0.3]
            queue.put_back(back)
            alive = [one for one in alive if one not in batch.requests or one in back]
        assert sorted(map(id, queue)) == sorted(map(id, alive))
        for lane, urgent in ((queue.urgent, True), (queue.usual, False)):
            own = [one for one in alive if one.urgent is urgent]
            assert lane.tokens == sum(len(one.ids) for one in own if one.subnet == "auto")
            assert lane.fixed_tokens == pytest.approx(sum(one.fixed_tokens for one in own), abs=1e-6)
    left = list(queue)
    assert queue.clear() == left
    assert len(queue) == 0


def test_a_lane_without_the_request() -> None:
    lane = Lane()
    lane.append(request())
    assert not lane.remove(request().answer)
    assert len(lane) == 1
