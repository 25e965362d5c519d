"""Reading tables: quotes, line ends, compression, columns, labels, and every kind of bad row with its file and line."""

from __future__ import annotations

import gc
import gzip
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from dynabert.data import RowReader, find_columns, read_examples
from dynabert.data.rows import table_format


def write(path: Path, content: str | bytes) -> Path:
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return path


# Formats
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_tsv_splits_on_tabs_only(tmp_path: Path, name: str) -> None:
    found = read_examples(write(tmp_path / name, 'sentence\tlabel\n" he said\t0\nit, "is" fine\t1\n"a" b"\t1\n'))
    assert found.texts == ('" he said', 'it, "is" fine', '"a" b"')
    assert found.labels == (0, 1, 1)
    assert found.label_names == ("0", "1")
    assert found.columns == ("sentence", "label")


def test_tsv_with_crlf(tmp_path: Path) -> None:
    found = read_examples(write(tmp_path / "a.tsv", "text\tlabel\r\ngood\tyes\r\nbad\tno\r\n\r\n"))
    assert found.texts == ("good", "bad")
    assert found.label_names == ("no", "yes")
    assert found.labels == (1, 0)


def test_carriage_return_inside_a_field_is_text(tmp_path: Path) -> None:
    found = read_examples(write(tmp_path / "a.tsv", "label\ttext\n1\tone\rtwo\n0\tthree\r\n"))
    assert found.texts == ("one\rtwo", "three\r")


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    found = read_examples(write(tmp_path / "a.tsv", b"\xef\xbb\xbftext\tlabel\nx\t1\ny\t0\n"))
    assert found.columns == ("text", "label")


def test_csv_follows_rfc_4180(tmp_path: Path) -> None:
    content = 'text,label\r\n"one, ""two""\r\nthree",pos\r\nfour,neg\r\n'
    found = read_examples(write(tmp_path / "a.csv", content))
    assert found.texts == ('one, "two"\r\nthree', "four")


def test_csv_names_the_line_a_record_starts_at(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",1\nthree\n')
    with pytest.raises(ValueError, match=r"a\.csv, line 4: 1 fields, the header has 2 \(text, label\); found 'three'"):
        read_examples(path)


def test_csv_with_a_broken_quote(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one" two,1\n')
    with pytest.raises(ValueError, match=r"a\.csv, line 2: not valid CSV"):
        read_examples(path)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (
            "text,label\ra,0\rb,1\r",
            "line 1: not valid CSV (a line ends in a carriage return alone); save the file with",
        ),
        ('text,label\na,0\n"b,1\n', "line 3: not valid CSV (a quotation mark is opened and not closed before the file"),
    ],
)
def test_a_broken_csv_in_words(tmp_path: Path, content: str, wrong: str) -> None:
    with pytest.raises(ValueError, match="CSV") as error:
        read_examples(write(tmp_path / "a.csv", content))
    assert wrong in str(error.value)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    for folder in (tmp_path, tmp_path / "a.csv"):
        with pytest.raises(IsADirectoryError, match="is a folder; give the path of a table in it"):
            read_examples(folder)


def test_jsonl(tmp_path: Path) -> None:
    lines = [{"text": "one", "label": "b"}, {"label": "a", "text": "two\nlines"}]
    found = read_examples(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n"))
    assert found.texts == ("one", "two\nlines")
    assert found.labels == (1, 0)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object but list"),
        ('{"label": 1}', "column 'text' is missing; found 'label'"),
        ('{"text": 3, "label": 1}', "column 'text' holds int 3, not a text"),
        ('{"text": "x"}', "no label in column 'label'; found None"),
        ('{"text": "x", "label": true}', "no label in column 'label'; found True"),
        ('{"text": "x", "label": [1]}', "column 'label' holds a list, [1]; allowed here: one label"),
        ('{"text": "x", "text": "y"}', "not a JSON object (the key 'text' is there twice)"),
        ('{"text": "x", "more": {"a": 1, "a": 2}}', "not a JSON object (the key 'a' is there twice)"),
        ('{"text": "x", "label": ' + "9" * 5000 + "}", "not a JSON object (a number has too many digits)"),
        ('{"text": "x", "label": 1e400}', "the number '1e400' is too large for a 64-bit float"),
        ('{"text": "x", "label": 0, "more": [-1E+400]}', "the number '-1E+400' is too large for a 64-bit float"),
        ('{"text": "x", "label": 0, "more": 0.02e-400}', "the number '0.02e-400' is too small for a 64-bit float"),
        ("[" * 100_000, "not a JSON object (lists or objects within each other, too many)"),
    ],
)
def test_bad_jsonl_line(tmp_path: Path, line: str, wrong: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "fine", "label": 0}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: ") as error:
        read_examples(path)
    assert wrong in str(error.value)
    with pytest.warns(UserWarning, match=r"1 bad rows were left out; the first: .*line 2"):
        assert read_examples(path, bad_rows="skip").texts == ("fine",)


