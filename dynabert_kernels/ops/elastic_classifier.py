"""``elastic_classifier``: from token ids to logits in one call, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.layout import PackedBatch, Plan
from dynabert_kernels.ops import checks, providers
from dynabert_kernels.ops.classification_head import classification_head
from dynabert_kernels.ops.elastic_encoder import (
    LayerWeights,
    PackedLayerWeights,
    check_batch,
    check_plan_dtypes,
    elastic_encoder,
)
from dynabert_kernels.ops.elastic_encoder_int8 import check_float, elastic_encoder_int8
from dynabert_kernels.ops.embed_layer_norm import embed_layer_norm
from dynabert_kernels.ops.int8_weights import TENSOR_NAMES, Int8LayerWeights, tensor_dtypes
from dynabert_kernels.ops.registration import define, needs_save

NAME = "elastic_classifier"
FORMS = (LayerWeights, PackedLayerWeights, Int8LayerWeights)  # in the order of the op's numbers for them
Layers = Sequence[LayerWeights] | Sequence[PackedLayerWeights] | Sequence[Int8LayerWeights]


class EmbeddingWeights(NamedTuple):
    """``word`` (V, C), ``position`` (P, C), ``token_type`` (Y, C) or None, and the LayerNorm's two (C,)."""

    word: Tensor
    position: Tensor
    token_type: Tensor | None
    norm_weight: Tensor
    norm_bias: Tensor


class HeadWeights(NamedTuple):
    """As :func:`classification_head` takes them; ``dense_weight`` and ``dense_bias`` may both be None."""

    dense_weight: Tensor | None
    dense_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor


def _fake(input_ids: Tensor, *others: Tensor) -> Tensor:
    word, out_weight, cu_seqlens = others[2], others[11], others[13]
    return word.new_empty(cu_seqlens.shape[0] - 1, out_weight.shape[0])


_classifier = define(
    NAME,
    "(Tensor input_ids, Tensor position_ids, Tensor? token_type_ids, Tensor word, Tensor position, Tensor? token_type,"
    " Tensor norm_weight, Tensor norm_bias, Tensor[] weights, Tensor[] position_biases, Tensor? dense_weight,"
    " Tensor? dense_bias, Tensor out_weight, Tensor out_bias, Tensor cu_seqlens, Tensor table, int num_groups,"
    " int[] max_heads, int[] max_neurons, int max_seqlen, float scale, float eps, int activation, int form) -> Tensor",
    reference=reference.elastic_classifier,
    fake=_fake,
)


def elastic_classifier(
    batch: PackedBatch,
    plan: Plan,
    embedding: EmbeddingWeights,
    layers: Layers,
    head: HeadWeights,
    *,
    position_biases: Sequence[Tensor] = (),
    activation: str = "gelu",
    eps: float = 1e-12,
    scale: float | None = None,
) -> Tensor:
    """Logits of packed sequences: :func:`embed_layer_norm`, :func:`elastic_encoder` (:func:`elastic_encoder_int8`) and
    :func:`classification_head` one after the other, without dropout, for inference.

    On a CPU with the native library it is one native call, so that Python and dispatch are paid once, which is what a
    short text at a small width waits for; elsewhere the three ops are called.

    ``batch``, ``plan``: T tokens of B sequences, and the sub-network of each. ``embedding``, ``head``: see their
    classes. ``layers``: one for each layer of the plan, all `LayerWeights`, `PackedLayerWeights` or `Int8LayerWeights`.
    All floating-point tensors of one dtype, as the three ops take it. ``position_biases``, ``activation``, ``scale``:
    as in :func:`elastic_encoder`. ``eps``: of all LayerNorms.

    Returns (B, labels) in the batch's packed order (``batch.order`` says whose they are). Bit for bit what the three
    ops give. Deterministic. Does not synchronise.

    Raises ``RuntimeError`` where a gradient is wanted; ``ValueError`` on an unknown activation, a shape, device or
    bound that does not fit; ``TypeError`` on a dtype, or layers of several kinds; on a CPU ``IndexError`` on an id
    outside its table.
    """
    check_batch(NAME, batch.input_ids[:, None], layers, plan, position_biases)
    form = _form(layers)
    forced = providers.forced_provider()
    here = batch.input_ids.device.type == "cpu" and (forced is None or providers.has(NAME, forced))
    if not here or torch.compiler.is_compiling():
        return _one_by_one(batch, plan, embedding, layers, head, position_biases, activation, eps, scale)
    flat: list[Tensor] = []
    for layer in layers:
        flat += layer.tensors() if isinstance(layer, Int8LayerWeights) else layer
    if torch.is_grad_enabled() and needs_save(*embedding, *flat, *head, *position_biases):
        raise RuntimeError(f"{NAME}: it has no backward; run it under torch.no_grad()")
    _check_dtypes(batch, plan, embedding, flat, head, position_biases, FORMS[form])
    first = layers[0]
    bias = first.qkv.bias if isinstance(first, Int8LayerWeights) else first.qkv_bias
    return _classifier(
        batch.input_ids,
        batch.position_ids,
        batch.token_type_ids,
        *embedding,
        flat,
        list(position_biases),
        *head,
        batch.cu_seqlens,
        plan.table,
        plan.num_groups,
        list(plan.max_heads),
        list(plan.max_neurons),
        plan.max_seqlen,
        bias.shape[2] ** -0.5 if scale is None else float(scale),
        float(eps),
        checks.activation_code(NAME, activation),
        form,
    )


