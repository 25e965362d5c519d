"""``dynabert embed`` through ``main(argv)``: tables of cosines, JSON, files, and one-line refusals."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynabert import EmbeddingEngine, Pooling
from dynabert.cli import main
from dynabert.cli.embed import MOST_COMPARED
from tests.dynabert.tiny_texts import some_texts, tiny_embedder_folder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    # Not of length 1: cosines must be made of it.
    return str(tiny_embedder_folder(tmp_path_factory.mktemp("model"), pooling=Pooling("mean", normalize=False)))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: str) -> Run:
    def call(*argv: str) -> tuple[int, str, str]:
        code = main(["embed", "--model_name_or_path", folder, *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_table_of_cosines(run: Run, folder: str) -> None:
    texts = ["good film", "the bad plot is slow", "a [bold] joke\x1b[31m"]
    code, out, _ = run("--subnet", "w0.5", *texts)
    assert code == 0
    vectors = EmbeddingEngine.from_pretrained(folder).embed(texts, "w0.5").astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [list(map(float, re.findall(r"-?\d\.\d{3}", line))) for line in out.splitlines() if "1.000" in line]
    np.testing.assert_allclose(rows, vectors @ vectors.T, atol=1e-3)
    assert "[bold]" in out
    assert "\x1b" not in out


def test_json(run: Run, folder: str) -> None:
    code, out, _ = run("--json", "--subnet", "w0.5-d0.75", "good film", "bad")
    assert code == 0
    found = json.loads(out)
    assert [(one["text"], one["subnet"]) for one in found] == [("good film", "w0.5-d0.75"), ("bad", "w0.5-d0.75")]
    wanted = EmbeddingEngine.from_pretrained(folder).embed(["good film", "bad"], "w0.5-d0.75")
    np.testing.assert_allclose([one["vector"] for one in found], wanted, rtol=1e-5, atol=1e-6)
    (one,) = json.loads(run("--json", "--dtype", "int8", "good film")[1])
    assert one["subnet"] == "w1-d1"
    assert len(one["vector"]) == 24


def test_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("good film\nbad plot\r\n"))
    assert [one["text"] for one in json.loads(run("--json", "-")[1])] == ["good film", "bad plot"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run("-")[::2] == (1, "dynabert embed: standard input holds no text; give one text in each line\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("good\n" + "a " * 60 + "\n"))
    assert "standard input: tokenise: the text of line 2 is too long; got 62 tokens; allowed: 50" in run("-")[2]


def test_file(run: Run, folder: str, tmp_path: Path) -> None:
    texts = some_texts(24)
    path, out_path = tmp_path / "in.tsv", str(tmp_path / "out.npy")
    path.write_text("body\tid\n" + "".join(f"{text}\t{i}\n" for i, text in enumerate(texts)))
    argv = ["--file", str(path), "--text_column", "body", "--out", out_path, "--subnet", "w0.5"]
    code, out, err = run(*argv)
    assert (code, out) == (0, "")
    assert "24 vectors of 24 numbers at w0.5-d1 in " in err
    wanted = EmbeddingEngine.from_pretrained(folder).embed(texts, "w0.5")
    np.testing.assert_allclose(np.load(out_path), wanted, rtol=1e-5, atol=1e-5)
    code, _, err = run(*argv)
    assert code == 1
    assert "exists; give another name" in err
    found = json.loads(run(*argv, "--overwrite", "--json")[1])
    assert (found["rows"], found["size"], found["subnet"], found["out"]) == (24, 24, "w0.5-d1", out_path)
    found = json.loads(run(*argv[:4], "--json")[1])
    assert [one["text"] for one in found] == texts


@pytest.mark.parametrize(
    ("argv", "wrong"),
    [
        ([], "give texts, - for standard input, or --file; one of the three"),
        (["good", "--file", "a.txt"], "one of the three"),
        (["good", "--out", "a.npy"], "--out belongs to --file"),
        (["good", "--overwrite"], "--overwrite belongs to --out"),
        (["good", "--text_column", "x"], "--text_column belongs to --file"),
        (["-", "good"], "- reads all texts from standard input; give it alone"),
        (["good", "bad", "--subnet", "w1", "--threshold", "0.5"], "unrecognized arguments: --threshold 0.5"),
    ],
)
def test_wrong_usage_is_two(run: Run, argv: list[str], wrong: str) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert wrong in err


@pytest.mark.parametrize(
    ("argv", "wrong"),
    [
        (["good"], f"the arguments: 1 text; allowed in a table of cosines: 2 to {MOST_COMPARED}; print vectors with"),
        (["good"] * 21, "the arguments: 21 texts; allowed in a table of cosines: 2 to 20"),
        (["good", "bad", "--subnet", "w0.5@0.9/w1"], "--subnet w0.5@0.9/w1 is a cascade; allowed: one sub-network"),
        (["good", "bad", "--subnet", "half"], "unknown sub-network 'half'"),
        (["good", ""], "embed: text 1 is empty"),
        (["good", "a " * 60], "text 1 is too long; got 62 tokens; allowed: 50"),
        (["good", "bad", "--max_seq_length", "51"], "EmbeddingEngine: max_length is 51; allowed: up to the model's 50"),
        (["--file", "nowhere.csv"], "there is no file nowhere.csv"),
        (["--file", "nowhere.csv", "--out", "a.npy"], "there is no file nowhere.csv"),
        (["--file", "nowhere.csv", "--out", "a.tsv"], "cannot write 'a.tsv'; allowed: .npy"),
    ],
)
def test_refusals_are_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], wrong: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*argv)
    assert (code, out) == (1, "")
    assert err.startswith("dynabert embed: ") or "\ndynabert embed: " in err
    assert wrong in err
    assert not list(tmp_path.iterdir())


def test_a_table_of_pairs(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("premise,hypothesis\ngood,bad\nbad,good\n")
    for extra in ([], ["--out", str(tmp_path / "a.npy")]):
        code, _, err = run("--file", str(path), *extra)
        assert code == 1
        assert "'premise' and 'hypothesis' are pairs of texts, and a vector is of one text; name one of them" in err
    assert "1.000" in run("--file", str(path), "--text_column", "premise")[1]


def test_what_was_never_trained_is_said(run: Run) -> None:
    assert "rewired" not in run("good", "bad")[2]
    assert "not rewired: its narrow sub-networks keep whatever" in run("good", "bad", "--subnet", "w0.5")[2]
