"""Timing again: every shape is timed in every round, in changing order, and the model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest

from dynabert.profile import remeasure as module
from dynabert.profile.timing import Sample
from tests.dynabert.tiny_texts import tiny_model


def test_times_belong_to_their_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    shapes = [model.shape(name) for name in ("w1", "w0.5", "w0.25-d0.5")]
    asked: list[Any] = []

    class Timer:
        def __init__(self, *_: Any) -> None: ...

        def __call__(self, shape: Any) -> Sample:
            asked.append(shape)
            return Sample(float(sum(shape.heads)), False)

    monkeypatch.setattr(module, "ModelTimer", Timer)
    found = [one.ms for one in module.remeasure(model, shapes, 2, 10, rounds=6, warmup=1)]
    assert found == [16.0, 8.0, 2.0]
    assert asked[:3] == shapes
    rounds = [tuple(asked[3 + 3 * i : 6 + 3 * i]) for i in range(6)]
    assert all(set(one) == set(shapes) for one in rounds)
    assert len(set(rounds)) > 1


@pytest.mark.parametrize("training", [False, True])
def test_a_real_pass_and_the_mode(training: bool) -> None:
    model = tiny_model().train(training)
    [large, small] = module.remeasure(model, [model.shape("w1"), model.shape("w0.25-d0.5")], 4, 50, rounds=5)
    assert 0.0 < small.ms < large.ms
    assert model.training is training


def test_it_says_which_time_and_how_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    shape = model.shape("w1")

    def found(samples: list[Sample]) -> module.Remeasured:
        waiting = iter(samples)
        monkeypatch.setattr(module, "ModelTimer", lambda *_: lambda _shape: next(waiting))
        [one] = module.remeasure(model, [shape], 1, 5, rounds=len(samples), warmup=0)
        return one

    assert found([Sample(2.0, False)] * 4) == (2.0, 2.0, 0.0, "median of 4 passes by the clock")
    assert found([Sample(2.0, True, 6.0)] * 4) == (
        2.0,
        6.0,
        1.0,
        "low quartile of 4 passes, of those held up the thread's processor time",
    )
    assert found([Sample(2.0, False)] * 3 + [Sample(3.0, True, 9.0)]) == (
        2.0,
        2.0,
        0.25,
        "low quartile of the 3 of 4 passes that were not held up, by the clock",
    )


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 10**11}, "500,000,000,000 tokens of one pass; allowed: up to 1,048,576"),
        ({"rounds": 0}, "rounds is 0"),
        ({"shapes": []}, "number of shapes is 0"),
        ({"seq_length": 51}, "seq_length is 51; allowed: 1 to 50"),
    ],
)
def test_refusals(options: dict[str, Any], wrong: str) -> None:
    model = tiny_model()
    given: dict[str, Any] = {"shapes": [model.shape("w1")], "batch_size": 1, "seq_length": 5} | options
    with pytest.raises(ValueError, match=wrong):
        module.remeasure(model, **given)
