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

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from dynabert_kernels import PackedBatch, Plan

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification

MAX_GRAPHS = 64  # kept at a time; the one that was not used for longest goes first
MAX_GRAPH_TOKENS = 8192  # of a batch; larger ones keep the device busy for longer than the host needs to launch them
FEWEST_ROWS = 32
FEWEST_KEYS = 64  # the shortest bound of a sequence: what the attention of short texts handles in one step
SLOTS = 2  # pinned buffers of a graph: the host fills one while the other is copied
KNOWN_FRAMES = 4096  # frames that were met once, and not captured yet
_ALIGNMENT = 16  # bytes; what a 16-byte load wants


class Replay(Protocol):
    """A captured forward pass. ``replay`` runs it on what its inputs hold now, into ``output``."""

    output: Tensor

    def replay(self) -> None: ...


class Capture(Protocol):
    """Makes a `Replay` of a function that reads and writes tensors at fixed places."""

    def __call__(self, function: Callable[[], Tensor]) -> Replay: ...

    def run(self, function: Callable[[], Tensor]) -> Tensor:
        """Calls it where replays run, after what the caller has queued; what the caller queues next may use the
        result."""
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


class _Parts(NamedTuple):
    """A frame's inputs, as views of one buffer."""

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None
    cu_seqlens: Tensor
    table: Tensor


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


def fill(parts: _Parts, frame: Frame, batch: PackedBatch, plan: Plan) -> None:
    """Writes a batch and its plan into a frame's inputs, all on the host. What is left of the room is empty."""
    rows, sequences, groups = plan.num_rows, batch.num_sequences, plan.num_groups
    for to, given in (
        (parts.input_ids, batch.input_ids),
        (parts.position_ids, batch.position_ids),
        (parts.token_type_ids, batch.token_type_ids),
    ):
        if to is None or given is None:
            continue
        to[:rows] = given
        to[rows:] = given[0]  # any valid number: nobody reads these rows' result
    parts.cu_seqlens[: sequences + 1] = batch.cu_seqlens
    parts.cu_seqlens[sequences + 1 :] = batch.cu_seqlens[-1]
    borders, counts = parts.table[: frame.groups + 1], parts.table[frame.groups + 1 :].view(-1, 2, frame.groups)
    borders[: groups + 1] = plan.rows
    borders[groups + 1 :] = plan.rows[-1]
    counts[:, :, :groups] = plan.table[groups + 1 :].view(-1, 2, groups)
    counts[:, :, groups:] = 0


class _Slot:
    """A buffer on the host, and until when a copy from it is under way."""

    def __init__(self, layout: _Layout, pinned: bool) -> None:
        self.buffer = torch.zeros(layout.num_bytes, dtype=torch.uint8, pin_memory=pinned)
        self.parts = layout.parts(self.buffer)
        self.copied = torch.cuda.Event() if pinned else None
        self.used = False


class _Captured:
    """A frame's graph with its inputs."""

    def __init__(self, model: ElasticBertForSequenceClassification, frame: Frame, capture: Capture) -> None:
        self.frame = frame
        layout = _Layout(frame)
        pinned = model.device.type == "cuda"
        self._slots = [_Slot(layout, pinned) for _ in range(SLOTS if pinned else 1)]
        self._turn = 0
        self._inputs = torch.zeros(layout.num_bytes, dtype=torch.uint8, device=model.device)
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
        self._replay = capture(lambda: model.packed_logits(batch, plan))

    def run(self, batch: PackedBatch, plan: Plan) -> Tensor:
        """(B, labels) in packed order, a copy."""
        slot = self._slots[self._turn]
        self._turn = (self._turn + 1) % len(self._slots)
        if slot.copied is not None and slot.used:
            slot.copied.synchronize()  # of the copy alone, and long done unless the host is far ahead
        fill(slot.parts, self.frame, batch, plan)
        self._inputs.copy_(slot.buffer, non_blocking=True)
        if slot.copied is not None:
            slot.copied.record()
            slot.used = True
        self._replay.replay()
        return self._replay.output[: batch.num_sequences].clone()


