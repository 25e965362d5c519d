"""Rewiring: each layer's heads and neurons in order of importance, so that every width is a prefix.

DynaBERT, arXiv 2004.04037, section 2.1. The full network's function does not change.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from dynabert.importance import Importance
from dynabert.modeling import ElasticBertPreTrainedModel

Model = TypeVar("Model", bound=ElasticBertPreTrainedModel)


def rewire(model: Model, importance: Importance, copy: bool = False) -> Model:
    """Sorts every layer's heads and neurons by their own scores, highest first; equal ones keep their order.

    Permutes in place the rows of query, key and value with their biases, the columns of the attention output, the rows
    of FFN in with its bias and the columns of FFN out, and their gradients where there are some; an optimizer made
    earlier does not follow, so make it afterwards. Records the permutation composed with earlier ones
    (``layer.head_order``, ``layer.neuron_order``: original places), sets ``config.rewired`` to whether something stands
    elsewhere than at its own number, and keeps the scores, in the new order, in ``model.scores``; ``save_pretrained``
    writes all of it.

    ``importance``: scores of this model as it stands now. ``copy``: True leaves ``model`` alone and returns a new one.
    Returns the rewired model. Raises ``ValueError`` or ``TypeError`` when the scores do not fit or hold NaN.
    """
    _check_model("rewire", model)
    if not isinstance(importance, Importance):
        raise TypeError(f"rewire: importance must be an Importance; got {type(importance).__name__}")
    importance.check(model.config)
    if copy:
        model = copying.deepcopy(model)
    heads, neurons = importance.heads.detach().cpu(), importance.neurons.detach().cpu()
    orders = [
        (
            torch.sort(heads[index, : model.config.layer_heads[index]], descending=True, stable=True).indices,
            torch.sort(neurons[index, : model.config.layer_neurons[index]], descending=True, stable=True).indices,
        )
        for index in range(model.config.num_hidden_layers)
    ]
    _permute_all(model, orders)
    model.scores = (
        _ordered_scores(heads, [order for order, _ in orders]),
        _ordered_scores(neurons, [order for _, order in orders]),
    )
    return model


def undo_rewiring(model: Model, copy: bool = False) -> Model:
    """Puts every layer's heads and neurons back into the order of their original places, and forgets the scores.

    Of a network that was cut out of a rewired one, what is left stands in that order. ``model`` and ``copy``, and what
    is refused, as in :func:`rewire`.
    """
    _check_model("undo_rewiring", model)
    if copy:
        model = copying.deepcopy(model)
    layers = model.elastic_encoder.elastic_layers
    _permute_all(model, [(layer.head_order.argsort().cpu(), layer.neuron_order.argsort().cpu()) for layer in layers])
    model.scores = None
    return model


def _check_model(name: str, model: object) -> None:
    if not isinstance(model, ElasticBertPreTrainedModel):
        raise TypeError(f"{name}: model must be an elastic model; got {type(model).__name__}")
    if model.has_packed_weights:
        raise ValueError(f"{name}: the model's weights are packed for inference; load it anew with pack_weights=False")


def _ordered_scores(scores: Tensor, orders: Sequence[Tensor]) -> Tensor:
    """The scores in their new order, float32; 0 past a layer's own count."""
    result = torch.zeros(scores.shape, dtype=torch.float32)
    for index, order in enumerate(orders):
        result[index, : len(order)] = scores[index, order].float()
    return result


@torch.no_grad()
def _permute_all(model: ElasticBertPreTrainedModel, orders: Sequence[tuple[Tensor, Tensor]]) -> None:
    rewired = False
    for layer, (heads, neurons) in zip(model.elastic_encoder.elastic_layers, orders, strict=True):
        _permute(layer.qkv_weight, 0, heads)
        _permute(layer.qkv_bias, 0, heads)
        size = model.config.head_dim
        columns = (heads[:, None] * size + torch.arange(size)).flatten()
        _permute(layer.attention_weight, 1, columns)
        _permute(layer.ffn_in_weight, 0, neurons)
        _permute(layer.ffn_in_bias, 0, neurons)
        _permute(layer.ffn_out_weight, 1, neurons)
        layer.head_order.copy_(layer.head_order[heads.to(layer.head_order.device)])
        layer.neuron_order.copy_(layer.neuron_order[neurons.to(layer.neuron_order.device)])
        for order in (layer.head_order, layer.neuron_order):
            rewired = rewired or order.tolist() != list(range(len(order)))
    model.config.rewired = rewired


def _permute(parameter: Tensor, dim: int, order: Tensor) -> None:
    # Into the same memory: whoever holds the parameter sees the new order.
    order = order.to(parameter.device)
    parameter.copy_(parameter.index_select(dim, order))
    if parameter.grad is not None:
        parameter.grad.copy_(parameter.grad.index_select(dim, order))
