"""What a user gets wrong before any network runs, and networks whose numbers are broken: one clear error each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynabert import ElasticBertForSequenceClassification, InferenceEngine, SubnetConfig
from dynabert.cli import main
from tests.dynabert.tiny_texts import some_texts, tiny_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(tiny_folder(tmp_path / "model"))


def poisoned(folder: Path) -> Path:
    """The checkpoint with a NaN in a weight that every text passes."""
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    weights[name] = weights[name] * float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="here cuda is a device that is there")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there(folder: Path, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"PyTorch finds 0 GPUs here; use cpu"):
        InferenceEngine.from_pretrained(folder, device=device)
    assert main(["predict", "--model_name_or_path", str(folder), "--device", device, "good"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("device", ["foo", "meta", "mps"])
def test_an_unknown_device(folder: Path, device: str) -> None:
    with pytest.raises(ValueError, match="allowed: cpu, cuda or cuda:N"):
        InferenceEngine.from_pretrained(folder, device=device)


def test_outputs_that_are_not_numbers(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(poisoned(folder))
    with pytest.raises(ValueError, match="outputs are not finite for 1 of 1 texts"):
        InferenceEngine.from_pretrained(path).predict("good")
    assert main(["predict", "--model_name_or_path", path, "--json", "good"]) == 1
    table = tmp_path / "d.tsv"
    rows = "\n".join(f"{text}\t{i % 2}" for i, text in enumerate(some_texts(4)))
    table.write_text(f"text\tlabel\n{rows}\n", encoding="utf-8")
    assert main(["eval", "--model_name_or_path", path, "--file", str(table), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not finite" in captured.err


@pytest.mark.parametrize(
    ("path", "message"), [("./nothing/here", "there is no folder"), ("a/b/c", "there is no folder")]
)
def test_a_folder_that_is_not_there(path: str, message: str) -> None:
    with pytest.raises(OSError, match=message):
        ElasticBertForSequenceClassification.from_pretrained(path)


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(OSError, match="is a file; give the folder"):
        ElasticBertForSequenceClassification.from_pretrained(folder / "config.json")


def test_a_wrong_type_in_the_configuration(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] = "x"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"the config\.json of .* does not hold"):
        ElasticBertForSequenceClassification.from_pretrained(folder)


def test_half_a_character(folder: Path) -> None:
    with pytest.raises(ValueError, match="no valid Unicode"):
        InferenceEngine.from_pretrained(folder).predict(["good", "\ud800"])


def test_digits_of_other_scripts_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="sub-network"):
        SubnetConfig.parse("w\u0967")
