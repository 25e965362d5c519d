"""Scores of many sub-networks on one labelled set, in one pass: every batch is packed once and run at every width and
depth, all in one launch (GPU) or one after the other (CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from dynabert.configuration import Subnet, SubnetConfig
from dynabert.configuration.grid import subnet_text
from dynabert.data.batching import token_batches
from dynabert.data.examples import MULTI_LABEL, REGRESSION, is_multi_label, label_array
from dynabert.data.labels import label_probabilities, model_labels, model_problem
from dynabert.data.metrics import AGREEMENT, compute_metric, default_metrics, majority_score
from dynabert.data.tokenisation import Encoded, check_ids
from dynabert.modeling.model import check_classifier
from dynabert.modeling.modes import evaluating
from dynabert.modeling.stacking import stack
from dynabert_kernels import PackedBatch, Plan, SubnetShape

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification, ElasticBertPreTrainedModel

MAX_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class EvaluationRow:
    """The score of one sub-network.

    Attributes:
        subnet: its text form.
        score: the chosen metric, a fraction (0.83, not 83).
        metric: name of that metric.
        metrics: this and the other metrics of the problem.
        examples: number of examples.
        majority: what the best constant prediction scores in the same metric.
    """

    subnet: str
    score: float
    metric: str
    metrics: dict[str, float]
    examples: int
    majority: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def compute_logits(
    model: ElasticBertForSequenceClassification,
    encoded: Encoded,
    subnets: Sequence[Subnet],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_batch_size: int | None = None,
    stacked: bool | None = None,
    progress: bool | None = False,
) -> dict[str, npt.NDArray[np.floating]]:
    """Logits of every sub-network for every example, in eval mode (the model's mode is put back afterwards).

    Args:
        model: the network.
        encoded: token ids, as `dynabert.data.tokenise` returns them.
        subnets: the sub-networks, each once.
        max_batch_tokens: most tokens of a batch; a longer example is a batch of its own.
        max_batch_size: most examples of a batch; None for no bound.
        stacked: True runs all sub-networks of a batch in one launch with one plan, which takes their number times its
            memory; False one by one. None: in one launch on a GPU, where a launch costs as much as its work; one by
            one on a CPU, where one pass of many rows over a weight is the faster. Same logits, within rounding.
        progress: True shows a bar, False none, None one where stderr is a terminal.

    Returns:
        For each sub-network, by its text form, (N, labels) float32 (float64 for a float64 model), in the order of
        ``encoded``.

    Raises:
        TypeError: another kind of model or of texts; one sub-network in place of a list.
        ValueError: no examples; no sub-network, one named twice, or one that does not fit; outputs that are NaN or
            infinite.
    """
    check_classifier("evaluate", model)
    return compute_outputs(
        model,
        encoded,
        subnets,
        lambda batch, plan: model(batch=batch, plan=plan).logits,
        max_batch_tokens=max_batch_tokens,
        max_batch_size=max_batch_size,
        stacked=stacked,
        progress=progress,
    )


def compute_outputs(
    model: ElasticBertPreTrainedModel,
    encoded: Encoded,
    subnets: Sequence[Subnet],
    outputs: Callable[[PackedBatch, Plan], torch.Tensor],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_batch_size: int | None = None,
    stacked: bool | None = None,
    progress: bool | None = False,
) -> dict[str, npt.NDArray[np.floating]]:
    """As `compute_logits`, of any elastic model: ``outputs(batch, plan)`` is a row for each sequence."""
    check_inputs(encoded, subnets)
    if not len(encoded):
        raise ValueError("evaluate: no examples; at least one is needed")
    check_ids("evaluate", encoded, model.config.vocab_size, model.config.max_sequence_length)
    names = [subnet_text(subnet) for subnet in subnets]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"evaluate: each sub-network is needed once; got {', '.join(names) or 'none'}")
    shapes = [model.shape(subnet) for subnet in subnets]
    lengths = encoded.lengths
    places: list[int] = []
    found: list[list[torch.Tensor]] = [[] for _ in shapes]
    stacked = model.device.type != "cpu" if stacked is None else stacked
    total = len(lengths) * len(shapes)
    with (
        evaluating(model),
        torch.inference_mode(),
        tqdm(total=total, unit=" texts", desc="evaluate", disable=None if progress is None else not progress) as bar,
    ):
        for run in token_batches(lengths, max_batch_tokens, max_sequences=max_batch_size):
            batch, _ = model.pack(*encoded.rows(run))
            seqlens = [lengths[i] for i in run]
            if stacked:
                copies = stack(batch, seqlens, shapes)
                both = outputs(copies.batch, copies.plan).view(len(shapes), len(run), -1)
                for own, logits in zip(both.unbind(), found, strict=True):
                    logits.append(own)
                bar.update(len(run) * len(shapes))
            else:
                for shape, logits in zip(shapes, found, strict=True):
                    plan = Plan.uniform(shape, seqlens, device=model.device)
                    logits.append(outputs(batch, plan))
                    bar.update(len(run))
            places += run
    results: dict[str, npt.NDArray[np.floating]] = {}
    for name, logits in zip(names, found, strict=True):
        joined = torch.cat(logits)
        values = (joined if joined.dtype == torch.float64 else joined.float()).cpu().numpy()
        results[name] = np.empty_like(values)
        results[name][np.asarray(places)] = values
        if not np.isfinite(values).all():
            raise ValueError(
                f"evaluate: the outputs of sub-network {name} are not finite; the weights hold NaN or infinity, or the "
                "dtype overflows; check the checkpoint, or run it in float32"
            )
    return results


def _check_types(model: object, encoded: object, subnets: object) -> None:
    check_classifier("evaluate", model)
    check_inputs(encoded, subnets)


def check_inputs(encoded: object, subnets: object) -> None:
    """``TypeError`` for texts that are no token ids, and for one sub-network in place of a list."""
    if not isinstance(encoded, Encoded):
        raise TypeError(f"evaluate: encoded must be Encoded (dynabert.data.tokenise); got {type(encoded).__name__}")
    if subnets is None or isinstance(subnets, (str, SubnetConfig, SubnetShape)):
        raise TypeError("evaluate: subnets is one sub-network; give a list of them")


def evaluate(
    model: ElasticBertForSequenceClassification,
    encoded: Encoded,
    subnets: Sequence[Subnet],
    *,
    metric: str | None = None,
    threshold: float = 0.5,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_batch_size: int | None = None,
    stacked: bool | None = None,
    progress: bool | None = False,
) -> list[EvaluationRow]:
    """Score every sub-network on a labelled set, or by how often it answers as the whole network does.

    Args:
        model, encoded, subnets, max_batch_tokens, max_batch_size, stacked, progress: see `compute_logits`; ``encoded``
            has labels that are indices of the model's outputs (`dynabert.data.align_labels`).
        metric: the score; by default accuracy; Spearman's correlation for regression; micro F1 for several labels a
            text. ``"agreement"``: the share of texts answered as the whole network answers them; it needs no labels,
            and there are none for a regression.
        threshold: least probability at which a multi-label model assigns a label.

    Returns:
        One row for each sub-network, in the given order.

    Raises:
        ValueError: no labels; a label that the model has no output for; labels or a metric of another kind of problem;
            a threshold that is no probability; what `compute_logits` raises.
    """
    _check_types(model, encoded, subnets)
    by_agreement = metric == AGREEMENT
    if not by_agreement:
        label_targets(model, encoded)
    _metric(model_problem(model.config), metric)
    _check_threshold(threshold)
    asked = [subnet_text(subnet) for subnet in subnets]
    whole = subnet_text(None)
    logits = compute_logits(
        model,
        encoded,
        [None, *subnets] if by_agreement and whole not in asked else subnets,
        max_batch_tokens=max_batch_tokens,
        max_batch_size=max_batch_size,
        stacked=stacked,
        progress=progress,
    )
    if by_agreement:
        encoded = labelled_as(model, encoded, logits[whole], threshold=threshold)
    return score_logits(model, encoded, {name: logits[name] for name in asked}, metric=metric, threshold=threshold)


def labelled_as(
    model: ElasticBertForSequenceClassification,
    encoded: Encoded,
    logits: npt.NDArray[np.floating],
    *,
    threshold: float = 0.5,
) -> Encoded:
    """The texts with the answers of these logits, (N, labels), as their labels. With the whole network's logits the
    metric ``"agreement"`` on them is that of a sub-network with the whole, for which nobody has to label anything.

    Raises:
        ValueError: a regression; logits that are not of these texts; a threshold that is no probability.
    """
    problem = model_problem(model.config)
    _metric(problem, AGREEMENT)
    _check_threshold(threshold)
    if logits.shape != (shape := (len(encoded), len(model_labels(model.config)))):
        raise ValueError(f"labelled_as: logits have shape {logits.shape}; allowed: {shape}, of these texts")
    answers = _decisions(problem, logits, threshold)
    labels = [np.flatnonzero(row).tolist() for row in answers] if problem == MULTI_LABEL else answers.tolist()
    return replace(
        encoded,
        labels=tuple(map(tuple, labels)) if problem == MULTI_LABEL else tuple(labels),
        label_names=tuple(model_labels(model.config)),
    )


def agreement_scores(
    model: ElasticBertForSequenceClassification,
    encoded: Encoded,
    logits: dict[str, npt.NDArray[np.floating]],
    *,
    threshold: float = 0.5,
) -> dict[str, float | None]:
    """The share of texts that each sub-network answers as the whole one does, from logits that `compute_logits` has
    found, the whole network's among them; None for a regression. A text's answer is its set of labels, where it has
    several."""
    if model_problem(model.config) == REGRESSION:
        return dict.fromkeys(logits)
    alike = labelled_as(model, encoded, logits[subnet_text(None)], threshold=threshold)
    rows = score_logits(model, alike, logits, metric=AGREEMENT, threshold=threshold)
    return {row.subnet: row.score for row in rows}


def score_logits(
    model: ElasticBertForSequenceClassification,
    encoded: Encoded,
    logits: dict[str, npt.NDArray[np.floating]],
    *,
    metric: str | None = None,
    threshold: float = 0.5,
) -> list[EvaluationRow]:
    """The rows of `evaluate`, from logits that `compute_logits` has found. Arguments and errors as there."""
    problem = model_problem(model.config)
    targets = label_targets(model, encoded)
    names, chosen = _metric(problem, metric)
    _check_threshold(threshold)
    majority = majority_score(targets, chosen)
    rows = []
    for name, values in logits.items():
        predictions = _decisions(problem, values, threshold)
        scores = {other: compute_metric(other, predictions, targets) for other in names}
        rows.append(EvaluationRow(name, scores[chosen], chosen, scores, len(encoded), majority))
    return rows


def score_function(
    model: ElasticBertForSequenceClassification,
    encoded: Encoded,
    *,
    metric: str | None = None,
    threshold: float = 0.5,
) -> tuple[str, Callable[[npt.NDArray[np.floating], npt.NDArray[np.intp]], float]]:
    """The score's name, and a function that scores logits, (n, labels), as answers to the n texts with these indices.

    Arguments and errors as in `evaluate`.
    """
    problem = model_problem(model.config)
    targets = np.asarray(label_targets(model, encoded))
    _, chosen = _metric(problem, metric)
    _check_threshold(threshold)

    def score(logits: npt.NDArray[np.floating], rows: npt.NDArray[np.intp]) -> float:
        return compute_metric(chosen, _decisions(problem, logits, threshold), targets[rows])

    return chosen, score


@dataclass(frozen=True)
class ScoreDifference:
    """The score of one sub-network minus another's on the same texts, and its 95 % interval from a paired bootstrap.

    Attributes:
        difference: the first one's score minus the second one's.
        low, high: 2.5th and 97.5th percentile over ``resamples`` draws of the texts, with replacement.
        resamples, seed: of the bootstrap.
    """

    difference: float
    low: float
    high: float
    resamples: int
    seed: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0.0 or self.high < 0.0


def paired_difference(
    model: ElasticBertForSequenceClassification,
    encoded: Encoded,
    first: npt.NDArray[np.floating],
    second: npt.NDArray[np.floating],
    *,
    metric: str | None = None,
    threshold: float = 0.5,
    resamples: int = 2000,
    seed: int = 0,
) -> ScoreDifference:
    """How much better the ``first`` logits score than the ``second``, both (N, labels) and of the same texts.

    Each resample draws N texts once and scores both on them, so what makes a text hard for both cancels.

    Raises:
        ValueError: logits that are not of these texts; fewer than 1 resample; what `score_logits` raises.
    """
    problem = model_problem(model.config)
    targets = np.asarray(label_targets(model, encoded))
    _, chosen = _metric(problem, metric)
    _check_threshold(threshold)
    if resamples < 1:
        raise ValueError(f"paired_difference: resamples is {resamples}; allowed: 1 or more")
    if first.shape != second.shape or len(first) != len(encoded):
        raise ValueError(
            f"paired_difference: logits have shapes {first.shape} and {second.shape} for {len(encoded)} texts; "
            "allowed: one row of each for every text"
        )
    ours, theirs = (_decisions(problem, logits, threshold) for logits in (first, second))
    chance = np.random.default_rng(seed)
    found = np.empty(resamples)
    for index in range(resamples):
        rows = chance.integers(0, len(encoded), len(encoded))
        found[index] = compute_metric(chosen, ours[rows], targets[rows]) - compute_metric(
            chosen, theirs[rows], targets[rows]
        )
    low, high = np.percentile(found, [2.5, 97.5]).tolist()
    whole = compute_metric(chosen, ours, targets) - compute_metric(chosen, theirs, targets)
    return ScoreDifference(whole, low, high, resamples, seed)


def _decisions(problem: str, logits: npt.NDArray[np.floating], threshold: float) -> npt.NDArray[np.generic]:
    """What the metrics take: class indices, numbers, or (N, labels) of True and False."""
    if problem == MULTI_LABEL:
        return label_probabilities(logits) >= threshold
    return logits[:, 0] if problem == REGRESSION else logits.argmax(axis=1)


@dataclass(frozen=True)
class Fidelity:
    """How close a sub-network stays to the whole network, on the same texts; far less noisy than a score on labels.

    Attributes:
        agreement: share of texts with the same decision; None for regression.
        divergence: mean Kullback-Leibler divergence of its probabilities from the whole network's, in nats; mean
            squared difference for regression.
    """

    agreement: float | None
    divergence: float


def fidelity(
    logits: npt.NDArray[np.floating], whole: npt.NDArray[np.floating], *, regression: bool = False
) -> Fidelity:
    """Compares a sub-network's logits, (N, labels), with the whole network's.

    Raises:
        ValueError: the two differ in shape or are empty.
    """
    if logits.shape != whole.shape or logits.size == 0:
        raise ValueError(f"fidelity: logits have shapes {logits.shape} and {whole.shape}; allowed: the same, not empty")
    if regression:
        return Fidelity(None, float(np.square(logits.astype(np.float64) - whole).mean()))
    ours, theirs = _log_softmax(logits), _log_softmax(whole)
    divergence = float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean())
    return Fidelity(float((logits.argmax(axis=1) == whole.argmax(axis=1)).mean()), divergence)


def _log_softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def label_targets(
    model: ElasticBertForSequenceClassification, encoded: Encoded, name: str = "evaluate"
) -> Sequence[int] | Sequence[float] | npt.NDArray[np.bool_]:
    """The labels as the metrics take them: (N, labels) zeros and ones for a multi-label model.

    ``ValueError``, beginning with ``name``, where there are none, or not the model's.
    """
    problem, labels = model_problem(model.config), encoded.labels
    outputs = len(model_labels(model.config))
    if labels is None:
        raise ValueError(f"{name}: {encoded.source} has no labels; name the label column")
    many = is_multi_label(labels)
    if len(labels) and many != (problem == MULTI_LABEL):
        raise ValueError(
            f"{name}: {encoded.source} has {'a set of labels' if many else 'one label'} for each text, the model is "
            f"for {problem}; use data of the model's kind"
        )
    numbers = len(labels) > 0 and isinstance(labels[0], (float, np.floating))
    if len(labels) and not many and numbers != (problem == REGRESSION):
        raise ValueError(
            f"{name}: {encoded.source} has {'numbers of a regression' if numbers else 'classes'} as labels, the "
            f"model is for {problem}; use data of the model's kind"
        )
    flat: Any = [label for row in labels for label in row] if many else labels  # type: ignore[union-attr]
    for label in (min(flat, default=0), max(flat, default=0)):
        if problem != REGRESSION and not 0 <= label < outputs:
            raise ValueError(
                f"{name}: {encoded.source} has label {label}, the model has {outputs} outputs; use data of the "
                "model's task"
            )
    return label_array(labels, MULTI_LABEL, outputs).astype(bool) if many else labels  # type: ignore[return-value]


def _metric(problem: str, metric: str | None) -> tuple[tuple[str, ...], str]:
    """All metrics of the problem, and the one chosen."""
    names = default_metrics(problem == REGRESSION, multi_label=problem == MULTI_LABEL)
    chosen = names[0] if metric is None else metric
    if chosen == AGREEMENT:
        if problem == REGRESSION:
            raise ValueError(
                "evaluate: agreement is that of decisions, and this model's answers are numbers (regression); allowed: "
                f"{', '.join(names)}, with labels"
            )
        return (AGREEMENT,), AGREEMENT
    if chosen not in names:
        raise ValueError(
            f"evaluate: metric {chosen!r} does not fit {problem}; allowed: {', '.join(names)}"
            f"{'' if problem == REGRESSION else f', {AGREEMENT}'}"
        )
    return names, chosen


def check_metric(
    model: ElasticBertForSequenceClassification, metric: str | None = None, *, threshold: float = 0.5
) -> None:
    """Raises ``ValueError`` as `evaluate` does for a metric that does not fit the model, and for a threshold that is no
    probability: before anything is measured."""
    _metric(model_problem(model.config), metric)
    _check_threshold(threshold)


def _check_threshold(threshold: float) -> None:
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"evaluate: threshold is {threshold}; allowed: above 0 and below 1")
