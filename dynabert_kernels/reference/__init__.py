"""The definition of every op, in plain PyTorch.

Every other provider is held to these functions. They take any head size, hidden size and width, in float32, bfloat16,
float16 and float64. They read the plan's numbers on the host, so on a GPU they synchronise. Each op is a forward, a
backward written out (not by autograd, so that it is the template of the kernels), and both have exactly the signature
of the registered op. The tests hold the written backward against autograd of the forward, in float64.
"""

from dynabert_kernels.reference.add_layer_norm import add_layer_norm_bwd, add_layer_norm_fwd
from dynabert_kernels.reference.classification_head import classification_head
from dynabert_kernels.reference.distillation_loss import distillation_loss_bwd, distillation_loss_fwd
from dynabert_kernels.reference.elastic_attention import elastic_attention_bwd, elastic_attention_fwd
from dynabert_kernels.reference.elastic_classifier import elastic_classifier
from dynabert_kernels.reference.elastic_encoder import elastic_encoder
from dynabert_kernels.reference.elastic_encoder_int8 import elastic_encoder_int8, int8_linear
from dynabert_kernels.reference.elastic_ffn import elastic_ffn_bwd, elastic_ffn_fwd
from dynabert_kernels.reference.elastic_linear import elastic_linear_bwd, elastic_linear_fwd
from dynabert_kernels.reference.embed_layer_norm import embed_layer_norm_bwd, embed_layer_norm_fwd
from dynabert_kernels.reference.plan_table import plan_table
from dynabert_kernels.reference.varlen_attention import varlen_attention_bwd, varlen_attention_fwd

__all__ = [
    "add_layer_norm_bwd",
    "add_layer_norm_fwd",
    "classification_head",
    "distillation_loss_bwd",
    "distillation_loss_fwd",
    "elastic_attention_bwd",
    "elastic_attention_fwd",
    "elastic_classifier",
    "elastic_encoder",
    "elastic_encoder_int8",
    "elastic_ffn_bwd",
    "elastic_ffn_fwd",
    "elastic_linear_bwd",
    "elastic_linear_fwd",
    "embed_layer_norm_bwd",
    "embed_layer_norm_fwd",
    "int8_linear",
    "plan_table",
    "varlen_attention_bwd",
    "varlen_attention_fwd",
]
