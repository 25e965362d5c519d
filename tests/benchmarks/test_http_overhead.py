"""The benchmark of HTTP: both ways answer the same texts, and each is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import http_overhead
from tests.dynabert.tiny_texts import tiny_folder


def test_rows_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tiny_folder(tmp_path / "model"), tmp_path / "row.json"
    given = ["--model", str(folder), "--texts", "6", "--rounds", "2", "--callers", "1", "2", "--threads", "1"]
    assert http_overhead.main([*given, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [row["callers"] for row in found["rows"]] == [1, 2]
    for row in found["rows"]:
        assert row["added_ms"] == pytest.approx(row["http_median_ms"] - row["python_median_ms"], abs=2e-3)
        assert min(row["http_answers_a_second"], row["python_answers_a_second"]) > 0.0
    assert capsys.readouterr().out == http_overhead.report(found) + "\n"


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--callers", "0"], ["--texts", "0"], ["--rounds", "-1"]):
        with pytest.raises(SystemExit):
            http_overhead.main(wrong)
        assert "must be 1 or more" in capsys.readouterr().err


def test_a_server_that_does_not_begin_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="dynabert serve did not begin: dynabert serve: "),
        http_overhead.serving(str(tmp_path / "nowhere"), "float32", 1),
    ):
        pass
