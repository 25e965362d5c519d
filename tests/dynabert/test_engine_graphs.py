"""Graphs of the engine: what a frame holds is answered as without one, through a capture that freezes what CUDA would.

On a CPU `FrozenReplay` stands for a CUDA graph; with a GPU the same tests run on real graphs too.
"""

from __future__ import annotations

import random
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

import dynabert_kernels as dk
from dynabert import InferenceEngine
from dynabert.engine.cuda_capture import CudaCapture, _shared
from dynabert.engine.graphs import Frame, GraphRunner, graphs_for, power_bucket, row_bucket
from dynabert_kernels import PackedBatch, Plan
from dynabert_kernels.testing.frozen_replay import FrozenCapture, FrozenReplay
from dynabert_kernels.triton import dependent_launch as early
from dynabert_kernels.triton.environment import IMPORT_ERROR
from tests.dynabert.tiny_texts import some_texts, tiny_model, tiny_tokenizer

SUBNETS = ["w1-d1", "w0.5-d0.75", "w0.25-d0.5", "w1-l0,3", "h4,0,2,1-n40,0,7,3"]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


class CountedCudaCapture(CudaCapture):
    """The same on a GPU."""

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", torch.cuda.current_device()))
        self.made: list[Any] = []

    def __call__(self, function: Callable[[], Tensor]) -> Any:
        self.made.append(super().__call__(function))
        return self.made[-1]


def engines(
    device: str = "cpu",
    architecture: str = "bert",
    *,
    max_batch_tokens: int = 60,
    num_hidden_layers: int = 4,
    **limits: int,
) -> tuple[InferenceEngine, InferenceEngine, Any]:
    """One with graphs, one without, on the same weights; and what captures. Heads of 16, which every provider takes."""
    model = tiny_model(architecture, hidden_size=64, num_hidden_layers=num_hidden_layers).to(device)
    tokenizer = tiny_tokenizer(architecture)
    with_graphs = InferenceEngine(model, tokenizer, max_batch_tokens=max_batch_tokens, graphs=False)
    plain = InferenceEngine(model, tokenizer, max_batch_tokens=max_batch_tokens, graphs=False)
    capture = FrozenCapture() if device == "cpu" else CountedCudaCapture()
    with_graphs._graphs = GraphRunner(model, capture, **limits)
    return with_graphs, plain, capture


def runner(engine: InferenceEngine) -> GraphRunner:
    assert engine._graphs is not None
    return engine._graphs


def same(found: list[Any], wanted: list[Any]) -> None:
    assert [one.subnet for one in found] == [one.subnet for one in wanted]
    # On a GPU a frame's size may choose another tile, and with it another order of additions.
    bound = 1e-4 if torch.cuda.is_available() else 1e-5
    np.testing.assert_allclose([one.logits for one in found], [one.logits for one in wanted], rtol=bound, atol=bound)


# Answers
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_many_batches_through_few_graphs(device: str, architecture: str) -> None:
    """Lengths, counts and sub-networks change from batch to batch; a graph learns nothing of them when it is made."""
    engine, plain, capture = engines(device, architecture)
    chance = random.Random(5)
    for turn in range(30):
        texts = some_texts(chance.randint(1, 12), longest=14, seed=turn)
        subnets = [chance.choice(SUBNETS) for _ in texts]
        same(engine.predict(texts, subnet=subnets), plain.predict(texts, subnet=subnets))
    assert 0 < len(capture.made) < 20


def test_the_triton_kernels_follow_the_table_and_not_the_bounds(architecture: str) -> None:
    """Captured for the whole network, replayed with narrower and shallower ones. Two layers: interpreted."""
    engine, plain, capture = engines("cpu", architecture, num_hidden_layers=2)
    texts, subnets = some_texts(3, longest=4), ["w0.25-d0.5", "w0.5", "w1-d0.5"]
    with dk.use_provider("triton"):
        engine.warm_up(["w1", "w0.75"], lengths=[3], counts=[2])
        made = len(capture.made)
        same(engine.predict(texts, subnet=subnets), plain.predict(texts, subnet=subnets))
    assert len(capture.made) == made, "the warm-up has captured this frame"


