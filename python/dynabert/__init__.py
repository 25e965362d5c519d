"""DynaBERT on elastic kernels: one BERT, RoBERTa or MPNet checkpoint at any width and depth.

Importing this package costs nothing; each public name imports what it needs when it is first used. The elastic model
type is registered with transformers' Auto classes when the first model name is used (or by ``import
dynabert.modeling``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynabert.configuration import Cascade, ElasticBertConfig, SubnetConfig
    from dynabert.distill import DistillationArguments, DistillationTrainer, distillation_losses
    from dynabert.engine import EmbeddingEngine, InferenceEngine
    from dynabert.export import ExportReport, export_subnet
    from dynabert.importance import Importance, compute_importance
    from dynabert.modeling import (
        ElasticBertForSentenceEmbedding,
        ElasticBertForSequenceClassification,
        ElasticBertModel,
        Pooling,
    )
    from dynabert.rewiring import rewire, undo_rewiring

_HOME = {
    "Cascade": "dynabert.configuration",
    "DistillationArguments": "dynabert.distill",
    "DistillationTrainer": "dynabert.distill",
    "ElasticBertConfig": "dynabert.modeling",  # with the models, so that the Auto classes know both
    "ElasticBertForSentenceEmbedding": "dynabert.modeling",
    "ElasticBertForSequenceClassification": "dynabert.modeling",
    "ElasticBertModel": "dynabert.modeling",
    "EmbeddingEngine": "dynabert.engine",
    "ExportReport": "dynabert.export",
    "Importance": "dynabert.importance",
    "InferenceEngine": "dynabert.engine",
    "Pooling": "dynabert.modeling",
    "SubnetConfig": "dynabert.configuration",
    "compute_importance": "dynabert.importance",
    "distillation_losses": "dynabert.distill",
    "export_subnet": "dynabert.export",
    "rewire": "dynabert.rewiring",
    "undo_rewiring": "dynabert.rewiring",
}

__all__ = [
    "Cascade",
    "DistillationArguments",
    "DistillationTrainer",
    "ElasticBertConfig",
    "ElasticBertForSentenceEmbedding",
    "ElasticBertForSequenceClassification",
    "ElasticBertModel",
    "EmbeddingEngine",
    "ExportReport",
    "Importance",
    "InferenceEngine",
    "Pooling",
    "SubnetConfig",
    "compute_importance",
    "distillation_losses",
    "export_subnet",
    "rewire",
    "undo_rewiring",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
