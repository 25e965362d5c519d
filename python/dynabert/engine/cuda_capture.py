"""Capturing CUDA graphs for `dynabert.engine.graphs`, and replaying them beside whatever else uses the device."""

from __future__ import annotations

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


class CudaCapture:
    """Captures on a stream of its own; all graphs of one capture share a pool of memory.

    While a graph is captured no other thread may wait for the whole device (`torch.cuda.synchronize`): CUDA then gives
    the capture up, and the batch is launched without a graph.
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
        # The outer stream is the caller's own: a capture that fails may leave its stream the current one.
        with _CAPTURING, self._lock, torch.cuda.device(self.device), torch.cuda.stream(caller):
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                function()  # kernels are compiled and libraries set up here, which a capture may not do
            self._stream.synchronize()
            if not self._alive:  # a pool that lost its last graph is not to be used again
                self._pool = torch.cuda.graph_pool_handle()
            # Other threads may go on with their own work on the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = function()
            if output.device != self.device:
                raise RuntimeError(f"what was captured lies on {output.device}, not on {self.device}")
            made = CudaReplay(graph, function, output)
            self._alive.add(made)
        return made

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
