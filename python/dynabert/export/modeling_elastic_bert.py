"""A BERT, RoBERTa or MPNet encoder whose layers have any number of heads and neurons, in plain PyTorch.

This file is complete: it needs torch and transformers (5.0 or later) and nothing else. dynabert-kernels writes it
beside a checkpoint (``dynabert export --format hf-remote``), and transformers reads it there:

    AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)

Weights have the names that transformers' own classes give them; only query, key, value and the FFN are narrower. The
sizes of each layer stand in the ``elastic`` block of ``config.json``. Licence: Apache-2.0.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

ARCHITECTURES = ("bert", "roberta", "mpnet")
ELASTIC_FORMAT = 1
IGNORED_LABEL = -100
MPNET_PADDING = 1  # MPNet counts positions from this id, whatever its configuration's pad_token_id

# MPNet's buckets of distances: below 8 each has its own, from there on one more at each of these. They are the borders
# of the logarithmic rule, written out: a logarithm that rounds otherwise on another device would move them.
BUCKETS = 32
EXACT_DISTANCES = 8
FAR_DISTANCES = (12, 16, 23, 32, 46, 64, 91)


def _activation(name: str, x: Tensor) -> Tensor:
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="none" if name == "gelu" else "tanh")


class ElasticBertConfig(PreTrainedConfig):
    """Configuration of an encoder whose layers differ in size.

    ``elastic``: ``architecture`` (bert, roberta or mpnet), ``head_dim``, ``layer_heads`` and ``layer_neurons`` (one
    number for each layer), ``relative_attention_heads`` (heads of MPNet's shared bias table) and, where an MPNet's
    heads stand elsewhere than in that table, ``head_orders`` (the place of each). Further entries are kept and not
    read. The other arguments mean what they mean in transformers' ``BertConfig``.
    """

    model_type = "elastic_bert"

    def __init__(
        self,
        elastic: dict[str, Any] | None = None,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        relative_attention_num_buckets: int = 0,
        classifier_dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        if elastic is None:  # transformers makes such a one to see which values differ from the defaults
            elastic = {
                "format": ELASTIC_FORMAT,
                "architecture": "bert",
                "head_dim": hidden_size // num_attention_heads,
                "layer_heads": [num_attention_heads] * num_hidden_layers,
                "layer_neurons": [intermediate_size] * num_hidden_layers,
                "relative_attention_heads": 0,
            }
        if elastic.get("format") != ELASTIC_FORMAT:
            raise ValueError(
                f"ElasticBertConfig: the elastic block has format {elastic.get('format')!r}; this file reads "
                f"{ELASTIC_FORMAT}; take the file that was written with the checkpoint"
            )
        if elastic["architecture"] not in ARCHITECTURES:
            raise ValueError(
                f"ElasticBertConfig: architecture is {elastic['architecture']!r}; allowed: {', '.join(ARCHITECTURES)}"
            )
        self.elastic = elastic
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = len(elastic["layer_heads"])
        self.num_attention_heads = max(elastic["layer_heads"])
        self.intermediate_size = max(elastic["layer_neurons"])
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.relative_attention_num_buckets = relative_attention_num_buckets
        self.classifier_dropout = classifier_dropout
        self.pad_token_id = kwargs.pop("pad_token_id", 0 if elastic["architecture"] == "bert" else 1)
        self.bos_token_id = kwargs.pop("bos_token_id", None)
        self.eos_token_id = kwargs.pop("eos_token_id", None)
        super().__init__(**kwargs)

    @property
    def is_mpnet(self) -> bool:
        """Whether scores get MPNet's relative position bias, and tensors MPNet's names."""
        return self.elastic["architecture"] == "mpnet"

    @property
    def padding_idx(self) -> int | None:
        """The padding token: no gradient in the word embeddings, and what RoBERTa and MPNet count positions from."""
        return MPNET_PADDING if self.is_mpnet else self.pad_token_id

    @property
    def position_start(self) -> int:
        """Position of padding in RoBERTa and MPNet; a text's first token stands one after it."""
        return self.padding_idx or 0

    @property
    def max_sequence_length(self) -> int:
        """The longest sequence, in tokens, that has positions."""
        offset = 0 if self.elastic["architecture"] == "bert" else self.position_start + 1
        return self.max_position_embeddings - offset


class _Embeddings(nn.Module):
    """Word, position and token type embeddings, and their LayerNorm."""

    def __init__(self, config: ElasticBertConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.padding_idx)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        if config.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """(B, S) ids to (B, S, C)."""
        config = self.config
        if position_ids is None:
            if config.elastic["architecture"] == "bert":
                position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
            else:  # padding does not count, so that padding on the left does not shift the text
                real = input_ids.ne(config.position_start).long()
                position_ids = real.cumsum(1) * real + config.position_start
        x = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        if config.type_vocab_size:
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(input_ids)
            x = x + self.token_type_embeddings(token_type_ids)
        elif token_type_ids is not None:
            raise ValueError(f"token_type_ids given, but {config.elastic['architecture']} has none; leave them out")
        return F.dropout(self.LayerNorm(x), config.hidden_dropout_prob, self.training)


class _Attention(nn.Module):
    """Self-attention with its residual and LayerNorm. ``heads`` of them, less than the hidden size has room for."""

    def __init__(self, config: ElasticBertConfig, heads: int) -> None:
        super().__init__()
        self.config = config
        self.heads, self.size = heads, int(config.elastic["head_dim"])
        width, inner = config.hidden_size, heads * self.size
        query, key, value = (nn.Linear(width, inner) for _ in range(3))
        out, norm = nn.Linear(inner, width), nn.LayerNorm(width, eps=config.layer_norm_eps)
        if config.is_mpnet:
            self.attn = nn.ModuleDict({"q": query, "k": key, "v": value, "o": out})
            self.LayerNorm = norm
        else:
            self.self = nn.ModuleDict({"query": query, "key": key, "value": value})
            self.output = nn.ModuleDict({"dense": out, "LayerNorm": norm})

    def _parts(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module, nn.Module]:
        if self.config.is_mpnet:
            return self.attn["q"], self.attn["k"], self.attn["v"], self.attn["o"], self.LayerNorm
        inner, out = self.self, self.output
        return inner["query"], inner["key"], inner["value"], out["dense"], out["LayerNorm"]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, C) to (B, S, C). ``mask``: added to the scores, (B or 1, heads or 1, S or 1, S)."""
        query, key, value, out, norm = self._parts()
        config, (rows, columns) = self.config, x.shape[:2]
        q, k, v = (part(x).view(rows, columns, self.heads, self.size).transpose(1, 2) for part in (query, key, value))
        p = config.attention_probs_dropout_prob if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        mixed = out(mixed.transpose(1, 2).reshape(rows, columns, self.heads * self.size))
        return norm(F.dropout(mixed, config.hidden_dropout_prob, self.training) + x)


class _Layer(nn.Module):
    """Attention and FFN."""

    def __init__(self, config: ElasticBertConfig, heads: int, neurons: int) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.attention = _Attention(config, heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, neurons)})
        self.output = nn.ModuleDict(
            {"dense": nn.Linear(neurons, width), "LayerNorm": nn.LayerNorm(width, eps=config.layer_norm_eps)}
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        x = self.attention(x, mask)
        inner = _activation(self.config.hidden_act, self.intermediate["dense"](x))
        inner = F.dropout(self.output["dense"](inner), self.config.hidden_dropout_prob, self.training)
        return self.output["LayerNorm"](inner + x)


class _Encoder(nn.Module):
    """The layers, and MPNet's relative position bias, which they share."""

    def __init__(self, config: ElasticBertConfig) -> None:
        super().__init__()
        self.config = config
        block = config.elastic
        sizes = zip(block["layer_heads"], block["layer_neurons"], strict=True)
        self.layer = nn.ModuleList(_Layer(config, heads, neurons) for heads, neurons in sizes)
        if config.is_mpnet:
            self.relative_attention_bias = nn.Embedding(BUCKETS, block["relative_attention_heads"])

    def position_bias(self, length: int, device: torch.device) -> Tensor:
        """(heads of the table, S, S): the bias of every query and key."""
        distance = torch.arange(length, device=device)[None, :] - torch.arange(length, device=device)[:, None]
        steps = distance.abs()
        bucket = steps.clamp(max=EXACT_DISTANCES)
        for border in FAR_DISTANCES:
            bucket = bucket + (steps >= border).long()
        bucket = bucket + (distance > 0).long() * (BUCKETS // 2)
        return self.relative_attention_bias(bucket).permute(2, 0, 1)

    def layer_bias(self, bias: Tensor, index: int) -> Tensor:
        """The part of the table's bias that a layer's heads have, (1, heads, S, S)."""
        orders, heads = self.config.elastic.get("head_orders"), self.config.elastic["layer_heads"][index]
        if orders is None:
            return bias[None, :heads]
        return bias.index_select(0, torch.tensor(orders[index], device=bias.device))[None]

    def forward(self, x: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
        """The input and the state after each layer, (B, S, C) each."""
        mask = bias = None
        if attention_mask is not None:  # not -inf: a row without any token would become NaN
            mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        if self.config.is_mpnet:
            bias = self.position_bias(x.shape[1], x.device)
        states = [x]
        for index, layer in enumerate(self.layer):
            added = mask
            if bias is not None:
                own = self.layer_bias(bias, index)
                added = own if mask is None else own + mask
            states.append(layer(states[-1], added))
        return states


class _Pooler(nn.Module):
    """BERT's pooler."""

    def __init__(self, config: ElasticBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        """(B, C) to (B, C)."""
        return torch.tanh(self.dense(first))


class _DenseHead(nn.Module):
    """The classification head of RoBERTa and MPNet."""

    def __init__(self, config: ElasticBertConfig, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels or 0)

    def forward(self, first: Tensor) -> Tensor:
        """(B, C) to (B, labels)."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(first)))))


class ElasticBertPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = ElasticBertConfig
    config: ElasticBertConfig
    base_model_prefix = "bert"
    _supports_sdpa = True
    _no_split_modules = ["_Layer", "_Embeddings"]  # noqa: RUF012

    def __init__(self, config: ElasticBertConfig) -> None:
        super().__init__(config)
        self.base_model_prefix = config.elastic["architecture"]  # names as in transformers' own classes


class ElasticBertModel(ElasticBertPreTrainedModel):
    """The encoder, with BERT's pooler."""

    def __init__(self, config: ElasticBertConfig) -> None:
        super().__init__(config)
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.pooler = _Pooler(config) if config.elastic["architecture"] == "bert" else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    def states_and_first(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
    ) -> tuple[list[Tensor], Tensor]:
        """The embedding output and each layer's, (B, S, C), and the last state of each first real token, (B, C)."""
        if input_ids is None:
            raise ValueError("input_ids are missing; inputs_embeds are not read")
        if not torch.jit.is_tracing() and not torch.compiler.is_compiling():
            longest = self.config.max_sequence_length
            if input_ids.shape[1] > longest and position_ids is None:
                raise ValueError(
                    f"input_ids has {input_ids.shape[1]} columns; the model has positions for {longest}; truncate"
                )
        states = self.encoder(self.embeddings(input_ids, token_type_ids, position_ids), attention_mask)
        last = states[-1]
        if attention_mask is None:
            return states, last[:, 0]
        # Padding on the left: column 0 is no token there. The first real one is.
        place = attention_mask.ne(0).int().argmax(1)
        return states, last.gather(1, place[:, None, None].expand(-1, 1, last.shape[2])).squeeze(1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """(B, S) ids and mask to ``last_hidden_state`` (B, S, C) and, in BERT, ``pooler_output`` (B, C)."""
        states, first = self.states_and_first(input_ids, attention_mask, token_type_ids, position_ids)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BaseModelOutputWithPooling(
            last_hidden_state=states[-1],  # type: ignore[arg-type]
            pooler_output=None if self.pooler is None else self.pooler(first),
            hidden_states=tuple(states) if wanted else None,  # type: ignore[arg-type]
        )
        return output if return_dict in (None, True) else output.to_tuple()


class ElasticBertForSequenceClassification(ElasticBertPreTrainedModel):
    """The encoder with a head on each sequence's first token: classes, several labels, or numbers."""

    def __init__(self, config: ElasticBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        p = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        # Under the architecture's name, so that tensors have plain names.
        self.add_module(self.base_model_prefix, ElasticBertModel(config))
        if config.elastic["architecture"] == "bert":
            self.dropout = nn.Dropout(p)
            self.classifier: nn.Module = nn.Linear(config.hidden_size, config.num_labels or 0)
        else:
            self.classifier = _DenseHead(config, p)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """(B, S) ids and mask to ``logits`` (B, labels), and with ``labels`` to their ``loss``.

        ``labels``: (B,) classes, of which -100 does not count; (B,) or (B, labels) numbers for regression; (B, labels)
        of 0 and 1 for several labels. Which loss: ``config.problem_type``; where that is None, one output is
        regression, integers are classes, and the rest is several labels.
        """
        encoder: Any = self.base_model
        states, first = encoder.states_and_first(input_ids, attention_mask, token_type_ids, position_ids)
        if encoder.pooler is not None:
            first = self.dropout(encoder.pooler(first))
        logits = self.classifier(first)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = SequenceClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),  # type: ignore[arg-type]
            logits=logits,
            hidden_states=tuple(states) if wanted else None,  # type: ignore[arg-type]
        )
        return output if return_dict in (None, True) else output.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind is None:
            integers = labels.dtype in (torch.int64, torch.int32)
            kind = "single_label_classification" if integers else "multi_label_classification"
            kind = "regression" if self.num_labels == 1 else kind
        scores = logits.float()
        if kind == "single_label_classification":
            return F.cross_entropy(scores, labels.view(-1).long(), ignore_index=IGNORED_LABEL)
        targets = labels.to(scores.dtype).view_as(scores)
        if kind == "regression":
            return F.mse_loss(scores, targets)
        return F.binary_cross_entropy_with_logits(scores, targets)
