"""The ops: one file each, in the order schema, fake, autograd, public function."""

from dynabert_kernels.ops import native, triton_providers
from dynabert_kernels.ops.add_layer_norm import add_layer_norm
from dynabert_kernels.ops.classification_head import classification_head
from dynabert_kernels.ops.config import config, show_config
from dynabert_kernels.ops.distillation_loss import distillation_loss
from dynabert_kernels.ops.elastic_attention import elastic_attention
from dynabert_kernels.ops.elastic_classifier import EmbeddingWeights, HeadWeights, elastic_classifier
from dynabert_kernels.ops.elastic_encoder import (
    LayerWeights,
    PackedLayerWeights,
    elastic_encoder,
    pack_layer,
    packed_panel,
)
from dynabert_kernels.ops.elastic_encoder_int8 import elastic_encoder_int8
from dynabert_kernels.ops.elastic_ffn import elastic_ffn
from dynabert_kernels.ops.elastic_linear import elastic_linear
from dynabert_kernels.ops.embed_layer_norm import embed_layer_norm
from dynabert_kernels.ops.int8_weights import Int8LayerWeights, Int8Linear, quantise_layer
from dynabert_kernels.ops.plan_table import plan_on_device, plan_table
from dynabert_kernels.ops.providers import SlowerProviderWarning, use_provider
from dynabert_kernels.ops.varlen_attention import varlen_attention

# The schemas above must be defined before the native library binds to them.
NATIVE = native.load()
triton_providers.load()

__all__ = [
    "NATIVE",
    "EmbeddingWeights",
    "HeadWeights",
    "Int8LayerWeights",
    "Int8Linear",
    "LayerWeights",
    "PackedLayerWeights",
    "SlowerProviderWarning",
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
    "pack_layer",
    "packed_panel",
    "plan_on_device",
    "plan_table",
    "quantise_layer",
    "show_config",
    "use_provider",
    "varlen_attention",
]
