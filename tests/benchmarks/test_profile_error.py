"""The measurement of a profile's error, on a tiny network: its rows, its summary, its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import profile_error
from tests.dynabert.tiny_texts import tiny_model


def test_rows_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(profile_error, "opener", lambda _: lambda _: tiny_model())
    monkeypatch.setattr(profile_error, "WORST_GOAL", 1e9)
    monkeypatch.setattr(profile_error, "MEAN_GOAL", 1e9)
    out = tmp_path / "a folder to make" / "row.json"
    options = ["--dtypes", "float32", "--batch_sizes", "1,2", "--seq_lengths", "4,8", "--minutes", "0.005"]
    assert profile_error.main([*options, "--check", "6", "--threads", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert "benchmarks.profile_error" in found["environment"]["command"]
    assert [one["model"] for one in found["models"]] == ["minilm", "base"]
    assert len(found["rows"]) == 8
    for row in found["rows"]:
        assert row["networks"] == 6
        assert row["within_goals"]
        assert 0.0 <= row["mean"] <= row["worst"]
    for one in found["models"]:
        own = [row for row in found["rows"] if row["model"] == one["model"]]
        assert one["networks"] == 24
        assert one["worst"] == max(row["worst"] for row in own)
        assert one["mean"] == pytest.approx(sum(row["mean"] for row in own) / 4)
    assert "minilm float32 1 x 4: 6 sub-networks" in capsys.readouterr().out


def test_a_missed_goal_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_error, "opener", lambda _: lambda _: tiny_model())
    monkeypatch.setattr(profile_error, "WORST_GOAL", -1.0)
    options = ["--models", "base", "--dtypes", "float32", "--batch_sizes", "1", "--seq_lengths", "4"]
    assert profile_error.main([*options, "--minutes", "0.001", "--check", "2"]) == 1


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    for options, wrong in ((["--models", "huge"], "--models has huge"), (["--check", "0"], "--check is 0")):
        with pytest.raises(SystemExit):
            profile_error.main(options)
        assert wrong in capsys.readouterr().err
