"""Opening and saving: every kind of file, both forms on disk, and every way a checkpoint can be broken."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForPreTraining,
    PreTrainedModel,
)

from dynabert import (
    ElasticBertConfig,
    ElasticBertForSequenceClassification,
    ElasticBertModel,
    Importance,
    compute_importance,
    rewire,
)
from dynabert.modeling.names import to_plain
from tests.dynabert.tiny_networks import CONFIGS, TINY, close, padded_batch, plain_model

LENGTHS = [7, 2, 11]
FOUR_TOKENS = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
SUBNETS = {
    "full": None,
    "ffn-cut": "h4,4,4,4-n30,30,30,30",
    "depth-cut": "d0.5",
    "heads-cut": "w0.5",
    "unequal": "h4,1,0,2-n7,40,0,1",
}


def logits(model: Any, batch: dict[str, Tensor], **arguments: Any) -> Tensor:
    with torch.no_grad():
        return model(**batch, **arguments).logits


def rewired(model: ElasticBertForSequenceClassification, seed: int = 0) -> ElasticBertForSequenceClassification:
    torch.manual_seed(seed)
    config = model.config
    scores = (torch.rand(config.num_hidden_layers, n) for n in (config.num_attention_heads, config.intermediate_size))
    return rewire(model, Importance(*scores))


def same_orders(one: ElasticBertForSequenceClassification, two: ElasticBertForSequenceClassification) -> bool:
    orders = [name for name, _ in one.named_buffers() if name.endswith("_order")]
    return bool(orders) and all(torch.equal(one.get_buffer(name), two.get_buffer(name)) for name in orders)


@pytest.fixture
def plain(architecture: str) -> PreTrainedModel:
    return plain_model(architecture)


@pytest.fixture
def folder(plain: PreTrainedModel, tmp_path: Path) -> Path:
    """A plain checkpoint on disk."""
    plain.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


# Every kind of file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin", "sharded bin", "no prefix", "old names"])
def test_opens_every_kind_of_file(plain: PreTrainedModel, folder: Path, kind: str) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    if kind != "safetensors":
        weights.unlink()
    if kind == "sharded":
        plain.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif kind == "sharded bin":
        names = sorted(tensors)
        halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
        for name, keys in halves.items():
            torch.save({key: tensors[key] for key in keys}, folder / name)
        weight_map = {key: name for name, keys in halves.items() for key in keys}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    elif kind == "no prefix":
        prefix = f"{plain.config.model_type}."
        save_file({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, weights)
    elif kind == "old names":
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        prefix = plain.config.model_type
        old[f"{prefix}.embeddings.position_ids"] = torch.arange(50)[None]  # old versions stored this buffer
        save_file(old, weights)
    model = ElasticBertForSequenceClassification.from_pretrained(folder)
    batch = padded_batch(plain, LENGTHS)
    close(logits(model, batch), logits(plain, batch))
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_model_does_not_follow_the_file(folder: Path, plain: PreTrainedModel) -> None:
    """Weights lie in memory of their own: whatever happens to the file afterwards changes nothing."""
    model = ElasticBertForSequenceClassification.from_pretrained(str(folder))
    batch = padded_batch(plain, LENGTHS)
    wanted = logits(model, batch)
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:  # in place, as a mapped file would show
        file.write(b"\0" * size)
    assert torch.equal(logits(model, batch), wanted)
    ElasticBertForSequenceClassification(model.config).save_pretrained(folder)
    assert torch.equal(logits(model, batch), wanted)
    shutil.rmtree(folder)
    assert torch.equal(logits(model, batch), wanted)


def test_bare_encoders(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = AutoModel.from_config(CONFIGS[architecture](**TINY)).eval()
    plain.save_pretrained(tmp_path)
    model = ElasticBertModel.from_pretrained(tmp_path)
    batch = padded_batch(plain, LENGTHS)
    with torch.no_grad():
        close(model(**batch).pooler_output, plain(**batch).pooler_output)
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert type(again) is type(plain)
    with torch.no_grad():
        close(again(**batch).pooler_output, plain(**batch).pooler_output)
    model.extract("w0.5").save_pretrained(tmp_path / "small")
    small = AutoModel.from_pretrained(tmp_path / "small")
    assert isinstance(small, ElasticBertModel)
    with torch.no_grad():
        close(small(**batch).pooler_output, model(**batch, subnet="w0.5").pooler_output)


def test_a_missing_head_is_fresh_said_aloud_and_seeded(
    architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = AutoModel.from_config(CONFIGS[architecture](**TINY), add_pooling_layer=False)
    plain.save_pretrained(tmp_path)
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with caplog.at_level(logging.WARNING, "dynabert"):
            models.append(ElasticBertForSequenceClassification.from_pretrained(tmp_path))
    assert "newly initialized: " in caplog.text
    assert "classifier" in caplog.text
    assert ("bert.pooler.dense.weight" in caplog.text) == (architecture == "bert")
    one, same, other = (model.classifier.out_proj.weight for model in models)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0 < one.std() < 0.1
    _, info = ElasticBertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert "classifier" in " ".join(info["missing_keys"])
    caplog.clear()
    with caplog.at_level(logging.WARNING, "dynabert"):
        ElasticBertModel.from_pretrained(tmp_path)
    assert "pooler.dense.weight" in caplog.text


def test_other_heads_are_left_out_and_said(architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = CONFIGS[architecture](**TINY)
    plain = BertForPreTraining(config) if architecture == "bert" else AutoModelForMaskedLM.from_config(config)
    plain.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "dynabert"):
        _, info = ElasticBertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    head = "cls." if architecture == "bert" else "lm_head."
    assert all(name.startswith(head) for name in info["unexpected_keys"])
    assert info["unexpected_keys"]
    assert f"are not used: {head}" in caplog.text


def test_another_number_of_labels(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"out_proj.weight is \(3, 24\)|classifier.weight is \(3, 24\)"):
        ElasticBertForSequenceClassification.from_pretrained(folder, num_labels=5)
    model = ElasticBertForSequenceClassification.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert model.classifier.out_proj.weight.shape == (5, 24)
    assert model.config.num_labels == 5


# Types, devices, arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (None, torch.float16),
        ("auto", torch.float16),
        ("bfloat16", torch.bfloat16),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes(tmp_path: Path, dtype: Any, wanted: torch.dtype) -> None:
    plain_model("bert").half().save_pretrained(tmp_path)
    model = ElasticBertForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert ElasticBertForSequenceClassification.from_pretrained(tmp_path).dtype == torch.float32
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ElasticBertForSequenceClassification.from_pretrained(tmp_path, dtype="auto").dtype == torch.float16


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "half precision", 16])
def test_wrong_dtypes(folder: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"dtype is .*; allowed: "):
        ElasticBertForSequenceClassification.from_pretrained(folder, dtype=dtype)


def test_device(folder: Path) -> None:
    model = ElasticBertForSequenceClassification.from_pretrained(folder, device="meta")
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}


def test_arguments_that_change_the_configuration(folder: Path) -> None:
    model = ElasticBertForSequenceClassification.from_pretrained(
        folder, depth_rule="reference", hidden_dropout_prob=0.5
    )
    assert model.config.depth_rule == "reference"
    assert model.config.hidden_dropout_prob == 0.5
    config = ElasticBertConfig.from_pretrained(folder)
    assert ElasticBertForSequenceClassification.from_pretrained(folder, config=config).config is not config
    with pytest.raises(TypeError, match="unknown arguments: colour"):
        ElasticBertForSequenceClassification.from_pretrained(folder, colour="red")
    with pytest.raises(TypeError, match="config given, so not also: depth_rule"):
        ElasticBertForSequenceClassification.from_pretrained(folder, config=config, depth_rule="reference")


# Broken checkpoints ---------------------------------------------------------------------------------------------------


def break_file(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    layer = next(name for name in tensors if "layer.2.intermediate.dense.weight" in name)
    if how == "no weights":
        weights.unlink()
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "not safetensors":
        weights.write_bytes(b"hello, world" * 100)
    elif how == "missing":
        for name in [name for name in tensors if "layer.2." in name]:
            del tensors[name]
        save_file(tensors, weights)
    elif how == "half a head":
        del tensors[next(name for name in tensors if name.startswith("classifier") and name.endswith("bias"))]
        save_file(tensors, weights)
    elif how == "unknown":
        save_file(tensors | {layer.replace("dense", "dance"): tensors[layer].clone()}, weights)
    elif how == "one layer too many":
        extra = {name.replace("layer.3.", "layer.4."): tensor.clone() for name, tensor in tensors.items()}
        save_file(extra | tensors, weights)
    elif how == "twice":
        prefix = layer.partition(".")[0]
        save_file(tensors | {layer.removeprefix(f"{prefix}."): tensors[layer].clone()}, weights)
    elif how == "shape":
        save_file(tensors | {layer: tensors[layer][:-1].contiguous()}, weights)
    elif how == "integers":
        save_file(tensors | {layer: tensors[layer].long()}, weights)
    elif how in ("bad bin", "pickle", "not tensors"):
        weights.unlink()
        path = folder / "pytorch_model.bin"
        torch.save(tensors if how == "bad bin" else {"a": 1} if how == "not tensors" else {"a": print}, path)
        if how == "bad bin":
            path.write_bytes(path.read_bytes()[:-1000])
    elif how in ("index", "shard missing", "shard elsewhere"):
        weights.unlink()
        shard = "../model-1.safetensors" if how == "shard elsewhere" else "model-1.safetensors"
        text = "{" if how == "index" else json.dumps({"weight_map": {layer: shard}})
        (folder / "model.safetensors.index.json").write_text(text)
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "config":
        (folder / "config.json").write_text('{"model_type": "be')
    else:
        raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("no weights", OSError, "has no weights; looked for model.safetensors, .* or pytorch_model.bin"),
        ("truncated", ValueError, "cannot read .*model.safetensors: .*; fetch it again"),
        ("empty", ValueError, "cannot read .*model.safetensors"),
        ("not safetensors", ValueError, "cannot read .*model.safetensors"),
        ("missing", ValueError, r"lacks 16 of \d+ tensors: .*layer.2.*and 10 more; fetch the whole checkpoint"),
        ("half a head", ValueError, "lacks 1 of .*classifier.*bias"),
        ("unknown", ValueError, "holds 1 tensors that a .* does not have: .*dance"),
        ("one layer too many", ValueError, "holds 16 tensors that a .*layer.4"),
        ("twice", ValueError, "holds 1 tensors"),
        ("shape", ValueError, r"layer.2.intermediate.dense.weight is \(39, 24\), the configuration says \(40, 24\)"),
        ("integers", ValueError, "not floating point: .*layer.2.intermediate.dense.weight"),
        ("bad bin", ValueError, "cannot read .*pytorch_model.bin"),
        ("pickle", ValueError, "cannot read .*pytorch_model.bin"),
        ("not tensors", ValueError, "it does not hold a state dict of tensors"),
        ("index", ValueError, "model.safetensors.index.json is not an index of shards"),
        ("shard missing", ValueError, "names the shard model-1.safetensors, which is not there"),
        ("shard elsewhere", ValueError, "names a shard outside its folder"),
        ("no config", OSError, "config.json"),
        ("config", OSError, "not a valid JSON"),
    ],
)
def test_broken_checkpoints(folder: Path, how: str, error: type[Exception], message: str) -> None:
    break_file(folder, how)
    with pytest.raises(error, match=message):
        ElasticBertForSequenceClassification.from_pretrained(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(OSError, match=r"has no weights; .*; its model\.onnx is for ONNX Runtime"):
        ElasticBertForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        ElasticBertForSequenceClassification.from_pretrained(tmp_path / "nowhere", local_files_only=True)


@pytest.mark.parametrize("use_safetensors", [True, False])
def test_refusing_a_kind_of_file(folder: Path, use_safetensors: bool) -> None:
    if use_safetensors:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="has no weights"):
        ElasticBertForSequenceClassification.from_pretrained(folder, use_safetensors=use_safetensors)


# Saving ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("subnet", sorted(SUBNETS))
def test_save_and_open(plain: PreTrainedModel, folder: Path, tmp_path: Path, subnet: str, permuted: bool) -> None:
    """Full, cut in each way, rewired or not: what is opened is what was saved, in both classes that can hold it."""
    architecture = plain.config.model_type
    model = ElasticBertForSequenceClassification.from_pretrained(folder)
    if permuted:
        rewired(model)
    model = model.extract(SUBNETS[subnet])
    batch = padded_batch(plain, LENGTHS)
    wanted = logits(model, batch)
    out = tmp_path / "out"
    model.save_pretrained(out)

    again = ElasticBertForSequenceClassification.from_pretrained(out)
    assert torch.equal(logits(again, batch), wanted)
    assert same_orders(again, model)
    assert again.config.elastic_block() == model.config.elastic_block()
    if model.scores is None:
        assert again.scores is None
    else:
        assert again.scores is not None
        assert all(torch.equal(a, b) for a, b in zip(again.scores, model.scores, strict=True))

    fits = subnet in ("full", "ffn-cut", "depth-cut") and not (architecture == "mpnet" and permuted)
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == (architecture if fits else "elastic_bert")
    assert config["elastic"]["architecture"] == architecture
    assert ("auto_map" in config) == (not fits)
    auto = AutoModelForSequenceClassification.from_pretrained(out)
    assert type(auto) is (type(plain) if fits else ElasticBertForSequenceClassification)
    assert auto.config.id2label == plain.config.id2label
    close(logits(auto, batch), wanted)


def run_elsewhere(code: str, **environment: str) -> list[Any]:
    """Runs code in a process of its own; its last line is JSON."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_plain_transformers_opens_the_full_network(tmp_path: Path) -> None:
    """In a process that never imports this project. BERT and RoBERTa are rewired; MPNet's shared bias forbids it."""
    wanted = []
    for architecture in ("bert", "roberta", "mpnet"):
        plain = plain_model(architecture)
        plain.save_pretrained(tmp_path / "plain")
        model = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "plain")
        if architecture != "mpnet":
            rewired(model)
        model.save_pretrained(tmp_path / architecture, max_shard_size="20KB")
        wanted.append(logits(plain, FOUR_TOKENS)[0])
    found = run_elsewhere(
        "import json, sys, torch\n"
        "from transformers import AutoModelForSequenceClassification\n"
        "found = []\n"
        "for name in ('bert', 'roberta', 'mpnet'):\n"
        f"    model = AutoModelForSequenceClassification.from_pretrained({str(tmp_path)!r} + '/' + name)\n"
        "    found.append(model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0].tolist())\n"
        "assert 'dynabert' not in sys.modules\n"
        "print(json.dumps(found))\n"
    )
    for ours, theirs in zip(found, wanted, strict=True):
        close(torch.tensor(ours), theirs)


