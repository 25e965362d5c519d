"""What is timed, by whom, and which ratio of the times is held to which goal."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_peers.networks import Networks, PlainSubnet, make_networks, operations, padded
from dynabert.engine.cuda_capture import CudaCapture
from dynabert_kernels.testing.timing import Ceilings

Run = Callable[[], Tensor]
Times = Mapping[str, float]  # milliseconds of the contenders that were timed
WIDTHS = (1.0, 0.75, 0.5, 0.25)
OURS, GRAPH, EAGER, COMPILED, UNPADDED = "ours", "ours, graph", "HF eager", "HF compiled", "unpadded torch"


class NotHere(Exception):
    """Why a contender cannot take part."""


@dataclass(frozen=True)
class Goal:
    """A number made of times, and what it is to be. ``most``: True for an upper bound."""

    name: str
    number: Callable[[Times], float | None]
    target: float
    stretch: float
    most: bool = True


@dataclass(frozen=True)
class Work:
    """``contenders``: for each a maker of its call, made one after the other; each returns (B, labels). ``wanted``: by
    a contender's name, a call that gives what it has to give. ``cold``: the cache is flushed before each call.
    ``training``: with gradients; on a GPU the peak of its memory is measured too."""

    name: str
    contenders: Mapping[str, Callable[[], Run]]
    wanted: Callable[[str], Run]
    goals: tuple[Goal, ...]
    cold: bool = False
    training: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """Where works run. ``rehearse``: a few tokens of a tiny network, wherever that is."""

    device: torch.device
    dtype: torch.dtype
    rehearse: bool
    ceilings: Ceilings
    compile_mode: str = "max-autotune"

    def networks(self, shape: str) -> Networks:
        """Of this shape, or the tiny one in a rehearsal."""
        return make_networks("tiny" if self.rehearse else shape, self.device, self.dtype)

    def texts(self, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
        """Random ids of these lengths; a rehearsal has at most six texts of at most nine tokens."""
        chance = random.Random(seed)
        if self.rehearse:
            lengths = [1 + (n - 1) % 9 for n in lengths[: len(lengths) if len(lengths) < 6 else 4]]
        return [[chance.randrange(1000, 1200) for _ in range(n)] for n in lengths]

    def graph(self, run: Run) -> Run:
        """The call as a replayed CUDA graph; in a rehearsal without a GPU the call itself."""
        if self.device.type != "cuda":
            return run
        replay = CudaCapture(self.device)(run)

        def call() -> Tensor:
            replay.replay()
            return replay.output

        return call

    def compiled(self, module: Any, *, graphs: bool = True) -> Any:
        """By PyTorch's compiler, with its CUDA graphs or, where the caller captures several together, without; in a
        rehearsal the module itself, for compiling takes minutes. A network that is compiled too often is an error."""
        if self.rehearse:
            return module
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        mode = self.compile_mode if graphs else _WITHOUT_GRAPHS[self.compile_mode]
        return torch.compile(module, mode=mode, dynamic=False)


_WITHOUT_GRAPHS = {"max-autotune": "max-autotune-no-cudagraphs", "reduce-overhead": "default"}


def ratio(over: str, under: str) -> Callable[[Times], float | None]:
    """The first's time over the second's, where both are there."""
    return lambda times: times[over] / times[under] if over in times and under in times else None


def share(name: str, work: float, setting: Setting) -> Callable[[Times], float | None]:
    """Of the measured matrix rate."""
    return lambda times: setting.ceilings.operations_ms(work, setting.dtype) / times[name] if name in times else None


def _milliseconds(name: str) -> Callable[[Times], float | None]:
    return lambda times: times.get(name)


def _ours(networks: Networks, texts: Sequence[Sequence[int]], subnet: Any = None) -> Run:
    batch, plan = networks.ours.pack(texts, subnet=subnet)
    return lambda: networks.ours.packed_logits(batch, plan)


def _hugging_face(networks: Networks, texts: Sequence[Sequence[int]], module: Any, multiple: int = 1) -> Run:
    ids, mask = padded(texts, networks.ours.device, multiple)
    everything = bool(mask.all())

    def call() -> Tensor:
        found = module(input_ids=ids, attention_mask=None if everything else mask)
        logits: Tensor = found.logits
        return logits

    return call


def _plain(networks: Networks, texts: Sequence[Sequence[int]], subnet: Any, setting: Setting | None) -> Run:
    """A pruned network of its own; with a setting through the compiler, for the caller to capture."""
    net = PlainSubnet(networks.ours, networks.ours.shape(subnet))
    ids, mask = padded(texts, networks.ours.device)
    given = None if bool(mask.all()) else mask[:, None, None].bool()
    run = net if setting is None else setting.compiled(net, graphs=False)
    return lambda: run(ids, given)


def _unpadded(networks: Networks, texts: Sequence[Sequence[int]]) -> Run:
    net = PlainSubnet(networks.ours, networks.ours.shape(None), copy=False)
    batch, _ = networks.ours.pack(texts)
    lengths = [len(text) for text in texts]
    return lambda: net.packed(batch, lengths)


def subnet_of(contender: str) -> str | None:
    """The width that a contender's name ends in, such as ``w0.5``; None for the whole network."""
    last = contender.split()[-1]
    return last if last[:1] == "w" and last[1:2].isdigit() else None