def test_txt_is_one_text_a_line(tmp_path: Path) -> None:
    found = read_examples(write(tmp_path / "a.txt", "one\ntwo \r\n"), need_labels=False)
    assert found.texts == ("one", "two ")
    assert found.labels is None
    assert found.problem_type is None


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match="pyarrow is not installed"):
        read_examples(write(tmp_path / "a.parquet", "x"))


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed; it is an optional extra")
    import pyarrow

    parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [1, 0]}), tmp_path / "a.parquet")
    assert read_examples(tmp_path / "a.parquet").labels == (1, 0)


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.parquet.gz", "tsv"])
def test_unknown_format(name: str) -> None:
    with pytest.raises(ValueError, match="does not say its format"):
        table_format(name)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_examples(tmp_path / "a.tsv")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="the file is empty"):
        read_examples(write(tmp_path / name, ""))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_header_alone(tmp_path: Path, name: str) -> None:
    separator = "\t" if name == "a.tsv" else ","
    with pytest.raises(ValueError, match="no examples in it"):
        read_examples(write(tmp_path / name, f"text{separator}label\n"))


@pytest.mark.parametrize(("name", "header"), [("a.tsv", "\n"), ("a.csv", "\n"), ("a.csv", ",\n"), ("a.tsv", "\t\n")])
def test_a_header_without_names(tmp_path: Path, name: str, header: str) -> None:
    with pytest.raises(ValueError, match=r"line 1: the header names no column; the column names are needed there"):
        read_examples(write(tmp_path / name, f"{header}text{header.strip()}\n"))


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text,text\n"), ("a.jsonl", "[1]\n"), ("a.tsv", b"\xff\n")])
def test_a_refused_file_is_closed(tmp_path: Path, name: str, content: str | bytes) -> None:
    path = write(tmp_path / name, content)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="line 1"):
            RowReader(path)
        gc.collect()
    assert [str(one.message) for one in seen] == []


# Bad rows
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("only", "1 fields between tabs, the header has 2 (text, label); found 'only'"),
        ("a\t1\tb", "3 fields between tabs"),
        (" \t1", "the text in column 'text' is empty; found ' '"),
        ("a\t ", "the label in column 'label' is empty"),
    ],
)
def test_bad_tsv_row(tmp_path: Path, row: str, wrong: str) -> None:
    path = write(tmp_path / "a.tsv", f"text\tlabel\nx\t0\n{row}\ny\t1\n")
    with pytest.raises(ValueError, match=r"a\.tsv, line 3: ") as error:
        read_examples(path)
    assert wrong in str(error.value)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.txt"])
def test_blank_line_before_more_text(tmp_path: Path, name: str) -> None:
    content = {"a.tsv": "text\tlabel\nx\t0\n\ny\t1\n", "a.csv": "text,label\nx,0\n\ny,1\n", "a.txt": "a\nb\n\nc\n"}[
        name
    ]
    with pytest.raises(ValueError, match="line 3: the line is blank"):
        read_examples(write(tmp_path / name, content), need_labels=name != "a.txt")


def test_skipping_bad_rows_is_counted_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\nx\t0\nshort\n\t1\ny\t1\n")
    with pytest.warns(UserWarning, match=r"2 bad rows were left out; the first: .*line 3"):
        found = read_examples(path, bad_rows="skip")
    assert found.texts == ("x", "y")
    assert found.skipped == 2


def test_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"text\tlabel\nfine\t1\ncaf\xe9\t0\n")
    with pytest.raises(ValueError, match=r"line 3: not UTF-8 \(byte 0xe9 at column 4\)"):
        read_examples(path)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv.gz", "text\tlabel\n" + "x\t1\n" * 5000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="compressed data is damaged"):
        read_examples(path)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(ValueError, match="line 1: the compressed data is damaged"):
        read_examples(path)


