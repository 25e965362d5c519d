"""The stress of one engine by many threads: it passes on a good engine and tells a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import engine_threads
from dynabert import InferenceEngine
from tests.dynabert.tiny_texts import tiny_folder, tiny_model, tiny_tokenizer


def test_a_good_engine_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tiny_folder(tmp_path / "model"), tmp_path / "a folder to make" / "row.json"
    given = ["--model", str(folder), "--seconds", "1.5", "--threads", "4", "--out", str(out)]
    assert engine_threads.main(given) == 0
    row = json.loads(out.read_text(encoding="utf-8"))
    assert row["answers"] > 20
    assert row["wrong"] == 0
    assert row["failed"] == []
    assert "--threads 4" in row["command"]
    assert json.loads(capsys.readouterr().out)["answers"] == row["answers"]


def test_a_wrong_answer_and_a_dying_thread_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InferenceEngine(tiny_model(), tiny_tokenizer())
    right, calls = engine.predict, [0]

    def mixed_up(texts: Any, subnet: Any = None) -> Any:
        calls[0] += 1
        if calls[0] == len(engine_threads.SUBNETS) + 20:
            raise ValueError("lost")
        other = isinstance(subnet, str) and calls[0] > len(engine_threads.SUBNETS) and subnet == "w0.25-d0.5"
        return right(texts, subnet="w1-d1" if other else subnet)

    monkeypatch.setattr(engine, "predict", mixed_up)
    found = engine_threads.run(engine, 1.5, 2)
    assert found["wrong"] > 0
    assert len(found["failed"]) == 1
    assert "ValueError: lost" in found["failed"][0]


@pytest.mark.parametrize("wrong", [["--seconds", "0"], ["--threads", "0"]])
def test_bad_numbers(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        engine_threads.main(wrong)
