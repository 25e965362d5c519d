"""Parameters and operations: the paper's figures, and a count over a real cut-out network."""

from __future__ import annotations

import pytest

from dynabert import ElasticBertConfig, SubnetConfig
from dynabert.cost import subnet_cost
from tests.dynabert.tiny_texts import tiny_model


@pytest.mark.parametrize(
    ("width", "depth", "parameters_m", "gflop"),
    [(1.0, 1.0, 109.5, 22.4), (0.5, 1.0, 67.0, 11.2), (0.25, 1.0, 45.7, 5.6), (0.25, 0.5, 35.1, 2.8)],
)
def test_bert_base_figures(width: float, depth: float, parameters_m: float, gflop: float) -> None:
    cost = subnet_cost(ElasticBertConfig(), SubnetConfig(width, depth), seq_length=128)
    assert round(cost.parameters / 1e6, 1) == parameters_m
    assert cost.gflop == pytest.approx(gflop, abs=0.055)


@pytest.mark.parametrize("subnet", [None, "w0.5-d1", "w0.25-d0.5", "h4,0,2,1-n40,0,7,3"])
def test_parameters_are_those_of_the_cut_out_network(architecture: str, subnet: str | None) -> None:
    model = tiny_model(architecture)
    small = model.extract(subnet)
    assert subnet_cost(model.config, subnet, seq_length=8).parameters == sum(p.numel() for p in small.parameters())


def test_encoder_parameters_scale_with_the_layers() -> None:
    config = ElasticBertConfig()
    whole, half = (subnet_cost(config, SubnetConfig(1.0, d)).encoder_parameters for d in (1.0, 0.5))
    assert whole == 2 * half == 85_054_464


def test_operations_by_hand() -> None:
    # one layer, one head of 2, hidden size 2, 3 neurons, 2 labels, 5 tokens
    config = ElasticBertConfig(
        vocab_size=7,
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=3,
        max_position_embeddings=9,
    )
    per_token = 2 * (4 * 2 * 2 + 2 * 3 * 2)
    assert subnet_cost(config, seq_length=5).gflop == pytest.approx((5 * per_token + 4 * 25 * 2 + 2 * (4 + 4)) / 1e9)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="seq_length is 513; allowed: 1 to 512"):
        subnet_cost(ElasticBertConfig(), seq_length=513)
    with pytest.raises(ValueError, match=r"width_mult 0\.8 is"):
        subnet_cost(ElasticBertConfig(), "w0.8-d1")
