"""A network's launches captured once and replayed: CUDA graphs, by how much fits into them.

At a few hundred tokens a GPU waits for the host between kernels. A CUDA graph holds all kernels of a forward pass; to
replay it is one call. But it repeats them at the same addresses with the same grids, so a graph is made for a *frame*:
room for so many tokens, sequences and groups, a longest sequence, and bounds of each layer's heads and neurons. A batch
is copied into the smallest frame that holds it, in one copy from pinned memory; what it leaves free is empty sequences
and groups, and rows that belong to nobody. The kernels read borders and widths from device memory, so another
sub-network in the same frame is other data, not another graph. All graphs run on the model's own weights and share one
pool of memory, one after the other on one stream.

What captures is an argument: on a GPU `CudaCapture`, in tests a recorder that freezes the same things on a CPU.
"""

from __future__ import annotations

import itertools
import operator
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dynabert_kernels import PackedBatch, Plan
from dynabert_kernels.ops.providers import forced_provider
from dynabert_kernels.triton.tiles import ATTENTION_HEAD_SIZES

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSentenceEmbedding, ElasticBertForSequenceClassification, Pooling

    PackedNetwork: TypeAlias = ElasticBertForSentenceEmbedding | ElasticBertForSequenceClassification

MAX_GRAPHS = 64  # kept at a time; the one that was not used for longest goes first
MAX_GRAPH_TOKENS = 8192  # of a batch; larger ones keep the device busy for longer than the host needs to launch them
FEWEST_ROWS = 32
FEWEST_KEYS = 64  # the shortest bound of a sequence: what the attention of short texts handles in one step
SLOTS = 2  # pinned buffers of a graph: the host fills one while the other is copied
MOST_FAILURES = 3  # captures that failed one after the other, after which none is tried again
KNOWN_FRAMES = 4096  # frames that were met once, and not captured yet
_ALIGNMENT = 16  # bytes; what a 16-byte load wants
_ENGINE = "InferenceEngine"


class Replay(Protocol):
    """A captured forward pass. ``replay`` runs it on what its inputs hold now, into ``output``."""

    output: Tensor

    def replay(self) -> None: ...


class Capture(Protocol):
    """Makes a `Replay` of a function that reads and writes tensors at fixed places, all on ``device``."""

    device: torch.device

    def __call__(self, function: Callable[[], Tensor]) -> Replay: ...

    def run(self, function: Callable[[], Tensor]) -> Tensor:
        """Calls it where replays run, after what the caller has queued; what the caller queues next may use the
        result."""
        ...

    def alone(self) -> AbstractContextManager[Any]:
        """While it is held nobody captures on the device: graphs and their pinned memory are let go there only, since
        PyTorch notes an event on a stream when pinned memory comes back, and a stream under capture would record it."""
        ...


def row_bucket(rows: int) -> int:
    """The smallest of 32, 48, 64, 96, 128, ... (powers of two, and half way between them) that is enough."""
    power = max(FEWEST_ROWS, 1 << max(rows - 1, 0).bit_length())
    between = power // 4 * 3
    return between if rows <= between and between >= FEWEST_ROWS else power


def power_bucket(count: int, base: int) -> int:
    """The smallest power of ``base`` that is enough."""
    power = 1
    while power < count:
        power *= base
    return power


