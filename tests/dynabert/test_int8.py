"""A model with int8 weights: near the plain one at every sub-network, a quarter of the bytes, and no other use."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dynabert import ElasticBertForSequenceClassification, InferenceEngine
from dynabert.cli import main
from dynabert.rewiring import undo_rewiring
from tests.dynabert.test_engine import SUBNETS, some_texts
from tests.dynabert.test_modeling import LENGTHS, elastic
from tests.dynabert.tiny_networks import padded_batch, plain_model
from tests.dynabert.tiny_texts import tiny_folder

CHOICES: list[Any] = ["w1", "w0.5-d0.5", "w0.25-l0,2"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_near_the_plain_model_at_every_subnetwork(architecture: str, dtype: torch.dtype) -> None:
    plain = plain_model(architecture)
    batch, model = padded_batch(plain, LENGTHS), elastic(plain)
    small = copy.deepcopy(model).quantise_weights(dtype)
    assert small.has_packed_weights
    assert not model.has_packed_weights
    assert small.dtype == dtype
    mixed = (["w1", "w0.5", "w0.25-d0.5", "w0.75"] * len(LENGTHS))[: len(LENGTHS)]
    with torch.inference_mode():
        for subnet in [*CHOICES, mixed]:
            found, wanted = small(**batch, subnet=subnet).logits.float(), model(**batch, subnet=subnet).logits
            assert float((found - wanted).norm()) <= 0.1 * float(wanted.norm()), subnet
            assert not torch.equal(found, wanted)
        each = [small(**batch, subnet=subnet).logits[index] for index, subnet in enumerate(mixed)]
        assert torch.equal(torch.stack(each), small(**batch, subnet=mixed).logits)


def held(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def test_the_bytes_of_a_layer_and_of_a_model() -> None:
    """Before and after, of a layer of MiniLM's shape: 7,097,856 bytes in float32."""
    model = elastic(plain_model("bert", hidden_size=384, num_attention_heads=12, intermediate_size=1536))
    layer, rest = model.encoder.elastic_layers[0], model.encoder.embeddings
    orders = 8 * (12 + 1536)
    assert held(layer) - orders == 7_097_856
    before, beside = held(model), held(rest)
    model.quantise_weights(torch.bfloat16)
    assert held(layer) - orders == 1_874_688
    assert held(model) < 0.3 * before
    assert held(rest) == beside // 2
    assert all(not name.endswith(("qkv_weight", "ffn_in_weight")) for name, _ in model.named_parameters())
    matrix = layer.get_buffer("ffn_in_weight")
    assert matrix.dtype == torch.int8
    assert layer.int8 is not None
    assert layer.int8.ffn_in.weight.data_ptr() == matrix.data_ptr()  # one copy


@pytest.fixture
def small() -> ElasticBertForSequenceClassification:
    return elastic(plain_model("bert")).quantise_weights()


def test_no_other_use(small: ElasticBertForSequenceClassification, tmp_path: Path) -> None:
    batch = padded_batch(plain_model("bert"), LENGTHS)
    with pytest.raises(RuntimeError, match="in int8 for inference: it computes no gradients"):
        small(**batch)
    with torch.no_grad(), pytest.raises(RuntimeError, match="no state of each layer"):
        small(**batch, output_hidden_states=True)
    with torch.no_grad(), pytest.raises(RuntimeError, match="in int8 for inference"):
        small.train()(**batch)
    small.eval()
    with pytest.raises(RuntimeError, match="in int8 for inference and cannot be saved"):
        small.save_pretrained(tmp_path / "saved")
    with pytest.raises(RuntimeError, match="cannot be saved"):
        small.state_dict()
    with pytest.raises(RuntimeError, match="cannot be saved, copied out"):
        small.extract("w0.5")
    with pytest.raises(RuntimeError, match="cannot be moved or converted"):
        small.encoder.layers.float()
    with pytest.raises(RuntimeError, match="cannot be moved or converted"):
        small.to(torch.float32)
    assert small.dtype == torch.bfloat16  # nothing was converted on the way
    with pytest.raises(ValueError, match="packed for inference; load it anew"):
        undo_rewiring(small)
    with pytest.raises(ValueError, match="packed or in int8 already"):
        small.quantise_weights()