def test_label_outside_the_given_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\nx\tgood\ny\tugly\n")
    with pytest.raises(ValueError, match="line 3: label 'ugly' in column 'label'; allowed: 'bad', 'good'"):
        read_examples(path, label_names=["bad", "good"])


def test_doubled_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names a column twice"):
        read_examples(write(tmp_path / "a.tsv", "text\ttext\na\tb\n"))


# Columns
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("sentence", "label"), ("sentence", None, "label")),
        (("id", "Review", "Rating"), ("Review", None, "Rating")),
        (("index", "sentence1", "sentence2", "label"), ("sentence1", "sentence2", "label")),
        (("#1 String", "#2 String", "Quality"), ("#1 String", "#2 String", "Quality")),
        (("premise", "hypothesis", "gold_label"), ("premise", "hypothesis", "gold_label")),
        (("question", "sentence", "label"), ("question", "sentence", "label")),
        (("text", "author"), ("text", None, None)),
        (("question", "label"), ("question", None, "label")),
    ],
)
def test_columns_found_by_name(columns: tuple[str, ...], expected: tuple[Any, ...]) -> None:
    assert find_columns(columns) == expected


def test_named_columns_win() -> None:
    columns = ("text", "summary", "label", "topic")
    assert find_columns(columns, text_column="summary", label_column="topic") == ("summary", None, "topic")
    assert find_columns(columns, text_column="text", second_text_column="summary") == ("text", "summary", "label")


@pytest.mark.parametrize(
    ("columns", "named", "wrong"),
    [
        (("a", "b"), {}, "no column has a known name for the text; its columns are 'a', 'b'"),
        (("text", "review", "label"), {}, "more than one column could be the text ('text' or 'review')"),
        (
            ("sentence1", "sentence2", "text"),
            {},
            "more than one column could be the text ('sentence1' + 'sentence2' or 'text')",
        ),
        (("text", "label", "score"), {}, "more than one column could be the label ('label' or 'score')"),
        (
            ("text", "label"),
            {"text_column": "Text"},
            "text_column 'Text' is not in the table; its columns are 'text', 'label'",
        ),
        (("text", "label"), {"label_column": "x"}, "label_column 'x' is not in the table"),
        (("text", "label"), {"second_text_column": "text"}, "was given without text_column"),
        (("text", "label"), {"text_column": "text", "label_column": "text"}, "one column was given two uses"),
    ],
)
def test_columns_refused(columns: tuple[str, ...], named: dict[str, str], wrong: str) -> None:
    with pytest.raises(ValueError, match="t: ") as error:
        find_columns(columns, source="t", **named)
    assert wrong in str(error.value)


@pytest.mark.parametrize(("header", "sign"), [("text;label", "';'"), ("text\tlabel", r"'\\t'")])
def test_a_csv_that_another_sign_splits(tmp_path: Path, header: str, sign: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\ngood;1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"the header has {sign} in it: split a \.csv file at commas"):
        read_examples(path)


def test_no_label_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tother\nx\ty\n")
    with pytest.raises(ValueError, match="no column has a known name for the label"):
        read_examples(path)
    assert read_examples(path, need_labels=False).labels is None


# Labels
# -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "values", "names"),
    [
        (["1", "0", "1"], (1, 0, 1), ("0", "1")),
        (["3", "1", "10"], (1, 0, 2), ("1", "3", "10")),  # in numeric, not alphabetical order
        (["-1", "1", "01"], (0, 1, 1), ("-1", "1")),
        (["b", "a", "b"], (1, 0, 1), ("a", "b")),
        (["1", "a", "2"], (0, 2, 1), ("1", "2", "a")),
        (["1", "2.5", "3e0"], (1.0, 2.5, 3.0), ()),
        (["nan", "1.5", "2"], (2, 0, 1), ("1.5", "2", "nan")),  # nan is no number: classes by name
        (["１", "1"], (1, 0), ("1", "１")),
        (["١", "٠"], (1, 0), ("٠", "١")),
        (["١.٥", "1.5"], (1, 0), ("1.5", "١.٥")),
    ],
)
def test_kind_of_labels(tmp_path: Path, labels: list[str], values: tuple[Any, ...], names: tuple[str, ...]) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"t\t{label}\n" for label in labels))
    found = read_examples(path)
    assert found.labels == values
    assert found.label_names == names
    assert found.problem_type == ("single_label_classification" if names else "regression")
    assert found.num_labels == (len(names) or 1)


