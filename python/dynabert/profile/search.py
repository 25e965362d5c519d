"""Search for a network of different layers within limits on cost: evolution from uniform and greedy beginnings.

Each round takes parents by tournament, crosses some layer by layer, moves budget between layers, repairs the result to
the limits (`SearchSpace.shrink`, `grow`) and judges all that are new in one call. The best of all so far go on. The
limits hold for everything that is judged. The same seed and the same judgements give the same result; networks that
were judged before (an interrupted run's) are not judged again and change nothing else.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from dynabert.configuration.grid import subnet_text
from dynabert.profile.search_space import SearchSpace, starting_shapes
from dynabert_kernels import SubnetShape

Judge = Callable[[Sequence[SubnetShape]], Sequence[float]]

_CROSSED = 0.4  # share of children with two parents
_TOURNAMENT = 3
_WARMEST = 1.0  # temperature of a repair, drawn for each child from 0 on
_ATTEMPTS = 20  # children tried for each that is wanted, before the space counts as exhausted


@dataclass(frozen=True)
class SearchSettings:
    """How long and how wide to search.

    ``evaluations``: networks judged, at most. ``minutes``: after which no further round begins; None for no bound (a
    bound in time makes the result depend on the machine). ``population``: the best that have children.
    ``round_size``: networks judged at a time. ``seed``: decides everything else.

    Raises ``ValueError`` for a number below 1, or no time.
    """

    evaluations: int = 200
    minutes: float | None = None
    population: int = 16
    round_size: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("evaluations", "population", "round_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"SearchSettings: {name} is {getattr(self, name)}; allowed: 1 or more")
        if self.minutes is not None and not self.minutes > 0.0:
            raise ValueError(f"SearchSettings: minutes is {self.minutes}; allowed: above 0")


@dataclass(frozen=True)
class Found:
    """A network that was judged: its fitness, higher is better, and the largest share of a limit that it takes."""

    shape: SubnetShape
    fitness: float
    load: float


@dataclass(frozen=True)
class SearchResult:
    """``found``: everything judged, best first. ``stopped``: ``"evaluations"``, ``"minutes"``, ``"interrupted"``
    (Ctrl-C; what was found till then is kept) or ``"exhausted"`` (no new network turned up)."""

    found: tuple[Found, ...]
    stopped: str
    seconds: float


def search(
    space: SearchSpace,
    judge: Judge,
    *,
    depth_rule: str = "keep_last",
    seeds: Sequence[SubnetShape] = (),
    settings: SearchSettings | None = None,
    known: Mapping[str, float] | None = None,
    on_round: Callable[[Mapping[str, float]], None] | None = None,
    progress: bool | None = False,
) -> SearchResult:
    """The best networks within the limits of ``space``.

    Args:
        space: the networks and the limits.
        judge: the fitness of each of some shapes, higher is better; asked for each shape once.
        depth_rule: which layers the uniform beginnings of a smaller depth keep.
        seeds: more networks to begin with; those over a limit are left out.
        settings: how long to search; None for the defaults.
        known: fitness by a network's text form, from an earlier run; it counts as if judged now.
        on_round: called after each round with everything judged so far, for keeping it.
        progress: True shows a bar with the best fitness, False none, None one where stderr is a terminal.

    Raises:
        ValueError: no network keeps the limits; a fitness that is NaN.
        KeyboardInterrupt: Ctrl-C before anything was judged.
    """
    settings = settings or SearchSettings()
    chance = random.Random(settings.seed)
    begin = time.monotonic()
    smallest = space.smallest()
    if space.load([smallest])[0] > 1.0:
        raise ValueError(
            f"search: no network keeps the limits; the smallest, {subnet_text(smallest)}, takes "
            f"{', '.join(space.excess(smallest))}; allow more"
        )
    start = [shape for shape in seeds if space.load([shape])[0] <= 1.0]
    start = list(dict.fromkeys([*start, *starting_shapes(space, depth_rule), smallest]))
    judged: dict[SubnetShape, float] = {}
    stopped = "evaluations"
    earlier = dict(known or {})
    with tqdm(
        total=settings.evaluations,
        unit=" networks",
        desc="search",
        disable=None if progress is None else not progress,
    ) as bar:
        try:
            while len(judged) < settings.evaluations:
                if judged and settings.minutes is not None and time.monotonic() - begin > 60.0 * settings.minutes:
                    stopped = "minutes"
                    break
                room = min(settings.round_size, settings.evaluations - len(judged))
                waiting, start = start[:room], start[room:]
                new = waiting or _children(space, judged, room, settings.population, chance)
                if not new:
                    stopped = "exhausted"
                    break
                _judge(judge, new, earlier, judged)
                bar.update(len(new))
                bar.set_postfix_str(f"best {max(judged.values()):.5g}")
                if on_round is not None:
                    on_round(_by_text(judged))
        except KeyboardInterrupt:
            if not judged:
                raise
            stopped = "interrupted"
    shapes = sorted(judged, key=lambda shape: (-judged[shape], shape.heads, shape.neurons))
    loads = space.load(shapes).tolist()
    found = tuple(Found(shape, judged[shape], load) for shape, load in zip(shapes, loads, strict=True))
    return SearchResult(found, stopped, time.monotonic() - begin)


def _judge(
    judge: Judge, shapes: Sequence[SubnetShape], earlier: Mapping[str, float], judged: dict[SubnetShape, float]
) -> None:
    unknown = [shape for shape in shapes if subnet_text(shape) not in earlier]
    fresh = dict(zip(unknown, judge(unknown), strict=True)) if unknown else {}
    for shape in shapes:
        fitness = float(fresh[shape] if shape in fresh else earlier[subnet_text(shape)])
        if fitness != fitness:
            raise ValueError(f"search: the fitness of {subnet_text(shape)} is NaN; allowed: a number")
        judged[shape] = fitness


def _by_text(judged: Mapping[SubnetShape, float]) -> dict[str, float]:
    return {subnet_text(shape): fitness for shape, fitness in judged.items()}


def _children(
    space: SearchSpace,
    judged: Mapping[SubnetShape, float],
    wanted: int,
    population: int,
    chance: random.Random,
) -> list[SubnetShape]:
    """New networks within the limits, from the best so far; fewer than ``wanted`` where no more turn up."""
    parents = sorted(judged, key=lambda shape: (-judged[shape], shape.heads, shape.neurons))[:population]
    found: dict[SubnetShape, None] = {}
    for _ in range(_ATTEMPTS * wanted):
        if len(found) == wanted:
            break
        first = _tournament(parents, chance)
        heads, neurons = list(first.heads), list(first.neurons)
        if chance.random() < _CROSSED:
            second = _tournament(parents, chance)
            for layer in range(space.num_layers):
                if chance.random() < 0.5:
                    heads[layer], neurons[layer] = second.heads[layer], second.neurons[layer]
        if not any(heads):  # every kept layer came from the parent that skips it
            continue
        for _ in range(chance.choice((1, 1, 2, 3))):
            chance.choice(_MUTATIONS)(space, heads, neurons, chance)
        child = space.fitted(heads, neurons)
        if child is None:
            continue
        warmth = _WARMEST * chance.random()
        repaired = space.shrink(child, chance, warmth)
        if repaired is None:
            continue
        filled = space.grow(repaired, chance, warmth)
        if filled not in judged:
            found[filled] = None
    return list(found)


def _tournament(parents: Sequence[SubnetShape], chance: random.Random) -> SubnetShape:
    """The best of a few drawn; ``parents`` stand best first."""
    return parents[min(chance.randrange(len(parents)) for _ in range(_TOURNAMENT))]


# What a child does to its parent's counts, in place. Limits and bounds are repaired afterwards.


def _move_between_layers(space: SearchSpace, heads: list[int], neurons: list[int], chance: random.Random) -> None:
    """A few steps of one kind from one kept layer to another."""
    kept = [layer for layer, count in enumerate(heads) if count]
    if len(kept) < 2:
        return
    giver, taker = chance.sample(kept, 2)
    counts, step = (heads, 1) if chance.random() < 0.5 else (neurons, space.neuron_step)
    moved = min(step * chance.choice((1, 1, 2, 3)), counts[giver] - step)
    if moved > 0:
        counts[giver] -= moved
        counts[taker] += moved


def _move_between_kinds(space: SearchSpace, heads: list[int], neurons: list[int], chance: random.Random) -> None:
    """Heads for neurons or neurons for heads, in one kept layer."""
    layer = chance.choice([layer for layer, count in enumerate(heads) if count])
    sign = chance.choice((1, -1))
    heads[layer] = max(1, heads[layer] + sign)
    neurons[layer] = max(space.neuron_step, neurons[layer] - sign * space.neuron_step)


def _change_one(space: SearchSpace, heads: list[int], neurons: list[int], chance: random.Random) -> None:
    """One kept layer wider or narrower."""
    layer = chance.choice([layer for layer, count in enumerate(heads) if count])
    sign = chance.choice((1, -1))
    if chance.random() < 0.5:
        heads[layer] = max(1, heads[layer] + sign * chance.choice((1, 2)))
    else:
        neurons[layer] = max(space.neuron_step, neurons[layer] + sign * space.neuron_step * chance.choice((1, 2)))


def _skip_layer(space: SearchSpace, heads: list[int], neurons: list[int], chance: random.Random) -> None:
    """One layer fewer; the others grow into what it leaves."""
    kept = [layer for layer, count in enumerate(heads) if count]
    if len(kept) > 1:
        layer = chance.choice(kept)
        heads[layer] = neurons[layer] = 0


def _restore_layer(space: SearchSpace, heads: list[int], neurons: list[int], chance: random.Random) -> None:
    """One layer more, as wide as another one; all shrink to make room."""
    skipped = [layer for layer, count in enumerate(heads) if not count]
    if skipped:
        layer = chance.choice(skipped)
        other = chance.choice([layer for layer, count in enumerate(heads) if count])
        heads[layer], neurons[layer] = heads[other], neurons[other]


def _swap_layers(space: SearchSpace, heads: list[int], neurons: list[int], chance: random.Random) -> None:
    """Two layers take each other's counts; a skipped one thereby moves."""
    if len(heads) > 1:
        a, b = chance.sample(range(len(heads)), 2)
        heads[a], heads[b], neurons[a], neurons[b] = heads[b], heads[a], neurons[b], neurons[a]


_MUTATIONS = (
    _move_between_layers,
    _move_between_layers,
    _move_between_kinds,
    _change_one,
    _skip_layer,
    _restore_layer,
    _swap_layers,
)
