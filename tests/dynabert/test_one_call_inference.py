"""Inference runs all layers in one call, with the answers of the layers' own; a hook on a layer is called."""

from __future__ import annotations

import pytest
import torch

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
