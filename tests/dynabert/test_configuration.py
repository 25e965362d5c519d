"""Naming sub-networks, and the configuration of an elastic network."""

from __future__ import annotations

import json
import math
import warnings
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, BertConfig, MPNetConfig, RobertaConfig

import dynabert_kernels as dk
from dynabert import ElasticBertConfig, SubnetConfig
from dynabert.configuration import RoundedDepthWarning, kept_layers, subnet_shape
from tests.dynabert.tiny_networks import CONFIGS, TINY

BASE = ((12,) * 12, (3072,) * 12)


# SubnetConfig ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subnet", "text"),
    [
        (SubnetConfig(), "w1-d1"),
        (SubnetConfig(0.5, 0.75), "w0.5-d0.75"),
        (SubnetConfig(width_mult=1, depth_mult=1), "w1-d1"),
        (SubnetConfig(1 / 3), "w0.3333333333333333-d1"),
        (SubnetConfig(1e-7), "w0.0000001-d1"),
        (SubnetConfig(0.5, layers=(0, 2, 5)), "w0.5-l0,2,5"),
        (SubnetConfig(heads=[12, 6, 0], neurons=[3072, 1536, 0]), "h12,6,0-n3072,1536,0"),
    ],
)
def test_text_form(subnet: SubnetConfig, text: str) -> None:
    assert str(subnet) == text
    assert SubnetConfig.parse(text) == subnet
    assert hash(SubnetConfig.parse(text)) == hash(subnet)


@pytest.mark.parametrize(
    ("text", "subnet"),
    [("w0.5", SubnetConfig(0.5)), ("d0.5", SubnetConfig(1, 0.5)), ("l3", SubnetConfig(layers=(3,)))],
)
def test_short_forms(text: str, subnet: SubnetConfig) -> None:
    assert SubnetConfig.parse(text) == subnet


@given(st.floats(0, 1, exclude_min=True), st.floats(0, 1, exclude_min=True))
def test_every_pair_of_multipliers_reads_back(width: float, depth: float) -> None:
    subnet = SubnetConfig(width, depth)
    assert SubnetConfig.parse(str(subnet)) == subnet
    assert "e" not in str(subnet)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0, -0.5, 1.01, 2])
@pytest.mark.parametrize("name", ["width_mult", "depth_mult"])
def test_multipliers_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} is .*allowed: above 0, up to 1"):
        SubnetConfig(**{name: value})


