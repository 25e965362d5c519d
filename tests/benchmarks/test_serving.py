"""The serving benchmark: both servers get the same requests, and each is answered and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import serving
from tests.dynabert.tiny_texts import tiny_folder


def test_arrivals_are_random_and_repeatable() -> None:
    times = serving.arrivals(100.0, 20.0, seed=3)
    assert times == serving.arrivals(100.0, 20.0, seed=3) != serving.arrivals(100.0, 20.0, seed=4)
    assert times == sorted(times)
    assert times[0] > 0.0
    assert times[-1] < 20.0
    assert 1800 < len(times) < 2200


def test_rows_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder(tmp_path / "model")
    out = tmp_path / "row.json"
    given = ["--model", str(folder), "--seconds", "0.2", "--loads", "0.05", "0.2", "--promise_ms", "500"]
    assert serving.main([*given, "--subnets", "w1-d1", "w0.25-d0.5", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [(row["load"], row["server"]) for row in found["rows"]] == [
        (0.05, "whole"),
        (0.05, "elastic"),
        (0.2, "whole"),
        (0.2, "elastic"),
    ]
    for whole, elastic in (found["rows"][:2], found["rows"][2:]):
        assert whole["requests"] == elastic["requests"] > 0
        assert whole["subnets"] == {"w1-d1": whole["requests"]}
        assert sum(elastic["subnets"].values()) == elastic["requests"]
        assert 0 < whole["p50_ms"] <= whole["p95_ms"] <= whole["p99_ms"]
    assert [own["subnet"] for own in found["ladder"]] == ["w1-d1", "w0.25-d0.5"]
    table = capsys.readouterr().out
    assert table == serving.report(found) + "\n"
    assert table.count("\n| 0.") == 2


def test_urgent_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tiny_folder(tmp_path / "model"), tmp_path / "row.json"
    given = [
        "--model",
        str(folder),
        "--seconds",
        "0.3",
        "--loads",
        "0.2",
        "--promise_ms",
        "500",
        "--urgent_share",
        "0.3",
    ]
    assert serving.main([*given, "--urgent_ms", "250", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    whole, elastic, others, urgent = found["rows"]
    assert [row["server"] for row in found["rows"]] == ["whole", "elastic", "beside urgent", "urgent"]
    assert (urgent["promise_ms"], others["promise_ms"]) == (250.0, 500.0)
    assert whole["requests"] == elastic["requests"] == others["requests"] + urgent["requests"]
    assert capsys.readouterr().out == serving.urgent_report(found) + "\n"
    with pytest.raises(SystemExit):
        serving.main([*given, "--urgent_ms", "600"])
    assert "--urgent_ms above 0, below --promise_ms" in capsys.readouterr().err


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--seconds", "0"], ["--promise_ms", "-1"], ["--loads", "1", "0"]):
        with pytest.raises(SystemExit):
            serving.main(wrong)
        assert "must be above 0" in capsys.readouterr().err
