"""Kernels that compute a transformer encoder over the leading heads and neurons of its weights, in place.

Tensors in, tensors out: this package knows no BERT, no text and no files. See ``show_config()`` for what is built.
"""

from __future__ import annotations

__version__ = "0.1.0"

from dynabert_kernels.layout import LayerPlan, PackedBatch, Plan, SubnetShape, group_by_shape
from dynabert_kernels.ops import (
    NATIVE as NATIVE,
)
from dynabert_kernels.ops import (
    EmbeddingWeights,
    HeadWeights,
    Int8LayerWeights,
    Int8Linear,
    LayerWeights,
    PackedLayerWeights,
    SlowerProviderWarning,
    add_layer_norm,
    classification_head,
    config,
    distillation_loss,
    elastic_attention,
    elastic_classifier,
    elastic_encoder,
    elastic_encoder_int8,
    elastic_ffn,
    elastic_linear,
    embed_layer_norm,
    pack_layer,
    packed_panel,
    plan_on_device,
    plan_table,
    quantise_layer,
    show_config,
    use_provider,
    varlen_attention,
)

__all__ = [
    "EmbeddingWeights",
    "HeadWeights",
    "Int8LayerWeights",
    "Int8Linear",
    "LayerPlan",
    "LayerWeights",
    "PackedBatch",
    "PackedLayerWeights",
    "Plan",
    "SlowerProviderWarning",
    "SubnetShape",
    "add_layer_norm",
    "classification_head",
    "config",
    "distillation_loss",
    "elastic_attention",
    "elastic_classifier",
    "elastic_encoder",
    "elastic_encoder_int8",
    "elastic_ffn",
    "elastic_linear",
    "embed_layer_norm",
    "group_by_shape",
    "pack_layer",
    "packed_panel",
    "plan_on_device",
    "plan_table",
    "quantise_layer",
    "show_config",
    "use_provider",
    "varlen_attention",
]