@pytest.mark.parametrize("value", [True, "0.5", None, [0.5], 1j])
@pytest.mark.parametrize("name", ["width_mult", "depth_mult"])
def test_multipliers_of_a_wrong_type(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number"):
        SubnetConfig(**{name: value})


def test_other_real_numbers_are_numbers() -> None:
    assert SubnetConfig(np.float32(0.5), Fraction(3, 4)) == SubnetConfig(0.5, 0.75)


@pytest.mark.parametrize(
    "text", ["", "x", "w", "w0.5-", "-d0.5", "w0.5d0.5", "w0,5", "w-1", "wnan", "w1e-1", " w1", "l", "h1", "w1-h1-n1"]
)
def test_unknown_text(text: str) -> None:
    with pytest.raises(ValueError, match=r'unknown sub-network.*allowed: "w0.5-d0.75"'):
        SubnetConfig.parse(text)


def test_text_must_be_text() -> None:
    with pytest.raises(TypeError, match="needs a string; got float"):
        SubnetConfig.parse(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": ()}, "layers is empty"),
        ({"layers": (2, 1)}, "must rise"),
        ({"layers": (1, 1)}, "must rise"),
        ({"layers": (-1,)}, "layers holds -1"),
        ({"layers": (0,), "depth_mult": 0.5}, "both choose the layers"),
        ({"heads": (1,)}, "heads given without neurons"),
        ({"neurons": (1,)}, "neurons given without heads"),
        ({"heads": (1, 2), "neurons": (1,)}, "both need one entry for each layer"),
        ({"heads": (0,), "neurons": (0,)}, "all layers are skipped"),
        ({"heads": (1,), "neurons": (1,), "width_mult": 0.5}, "leave width_mult, depth_mult and layers out"),
    ],
)
def test_fields_that_exclude_each_other(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubnetConfig(**fields)


@pytest.mark.parametrize("value", ["012", 3, [0.5], [True]])
def test_layers_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(TypeError, match="layers must be whole numbers"):
        SubnetConfig(layers=value)


# Shapes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "depth", "rule", "kept"),
    [
        (12, 0.75, "reference", (0, 1, 2, 4, 5, 6, 8, 9, 10)),
        (12, 0.5, "reference", (0, 2, 4, 6, 8, 10)),
        (12, 0.75, "keep_last", (0, 1, 3, 4, 5, 7, 8, 9, 11)),
        (12, 0.5, "keep_last", (1, 3, 5, 7, 9, 11)),
        (6, 0.75, "keep_last", (0, 2, 3, 5)),  # 4.5 layers: halves go to even, 4
        (6, 0.75, "reference", (0, 1, 2, 4)),
        (12, 1.0, "keep_last", tuple(range(12))),
        (12, 1.0, "reference", tuple(range(12))),
        (12, 0.01, "keep_last", (11,)),  # at least one
        (12, 0.01, "reference", (0,)),
        (1, 0.5, "keep_last", (0,)),
    ],
)
def test_depth_rules(layers: int, depth: float, rule: str, kept: tuple[int, ...]) -> None:
    assert kept_layers(layers, depth, rule) == kept


@pytest.mark.parametrize(
    ("layers", "depth", "told"),
    [
        (
            6,
            0.6,
            "depth 0.6 of 6 layers is 3.6, so 4 are kept: 0, 2, 3, 5 (depth_rule 'keep_last'); whole here: 0.5 (3) "
            "or 0.67 (4); or name the layers",
        ),
        (
            12,
            0.01,
            "depth 0.01 of 12 layers is 0.12, so 1 are kept: 11 (depth_rule 'keep_last'); whole here: 0.08 (1); "
            "or name the layers",
        ),
    ],
)
def test_a_depth_that_is_rounded_is_told(layers: int, depth: float, told: str) -> None:
    sizes = ((4,) * layers, (16,) * layers)
    with pytest.warns(RoundedDepthWarning) as found:
        shape = subnet_shape(SubnetConfig(0.5, depth), *sizes, "keep_last")
    assert [str(one.message) for one in found] == [told]
    assert shape.kept_layers == kept_layers(layers, depth, "keep_last")