def test_auto_map_opens_an_elastic_network_without_importing_anything(tmp_path: Path) -> None:
    plain_model("mpnet").save_pretrained(tmp_path / "plain")
    model = rewired(ElasticBertForSequenceClassification.from_pretrained(tmp_path / "plain")).extract("w0.5")
    out = tmp_path / "out"
    model.save_pretrained(out)
    name, found = run_elsewhere(
        "import json, torch\n"
        "from transformers import AutoModelForSequenceClassification\n"
        f"model = AutoModelForSequenceClassification.from_pretrained({str(out)!r}, trust_remote_code=True)\n"
        f"model.save_pretrained({str(tmp_path / 'again')!r})\n"
        "found = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0].tolist()\n"
        "print(json.dumps([type(model).__name__, found]))\n",
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )
    assert name == "ElasticBertForSequenceClassification"
    close(torch.tensor(found), logits(model, FOUR_TOKENS)[0])
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(path.name for path in out.iterdir())


def test_orders_and_scores_survive(folder: Path, tmp_path: Path) -> None:
    model = rewired(ElasticBertForSequenceClassification.from_pretrained(folder))
    model.save_pretrained(tmp_path / "one")
    once = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "one")
    assert once.config.rewired
    again = rewired(once, seed=5)
    again.save_pretrained(tmp_path / "two")
    twice = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "two")
    assert same_orders(again, twice)
    assert not same_orders(twice, model)


