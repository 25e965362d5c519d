"""The two lanes of what waits: who goes first, how wide, and who rides along."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dynabert.engine import lanes
from dynabert.engine.ladder import SubnetTime
from dynabert.engine.lanes import Lane, Queue, Request

# 10 tokens: 11, 6 and 2 ms.
LADDER = (SubnetTime("wide", 1.0, 1.0), SubnetTime("half", 1.0, 0.5), SubnetTime("narrow", 1.0, 0.1))
PROMISE = 400.0  # a batch of 100 ms: 99 tokens of the wide one


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
