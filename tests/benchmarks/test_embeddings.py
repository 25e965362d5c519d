"""The benchmark of an elastic sentence embedder, end to end on a tiny one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import embeddings
from benchmarks.embeddings import neighbours, quality, read_texts
from tests.dynabert.tiny_texts import some_texts, tiny_embedder_folder


def glue(folder: Path) -> Path:
    texts = [*dict.fromkeys(some_texts(60))]
    held_out = texts[:30]
    rows = [f"{n}\tx\t{a}\t{b}\t{n / 3}" for n, (a, b) in enumerate(zip(held_out[:15], held_out[15:], strict=True))]
    (folder / "STS-B").mkdir(parents=True)
    (folder / "STS-B" / "dev.tsv").write_text("index\tgenre\tsentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    (folder / "CoLA").mkdir()
    lines = [f"x\t1\t\t{text}" for text in texts[28:]]  # two of those that are scored are among them
    (folder / "CoLA" / "train.tsv").write_text("source\tlabel\tnotation\tsentence\n" + "\n".join(lines) + "\n")
    return folder


def test_scored_texts_are_left_out(tmp_path: Path) -> None:
    train, scored = read_texts(glue(tmp_path), ["cola"])
    assert not {*train.texts} & {*scored.texts, *(scored.seconds or ())}
    assert len(train) == len({*some_texts(60)}) - 30


def test_neighbours_and_quality() -> None:
    chance = np.random.default_rng(0)
    whole = chance.normal(size=(40, 8))
    near = neighbours(3.0 * whole, 10)
    assert near.shape == (40, 10)
    alike = whole @ whole.T / np.linalg.norm(whole, axis=1) / np.linalg.norm(whole, axis=1)[:, None]
    for place, own in enumerate(near):
        order = [other for other in np.argsort(-alike[place]) if other != place]
        assert {*own.tolist()} == {*order[:10]}
    labels = chance.random(20).tolist()
    same = quality(whole, whole, labels, np.arange(40))
    assert same["cosine"] == pytest.approx(1.0)
    assert same["neighbours"] == 1.0
    assert same["spearman"] == pytest.approx(same["spearman_index"])
    other = quality(chance.normal(size=(40, 8)), whole, labels, np.arange(40))
    assert other["neighbours"] < 0.6


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, out = tiny_embedder_folder(tmp_path / "model"), glue(tmp_path / "glue"), tmp_path / "row.json"
    given = [
        *("--model", str(model), "--data_dir", str(data), "--tasks", "cola", "--max_steps", "2", "--rounds", "1"),
        *("--output_dir", str(tmp_path / "run"), "--out", str(out)),
    ]
    assert embeddings.main(given) == 0
    found = json.loads(out.read_text())
    assert capsys.readouterr().out == embeddings.report(found) + "\n"
    assert [row["subnet"] for row in found["rows"]][:2] == ["w1-d1", "w0.75-d1"]
    assert set(found["rows"][0]) == {
        *("subnet", "parameters", "gflop", "untouched", "rewired", "width", "depth", "latency_ms", "texts_a_second")
    }
    assert found["rows"][0]["untouched"]["cosine"] == pytest.approx(1.0, abs=1e-4)
    assert (found["steps"], found["scored_on"]["pairs"], found["learning_rate"]) == (2, 15, 3e-4)
    with pytest.raises(SystemExit):
        embeddings.main([*given, "--rounds", "0"])
