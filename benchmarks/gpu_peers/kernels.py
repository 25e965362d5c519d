"""Works on single ops: a layer's products, a ragged product, attention; the problems are of `benchmarks.registry`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import verify
from benchmarks.problems import Group, Mix, ModelShape, Problem, uniform
from benchmarks.registry import REGISTRY, Benchmark, Draw, Tensors
from benchmarks.registry.peers import ForwardPeer, results

from .contender import OURS, Answer, Call, Contender, Work
from .setting import WIDTHS, Setting

TORCH = "torch"
FFN_IN = REGISTRY["elastic_linear.ffn_in"]
ATTENTION, ATTENTION_BACKWARD = REGISTRY["varlen_attention"], REGISTRY["varlen_attention.backward"]


def _without_activation(p: Problem, t: Tensors) -> tuple[Any, ...]:
    *arguments, _, save = FFN_IN.arguments(p, t)
    return *arguments, 0, save


def _linear(p: Problem, g: Group, t: Tensors) -> Tensor:
    return F.linear(t["x"], t["weight"][: g.f], t["bias"][: g.f])


def _rows(p: Problem, g: Group, t: Tensors) -> Tensors:
    return {"x": t["x"][g.rows]}


# A product with its bias and nothing else: cuBLASLt does it in one kernel.
LINEAR = replace(
    FFN_IN,
    name="elastic_linear.linear",
    arguments=_without_activation,
    peer=ForwardPeer(_linear, _rows),
    peer_text="F.linear(x, W[:f], b[:f])",
)


class OnDevice:
    """One benchmark on one problem: its tensors, drawn when first asked for."""

    def __init__(self, setting: Setting, benchmark: Benchmark, problem: Problem) -> None:
        self.setting, self.benchmark, self.problem = setting, benchmark, problem
        self._tensors: Tensors | None = None

    @property
    def tensors(self) -> Tensors:
        if self._tensors is None:
            drawn = torch.Generator(device=self.setting.device).manual_seed(self.setting.seed)
            draw = Draw(self.setting.device, self.problem.dtype, drawn)
            self._tensors = self.benchmark.tensors(self.problem, draw)
        return self._tensors

    def wanted(self) -> Answer:
        """In float64, by the op's definition."""
        return self._named(verify.exact_results(self.benchmark, self.problem, self.tensors))

    def ours(self) -> Call:
        """The registered op, by the provider that it chooses."""
        return partial(self.benchmark.function(), *self.benchmark.arguments(self.problem, self.tensors))

    def torch(self) -> Call:
        """The registry's peer, with what lies outside its time already done."""
        return partial(self.benchmark.peer.prepare(self.problem, [self.tensors]), 0)

    def peer_answer(self, found: Any) -> Answer:
        """What the peer returned, its parts joined as the op lays them out."""

        class Done:
            def prepare(self, problem: Problem, sets: Sequence[Tensors]) -> Callable[[int], Any]:
                return lambda index: found

        return self._named(results(Done(), self.problem, self.tensors))

    def _named(self, found: Any) -> Answer:
        return dict(zip(self.benchmark.checked, verify.as_tuple(found), strict=False))

    def contenders(self, label: str, peer: bool = True) -> list[Contender]:
        """``ours LABEL`` and ``torch LABEL``."""
        numbers: dict[str, Any] = {
            "wanted": label,
            "operations": self.benchmark.operations(self.problem),
            "size_bytes": self.benchmark.weight_bytes(self.problem) + self.benchmark.activation_bytes(self.problem),
        }
        found = [Contender(f"{OURS} {label}", self.ours, answer=self._named, **numbers)]
        if peer:
            found.append(Contender(f"{TORCH} {label}", self.torch, answer=self.peer_answer, **numbers))
        return found


def work_of(name: str, text: str, parts: Sequence[tuple[str, OnDevice, bool]], allowed: float) -> Work:
    """A work of several problems; ``parts``: label, problem, and whether plain PyTorch takes part."""
    return Work(
        name,
        text,
        [contender for label, part, peer in parts for contender in part.contenders(label, peer)],
        {label: part.wanted for label, part, _ in parts},
        allowed,
        tokens=max(part.problem.T for _, part, _ in parts),
    )


def lengths(setting: Setting, count: int, length: int) -> tuple[int, ...]:
    """Equal lengths; a rehearsal's are few and short."""
    return (min(length, 7),) * min(count, 8) if setting.rehearse else (length,) * count


PRODUCTS = ("query, key, value", "attention out", "FFN in", "FFN out")


def products(setting: Setting, allowed: float) -> Work:
    """The four products of a BERT-base layer, 64 x 128 tokens, and FFN in with its GELU."""
    shape, batch = setting.shape("base"), lengths(setting, 64, 128)
    hidden, neurons = shape.hidden, shape.neurons

    def problem(inputs: int, outputs: int) -> Problem:
        # The registry's FFN in maps hidden to neurons: any product is one, under sizes of its own.
        own = ModelShape(f"{inputs}-{outputs}", inputs, shape.heads, inputs // shape.heads, outputs)
        return Problem(own, batch, uniform(1.0), setting.dtype)

    sizes = ((hidden, 3 * hidden), (hidden, hidden), (hidden, neurons), (neurons, hidden))
    parts = [
        (label, OnDevice(setting, LINEAR, problem(*size)), True) for label, size in zip(PRODUCTS, sizes, strict=True)
    ]
    parts.append(("FFN in with GELU", OnDevice(setting, FFN_IN, problem(hidden, neurons)), True))
    return work_of("products", "dense products of a layer, BERT-base, 64 x 128 tokens", parts, allowed)


def ragged_product(setting: Setting, allowed: float) -> Work:
    """FFN in at four widths in one launch, and dense on the share of the rows that makes equal work."""
    shape = setting.shape("base")
    mixed = Problem(shape, lengths(setting, 64, 128), Mix(tuple((width, 1) for width in WIDTHS)), setting.dtype)
    rows = sum(group.T * group.f for group in mixed.groups) // shape.neurons
    dense = Problem(shape, (rows,), uniform(1.0), setting.dtype)
    parts = [("ragged", OnDevice(setting, LINEAR, mixed), True), ("dense", OnDevice(setting, LINEAR, dense), True)]
    return work_of("ragged product", "FFN in, four widths mixed against dense at equal work, BERT-base", parts, allowed)


def attention(setting: Setting, allowed: float) -> Work:
    """Attention with heads of 64: up to 128 tokens, and 512 forward and backward."""
    shape = setting.shape("base")
    parts = []
    for label, count, length, benchmark in (
        ("256 x 64 forward", 256, 64, ATTENTION),
        ("128 x 128 forward", 128, 128, ATTENTION),
        ("32 x 512 forward", 32, 512, ATTENTION),
        ("32 x 512 backward", 32, 512, ATTENTION_BACKWARD),
    ):
        problem = Problem(shape, lengths(setting, count, length), uniform(1.0), setting.dtype)
        parts.append((label, OnDevice(setting, benchmark, problem), True))
    return work_of("attention", "varlen_attention at heads of 64, 12 heads", parts, allowed)
