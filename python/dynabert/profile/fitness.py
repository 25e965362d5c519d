"""How good a network is to a search: close to the whole network on some texts, or right on their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dynabert.data import MULTI_LABEL, REGRESSION, Encoded, model_problem
from dynabert.data.labels import label_probabilities
from dynabert.evaluation import compute_logits, fidelity, score_logits
from dynabert_kernels import SubnetShape

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification

FITNESS = ("divergence", "score")
_WHOLE = "w1-d1"


def make_judge(
    model: ElasticBertForSequenceClassification,
    encoded: Encoded,
    fitness: str = "divergence",
    *,
    metric: str | None = None,
    threshold: float = 0.5,
    max_batch_tokens: int = 4096,
) -> Callable[[Sequence[SubnetShape]], list[float]]:
    """What a `search` asks for: the fitness of each of some shapes, higher is better.

    ``fitness`` ``"divergence"``: minus the mean Kullback-Leibler divergence of a shape's probabilities from the whole
    network's (regression: minus the mean squared difference; several labels a text: that of the probabilities). It
    needs no labels, and tells networks apart where a score on few texts cannot. ``"score"``: the metric on the labels,
    and of equal scores the smaller divergence first.
    The shapes of one call run over each batch together: in one launch on a GPU, one by one on a CPU, whichever
    `compute_logits` takes for the faster.

    Raises ``ValueError``: another fitness; what `compute_logits` and `score_logits` raise.
    """
    if fitness not in FITNESS:
        raise ValueError(f"make_judge: fitness is {fitness!r}; allowed: {', '.join(FITNESS)}")
    problem = model_problem(model.config)
    whole = compute_logits(model, encoded, [_WHOLE], max_batch_tokens=max_batch_tokens)[_WHOLE]
    if problem == MULTI_LABEL:
        whole_answers = label_probabilities(whole)

    def judge(shapes: Sequence[SubnetShape]) -> list[float]:
        logits = compute_logits(model, encoded, shapes, max_batch_tokens=max_batch_tokens)
        if problem == MULTI_LABEL:
            own = [label_probabilities(values) for values in logits.values()]
            divergences = [fidelity(one, whole_answers, regression=True).divergence for one in own]
        else:
            divergences = [fidelity(one, whole, regression=problem == REGRESSION).divergence for one in logits.values()]
        if fitness == "divergence":
            return [-value for value in divergences]
        rows = score_logits(model, encoded, logits, metric=metric, threshold=threshold)
        return [row.score - 1e-6 * value for row, value in zip(rows, divergences, strict=True)]

    return judge