class Frame(NamedTuple):
    """What a graph has room for: ``rows`` tokens, ``sequences`` of at most ``max_seqlen`` tokens, ``groups``
    sub-networks with at most these heads and neurons in each layer, with token types or without."""

    rows: int
    sequences: int
    groups: int
    max_seqlen: int
    max_heads: tuple[int, ...]
    max_neurons: tuple[int, ...]
    token_types: bool

    @classmethod
    def of(cls, batch: PackedBatch, plan: Plan, whole: tuple[tuple[int, ...], tuple[int, ...]], longest: int) -> Frame:
        """The frame of a batch. ``whole``: heads and neurons of the whole network; ``longest``: its positions.

        One sub-network alone has its own bounds, so that a layer it skips is not launched; several have the whole
        network's, whichever they are.
        """
        sequences = power_bucket(batch.num_sequences, 2)
        # An empty sequence's first row is read like any other's; it has to exist.
        spare = 1 if sequences > batch.num_sequences else 0
        heads, neurons = (plan.max_heads, plan.max_neurons) if plan.num_groups == 1 else whole
        return cls(
            rows=row_bucket(plan.num_rows + spare),
            sequences=sequences,
            groups=power_bucket(plan.num_groups, 4),
            max_seqlen=min(longest, FEWEST_KEYS * power_bucket(-(-plan.max_seqlen // FEWEST_KEYS), 2)),
            max_heads=tuple(heads),
            max_neurons=tuple(neurons),
            token_types=batch.token_type_ids is not None,
        )


class _Key(NamedTuple):
    """What a graph was captured for: a frame, the provider that was asked for (another one, other kernels), and how an
    embedder makes its vectors."""

    frame: Frame
    provider: str | None
    pooling: Pooling | None


class _Parts(NamedTuple):
    """A frame's inputs, as views of one buffer."""

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None
    cu_seqlens: Tensor
    table: Tensor


class _HostParts(NamedTuple):
    """The same on the host, where they are written for every batch: numpy's small writes take a third of torch's."""

    input_ids: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    token_type_ids: npt.NDArray[np.int64] | None
    cu_seqlens: npt.NDArray[np.int32]
    borders: npt.NDArray[np.int32]  # (groups + 1,)
    counts: npt.NDArray[np.int32]  # (layers * 2, groups)

    @classmethod
    def of(cls, parts: _Parts, groups: int) -> _HostParts:
        types = None if parts.token_type_ids is None else parts.token_type_ids.numpy()
        borders, counts = parts.table[: groups + 1], parts.table[groups + 1 :].view(-1, groups)
        ids, positions = parts.input_ids.numpy(), parts.position_ids.numpy()
        return cls(ids, positions, types, parts.cu_seqlens.numpy(), borders.numpy(), counts.numpy())


class _Layout:
    """Where a frame's inputs lie in one buffer of bytes."""

    def __init__(self, frame: Frame) -> None:
        layers = len(frame.max_heads)
        sizes = [8 * frame.rows, 8 * frame.rows, 8 * frame.rows if frame.token_types else 0]
        sizes += [4 * (frame.sequences + 1), 4 * (frame.groups + 1 + 2 * frame.groups * layers)]
        self.borders = [0]
        for size in sizes:
            self.borders.append(self.borders[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
        self._sizes = sizes
        self.num_bytes = self.borders[-1]

    def parts(self, buffer: Tensor) -> _Parts:
        views = [
            buffer[begin : begin + size].view(torch.int64 if index < 3 else torch.int32)
            for index, (begin, size) in enumerate(zip(self.borders, self._sizes, strict=False))
        ]
        return _Parts(views[0], views[1], views[2] if self._sizes[2] else None, views[3], views[4])


def fill(parts: _HostParts, batch: PackedBatch, plan: Plan) -> None:
    """Writes a batch and its plan, both on the host, into a frame's inputs. What is left of the room is empty."""
    rows, sequences, groups = plan.num_rows, batch.num_sequences, plan.num_groups
    for to, given in (
        (parts.input_ids, batch.input_ids),
        (parts.position_ids, batch.position_ids),
        (parts.token_type_ids, batch.token_type_ids),
    ):
        if to is None or given is None:
            continue
        numbers = given.numpy()
        to[:rows] = numbers
        to[rows:] = numbers[0]  # any valid number: nobody reads these rows' result
    borders, table = batch.cu_seqlens.numpy(), plan.table.numpy()
    parts.cu_seqlens[: sequences + 1] = borders
    parts.cu_seqlens[sequences + 1 :] = borders[-1]
    parts.borders[: groups + 1] = table[: groups + 1]
    parts.borders[groups + 1 :] = table[groups]
    parts.counts[:, :groups] = table[groups + 1 :].reshape(-1, groups)
    parts.counts[:, groups:] = 0


class _Slot:
    """A buffer on the host, and until when a copy from it is under way."""

    def __init__(self, layout: _Layout, groups: int, pinned: bool) -> None:
        self.buffer = torch.zeros(layout.num_bytes, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        self.parts = _HostParts.of(layout.parts(self.buffer), groups)
        self.copied = torch.cuda.Event() if pinned else None
        self.used = False


class _Captured:
    """A frame's graph with its inputs."""

    def __init__(self, model: PackedNetwork, frame: Frame, capture: Capture) -> None:
        self.frame = frame
        layout = _Layout(frame)
        pinned = model.device.type == "cuda"
        self._slots = [_Slot(layout, frame.groups, pinned) for _ in range(SLOTS if pinned else 1)]
        self._turn = 0
        # Made where replays run: memory goes back to the stream that it was asked for on.
        self._inputs = capture.run(lambda: torch.zeros(layout.num_bytes, dtype=torch.uint8, device=model.device))
        parts = layout.parts(self._inputs)
        batch = PackedBatch(
            parts.input_ids,
            parts.position_ids,
            parts.token_type_ids,
            parts.cu_seqlens,
            frame.max_seqlen,
            frame.sequences,
        )
        plan = Plan(parts.table, frame.groups, frame.max_heads, frame.max_neurons, frame.max_seqlen, frame.rows)
        # All inputs are 0 now: ids that exist, and not one sequence.
        self._replay = capture(lambda: model.packed_outputs(batch, plan))

    def run(self, batch: PackedBatch, plan: Plan) -> Tensor:
        """(B, outputs) in packed order, a copy."""
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % len(self._slots)
        if slot.copied is not None and slot.used:
            slot.copied.synchronize()  # of the copy alone, and long done unless the host is far ahead
        fill(slot.parts, batch, plan)
        self._inputs.copy_(slot.buffer, non_blocking=True)
        if slot.copied is not None:
            slot.copied.record()
            slot.used = True
        self._replay.replay()
        return self._replay.output[: batch.num_sequences].clone()


class GraphRunner:
    """What a network gives for packed batches, logits or vectors, through graphs, where that is the faster way.

    A frame is captured when it is met for the second time: a capture takes longer than many passes, and what comes once
    may not come again. Safe to call from several threads: one at a time.

    Args:
        model: the network, in eval mode.
        capture: see `Capture`.
        max_graphs: kept at a time.
        max_tokens: of a batch that goes through a graph.
        name: of the engine, as its messages begin.
    """

    def __init__(
        self,
        model: PackedNetwork,
        capture: Capture,
        *,
        max_graphs: int = MAX_GRAPHS,
        max_tokens: int = MAX_GRAPH_TOKENS,
        name: str = _ENGINE,
    ) -> None:
        self._model, self._capture, self._name = model, capture, name
        self.max_graphs, self.max_tokens = max_graphs, max_tokens
        self._graphs: OrderedDict[_Key, _Captured] = OrderedDict()
        self._met: OrderedDict[_Key, None] = OrderedDict()
        self._lock = threading.Lock()
        self._failures = 0
        self._why_off: str | None = None
        self._weights: _Weights | None = None

    @property
    def frames(self) -> list[Frame]:
        """Of the graphs that are kept, the one used last at the end."""
        return [key.frame for key in self._graphs]

    @property
    def why_off(self) -> str | None:
        """Why nothing is captured any more; None where it works."""
        return self._why_off

    def takes(self, tokens: int) -> bool:
        """Whether a batch of so many tokens is to come here: with its tensors on the host."""
        if self._why_off is not None or tokens > self.max_tokens:
            return False
        return self._model.device == self._capture.device and not self._model.encoder.has_hooks()

    def outputs(self, batch: PackedBatch, plan: Plan, *, capture_now: bool = False) -> Tensor:
        """(B, outputs) on the model's device, in the batch's packed order. Batch and plan lie on the host.

        ``capture_now``: also where the frame is met for the first time.
        """
        config = self._model.config
        frame = Frame.of(batch, plan, (config.layer_heads, config.layer_neurons), config.max_sequence_length)
        key = _Key(frame, forced_provider(), getattr(self._model, "pooling", None))
        with self._lock, torch.inference_mode():
            self._forget_moved()
            captured = self._graphs.get(key)
            if captured is None and (capture_now or key in self._met):
                captured = self._make(key)
            if captured is not None:
                self._graphs.move_to_end(key)
                return self._capture.run(lambda: captured.run(batch, plan))
            self._met[key] = None
            if len(self._met) > KNOWN_FRAMES:
                self._met.popitem(last=False)
        device = self._model.device
        with torch.inference_mode():
            there = replace(batch, order=None).to(device, non_blocking=True)
            return self._model.packed_outputs(there, plan.to(device, non_blocking=True))

    def forget(self) -> None:
        """Drops all graphs."""
        with self._lock, self._capture.alone():
            self._graphs.clear()

    def _make(self, key: _Key) -> _Captured | None:
        if self._why_off is not None:
            return None
        while len(self._graphs) >= self.max_graphs:
            with self._capture.alone():
                self._graphs.popitem(last=False)
        self._met.pop(key, None)
        try:
            captured = _Captured(self._model, key.frame, self._capture)
        except Exception as error:  # a compiler's own errors too: without a graph the same batch may well run
            self._failures += 1
            why, _, _ = str(error).strip().partition("\n")
            why = why or type(error).__name__
            after = "this batch is launched kernel by kernel"
            if self._failures >= MOST_FAILURES:
                self._why_off, after = why, "so are all batches from now on, kernel by kernel; graphs=False says so"
                with self._capture.alone():
                    self._graphs.clear()
            warnings.warn(f"{self._name}: a CUDA graph could not be captured ({why}); {after}", stacklevel=2)
            return None
        self._failures = 0
        self._graphs[key] = captured
        if self._weights is None:
            self._weights = _Weights(self._model)
        return captured

    def _forget_moved(self) -> None:
        """A graph reads the weights where they lay: moved or exchanged ones need graphs of their own."""
        if self._weights is not None and self._weights.moved():
            with self._capture.alone():
                self._graphs.clear()
            self._weights = None


class _Weights:
    """Where a network's weights and buffers lie, and what its modules hold: asked at every call, so without a loop in
    Python."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._holders: list[dict[str, Any]] = [
            held for module in model.modules() for held in (module._parameters, module._buffers, module._modules)
        ]
        self._held = self._now()
        self._tensors = [one for one in self._held if isinstance(one, Tensor)]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))

    def _now(self) -> list[Any]:
        return list(itertools.chain.from_iterable(map(dict.values, self._holders)))

    def moved(self) -> bool:
        """Whether one was exchanged, added, taken away, or lies elsewhere now."""
        now = self._now()
        if len(now) != len(self._held) or not all(map(operator.is_, now, self._held)):
            return True
        return list(map(Tensor.data_ptr, self._tensors)) != self._addresses


def graphs_for(
    model: PackedNetwork, wanted: bool | None, max_graphs: int, *, name: str = _ENGINE
) -> GraphRunner | None:
    """The runner of an engine's model; None where there are to be no graphs.

    ``wanted``: None for graphs on a GPU and none elsewhere. ``name``: of the engine. Raises ``ValueError`` where they
    are wanted and the model is not on a GPU, or for a number of graphs below 1.
    """
    if max_graphs < 1:
        raise ValueError(f"{name}: max_graphs is {max_graphs}; allowed: 1 or more; graphs=False turns them off")
    on_gpu = model.device.type == "cuda"
    if wanted and not on_gpu:
        raise ValueError(
            f"{name}: graphs is True and the model is on {model.device}; CUDA graphs need a GPU; leave graphs "
            "out, or load the model with device='cuda'"
        )
    size = model.config.hidden_size // model.config.num_attention_heads
    if wanted and size not in ATTENTION_HEAD_SIZES:
        raise ValueError(
            f"{name}: graphs is True and heads have {size} numbers; allowed: "
            f"{', '.join(map(str, ATTENTION_HEAD_SIZES))}; other sizes are computed by plain PyTorch, which reads the "
            "plan on the host"
        )
    if wanted is False or not on_gpu or size not in ATTENTION_HEAD_SIZES:
        return None
    from dynabert.engine.cuda_capture import CudaCapture

    return GraphRunner(model, CudaCapture(model.device), max_graphs=max_graphs, name=name)
