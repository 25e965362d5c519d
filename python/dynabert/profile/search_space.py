"""The networks that a search moves among: leading heads and neurons layer by layer, and the limits on their cost.

A step is one head, `neuron_step` neurons, or a whole layer. What a step is worth comes from importance scores where the
network has some; what it costs comes from the budgets. From both follow the two moves that a search repairs its
networks with: `shrink` until every limit is kept, `grow` while something still fits.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dynabert.configuration.subnet import kept_layers
from dynabert_kernels import SubnetShape

if TYPE_CHECKING:
    from torch import Tensor

    from dynabert.configuration import ElasticBertConfig

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

_LEAST = 1e-12  # stands for a worth or a saving of nothing, whose logarithm is wanted


@dataclass(frozen=True)
class Budget:
    """A limit on one cost. ``cost``: from heads and neurons, each (N, L) and 0 where a layer is skipped, to (N,)."""

    name: str
    limit: float
    cost: Callable[[Counts, Counts], Numbers]


class SearchSpace:
    """The networks between one head with a few neurons in one layer and the whole network.

    Args:
        layer_heads, layer_neurons: the most of each layer.
        budgets: the limits, at least one.
        neuron_step: neurons that are added or removed at a time; a layer keeps at least so many, or all it has.
        head_worth, neuron_worth: (L, H) and (L, F), of each head and neuron in its place; higher is kept longer. None:
            all alike. The two are brought to the same sum, so only their spread over layers and places counts.

    Raises:
        ValueError: no budget; a step below 1; worths of another size, negative, or not finite.
    """

    def __init__(
        self,
        layer_heads: Sequence[int],
        layer_neurons: Sequence[int],
        budgets: Sequence[Budget],
        *,
        neuron_step: int,
        head_worth: npt.NDArray[np.floating] | None = None,
        neuron_worth: npt.NDArray[np.floating] | None = None,
    ) -> None:
        if not budgets:
            raise ValueError("SearchSpace: no budget; give at least one limit on cost")
        if neuron_step < 1:
            raise ValueError(f"SearchSpace: neuron_step is {neuron_step}; allowed: 1 or more")
        self.layer_heads, self.layer_neurons = tuple(layer_heads), tuple(layer_neurons)
        self.budgets, self.neuron_step = tuple(budgets), neuron_step
        self._head_sums = _running_worth("head_worth", self.layer_heads, head_worth)
        self._neuron_sums = _running_worth("neuron_worth", self.layer_neurons, neuron_worth)

    @property
    def num_layers(self) -> int:
        """Layers of the whole network."""
        return len(self.layer_heads)

    @property
    def whole(self) -> SubnetShape:
        """The whole network."""
        return SubnetShape(self.layer_heads, self.layer_neurons)

    def load(self, shapes: Sequence[SubnetShape]) -> Numbers:
        """The largest share of a limit that each shape takes, (N,); at most 1.0: within all limits."""
        heads = np.array([shape.heads for shape in shapes], dtype=np.int64)
        neurons = np.array([shape.neurons for shape in shapes], dtype=np.int64)
        shares = [np.asarray(budget.cost(heads, neurons)) / budget.limit for budget in self.budgets]
        return np.max(shares, axis=0).astype(np.float64)

    def excess(self, shape: SubnetShape) -> list[str]:
        """In words, the costs by which a shape is over the limits."""
        heads, neurons = np.array([shape.heads], dtype=np.int64), np.array([shape.neurons], dtype=np.int64)
        costs = [(budget, float(np.asarray(budget.cost(heads, neurons))[0])) for budget in self.budgets]
        return [f"{budget.name} {cost:.4g} of {budget.limit:.4g}" for budget, cost in costs if cost > budget.limit]

    def worth(self, shape: SubnetShape) -> float:
        """The worth of all heads and neurons that a shape keeps; 2.0 for the whole network."""
        return float(
            sum(
                self._head_sums[layer][heads] + self._neuron_sums[layer][neurons]
                for layer, (heads, neurons) in enumerate(zip(shape.heads, shape.neurons, strict=True))
            )
        )

    def smallest(self) -> SubnetShape:
        """The cheapest network there is: one layer at its least."""
        options = [
            SubnetShape(*self._only(layer, 1, min(self.neuron_step, self.layer_neurons[layer])))
            for layer in range(self.num_layers)
        ]
        return options[int(np.argmin(self.load(options)))]

    def _only(self, layer: int, heads: int, neurons: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        places = range(self.num_layers)
        return tuple(heads * (i == layer) for i in places), tuple(neurons * (i == layer) for i in places)

    def fitted(self, heads: Sequence[int], neurons: Sequence[int]) -> SubnetShape | None:
        """The counts brought between a layer's least and most; None where no layer is left. One count of 0 skips."""
        kept = [(h, n) if h > 0 and n > 0 else (0, 0) for h, n in zip(heads, neurons, strict=True)]
        if not any(h for h, _ in kept):
            return None
        bounds = zip(kept, self.layer_heads, self.layer_neurons, strict=True)
        fitted = [
            (0, 0) if h == 0 else (min(h, most_h), min(max(n, self.neuron_step), most_n))
            for (h, n), most_h, most_n in bounds
        ]
        return SubnetShape(tuple(h for h, _ in fitted), tuple(n for _, n in fitted))

    # Moves -----------------------------------------------------------------------------------------------------------

    def shrink(
        self, shape: SubnetShape, chance: random.Random | None = None, temperature: float = 0.0
    ) -> SubnetShape | None:
        """Takes steps away until every limit is kept: each time the one of least worth for what it saves.

        ``temperature``: above 0 the choice is a draw, the more even the higher. Returns None where even the last step
        leaves the limits broken.
        """
        load = float(self.load([shape])[0])
        while load > 1.0:
            options = list(self._removals(shape))
            if not options:
                return None
            loads = self.load(options)
            worth = self.worth(shape)
            keys = [
                math.log(max(worth - self.worth(option), _LEAST))
                - math.log(max(load - own, _LEAST))
                - temperature * _gumbel(chance)
                for option, own in zip(options, loads.tolist(), strict=True)
            ]
            index = int(np.argmin(keys))
            shape, load = options[index], float(loads[index])
        return shape

    def grow(self, shape: SubnetShape, chance: random.Random | None = None, temperature: float = 0.0) -> SubnetShape:
        """Adds steps to layers that are kept, the one of most worth for its cost first, while the limits allow one."""
        load = float(self.load([shape])[0])
        while options := list(self._additions(shape)):
            loads = self.load(options)
            worth = self.worth(shape)
            keys = [
                math.log(max(self.worth(option) - worth, _LEAST))
                - math.log(max(own - load, _LEAST))
                + temperature * _gumbel(chance)
                if own <= 1.0
                else -math.inf
                for option, own in zip(options, loads.tolist(), strict=True)
            ]
            index = int(np.argmax(keys))
            if keys[index] == -math.inf:
                break
            shape, load = options[index], float(loads[index])
        return shape

    def _removals(self, shape: SubnetShape) -> Iterator[SubnetShape]:
        several = len(shape.kept_layers) > 1
        for layer in shape.kept_layers:
            heads, neurons = shape.heads[layer], shape.neurons[layer]
            if heads > 1:
                yield _with(shape, layer, heads - 1, neurons)
            least = min(self.neuron_step, self.layer_neurons[layer])
            if neurons > least:
                # Down to a multiple of the step: a layer's last, shorter step goes first.
                yield _with(shape, layer, heads, max(least, (neurons - 1) // self.neuron_step * self.neuron_step))
            if several:
                yield _with(shape, layer, 0, 0)

    def _additions(self, shape: SubnetShape) -> Iterator[SubnetShape]:
        for layer in shape.kept_layers:
            heads, neurons, most = shape.heads[layer], shape.neurons[layer], self.layer_neurons[layer]
            if heads < self.layer_heads[layer]:
                yield _with(shape, layer, heads + 1, neurons)
            if neurons < most:
                yield _with(shape, layer, heads, min(most, (neurons // self.neuron_step + 1) * self.neuron_step))


def default_neuron_step(config: ElasticBertConfig) -> int:
    """Neurons of a step: as many as go with one head, so that the trained widths lie on the steps; else a twelfth."""
    heads, neurons = config.num_attention_heads, config.intermediate_size
    return neurons // heads if neurons % heads == 0 else max(1, round(neurons / 12))


def importance_worths(scores: tuple[Tensor, Tensor]) -> tuple[Numbers, Numbers]:
    """Importance scores, (L, H) and (L, F), as worths of a `SearchSpace`."""
    heads, neurons = (score.detach().double().cpu().numpy() for score in scores)
    return np.abs(heads), np.abs(neurons)


def starting_shapes(space: SearchSpace, depth_rule: str) -> list[SubnetShape]:
    """Where a search begins, each within the limits and each once.

    The widest uniform network of each depth; the same, filled up; and what is left when steps of least worth are taken
    from the full width of each depth until the limits are kept.
    """
    found: list[SubnetShape] = []
    for widest, full in _widest_of_each_depth(space, depth_rule):
        if widest is not None:
            found += [widest, space.grow(widest)]
        left = space.shrink(full)
        if left is not None:
            found.append(space.grow(left))
    return list(dict.fromkeys(found))


def widest_uniform(space: SearchSpace, depth_rule: str) -> list[SubnetShape]:
    """The uniform networks that a searched one has to beat: of each depth the widest within the limits, in steps of a
    head with its share of the neurons, deepest first. A narrower one of the same layers is a part of it."""
    return [widest for widest, _ in _widest_of_each_depth(space, depth_rule) if widest is not None]


def _widest_of_each_depth(space: SearchSpace, depth_rule: str) -> Iterator[tuple[SubnetShape | None, SubnetShape]]:
    """For each depth the widest uniform network within the limits, None where there is none, and the full width."""
    most = max(space.layer_heads)
    for depth in range(space.num_layers, 0, -1):
        layers = kept_layers(space.num_layers, depth / space.num_layers, depth_rule)
        uniform = [_uniform(space, layers, width / most) for width in range(most, 0, -1)]
        loads = space.load(uniform)
        yield next((shape for shape, load in zip(uniform, loads, strict=True) if load <= 1.0), None), uniform[0]


def is_uniform(shape: SubnetShape) -> bool:
    """Whether all layers that are kept have the same heads and the same neurons, however many, and whichever are kept.

    That alone decides what a search has found: a width that no grid names is still no different layers.
    """
    return len({(shape.heads[layer], shape.neurons[layer]) for layer in shape.kept_layers}) == 1


def _uniform(space: SearchSpace, layers: Sequence[int], width: float) -> SubnetShape:
    """The same share of every kept layer, in whole heads and neurons."""
    heads = [max(1, round(width * own)) * (i in layers) for i, own in enumerate(space.layer_heads)]
    neurons = [max(1, round(width * own)) * (i in layers) for i, own in enumerate(space.layer_neurons)]
    return SubnetShape(tuple(heads), tuple(neurons))


def _with(shape: SubnetShape, layer: int, heads: int, neurons: int) -> SubnetShape:
    return SubnetShape(
        (*shape.heads[:layer], heads, *shape.heads[layer + 1 :]),
        (*shape.neurons[:layer], neurons, *shape.neurons[layer + 1 :]),
    )


def _running_worth(name: str, most: Sequence[int], worth: npt.NDArray[np.floating] | None) -> list[list[float]]:
    """For each layer the worth of its first 0, 1, 2, ... units; all layers together sum to 1."""
    if worth is None:
        rows = [np.ones(count) for count in most]
    else:
        if worth.ndim != 2 or len(worth) != len(most) or worth.shape[1] < max(most):
            raise ValueError(
                f"SearchSpace: {name} has shape {worth.shape}; allowed: {len(most)} layers of {max(most)} or more"
            )
        rows = [np.asarray(own[:count], dtype=np.float64) for own, count in zip(worth, most, strict=True)]
    joined = np.concatenate(rows)
    if not np.isfinite(joined).all() or (joined < 0.0).any():
        raise ValueError(f"SearchSpace: {name} holds a value that is negative or not finite; allowed: 0 or more")
    total = float(joined.sum()) or 1.0
    return [[0.0, *(np.cumsum(row) / total).tolist()] for row in rows]


def _gumbel(chance: random.Random | None) -> float:
    """Noise that turns a largest key into a draw with odds by the keys' exponentials; 0.0 without a source."""
    return 0.0 if chance is None else -math.log(-math.log(max(chance.random(), 1e-300)) + 1e-300)
