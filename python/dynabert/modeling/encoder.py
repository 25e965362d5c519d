"""The modules of an elastic network. They hold weights; which part of them runs is the plan's business.

``H``, ``F`` differ between layers in general. Query, key and value are stored head by head, ``[H, 3, D, C]``, so that
the leading heads are one contiguous block.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

import dynabert_kernels as dk
from dynabert.configuration.elastic import ElasticBertConfig
from dynabert_kernels import LayerPlan, PackedBatch, Plan
from dynabert_kernels.ops.elastic_encoder import check_matrices
from dynabert_kernels.reference.dropout import dropout_scale

BIAS_ROUNDING = 64  # the relative bias table covers max_seqlen rounded up to this
MAX_DISTANCE = 128  # farther apart than this, all distances share a bucket

# Dropout streams: 0 for the embeddings, then three a layer (attention takes its own and the next for its output), then
# two for the classification head.
STREAMS_PER_LAYER = 3

PACKING = threading.Lock()  # held while a model's layers are packed, one after the other


def attention_stream(layer: int) -> int:
    """Dropout stream of a layer's attention probabilities; its output takes the next one."""
    return STREAMS_PER_LAYER * layer + 1


def ffn_stream(layer: int) -> int:
    """Dropout stream of a layer's FFN output."""
    return STREAMS_PER_LAYER * layer + 3


def relative_position_buckets(longest: int, buckets: int, max_distance: int = MAX_DISTANCE) -> Tensor:
    """(2*longest - 1,) int64: the bucket of every distance ``j - i`` from ``-(longest - 1)`` to ``longest - 1``.

    Half of the buckets serve keys that stand after the query. In each half, distances below half of it have a bucket
    of their own; farther ones share buckets of logarithmic width up to ``max_distance``, and the last takes the rest
    (T5, Raffel et al., arXiv 1910.10683, section 2.1; MPNet uses the same). In float32, as transformers computes it:
    a distance on a bucket's border must fall on the same side.
    """
    distance = torch.arange(1 - longest, longest, device="cpu")
    half = buckets // 2
    exact = half // 2
    steps = distance.abs()
    logarithmic = torch.log(steps.clamp(min=exact).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + logarithmic.to(torch.int64)).clamp(max=half - 1)
    return torch.where(steps < exact, steps, far) + half * (distance > 0)


def _own(module: nn.Module, name: str) -> Tensor:
    """A weight of a module. Its dictionary first: this runs for every weight at every call, and ``nn.Module``'s
    attributes cost ten times as much; they know a weight that is computed (``torch.nn.utils.parametrize``)."""
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found


_MATRICES = ("qkv_weight", "attention_weight", "ffn_in_weight", "ffn_out_weight")


def _refuse_packed(*_: object) -> None:
    raise RuntimeError(
        "this model's weights are packed for inference and cannot be saved, copied out or rewired; load the checkpoint "
        "anew with pack_weights=False"
    )


def _refuse_int8(*_: object) -> None:
    raise RuntimeError(
        "this model's weights are in int8 for inference and cannot be saved, copied out or rewired; load the "
        "checkpoint anew in another dtype"
    )


class ElasticEmbeddings(nn.Module):
    """The embedding tables and their LayerNorm. ``token_type_embeddings`` is None where there are no token types."""

    def __init__(self, config: ElasticBertConfig) -> None:
        super().__init__()
        self.config = config
        padding = config.padding_idx if config.padding_idx >= 0 else None
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=padding)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        types = config.type_vocab_size
        self.token_type_embeddings = nn.Embedding(types, config.hidden_size) if types > 0 else None
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def weights(self) -> dk.EmbeddingWeights:
        """All of them, as `dynabert_kernels.elastic_classifier` takes them."""
        parts: Any = self._modules
        types = self.token_type_embeddings
        return dk.EmbeddingWeights(
            _own(parts["word_embeddings"], "weight"),
            _own(parts["position_embeddings"], "weight"),
            None if types is None else _own(types, "weight"),
            _own(parts["norm"], "weight"),
            _own(parts["norm"], "bias"),
        )

    def forward(self, batch: PackedBatch, plan: Plan, dropout_state: Tensor | None) -> Tensor:
        """(T, C) for packed tokens."""
        types = self.token_type_embeddings
        return dk.embed_layer_norm(
            batch.input_ids,
            batch.position_ids,
            batch.token_type_ids,
            self.word_embeddings.weight,
            self.position_embeddings.weight,
            None if types is None else types.weight,
            self.norm.weight,
            self.norm.bias,
            eps=self.norm.eps,
            padding_idx=self.config.padding_idx,
            rows=plan.rows,
            dropout_p=0.0 if dropout_state is None else self.config.hidden_dropout_prob,
            dropout_state=dropout_state,
        )


