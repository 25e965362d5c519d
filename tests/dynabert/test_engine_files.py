"""Answering for whole files: every format in and out, columns, errors with their line, and nothing half written."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import math
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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
            "tokenise: the text of line 2 is too long; got 32",
        ),
        ("in.csv", 'text,"a\tb"\nx,y\n', "out.tsv", {}, "line 1: a .tsv cannot hold the tab"),
        (
            "in.jsonl",
            '{"text": "good"}\n{"text": "bad", "text": "good"}\n',
            "out.jsonl",
            {},
            "in.jsonl, line 2: not a JSON object (the key 'text' is there twice)",
        ),
        (
            "in.jsonl",
            '{"text": "good", "note": "a\\ud800b"}\n',
            "out.csv",
            {},
            r"in.jsonl, line 1: no valid Unicode in 'good,a\ud800b,LABEL",
        ),
        (
            "in.jsonl",
            '{"text": "good", "n\\ud800": 1}\n',
            "out.tsv",
            {},
            r"in.jsonl, line 1: no valid Unicode in 'text\tn\ud800\tpredicted",
        ),
        (
            "in.txt",
            "good\n" + "a " * 30 + "\n",
            "out.tsv",
            {"subnets": ["w1", "w0.5", "w0.25"]},
            "the text of line 2 is too long; got 32 tokens; allowed: 20",
        ),
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


def test_several_subnetworks_name_the_text_that_has_no_answer(tmp_path: Path) -> None:
    """Not its place in a list that has each text several times."""
    model = tiny_model()
    with torch.no_grad():  # only in the last head, which half the width has not
        model.encoder.layers[0].qkv_bias[-1] = math.nan
    path = write(tmp_path / "in.txt", "good\nbad\nbad film\n")
    with pytest.raises(
        ValueError, match=r"in\.txt: .*not finite for 3 of 3 texts \(the first: the text of line 1, sub-network w1"
    ):
        InferenceEngine(model, tiny_tokenizer()).predict_file(path, tmp_path / "out.tsv", subnets=["w0.5", "w1"])


def test_many_rows_at_several_subnetworks(engine: InferenceEngine, tmp_path: Path) -> None:
    texts = some_texts(1200)
    path = write(tmp_path / "in.txt", "\n".join(texts) + "\n")
    engine.predict_file(path, tmp_path / "out.jsonl", subnets=("w0.5", "w1-d0.5"), lookahead=1100)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    for name in ("w0.5-d1", "w1-d0.5"):
        wanted = [found.score for found in engine.predict(texts, subnet=name)]
        assert [row[f"predicted_score@{name}"] for row in rows] == pytest.approx(wanted, abs=1e-5)


def test_half_of_a_pair_stays_as_it_came(engine: InferenceEngine, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", '{"text": "good", "note": "a\\ud800"}\n{"text": "bad", "note": "\\u00e9"}\n')
    engine.predict_file(path, tmp_path / "out.jsonl")
    first, second = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["note"] == "a\ud800"
    assert '"note": "é"' in second


class _Table:
    """A parquet file as pyarrow gives it: rows with values that JSON has no form for."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.schema_arrow = rows, SimpleNamespace(names=list(rows[0]))

    def iter_batches(self, batch_size: int) -> list[Any]:
        return [SimpleNamespace(to_pylist=lambda: self.rows)]

    def close(self) -> None:
        pass


@pytest.fixture
def parquet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Writes no file that could be read, since pyarrow need not be there; readers are given the rows."""

    def made(**values: Any) -> Path:
        fake = SimpleNamespace(ParquetFile=lambda _: _Table([{"text": "good film", **values}]))
        monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=fake))
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", fake)
        return write(tmp_path / "in.parquet", "x")

    return made


def test_dates_and_decimals_of_a_parquet_are_text(
    engine: InferenceEngine, tmp_path: Path, parquet: Callable[..., Path]
) -> None:
    day, at = datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2, 3, 4, 5)
    path = parquet(day=day, at=at, price=Decimal("1.50"), days=[day], deep={"day": day})
    for name in ("out.jsonl", "out.csv"):
        engine.predict_file(path, tmp_path / name)
    row = json.loads((tmp_path / "out.jsonl").read_text())
    wanted = {"day": "2020-01-02", "at": "2020-01-02 03:04:05", "price": "1.50"}
    assert {key: row[key] for key in wanted} == wanted
    assert (row["days"], row["deep"]) == (["2020-01-02"], {"day": "2020-01-02"})
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as stream:
        (cells,) = csv.DictReader(stream)
    assert {key: cells[key] for key in wanted} == wanted


@pytest.mark.parametrize("value", [b"\xff", [b"\xff"], {"a": b"\xff"}])
@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "out.tsv"])
def test_bytes_are_no_text(
    engine: InferenceEngine, tmp_path: Path, parquet: Callable[..., Path], value: Any, out: str
) -> None:
    path = parquet(image=value)
    with pytest.raises(ValueError, match=r"in\.parquet, line 1: a value is bytes, b'.*; leave its column out"):
        engine.predict_file(path, tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["in.parquet"]


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


def test_an_output_that_cannot_be(engine: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in.txt", "good\n")
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(IsADirectoryError, match=r"out\.csv is a folder; give the name of a file in it"):
        engine.predict_file(path, tmp_path / "out.csv", overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; make it, or give another path"):
        engine.predict_file(path, tmp_path / "nowhere" / "out.csv")

    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "of the draft")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError) as error:
        engine.predict_file(path, tmp_path / "fresh.csv")
    assert error.value.filename == str(tmp_path / "fresh.csv")


def test_missing_input(engine: InferenceEngine, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        engine.predict_file(tmp_path / "in.txt", tmp_path / "out.tsv")
