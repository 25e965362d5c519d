"""Weights in int8, quantised once and packed as the kernels read them.

A linear map's weight ``w``, (N, K), is cut along K into chunks. In each chunk every output has a scale of its own:
``q[o, i] = round(w[o, i] / scale[chunk, o])``, symmetric, from -127 to 127. A chunk is all of K where K is the hidden
size; a head, or ``NEURON_CHUNK`` neurons, where K is what a sub-network narrows. So the numbers of the leading heads
and neurons do not depend on those behind them, and every sub-network is a part of the one buffer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynabert_kernels.ops.elastic_encoder import LayerWeights, check_matrices

PANEL = 32  # outputs side by side
UNIT = 4  # inputs side by side: what one lane of a dot product of bytes takes
LARGEST = 127
# At the end of a chunk the integer sums become floats, which costs 7 % of the product at 128 and 14 % at 64 (counted in
# instructions); a quarter of BERT's neurons, or of MiniLM's, are whole chunks of 128.
NEURON_CHUNK = 128
# Beyond it the integer sums, of up to 255 * 127 an input, could leave 32 bits.
LONGEST_CHUNK = 65536


class Int8Linear(NamedTuple):
    """A linear map in int8.

    ``weight``: (panels, chunks, units, 32, 4) int8, output ``32 p + j`` and input ``4 u + e`` of a chunk at
    ``[p, chunk, u, j, e]``, 0 where there is no such output or input. ``scale``: (chunks, 32 * panels) float32.
    ``offset``: (chunks, 32 * panels) int32, -128 times the sum of the chunk's weights: kernels store activations 128
    too large, as unsigned bytes. ``bias``: the plain one.
    """

    weight: Tensor
    scale: Tensor
    offset: Tensor
    bias: Tensor


class Int8LayerWeights(NamedTuple):
    """One layer's weights in int8: what :func:`quantise_layer` makes of ``LayerWeights``.

    ``qkv``: from C to (H, 3, D), one chunk. ``attention``: from (H, D) to C, a chunk a head. ``ffn_in``: from C to F,
    one chunk. ``ffn_out``: from F to C, a chunk for 128 neurons. LayerNorms as in ``LayerWeights``, (C,).
    """

    qkv: Int8Linear
    attention: Int8Linear
    attention_norm_weight: Tensor
    attention_norm_bias: Tensor
    ffn_in: Int8Linear
    ffn_out: Int8Linear
    ffn_norm_weight: Tensor
    ffn_norm_bias: Tensor

    def tensors(self) -> list[Tensor]:
        """All twenty, in the order in which the op takes them."""
        norms, last = (self.attention_norm_weight, self.attention_norm_bias), (self.ffn_norm_weight, self.ffn_norm_bias)
        return [*self.qkv, *self.attention, *norms, *self.ffn_in, *self.ffn_out, *last]


def _linear_names(name: str) -> list[str]:
    return [f"{name}_{field}" for field in Int8Linear._fields]


TENSOR_NAMES = (
    *_linear_names("qkv"),
    *_linear_names("attention"),
    "attention_norm_weight",
    "attention_norm_bias",
    *_linear_names("ffn_in"),
    *_linear_names("ffn_out"),
    "ffn_norm_weight",
    "ffn_norm_bias",
)


def tensor_dtypes(dtype: torch.dtype) -> list[torch.dtype]:
    """Of a layer's twenty tensors beside data of ``dtype``."""
    linear, norm = [torch.int8, torch.float32, torch.int32, dtype], [dtype, dtype]
    return [*linear, *linear, *norm, *linear, *linear, *norm]


def _units(chunk: int) -> int:
    return -(-chunk // UNIT)


def pack_linear(weight: Tensor, bias: Tensor, chunk: int) -> Int8Linear:
    """``weight``, (N, K), with a scale for each output and run of ``chunk`` inputs."""
    outputs, inputs = weight.shape
    if not 1 <= chunk <= LONGEST_CHUNK:
        raise ValueError(f"quantise_layer: a sum over {chunk} inputs; allowed: 1 to {LONGEST_CHUNK}")
    panels, chunks, units = -(-outputs // PANEL), -(-inputs // chunk), _units(chunk)
    padded = weight.new_zeros(panels * PANEL, chunks * chunk, dtype=torch.float32)
    padded[:outputs, :inputs] = weight
    if not padded.isfinite().all():
        raise ValueError("quantise_layer: a weight is NaN or infinite; it cannot be quantised; mend the checkpoint")
    cut = padded.view(panels * PANEL, chunks, chunk)
    largest = cut.abs().amax(2)
    # A weight that is 0 throughout has scale 0, and stays 0.
    inverse = torch.where(largest > 0, torch.full_like(largest, LARGEST) / largest, torch.zeros_like(largest))
    inverse.clamp_(max=torch.finfo(torch.float32).max)  # a largest weight below 2^-121
    whole = torch.nn.functional.pad((cut * inverse[..., None]).round_(), (0, units * UNIT - chunk))
    whole = whole.clamp_(-LARGEST, LARGEST).to(torch.int8)
    packed = whole.view(panels, PANEL, chunks, units, UNIT).permute(0, 2, 3, 1, 4).contiguous()
    offset = -128 * whole.sum(2, dtype=torch.int32)
    return Int8Linear(packed, (largest / LARGEST).t().contiguous(), offset.t().contiguous(), bias.detach().clone())


def unpack_linear(weight: Tensor, chunk: int) -> Tensor:
    """(32 * panels, chunks, chunk) int8: the quantised numbers, a row an output."""
    panels, chunks, units = weight.shape[:3]
    return weight.permute(0, 3, 1, 2, 4).reshape(panels * PANEL, chunks, units * UNIT)[..., :chunk]


@torch.no_grad()
def quantise_layer(weights: LayerWeights, dtype: torch.dtype | None = None) -> Int8LayerWeights:
    """One layer's weights in int8, for :func:`elastic_encoder_int8`. Nothing of ``weights`` is kept or changed.

    ``weights``: shapes as in ``LayerWeights``, any floating dtype; quantise from float32 where there is a choice.
    ``dtype``: of biases and LayerNorms, which is the dtype that x will have; by default their own.

    Returns four linear maps, (N, K) as (panels, chunks, units, 32, 4) int8 with float32 scales, and the LayerNorms: a
    quarter of float32's bytes and 1 to 3 % for scales. Deterministic. Raises ``ValueError`` for a weight that is not
    finite, for a shape that does not fit, and for more than 65536 inputs.
    """

    def plain(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype=dtype or tensor.dtype, copy=True)

    check_matrices("quantise_layer", weights)
    heads, _, size, width = weights.qkv_weight.shape
    return Int8LayerWeights(
        qkv=pack_linear(weights.qkv_weight.reshape(heads * 3 * size, width), plain(weights.qkv_bias), width),
        attention=pack_linear(weights.attention_weight, plain(weights.attention_bias), size),
        attention_norm_weight=plain(weights.attention_norm_weight),
        attention_norm_bias=plain(weights.attention_norm_bias),
        ffn_in=pack_linear(weights.ffn_in_weight, plain(weights.ffn_in_bias), width),
        ffn_out=pack_linear(weights.ffn_out_weight, plain(weights.ffn_out_bias), NEURON_CHUNK),
        ffn_norm_weight=plain(weights.ffn_norm_weight),
        ffn_norm_bias=plain(weights.ffn_norm_bias),
    )
