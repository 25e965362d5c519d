"""The elastic models.

Importing this registers them, and their configuration, with transformers' Auto classes, and lets its pipeline for
text classification take a sub-network. The Auto classes go by a checkpoint's ``model_type``: where that is
``elastic_bert`` they give the classes here; where it stayed bert, roberta or mpnet, since transformers' own class can
hold the network, they give that class: the whole network, without sub-networks.
`ElasticBertForSequenceClassification.from_pretrained` opens both.
"""

from dynabert.configuration.elastic import ElasticBertConfig
from dynabert.modeling.model import ElasticBertForSequenceClassification, ElasticBertModel, ElasticBertPreTrainedModel
from dynabert.modeling.pooling import Pooling
from dynabert.modeling.sentence_embedding import ElasticBertForSentenceEmbedding
from dynabert.modeling.subnet_pipeline import SubnetTextClassificationPipeline

__all__ = [
    "ElasticBertConfig",
    "ElasticBertForSentenceEmbedding",
    "ElasticBertForSequenceClassification",
    "ElasticBertModel",
    "ElasticBertPreTrainedModel",
    "Pooling",
    "SubnetTextClassificationPipeline",
]
