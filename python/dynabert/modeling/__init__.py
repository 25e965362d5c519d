"""The elastic models. Importing this registers them, and their configuration, with transformers' Auto classes."""

from dynabert.configuration.elastic import ElasticBertConfig
from dynabert.modeling.model import ElasticBertForSequenceClassification, ElasticBertModel, ElasticBertPreTrainedModel

__all__ = [
    "ElasticBertConfig",
    "ElasticBertForSequenceClassification",
    "ElasticBertModel",
    "ElasticBertPreTrainedModel",
]