def test_jsonl_numbers_keep_their_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a", "label": 1.0}\n{"text": "b", "label": 2}\n')
    assert read_examples(path).labels == (1.0, 2.0)
    path = write(tmp_path / "b.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n')
    assert read_examples(path).label_names == ("1", "2")


def test_kind_forced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\na\t1\nb\t2\n")
    assert read_examples(path, problem="regression").labels == (1.0, 2.0)
    path = write(tmp_path / "b.tsv", "text\tlabel\na\t1.5\nb\t2\n")
    assert read_examples(path, problem="classification").label_names == ("1.5", "2")
    path = write(tmp_path / "c.tsv", "text\tlabel\na\t1.5\nb\tinf\n")
    with pytest.raises(ValueError, match=r"line 3: label 'inf' .* is no finite number"):
        read_examples(path, problem="regression")


def test_digits_of_other_scripts_are_no_score(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\na\t1.5\nb\t2.5\nc\t١.٥\n")
    with pytest.raises(ValueError, match=r"line 4: label '١\.٥' .* is no finite number"):
        read_examples(path)
    path = write(tmp_path / "b.tsv", "text\tlabel\na\t1.5\nb\t١\n")
    with pytest.raises(ValueError, match=r"line 3: label '١' .* is no finite number, as a regression needs"):
        read_examples(path, problem="regression")


def test_the_same_letters_in_other_codes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\na\tcaf\u00e9\nb\tbar\nc\tcafe\u0301\n")
    with pytest.raises(ValueError, match=r"line 4: label 'cafe\\u0301' .* bring the file to one Unicode form"):
        read_examples(path)
    assert read_examples(path, label_names=["bar", "caf\u00e9", "cafe\u0301"]).labels == (1, 0, 2)


def test_label_names_fix_the_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\na\tgood\nb\tgood\n")
    assert read_examples(path, label_names=["bad", "good"]).labels == (1, 1)
    with pytest.raises(ValueError, match="label_names were given for a regression"):
        read_examples(path, label_names=["bad", "good"], problem="regression")


def test_reader_closes_its_file(tmp_path: Path) -> None:
    with RowReader(write(tmp_path / "a.tsv", "text\tlabel\na\t1\n")) as reader:
        rows = list(reader)
    assert rows[0].line == 2
    assert rows[0].values == {"text": "a", "label": "1"}


def test_reading_needs_neither_torch_nor_extras() -> None:
    heavy = ("torch", "transformers", "datasets", "pyarrow")
    script = f"import sys, dynabert.data; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("wrong", ["nan", "inf", "n/a"])
def test_a_score_that_is_no_number_is_named(tmp_path: Path, wrong: str) -> None:
    """Else each of the other scores would be a class."""
    rows = [f"text {i}\t{i}.5" for i in range(9)]
    (tmp_path / "scores.tsv").write_text("\n".join(["text\tlabel", *rows, f"more\t{wrong}"]) + "\n")
    with pytest.raises(ValueError, match=rf"line 11: label '{wrong}' in column 'label' is no finite number, and most"):
        read_examples(tmp_path / "scores.tsv")


@pytest.mark.parametrize("problem", ["auto", "regression"])
@pytest.mark.parametrize("wrong", ["n/a", "inf"])
def test_a_score_that_is_no_number_is_skipped(tmp_path: Path, problem: Any, wrong: str) -> None:
    path = write(tmp_path / "a.csv", f"text1,text2,label\na,b,0.5\nc,d,{wrong}\ne,f,2.5\n")
    with pytest.warns(UserWarning, match=rf"1 bad rows were left out; the first: .*line 3: label '{wrong}' in column"):
        found = read_examples(path, problem=problem, bad_rows="skip")
    assert (found.texts, found.seconds, found.labels, found.skipped) == (("a", "e"), ("b", "f"), (0.5, 2.5), 1)


@pytest.mark.parametrize("labels", [[0, 1], ["neg", "pos"], [0.5, 1.5]])
@pytest.mark.parametrize("missing", [float("nan"), float("-inf")])
def test_a_number_that_is_not_finite_is_no_label(tmp_path: Path, labels: list[Any], missing: float) -> None:
    lines = [json.dumps({"text": "t", "label": label}) for label in (labels[0], missing, labels[1])]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    with pytest.raises(ValueError, match=rf"line 2: no label in column 'label'; found {missing}"):
        read_examples(path)
    with pytest.warns(UserWarning, match="1 bad rows were left out"):
        found = read_examples(path, bad_rows="skip")
    assert found.num_labels == (1 if labels == [0.5, 1.5] else 2)


def test_codes_with_an_underscore_are_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,1_1\nb,1_2\nc,2_1\n")
    assert read_examples(path).label_names == ("1_1", "1_2", "2_1")
    with pytest.raises(ValueError, match="line 2: label '1_1' in column 'label' is no finite number, as a regression"):
        read_examples(path, problem="regression")


@pytest.mark.parametrize("bad_rows", ["error", "skip"])
def test_padded_numbers_are_the_given_names(tmp_path: Path, bad_rows: Any) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,01\nb,02\nc,10\nd,2\n")
    train = read_examples(path)
    assert train.label_names == ("1", "2", "10")
    found = read_examples(path, label_names=train.label_names, problem="classification", bad_rows=bad_rows)
    assert (found.labels, found.label_names, found.skipped) == (train.labels, train.label_names, 0)
    with pytest.raises(ValueError, match="line 2: label '01' in column 'label'; allowed: '1', '2', 'x'"):
        read_examples(path, label_names=["1", "2", "x"])


def test_half_a_character_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "fine", "label": 0}\n{"text": "cut \\ud83d", "label": 1}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: the text in column 'text' is no valid Unicode"):
        read_examples(path)
    with pytest.warns(UserWarning, match="1 bad rows were left out"):
        assert read_examples(path, bad_rows="skip").texts == ("fine",)


def test_a_long_text_in_csv(tmp_path: Path) -> None:
    long = "x" * 150_000
    assert read_examples(write(tmp_path / "a.csv", f"text,label\n{long},0\nb,1\n")).texts == (long, "b")


@pytest.mark.parametrize(
    ("options", "error", "wrong"),
    [
        (
            {"problem": "regresion"},
            ValueError,
            "problem is 'regresion'; allowed: auto, classification, multi_label, regr",
        ),
        ({"bad_rows": "Skip"}, ValueError, "bad_rows is 'Skip'; allowed: error, skip"),
        ({"label_names": "01"}, TypeError, "label_names are '01'; allowed: a list of texts"),
        ({"label_names": [0, 1]}, TypeError, "label_names are [0, 1]; allowed: a list of texts"),
        ({"label_names": ["1", "1"]}, ValueError, "label_names are ['1', '1']; allowed: at least one, each once"),
        ({"label_names": []}, ValueError, "label_names are []; allowed: at least one, each once"),
    ],
)
def test_options_that_mean_nothing(tmp_path: Path, options: dict[str, Any], error: type[Exception], wrong: str) -> None:
    path = write(tmp_path / "a.csv", "text,label\ngood,1\nbad,0\n")
    with pytest.raises(error) as told:
        read_examples(path, **options)
    assert wrong in str(told.value)


def test_where_all_rows_are_bad_the_first_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n ,1\n ,0\n")
    with pytest.raises(
        ValueError, match=r"all 2 rows are bad; the first: .*line 2: the text in column 'text' is empty"
    ):
        read_examples(path, bad_rows="skip")
    path = write(tmp_path / "a.jsonl", "[1]\n[2]\n")
    with pytest.raises(ValueError, match=r"none of the 2 lines is a JSON object; one JSON object in each line is"):
        read_examples(path, bad_rows="skip")


@pytest.mark.parametrize("label", ["7" * 5000, "ab" * 2500])
def test_a_label_as_long_as_a_text(tmp_path: Path, label: str) -> None:
    path = write(tmp_path / "a.csv", f"text,label\nfine,1\ngood,{label}\n")
    for options in ({}, {"label_separator": "|"}):
        with pytest.raises(ValueError, match=r"a\.csv, line 3: the label '.*has 5000 characters; allowed: up to 1000"):
            read_examples(path, **options)  # type: ignore[arg-type]
