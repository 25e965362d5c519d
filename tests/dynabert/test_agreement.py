"""The agreement with the whole network as the score: eval, pick and cascade on text that nobody has labelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynabert.cli import main
from dynabert.data import Examples, tokenise
from dynabert.data.examples import MULTI_LABEL, REGRESSION
from dynabert.evaluation import compute_logits, evaluate, labelled_as
from tests.dynabert.tiny_texts import some_texts, tiny_folder, tiny_model, tiny_tokenizer

SUBNETS = ("w0.5", "w0.25-d0.5")


def encoded_texts(count: int = 40) -> Any:
    return tokenise(Examples(tuple(some_texts(count, seed=1))), tiny_tokenizer(), 32)


@pytest.mark.parametrize("problem", ["single_label_classification", MULTI_LABEL])
def test_the_share_of_texts_that_both_answer_alike(problem: str) -> None:
    model, texts = tiny_model(problem_type=problem), encoded_texts()
    logits = compute_logits(model, texts, [None, *SUBNETS])
    rows = evaluate(model, texts, SUBNETS, metric="agreement")
    assert [row.subnet for row in rows] == ["w0.5-d1", "w0.25-d0.5"]
    for row in rows:
        if problem == MULTI_LABEL:
            alike = ((logits[row.subnet] >= 0.0) == (logits["w1-d1"] >= 0.0)).all(axis=1)
        else:
            alike = logits[row.subnet].argmax(axis=1) == logits["w1-d1"].argmax(axis=1)
        assert row.score == pytest.approx(alike.mean())
        assert row.metrics == {"agreement": row.score}
        assert 0.0 < row.majority <= 1.0
    (whole,) = evaluate(model, texts, ["w1"], metric="agreement")
    assert whole.score == 1.0


def test_a_constant_answer_is_the_most_frequent_one_of_the_whole_network() -> None:
    model, texts = tiny_model(), encoded_texts()
    answers = compute_logits(model, texts, [None])["w1-d1"].argmax(axis=1)
    (row,) = evaluate(model, texts, ["w0.5"], metric="agreement")
    assert row.majority == pytest.approx(np.bincount(answers).max() / len(answers))


def test_a_regression_has_no_agreement() -> None:
    model = tiny_model(num_labels=1, problem_type=REGRESSION)
    with pytest.raises(
        ValueError, match=r"agreement is that of decisions, .* numbers \(regression\); allowed: spearman"
    ):
        evaluate(model, encoded_texts(), ["w1"], metric="agreement")


def test_logits_of_other_texts_are_refused() -> None:
    model, texts = tiny_model(), encoded_texts()
    logits = compute_logits(model, texts, [None])["w1-d1"]
    with pytest.raises(ValueError, match=r"logits have shape \(39, 3\); allowed: \(40, 3\)"):
        labelled_as(model, texts, logits[1:])


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    file = tmp_path / "unlabelled.csv"
    file.write_text("\n".join(["text", *some_texts(60, seed=2)]) + "\n")
    return ["--model_name_or_path", str(tiny_folder(tmp_path / "model")), "--file", str(file), "--metric", "agreement"]


def test_eval(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *given, "--subnets", "w1,w0.75-d0.75", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["metric"] == "agreement"
    whole, narrow = results["subnets"]
    assert whole["score"] == 1.0
    assert 0.0 < narrow["score"] < 1.0


def test_pick(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pick", *given, "--min_retention", "0.5", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["metric"] == "agreement"
    assert results["whole_score"] == 1.0
    chosen = next(row for row in results["candidates"] if row["subnet"] == results["chosen"])
    assert chosen["score"] == chosen["agreement"] >= 0.5


def test_pick_with_a_search(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.csv"
    other.write_text("\n".join(["text", *some_texts(30, seed=9)]) + "\n")
    search = ["--search", "--search_file", str(other), "--search_evaluations", "8", "--max_gflops", "1"]
    assert main(["pick", *given, *search, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["search"]["finalists"]
    assert main(["pick", *given, *search, "--search_by", "score"]) == 2
    assert "--search_by score is by labels, and --metric agreement takes none" in capsys.readouterr().err


def test_cascade(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cascade", *given, "--min_retention", "0.9", "--rounds", "2", "--check", "0", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["metric"] == "agreement"
    assert results["whole"]["score"] == 1.0
    assert results["chosen"]["score"] >= 0.9


@pytest.mark.parametrize("command", ["eval", "pick", "cascade"])
def test_options_of_labels_are_refused(command: str, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    limits = [] if command == "eval" else ["--min_retention", "0.9"]
    assert main([command, *given, *limits, "--label_column", "text"]) == 2
    assert "--label_column is of labels, and --metric agreement takes none" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["pick", "cascade"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "2"], "threshold is 2.0; allowed: above 0 and below 1"),
        (["--metric", "spearman"], "metric 'spearman' does not fit"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(
    command: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labelled.csv"
    file.write_text("\n".join(["text,label", *(f"{text},{i % 3}" for i, text in enumerate(some_texts(30)))]) + "\n")
    given = ["--model_name_or_path", str(tiny_folder(tmp_path / "model")), "--file", str(file), "--max_latency_ms", "9"]
    assert main([command, *given, "--metric", "agreement", *options]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "measured" not in said
    assert "timed" not in said


def test_pick_with_several_labels_a_text_compares_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "unlabelled.csv"
    file.write_text("\n".join(["text", *some_texts(60, seed=2)]) + "\n")
    folder = tiny_folder(tmp_path / "model", problem_type=MULTI_LABEL)
    given = ["--model_name_or_path", str(folder), "--file", str(file), "--metric", "agreement", "--threshold", "0.4"]
    assert main(["pick", *given, "--min_score", "0.01", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["candidates"]
    assert [row["agreement"] for row in rows] == [row["score"] for row in rows]
    assert len({row["score"] for row in rows}) > 1
