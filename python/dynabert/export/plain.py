"""The plain form: a sub-network as transformers' own BERT, RoBERTa or MPNet, with zero weights where one is narrower.

A plain class has ``hidden_size / head_dim`` heads in every layer and equally many neurons. A sub-network cut in depth
and in neurons alone fits as it is. One with fewer heads, or with layers of different sizes, fits when it is padded: a
head or neuron whose weights and biases are all zero adds exactly zero, and gets no gradient either (its inner weights
are multiplied by its outer ones, which are zero, and the other way round), so that it stays zero in training. It costs
what a real one costs.

MPNet's bias is shared by all layers: a rewired network's heads are put back to their places in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from dynabert.configuration.elastic import ElasticBertConfig
from dynabert.export.kinds import Exported, is_embedder
from dynabert.modeling.names import qkv_tensors, same_tensors, to_plain
from dynabert_kernels import SubnetShape

_STEMS = {"bert": "Bert", "roberta": "Roberta", "mpnet": "MPNet"}


def class_name(model: Exported) -> str:
    """transformers' own class of this architecture: the classifier, or for an embedder the network alone."""
    return f"{_STEMS[model.config.architecture]}{'Model' if is_embedder(model) else 'ForSequenceClassification'}"


class PlainForm(NamedTuple):
    """A plain configuration and its tensors; ``sizes``: the same network as an elastic configuration."""

    config: PreTrainedConfig
    tensors: dict[str, Tensor]
    sizes: ElasticBertConfig


def room_for_heads(config: ElasticBertConfig, others: str = "hf-remote, onnx, elastic") -> int:
    """How many heads a plain class gives each layer of this hidden and head size. ``others``: formats that need none.

    Raises ``ValueError`` where that is not a whole number, or MPNet's bias table has another number of heads.
    """
    heads, rest = divmod(config.hidden_size, config.head_dim)
    if rest or (config.has_relative_bias and config.relative_attention_heads != heads):
        raise ValueError(
            f"export: no plain {config.architecture} has heads of {config.head_dim} at a hidden size of "
            f"{config.hidden_size}; allowed formats for this network: {others}"
        )
    return heads


def obstacle(config: ElasticBertConfig, shape: SubnetShape) -> str | None:
    """Why a plain class cannot hold this sub-network as it is; None when it can."""
    heads = room_for_heads(config)
    kept = [shape.heads[layer] for layer in shape.kept_layers]
    neurons = {shape.neurons[layer] for layer in shape.kept_layers}
    if min(kept) < heads:
        few = sum(count < heads for count in kept)
        where = "every layer has" if few == len(kept) else f"{few} of {len(kept)} layers have"
        return f"{where} fewer than {heads} heads, which a plain {config.architecture} cannot have"
    if len(neurons) > 1:
        return f"its layers have different numbers of neurons ({min(neurons)} to {max(neurons)})"
    return None


def nearest_plain(config: ElasticBertConfig, shape: SubnetShape) -> str:
    """The smallest sub-network around ``shape`` that a plain class holds as it is: all heads, the most neurons. Empty
    where the network itself has too few heads."""
    heads, kept = room_for_heads(config), shape.kept_layers
    most = max(shape.neurons)
    if any(config.layer_heads[layer] < heads or config.layer_neurons[layer] < most for layer in kept):
        return ""
    inside = [layer in kept for layer in range(shape.num_layers)]
    counts = [",".join(str(count if here else 0) for here in inside) for count in (heads, most)]
    return f"h{counts[0]}-n{counts[1]}"


def padded_sizes(config: ElasticBertConfig) -> ElasticBertConfig:
    """The configuration with all heads that a plain class has and the most neurons in every layer."""
    heads, layers = room_for_heads(config), config.num_hidden_layers
    values = config.to_dict()
    for name in ("model_type", "transformers_version"):
        values.pop(name, None)
    values |= {
        "layer_heads": [heads] * layers,
        "layer_neurons": [config.intermediate_size] * layers,
        "rewired": False,
    }
    return type(config)(**values)


def plain_form(small: Exported) -> PlainForm:
    """A cut-out network's plain configuration and tensors, padded where it is narrower than a plain class is."""
    config = small.config
    sizes = padded_sizes(config)
    heads, neurons, size = sizes.num_attention_heads, sizes.intermediate_size, config.head_dim
    state = small.state_dict()
    tensors = to_plain(state, config, small.parts)
    ours_to_plain = same_tensors(config, small.parts)
    for ours, triple in qkv_tensors(config, small.parts).items():
        prefix = ours.rpartition("qkv_")[0]
        if not ours.endswith("weight"):
            continue
        count = config.layer_heads[int(prefix.rstrip(".").rpartition(".")[2])]
        places = state[f"{prefix}head_order"].cpu() if config.has_relative_bias else torch.arange(count)
        rows = (places[:, None] * size + torch.arange(size)).flatten()
        for plain in triple:
            tensors[plain] = _placed(tensors[plain], 0, rows, heads * size)
            bias = f"{plain.removesuffix('weight')}bias"
            tensors[bias] = _placed(tensors[bias], 0, rows, heads * size)
        out = ours_to_plain[f"{prefix}attention_weight"]
        tensors[out] = _placed(tensors[out], 1, rows, heads * size)
        for name, dim in (("ffn_in_weight", 0), ("ffn_in_bias", 0), ("ffn_out_weight", 1)):
            plain = ours_to_plain[prefix + name]
            own = torch.arange(tensors[plain].shape[dim])
            tensors[plain] = _placed(tensors[plain], dim, own, neurons)
    plain_config = sizes.to_plain()
    del plain_config.elastic  # a folder with nothing of ours in it
    return PlainForm(plain_config, tensors, sizes)


def _placed(tensor: Tensor, dim: int, places: Tensor, count: int) -> Tensor:
    """``tensor`` with its rows (columns) at ``places`` of so many, zeros elsewhere."""
    shape = list(tensor.shape)
    shape[dim] = count
    return tensor.new_zeros(shape).index_copy_(dim, places.to(tensor.device), tensor)