def _check_dtypes(
    batch: PackedBatch,
    plan: Plan,
    embedding: EmbeddingWeights,
    flat: Sequence[Tensor],
    head: HeadWeights,
    position_biases: Sequence[Tensor],
    kind: type,
) -> None:
    checks.dtype(NAME, "input_ids", batch.input_ids, torch.int64)
    checks.dtype(NAME, "position_ids", batch.position_ids, torch.int64)
    checks.dtype(NAME, "token_type_ids", batch.token_type_ids, torch.int64)
    word = embedding.word
    dtype = word.dtype
    checks.same(NAME, ("word", word), {})
    for place, weight in enumerate((*embedding, *head)):
        if weight is not None and weight.dtype != dtype:
            name = (*EmbeddingWeights._fields, *HeadWeights._fields)[place]
            raise TypeError(
                f"{NAME}: {name} is {weight.dtype}, word is {dtype}; allowed: one dtype; convert one of them"
            )
    if kind is Int8LayerWeights:
        check_float(NAME, "word", dtype)
        checks.layer_dtypes(NAME, ("word", word), TENSOR_NAMES, flat, tensor_dtypes(dtype))
    else:
        checks.layer_dtypes(NAME, ("word", word), LayerWeights._fields, flat, [dtype] * len(LayerWeights._fields))
    check_plan_dtypes(NAME, position_biases, dtype, batch.cu_seqlens, plan)


def _form(layers: Layers) -> int:
    """The op's number for the kind of the layers, of which a plan has at least one."""
    kind = type(layers[0])
    if kind not in FORMS or any(type(layer) is not kind for layer in layers):
        found = ", ".join(sorted({type(layer).__name__ for layer in layers}))
        raise TypeError(f"{NAME}: layers are {found}; allowed: one of {', '.join(form.__name__ for form in FORMS)}")
    return FORMS.index(kind)


def _one_by_one(
    batch: PackedBatch,
    plan: Plan,
    embedding: EmbeddingWeights,
    layers: Layers,
    head: HeadWeights,
    position_biases: Sequence[Tensor],
    activation: str,
    eps: float,
    scale: float | None,
) -> Tensor:
    x = embed_layer_norm(batch.input_ids, batch.position_ids, batch.token_type_ids, *embedding, eps=eps)
    encoder: Any = elastic_encoder_int8 if isinstance(layers[0], Int8LayerWeights) else elastic_encoder
    options = {"position_biases": position_biases, "activation": activation, "eps": eps, "scale": scale}
    y = encoder(x, layers, batch.cu_seqlens, plan, **options)
    return classification_head(y, batch.cu_seqlens, *head)
