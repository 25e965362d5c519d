"""The export table: every row is an export that was compared, and the committed one holds what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import export_parity
from dynabert.export import parity
from tests.dynabert.exported import opened_here
from tests.dynabert.tiny_texts import tiny_model, tiny_tokenizer

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "export-parity.json"


def test_rows_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(parity, "opened_remote", opened_here)
    monkeypatch.setattr(export_parity, "SUBNETS", {"full": "w1-d1", "half of both": "w0.5-d0.5"})
    monkeypatch.setattr(export_parity, "networks", lambda: {"tiny": (tiny_model(), tiny_tokenizer())})
    out = tmp_path / "new" / "rows.json"
    assert export_parity.main(["--rows", str(out)]) == 0
    found = json.loads(out.read_text())
    refused = [row for row in found["rows"] if "refused" in row]
    assert [(row["subnet"], row["format"]) for row in refused] == [("w0.5-d0.5", "hf")]
    assert len(found["rows"]) == 2 * len(export_parity.COLUMNS)
    assert found["command"].startswith("python -m benchmarks.export_parity --rows ")
    assert "| tiny | half of both | refused | " in capsys.readouterr().out


def test_the_committed_rows() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    assert {row["format"] for row in rows} == set(export_parity.COLUMNS)
    assert {row["kind"] for row in rows} == set(export_parity.SUBNETS)
    for row in rows:
        if "refused" in row:
            assert row["format"] == "hf"
        else:
            assert row["max_difference"] <= 1e-4
