"""Scores of a sentence embedder's sub-networks: by pairs that people have scored, or by how close they stay to the
whole network.

Everything is taken from cosines, so the vectors need not have length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dynabert.configuration import Subnet
from dynabert.configuration.grid import subnet_text
from dynabert.data.metrics import compute_metric
from dynabert.data.tokenisation import Encoded
from dynabert.evaluation import MAX_BATCH_TOKENS, EvaluationRow, check_inputs, compute_outputs
from dynabert.modeling.sentence_embedding import check_embedder

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSentenceEmbedding

Vectors = npt.NDArray[np.floating]
COSINE = "cosine"
METRICS = ("spearman", "pearson", COSINE)


@dataclass(frozen=True, eq=False)
class SimilaritySet:
    """Texts that vectors are scored on.

    Attributes:
        firsts: token ids, N of them.
        seconds: as many others, or None for single texts.
        labels: how alike the two of each pair are, numbers that rise with it; or None.
        source: where they came from, for messages.
        whole: vectors of `texts` that all others are to be close to, such as those of the network before it was
            trained; None: the whole network's own.
    """

    firsts: Encoded
    seconds: Encoded | None = None
    labels: tuple[float, ...] | None = None
    source: str = "texts"
    whole: Vectors | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and len(self.seconds) != len(self.firsts):
            raise ValueError(
                f"SimilaritySet: {self.source} has {len(self.firsts)} first and {len(self.seconds)} second texts; "
                "allowed: as many of both"
            )
        if self.labels is None:
            return
        if self.seconds is None:
            raise ValueError(f"SimilaritySet: {self.source} has labels and single texts; allowed: labels of pairs")
        if len(self.labels) != len(self.firsts):
            raise ValueError(
                f"SimilaritySet: {self.source} has {len(self.labels)} labels for {len(self.firsts)} pairs; allowed: "
                "one for each"
            )
        if len(set(self.labels)) < 2:
            raise ValueError(f"SimilaritySet: all labels of {self.source} are equal; at least two must differ")

    def __len__(self) -> int:
        return len(self.firsts)

    @property
    def texts(self) -> Encoded:
        """All texts, first ones first, without labels."""
        if self.seconds is None:
            return replace(self.firsts, labels=None, label_names=(), lines=None)
        types = None
        if self.firsts.token_type_ids is not None and self.seconds.token_type_ids is not None:
            types = (*self.firsts.token_type_ids, *self.seconds.token_type_ids)
        both = (*self.firsts.input_ids, *self.seconds.input_ids)
        return Encoded(input_ids=both, token_type_ids=types, source=self.source)


def compute_vectors(
    model: ElasticBertForSentenceEmbedding,
    encoded: Encoded,
    subnets: Sequence[Subnet],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_batch_size: int | None = None,
    stacked: bool | None = None,
    progress: bool | None = False,
) -> dict[str, Vectors]:
    """Vectors of every sub-network for every text, in eval mode: for each sub-network, by its text form, (N, C) float32
    (float64 for a float64 model). Arguments and errors as in `dynabert.evaluation.compute_logits`."""
    check_embedder("compute_vectors", model)
    return compute_outputs(
        model,
        encoded,
        subnets,
        model.packed_outputs,
        max_batch_tokens=max_batch_tokens,
        max_batch_size=max_batch_size,
        stacked=stacked,
        progress=progress,
    )


def cosines(ours: Vectors, theirs: Vectors) -> npt.NDArray[np.float64]:
    """(N,): the cosine of each row of ``ours`` with that of ``theirs``, both (N, C); 0 where one is all zeros.

    Raises ``ValueError`` where they differ in shape.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"cosines: vectors have shapes {ours.shape} and {theirs.shape}; allowed: equal")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), lengths, out=np.zeros(len(a)), where=lengths > 0.0)


def score_vectors(texts: SimilaritySet, vectors: dict[str, Vectors], whole: Vectors) -> list[EvaluationRow]:
    """A row for each sub-network, from its vectors of ``texts.texts``.

    ``whole``: the vectors that they are to be close to. With labels the score is Spearman's correlation of the pairs'
    cosines with them; without, the mean cosine of each vector with the one in ``whole``, which needs nobody's
    judgement. Both are in the row's metrics. What a constant scores is 0 in all of them.
    """
    count, rows = len(texts), []
    for name, own in vectors.items():
        metrics = {COSINE: float(cosines(own, whole).mean())}
        if texts.labels is not None:
            alike, targets = cosines(own[:count], own[count:]), np.asarray(texts.labels, dtype=np.float64)
            metrics = {name: compute_metric(name, alike, targets) for name in METRICS[:2]} | metrics
        chosen = next(iter(metrics))
        rows.append(EvaluationRow(name, metrics[chosen], chosen, metrics, count, 0.0))
    return rows


def score_similarity(
    model: ElasticBertForSentenceEmbedding,
    texts: SimilaritySet,
    subnets: Sequence[Subnet],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_batch_size: int | None = None,
    progress: bool | None = False,
) -> list[EvaluationRow]:
    """Score every sub-network of a sentence embedder on texts or pairs.

    Args:
        model: the network; what its mode is is put back.
        texts: see `SimilaritySet`.
        subnets: each once.
        max_batch_tokens, max_batch_size: as in `dynabert.evaluation.compute_logits`.
        progress: True shows a bar, False none, None one where stderr is a terminal.

    Returns:
        One row for each sub-network, in the given order: see `score_vectors`.

    Raises:
        TypeError: another kind of model; one sub-network in place of a list.
        ValueError: as in `dynabert.evaluation.compute_logits`; vectors of other texts.
    """
    check_inputs(texts.texts, subnets)
    asked = [subnet_text(subnet) for subnet in subnets]
    full = subnet_text(None)
    whole = texts.whole
    wanted = list(subnets) if whole is not None or full in asked else [None, *subnets]
    vectors = compute_vectors(
        model,
        texts.texts,
        wanted,
        max_batch_tokens=max_batch_tokens,
        max_batch_size=max_batch_size,
        progress=progress,
    )
    if whole is None:
        whole = vectors[full]
    return score_vectors(texts, {name: vectors[name] for name in asked}, whole)


__all__ = [
    "COSINE",
    "SimilaritySet",
    "compute_vectors",
    "cosines",
    "score_similarity",
    "score_vectors",
]