def _alike(networks: Networks, texts: Sequence[Sequence[int]]) -> Callable[[str], Run]:
    return lambda name: _plain(networks, texts, subnet_of(name), None)


def width_scaling(setting: Setting) -> Work:
    """One network at four widths, and the same kernels on a pruned copy: 128 texts of 128 tokens."""
    networks = setting.networks("base")
    texts = setting.texts([128] * 128)
    contenders: dict[str, Callable[[], Run]] = {}
    goals = []
    for width in WIDTHS:
        contenders[f"{OURS} w{width}"] = lambda width=width: _ours(networks, texts, f"w{width}")  # type: ignore[misc]
        if width < 1.0:
            name = f"time(w) / time(1) - w, w = {width}"
            number = ratio(f"{OURS} w{width}", f"{OURS} w1.0")
            above = lambda times, n=number, w=width: None if n(times) is None else n(times) - w  # type: ignore[misc,operator] # noqa: E731
            goals.append(Goal(name, above, 0.05, 0.02))
            contenders[f"extracted w{width}"] = lambda width=width: _extracted(networks, texts, f"w{width}")  # type: ignore[misc]
            price = ratio(f"{OURS} w{width}", f"extracted w{width}")
            goals.append(Goal(f"price of zero copy, w = {width}", price, 1.02, 1.005))
    return Work("width scaling, 128 x 128", contenders, _alike(networks, texts), tuple(goals))


def _extracted(networks: Networks, texts: Sequence[Sequence[int]], subnet: str) -> Run:
    small = networks.ours.extract(subnet).eval()
    batch, plan = small.pack(texts)
    return lambda: small.packed_logits(batch, plan)


