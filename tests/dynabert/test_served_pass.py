"""What a profile times: on a CPU the model's pass, on a GPU the engine's graphs, captured before the clock starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynabert.engine import graphs as engine_graphs
from dynabert.engine.graphs import GraphRunner
from dynabert.profile import measure_latency, served_pass
from dynabert.profile.remeasure import remeasure
from dynabert.profile.served_pass import ServedPass
from dynabert_kernels.testing.frozen_replay import FrozenCapture
from tests.dynabert.tiny_texts import tiny_model

SUBNETS = ["w1", "w0.5-d0.75", "w0.25-d0.5", "w1-l0,3", "h4,0,2,1-n40,0,7,3"]
TEXTS = [[5, 6, 7, 8], [9, 10, 11, 12]]


class Counted(FrozenCapture):
    """A stand-in for CUDA's capture that may be forbidden."""

    allowed = True

    def __call__(self, function: Any) -> Any:
        assert self.allowed, "captured while the clock ran"
        return super().__call__(function)


def graph_runner(model: Any, **limits: int) -> tuple[GraphRunner, Counted]:
    capture = Counted()
    return GraphRunner(model, capture, **{"max_graphs": 64} | limits), capture


def model() -> Any:
    """Heads of 16, which every provider takes."""
    return tiny_model(hidden_size=64, num_hidden_layers=4).eval()


@torch.inference_mode()
def test_a_pass_is_a_replay_of_a_graph_that_was_made_before() -> None:
    network = model()
    runner, capture = graph_runner(network)
    served, plain = ServedPass(network, TEXTS, runner), ServedPass(network, TEXTS)
    calls = [served.of(network.shape(subnet)) for subnet in SUBNETS]
    assert len(capture.made) == len(runner.frames) == len(SUBNETS)
    capture.allowed = False
    for _ in range(2):
        for subnet, call in zip(SUBNETS, calls, strict=True):
            wanted = plain.of(network.shape(subnet))()
            torch.testing.assert_close(call(), wanted, rtol=1e-5, atol=1e-5)
            assert served.of(network.shape(subnet)) is call
    assert len(capture.made) == len(SUBNETS)


@torch.inference_mode()
def test_a_batch_that_the_engine_launches_is_launched() -> None:
    network = model()
    runner, capture = graph_runner(network, max_tokens=7)
    call = ServedPass(network, TEXTS, runner).of(network.shape("w0.5"))
    assert call().shape == (2, network.config.num_labels)
    assert len(capture.made) == 0


@pytest.mark.parametrize("what", ["latency", "remeasure"])
def test_times_are_of_the_engines_passes(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()
    runner, capture = graph_runner(network)
    asked: list[Any] = []

    def for_a_gpu(*given: Any) -> GraphRunner:
        asked.append(given)
        return runner

    monkeypatch.setattr(served_pass, "graphs_for", for_a_gpu)
    replays: list[int] = []
    usual = engine_graphs._Captured.run

    def watched(self: Any, *given: Any) -> Any:
        replays.append(1)
        return usual(self, *given)

    monkeypatch.setattr(engine_graphs._Captured, "run", watched)
    if what == "latency":
        rows = measure_latency(network, SUBNETS[:3], 2, 8, rounds=4, warmup=1)
        assert [row.subnet for row in rows] == ["w1-d1", *SUBNETS[1:3]]
    else:
        found = remeasure(network, [network.shape(subnet) for subnet in SUBNETS[:3]], 2, 8, rounds=4, warmup=1)
        assert all(one.ms > 0.0 for one in found)
    assert asked == [(network, None, served_pass.MOST_GRAPHS)]
    assert len(capture.made) == 3
    assert len(replays) >= 3 * (1 + 1 + 4)  # once when it is made, warmed up, timed
