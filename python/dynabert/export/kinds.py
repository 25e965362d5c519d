"""Which models are exported, and what their answers are: a classifier's logits, a sentence embedder's vectors."""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import Tensor

from dynabert.export.report import FORMATS
from dynabert.modeling import ElasticBertForSentenceEmbedding, ElasticBertForSequenceClassification
from dynabert.modeling.model import check_classifier

Exported = ElasticBertForSequenceClassification | ElasticBertForSentenceEmbedding
_EMBEDDER_FORMATS = tuple(form for form in FORMATS if form != "hf-remote")


def is_embedder(model: object) -> TypeGuard[ElasticBertForSentenceEmbedding]:
    """Whether a model's answers are vectors."""
    return isinstance(model, ElasticBertForSentenceEmbedding)


def check_exported(model: object, form: str) -> None:
    """Raises ``TypeError`` for a model that is neither, ``ValueError`` for a format that its kind does not have."""
    if not is_embedder(model):
        check_classifier("export", model)
    elif form not in _EMBEDDER_FORMATS:
        raise ValueError(
            f"export: the format {form} is for classifiers, and the model is a sentence embedder; allowed: "
            f"{', '.join(_EMBEDDER_FORMATS)}"
        )


def other_formats(model: object) -> str:
    """Names of the formats that hold any sub-network."""
    return ", ".join(form for form in (_EMBEDDER_FORMATS if is_embedder(model) else FORMATS) if form != "hf")


def answer_of(model: object, output: Any) -> Tensor:
    """Logits, or vectors, out of what our own model returns."""
    found: Tensor = output.pooler_output if is_embedder(model) else output.logits
    return found