class ElasticLayer(nn.Module):
    """One layer's weights: attention and FFN with their LayerNorms.

    ``head_order``, ``neuron_order``: the place that each head and neuron had before any rewiring. They travel with the
    weights: MPNet's shared relative bias is looked up through ``head_order``.
    """

    head_order: Tensor
    neuron_order: Tensor
    packed: bool  # whether the four matrices were packed for inference, and the plain ones are gone
    packed_weights: dk.PackedLayerWeights | None  # all of them then; its tensors are the layer's buffers and parameters
    int8: dk.Int8LayerWeights | None  # the same in int8; its tensors are the layer's buffers and parameters

    def __init__(self, config: ElasticBertConfig, index: int) -> None:
        super().__init__()
        self.packed = False
        self.packed_weights = None
        self.int8 = None
        self.config = config
        self.index = index
        heads, neurons = config.layer_heads[index], config.layer_neurons[index]
        size, width = config.head_dim, config.hidden_size
        self.qkv_weight = nn.Parameter(torch.empty(heads, 3, size, width))
        self.qkv_bias = nn.Parameter(torch.empty(heads, 3, size))
        self.attention_weight = nn.Parameter(torch.empty(width, heads * size))
        self.attention_bias = nn.Parameter(torch.empty(width))
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.ffn_in_weight = nn.Parameter(torch.empty(neurons, width))
        self.ffn_in_bias = nn.Parameter(torch.empty(neurons))
        self.ffn_out_weight = nn.Parameter(torch.empty(width, neurons))
        self.ffn_out_bias = nn.Parameter(torch.empty(width))
        self.ffn_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        # On the CPU also where the model is built on the meta device: these are facts, not weights to be loaded.
        self.register_buffer("head_order", torch.arange(heads, device="cpu"))
        self.register_buffer("neuron_order", torch.arange(neurons, device="cpu"))

    def reset(self, std: float) -> None:
        """Fresh weights: normal with deviation ``std``, biases 0, LayerNorms 1 and 0."""
        for weight in (self.qkv_weight, self.attention_weight, self.ffn_in_weight, self.ffn_out_weight):
            nn.init.normal_(weight, mean=0.0, std=std)
        for bias in (self.qkv_bias, self.attention_bias, self.ffn_in_bias, self.ffn_out_bias):
            nn.init.zeros_(bias)

    def pack_weights(self) -> None:
        """Replaces the four matrices by packed ones (`dynabert_kernels.pack_layer`), which serve inference only.

        Afterwards the layer has no plain weights: it does not train, is not saved, and gives no state of its own.
        """
        if self.packed:
            return
        packed = dk.pack_layer(cast("dk.LayerWeights", self.weights()))
        self.packed, self.packed_weights = True, packed  # first: from here on weights() gives these to other threads
        for name in _MATRICES:
            delattr(self, name)
            self.register_buffer(name, getattr(packed, name), persistent=False)
        self.register_state_dict_pre_hook(_refuse_packed)

    def quantise_weights(self, dtype: torch.dtype) -> None:
        """Replaces the four matrices by int8 ones (`dynabert_kernels.quantise_layer`), as :meth:`pack_weights` does.

        Biases and LayerNorms are converted to ``dtype``, in which the layer's float part then runs.
        """
        made = dk.quantise_layer(cast("dk.LayerWeights", self.weights()), dtype)
        for name in _MATRICES:
            delattr(self, name)
        self.to(dtype)
        parts = {}
        for name in ("qkv", "attention", "ffn_in", "ffn_out"):
            linear: dk.Int8Linear = getattr(made, name)
            for field in ("weight", "scale", "offset"):
                self.register_buffer(f"{name}_{field}", getattr(linear, field), persistent=False)
            parts[name] = linear._replace(bias=getattr(self, f"{name}_bias"))
        self.int8 = dk.Int8LayerWeights(
            **parts,
            attention_norm_weight=self.attention_norm.weight,
            attention_norm_bias=self.attention_norm.bias,
            ffn_norm_weight=self.ffn_norm.weight,
            ffn_norm_bias=self.ffn_norm.bias,
        )
        self.packed = True
        self.register_state_dict_pre_hook(_refuse_int8)

    def check_replaceable(self, op: str, dtype: torch.dtype | None = None) -> None:
        """Raises ``ValueError`` where the four matrices cannot be packed or quantised, before any layer is changed.

        ``dtype``: the one that they must have. None: any, but every number must be finite in float32.
        """
        check_matrices(f"{op}: layer {self.index}", cast("dk.LayerWeights", self.weights()))
        for name in _MATRICES:
            matrix: Tensor = getattr(self, name)
            if matrix.device.type != "cpu":
                raise ValueError(
                    f"{op}: {name} of layer {self.index} is on {matrix.device}; allowed: the CPU; load the model there"
                )
            if dtype is not None and matrix.dtype != dtype:
                raise ValueError(
                    f"{op}: {name} of layer {self.index} is {matrix.dtype}, the model is {dtype}; allowed: one dtype; "
                    "convert one of them"
                )
            if dtype is None and not matrix.detach().float().isfinite().all():
                raise ValueError(
                    f"{op}: {name} of layer {self.index} holds NaN or infinity; allowed: finite numbers; mend the "
                    "checkpoint"
                )

    def check_movable(self) -> None:
        """Raises ``RuntimeError`` where the weights are packed or in int8: that is for one dtype on the CPU."""
        if self.packed:
            kind = "packed" if self.int8 is None else "in int8"
            raise RuntimeError(
                f"this model's weights are {kind} for inference and cannot be moved or converted; load the checkpoint "
                "anew where and in what it is to run"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.check_movable()
        return super()._apply(fn, recurse)

    def check_loadable(self) -> None:
        """Raises ``RuntimeError`` where the weights are packed or in int8: plain ones have no place there."""
        if self.packed:
            kind, how = ("packed", "pack") if self.int8 is None else ("in int8", "quantise")
            raise RuntimeError(
                f"this model's weights are {kind} for inference and no others can be loaded into it; load them into a "
                f"plain model, and {how} that one"
            )

    def _load_from_state_dict(self, *given: Any, **named: Any) -> None:
        self.check_loadable()
        super()._load_from_state_dict(*given, **named)

    def weights(self) -> dk.LayerWeights | dk.PackedLayerWeights:
        """All of them, as `dynabert_kernels.elastic_encoder` takes them; also while another thread packs them."""
        if self.packed_weights is None:
            try:
                plain = self._plain_weights()
            except AttributeError:
                if self.packed_weights is None:
                    raise
        # Asked again: a matrix that was taken out meanwhile is missing, or there in its packed form.
        return plain if self.packed_weights is None else self.packed_weights

    def _plain_weights(self) -> dk.LayerWeights:
        first: Any = self._modules["attention_norm"]
        second: Any = self._modules["ffn_norm"]
        weights = [_own(self, name) for name in ("qkv_weight", "qkv_bias", "attention_weight", "attention_bias")]
        weights += (_own(first, "weight"), _own(first, "bias"))
        weights += [_own(self, name) for name in ("ffn_in_weight", "ffn_in_bias", "ffn_out_weight", "ffn_out_bias")]
        weights += (_own(second, "weight"), _own(second, "bias"))
        return dk.LayerWeights(*weights)

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        layer: LayerPlan,
        max_seqlen: int,
        position_bias: Tensor | None,
        dropout_state: Tensor | None,
    ) -> Tensor:
        """(T, C) to (T, C). ``position_bias``: (2R-1, relative_attention_heads), the table in the original order."""
        if self.packed:
            self._refuse_call()
        x = self.attend(x, cu_seqlens, layer, max_seqlen, position_bias, dropout_state)
        return self.feed_forward(x, layer, dropout_state)

    def check_traceable(self) -> None:
        """Raises ``RuntimeError`` where the weights are packed or in int8: a compiler would trace the layer's call."""
        if self.packed:
            kind, way = self._kind_and_way()
            raise RuntimeError(
                f"this model's weights are {kind} for inference and cannot be compiled; call the model without "
                f"torch.compile, or load it anew {way}"
            )

    def _kind_and_way(self) -> tuple[str, str]:
        """What the weights are, and how to load them otherwise."""
        return ("packed", "with pack_weights=False") if self.int8 is None else ("in int8", "in another dtype")

    def _refuse_call(self) -> None:
        kind, way = self._kind_and_way()
        raise RuntimeError(
            f"this model's weights are {kind} for inference: it computes no gradients, no state of each layer and "
            f"calls no hooks on layers; run it under torch.inference_mode(), or load it anew {way}"
        )

    def attend(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        layer: LayerPlan,
        max_seqlen: int,
        position_bias: Tensor | None,
        dropout_state: Tensor | None,
    ) -> Tensor:
        """The layer's first half: attention, residual and LayerNorm. Arguments as in :meth:`forward`."""
        config, dropping = self.config, dropout_state is not None
        if position_bias is not None:
            position_bias = position_bias.t().index_select(0, self.head_order)
        return dk.elastic_attention(
            x,
            self.qkv_weight,
            self.qkv_bias,
            self.attention_weight,
            self.attention_bias,
            self.attention_norm.weight,
            self.attention_norm.bias,
            cu_seqlens,
            layer,
            max_seqlen=max_seqlen,
            eps=self.attention_norm.eps,
            position_bias=position_bias,
            attention_dropout=config.attention_probs_dropout_prob if dropping else 0.0,
            hidden_dropout=config.hidden_dropout_prob if dropping else 0.0,
            dropout_state=dropout_state,
            dropout_stream=attention_stream(self.index),
        )

    def feed_forward(self, x: Tensor, layer: LayerPlan, dropout_state: Tensor | None) -> Tensor:
        """The layer's second half: FFN, residual and LayerNorm. Arguments as in :meth:`forward`."""
        config = self.config
        return dk.elastic_ffn(
            x,
            self.ffn_in_weight,
            self.ffn_in_bias,
            self.ffn_out_weight,
            self.ffn_out_bias,
            self.ffn_norm.weight,
            self.ffn_norm.bias,
            layer,
            activation=config.activation,
            eps=self.ffn_norm.eps,
            hidden_dropout=0.0 if dropout_state is None else config.hidden_dropout_prob,
            dropout_state=dropout_state,
            dropout_stream=ffn_stream(self.index),
        )


