"""The same random weights in every form that takes part: transformers' network, ours, and plain PyTorch at a width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynabert import ElasticBertConfig, ElasticBertForSequenceClassification
from dynabert_kernels import PackedBatch, SubnetShape

SEED = 0
SHAPES: dict[str, dict[str, int]] = {
    "base": {},  # transformers' default is BERT-base
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": {
        "vocab_size": 1200,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    },
}


class Networks(NamedTuple):
    """One set of weights: transformers' classifier, and ours over the same numbers."""

    plain: Any
    ours: ElasticBertForSequenceClassification


def make_networks(shape: str, device: torch.device, dtype: torch.dtype) -> Networks:
    """Random networks of a shape of `SHAPES`, in eval mode. Raises ``KeyError`` for another name."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(SEED)
    config = BertConfig(num_labels=2, **SHAPES[shape])  # type: ignore[arg-type]
    plain = BertForSequenceClassification._from_config(config, attn_implementation="sdpa").eval()
    nn.init.normal_(plain.classifier.weight)  # logits that are large beside what rounding does to them
    ours = ElasticBertForSequenceClassification(ElasticBertConfig.from_plain(plain.config))
    ours.load_state_dict(plain.state_dict())
    return Networks(plain.to(device, dtype), ours.to(device, dtype).eval())


class PlainSubnet(nn.Module):
    """A sub-network in plain PyTorch, over padded or packed tokens.

    ``copy``: True holds the sub-network's weights alone, as a pruned checkpoint does; False views of the whole
    network's.
    """

    def __init__(self, model: ElasticBertForSequenceClassification, shape: SubnetShape, *, copy: bool = True) -> None:
        super().__init__()
        self.size = model.config.hidden_size // model.config.num_attention_heads
        self.eps = model.config.layer_norm_eps
        kept = (lambda t: t.detach().clone(memory_format=torch.contiguous_format)) if copy else (lambda t: t.detach())
        encoder = model.encoder
        tables: Any = encoder.embeddings
        self.tables = [
            kept(tables.word_embeddings.weight),
            kept(tables.position_embeddings.weight),
            kept(tables.token_type_embeddings.weight[0]),
        ]
        self.norm = (kept(tables.norm.weight), kept(tables.norm.bias))
        self.layers: list[tuple[int, list[Tensor]]] = []
        for layer, heads, neurons in zip(encoder.elastic_layers, shape.heads, shape.neurons, strict=True):
            if heads == 0:
                continue
            w = layer.weights()
            first, second = w.qkv_weight[:heads].flatten(0, 2), w.attention_weight[:, : heads * self.size]
            own = [first, w.qkv_bias[:heads].flatten(), second, w.attention_bias, w.attention_norm_weight]
            own += [w.attention_norm_bias, w.ffn_in_weight[:neurons], w.ffn_in_bias[:neurons]]
            own += [w.ffn_out_weight[:, :neurons], w.ffn_out_bias, w.ffn_norm_weight, w.ffn_norm_bias]
            self.layers.append((heads, [kept(tensor) for tensor in own]))
        pooler: Any = encoder.pooler
        head: Any = model.classifier.out_proj
        self.head = [kept(t) for t in (pooler.dense.weight, pooler.dense.bias, head.weight, head.bias)]

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.tables[0][ids] + self.tables[1][positions] + self.tables[2]
        return F.layer_norm(x, x.shape[-1:], *self.norm, self.eps)

    def _answer(self, first: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(first, *self.head[:2])), *self.head[2:])

    def _layer(self, x: Tensor, context: Tensor, w: list[Tensor]) -> Tensor:
        x = F.layer_norm(x + F.linear(context, w[2], w[3]), x.shape[-1:], w[4], w[5], self.eps)
        inner = F.gelu(F.linear(x, w[6], w[7]))
        return F.layer_norm(x + F.linear(inner, w[8], w[9]), x.shape[-1:], w[10], w[11], self.eps)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, labels) from padded (B, S) ids. ``mask``: (B, 1, 1, S) bool, or None where nothing is padding."""
        x = self._embed(ids, torch.arange(ids.shape[1], device=ids.device))
        for heads, w in self.layers:
            q, k, v = F.linear(x, w[0], w[1]).unflatten(2, (heads, 3, self.size)).permute(3, 0, 2, 1, 4).unbind(0)
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
            x = self._layer(x, context, w)
        return self._answer(x[:, 0])

    def packed(self, batch: PackedBatch, lengths: Sequence[int]) -> Tensor:
        """(B, labels) from packed tokens."""
        x = self._embed(batch.input_ids, batch.position_ids)
        for heads, w in self.layers:
            q, k, v = F.linear(x, w[0], w[1]).unflatten(1, (heads, 3, self.size)).unbind(2)
            x = self._layer(x, packed_attention(q, k, v, batch, lengths).flatten(1), w)
        return self._answer(x.index_select(0, batch.cu_seqlens[:-1]))


def packed_attention(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, lengths: Sequence[int]) -> Tensor:
    """(T, H, D): PyTorch's own attention over packed tokens; on a CPU, where it has none, sequence by sequence."""
    if q.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        longest = batch.max_seqlen
        found = varlen_attn(q, k, v, batch.cu_seqlens, batch.cu_seqlens, longest, longest)
        return found if isinstance(found, Tensor) else found[0]
    parts = zip(*(t.split(list(lengths)) for t in (q, k, v)), strict=True)
    each = [F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in part)).transpose(0, 1) for part in parts]
    return torch.cat(each)


def padded(texts: Sequence[Sequence[int]], device: torch.device, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """(B, S) ids and mask, S the longest text rounded up to a multiple."""
    longest = -(-max(map(len, texts)) // multiple) * multiple
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    mask = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return ids.to(device), mask.to(device)


def operations(model: ElasticBertForSequenceClassification, shape: SubnetShape, lengths: Sequence[int]) -> float:
    """Of all matrix products of a forward pass, two for each multiply-add."""
    width, size = model.config.hidden_size, model.config.hidden_size // model.config.num_attention_heads
    tokens, pairs = sum(lengths), sum(n * n for n in lengths)
    total = 0.0
    for heads, neurons in zip(shape.heads, shape.neurons, strict=True):
        total += 2.0 * tokens * width * (4 * heads * size + 2 * neurons) + 4.0 * pairs * heads * size
    return total
