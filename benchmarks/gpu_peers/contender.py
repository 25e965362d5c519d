"""What a contender and a work are, and the two ways to run a call without Python between its launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu_peers.peers import NotHere
from dynabert.engine.cuda_capture import record_graph

from .setting import Setting

Call = Callable[[], Any]
Answer = Mapping[str, Tensor]
GRAPH = ", CUDA graph"
OURS = "ours"


def as_logits(found: Any) -> Answer:
    """The answer of a call that returns logits."""
    return {"logits": found}


class Noted:
    """A call with a remark that its row carries, such as which attention it chose."""

    def __init__(self, run: Call, note: str) -> None:
        self.run, self.note = run, note

    def __call__(self) -> Any:
        return self.run()


def note_of(call: Call) -> str:
    """The remark of a call; empty for most."""
    return call.note if isinstance(call, Noted) else ""


@dataclass(frozen=True)
class Contender:
    """One way to do a work.

    ``build``: everything that is not timed; what comes back does the work once. Raises `NotHere` with the reason where
    it cannot take part. ``answer``: named tensors of what a call returns, to be compared. ``wanted``: which of the
    work's references it must equal. ``operations``, ``size_bytes``: of one call, by formula, or None.
    """

    name: str
    build: Callable[[], Call]
    wanted: str = "all"
    answer: Callable[[Any], Answer] = as_logits
    operations: int | None = None
    size_bytes: int | None = None

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)


@dataclass(frozen=True)
class Work:
    """Contenders that are timed against each other in the same rounds.

    ``references``: name to a function of the float32 (of single ops: float64) answer. ``allowed``: the largest
    difference that is timed, as a share of each tensor's largest entry. ``gradients``: whether calls build graphs.
    ``cache``: ``warm``: nothing rotates; ``cold``: the last-level cache is displaced before each call.
    """

    name: str
    text: str
    contenders: Sequence[Contender]
    references: Mapping[str, Callable[[], Answer]]
    allowed: float
    gradients: bool = False
    memory: bool = False
    cache: str = "warm"
    tokens: int = 0
    padded_tokens: int = 0


def captured(setting: Setting, run: Call) -> Call:
    """``run`` as one CUDA graph, captured on a side stream after three calls; it must not synchronise. ``run`` is kept:
    the tensors that it holds are the graph's inputs, and their memory must not be given away.

    A rehearsal has no graphs: it calls ``run``.
    """
    if setting.rehearse:
        return run
    if setting.device.type != "cuda":
        raise NotHere("a CUDA graph needs a CUDA device")
    side = torch.cuda.Stream(setting.device)
    side.wait_stream(torch.cuda.current_stream(setting.device))
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream(setting.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    kept = record_graph(graph, run, setting.device, side, torch.cuda.graph_pool_handle())

    def replay(run: Call = run) -> Any:
        graph.replay()
        return kept

    return Noted(replay, note_of(run))


def compiled(setting: Setting, function: Callable[..., Any], graphs: bool = True) -> Callable[..., Any]:
    """``torch.compile(mode="max-autotune")``, with or without its CUDA graphs, one shape, no break.

    A rehearsal only traces, and runs what was traced.
    """
    if setting.rehearse:
        return torch.compile(function, backend="eager", dynamic=False, fullgraph=True)
    mode = "max-autotune" if graphs else "max-autotune-no-cudagraphs"
    return torch.compile(function, mode=mode, dynamic=False, fullgraph=True)


def step_begins() -> None:
    """Says to the compiler's CUDA graphs that the last call's results are done with."""
    torch.compiler.cudagraph_mark_step_begin()


def both_ways(setting: Setting, name: str, build: Callable[[], Call], **rest: Any) -> list[Contender]:
    """A contender as it is, and the same in a CUDA graph."""
    return [
        Contender(name, build, **rest),
        Contender(name + GRAPH, lambda: captured(setting, build()), **rest),
    ]