def mixed_widths(setting: Setting, count: int) -> Work:
    """Texts of 128 tokens, a quarter of them at each width, in one launch: against a launch for each width, against
    four compiled pruned networks, and against plain PyTorch on views, group by group."""
    networks = setting.networks("base")
    texts = setting.texts([128] * count)
    each = max(1, len(texts) // len(WIDTHS))
    texts = texts[: each * len(WIDTHS)]
    subnets = [f"w{width}" for width in WIDTHS for _ in range(each)]
    parts = [texts[i * each : (i + 1) * each] for i in range(len(WIDTHS))]

    def one_by_one(make: Callable[[list[list[int]], float], Run]) -> Run:
        runs = [make(part, width) for part, width in zip(parts, WIDTHS, strict=True)]
        return lambda: torch.cat([run() for run in runs])

    contenders: dict[str, Callable[[], Run]] = {
        OURS: lambda: _ours(networks, texts, subnets),
        GRAPH: lambda: setting.graph(_ours(networks, texts, subnets)),
        # One graph for all four, which is the best that their owner could do.
        "compiled pruned": lambda: setting.graph(one_by_one(lambda part, w: _plain(networks, part, f"w{w}", setting))),
        "torch on views": lambda: setting.graph(one_by_one(lambda part, w: _views(networks, part, f"w{w}"))),
    }
    for width in WIDTHS:
        contenders[f"{OURS} w{width}"] = lambda width=width: _ours(networks, texts, f"w{width}")  # type: ignore[misc]

    def over_shares(times: Times) -> float | None:
        alone = [times.get(f"{OURS} w{width}") for width in WIDTHS]
        if OURS not in times or any(time is None for time in alone):
            return None
        return times[OURS] / (sum(filter(None, alone)) / len(WIDTHS))

    goals = [Goal("mixed / sum of shares", over_shares, 1.08, 1.03)]
    if count <= 32:
        goals += [
            Goal("four compiled pruned networks / ours", ratio("compiled pruned", GRAPH), 3.0, 5.0, most=False),
            Goal("torch on views / ours", ratio("torch on views", GRAPH), 1.3, 1.6, most=False),
        ]

    def wanted(name: str) -> Run:
        if subnet_of(name) is not None:
            return _plain(networks, texts, subnet_of(name), None)
        return one_by_one(lambda part, w: _plain(networks, part, f"w{w}", None))

    return Work(f"four widths, {count} x 128", contenders, wanted, tuple(goals))


def _views(networks: Networks, texts: Sequence[Sequence[int]], subnet: str) -> Run:
    net = PlainSubnet(networks.ours, networks.ours.shape(subnet), copy=False)
    ids, _ = padded(texts, networks.ours.device)
    return lambda: net(ids)


def fixed_length(setting: Setting, shape: str, count: int, length: int, bounds: tuple[float, float]) -> Work:
    """Texts of one length: the share of the matrix ceiling, and beside the compiler."""
    networks = setting.networks(shape)
    texts = setting.texts([length] * count)
    lengths = [len(text) for text in texts]
    work = operations(networks.ours, networks.ours.shape(None), lengths)
    goals = [Goal("share of the matrix ceiling", share(OURS, work, setting), *bounds, most=False)]
    if shape == "base":
        goals.append(Goal("HF compiled / ours", ratio(COMPILED, OURS), 1.3, 1.3, most=False))
    contenders = {
        OURS: lambda: _ours(networks, texts),
        EAGER: lambda: _hugging_face(networks, texts, networks.plain),
        COMPILED: lambda: _hugging_face(networks, texts, setting.compiled(networks.plain)),
    }
    wanted = _alike(networks, texts)
    return Work(f"{shape}, {count} x {length}", contenders, wanted, tuple(goals), facts={"operations": work})


def ragged(
    setting: Setting, shape: str, name: str, mean: int, longest: int, goals: Sequence[tuple[float, float]]
) -> Work:
    """Texts of many lengths: beside the padded compiler and unpadded PyTorch."""
    networks = setting.networks(shape)
    chance = random.Random(1)
    count = 32 if shape == "large" else 128
    lengths = [min(longest, max(8, round(chance.gauss(mean, 0.45 * mean)))) for _ in range(count - 1)] + [longest]
    texts = setting.texts(lengths)
    contenders = {
        OURS: lambda: _ours(networks, texts),
        COMPILED: lambda: _hugging_face(networks, texts, setting.compiled(networks.plain), 32),
        EAGER: lambda: _hugging_face(networks, texts, networks.plain),
        UNPADDED: lambda: setting.graph(_unpadded(networks, texts)),
    }
    held = (
        Goal("HF compiled, padded / ours", ratio(COMPILED, OURS), *goals[0], most=False),
        Goal("unpadded torch / ours", ratio(UNPADDED, OURS), *goals[1], most=False),
    )
    facts = {"tokens": sum(map(len, texts)), "longest": max(map(len, texts))}
    wanted = _alike(networks, texts)
    return Work(f"{shape}, {name} lengths", contenders, wanted, held, facts=facts)


def latency(setting: Setting, cold: bool) -> Work:
    """One text of 128 tokens."""
    networks = setting.networks("base")
    texts = setting.texts([128])
    contenders = {
        OURS: lambda: _ours(networks, texts),
        GRAPH: lambda: setting.graph(_ours(networks, texts)),
        f"{GRAPH} w0.25": lambda: setting.graph(_ours(networks, texts, "w0.25")),
        COMPILED: lambda: _hugging_face(networks, texts, setting.compiled(networks.plain)),
        EAGER: lambda: _hugging_face(networks, texts, networks.plain),
    }
    goals = (
        Goal("milliseconds, whole network", _milliseconds(GRAPH), 0.25, 0.2),
        Goal("milliseconds, a quarter", _milliseconds(f"{GRAPH} w0.25"), 0.15, 0.11),
        Goal("HF compiled / ours", ratio(COMPILED, GRAPH), 2.0, 2.0, most=False),
    )
    wanted = _alike(networks, texts)
    return Work(f"1 x 128, {'cold' if cold else 'warm'} cache", contenders, wanted, goals, cold=cold)
