"""Answering for whole files: every format in and out, columns, errors with their line, and nothing half written."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dynabert import InferenceEngine
from dynabert.engine import predict_file
from tests.dynabert.tiny_texts import some_texts, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    return InferenceEngine(tiny_model(), tiny_tokenizer(), max_length=20)


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8", newline="")
    return path


def test_txt_to_tsv(engine: InferenceEngine, tmp_path: Path) -> None:
    texts = some_texts(25)
    path = write(tmp_path / "in.txt", "\n".join(texts) + "\n")
    summary = engine.predict_file(path, tmp_path / "out.tsv", subnets="w0.5", lookahead=10)
    assert (summary.rows, summary.subnets) == (25, ("w0.5-d1",))
    header, *rows = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert header == ["text", "predicted_label", "predicted_score"]
    for row, text, found in zip(rows, texts, engine.predict(texts, subnet="w0.5"), strict=True):
        assert row[0] == text
        assert row[1] == found.label
        assert float(row[2]) == pytest.approx(found.score, abs=1e-5)
    assert not (tmp_path / "out.tsv.part").exists()


def test_tsv_to_jsonl_with_several_subnetworks(engine: InferenceEngine, tmp_path: Path) -> None:
    path = write(tmp_path / "in.tsv", 'id\tsentence\n7\tgood "film\n8\tbad plot\n')
    engine.predict_file(path, tmp_path / "out.jsonl", subnets=["w1", "w0.25-d0.5"])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["7", "8"]
    assert rows[0]["sentence"] == 'good "film'
    for row in rows:
        for name in ("w1-d1", "w0.25-d0.5"):
            found = engine.predict(row["sentence"], subnet=name)
            assert row[f"predicted_label@{name}"] == found.label
            assert row[f"predicted_scores@{name}"] == pytest.approx(found.scores, abs=1e-6)


def test_csv_to_csv_keeps_quoted_fields(engine: InferenceEngine, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", 'note,text\n"a, ""b""\nc",good film\n')
    engine.predict_file(path, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["note"] == 'a, "b"\nc'
    assert rows[0]["predicted_label"] == engine.predict("good film").label


def test_values_of_a_jsonl_in_a_csv(engine: InferenceEngine, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "good film", "meta": {"ok": True, "x": None}, "list": ["ä\tb", 1.5], "yes": True, "no": None, "n": 3},
        {"text": "bad plot", "predicted": 1, "meta": {}} | {"list": []},
    ]
    rows[0]["predicted"] = 2.5
    path = write(tmp_path / "in.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for name, delimiter, quoting in (("out.csv", ",", csv.QUOTE_MINIMAL), ("out.tsv", "\t", csv.QUOTE_NONE)):
        engine.predict_file(path, tmp_path / name)
        with open(tmp_path / name, encoding="utf-8", newline="") as stream:
            first, second = csv.DictReader(stream, delimiter=delimiter, quoting=quoting)
        assert json.loads(first["meta"]) == rows[0]["meta"]
        assert json.loads(first["list"]) == rows[0]["list"]
        assert "ä" in first["list"]
        assert [first[key] for key in ("yes", "no", "n", "predicted")] == ["true", "", "3", "2.5"]
        assert [second[key] for key in ("meta", "list", "yes", "no", "n", "predicted")] == ["{}", "[]", "", "", "", "1"]


def test_rows_of_a_jsonl_keep_what_the_first_has_not(engine: InferenceEngine, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", '{"text": "good"}\n{"text": "bad", "note": [1]}\n')
    engine.predict_file(path, tmp_path / "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.get("note") for row in found] == [None, [1]]


def test_gz_in_and_out_and_pairs(engine: InferenceEngine, tmp_path: Path) -> None:
    path = tmp_path / "in.tsv.gz"
    path.write_bytes(gzip.compress(b"sentence1\tsentence2\ngood film\tbad plot\n"))
    engine.predict_file(path, tmp_path / "out.jsonl.gz")
    row = json.loads(gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()))
    assert row["predicted_score"] == pytest.approx(engine.predict(("good film", "bad plot")).score, abs=1e-6)


def test_named_columns(engine: InferenceEngine, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", "text,other\ngood,bad film\n")
    engine.predict_file(path, tmp_path / "out.jsonl", text_column="other")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["predicted_score"] == pytest.approx(engine.predict("bad film").score, abs=1e-6)


def test_multi_label_and_regression_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "in.txt", "good film\n")
    many = InferenceEngine(tiny_model(problem_type="multi_label_classification"), tiny_tokenizer(), threshold=0.0001)
    many.predict_file(path, tmp_path / "many.jsonl")
    assert json.loads((tmp_path / "many.jsonl").read_text())["predicted_label"] == list(
        many.predict("good film").labels
    )
    few = InferenceEngine(tiny_model(problem_type="multi_label_classification"), tiny_tokenizer(), threshold=0.9999)
    few.predict_file(path, tmp_path / "few.jsonl")
    assert json.loads((tmp_path / "few.jsonl").read_text())["predicted_label"] == []
    named = tiny_model(problem_type="multi_label_classification", id2label={0: "a|b", 1: "c", 2: "d"})
    joined = InferenceEngine(named, tiny_tokenizer(), threshold=0.0001)
    with pytest.raises(ValueError, match=r"line 1: the labels .* cannot be joined by '\|'"):
        joined.predict_file(path, tmp_path / "joined.csv")
    number = InferenceEngine(tiny_model(num_labels=1), tiny_tokenizer())
    number.predict_file(path, tmp_path / "number.tsv")
    row = (tmp_path / "number.tsv").read_text().splitlines()[1].split("\t")
    assert row[1] == ""
    assert float(row[2]) == pytest.approx(number.predict("good film").score, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "out", "options", "wrong"),
    [
        ("in.txt", "good\n", "out.xlsx", {}, "does not say its format"),
        ("in.txt", "good\n", "out.txt", {}, "cannot write 'out.txt'; allowed: .tsv, .csv or .jsonl"),
        ("in.txt", "good\n", "out.tsv", {"subnets": []}, "the list of sub-networks is empty"),
        ("in.txt", "good\n", "out.tsv", {"subnets": ["w1", "w1-d1"]}, "a sub-network is named twice in w1-d1, w1-d1"),
        ("in.txt", "good\n", "out.tsv", {"lookahead": 0}, "lookahead is 0"),
        ("in.txt", "good\n", "out.tsv", {"subnets": "w0.3"}, "width_mult 0.3"),
        ("in.txt", "", "out.tsv", {}, "in.txt: no rows in it"),
        ("in.tsv", "text\tid\n \t1\n", "out.tsv", {}, "in.tsv, line 2: the text in column 'text' is empty"),
        ("in.tsv", "text\tid\ngood\n", "out.tsv", {}, "in.tsv, line 2: 1 fields between tabs"),
        ("in.tsv", "text\tpredicted_label\ngood\tx\n", "out.tsv", {}, "already has a column 'predicted_label'"),
        (
            "in.csv",
            'text,note\ngood,"a\tb"\n',
            "out.tsv",
            {},
            "line 2: a .tsv cannot hold the tab or line end in 'a\\tb'",
        ),
        (
            "in.txt",
            "good\n" + "a " * 30 + "\n",
            "out.tsv",
            {},
            "lines 1 to 2 (text 0 is line 1): tokenise: text 1 is too long; got 32",
        ),
        ("in.csv", 'text,"a\tb"\nx,y\n', "out.tsv", {}, "line 1: a .tsv cannot hold the tab"),
        ("in.csv", "a,b\nx,y\n", "out.tsv", {}, "no column has a known name for the text"),
        (
            "in.jsonl",
            '{"text": "good"}\n{"text": "bad", "predicted_label": "mine"}\n',
            "out.jsonl",
            {},
            "in.jsonl, line 2: the row has a 'predicted_label' already; rename it",
        ),
        (
            "in.jsonl",
            '{"text": "good"}\n{"text": "bad", "predicted_scores@w0.5-d1": 1}\n',
            "out.jsonl",
            {"subnets": ["w1", "w0.5"], "lookahead": 1},
            "in.jsonl, line 2: the row has a 'predicted_scores@w0.5-d1' already",
        ),
        (
            "in.jsonl",
            '{"text": "good", "id": 1}\n{"text": "bad", "note": "mine"}\n',
            "out.csv",
            {"lookahead": 1},
            "in.jsonl, line 2: the key 'note' is not in the first row, so the .csv has no column for it; give it to",
        ),
    ],
)
def test_refusals_leave_nothing_behind(
    engine: InferenceEngine, tmp_path: Path, name: str, content: str, out: str, options: dict[str, Any], wrong: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=":") as error:
        predict_file(engine, path, tmp_path / out, **options)
    assert wrong in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_truncate(engine: InferenceEngine, tmp_path: Path) -> None:
    path = write(tmp_path / "in.txt", "a " * 30 + "\n")
    assert engine.predict_file(path, tmp_path / "out.tsv", truncate=True).rows == 1


def test_existing_output_is_kept(engine: InferenceEngine, tmp_path: Path) -> None:
    path, out = write(tmp_path / "in.txt", "good\n"), write(tmp_path / "out.tsv", "mine")
    with pytest.raises(FileExistsError, match=r"out\.tsv exists; give another name or ask for overwriting"):
        engine.predict_file(path, out)
    assert out.read_text() == "mine"
    engine.predict_file(path, out, overwrite=True)
    assert out.read_text().startswith("text\t")


def test_missing_input(engine: InferenceEngine, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        engine.predict_file(tmp_path / "in.txt", tmp_path / "out.tsv")