def served_weights(
    layers: Sequence[ElasticLayer],
) -> list[dk.LayerWeights | dk.PackedLayerWeights | dk.Int8LayerWeights]:
    """The weights of all layers, of one kind: where another thread is packing them, this waits for its end.

    They are packed from the last layer to the first and read from the first to the last, so a half packed model shows
    in these two.
    """
    found = [layer.weights() if layer.int8 is None else layer.int8 for layer in layers]
    if found and type(found[0]) is not type(found[-1]):
        with PACKING:
            found = [layer.weights() if layer.int8 is None else layer.int8 for layer in layers]
    return found


class RelativePositionBias(nn.Module):
    """MPNet's bias on the scores: one number for each head and bucket of distances, shared by all layers."""

    buckets: Tensor

    def __init__(self, config: ElasticBertConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.relative_attention_num_buckets, config.relative_attention_heads)
        self.longest = config.max_sequence_length
        table = relative_position_buckets(self.longest, config.relative_attention_num_buckets)
        self.register_buffer("buckets", table, persistent=False)

    def forward(self, max_seqlen: int) -> Tensor:
        """(2R-1, heads): row ``j - i + R - 1`` is the bias of distance ``j - i``.

        R is ``max_seqlen`` rounded up to a multiple of 64, so that few table sizes occur, but not past the longest
        sequence.
        """
        reach = min(self.longest, -(-max_seqlen // BIAS_ROUNDING) * BIAS_ROUNDING)
        return self.embedding.weight[self.buckets[self.longest - reach : self.longest + reach - 1]]


class ElasticPooler(nn.Module):
    """BERT's pooler: dense and tanh on the first token."""

    def __init__(self, config: ElasticBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        """(B, C) to (B, C)."""
        return torch.tanh(self.dense(first))


class ElasticClassificationHead(nn.Module):
    """From the first token, (B, C), to logits, (B, labels).

    BERT: dropout and a linear map of the pooled token. RoBERTa, MPNet: dropout, dense, tanh, dropout, linear.
    """

    stream: int

    def __init__(self, config: ElasticBertConfig) -> None:
        super().__init__()
        p = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if p is None else p)
        pooled = config.architecture == "bert"
        self.dense = None if pooled else nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels or 0)
        self.stream = STREAMS_PER_LAYER * config.num_hidden_layers + 1

    def forward(self, x: Tensor, dropout_state: Tensor | None = None, num_groups: int = 1) -> Tensor:
        """(B, C) to (B, labels).

        ``dropout_state``: seed and offset of the forward pass; None: nothing is dropped, whatever the mode.
        ``num_groups``: so many equal runs of rows are one group each, with the mask it has alone.
        """
        x = self._dropped(x, dropout_state, 0, num_groups)
        if self.dense is not None:
            x = self._dropped(torch.tanh(self.dense(x)), dropout_state, 1, num_groups)
        return self.out_proj(x)

    def _dropped(self, x: Tensor, state: Tensor | None, index: int, num_groups: int) -> Tensor:
        if state is None:
            return x
        size = x.shape[0] // num_groups
        factors = [
            dropout_scale(
                state,
                self.dropout.p,
                stream=self.stream + index,
                group=group,
                rows=range(size),
                columns=x.shape[1],
                heads=1,
                like=x,
            )
            for group in range(num_groups)
        ]
        parts = [factor[0] for factor in factors if factor is not None]
        return x * torch.cat(parts) if parts else x
