"""Rewiring: the full network stays the same, a width is then the most important part, and nothing is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dynabert import (
    ElasticBertConfig,
    ElasticBertForSequenceClassification,
    ElasticBertModel,
    Importance,
    compute_importance,
    rewire,
    undo_rewiring,
)
from tests.dynabert.tiny_networks import close, padded_batch, plain_model, slow_model, text_of

pytestmark = pytest.mark.usefixtures("poisoned")

LENGTHS = [7, 1, 12]


def elastic(plain: PreTrainedModel) -> ElasticBertForSequenceClassification:
    model = ElasticBertForSequenceClassification(ElasticBertConfig.from_plain(plain.config))
    model.load_state_dict(plain.state_dict())
    return model.eval()


def random_scores(seed: int = 0) -> Importance:
    generator = torch.Generator().manual_seed(seed)
    return Importance(torch.rand(4, 4, generator=generator), torch.rand(4, 40, generator=generator))


def logits(model: Any, batch: dict[str, Tensor], **arguments: Any) -> Tensor:
    with torch.no_grad():
        return model(**batch, **arguments).logits


def best(scores: Tensor, count: int) -> list[int]:
    """Numbers of the highest scores."""
    return sorted(range(len(scores)), key=lambda i: -scores[i].item())[:count]


def test_the_full_network_computes_the_same(architecture: str) -> None:
    plain = plain_model(architecture)
    model = elastic(plain)
    batch = padded_batch(plain, LENGTHS)
    assert rewire(model, random_scores()) is model
    assert model.config.rewired
    close(logits(model, batch), logits(plain, batch))
    rewire(model, random_scores(1))
    close(logits(model, batch), logits(plain, batch))


@pytest.mark.parametrize("subnet", ["w0.5", "w0.25-d0.5", "h3,0,1,4-n20,0,5,40"])
def test_a_width_is_the_most_important_part(architecture: str, subnet: str) -> None:
    """Of the plain network, run slowly with the heads and neurons of the highest scores picked out by number."""
    plain = plain_model(architecture)
    model, slow = elastic(plain), slow_model(plain)
    scores = random_scores()
    rewire(model, scores)
    batch = padded_batch(plain, LENGTHS)
    shape = model.shape(subnet)
    heads = [best(row, count) for row, count in zip(scores.heads, shape.heads, strict=True)]
    neurons = [best(row, count) for row, count in zip(scores.neurons, shape.neurons, strict=True)]
    found = logits(model, batch, subnet=subnet)
    for row in range(len(LENGTHS)):
        close(found[row], slow(*text_of(plain, batch, row), heads=heads, neurons=neurons)[1])


def test_orders_and_scores_are_recorded() -> None:
    model = elastic(plain_model("bert"))
    scores = random_scores()
    rewire(model, scores)
    assert model.scores is not None
    for index, layer in enumerate(model.encoder.elastic_layers):
        assert layer.head_order.tolist() == scores.heads[index].argsort(descending=True).tolist()
        assert torch.equal(model.scores[0][index], scores.heads[index][layer.head_order])
        assert torch.equal(model.scores[1][index], scores.neurons[index][layer.neuron_order])
        assert (model.scores[0][index].diff() <= 0).all()


def test_rewiring_twice_composes(architecture: str) -> None:
    """Scores of the original places, then scores of the new places: the record always speaks of the original ones."""
    plain = plain_model(architecture)
    model = elastic(plain)
    first, second = random_scores(0), random_scores(1)
    rewire(model, first)
    orders = [layer.head_order.clone() for layer in model.encoder.elastic_layers]
    rewire(model, second)
    for index, layer in enumerate(model.encoder.elastic_layers):
        again = second.heads[index].argsort(descending=True)
        assert torch.equal(layer.head_order, orders[index][again])
    # The same in one go: scores that put every original head where the two together put it.
    heads, neurons = torch.zeros(4, 4), torch.zeros(4, 40)
    for index, layer in enumerate(model.encoder.elastic_layers):
        heads[index][layer.head_order] = torch.arange(4, 0, -1.0)
        neurons[index][layer.neuron_order] = torch.arange(40, 0, -1.0)
    direct = rewire(elastic(plain), Importance(heads, neurons))
    for (name, one), two in zip(model.state_dict().items(), direct.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_undo(architecture: str) -> None:
    plain = plain_model(architecture)
    model = elastic(plain)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rewire(rewire(model, random_scores(0)), random_scores(1))
    kept = undo_rewiring(model, copy=True)
    assert model.config.rewired
    assert undo_rewiring(model) is model
    assert not model.config.rewired
    assert model.scores is None
    for found in (model, kept):
        assert all(torch.equal(tensor, before[name]) for name, tensor in found.state_dict().items())


def test_undo_of_a_part_stands_in_the_original_order(architecture: str) -> None:
    plain = plain_model(architecture)
    model = rewire(elastic(plain), random_scores())
    small = model.extract("w0.5-d0.5")
    batch = padded_batch(plain, LENGTHS)
    wanted = logits(small, batch)
    undo_rewiring(small)
    close(logits(small, batch), wanted)
    assert small.config.rewired  # some heads are gone, so others do not stand at their numbers
    for layer in small.encoder.elastic_layers:
        assert (layer.head_order.diff() > 0).all()
        assert (layer.neuron_order.diff() > 0).all()


def test_copy_leaves_the_model_alone() -> None:
    plain = plain_model("mpnet")
    model = elastic(plain)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = rewire(model, random_scores(), copy=True)
    assert other is not model
    assert other.config.rewired
    assert not model.config.rewired
    assert model.scores is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_in_place_means_the_same_memory_and_gradients_follow() -> None:
    plain = plain_model("bert")
    model = elastic(plain).double()
    batch = padded_batch(plain, LENGTHS)
    labels = torch.tensor([0, 1, 2])
    pointers = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    model(**batch, labels=labels).loss.backward()
    rewire(model, random_scores())
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == pointers
    moved = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(**batch, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad.abs().max() > 1e-12:
            close(moved[name], parameter.grad, 1e-9)


def test_equal_scores_keep_their_order() -> None:
    model = elastic(plain_model("bert"))
    scores = Importance(torch.tensor([[1.0, 2.0, 1.0, 2.0]] * 4), torch.zeros(4, 40))
    rewire(model, scores)
    for layer in model.encoder.elastic_layers:
        assert layer.head_order.tolist() == [1, 3, 0, 2]
        assert layer.neuron_order.tolist() == list(range(40))
    assert model.config.rewired
    undo_rewiring(model)
    rewire(model, Importance(torch.ones(4, 4), torch.ones(4, 40)))
    assert not model.config.rewired  # nothing moved


def test_scores_may_be_edited_also_to_infinity() -> None:
    plain = plain_model("bert")
    model = elastic(plain)
    batch = {**padded_batch(plain, LENGTHS), "labels": torch.tensor([0, 1, 2])}
    importance = compute_importance(model, [batch])
    importance.heads[2, 3] = torch.inf
    importance.neurons[0, 39] = torch.inf
    importance.neurons[0, 0] = -1.0
    rewire(model, importance)
    layers = model.encoder.elastic_layers
    assert layers[2].head_order[0] == 3
    assert layers[0].neuron_order[0] == 39
    assert layers[0].neuron_order[-1] == 0


def test_bare_encoders_and_layers_of_different_sizes() -> None:
    plain = plain_model("mpnet")
    small = elastic(plain).extract("h4,1,0,2-n7,40,0,1")
    batch = padded_batch(plain, LENGTHS)
    wanted = logits(small, batch)
    rewire(small, Importance(torch.rand(3, 4), torch.rand(3, 40)))
    close(logits(small, batch), wanted)
    model = ElasticBertModel(small.config)
    model.load_state_dict(small.encoder.state_dict(), strict=False)
    assert rewire(model, Importance(torch.rand(3, 4), torch.rand(3, 40))) is model


@pytest.mark.parametrize(
    ("importance", "error", "message"),
    [
        (None, TypeError, "importance must be an Importance; got NoneType"),
        (Importance(torch.ones(4, 3), torch.ones(4, 40)), ValueError, r"heads has shape \(4, 3\); .* 4 layers of 4"),
        (Importance(torch.ones(4, 4), torch.ones(3, 40)), ValueError, r"neurons has shape \(3, 40\)"),
        (Importance(torch.ones(4, 4).long(), torch.ones(4, 40)), TypeError, "heads must be a floating point tensor"),
        (Importance([1.0], torch.ones(4, 40)), TypeError, "heads must be a floating point tensor; got list"),
        (
            Importance(torch.ones(4, 4), torch.ones(4, 40).index_fill(0, torch.tensor([2]), torch.nan)),
            ValueError,
            "neurons of layer 2 hold NaN",
        ),
    ],
)
def test_scores_that_do_not_fit(importance: Any, error: type[Exception], message: str) -> None:
    model = elastic(plain_model("bert"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=message):
        rewire(model, importance)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_models() -> None:
    with pytest.raises(TypeError, match="rewire: model must be an elastic model; got BertForSequenceClassification"):
        rewire(plain_model("bert"), random_scores())  # type: ignore[type-var]
    with pytest.raises(TypeError, match="undo_rewiring: model must be an elastic model"):
        undo_rewiring(plain_model("bert"))  # type: ignore[type-var]