@pytest.mark.parametrize("device", DEVICES)
def test_pairs_and_every_size_to_the_frames_edge(device: str) -> None:
    """One token more than a frame holds needs the next; an empty sequence at the full frame's end has no row."""
    engine, plain, _ = engines(device, max_batch_tokens=200)
    model = engine.model
    for count, length in ((1, 32), (4, 8), (3, 11), (3, 10), (1, 33), (2, 24), (7, 7), (5, 10), (1, 49), (1, 1)):
        ids = [[4 + (i + j) % 40 for j in range(length)] for i in range(count)]
        types = [[j % 2 for j in range(length)] for _ in range(count)]
        shapes = [model.shape(SUBNETS[i % 3]) for i in range(count)]
        with torch.inference_mode():
            wanted, _ = plain._issue(ids, types, shapes)
            for _ in range(3):  # met, captured, replayed
                found, order = engine._issue(ids, types, shapes)
                torch.testing.assert_close(found, wanted[list(order)], rtol=1e-4, atol=1e-4)
    pairs = [("the good film", "a bad plot"), ("it is slow", "she feels warm and bright")]
    for _ in range(3):
        same(engine.predict(pairs, subnet="w0.5"), plain.predict(pairs, subnet="w0.5"))


@pytest.mark.parametrize("device", DEVICES)
def test_a_graph_sees_weights_that_change_in_place_and_forgets_moved_ones(device: str) -> None:
    engine, plain, capture = engines(device)
    texts = some_texts(3)
    for _ in range(3):
        before = engine.predict(texts)
    assert len(capture.made) == 1
    with torch.no_grad():
        engine.model.classifier.out_proj.bias.add_(1.0)
    changed = engine.predict(texts)
    assert changed[0].logits[0] == pytest.approx(before[0].logits[0] + 1.0, abs=1e-5)
    assert len(capture.made) == 1
    layer = engine.model.encoder.layers[0]
    layer.ffn_in_bias.data = layer.ffn_in_bias.data.clone() + 0.5  # elsewhere
    same(engine.predict(texts), plain.predict(texts))
    assert runner(engine).frames == []
    for _ in range(3):
        same(engine.predict(texts), plain.predict(texts))
    assert len(capture.made) == 2


@pytest.mark.parametrize("part", ["head", "layer", "weight"])
def test_an_exchanged_part_is_seen(part: str) -> None:
    engine, plain, capture = engines()
    for _ in range(3):
        before = engine.predict("the good film")
    other = tiny_model(hidden_size=64, seed=5)
    if part == "head":
        engine.model.classifier.out_proj = other.classifier.out_proj
    elif part == "layer":
        engine.model.encoder.layers[1] = other.encoder.layers[1]
    else:
        engine.model.encoder.layers[1].ffn_in_weight = other.encoder.layers[1].ffn_in_weight
    for _ in range(3):
        found = engine.predict("the good film")
        same([found], [plain.predict("the good film")])
    assert found.logits != pytest.approx(before.logits, abs=1e-3)
    assert len(capture.made) == 2


def test_another_provider_is_another_graph() -> None:
    engine, _, capture = engines()
    engine.warm_up(lengths=[4])
    with dk.use_provider("reference"):
        engine.warm_up(lengths=[4])
    engine.warm_up(lengths=[4])
    assert len(capture.made) == 2


def test_a_model_on_another_device_is_launched() -> None:
    engine, plain, capture = engines()
    capture.device = torch.device("cuda", 7)
    for _ in range(3):
        same([engine.predict("the good film")], [plain.predict("the good film")])
    assert capture.made == []


# Which graph
# ----------------------------------------------------------------------------------------------------------------


