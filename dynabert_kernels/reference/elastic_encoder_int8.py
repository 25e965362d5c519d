"""The definition of the encoder in int8: the same integers as any kernel, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynabert_kernels.reference.add_layer_norm import add_layer_norm_fwd, statistics_dtype
from dynabert_kernels.reference.elastic_linear import NONE, activate
from dynabert_kernels.reference.groups import row_spans
from dynabert_kernels.reference.varlen_attention import varlen_attention_fwd

WEIGHTS_PER_LAYER = 20
LARGEST = 127


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``(q, scale)`` with ``q = round(x / scale)`` whole numbers from -127 to 127, and one scale a row.

    A row that is not finite has a scale that is not."""
    wide = x.to(statistics_dtype(x.dtype))
    largest = wide.abs().amax(1, keepdim=True)
    # One division: a number over a tensor would be the rounded reciprocal times the number.
    inverse = torch.where(largest > 0, torch.full_like(largest, LARGEST) / largest, torch.zeros_like(largest))
    return (wide * inverse).nan_to_num_(0.0).round_(), largest / LARGEST


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    offset: Tensor,
    bias: Tensor,
    chunk: int,
    n: int,
    k: int,
    activation: int,
) -> Tensor:
    """(T, n): ``act((sum over chunks of (q . weight) * scale) * scale of the row + bias)`` over the first k inputs.

    ``offset`` is for kernels that store activations as unsigned bytes. The integers are summed in float64, which holds
    them exactly; the rest in float32 (float64 for float64)."""
    q, row_scale = quantise_rows(x[:, :k])
    chunks = -(-k // chunk)
    q = torch.nn.functional.pad(q, (0, chunks * chunk - k)).double()
    panels, all_chunks, units, panel, unit = weight.shape
    rows = weight.permute(0, 3, 1, 2, 4).reshape(panels * panel, all_chunks, units * unit)[:n, :chunks, :chunk].double()
    total = torch.zeros(x.shape[0], n, dtype=row_scale.dtype, device=x.device)
    for index in range(chunks):
        whole = q[:, index * chunk : (index + 1) * chunk] @ rows[:, index].t()
        total += whole.to(total.dtype) * scale[index, :n].to(total.dtype)
    return activate(total * row_scale + bias.flatten()[:n].to(total.dtype), activation).to(x.dtype)


def elastic_encoder_int8(
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
) -> Tensor:
    """(T, C) to (T, C). ``weights``: twenty a layer, as ``Int8LayerWeights.tensors`` lists them; ``table``: as in
    ``Plan``."""
    rows, counts = table[: num_groups + 1], table[num_groups + 1 :].view(-1, 2, num_groups)
    y = x
    for layer, (heads, neurons) in enumerate(zip(max_heads, max_neurons, strict=True)):
        if heads == 0 and neurons == 0:
            continue
        w = weights[WEIGHTS_PER_LAYER * layer : WEIGHTS_PER_LAYER * (layer + 1)]
        head_counts, neuron_counts = counts[layer].unbind()
        bias = position_biases[layer] if position_biases else None
        y = _attention(y, w[:10], bias, cu_seqlens, rows, head_counts, heads, max_seqlen, scale, eps)
        y = _ffn(y, w[10:], rows, neuron_counts, neurons, eps, activation)
    return x.clone() if y is x else y


def _attention(
    x: Tensor,
    w: Sequence[Tensor],
    position_bias: Tensor | None,
    cu_seqlens: Tensor,
    rows: Tensor,
    head_counts: Tensor,
    max_heads: int,
    max_seqlen: int,
    scale: float,
    eps: float,
) -> Tensor:
    tokens, width = x.shape
    size = w[3].shape[2]
    spans = row_spans(rows, head_counts, max_heads, max_heads)
    qkv = x.new_zeros(tokens, max_heads, 3, size)
    for begin, end, heads, _ in spans:
        if heads > 0:
            made = int8_linear(x[begin:end], w[0], w[1], w[2], w[3], width, heads * 3 * size, width, NONE)
            qkv[begin:end, :heads] = made.view(end - begin, heads, 3, size)
    context, _ = varlen_attention_fwd(
        qkv, cu_seqlens, rows, head_counts, position_bias, None, max_heads, max_seqlen, scale, 0.0, 0, False
    )
    y = torch.zeros_like(x)
    for begin, end, heads, _ in spans:
        y[begin:end] = x[begin:end]
        if heads > 0:
            features = context.flatten(1)[begin:end]
            made = int8_linear(features, w[4], w[5], w[6], w[7], size, width, heads * size, NONE)
            y[begin:end] = add_layer_norm_fwd(x[begin:end] + made, None, w[8], w[9], eps)[0]
    return y


def _ffn(
    x: Tensor, w: Sequence[Tensor], rows: Tensor, neuron_counts: Tensor, max_neurons: int, eps: float, activation: int
) -> Tensor:
    width, chunk = x.shape[1], w[4].shape[2] * w[4].shape[4]
    y = torch.zeros_like(x)
    for begin, end, neurons, _ in row_spans(rows, neuron_counts, max_neurons, max_neurons):
        y[begin:end] = x[begin:end]
        if neurons > 0:
            active = int8_linear(x[begin:end], w[0], w[1], w[2], w[3], width, neurons, width, activation)
            made = int8_linear(active, w[4], w[5], w[6], w[7], chunk, width, neurons, NONE)
            y[begin:end] = add_layer_norm_fwd(x[begin:end] + made, None, w[8], w[9], eps)[0]
    return y