def test_a_rewired_network_without_its_orders(folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Copied without elastic.safetensors, or written anew by transformers, which keeps only the `elastic` block."""
    model = rewired(ElasticBertForSequenceClassification.from_pretrained(folder))
    model.save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "elastic.safetensors").unlink()
    if model.config.architecture == "mpnet":
        with pytest.raises(ValueError, match="heads cannot be matched with the relative position bias"):
            ElasticBertForSequenceClassification.from_pretrained(tmp_path / "out")
        return
    with caplog.at_level(logging.WARNING, "dynabert"):
        again = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert "where its heads and neurons once stood is not known" in caplog.text
    assert torch.equal(logits(again, FOUR_TOKENS), logits(model, FOUR_TOKENS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.1.head_order"), "lacks layers.1.head_order"),
        (lambda t: t.update({"layers.1.head_order": torch.tensor([0, 1, 2])}), "must hold 4 different places"),
        (lambda t: t.update({"layers.1.neuron_order": torch.zeros(40, dtype=torch.int64)}), "must hold 40 different"),
        (lambda t: t.update({"layers.1.head_order": torch.tensor([0, 1, 2, 9])}), "names heads outside 0 to 3"),
    ],
)
def test_broken_orders(tmp_path: Path, change: Any, message: str) -> None:
    plain_model("mpnet").save_pretrained(tmp_path)
    rewired(ElasticBertForSequenceClassification.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "elastic.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "elastic.safetensors")
    with pytest.raises(ValueError, match=message):
        ElasticBertForSequenceClassification.from_pretrained(tmp_path)


def test_a_later_save_leaves_nothing_behind(tmp_path: Path) -> None:
    plain_model("bert").save_pretrained(tmp_path / "plain")
    model = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "plain")
    out = tmp_path / "out"
    rewired(model).extract("w0.5").save_pretrained(out, max_shard_size="10KB")
    assert len(list(out.glob("model-*"))) > 1
    assert (out / "elastic.safetensors").is_file()
    ElasticBertForSequenceClassification.from_pretrained(tmp_path / "plain").save_pretrained(out)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]


def test_save_pretrained_arguments(tmp_path: Path) -> None:
    model = ElasticBertForSequenceClassification(CONFIGS["bert"](**TINY))
    model.save_pretrained(tmp_path / "no", is_main_process=False)
    assert not (tmp_path / "no").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file; give a folder"):
        model.save_pretrained(tmp_path / "file")
    other = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    other |= {name: tensor for name, tensor in model.state_dict().items() if name.endswith("_order")}
    model.save_pretrained(tmp_path / "zeros", state_dict=other)
    assert not load_file(tmp_path / "zeros" / "model.safetensors")["classifier.weight"].any()


def test_dtype_of_a_saved_network(tmp_path: Path) -> None:
    model = ElasticBertForSequenceClassification(CONFIGS["bert"](**TINY)).bfloat16()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert ElasticBertForSequenceClassification.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16


# State dicts ----------------------------------------------------------------------------------------------------------


def test_state_dicts_of_both_forms(plain: PreTrainedModel, folder: Path, tmp_path: Path) -> None:
    """A trainer puts the file it saved straight into `load_state_dict`."""
    model = rewired(ElasticBertForSequenceClassification.from_pretrained(folder))
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    batch = padded_batch(plain, LENGTHS)
    wanted = logits(model, batch)
    orders = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert tuple(model.load_state_dict(saved, strict=True)) == ([], [])
    assert torch.equal(logits(model, batch), wanted)
    assert all(torch.equal(buffer, orders[name]) for name, buffer in model.named_buffers())

    other = ElasticBertForSequenceClassification(model.config)
    other.load_state_dict(model.state_dict())
    assert same_orders(other, model)
    assert torch.equal(logits(other.eval(), batch), wanted)
    assert saved.keys() == to_plain(model.state_dict(), model.config, model.parts).keys()


def test_plain_state_dicts_that_do_not_fit(plain: PreTrainedModel) -> None:
    model = ElasticBertForSequenceClassification(plain.config)
    state = plain.state_dict()
    gone = next(name for name in state if "layer.1." in name and ("key.weight" in name or "attn.k.weight" in name))
    with pytest.raises(ValueError, match=f"lacks '{gone}'"):
        model.load_state_dict({name: tensor for name, tensor in state.items() if name != gone})
    with pytest.raises(RuntimeError, match="nonsense"):
        model.load_state_dict({**state, "nonsense": torch.zeros(1)})
    gone = next(name for name in state if "layer.1.output.dense.weight" in name)
    with pytest.raises(RuntimeError, match=r"layers.1.ffn_out_weight"):
        model.load_state_dict({name: tensor for name, tensor in state.items() if name != gone})


@pytest.mark.skipif(os.name != "posix", reason="modes of files are those of POSIX")
def test_a_saved_network_may_be_read_by_whom_the_umask_lets(folder: Path, tmp_path: Path) -> None:
    model = ElasticBertForSequenceClassification.from_pretrained(folder)
    inputs = {"input_ids": torch.tensor([[1, 5, 9, 2]]), "labels": torch.tensor([1])}
    before = os.umask(0o027)
    try:
        rewire(model, compute_importance(model, [inputs])).save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir() if path.is_file()}
    assert {"model.safetensors", "elastic.safetensors", "config.json"} <= modes.keys()
    assert set(modes.values()) == {0o640}


def test_weights_that_may_not_be_read_are_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that they are not there; and of the file, by name."""
    real = Path.open

    def refused(self: Path, *rest: Any, **named: Any) -> Any:
        if self.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *rest, **named)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError, match=r"Permission denied: .*model\.safetensors"):
        ElasticBertForSequenceClassification.from_pretrained(folder)