def test_a_copy_answers_the_same(small: ElasticBertForSequenceClassification) -> None:
    batch, other = padded_batch(plain_model("bert"), LENGTHS), copy.deepcopy(small)
    with torch.inference_mode():
        wanted = small(**batch, subnet="w0.5-d0.5").logits
        for layer in small.encoder.elastic_layers:
            layer.get_buffer("ffn_in_weight").zero_()
        assert not torch.equal(small(**batch, subnet="w0.5-d0.5").logits, wanted)
        assert torch.equal(other(**batch, subnet="w0.5-d0.5").logits, wanted)


def test_what_cannot_be_quantised() -> None:
    with pytest.raises(RuntimeError, match="in training mode; int8 does not train"):
        elastic(plain_model("bert")).train().quantise_weights()
    with pytest.raises(ValueError, match="the model is on meta; allowed: the CPU"):
        elastic(plain_model("bert")).to("meta").quantise_weights()
    with pytest.raises(ValueError, match=r"dtype is torch\.float16; allowed: torch\.bfloat16, torch\.float32"):
        elastic(plain_model("bert")).quantise_weights(torch.float16)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e39])
def test_a_weight_that_is_not_finite_leaves_all_layers_plain(wrong: float) -> None:
    """1e39: a number of float64 that float32, in which weights are quantised, does not have."""
    model = elastic(plain_model("bert")).double()
    batch = padded_batch(plain_model("bert"), LENGTHS)
    matrix = model.encoder.layers[2].ffn_out_weight
    kept = matrix[1, 1].item()
    with torch.no_grad():
        wanted = model(**batch).logits
        matrix[1, 1] = wrong
    with pytest.raises(ValueError, match="quantise_weights: ffn_out_weight of layer 2 holds NaN or infinity"):
        model.quantise_weights()
    assert not model.has_packed_weights
    assert model.dtype == torch.float64
    with torch.no_grad():
        matrix[1, 1] = kept
        assert torch.equal(model(**batch).logits, wanted)
    assert not model.has_int8_weights
    assert model.quantise_weights().has_int8_weights


def test_the_engine(tmp_path: Path) -> None:
    folder, texts = tiny_folder(tmp_path / "model"), some_texts(9)
    engine, plain = InferenceEngine.from_pretrained(folder, dtype="int8"), InferenceEngine.from_pretrained(folder)
    assert engine.dtype == torch.bfloat16
    for subnet in SUBNETS:
        for found, wanted in zip(
            engine.predict(texts, subnet=subnet), plain.predict(texts, subnet=subnet), strict=True
        ):
            assert found.logits == pytest.approx(wanted.logits, abs=0.5)
    with pytest.raises(ValueError, match="int8 runs on the CPU; device is cuda; use float16 or bfloat16 there"):
        InferenceEngine.from_pretrained(folder, dtype="int8", device="cuda")
    with pytest.raises(ValueError, match="pack_weights is False with int8"):
        InferenceEngine.from_pretrained(folder, dtype="int8", pack_weights=False)
    with pytest.raises(ValueError, match="allowed: float32, bfloat16, float16, and on a CPU int8"):
        InferenceEngine.from_pretrained(folder, dtype="int4")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny_folder(tmp_path / "model"))
    assert main(["predict", "--model_name_or_path", folder, "--dtype", "int8", "--json", "the good film"]) == 0
    engine = InferenceEngine.from_pretrained(folder, dtype="int8")
    wanted = engine.predict("the good film")
    found = json.loads(capsys.readouterr().out)[0]["predictions"][0]
    assert found == wanted.to_dict()
    (tmp_path / "reviews.tsv").write_text("text\tlabel\ngood film\tLABEL_1\nbad film\tLABEL_0\n", encoding="utf-8")
    given = ["eval", "--model_name_or_path", folder, "--file", str(tmp_path / "reviews.tsv"), "--json"]
    assert main([*given, "--dtype", "int8", "--subnets", "w1,w0.25-d0.5"]) == 0
    assert len(json.loads(capsys.readouterr().out)["subnets"]) == 2
    assert main(["rewire", "--model_name_or_path", folder, "--dtype", "int8"]) == 2
    assert "invalid choice: 'int8'" in capsys.readouterr().err
