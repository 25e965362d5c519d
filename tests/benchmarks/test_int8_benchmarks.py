"""Scores and times in int8: every row is there, on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import encoder_speed, int8_scores
from tests.dynabert.tiny_texts import some_texts, tiny_folder


def test_scores_of_every_variant_and_subnetwork(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_folder(tmp_path / "model", num_labels=2)
    lines = [f"{text}\t{index % 2}" for index, text in enumerate(some_texts(12))]
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "dev.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    given = ["--model_name_or_path", str(model), "--task_name", "sst2", "--data_dir", str(tmp_path / "SST-2")]
    assert int8_scores.main([*given, "--max_samples", "9", "--rows", str(tmp_path / "rows.json")]) == 0
    found = json.loads((tmp_path / "rows.json").read_text())
    assert found["examples"] == 9
    assert len(found["rows"]) == 12 * len(int8_scores.VARIANTS)
    plain = [row for row in found["rows"] if row["weights"] == "float32"]
    assert all(row["points_lost"] == 0 and row["same_answers"] == 1 for row in plain)
    assert found["mean_points_lost"]["float32"] == 0
    assert str(tmp_path) not in found["command"]
    assert "| w0.25-d0.5 |" in capsys.readouterr().out


def test_times_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoder_speed, "NETWORKS", {"tiny": (2, 32, 4, 64)})
    monkeypatch.setattr(encoder_speed, "BATCHES", ((1, 3), (2, 5)))
    out = tmp_path / "rows.json"
    assert encoder_speed.main(["--networks", "tiny", "--rounds", "2", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert len(found["rows"]) == 4
    assert all(row["times_faster"]["int8"] == 1 for row in found["rows"])
    assert "benchmarks.encoder_speed" in found["environment"]["command"]
    assert "tiny 2 x 5 width 0.25" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        encoder_speed.main(["--networks", "huge"])