@pytest.mark.parametrize("layers", [1, 2, 3, 6, 7, 12, 24])
def test_whole_depths_and_the_method_s_own_are_not_told(layers: int) -> None:
    sizes = ((4,) * layers, (16,) * layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for depth in (0.75, 0.5, *(round(kept / layers, 2) for kept in range(1, layers + 1))):
            subnet_shape(SubnetConfig(1.0, depth), *sizes, "keep_last")


def test_unknown_depth_rule() -> None:
    with pytest.raises(ValueError, match="depth_rule is 'first'; allowed: 'keep_last', 'reference'"):
        kept_layers(12, 0.5, "first")


@given(st.integers(1, 48), st.floats(0, 1, exclude_min=True), st.sampled_from(["keep_last", "reference"]))
def test_kept_layers_are_layers_and_rise(layers: int, depth: float, rule: str) -> None:
    kept = kept_layers(layers, depth, rule)
    assert len(kept) == max(1, round(depth * layers))
    assert all(a < b for a, b in pairwise(kept))
    assert kept[0] >= 0
    assert kept[-1] < layers
    if rule == "keep_last":
        assert kept[-1] == layers - 1


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (0.8, "width_mult 0.8 is 9.6 of 12 heads; use 0.75 (9) or 0.833 (10)"),
        (0.05, "width_mult 0.05 is 0.6 of 12 heads; use 0.083 (1)"),
        (0.001, "width_mult 0.001 is 0.012 of 12 heads; use 0.083 (1)"),
        (0.0001, "width_mult 0.0001 is 0.0012 of 12 heads; use 0.083 (1)"),  # close to a whole number: to none
        (0.99, "width_mult 0.99 is 11.88 of 12 heads; use 0.917 (11) or 1 (12)"),
    ],
)
def test_widths_that_are_not_whole_heads(width: float, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        subnet_shape(SubnetConfig(width), *BASE, "keep_last")
    assert str(error.value) == message


@pytest.mark.parametrize("heads", [1, 2, 4, 7, 12, 16, 24, 48])
def test_suggested_widths_are_accepted(heads: int) -> None:
    sizes = ((heads,) * 2, (heads * 8,) * 2)
    for width in (0.111, 0.37, 0.52, 0.81, 0.98):
        try:
            subnet_shape(SubnetConfig(width), *sizes, "keep_last")
        except ValueError as error:
            for part in str(error).split("use ")[1].split(" or "):
                text, count = part.rstrip(")").split(" (")
                assert subnet_shape(f"w{text}", *sizes, "keep_last").heads == (int(count),) * 2


def test_a_width_near_whole_heads_counts_as_them() -> None:
    assert subnet_shape("w0.833", *BASE, "keep_last").heads == (10,) * 12
    assert subnet_shape("w0.833", *BASE, "keep_last").neurons == (2560,) * 12
    assert subnet_shape(SubnetConfig(1 / 12), *BASE, "keep_last").neurons == (256,) * 12


def test_neurons_must_be_whole_too() -> None:
    with pytest.raises(ValueError, match=r"width_mult 0.5 is 2 of 4 heads and 50.5 of 101 neurons; use 1 \(4\)"):
        subnet_shape("w0.5", (4, 4), (101, 101), "keep_last")
    with pytest.raises(ValueError, match=r"1 of 4 heads and 12.5 of 50 neurons; use 0.5 \(2\)"):
        subnet_shape("w0.25", (4,), (50,), "keep_last")


def test_layers_of_different_sizes() -> None:
    sizes = ((8, 4), (64, 100))
    assert subnet_shape("w0.75", *sizes, "keep_last") == dk.SubnetShape((6, 3), (48, 75))
    with pytest.raises(ValueError, match=r"layer 1: width_mult 0.625 is 2.5 of 4 heads; use 0.5 \(2\) or 0.75 \(3\)"):
        subnet_shape("w0.625", *sizes, "keep_last")


def test_other_forms_of_a_subnet() -> None:
    shape = dk.SubnetShape((2, 0, 1), (8, 0, 4))
    sizes = ((2, 2, 2), (8, 8, 8))
    assert subnet_shape(None, *sizes, "keep_last") == dk.SubnetShape(*sizes)
    assert subnet_shape(shape, *sizes, "keep_last") is shape
    assert subnet_shape("h2,0,1-n8,0,4", *sizes, "keep_last") == shape
    assert subnet_shape("w0.5-l0,2", *sizes, "keep_last") == dk.SubnetShape((1, 0, 1), (4, 0, 4))


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        ("l0,3", "no layer 3; allowed: 0 to 2"),
        ("h2-n8", "subnet has 1 layers, the network 3"),
        ("h3,2,2-n8,8,8", "subnet asks for 3 heads in layer 0; the layer has 2"),
        ("h2,2,2-n8,9,8", "subnet asks for 9 neurons in layer 1; the layer has 8"),
        (dk.SubnetShape((0, 0, 0), (0, 0, 0)), "skips all layers"),
    ],
)
def test_subnets_that_do_not_fit(subnet: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subnet_shape(subnet, (2, 2, 2), (8, 8, 8), "keep_last")


@pytest.mark.parametrize("subnet", [0.5, (0.5, 1.0), object()])
def test_subnets_of_a_wrong_type(subnet: Any) -> None:
    with pytest.raises(TypeError, match="subnet must be a SubnetConfig, its text form, a SubnetShape or None"):
        subnet_shape(subnet, (2,), (8,), "keep_last")


# ElasticBertConfig ----------------------------------------------------------------------------------------------------


def test_from_plain_and_back(architecture: str) -> None:
    plain = CONFIGS[architecture](**TINY, hidden_dropout_prob=0.2, finetuning_task="sst2", problem_type="regression")
    config = ElasticBertConfig.from_plain(plain)
    assert (config.architecture, config.model_type) == (architecture, "elastic_bert")
    assert config.layer_heads == (4,) * 4
    assert config.layer_neurons == (40,) * 4
    assert config.head_dim == 6
    assert config.num_labels == 3
    assert config.finetuning_task == "sst2"
    back = config.to_plain()
    assert type(back) is type(plain)
    before, after = plain.to_dict(), back.to_dict()
    del after["elastic"]
    assert after == before


def test_architectures_differ_where_they_should() -> None:
    bert, roberta, mpnet = (ElasticBertConfig.from_plain(CONFIGS[name]()) for name in ("bert", "roberta", "mpnet"))
    assert [c.position_offset for c in (bert, roberta, mpnet)] == [0, 2, 2]
    assert [c.max_sequence_length for c in (bert, roberta, mpnet)] == [512, 510, 510]
    assert [c.padding_idx for c in (bert, roberta, mpnet)] == [0, 1, 1]
    assert [c.type_vocab_size for c in (bert, roberta, mpnet)] == [2, 2, 0]
    assert [c.relative_attention_num_buckets for c in (bert, roberta, mpnet)] == [0, 0, 32]
    assert ElasticBertConfig.from_plain(BertConfig(pad_token_id=None)).padding_idx == -1
    assert ElasticBertConfig.from_plain(MPNetConfig(pad_token_id=7)).padding_idx == 1  # as transformers does
    assert ElasticBertConfig.from_plain(RobertaConfig(pad_token_id=7)).position_offset == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "decoder"),
        ({"add_cross_attention": True}, "cross-attention"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; allowed: 'absolute'"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; allowed: 'gelu', 'gelu_new', 'gelu_pytorch_tanh', 'relu'"),
        ({"hidden_size": 25}, "hidden_size 25 is not a multiple of 4 heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"elastic": {"format": 2}}, "format 2; this version reads 1"),
        ({"elastic": {"format": 1, "colour": "red"}}, "unknown entries in the elastic block: colour"),
        ({"elastic": {"format": 1, "layer_heads": [4, 4]}}, "layer_heads has 2 entries, num_hidden_layers is 4"),
        ({"elastic": {"format": 1, "layer_heads": [4, 0, 4, 4]}}, "layer_heads is .4, 0, 4, 4.; allowed: 1 or more"),
        ({"elastic": {"format": 1, "depth_rule": "first"}}, "depth_rule is 'first'"),
        ({"elastic": {"format": 1, "layer_heads": [4.0] * 4}}, "layer_heads is .4.0, .*; allowed: whole numbers"),
        (
            {"hidden_dropout_prob": 1.0},
            "hidden_dropout_prob is 1.0; allowed: a number from 0 up to but not including 1",
        ),
        ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob is -0.1"),
        ({"classifier_dropout": 1.0}, "classifier_dropout is 1.0"),  # a division by zero once it trained
        ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0; allowed: a number, 0 or more"),
        ({"pad_token_id": 99}, "the padding token is 99 and vocab_size 61; allowed: a pad_token_id of the vocabulary"),
        ({"problem_type": "single_label"}, "problem_type is 'single_label'; allowed: None, 'single_label_class"),
    ],
)
def test_networks_that_cannot_be_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElasticBertConfig.from_plain({**TINY, "model_type": "bert", **changes})


