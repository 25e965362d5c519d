"""``elastic_encoder``: every layer of an encoder in one call, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.layout import Plan
from dynabert_kernels.layout.packed_weights import pack_matrix
from dynabert_kernels.ops import checks, providers
from dynabert_kernels.ops.elastic_attention import elastic_attention
from dynabert_kernels.ops.elastic_ffn import elastic_ffn
from dynabert_kernels.ops.registration import define, needs_save

NAME = "elastic_encoder"
PACK = "pack_layer"


class LayerWeights(NamedTuple):
    """One layer's weights, shapes as in :func:`elastic_attention` and :func:`elastic_ffn`.

    ``qkv_weight``: (H, 3, D, C), ``qkv_bias``: (H, 3, D), ``attention_weight``: (C, H*D), ``attention_bias``: (C,),
    ``ffn_in_weight``: (F, C), ``ffn_in_bias``: (F,), ``ffn_out_weight``: (C, F), ``ffn_out_bias``: (C,), and the two
    LayerNorms' weights and biases, (C,). ``H`` and ``F`` may differ between layers.
    """

    qkv_weight: Tensor
    qkv_bias: Tensor
    attention_weight: Tensor
    attention_bias: Tensor
    attention_norm_weight: Tensor
    attention_norm_bias: Tensor
    ffn_in_weight: Tensor
    ffn_in_bias: Tensor
    ffn_out_weight: Tensor
    ffn_out_bias: Tensor
    ffn_norm_weight: Tensor
    ffn_norm_bias: Tensor


class PackedLayerWeights(NamedTuple):
    """One layer's weights with the four matrices packed, as :func:`pack_layer` makes them.

    The fields are `LayerWeights`'. ``qkv_weight``, ``attention_weight``, ``ffn_in_weight`` and ``ffn_out_weight`` are
    (panels, units, panel, numbers), see ``dynabert_kernels.layout.packed_weights``; the others are as they were, and
    the two biases inside the layer tell ``H``, ``D`` and ``F``.
    """

    qkv_weight: Tensor
    qkv_bias: Tensor
    attention_weight: Tensor
    attention_bias: Tensor
    attention_norm_weight: Tensor
    attention_norm_bias: Tensor
    ffn_in_weight: Tensor
    ffn_in_bias: Tensor
    ffn_out_weight: Tensor
    ffn_out_bias: Tensor
    ffn_norm_weight: Tensor
    ffn_norm_bias: Tensor


def packed_panel(dtype: torch.dtype) -> int:
    """Outputs in a panel of packed weights of ``dtype`` on this processor, or 0 where such weights are not packed.

    They are packed in float32 with AVX2 or AVX-512 and in bfloat16 with AVX-512-BF16. The answer follows the
    instruction set in use (``DYNABERT_CPU_ISA``).
    """
    from dynabert_kernels.ops import NATIVE  # known once every schema is defined

    return 0 if NATIVE is None else int(NATIVE.packed_panel(str(dtype).removeprefix("torch.")))


def check_matrices(op: str, layer: LayerWeights) -> None:
    """The four matrices of plain weights fit together, and so do the biases that say H and F."""
    checks.shape(op, "qkv_weight", layer.qkv_weight, (None, 3, None, None), "(H, 3, D, C)")
    heads, _, size, width = layer.qkv_weight.shape
    checks.shape(op, "qkv_bias", layer.qkv_bias, (heads, 3, size), "(H, 3, D)")
    checks.shape(op, "attention_weight", layer.attention_weight, (width, heads * size), "(C, H*D)")
    checks.shape(op, "ffn_in_weight", layer.ffn_in_weight, (None, width), "(F, C)")
    neurons = layer.ffn_in_weight.shape[0]
    checks.shape(op, "ffn_in_bias", layer.ffn_in_bias, (neurons,), "(F,)")
    checks.shape(op, "ffn_out_weight", layer.ffn_out_weight, (width, neurons), "(C, F)")


def check_batch(op: str, x: Tensor, layers: Sequence[object], plan: Plan, position_biases: Sequence[Tensor]) -> None:
    """x, the layers and their biases belong to the plan."""
    checks.shape(op, "x", x, (None, None), "(T, C)")
    if len(layers) != plan.num_layers:
        raise ValueError(f"{op}: {len(layers)} layers given and the plan has {plan.num_layers}; allowed: as many")
    if position_biases and len(position_biases) != len(layers):
        raise ValueError(
            f"{op}: {len(position_biases)} position biases for {len(layers)} layers; allowed: one a layer, or none"
        )
    if plan.num_rows != x.shape[0]:
        raise ValueError(f"{op}: the plan has {plan.num_rows} rows and x {x.shape[0]}; build the plan for this batch")


def check_plan_dtypes(op: str, position_biases: Sequence[Tensor], of: torch.dtype, borders: Tensor, plan: Plan) -> None:
    """Biases have the data's dtype; the sequences' borders and the plan are int32."""
    for bias in position_biases:
        checks.dtype(op, "a position bias", bias, of)
    checks.dtype(op, "cu_seqlens", borders, torch.int32)
    checks.dtype(op, "the plan's table", plan.table, torch.int32)


def pack_layer(layer: LayerWeights) -> PackedLayerWeights:
    """A layer's matrices in the order in which the CPU's products read them: packed once, and not at every call.

    ``layer``: plain weights on the CPU, float32 or bfloat16, any strides. The result serves every width and takes as
    much memory; the plain weights may be dropped. It belongs to the instruction set in use now.

    Raises ``ValueError`` for weights that are not on the CPU, or a dtype that is not packed here (see
    :func:`packed_panel`), and on a shape that does not fit.
    """
    weight = layer.qkv_weight
    check_matrices(PACK, layer)
    width = weight.shape[3]
    if weight.device.type != "cpu":
        raise ValueError(
            f"{PACK}: the weights are on {weight.device}; allowed: the CPU; elsewhere use them as they are"
        )
    panel = packed_panel(weight.dtype)
    if panel == 0:
        raise ValueError(
            f"{PACK}: weights of {weight.dtype} are not packed on this machine (see packed_panel); use them as they are"
        )
    return PackedLayerWeights(*layer)._replace(
        qkv_weight=pack_matrix(weight.detach().reshape(-1, width), panel),
        attention_weight=pack_matrix(layer.attention_weight.detach(), panel),
        ffn_in_weight=pack_matrix(layer.ffn_in_weight.detach(), panel),
        ffn_out_weight=pack_matrix(layer.ffn_out_weight.detach(), panel),
    )


def _fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


_encoder = define(
    NAME,
    "(Tensor x, Tensor[] weights, Tensor[] position_biases, Tensor cu_seqlens, Tensor table, int num_groups,"
    " int[] max_heads, int[] max_neurons, int max_seqlen, float scale, float eps, int activation, bool packed)"
    " -> Tensor",
    reference=reference.elastic_encoder,
    fake=_fake,
)


def elastic_encoder(
    x: Tensor,
    layers: Sequence[LayerWeights] | Sequence[PackedLayerWeights],
    cu_seqlens: Tensor,
    plan: Plan,
    *,
    position_biases: Sequence[Tensor] = (),
    activation: str = "gelu",
    eps: float = 1e-12,
    scale: float | None = None,
) -> Tensor:
    """All layers of an encoder over each group's leading heads and neurons, for inference.

    The same as :func:`elastic_attention` and :func:`elastic_ffn` for each layer of ``plan`` in turn, without dropout.
    On a CPU with the native library the layers run in one native call, so a short text does not pay for Python between
    them; elsewhere they are launched one by one.

    ``x``: (T, C), the embedding output, float32, bfloat16, float16 or float64. ``layers``: one for each layer of the
    plan, all of x's dtype, plain or all of them packed (:func:`pack_layer`, on a CPU, which is faster the fewer
    the tokens). ``cu_seqlens``: (B+1,) int32. ``position_biases``: none, or for each layer its heads' bias, as in
    :func:`varlen_attention`. ``activation``, ``eps``, ``scale``: as in the two ops; the same in every layer.

    Returns (T, C) in x's dtype; rows past the last border are zero where a layer ran. No weight is copied.
    Deterministic, and bit for bit what the two ops give (packed bfloat16 weights with an odd number of active neurons
    or channels: within the dtype's rounding). Does not synchronise.

    Raises ``RuntimeError`` where a gradient is wanted; ``ValueError`` on a shape, device or bound that does not fit,
    ``TypeError`` on a dtype.
    """
    check_batch(NAME, x, layers, plan, position_biases)
    packed = bool(layers) and isinstance(layers[0], PackedLayerWeights)
    if any(isinstance(layer, PackedLayerWeights) != packed for layer in layers):
        raise TypeError(f"{NAME}: some layers are packed and some are not; allowed: all of them, or none")
    flat = [weight for layer in layers for weight in layer]
    if torch.is_grad_enabled() and needs_save(x, *flat, *position_biases):
        raise RuntimeError(f"{NAME}: it has no backward; run it under torch.no_grad(), or the layers' own ops")
    number = checks.activation_code(NAME, activation)
    forced = providers.forced_provider()
    here = x.device.type == "cpu" and (forced is None or providers.has(NAME, forced))
    if packed and not here:
        raise ValueError(
            f"{NAME}: packed weights run on the CPU by the native library or the reference; x is on {x.device}, and "
            f"the provider asked for is {forced}; use the plain weights"
        )
    if not packed and (not here or torch.compiler.is_compiling()):
        plain = cast("Sequence[LayerWeights]", layers)
        return _one_by_one(x, plain, cu_seqlens, plan, position_biases, activation, eps, scale)
    if not flat:
        return x.clone()
    checks.same(NAME, ("x", x), {})
    checks.layer_dtypes(NAME, ("x", x), LayerWeights._fields, flat, [x.dtype] * len(LayerWeights._fields))
    check_plan_dtypes(NAME, position_biases, x.dtype, cu_seqlens, plan)
    size = layers[0].qkv_bias.shape[2]
    return _encoder(
        x,
        flat,
        list(position_biases),
        cu_seqlens,
        plan.table,
        plan.num_groups,
        list(plan.max_heads),
        list(plan.max_neurons),
        plan.max_seqlen,
        size**-0.5 if scale is None else float(scale),
        float(eps),
        number,
        packed,
    )


def _one_by_one(
    x: Tensor,
    layers: Sequence[LayerWeights],
    cu_seqlens: Tensor,
    plan: Plan,
    position_biases: Sequence[Tensor],
    activation: str,
    eps: float,
    scale: float | None,
) -> Tensor:
    y = x
    for index, weights in enumerate(layers):
        layer = plan.layer(index)
        if layer.max_heads == 0 and layer.max_neurons == 0:
            continue
        bias = position_biases[index] if position_biases else None
        y = elastic_attention(
            y, *weights[:6], cu_seqlens, layer, max_seqlen=plan.max_seqlen, eps=eps, scale=scale, position_bias=bias
        )
        y = elastic_ffn(y, *weights[6:], layer, activation=activation, eps=eps)
    return x.clone() if y is x else y
