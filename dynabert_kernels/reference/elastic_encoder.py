"""The definition of ``elastic_encoder``: its layers' two sub-layers in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dynabert_kernels.layout.packed_weights import unpack_matrix
from dynabert_kernels.reference.elastic_attention import elastic_attention_fwd
from dynabert_kernels.reference.elastic_ffn import elastic_ffn_fwd

WEIGHTS_PER_LAYER = 12


def elastic_encoder(
    x: Tensor,
    weights: Sequence[Tensor],
    position_biases: Sequence[Tensor],
    cu_seqlens: Tensor,
    table: Tensor,
    num_groups: int,
    max_heads: Sequence[int],
    max_neurons: Sequence[int],
    max_seqlen: int,
    scale: float,
    eps: float,
    activation: int,
    packed: bool,
) -> Tensor:
    """(T, C) to (T, C). ``weights``: twelve a layer, their matrices ``packed`` or plain; ``table``: as in ``Plan``. A
    layer that nobody keeps is left out."""
    rows, counts = table[: num_groups + 1], table[num_groups + 1 :].view(-1, 2, num_groups)
    y = x
    for layer, (heads, neurons) in enumerate(zip(max_heads, max_neurons, strict=True)):
        if heads == 0 and neurons == 0:
            continue
        first = WEIGHTS_PER_LAYER * layer
        attention, ffn = list(weights[first : first + 6]), list(weights[first + 6 : first + 12])
        if packed:
            _unpack(attention, ffn, x.shape[1])
        bias = position_biases[layer] if position_biases else None
        head_counts, neuron_counts = counts[layer].unbind()
        numbers = (heads, max_seqlen, scale, eps, 0.0, 0.0, 0, False)
        given: tuple[Any, ...] = (y, *attention, cu_seqlens, rows, head_counts, bias, None, *numbers)
        y = elastic_attention_fwd(*given)[0]
        given = (y, *ffn, rows, neuron_counts, None, neurons, activation, eps, 0.0, 0, False)
        y = elastic_ffn_fwd(*given)[0]
    return x.clone() if y is x else y


def _unpack(attention: list[Tensor], ffn: list[Tensor], width: int) -> None:
    heads, _, size = attention[1].shape
    neurons = ffn[1].shape[0]
    attention[0] = unpack_matrix(attention[0], heads * 3 * size, width).view(heads, 3, size, width)
    attention[2] = unpack_matrix(attention[2], width, heads * size)
    ffn[0] = unpack_matrix(ffn[0], neurons, width)
    ffn[2] = unpack_matrix(ffn[2], width, neurons)