def test_a_frame_is_captured_when_it_is_met_again() -> None:
    engine, _, capture = engines()
    engine.predict("the good film")
    assert capture.made == []
    engine.predict("a bad plot")
    assert len(capture.made) == 1
    engine.predict("the story is warm")
    assert len(capture.made) == 1
    engine.predict("the story is warm", subnet="w0.5")  # its own bounds
    assert len(capture.made) == 1


def test_a_skipped_layer_is_not_launched() -> None:
    """One sub-network alone has its own bounds; several share the whole network's."""
    engine, _, capture = engines(num_hidden_layers=2)
    with dk.use_provider("triton"):
        engine.warm_up(["w1", "w0.25-d0.5"], lengths=[3])
    whole, half, mixed = (sum("elastic_ffn" in name for name in made.ops) for made in capture.made)
    assert (whole, half, mixed) == (2, 1, 2)


def test_mixed_widths_share_a_graph_whichever_they_are() -> None:
    engine, plain, capture = engines()
    for subnets in (["w1", "w0.5"], ["w0.25", "w0.5-d0.5"], ["w0.75", "w0.25-d0.5"], ["w1-l0,3", "w0.5"]):
        texts = ["the good film", "a bad plot"]
        same(engine.predict(texts, subnet=subnets), plain.predict(texts, subnet=subnets))
    assert len(capture.made) == 1
    assert runner(engine).frames[0].max_heads == (4, 4, 4, 4)


def test_the_oldest_graph_goes_first() -> None:
    engine, _, capture = engines(max_graphs=2)
    for subnet in ("w1", "w0.5", "w1", "w0.25"):
        engine.warm_up([subnet], lengths=[5])
    assert [frame.max_heads[0] for frame in runner(engine).frames] == [4, 1]
    assert len(capture.made) == 3
    runner(engine).forget()
    assert runner(engine).frames == []


def test_large_batches_are_launched_one_by_one() -> None:
    engine, plain, capture = engines(max_batch_tokens=500, max_tokens=40)
    texts = some_texts(40)
    for _ in range(3):
        same(engine.predict(texts), plain.predict(texts))
    assert capture.made == []


def test_a_hook_is_called() -> None:
    engine, _, capture = engines()
    for _ in range(3):
        engine.predict("the good film")
    seen: list[int] = []
    handle = engine.model.encoder.layers[0].register_forward_hook(lambda *_: seen.append(1))
    engine.predict("the good film")
    assert seen == [1]
    handle.remove()
    engine.predict("the good film")
    assert seen == [1]
    assert len(capture.made) == 1


@pytest.mark.parametrize(
    ("rows", "bucket"), [(0, 32), (1, 32), (32, 32), (33, 48), (49, 64), (65, 96), (97, 128), (129, 192), (8192, 8192)]
)
def test_row_buckets(rows: int, bucket: int) -> None:
    assert row_bucket(rows) == bucket


def test_power_buckets() -> None:
    assert [power_bucket(n, 4) for n in (0, 1, 2, 4, 5, 16, 17)] == [1, 1, 4, 4, 16, 16, 64]


def test_a_frame_holds_what_it_is_made_for() -> None:
    model = tiny_model()
    whole = (model.config.layer_heads, model.config.layer_neurons)
    chance = random.Random(0)
    for _ in range(300):
        lengths = [chance.randint(1, 50) for _ in range(chance.randint(1, 9))]
        shapes = [model.shape(chance.choice(SUBNETS)) for _ in lengths]
        batch, plan = model.pack([[5] * n for n in lengths], subnet=shapes)
        frame = Frame.of(batch, plan, whole, 50)
        assert frame.rows >= sum(lengths) + (frame.sequences > len(lengths))
        assert frame.sequences >= len(lengths)
        assert frame.groups >= plan.num_groups
        assert 50 >= frame.max_seqlen >= max(lengths)
        assert all(room >= asked for room, asked in zip(frame.max_heads, plan.max_heads, strict=True))
        assert all(room >= asked for room, asked in zip(frame.max_neurons, plan.max_neurons, strict=True))


