"""Plain Hugging Face tensors to elastic ones and back.

A plain checkpoint keeps query, key and value as three ``(H*D, C)`` matrices; ours keeps them head by head. All other
tensors differ in name only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dynabert.configuration.elastic import ElasticBertConfig

_WEIGHT_AND_BIAS = ("weight", "bias")
_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight": "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.norm.weight": "embeddings.LayerNorm.weight",
    "embeddings.norm.bias": "embeddings.LayerNorm.bias",
}
_BERT_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
_LAYER = {
    "bert": _BERT_LAYER,
    "roberta": _BERT_LAYER,
    "mpnet": {
        **_BERT_LAYER,
        "query": "attention.attn.q",
        "key": "attention.attn.k",
        "value": "attention.attn.v",
        "attention": "attention.attn.o",
        "attention_norm": "attention.LayerNorm",
    },
}
_BIAS_TABLE = {"relative_position_bias.embedding.weight": "encoder.relative_attention_bias.weight"}
QKV = ("query", "key", "value")

# Buffers of old checkpoints that hold no weights.
_NO_WEIGHTS = ("embeddings.position_ids", "embeddings.token_type_ids")
# Old names of LayerNorm's weight and bias.
_OLD_ENDINGS = ((".gamma", ".weight"), (".beta", ".bias"))
# First parts of names that belong to other tasks' heads.
_OTHER_HEADS = ("cls", "lm_head", "qa_outputs")


@dataclass(frozen=True)
class Parts:
    """Which parts a model has besides the encoder."""

    pooler: bool
    head: bool


def _without_qkv(config: ElasticBertConfig) -> dict[str, str]:
    """Our name -> plain name (without prefix) of the encoder's tensors that are alike in both, but for the pooler."""
    names = dict(_EMBEDDINGS)
    if config.type_vocab_size == 0:
        del names["embeddings.token_type_embeddings.weight"]
    if config.has_relative_bias:
        names |= _BIAS_TABLE
    plain = _LAYER[config.architecture]
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"layers.{layer}", f"encoder.layer.{layer}"
        for end in _WEIGHT_AND_BIAS:
            for part in ("attention", "ffn_in", "ffn_out"):
                names[f"{ours}.{part}_{end}"] = f"{theirs}.{plain[part]}.{end}"
            for part in ("attention_norm", "ffn_norm"):
                names[f"{ours}.{part}.{end}"] = f"{theirs}.{plain[part]}.{end}"
    return names


def _pooler_names() -> dict[str, str]:
    return {f"pooler.dense.{end}": f"pooler.dense.{end}" for end in _WEIGHT_AND_BIAS}


def _head_names(config: ElasticBertConfig) -> dict[str, str]:
    if config.architecture == "bert":
        return {f"classifier.out_proj.{end}": f"classifier.{end}" for end in _WEIGHT_AND_BIAS}
    return {
        f"classifier.{part}.{end}": f"classifier.{part}.{end}"
        for part in ("dense", "out_proj")
        for end in _WEIGHT_AND_BIAS
    }


def encoder_prefix(parts: Parts) -> str:
    """What stands before the encoder's names in a model of ours: nothing in the bare one."""
    return "encoder." if parts.head else ""


def same_tensors(config: ElasticBertConfig, parts: Parts) -> dict[str, str]:
    """Our name -> plain name, both as they stand in a state dict, of every tensor but query, key and value."""
    ours, theirs = encoder_prefix(parts), f"{config.architecture}." if parts.head else ""
    encoder = _without_qkv(config) | (_pooler_names() if parts.pooler else {})
    names = {ours + name: theirs + plain for name, plain in encoder.items()}
    return names | (_head_names(config) if parts.head else {})


def qkv_tensors(config: ElasticBertConfig, parts: Parts) -> dict[str, tuple[str, str, str]]:
    """Our name -> the three plain names it is made of."""
    ours, theirs = encoder_prefix(parts), f"{config.architecture}." if parts.head else ""
    plain = _LAYER[config.architecture]
    names = {}
    for layer in range(config.num_hidden_layers):
        for end in _WEIGHT_AND_BIAS:
            query, key, value = (f"{theirs}encoder.layer.{layer}.{plain[part]}.{end}" for part in QKV)
            names[f"{ours}layers.{layer}.qkv_{end}"] = (query, key, value)
    return names


