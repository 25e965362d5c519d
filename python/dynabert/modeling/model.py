"""The elastic models: one implementation of BERT, RoBERTa and MPNet, run at any width and depth in place.

The sub-network is an argument of the call. No module remembers one, so two threads may ask for two.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import gt
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

import dynabert_kernels as dk
from dynabert.configuration import Subnet
from dynabert.configuration.elastic import ElasticBertConfig
from dynabert.modeling.base import ElasticBertPreTrainedModel
from dynabert.modeling.encoder import (
    ElasticClassificationHead,
    ElasticEmbeddings,
    ElasticLayer,
    ElasticPooler,
    RelativePositionBias,
    served_weights,
)
from dynabert.modeling.inputs import PackedInputs, is_listed, pack_padded, say_once_of_autocast
from dynabert.modeling.loss import check_labels, classification_loss
from dynabert.modeling.names import Parts
from dynabert_kernels import PackedBatch, Plan


class ElasticBertModel(ElasticBertPreTrainedModel):
    """The encoder, with BERT's pooler or without.

    First door: ``model(input_ids, attention_mask, ...)``, padded tensors. Second door:
    ``model(batch=PackedBatch, plan=Plan)``, which never synchronises.
    """

    def __init__(self, config: PreTrainedConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        config = self.config
        self.embeddings = ElasticEmbeddings(config)
        self.layers = nn.ModuleList(ElasticLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.relative_position_bias = RelativePositionBias(config) if config.has_relative_bias else None
        self.pooler = ElasticPooler(config) if add_pooling_layer else None
        self.post_init()

    @property
    def parts(self) -> Parts:
        """Which parts the model has besides the encoder."""
        return Parts(pooler=self.pooler is not None, head=False)

    @property
    def elastic_encoder(self) -> ElasticBertModel:
        """The model itself."""
        return self

    @property
    def elastic_layers(self) -> list[ElasticLayer]:
        """The layers, first to last."""
        return list(self.layers)  # type: ignore[arg-type]

    def draw_dropout_state(self, head_dropout: float = 0.0) -> Tensor | None:
        """(2,) int64, seed and offset of this forward's dropout, from torch's default generator.

        None in eval mode, and where nothing is dropped: neither in the encoder nor in a head (``head_dropout``).
        """
        config = self.config
        if not self.training or not (config.hidden_dropout_prob or config.attention_probs_dropout_prob or head_dropout):
            return None
        return torch.randint(0, 2**63 - 1, (2,), dtype=torch.int64, device=self.device)

    def encode(
        self, batch: PackedBatch, plan: Plan, dropout_state: Tensor | None = None, keep_states: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The last hidden state of packed tokens, (T, C), and with ``keep_states`` the embedding output and the state
        after each layer that some group keeps. Neither draws nor checks anything."""
        x = self.embeddings(batch, plan, dropout_state)
        states = [x]
        bias = None if self.relative_position_bias is None else self.relative_position_bias(plan.max_seqlen)
        # Asked in this frame: a compiler that gives up here may still trace what is called from here.
        compiling = torch.compiler.is_compiling()
        if dropout_state is None and not (keep_states or torch.is_grad_enabled() or compiling or self._hooked_layers()):
            return self._infer(x, batch, plan, bias), None
        if compiling:
            for each in self.elastic_layers:
                each.check_traceable()
        for index, layer in enumerate(self.layers):
            layer_plan = plan.layer(index)
            if compiling and not keep_states:
                # Bounds of the whole layer hold for every plan, so that one graph serves all widths and depths; the
                # plan's own would each be a new graph where a layer is skipped. Costs buffer space, no work. A
                # skipped layer's weights then have a gradient of 0, not None.
                heads, neurons = self.config.layer_heads[index], self.config.layer_neurons[index]
                layer_plan = layer_plan._replace(max_heads=heads, max_neurons=neurons)
            elif layer_plan.max_heads == 0:
                continue
            x = layer(x, batch.cu_seqlens, layer_plan, plan.max_seqlen, bias, dropout_state)
            if keep_states:
                states.append(x)
        return x, tuple(states) if keep_states else None

    def _hooked_layers(self) -> bool:
        return any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.elastic_layers)

    def has_hooks(self) -> bool:
        """Whether somebody waits for a call of the embeddings or of a layer (hooks of their own, not global ones)."""
        embeddings = self.embeddings
        if embeddings._forward_hooks or embeddings._forward_pre_hooks:
            return True
        return self._hooked_layers()

    def _infer(self, x: Tensor, batch: PackedBatch, plan: Plan, bias: Tensor | None) -> Tensor:
        """The layers without dropout or gradient: one native call on a CPU."""
        layers = self.elastic_layers
        biases = [] if bias is None else [bias.t().index_select(0, layer.head_order) for layer in layers]
        if layers and layers[0].int8 is not None:
            return dk.elastic_encoder_int8(
                x,
                cast("list[dk.Int8LayerWeights]", [layer.int8 for layer in layers]),
                batch.cu_seqlens,
                plan,
                position_biases=biases,
                activation=self.config.activation,
                eps=self.config.layer_norm_eps,
            )
        return dk.elastic_encoder(
            x,
            cast("list[dk.LayerWeights]", served_weights(layers)),
            batch.cu_seqlens,
            plan,
            position_biases=biases,
            activation=self.config.activation,
            eps=self.config.layer_norm_eps,
        )

    def infer_logits(self, batch: PackedBatch, plan: Plan, head: dk.HeadWeights) -> Tensor:
        """(B, labels) in packed order, for inference: one native call on a CPU, where nobody sees the modules' own."""
        embeddings = self.embeddings
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self.has_hooks():
            x, _ = self.encode(batch, plan)
            return dk.classification_head(x, batch.cu_seqlens, *head)
        layers = self.elastic_layers
        bias = None if self.relative_position_bias is None else self.relative_position_bias(plan.max_seqlen)
        return dk.elastic_classifier(
            batch,
            plan,
            embeddings.weights(),
            served_weights(layers),  # type: ignore[arg-type]
            head,
            position_biases=[] if bias is None else [bias.t().index_select(0, layer.head_order) for layer in layers],
            activation=self.config.activation,
            eps=self.config.layer_norm_eps,
        )

    def check_packed(self, batch: PackedBatch, plan: Plan) -> None:
        """Raises ``ValueError`` (``TypeError``) when batch, plan and model do not belong together. Reads no tensor."""
        if not isinstance(batch, PackedBatch) or not isinstance(plan, Plan):
            raise TypeError(
                f"batch and plan must be a PackedBatch and a Plan; got {type(batch).__name__} and {type(plan).__name__}"
            )
        config = self.config
        if plan.num_layers != config.num_hidden_layers:
            raise ValueError(f"the plan has {plan.num_layers} layers, the model {config.num_hidden_layers}")
        if any(map(gt, plan.max_heads, config.layer_heads)) or any(map(gt, plan.max_neurons, config.layer_neurons)):
            asked = list(zip(plan.max_heads, plan.max_neurons, strict=True))
            there = list(zip(config.layer_heads, config.layer_neurons, strict=True))
            layer = next(i for i, (a, b) in enumerate(zip(asked, there, strict=True)) if a[0] > b[0] or a[1] > b[1])
            raise ValueError(
                f"the plan asks for {asked[layer][0]} heads and {asked[layer][1]} neurons in layer {layer}; the layer "
                f"has {there[layer][0]} and {there[layer][1]}"
            )
        if plan.num_rows != batch.input_ids.shape[0] or plan.max_seqlen < batch.max_seqlen:
            raise ValueError(
                f"the plan is for {plan.num_rows} rows and sequences up to {plan.max_seqlen}, the batch has "
                f"{batch.input_ids.shape[0]} and {batch.max_seqlen}; build both from the same sequences"
            )
        if plan.max_seqlen > config.max_sequence_length:
            raise ValueError(
                f"a sequence of {plan.max_seqlen} tokens is longer than the {config.max_sequence_length} positions of "
                "this model; truncate it"
            )
        for name, tensor in (("batch", batch.input_ids), ("plan", plan.table)):
            if tensor.device != self.device:
                raise ValueError(f"the {name} is on {tensor.device}, the model on {self.device}; put both on one")
        if batch.token_type_ids is not None and config.type_vocab_size == 0:
            raise ValueError(f"token_type_ids given, but {config.architecture} has no token types; leave them out")

    def run(
        self,
        packed: PackedInputs | None,
        batch: PackedBatch | None,
        plan: Plan | None,
        dropout_state: Tensor | None,
        keep_states: bool,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        """First tokens in the caller's order (B, C), last hidden state and states: padded where the input was."""
        if packed is not None:
            batch, plan = packed.batch, packed.plan
        elif batch is None or plan is None:
            raise ValueError("batch and plan belong together; give both, or input_ids")
        elif not torch.compiler.is_compiling():
            self.check_packed(batch, plan)
        if dropout_state is None:
            dropout_state = self.draw_dropout_state()
        if not torch.compiler.is_compiling() and torch.is_autocast_enabled(self.device.type):
            say_once_of_autocast(self.embeddings.word_embeddings.weight)
        x, states = self.encode(batch, plan, dropout_state, keep_states)
        first = x.index_select(0, batch.cu_seqlens[:-1])
        if batch.order is not None:
            first = torch.zeros_like(first).index_copy(0, batch.order, first)
        if packed is not None and states is not None:
            states = tuple(packed.padded(state) for state in states)
        return first, x, states

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        subnet: Subnet | Sequence[Subnet] = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        batch: PackedBatch | None = None,
        plan: Plan | None = None,
        dropout_state: Tensor | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Runs the encoder. Arguments, doors and errors as in :meth:`ElasticBertForSequenceClassification.forward`.

        Returns ``last_hidden_state``, (B, S, C) and zero at padding (packed, (T, C), through the second door);
        ``pooler_output`` (B, C) or None; ``hidden_states`` if asked for.
        """
        packed, keep_states = self.doors(
            input_ids, attention_mask, token_type_ids, position_ids, subnet, output_hidden_states, batch, plan
        )
        first, x, states = self.run(packed, batch, plan, dropout_state, keep_states)
        output = BaseModelOutputWithPooling(
            last_hidden_state=x if packed is None else packed.padded(x),  # type: ignore[arg-type]
            pooler_output=None if self.pooler is None else self.pooler(first),
            hidden_states=states,  # type: ignore[arg-type]
        )
        return self.returned(output, return_dict)

    def doors(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        subnet: Subnet | Sequence[Subnet],
        output_hidden_states: bool | None,
        batch: PackedBatch | None,
        plan: Plan | None,
    ) -> tuple[PackedInputs | None, bool]:
        """What came by the first door, packed, or None where batch and plan were given; and whether states are kept."""
        keep_states = _keep_states(self.config, output_hidden_states, subnet)
        if batch is None and plan is None:
            packed = pack_padded(
                self.config, input_ids, attention_mask, token_type_ids, position_ids, subnet, device=self.device
            )
            return packed, keep_states
        _only_packed(input_ids, attention_mask, token_type_ids, position_ids, subnet)
        return None, keep_states

    def returned(
        self, output: BaseModelOutputWithPooling, return_dict: bool | None
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """As a mapping or a tuple, whichever is asked for."""
        return output if _as_dict(self.config, return_dict) else output.to_tuple()


class ElasticBertForSequenceClassification(ElasticBertPreTrainedModel):
    """The encoder with a classification or regression head on each sequence's first token."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        if self.config.num_labels is None or self.config.num_labels < 1:
            raise ValueError(
                f"{type(self).__name__}: num_labels is {self.config.num_labels}; allowed: 1 or more; give num_labels"
            )
        self.num_labels = self.config.num_labels
        self.encoder = ElasticBertModel(self.config, add_pooling_layer=self.config.architecture == "bert")
        self.classifier = ElasticClassificationHead(self.config)
        self.post_init()

    @property
    def parts(self) -> Parts:
        """Which parts the model has besides the encoder."""
        return Parts(pooler=self.encoder.pooler is not None, head=True)

    @property
    def elastic_encoder(self) -> ElasticBertModel:
        """The encoder."""
        return self.encoder

    def draw_dropout_state(self) -> Tensor | None:
        """As the encoder's, for encoder and head."""
        return self.encoder.draw_dropout_state(self.classifier.dropout.p)

    def classify(self, first: Tensor, dropout_state: Tensor | None = None, num_groups: int = 1) -> Tensor:
        """(B, labels) logits from each sequence's first token, (B, C). Dropout as in the head's ``forward``."""
        pooler = self.encoder.pooler
        return self.classifier(first if pooler is None else pooler(first), dropout_state, num_groups)

    def packed_logits(self, batch: PackedBatch, plan: Plan) -> Tensor:
        """(B, labels) logits in the caller's order, for inference: the second door without losses, states, and an
        output to hold them, which a short text would notice. Hooks on the model and on its head are not called. Errors
        as in :meth:`forward`; ``RuntimeError`` in training mode, or where gradients are wanted."""
        if self.training:
            raise RuntimeError("packed_logits: the model is in training mode; call eval()")
        self.encoder.check_packed(batch, plan)
        pooler, head = self.encoder.pooler, self.classifier
        dense = head.dense if pooler is None else pooler.dense
        weights = dk.HeadWeights(
            None if dense is None else dense.weight,
            None if dense is None else dense.bias,
            head.out_proj.weight,
            head.out_proj.bias,
        )
        logits = self.encoder.infer_logits(batch, plan, weights)
        if batch.order is not None:
            logits = torch.empty_like(logits).index_copy(0, batch.order, logits)
        return logits

    def packed_outputs(self, batch: PackedBatch, plan: Plan) -> Tensor:
        """:meth:`packed_logits`, by the name that it has in every network that an engine serves."""
        return self.packed_logits(batch, plan)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        subnet: Subnet | Sequence[Subnet] = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        batch: PackedBatch | None = None,
        plan: Plan | None = None,
        dropout_state: Tensor | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Logits, and the loss where labels are given, of whole sequences at any sub-network.

        First door: ``input_ids`` (B, S) int64, ``attention_mask`` (B, S) of 0 and 1 (None: all tokens are real),
        ``token_type_ids``, ``position_ids`` (B, S). Padding may stand anywhere (in MPNet: before and after the text)
        and is not computed. ``subnet``: None for all of it, a ``SubnetConfig``, its text form or a ``SubnetShape``, or
        a list with one for each sequence, all run in one packed batch. Reads lengths and extremes of the ids back once:
        one synchronisation on a GPU.

        Second door: ``batch`` and ``plan``, already packed; the plan says the sub-networks. Never synchronises, and
        compiles with ``fullgraph=True``; so ids are not checked on a GPU.

        ``labels``: (B,) classes (-100 does not count), (B,) or (B, 1) numbers for one regression output, or (B,
        labels) floats; which loss is ``config.problem_type``, else transformers' rule. In the caller's order, as the
        logits are.
        ``output_hidden_states``: the embedding output, then one state for each kept layer; (B, S, C) and zero at
        padding, packed (T, C) through the second door (one for each layer that some group keeps).
        ``dropout_state``: (2,) int64, seed and offset, to repeat a draw; by default drawn from torch's default
        generator once a forward in training mode. The pooled token is each sequence's first real one.

        Raises ``ValueError`` and ``TypeError``, one clear message each, for ids outside the vocabulary, sequences
        longer than the positions, an empty batch, a sequence without a token, shapes, dtypes or devices that do not
        match, a list of another length than the batch, and hidden states asked for with a list.
        """
        keep_states = _keep_states(self.config, output_hidden_states, subnet)
        packed, kind = None, ""
        if batch is None and plan is None:
            if labels is not None and isinstance(input_ids, Tensor):
                kind = check_labels(self.config, labels, input_ids.shape[0] if input_ids.dim() else 0, self.device)
            packed = pack_padded(
                self.config,
                input_ids,
                attention_mask,
                token_type_ids,
                position_ids,
                subnet,
                device=self.device,
                class_labels=labels if kind == "single_label_classification" else None,
            )
        else:
            _only_packed(input_ids, attention_mask, token_type_ids, position_ids, subnet)
            if labels is not None and batch is not None:
                kind = check_labels(self.config, labels, batch.num_sequences, self.device)
        if dropout_state is None:
            dropout_state = self.draw_dropout_state()
        first, _, states = self.encoder.run(packed, batch, plan, dropout_state, keep_states)
        logits = self.classify(first, dropout_state)
        loss = None if labels is None else classification_loss(self.config, kind, logits, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=states)  # type: ignore[arg-type]
        return output if _as_dict(self.config, return_dict) else output.to_tuple()


def check_classifier(name: str, model: object) -> None:
    """``TypeError`` that begins with ``name`` where a model is no `ElasticBertForSequenceClassification`."""
    if not isinstance(model, ElasticBertForSequenceClassification):
        raise TypeError(
            f"{name}: model must be an ElasticBertForSequenceClassification; got {type(model).__name__}; open the "
            "checkpoint with ElasticBertForSequenceClassification.from_pretrained"
        )


def _keep_states(config: ElasticBertConfig, asked: bool | None, subnet: Subnet | Sequence[Subnet]) -> bool:
    keep = bool(config.output_hidden_states) if asked is None else asked
    if keep and is_listed(subnet):
        raise ValueError(
            "output_hidden_states with a list of sub-networks: sequences may keep different layers; "
            "give one sub-network, or leave hidden states out"
        )
    return keep


def _as_dict(config: ElasticBertConfig, asked: bool | None) -> bool:
    return bool(getattr(config, "return_dict", True)) if asked is None else asked


def _only_packed(*others: Any) -> None:
    if any(other is not None for other in others):
        raise ValueError("batch and plan already say tokens and sub-networks; give them alone, or input_ids instead")


AutoModel.register(ElasticBertConfig, ElasticBertModel)
AutoModelForSequenceClassification.register(ElasticBertConfig, ElasticBertForSequenceClassification)