# Trouble
# ----------------------------------------------------------------------------------------------------------------


def test_captures_that_fail_are_said_and_answers_go_on() -> None:
    engine, plain, _ = engines()

    class Failing(FrozenCapture):
        def __call__(self, function: Callable[[], Tensor]) -> FrozenReplay:
            raise torch.OutOfMemoryError("no memory is left\nand more")

    engine._graphs = GraphRunner(engine.model, Failing())
    wanted = plain.predict("the good film")
    after = ["this batch is launched", "this batch is launched", "so are all batches from now on"]
    same([engine.predict("the good film")], [wanted])  # met
    for said in after:
        with pytest.warns(UserWarning, match=rf"could not be captured \(no memory is left\); {said}"):
            same([engine.predict("the good film")], [wanted])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            same([engine.predict("the good film")], [wanted])
    assert engine._graphs.why_off == "no memory is left"


def test_one_failure_leaves_the_other_graphs() -> None:
    engine, _, capture = engines()
    engine.warm_up(lengths=[5])

    def failing(*_: Any) -> Tensor:
        raise ValueError("a compiler's own error")

    frames = runner(engine).frames
    runner(engine)._capture = type("Failing", (FrozenCapture,), {"__call__": failing})()
    with pytest.warns(UserWarning, match="a compiler's own error"):
        engine.warm_up(["w0.5"], lengths=[5])
    assert runner(engine).frames == frames
    assert runner(engine).why_off is None
    assert len(capture.made) == 1


