"""The definition of ``elastic_classifier``: embeddings, encoder and head in turn."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dynabert_kernels.reference.classification_head import classification_head
from dynabert_kernels.reference.elastic_encoder import elastic_encoder
from dynabert_kernels.reference.elastic_encoder_int8 import elastic_encoder_int8
from dynabert_kernels.reference.embed_layer_norm import embed_layer_norm_fwd

PLAIN, PACKED, INT8 = range(3)


def elastic_classifier(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    token_type: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    position_biases: Sequence[Tensor],
    dense_weight: Tensor | None,
    dense_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor,
    cu_seqlens: Tensor,
    table: Tensor,
    num_groups: int,
    max_heads: Sequence[int],
    max_neurons: Sequence[int],
    max_seqlen: int,
    scale: float,
    eps: float,
    activation: int,
    form: int,
) -> Tensor:
    """(B, labels) from (T,) ids. ``form``: 0 plain weights, 1 packed, 2 int8."""
    tables = (word, position, token_type, norm_weight, norm_bias)
    x = embed_layer_norm_fwd(input_ids, position_ids, token_type_ids, *tables, None, None, eps, 0.0, 0, -1)[0]
    numbers = (num_groups, max_heads, max_neurons, max_seqlen, scale, eps, activation)
    if form == INT8:
        y = elastic_encoder_int8(x, weights, position_biases, cu_seqlens, table, *numbers)
    else:
        y = elastic_encoder(x, weights, position_biases, cu_seqlens, table, *numbers, form == PACKED)
    tokens, planned = int(cu_seqlens[-1]), int(table[num_groups])
    if tokens > planned:  # rows past the plan's are zeros, and a text there would be answered by the head's bias alone
        raise ValueError(
            f"elastic_classifier: the batch has {tokens} tokens and the plan's groups {planned}; allowed: a plan of "
            "this batch"
        )
    return classification_head(y, cu_seqlens, dense_weight, dense_bias, out_weight, out_bias)
