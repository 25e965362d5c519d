"""A search over heads and neurons layer by layer on a real network, and its finalists beside the uniform ones.

The search sees one set of texts. Its best networks and the uniform ones within the same limits are then judged once
more, on texts that the search has not seen: of many networks the best on the first set is partly the luckiest there.
The uniform ones are those the caller names, the widest of each depth in steps of one head, and whatever of the search's
best has equal layers: what different layers are worth shows only against the best of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dynabert.configuration import Subnet
from dynabert.configuration.grid import subnet_text
from dynabert.data import Encoded
from dynabert.profile.fitness import make_judge
from dynabert.profile.search import SearchResult, SearchSettings, search
from dynabert.profile.search_space import (
    Budget,
    SearchSpace,
    default_neuron_step,
    importance_worths,
    is_uniform,
    widest_uniform,
)
from dynabert_kernels import SubnetShape

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification

FINALISTS = 8


@dataclass(frozen=True)
class Finalist:
    """A network that was judged on fresh texts. ``subnet``: its text form. ``searched``: its fitness on the search's
    texts, None where the search was not asked about it. ``fresh``: on the others. ``load``: largest share of a limit
    that it takes. ``uniform``: whether its kept layers are alike, or it is one of the uniform sub-networks compared
    with."""

    subnet: str
    shape: SubnetShape
    searched: float | None
    fresh: float
    load: float
    uniform: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "shape"}


@dataclass(frozen=True)
class LayerSearch:
    """``finalists``: best on fresh texts first. ``result``: everything that the search judged."""

    finalists: tuple[Finalist, ...]
    result: SearchResult

    def best(self, *, uniform: bool) -> Finalist | None:
        """The best uniform finalist, or the best of the others; None where there is none."""
        return next((one for one in self.finalists if one.uniform is uniform), None)


def make_space(
    model: ElasticBertForSequenceClassification, budgets: Sequence[Budget], neuron_step: int | None = None
) -> SearchSpace:
    """The space of a network's sub-networks, with the importance that it was rewired by where it has it.

    ``neuron_step``: None takes as many neurons as go with one head.
    """
    config = model.config
    heads, neurons = (None, None) if model.scores is None else importance_worths(model.scores)
    return SearchSpace(
        config.layer_heads,
        config.layer_neurons,
        budgets,
        neuron_step=default_neuron_step(config) if neuron_step is None else neuron_step,
        head_worth=heads,
        neuron_worth=neurons,
    )


def search_layers(
    model: ElasticBertForSequenceClassification,
    texts: Encoded,
    fresh: Encoded,
    budgets: Sequence[Budget],
    *,
    uniform: Sequence[Subnet] = (),
    fitness: str = "agreement",
    metric: str | None = None,
    threshold: float = 0.5,
    max_batch_tokens: int = 4096,
    neuron_step: int | None = None,
    settings: SearchSettings | None = None,
    known: Mapping[str, float] | None = None,
    on_round: Callable[[Mapping[str, float]], None] | None = None,
    progress: bool | None = False,
) -> LayerSearch:
    """Search, then judge the best networks of different layers and the uniform ones on ``fresh`` texts.

    Args:
        model: the network.
        texts, fresh: what the search and what the last choice are judged on; neither should be the set that scores
            are reported on.
        budgets: the limits on cost.
        uniform: sub-networks to compare with, and, where they are within the budgets, to begin with; the widest uniform
            one of each depth is compared with too, and so are the best uniform ones that the search comes upon.
        fitness, metric, threshold, max_batch_tokens: see `make_judge`.
        neuron_step: see `make_space`.
        settings, known, on_round, progress: see `search`.

    Raises:
        ValueError: what `search`, `SearchSpace` and `make_judge` raise.
    """
    options: dict[str, Any] = {
        "fitness": fitness,
        "metric": metric,
        "threshold": threshold,
        "max_batch_tokens": max_batch_tokens,
    }
    space = make_space(model, budgets, neuron_step)
    names = {model.shape(subnet): subnet_text(subnet) for subnet in uniform}
    shapes = list(names)
    result = search(
        space,
        make_judge(model, texts, **options),
        depth_rule=model.config.depth_rule,
        seeds=shapes,
        settings=settings,
        known=known,
        on_round=on_round,
        progress=progress,
    )
    widest = widest_uniform(space, model.config.depth_rule)
    # A width and a depth are uniform by name, also of a network whose own layers differ.
    alike = {*widest, *(shape for shape, name in names.items() if name.startswith("w") or is_uniform(shape))}
    searched = {one.shape: one.fitness for one in result.found}
    others = [shape for shape in searched if shape not in alike and shape not in names]
    layered = [shape for shape in others if not is_uniform(shape)][:FINALISTS]
    equal = [shape for shape in others if is_uniform(shape)][:FINALISTS]
    alike.update(equal)
    last = list(dict.fromkeys([*layered, *shapes, *widest, *equal]))
    judged = make_judge(model, fresh, **options)(last)
    finalists = [
        Finalist(names.get(shape) or subnet_text(shape), shape, searched.get(shape), value, load, shape in alike)
        for shape, value, load in zip(last, judged, space.load(last).tolist(), strict=True)
    ]
    return LayerSearch(tuple(sorted(finalists, key=lambda one: (-one.fresh, one.load, one.subnet))), result)
