"""``elastic_encoder_int8``: every layer of an encoder in one call, with weights in int8, for inference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.layout import Plan
from dynabert_kernels.ops import checks
from dynabert_kernels.ops.elastic_encoder import check_batch, check_plan_dtypes
from dynabert_kernels.ops.int8_weights import TENSOR_NAMES, Int8LayerWeights, tensor_dtypes
from dynabert_kernels.ops.registration import define, needs_save

NAME = "elastic_encoder_int8"
DTYPES = (torch.float32, torch.bfloat16)


def _linear_fake(x: Tensor, *others: object) -> Tensor:
    n = others[5]
    assert isinstance(n, (int, torch.SymInt))
    return x.new_empty(x.shape[0], n)


# One product of the encoder by itself: in tests it shows that every provider has the same integers.
define(
    "int8_linear",
    "(Tensor x, Tensor weight, Tensor scale, Tensor offset, Tensor bias, int chunk, SymInt n, int k, int activation)"
    " -> Tensor",
    reference=reference.int8_linear,
    fake=_linear_fake,
)

_encoder = define(
    NAME,
    "(Tensor x, Tensor[] weights, Tensor[] position_biases, Tensor cu_seqlens, Tensor table, int num_groups,"
    " int[] max_heads, int[] max_neurons, int max_seqlen, float scale, float eps, int activation) -> Tensor",
    reference=reference.elastic_encoder_int8,
    fake=lambda x, *_: x.new_empty(x.shape),
)


def check_float(op: str, name: str, dtype: torch.dtype) -> None:
    """The float part is of a dtype that int8 weights run beside."""
    if dtype not in DTYPES:
        raise TypeError(f"{op}: {name} is {dtype}; allowed: float32, bfloat16")


def elastic_encoder_int8(
    x: Tensor,
    layers: Sequence[Int8LayerWeights],
    cu_seqlens: Tensor,
    plan: Plan,
    *,
    position_biases: Sequence[Tensor] = (),
    activation: str = "gelu",
    eps: float = 1e-12,
    scale: float | None = None,
) -> Tensor:
    """:func:`elastic_encoder` with its products in int8: weights from :func:`quantise_layer`, inputs quantised row by
    row over what is active of them.

    ``y[r, o] = (sum over chunks of (sum over i of q[r, i] w[o, i]) scale[chunk, o]) * s[r] + bias[o]``, with ``s[r]``
    the largest magnitude of the row's active inputs over 127 and ``q = round(x / s)``. The inner sums are exact
    integers, the same on every processor. Attention, activation, residuals and LayerNorm are computed as in
    :func:`elastic_encoder`, in x's dtype with sums in float32.

    ``x``: (T, C), the embedding output, float32 or bfloat16. ``layers``: one for each layer of the plan, biases and
    LayerNorms of x's dtype. ``cu_seqlens``: (B+1,) int32. ``position_biases``, ``activation``, ``eps``, ``scale``: as
    in :func:`elastic_encoder`.

    Returns (T, C) in x's dtype; rows past the last border are zero where a layer ran. Deterministic, whatever the
    number of threads. Does not synchronise. On a CPU with the native library it is one native call, with the dot
    product of bytes (AVX512-VNNI) where the processor has it; elsewhere plain PyTorch, which is slow.

    Raises ``RuntimeError`` where a gradient is wanted; ``ValueError`` on a shape, device or bound that does not fit,
    ``TypeError`` on a dtype.
    """
    check_float(NAME, "x", x.dtype)
    check_batch(NAME, x, layers, plan, position_biases)
    flat = [tensor for layer in layers for tensor in layer.tensors()]
    if torch.is_grad_enabled() and needs_save(x, *flat, *position_biases):  # looked at only where it may be
        raise RuntimeError(f"{NAME}: it has no backward; run it under torch.no_grad()")
    number = checks.activation_code(NAME, activation)
    if not flat:
        return x.clone()
    checks.layer_dtypes(NAME, ("x", x), TENSOR_NAMES, flat, tensor_dtypes(x.dtype))
    check_plan_dtypes(NAME, position_biases, x.dtype, cu_seqlens, plan)
    size = layers[0].qkv.bias.shape[2]
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
    )
