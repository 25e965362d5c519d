"""LayerNorm weights for each width: the same network at first, one ordinary network a width in the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.accuracy.campaign import main
from benchmarks.accuracy.predictions import Predictions, last_parts
from benchmarks.accuracy.width_norms import WidthNormLayer, at_width, with_width_norms
from dynabert import SubnetConfig
from dynabert.modeling import ElasticBertForSequenceClassification
from tests.benchmarks.test_accuracy_campaign import options
from tests.dynabert.tiny_texts import tiny_model

WIDTHS = (1.0, 0.5, 0.25)
SUBNETS = [SubnetConfig(width, depth) for width in WIDTHS for depth in (1.0, 0.5)]


@pytest.fixture
def model() -> ElasticBertForSequenceClassification:
    return tiny_model().double()


def test_it_computes_the_same_until_it_is_trained(model: ElasticBertForSequenceClassification) -> None:
    ids = [[5, 6, 7], [8, 9], [4], [7, 7, 7, 7], [5], [6, 5]]
    apart = with_width_norms(model, WIDTHS)
    for subnets in (*([subnet] * len(ids) for subnet in SUBNETS), SUBNETS):  # one width, and all in one batch
        batch, plan = model.pack(ids, subnet=subnets)
        for inference in (True, False):
            with torch.inference_mode(inference):
                wanted, found = (net(batch=batch, plan=plan).logits for net in (model, apart))
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_each_width_has_its_own(model: ElasticBertForSequenceClassification) -> None:
    ids = [[5, 6, 7], [8, 9], [4], [7, 7, 7, 7], [5], [6, 5]]
    apart = with_width_norms(model, WIDTHS)
    for layer in apart.encoder.elastic_layers:
        assert isinstance(layer, WidthNormLayer)
        with torch.no_grad():
            layer.width_norms += 0.1 * torch.randn_like(layer.width_norms)
    batch, plan = model.pack(ids, subnet=SUBNETS)
    together = apart(batch=batch, plan=plan).logits
    for place, subnet in enumerate(SUBNETS):
        own = at_width(apart, WIDTHS.index(subnet.width_mult))
        assert not any(isinstance(layer, WidthNormLayer) for layer in own.encoder.elastic_layers)
        batch, plan = model.pack([ids[place]], subnet=subnet)
        alone = own(batch=batch, plan=plan).logits
        torch.testing.assert_close(together[place : place + 1], alone, rtol=1e-10, atol=1e-10)
    # Another width's norms learn nothing from this one.
    batch, plan = model.pack(ids, subnet=SUBNETS[2])
    apart(batch=batch, plan=plan).logits.sum().backward()
    for layer in apart.encoder.elastic_layers:
        gradient = layer.get_parameter("width_norms").grad
        assert gradient is not None
        assert gradient[1].abs().max() > 0.0
        assert not gradient[[0, 2]].any()


@pytest.mark.parametrize("step", ["loop", "stacked"])
def test_the_campaign_trains_it(tmp_path: Path, step: str) -> None:
    given = options(tmp_path, "out")
    begun = given.index("--variants")
    more = [*given[: begun + 1], "width_layer_norm", *given[begun + 3 :], "--recipe", "short", "--step", step]
    assert main([*more, "--rows", str(tmp_path / "rows")]) == 0
    cell = tmp_path / "out" / "rte" / "seed1"
    found = last_parts(cell / "short-width_layer_norm")
    assert {path.name: names for path, names in found.items()} == {
        "w1": ("w1-d1", "w1-d0.5"),
        "w0.5": ("w0.5-d1", "w0.5-d0.5"),
    }
    kept = Predictions.load(cell / "predictions" / "short-width_layer_norm.npz")
    assert len(kept.logits) == 4
    wide, narrow = (
        ElasticBertForSequenceClassification.from_pretrained(cell / "short-width_layer_norm" / name)
        for name in ("w1", "w0.5")
    )
    for (name, one), (_, other) in zip(wide.named_parameters(), narrow.named_parameters(), strict=True):
        assert torch.equal(one, other) != ("_norm." in name), name
    assert main(more) == 0  # done: not again