@pytest.mark.parametrize("model_type", ["gpt2", "xlm-roberta", None])
def test_other_model_types(model_type: str | None) -> None:
    with pytest.raises(ValueError, match=r"model_type is .*; allowed: 'bert', 'roberta', 'mpnet', 'elastic_bert'"):
        ElasticBertConfig.from_plain({"model_type": model_type})


def test_mpnet_has_32_buckets() -> None:
    with pytest.raises(ValueError, match="relative_attention_num_buckets is 64; allowed: 32"):
        ElasticBertConfig.from_plain(MPNetConfig(relative_attention_num_buckets=64))


def test_roberta_needs_a_padding_token() -> None:
    with pytest.raises(ValueError, match="pad_token_id is None"):
        ElasticBertConfig.from_plain(RobertaConfig(pad_token_id=None))


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match="architecture is 'gpt2'; allowed: 'bert', 'roberta', 'mpnet'"):
        ElasticBertConfig(architecture="gpt2")


@pytest.mark.parametrize("plain", [True, False])
def test_saved_form_opens_again(tmp_path: Path, architecture: str, plain: bool) -> None:
    config = ElasticBertConfig.from_plain(CONFIGS[architecture](**TINY))
    config.depth_rule = "reference"
    if not plain:
        config.layer_heads = (4, 3, 2, 1)
    assert (config.plain_obstacle() is None) == plain
    (tmp_path / "config.json").write_text(json.dumps(config.saved_form()), encoding="utf-8")
    found = ElasticBertConfig.from_pretrained(tmp_path)
    found.name_or_path = config.name_or_path
    assert found.to_dict() == config.to_dict()
    auto = AutoConfig.from_pretrained(tmp_path)
    assert auto.model_type == (architecture if plain else "elastic_bert")
    if plain:
        assert auto.elastic["depth_rule"] == "reference"
    else:
        assert isinstance(auto, ElasticBertConfig)
        with pytest.raises(ValueError, match="its layers differ in size"):
            config.to_plain()


