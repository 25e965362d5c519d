"""A search over heads and neurons layer by layer on a real network, and its finalists beside the uniform ones.

The search sees one set of texts. Its best networks and the uniform ones within the same limits are then judged once
more, on texts that the search has not seen: of many networks the best on the first set is partly the luckiest there.
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
from dynabert.profile.search_space import Budget, SearchSpace, default_neuron_step, importance_worths
from dynabert_kernels import SubnetShape

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification

FINALISTS = 8


@dataclass(frozen=True)
class Finalist:
    """A network that was judged on fresh texts. ``subnet``: its text form. ``searched``: its fitness on the search's
    texts, None for a uniform one. ``fresh``: on the others. ``load``: largest share of a limit that it takes."""

    subnet: str
    shape: SubnetShape
    searched: float | None
    fresh: float
    load: float

    @property
    def uniform(self) -> bool:
        """Whether it is one of the uniform sub-networks it was compared with."""
        return self.searched is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "shape"} | {"uniform": self.uniform}


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
    """Search, then judge the best networks and all ``uniform`` ones on ``fresh`` texts.

    Args:
        model: the network.
        texts, fresh: what the search and what the last choice are judged on; neither should be the set that scores
            are reported on.
        budgets: the limits on cost.
        uniform: sub-networks to compare with, and, where they are within the budgets, to begin with.
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
    best = [one for one in result.found if one.shape not in names][:FINALISTS]
    judged = make_judge(model, fresh, **options)([*(one.shape for one in best), *shapes])
    finalists = [
        Finalist(subnet_text(one.shape), one.shape, one.fitness, value, one.load)
        for one, value in zip(best, judged, strict=False)
    ]
    loads = space.load(shapes).tolist() if shapes else []
    finalists += [
        Finalist(names[shape], shape, None, value, load)
        for shape, value, load in zip(shapes, judged[len(best) :], loads, strict=True)
    ]
    return LayerSearch(tuple(sorted(finalists, key=lambda one: (-one.fresh, one.load, one.subnet))), result)
