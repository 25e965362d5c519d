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

FITNESS = ("agreement", "divergence", "score")
_LEAST = 1e-6  # of a divergence: tells networks of equal agreement or score apart, and never outweighs one text
_WHOLE = "w1-d1"


def make_judge(
    model: ElasticBertForSequenceClassification,
    encoded: Encoded,
    fitness: str = "agreement",
    *,
    metric: str | None = None,
    threshold: float = 0.5,
    max_batch_tokens: int = 4096,
) -> Callable[[Sequence[SubnetShape]], list[float]]:
    """What a `search` asks for: the fitness of each of some shapes, higher is better.

    ``fitness`` ``"agreement"``: share of texts with the whole network's decision, and of equal ones the smaller
    divergence first; a regression has no decision, so there it is the divergence alone. ``"divergence"``: minus the
    mean Kullback-Leibler divergence of a shape's probabilities from the whole network's (regression: minus the mean
    squared difference; several labels a text: that of the probabilities). ``"score"``: the metric on the labels, and of
    equal ones the smaller divergence first. The first two need no labels.
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
            # A text's decision is its set of labels.
            agreements = [((one >= threshold) == (whole_answers >= threshold)).all(1).mean() for one in own]
        else:
            found = [fidelity(one, whole, regression=problem == REGRESSION) for one in logits.values()]
            divergences = [one.divergence for one in found]
            agreements = [one.agreement for one in found]
        if fitness == "divergence" or (problem == REGRESSION and fitness == "agreement"):
            return [-value for value in divergences]
        if fitness == "agreement":
            firsts = [float(value) for value in agreements]
        else:
            firsts = [row.score for row in score_logits(model, encoded, logits, metric=metric, threshold=threshold)]
        return [first - _LEAST * value for first, value in zip(firsts, divergences, strict=True)]

    return judge
