"""Inference runs all layers in one call, with the answers of the layers' own; a hook on a layer is called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import dynabert_kernels as dk
from tests.dynabert.test_modeling import LENGTHS, elastic
from tests.dynabert.tiny_networks import padded_batch, plain_model


def test_one_call_or_layer_by_layer(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = plain_model(architecture)
    model, batch = elastic(plain), padded_batch(plain, LENGTHS)
    calls: list[int] = []
    whole = dk.elastic_encoder
    monkeypatch.setattr(dk, "elastic_encoder", lambda *args, **more: calls.append(1) or whole(*args, **more))
    subnets = ["w1", "w0.25-d0.5", "w0.5-l0,2"]
    for subnet in subnets:
        layer_by_layer = model(**batch, subnet=subnet).logits
        with torch.inference_mode():
            assert torch.equal(model(**batch, subnet=subnet).logits, layer_by_layer)
    assert len(calls) == len(subnets)


@pytest.mark.parametrize("before", [False, True])
def test_a_layers_hook_is_called(before: bool) -> None:
    """Inference runs all layers in one call, unless somebody waits for a layer's own."""
    plain = plain_model("bert")
    model = elastic(plain)
    seen: list[int] = []
    for index, layer in enumerate(model.encoder.layers):
        register = layer.register_forward_pre_hook if before else layer.register_forward_hook
        register(lambda *_, index=index: seen.append(index))
    batch = padded_batch(plain, LENGTHS)
    with torch.no_grad():
        hooked = model(**batch, subnet="w0.5-d0.5").logits
    assert seen == [1, 3]
    other = elastic(plain)
    with torch.no_grad():
        assert torch.equal(other(**batch, subnet="w0.5-d0.5").logits, hooked)


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


@pytest.mark.parametrize("name", ["qkv_weight", "ffn_out_bias", "ffn_norm"])
def test_a_weight_that_is_computed(name: str) -> None:
    plain = plain_model("bert")
    model, halved, batch = elastic(plain), elastic(plain), padded_batch(plain, LENGTHS)
    for each, act in ((model, True), (halved, False)):
        layer = each.encoder.layers[1]
        owner, own = (layer.ffn_norm, "weight") if name == "ffn_norm" else (layer, name)
        if act:
            parametrize.register_parametrization(owner, own, Half())
        else:
            getattr(owner, own).data /= 2
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, halved(**batch).logits)


def test_weights_of_a_functional_call() -> None:
    plain = plain_model("bert")
    model, batch = elastic(plain), padded_batch(plain, LENGTHS)
    given = {name: weight / 2 for name, weight in model.named_parameters()}
    with torch.no_grad():
        found = torch.func.functional_call(model, given, (), batch).logits
        for weight in model.parameters():
            weight /= 2
        assert torch.equal(model(**batch).logits, found)