class Allocator:
    """PyTorch's bookkeeping of pools while graphs are captured, as 2.11 does it: a capture that CUDA gives up never
    tells that nothing is recorded any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recording: list[int] = []
        self.given_up = False
        self._handles = iter(range(1, 99))
        for name, stand_in in {
            "Stream": lambda *_: SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "graph": self._graph,
            "graph_pool_handle": lambda: next(self._handles),
            "current_stream": lambda *_: SimpleNamespace(wait_stream=lambda _: None),
            "current_device": lambda: 0,
            "device": lambda *_: nullcontext(),
            "stream": lambda *_: nullcontext(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self._end, raising=False)
        monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)
        _shared.cache_clear()

    @contextmanager
    def _graph(self, graph: Any, pool: int, **_: Any) -> Iterator[None]:
        if pool in self.recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.recording.append(pool)
        yield
        if self.given_up:
            self.given_up = False
            raise RuntimeError("operation failed due to a previous error during capture")
        self.recording.remove(pool)

    def _end(self, device: int, pool: int) -> None:
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.remove(pool)


def test_a_capture_that_cuda_gives_up_costs_one_batch_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _, _ = engines()
    allocator = Allocator(monkeypatch)
    runner(engine)._capture = CudaCapture(torch.device("cpu"))
    try:
        engine.warm_up(lengths=[5, 40])
        kept = runner(engine).frames
        assert len(kept) == 2
        for _ in range(4):  # more often than it takes to give graphs up, were they one after the other
            allocator.given_up = True
            with pytest.warns(UserWarning, match="previous error during capture.*launched kernel by kernel"):
                engine.warm_up(["w0.5"], lengths=[5])
            assert allocator.recording == []
            assert set(kept) <= set(runner(engine).frames)
            engine.warm_up(["w0.5"], lengths=[5])
            assert runner(engine).why_off is None
            assert len(runner(engine).frames) == 3
            del runner(engine)._graphs[next(reversed(runner(engine)._graphs))]
    finally:
        _shared.cache_clear()


def test_a_caller_s_autocast_is_not_the_engine_s() -> None:
    engine, plain, capture = engines()
    texts = some_texts(3, longest=9)
    wanted = plain.predict(texts, subnet="w0.5")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(plain.predict(texts, subnet="w0.5"), wanted)
        for _ in range(3):
            same(engine.predict(texts, subnet="w0.5"), wanted)
    assert len(capture.made) == 1
    same(engine.predict(texts, subnet="w0.5"), wanted)


def test_graphs_are_for_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"graphs is True and the model is on cpu; CUDA graphs need a GPU"):
        InferenceEngine(tiny_model(), tiny_tokenizer(), graphs=True)
    with pytest.raises(ValueError, match=r"max_graphs is 0; allowed: 1 or more"):
        graphs_for(tiny_model(), None, 0)
    assert graphs_for(tiny_model(), None, 4) is None


def test_early_launches_are_for_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"programmatic_launch is True, but the model is on cpu; a CUDA device is"):
        InferenceEngine(tiny_model(), tiny_tokenizer(), programmatic_launch=True)


@pytest.mark.skipif(IMPORT_ERROR is not None, reason=str(IMPORT_ERROR))
def test_an_engine_asks_for_early_launches_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine runs, launched or captured, sees the mark; what others launch beside it does not."""
    seen: list[bool] = []
    engine, _, _ = engines("cpu")

    def watched(logits: Any) -> Any:
        def run(*given: Any, **more: Any) -> Any:
            seen.append("launch_pdl" in early.dependent_launch(torch.empty(1)))
            return logits(*given, **more)

        return run

    monkeypatch.setattr(early, "architecture", lambda _: "sm_90")
    monkeypatch.setattr(engine.model, "packed_logits", watched(engine.model.packed_logits))
    for wanted in (False, True):
        engine._programmatic_launch = wanted
        for graphs in (None, runner(engine)):
            seen.clear()
            monkeypatch.setattr(engine, "_graphs", graphs)
            engine.predict(["a text of some words"] * 3, subnet="w0.5")
            assert seen
            assert set(seen) == {wanted}
            assert "launch_pdl" not in early.dependent_launch(torch.empty(1))
            if graphs is not None:
                graphs.forget()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_failed_capture_leaves_the_streams_as_they_were() -> None:
    capture, before = CountedCudaCapture(), torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        capture(lambda: torch.ones(2, device="cuda") * torch.ones(1, device="cuda").item())
    assert torch.cuda.current_stream() == before
    made = capture(lambda: torch.ones(2, device="cuda") * 3)
    made.replay()
    assert made.output.tolist() == [3.0, 3.0]


