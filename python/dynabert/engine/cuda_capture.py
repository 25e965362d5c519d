"""Capturing CUDA graphs for `dynabert.engine.graphs`, and replaying them beside whatever else uses the device."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class CudaReplay:
    """A captured CUDA graph and its result. Keeps what was captured: the function's tensors are the graph's inputs."""

    def __init__(self, graph: torch.cuda.CUDAGraph, function: Callable[[], Tensor], output: Tensor) -> None:
        self._graph, self._function, self.output = graph, function, output

    def replay(self) -> None:
        """Queues it on the current stream."""
        self._graph.replay()


# PyTorch captures one graph at a time in a process, and hands its streams out again after a while: all engines of a
# device share one stream, and nobody replays on it while another captures.
@functools.cache
def _shared(device: torch.device) -> tuple[torch.cuda.Stream, threading.RLock]:
    return torch.cuda.Stream(device), threading.RLock()


_CAPTURING = threading.Lock()


def record_graph(
    graph: torch.cuda.CUDAGraph, function: Callable[[], Any], device: torch.device, stream: torch.cuda.Stream, pool: Any
) -> Any:
    """Captures ``function`` on ``stream`` and returns what it returned. A capture that fails leaves the current stream
    and PyTorch's allocator as they were.

    Where CUDA gives a capture up, PyTorch up to 2.11 raises before it tells its allocator that nothing is recorded to
    the pool any more: no graph could be captured into it again, and freed memory would wait for ever.
    """
    # The outer stream is the caller's own: a capture that fails may leave its stream the current one.
    with torch.cuda.stream(torch.cuda.current_stream(device)):
        try:
            # Other threads may go on with their own work on the device meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                return function()
        except BaseException:
            end_recording(device, pool)
            raise


def end_recording(device: torch.device, pool: Any) -> None:
    """Tells PyTorch's allocator that nothing is recorded to a pool; no harm where it knows."""
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    index = torch.cuda.current_device() if device.index is None else device.index
    if end is not None:
        with contextlib.suppress(RuntimeError):  # "not currently recording": the capture's own end told it
            end(index, pool)


class CudaCapture:
    """Captures on a stream of its own; all graphs of one capture share a pool of memory.

    While a graph is captured no other thread may wait for the whole device (`torch.cuda.synchronize`): CUDA then gives
    the capture up, and the batch is launched without a graph. Nor may one draw random numbers on the device, as dropout
    does: up to PyTorch 2.11 a capture takes the device's generator for itself, and the other thread's call raises.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream, self._lock = _shared(device)
        self._alive: weakref.WeakSet[CudaReplay] = weakref.WeakSet()
        self._pool: Any = None  # PyTorch's handle

    def __call__(self, function: Callable[[], Tensor]) -> CudaReplay:
        """See `dynabert.engine.graphs.Capture`."""
        graph = torch.cuda.CUDAGraph()
        caller = torch.cuda.current_stream(self.device)
        with _CAPTURING, self._lock, torch.cuda.device(self.device):
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                function()  # kernels are compiled and libraries set up here, which a capture may not do
            self._stream.synchronize()
            if not self._alive or self._pool is None:  # a pool that lost its last graph is not to be used again
                self._pool = torch.cuda.graph_pool_handle()
            try:
                output = record_graph(graph, function, self.device, self._stream, self._pool)
            except BaseException:
                self._pool = None  # the graphs that are there keep theirs alive
                raise
            if output.device != self.device:
                raise RuntimeError(f"what was captured lies on {output.device}, not on {self.device}")
            made = CudaReplay(graph, function, output)
            self._alive.add(made)
        return made

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """See `dynabert.engine.graphs.Capture`."""
        return self._lock

    def run(self, function: Callable[[], Tensor]) -> Tensor:
        """See `dynabert.engine.graphs.Capture`."""
        caller = torch.cuda.current_stream(self.device)
        with self._lock, torch.cuda.device(self.device):
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                result = function()
            caller.wait_stream(self._stream)
        result.record_stream(caller)  # its memory is this stream's: not to be given away before the caller is done
        return result