def test_save_pretrained_of_the_configuration_alone(tmp_path: Path) -> None:
    config = ElasticBertConfig(num_hidden_layers=2, layer_heads=[3, 2], layer_neurons=[8, 6], head_dim=4)
    config.save_pretrained(tmp_path)
    found = ElasticBertConfig.from_pretrained(tmp_path, depth_rule="reference")
    assert (found.layer_heads, found.layer_neurons, found.head_dim) == ((3, 2), (8, 6), 4)
    assert (found.num_attention_heads, found.intermediate_size) == (3, 8)
    assert found.depth_rule == "reference"


@pytest.mark.parametrize(
    ("changes", "message"), [({"depth_rule": "x"}, "depth_rule"), ({"num_hidden_layers": 2}, "sub")]
)
def test_overrides_are_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    BertConfig(**TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        ElasticBertConfig.from_pretrained(tmp_path, **changes)


def test_another_number_of_labels(tmp_path: Path) -> None:
    BertConfig(**TINY, id2label={0: "a", 1: "b", 2: "c"}).save_pretrained(tmp_path)
    assert ElasticBertConfig.from_pretrained(tmp_path).id2label == {0: "a", 1: "b", 2: "c"}
    assert ElasticBertConfig.from_pretrained(tmp_path, num_labels=3).id2label == {0: "a", 1: "b", 2: "c"}
    assert ElasticBertConfig.from_pretrained(tmp_path, num_labels=5).num_labels == 5


def test_depth_rule_is_read_at_each_call() -> None:
    config = ElasticBertConfig(num_hidden_layers=4, num_attention_heads=2, hidden_size=8, intermediate_size=8)
    assert config.shape("d0.5").kept_layers == (1, 3)
    config.depth_rule = "reference"
    assert config.shape("d0.5").kept_layers == (0, 2)
    config.depth_rule = "middle"
    with pytest.raises(ValueError, match="depth_rule is 'middle'"):
        config.shape("d0.5")