def test_graphs_are_let_go_while_nobody_captures() -> None:
    """When one is too many, by name, when weights move, and when capturing is given up."""
    held, dropped = [False], []

    class Watched(FrozenCapture):
        def __call__(self, function: Callable[[], Tensor]) -> FrozenReplay:
            if self.made:
                raise ValueError("planted")
            made = FrozenReplay(function)
            weakref.finalize(made, lambda: dropped.append(held[0]))
            return made

        @contextmanager
        def alone(self) -> Iterator[None]:
            held[0] = True
            yield
            held[0] = False

    engine, _, _ = engines()
    watched = Watched()
    graphs = engine._graphs = GraphRunner(engine.model, watched, max_graphs=1)
    engine.warm_up(lengths=[4])
    engine.warm_up(lengths=[50])
    assert dropped == [True]
    graphs.forget()
    assert dropped == [True] * 2
    engine.warm_up(lengths=[4])
    head = engine.model.classifier
    head.out_proj.weight = torch.nn.Parameter(head.out_proj.weight.clone())
    engine.predict("the good film")
    assert dropped == [True] * 3
    engine.warm_up(lengths=[4])
    graphs.max_graphs = 2
    watched.made.append(FrozenReplay(lambda: torch.zeros(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            engine.warm_up(lengths=[50])
    assert graphs.why_off == "planted"
    assert dropped == [True] * 4


@pytest.mark.parametrize("device", DEVICES)
def test_several_threads_share_the_graphs(device: str) -> None:
    engine, plain, _ = engines(device)
    texts = some_texts(12, longest=9)
    wanted = {subnet: plain.predict(texts, subnet=subnet) for subnet in SUBNETS[:3]}
    wrong: list[BaseException] = []

    def ask(subnet: str) -> None:
        try:
            for _ in range(6):
                same(engine.predict(texts, subnet=subnet), wanted[subnet])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(subnet,)) for subnet in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_warm_up_counts_and_refuses() -> None:
    engine, _, capture = engines(max_batch_tokens=64)
    assert engine.warm_up(["w1", "w0.5"], lengths=[8, 32, 1000], counts=[1, 2]) == 11
    assert len(capture.made) == len(runner(engine).frames) > 5
    with pytest.raises(ValueError, match=r"warm_up: lengths are \[0\]; allowed: 1 or more each"):
        engine.warm_up(lengths=[0])
    with pytest.raises(ValueError, match=r"width_mult 0\.3"):
        engine.warm_up(["w0.3"])
    engine.model.train()
    with pytest.raises(RuntimeError, match="training mode"):
        engine.warm_up()
    engine.model.eval()


# The stand-in for a graph
# ----------------------------------------------------------------------------------------------------------------


def test_frozen_replay_freezes_what_a_graph_would() -> None:
    x, host = torch.arange(4.0), [2.0]

    def function() -> Tensor:
        buffer = x.new_empty(4)
        buffer.copy_(x).mul_(host[0])
        return buffer.view(2, 2).t().sum(0)

    frozen = FrozenReplay(function)
    assert frozen.output.tolist() == [2.0, 10.0]
    x.copy_(torch.arange(4.0) + 1)
    host[0] = 100.0
    frozen.replay()
    assert frozen.output.tolist() == [6.0, 14.0]
    assert "aten::mul_" in frozen.ops


def test_frozen_replay_shows_memory_that_was_never_written() -> None:
    x = torch.ones(3)
    frozen = FrozenReplay(lambda: x.new_empty(3) + x)
    frozen.replay()
    assert frozen.output.isnan().all()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda: torch.ones(2) * float(torch.ones(1).item()), "_local_scalar_dense"),
        (lambda: torch.ones(2)[torch.ones(2).nonzero().flatten()], "nonzero"),
        (lambda: torch.ones(2) * torch.tensor([1.0, 2.0]), "lift_fresh"),
    ],
)
def test_frozen_replay_refuses_what_a_capture_may_not_do(function: Callable[[], Tensor], name: str) -> None:
    with pytest.raises(RuntimeError, match=name):
        FrozenReplay(function)


def test_a_fault_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that reads a count on the host is refused; one that froze its plan too."""
    engine, _, _ = engines()
    logits = type(engine.model).packed_logits

    def reads(model: Any, batch: PackedBatch, plan: Plan) -> Tensor:
        assert int(plan.table[0]) == 0
        return logits(model, batch, plan)

    with monkeypatch.context() as patch:
        patch.setattr(type(engine.model), "packed_logits", reads)
        with pytest.warns(UserWarning, match="reads a tensor's values on the host"):
            engine.warm_up(lengths=[5])
    engine, _, _ = engines()
    kept: list[Tensor] = []

    def frozen_table(model: Any, batch: PackedBatch, plan: Plan) -> Tensor:
        kept.append(plan.table.clone())
        with _disable_current_modes():
            table = kept[0].clone()
        return logits(model, batch, Plan(table, *list(vars(plan).values())[1:]))

    with monkeypatch.context() as patch:
        patch.setattr(type(engine.model), "packed_logits", frozen_table)
        # The plan was empty when it was frozen, and a CPU refuses one that does not cover the batch.
        with pytest.raises(ValueError, match="has 5 tokens and the plan's groups 0"):
            engine.warm_up(lengths=[5])