class GraphRunner:
    """Logits of packed batches through graphs, where that is the faster way.

    A frame is captured when it is met for the second time: a capture takes longer than many passes, and what comes once
    may not come again. Safe to call from several threads: one at a time.

    Args:
        model: the network, in eval mode.
        capture: see `Capture`.
        max_graphs: kept at a time.
        max_tokens: of a batch that goes through a graph.
    """

    def __init__(
        self,
        model: ElasticBertForSequenceClassification,
        capture: Capture,
        *,
        max_graphs: int = MAX_GRAPHS,
        max_tokens: int = MAX_GRAPH_TOKENS,
    ) -> None:
        self._model, self._capture = model, capture
        self.max_graphs, self.max_tokens = max_graphs, max_tokens
        self._graphs: OrderedDict[Frame, _Captured] = OrderedDict()
        self._met: OrderedDict[Frame, None] = OrderedDict()
        self._lock = threading.Lock()
        self._why_off: str | None = None
        self._weights: list[tuple[dict[str, Tensor | None], str]] = []
        self._addresses: list[int] = []

    @property
    def frames(self) -> list[Frame]:
        """Of the graphs that are kept, the one used last at the end."""
        return list(self._graphs)

    @property
    def why_off(self) -> str | None:
        """Why nothing is captured any more; None where it works."""
        return self._why_off

    def takes(self, tokens: int) -> bool:
        """Whether a batch of so many tokens is to come here: with its tensors on the host."""
        return self._why_off is None and tokens <= self.max_tokens and not self._model.encoder.has_hooks()

    def logits(self, batch: PackedBatch, plan: Plan, *, capture_now: bool = False) -> Tensor:
        """(B, labels) on the model's device, in the batch's packed order. Batch and plan lie on the host.

        ``capture_now``: also where the frame is met for the first time.
        """
        config = self._model.config
        frame = Frame.of(batch, plan, (config.layer_heads, config.layer_neurons), config.max_sequence_length)
        with self._lock, torch.inference_mode():
            self._forget_moved()
            captured = self._graphs.get(frame)
            if captured is None and (capture_now or frame in self._met):
                captured = self._make(frame)
            if captured is not None:
                self._graphs.move_to_end(frame)
                return self._capture.run(lambda: captured.run(batch, plan))
            self._met[frame] = None
            if len(self._met) > KNOWN_FRAMES:
                self._met.popitem(last=False)
        device = self._model.device
        with torch.inference_mode():
            return self._model.packed_logits(replace(batch, order=None).to(device), plan.to(device))

    def forget(self) -> None:
        """Drops all graphs."""
        with self._lock:
            self._graphs.clear()

    def _make(self, frame: Frame) -> _Captured | None:
        if self._why_off is not None:
            return None
        while len(self._graphs) >= self.max_graphs:
            self._graphs.popitem(last=False)
        try:
            captured = _Captured(self._model, frame, self._capture)
        except RuntimeError as error:  # also what torch raises when memory is out
            self._why_off = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._graphs.clear()
            warnings.warn(
                f"InferenceEngine: no CUDA graph could be captured ({self._why_off}); kernels are launched one by one "
                "from now on, which is slower for small batches; graphs=False says so from the start",
                stacklevel=2,
            )
            return None
        self._met.pop(frame, None)
        self._graphs[frame] = captured
        if not self._weights:
            self._weights = list(_places(self._model))
            self._addresses = self._current_addresses()
        return captured

    def _current_addresses(self) -> list[int]:
        return [0 if (tensor := place[name]) is None else tensor.data_ptr() for place, name in self._weights]

    def _forget_moved(self) -> None:
        """A graph reads the weights where they lay: moved or exchanged ones need graphs of their own."""
        if self._weights and self._current_addresses() != self._addresses:
            self._graphs.clear()
            self._weights, self._addresses = [], []


def _places(model: torch.nn.Module) -> Iterator[tuple[dict[str, Tensor | None], str]]:
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    yield held, name  # type: ignore[misc]


class CudaReplay:
    """A captured CUDA graph and its result."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor) -> None:
        self._graph, self.output = graph, output

    def replay(self) -> None:
        """Queues it on the current stream."""
        self._graph.replay()


class CudaCapture:
    """Captures on a stream of its own, all graphs in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> CudaReplay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                function()  # kernels are compiled and libraries set up here, which a capture may not do
            self._stream.synchronize()
            # Other threads may go on with their own work on the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = function()
        return CudaReplay(graph, output)

    def run(self, function: Callable[[], Tensor]) -> Tensor:
        """See `Capture`."""
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            result = function()
        caller.wait_stream(self._stream)
        result.record_stream(caller)  # its memory is this stream's: not to be given away before the caller is done
        return result


def graphs_for(model: ElasticBertForSequenceClassification, wanted: bool | None, max_graphs: int) -> GraphRunner | None:
    """The runner of an engine's model; None where there are to be no graphs.

    ``wanted``: None for graphs on a GPU and none elsewhere. Raises ``ValueError`` where they are wanted and the model
    is not on a GPU, or for a number of graphs below 1.
    """
    if max_graphs < 1:
        raise ValueError(
            f"InferenceEngine: max_graphs is {max_graphs}; allowed: 1 or more; graphs=False turns them off"
        )
    on_gpu = model.device.type == "cuda"
    if wanted and not on_gpu:
        raise ValueError(
            f"InferenceEngine: graphs is True and the model is on {model.device}; CUDA graphs need a GPU; leave graphs "
            "out, or load the model with device='cuda'"
        )
    if wanted is False or not on_gpu:
        return None
    return GraphRunner(model, CudaCapture(model.device), max_graphs=max_graphs)