def plain_shapes(config: ElasticBertConfig, parts: Parts) -> dict[str, tuple[int, ...]]:
    """Plain name -> shape of every tensor that a plain checkpoint of this network holds."""
    width, labels = config.hidden_size, config.num_labels or 0
    shapes: dict[str, tuple[int, ...]] = {}
    same = same_tensors(config, parts)
    for ours, plain in same.items():
        name = ours.removeprefix(encoder_prefix(parts))
        end = name.rpartition(".")[2]
        if name.startswith("layers."):
            layer = int(name.split(".")[1])
            inner, neurons = config.layer_heads[layer] * config.head_dim, config.layer_neurons[layer]
            shapes[plain] = {
                "attention_weight": (width, inner),
                "ffn_in_weight": (neurons, width),
                "ffn_in_bias": (neurons,),
                "ffn_out_weight": (width, neurons),
            }.get(end, (width,))
        elif name.startswith("embeddings.") and "norm" not in name:
            table = name.split(".")[1]
            count = {
                "word_embeddings": config.vocab_size,
                "position_embeddings": config.max_position_embeddings,
                "token_type_embeddings": config.type_vocab_size,
            }[table]
            shapes[plain] = (count, width)
        elif name.startswith("relative_position_bias."):
            shapes[plain] = (config.relative_attention_num_buckets, config.relative_attention_heads)
        elif name.startswith("classifier.out_proj."):
            shapes[plain] = (labels, width) if end == "weight" else (labels,)
        elif name.endswith("dense.weight"):
            shapes[plain] = (width, width)
        else:
            shapes[plain] = (width,)
    for ours, triple in qkv_tensors(config, parts).items():
        layer = int(ours.removeprefix(encoder_prefix(parts)).split(".")[1])
        inner = config.layer_heads[layer] * config.head_dim
        for plain in triple:
            shapes[plain] = (inner, width) if ours.endswith("weight") else (inner,)
    return shapes


def head_names(config: ElasticBertConfig, parts: Parts) -> list[set[str]]:
    """Plain names of the parts that a checkpoint may lack and that are then fresh: pooler, classification head."""
    prefix = f"{config.architecture}." if parts.head else ""
    groups = []
    if parts.pooler:
        groups.append({prefix + plain for plain in _pooler_names().values()})
    if parts.head:
        groups.append(set(_head_names(config).values()))
    return groups


def canonical_names(
    names: Iterable[str], config: ElasticBertConfig, parts: Parts
) -> tuple[dict[str, str], list[str], list[str]]:
    """Sorts out the names a plain checkpoint uses, with or without the ``bert.`` (...) prefix, old or new.

    Returns the plain name in our sense -> the name in the file, for what may be ours; the names that belong to other
    heads, which are left out; and the names that are not known.
    """
    prefix = f"{config.architecture}."
    target = prefix if parts.head else ""
    found: dict[str, str] = {}
    others, unknown = [], []
    for name in names:
        bare = name.removeprefix(prefix)
        for old, new in _OLD_ENDINGS:
            if bare.endswith(old):
                bare = bare.removesuffix(old) + new
        first = bare.partition(".")[0]
        if bare in _NO_WEIGHTS:
            continue
        if first in ("embeddings", "encoder") or (first == "pooler" and parts.pooler):
            if target + bare in found:
                unknown.append(name)  # the same tensor twice, say with and without prefix: which one counts?
            found[target + bare] = name
        elif first == "classifier" and parts.head:
            found[bare] = name
        elif first in (*_OTHER_HEADS, "pooler", "classifier"):
            others.append(name)
        else:
            unknown.append(name)
    known = plain_shapes(config, parts)
    unknown += [name for plain, name in found.items() if plain not in known]
    return {plain: name for plain, name in found.items() if plain in known}, others, unknown


def is_plain(names: Iterable[str]) -> bool:
    """Whether these are names of a plain state dict: ours has no ``encoder.layer.``."""
    return any("encoder.layer." in name for name in names)


def to_elastic(tensors: Mapping[str, Tensor], config: ElasticBertConfig, parts: Parts) -> dict[str, Tensor]:
    """Our state dict, without the orders, from a plain one under the plain names. Query, key, value are copied."""
    result = {ours: tensors[plain] for ours, plain in same_tensors(config, parts).items() if plain in tensors}
    size = config.head_dim
    for ours, triple in qkv_tensors(config, parts).items():
        if not any(plain in tensors for plain in triple):
            continue
        parts_of_one = [tensors[plain].unflatten(0, (-1, size)) for plain in triple]
        result[ours] = torch.stack(parts_of_one, dim=1)
    return result


def to_plain(tensors: Mapping[str, Tensor], config: ElasticBertConfig, parts: Parts) -> dict[str, Tensor]:
    """A plain state dict from ours."""
    result = {plain: tensors[ours] for ours, plain in same_tensors(config, parts).items()}
    for ours, triple in qkv_tensors(config, parts).items():
        for plain, part in zip(triple, tensors[ours].unbind(1), strict=True):
            result[plain] = part.flatten(0, 1).contiguous()
    return result
