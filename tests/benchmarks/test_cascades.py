"""The benchmark of cascades, on answers that are made up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy.predictions import Predictions
from benchmarks.cascades import found_predictions, main

NAMES = ("w1-d1", "w0.5-d0.5", "w0.25-d0.5")


def made_up(path: Path, seed: int, *, regression: bool = False) -> None:
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 2, 150)
    logits = {}
    for name, noise in zip(NAMES, (0.1, 1.0, 1.5), strict=True):
        values = np.eye(2)[labels] * 2.0 + chance.normal(0.0, noise, (150, 2))
        logits[name] = values.astype(np.float32)
    Predictions(labels.astype(float) if regression else labels, "accuracy", logits).save(path)


def test_the_row_and_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "predictions"
    made_up(root / "sst2" / "seed43" / "predictions" / "dynabert.npz", 0)
    made_up(root / "sst2" / "seed42" / "predictions" / "dynabert.npz", 1)
    made_up(root / "mrpc" / "seed7" / "predictions" / "short.npz", 2)
    made_up(root / "mrpc" / "seed8" / "predictions" / "best.npz", 3)
    made_up(root / "stsb" / "seed42" / "predictions" / "dynabert.npz", 4, regression=True)
    found = found_predictions(root)
    assert {task: (recipe, seed) for task, (recipe, seed, _) in found.items()} == {
        "sst2": ("paper", 42),
        "mrpc": ("best", 8),
    }
    latency = {"batch_size": 1, "seq_length": 128, "dtype": "float32", "device": "cpu"}
    times = [{"subnet": name, "latency_ms": ms} for name, ms in zip(NAMES, (8.0, 2.0, 1.0), strict=True)]
    (tmp_path / "demo.json").write_text(json.dumps({"subnets": times, "latency": latency}))
    given = ["--predictions", str(root), "--times", str(tmp_path / "demo.json"), "--out", str(tmp_path / "row.json")]
    assert main(given) == 0
    row = json.loads((tmp_path / "row.json").read_text())
    assert [own["task"] for own in row["tasks"]] == ["sst2", "mrpc"]
    for own in row["tasks"]:
        for one in own["rows"]:
            assert one["cascade_time"] <= one["share"] + 0.05
            assert one["low"] <= one["difference"] <= one["high"]
            assert one["difference"] == pytest.approx(one["cascade_score"] - one["alone_score"])
            assert 0.0 < one["unlabelled_agreement"] <= 1.0
            assert one["unlabelled_time"] <= one["share"] + 0.05
            assert one["unlabelled_retention"] == pytest.approx(one["unlabelled_score"] / own["whole_score"])
        assert own["rows"][0]["cascade_score"] > own["rows"][0]["alone_score"]
    assert capsys.readouterr().out.count("| SST-2, `paper` |") == 2


def test_a_folder_without_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--predictions", str(tmp_path)])
    assert "holds no predictions of a task of classes" in capsys.readouterr().err
