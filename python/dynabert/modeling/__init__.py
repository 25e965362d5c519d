"""The elastic models. Importing this registers them, and their configuration, with transformers' Auto classes, and lets
its text-classification pipeline take a sub-network."""

from dynabert.configuration.elastic import ElasticBertConfig
from dynabert.modeling.model import ElasticBertForSequenceClassification, ElasticBertModel, ElasticBertPreTrainedModel
from dynabert.modeling.subnet_pipeline import SubnetTextClassificationPipeline

__all__ = [
    "ElasticBertConfig",
    "ElasticBertForSequenceClassification",
    "ElasticBertModel",
    "ElasticBertPreTrainedModel",
    "SubnetTextClassificationPipeline",
]
