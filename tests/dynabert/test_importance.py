"""Importance scores against an independent computation: a mask on every head, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from dynabert import (
    ElasticBertConfig,
    ElasticBertForSequenceClassification,
    ElasticBertModel,
    Importance,
    compute_importance,
)
from dynabert.modeling.names import to_elastic
from dynabert_kernels import Plan
from tests.dynabert.slow_model import Slow
from tests.dynabert.tiny_networks import CONFIGS, TINY, close, padded_batch, plain_model, slow_model, text_of

pytestmark = pytest.mark.usefixtures("poisoned")

MODES = ["per_batch", "accumulated", "reference"]


def elastic(plain: PreTrainedModel) -> ElasticBertForSequenceClassification:
    model = ElasticBertForSequenceClassification(ElasticBertConfig.from_plain(plain.config))
    model.load_state_dict(plain.state_dict())
    assert to_elastic(plain.state_dict(), model.config, model.parts).keys() <= model.state_dict().keys()
    return model.eval()


def labelled(plain: PreTrainedModel, lengths: list[int], seed: int) -> dict[str, Tensor]:
    batch = padded_batch(plain, lengths, seed=seed)
    if plain.config.num_labels == 1:
        return {**batch, "labels": torch.linspace(-1, 1, len(lengths))}
    return {**batch, "labels": torch.arange(len(lengths)) % 3}


def slow_gradients(slow: Slow, plain: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """dLoss/d mask (L, H), from a mask that multiplies the probabilities, and the gradients of all weights."""
    mask = torch.ones(plain.config.num_hidden_layers, plain.config.num_attention_heads, dtype=torch.float64)
    mask.requires_grad_(True)
    weights = {name: tensor.clone().requires_grad_(True) for name, tensor in slow.weights.items()}
    leaf = Slow(weights, slow.config, slow.architecture)
    rows = [leaf(*text_of(plain, batch, row), head_mask=mask)[1] for row in range(len(batch["labels"]))]
    logits = torch.stack(rows)
    if plain.config.num_labels == 1:
        loss = functional.mse_loss(logits[:, 0], batch["labels"].double())
    else:
        loss = functional.cross_entropy(logits, batch["labels"])
    loss.backward()
    assert mask.grad is not None
    return mask.grad, {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


def slow_neurons(slow: Slow, gradients: dict[str, Tensor]) -> Tensor:
    """(L, F): |<w1_i, g1_i> + b1_i gb1_i| + |<w2_i, g2_i>|, neuron by neuron."""
    config = slow.config
    scores = torch.zeros(config.num_hidden_layers, config.intermediate_size, dtype=torch.float64)
    for layer in range(config.num_hidden_layers):
        at = f"{slow.architecture}.encoder.layer.{layer}."
        w1, b1, w2 = f"{at}intermediate.dense.weight", f"{at}intermediate.dense.bias", f"{at}output.dense.weight"
        for i in range(config.intermediate_size):
            inward = slow.weights[w1][i] @ gradients[w1][i] + slow.weights[b1][i] * gradients[b1][i]
            outward = slow.weights[w2][:, i] @ gradients[w2][:, i]
            scores[layer, i] = inward.abs() + outward.abs()
    return scores


def slow_importance(plain: PreTrainedModel, batches: list[dict[str, Tensor]], mode: str) -> tuple[Tensor, Tensor]:
    """The three modes as SPEC words them, with gradients that really are cleared, added up, or never cleared."""
    slow = slow_model(plain)
    heads, neurons = torch.zeros(()), torch.zeros(())
    running: tuple[Tensor, dict[str, Tensor]] | None = None
    for number, batch in enumerate(batches):
        mask, gradients = slow_gradients(slow, plain, batch)
        if mode != "per_batch" and running is not None:
            mask = mask + running[0]
            gradients = {name: gradient + running[1][name] for name, gradient in gradients.items()}
        running = (mask, gradients)
        if mode == "accumulated" and number < len(batches) - 1:
            continue
        heads = heads + mask.abs()
        neurons = neurons + slow_neurons(slow, gradients)
    return heads, neurons


@pytest.mark.parametrize("mode", MODES)
def test_scores_equal_the_slow_computation(architecture: str, mode: str) -> None:
    plain = plain_model(architecture)
    batches = [labelled(plain, lengths, seed) for seed, lengths in enumerate([[6, 2, 4], [3, 8], [5]])]
    heads, neurons = slow_importance(plain, batches, mode)
    found = compute_importance(elastic(plain), batches, mode=mode)
    assert found.heads.dtype == found.neurons.dtype == torch.float32
    close(found.heads, heads)
    close(found.neurons, neurons)


def test_scores_of_a_regression() -> None:
    plain = plain_model("bert", num_labels=1)
    batches = [labelled(plain, [6, 2, 4], 0), labelled(plain, [3, 8], 1)]
    heads, neurons = slow_importance(plain, batches, "per_batch")
    found = compute_importance(elastic(plain), batches)
    close(found.heads, heads)
    close(found.neurons, neurons)


def test_modes_differ_and_agree_on_one_batch() -> None:
    plain = plain_model("bert")
    model = elastic(plain)
    batches = [labelled(plain, [6, 2, 4], seed) for seed in range(3)]
    several = [compute_importance(model, batches, mode=mode).heads for mode in MODES]
    assert not torch.equal(several[0], several[1])
    assert not torch.equal(several[1], several[2])
    one = [compute_importance(model, batches[:1], mode=mode) for mode in MODES]
    assert torch.equal(one[0].heads, one[1].heads)
    assert torch.equal(one[0].neurons, one[2].neurons)


def test_nothing_is_left_behind() -> None:
    plain = plain_model("bert", hidden_dropout_prob=0.5)
    model = elastic(plain)
    model.train()
    model.encoder.layers[1].eval()
    model.classifier.out_proj.weight.requires_grad_(False)
    for parameter in model.encoder.layers[0].parameters():
        parameter.requires_grad_(False)
    model.encoder.layers[2].qkv_bias.grad = torch.ones(4, 3, 6)
    training = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [labelled(plain, [6, 2, 4], 0)]
    with torch.no_grad():  # also where the caller has switched gradients off
        found = compute_importance(model, batches)
    assert [module.training for module in model.modules()] == training
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name == "encoder.layers.2.qkv_bias")
    assert torch.equal(model.encoder.layers[2].qkv_bias.grad, torch.ones(4, 3, 6))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    # In eval mode, so dropout plays no part.
    again = compute_importance(elastic(plain), batches)
    assert torch.equal(found.heads, again.heads)
    assert torch.equal(found.neurons, again.neurons)


def test_flags_are_put_back_after_an_error() -> None:
    model = elastic(plain_model("bert")).train()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no labels"):
        compute_importance(model, [{"input_ids": torch.tensor([[5]])}])
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_any_iterable_and_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    plain = plain_model("bert")
    model = elastic(plain)
    batches = [labelled(plain, [6, 2, 4], seed) for seed in range(2)]

    def one_by_one() -> Iterator[dict[str, Tensor]]:
        yield from batches

    wanted = compute_importance(model, batches)
    assert "importance" not in capsys.readouterr().err
    found = compute_importance(model, one_by_one(), progress=True)
    assert "importance" in capsys.readouterr().err
    assert torch.equal(found.heads, wanted.heads)


def test_layers_of_different_sizes() -> None:
    plain = plain_model("mpnet")
    model = elastic(plain)
    small = model.extract("h4,1,0,2-n7,40,0,1")
    found = compute_importance(small, [labelled(plain, [6, 2, 4], 0)])
    assert found.heads.shape == (3, 4)
    assert found.neurons.shape == (3, 40)
    assert not found.heads[1, 1:].any()
    assert not found.neurons[0, 7:].any()
    assert (found.heads[0] > 0).all()


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "no batch given"),
        (iter([]), ValueError, "no batch given"),
        ([{"input_ids": torch.tensor([[5, 6]])}], ValueError, "batch 0 has no labels"),
        ([{"input_ids": torch.tensor([[5, 6]]), "labels": None}], ValueError, "batch 0 has no labels"),
        ([torch.tensor([[5, 6]])], TypeError, "batch 0 must be a mapping of tensors; got Tensor"),
        ({"input_ids": torch.tensor([[5, 6]])}, TypeError, "batches is one mapping; give an iterable"),
        (
            [{"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([-100])}],
            ValueError,
            "batch 0 has a loss of nan",
        ),
    ],
)
def test_bad_batches(batches: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compute_importance(ElasticBertForSequenceClassification(CONFIGS["bert"](**TINY)), batches)


def test_other_bad_arguments() -> None:
    model = ElasticBertForSequenceClassification(CONFIGS["bert"](**TINY))
    batch = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([0])}
    with pytest.raises(ValueError, match="mode is 'mean'; allowed: 'per_batch', 'accumulated', 'reference'"):
        compute_importance(model, [batch], mode="mean")
    with pytest.raises(TypeError, match="must be an ElasticBertForSequenceClassification; got ElasticBertModel"):
        compute_importance(ElasticBertModel(model.config), [batch])  # type: ignore[arg-type]
    with torch.no_grad():
        model.encoder.layers[0].ffn_in_weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="batch 0 has a loss of nan"):
        compute_importance(model, [batch])


@pytest.mark.parametrize("subnet", ["w0.5", "d0.5", ["w1", "w0.25"]])
def test_a_batch_that_narrows_the_network_is_refused(subnet: Any) -> None:
    """It would be scored as the sub-network, and half of the network would look as if it did not matter."""
    plain = plain_model("bert")
    model = elastic(plain)
    padded = {"input_ids": torch.tensor([[5, 6], [7, 8]]), "labels": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=r"batch 1 says subnet; allowed: tokens and labels, .* extract it first"):
        compute_importance(model, [padded, padded | {"subnet": subnet}])
    batch, plan = model.pack([[5, 6], [7, 8]], subnet=subnet)
    with pytest.raises(ValueError, match="the plan of batch 0 is of a sub-network; allowed: the whole network"):
        compute_importance(model, [{"batch": batch, "plan": plan, "labels": torch.tensor([0, 1])}])


def test_a_plan_of_several_groups_that_are_whole_is_taken() -> None:
    model = elastic(plain_model("bert"))
    batch, plan = model.pack([[5, 6], [7, 8]])
    whole, half = model.shape(), model.shape("w0.5")
    several = Plan.build([whole, half, whole], [[2], [], [2]])  # nobody runs the half
    labels = torch.tensor([0, 1])
    found = [compute_importance(model, [{"batch": batch, "plan": p, "labels": labels}]) for p in (plan, several)]
    torch.testing.assert_close(found[0].heads, found[1].heads)


def test_a_batch_that_says_how_to_run_is_refused() -> None:
    model = elastic(plain_model("bert"))
    batch = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([0])}
    for more in ({"dropout_state": torch.tensor([1, 2])}, {"return_dict": False}):
        with pytest.raises(ValueError, match=f"batch 0 says {next(iter(more))}; allowed: tokens and labels"):
            compute_importance(model, [batch | more])


def test_save_and_load(tmp_path: Path) -> None:
    one = Importance(torch.rand(4, 4), torch.rand(4, 40))
    one.save(tmp_path / "scores.safetensors")
    two = Importance.load(tmp_path / "scores.safetensors")
    assert torch.equal(one.heads, two.heads)
    assert torch.equal(one.neurons, two.neurons)
    (tmp_path / "scores.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"cannot read .*scores.safetensors"):
        Importance.load(tmp_path / "scores.safetensors")
    from safetensors.torch import save_file

    save_file({"heads": one.heads}, tmp_path / "scores.safetensors")
    with pytest.raises(ValueError, match=r"holds \['heads'\]; allowed: heads, neurons"):
        Importance.load(tmp_path / "scores.safetensors")
