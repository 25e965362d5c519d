"""The comparison of searched and uniform networks: its interval, its verdict, and a whole run on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import search_gain
from dynabert.profile.remeasure import Remeasured
from tests.dynabert.tiny_texts import some_texts, tiny_folder


class Profile:
    """A device that takes a tenth of a millisecond for a head and a hundredth for a neuron."""

    @classmethod
    def load(cls, path: str, *, check_device: bool = True, device: Any = None) -> Profile:
        return cls()

    def check_model(self, config: Any) -> None: ...

    def latencies_ms(self, heads: Any, neurons: Any, *point: Any) -> Any:
        return 0.5 + 0.1 * np.asarray(heads).sum(-1) + 0.01 * np.asarray(neurons).sum(-1)

    def latency_ms(self, subnet: Any, *point: Any) -> float:
        from tests.dynabert.tiny_texts import tiny_model

        shape = tiny_model().shape(subnet)
        return float(self.latencies_ms([shape.heads], [shape.neurons])[0])

    def cell(self, *point: Any) -> Any:
        return type("Cell", (), {"error": type("Error", (), {"mean": 0.01, "worst": 0.02})})


def test_pooled_interval() -> None:
    labels = np.arange(300) % 2
    right, wrong = labels, 1 - labels
    half = np.where(np.arange(300) % 3 == 0, wrong, right)
    mean, low, high = search_gain.pooled_interval([(right, half), (half, half)], labels, "accuracy", resamples=500)
    assert mean == pytest.approx(1.0 / 6.0)
    assert 0.12 < low < mean < high < 0.21
    assert search_gain.verdict(low, high) == "better"
    assert search_gain.verdict(-0.2, -0.1) == "worse"
    assert search_gain.verdict(-0.1, 0.1) == "not told apart"


def test_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("negative", "positive")
    model = tiny_folder(
        tmp_path / "model", num_labels=2, id2label=dict(enumerate(names)), label2id={"negative": 0, "positive": 1}
    )
    data = tmp_path / "SST-2"
    data.mkdir()
    for name, count in (("train", 50), ("dev", 30)):
        rows = "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(some_texts(count, seed=count)))
        (data / f"{name}.tsv").write_text("sentence\tlabel\n" + rows, encoding="utf-8")
    monkeypatch.setattr(search_gain, "DeviceProfile", Profile)
    monkeypatch.setattr(
        search_gain, "remeasure", lambda model, shapes, *_, **__: [Remeasured(1.0, 1.0, 0.0, "")] * len(shapes)
    )
    given = ["--task_name", "sst2", "--model", str(model), "--data_dir", str(tmp_path), "--profile", "p.json"]
    given += ["--at", "w0.5-d0.75", "--seq_length", "50", "--samples", "16", "--evaluations", "20", "--seeds", "0,1"]
    out = tmp_path / "rows" / "row.json"
    assert search_gain.main([*given, "--resamples", "50", "--out", str(out)]) == 0
    row = json.loads(out.read_text(encoding="utf-8"))
    assert [one["seed"] for one in row["seeds"]] == [0, 1]
    assert row["low"] <= row["mean_difference"] <= row["high"]
    for one in row["seeds"]:
        assert one["difference"] == pytest.approx(one["layered_score"] - one["uniform_score"])
        if one["uniform"] in row["uniform_scores"]:
            assert row["uniform_scores"][one["uniform"]] == one["uniform_score"]
        [theirs] = [finalist for finalist in one["finalists"] if finalist["subnet"] == one["uniform"]]
        assert theirs["uniform"]
        assert theirs["fresh"] == max(finalist["fresh"] for finalist in one["finalists"] if finalist["uniform"])
        assert Profile().latency_ms(one["layered"]) <= row["limit_ms"]
    assert row["mean_difference"] == pytest.approx(np.mean([one["difference"] for one in row["seeds"]]))
    assert "--at w0.5-d0.75" in row["command"]
    assert "seed" in capsys.readouterr().out
