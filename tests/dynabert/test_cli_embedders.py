"""A sentence embedder's folder given to ``dynabert eval``, ``card`` and ``export``, and to what takes classifiers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynabert import InferenceEngine
from dynabert.cli import main
from dynabert.data import Examples, tokenise
from dynabert.data.metrics import compute_metric
from dynabert.engine import load_embedder, load_model, load_tokenizer
from dynabert.engine.loading import is_embedder
from dynabert.similarity import compute_vectors, cosines
from tests.dynabert.tiny_texts import some_texts, tiny_embedder_folder, tiny_folder, tiny_tokenizer

Run = Callable[..., tuple[int, str, str]]
SUBNETS = ("w1-d1", "w0.5-d1", "w0.5-d0.5")
FIRSTS, SECONDS = some_texts(20, seed=1), some_texts(20, seed=2)
NUMBERS = [index % 7 / 2 for index in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_embedder_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: str) -> Run:
    def call(command: str, *argv: str) -> tuple[int, str, str]:
        code = main([command, "--model_name_or_path", folder, *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.tsv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream, delimiter="\t")
        rows.writerow(["sentence1", "sentence2", "score"])
        rows.writerows(zip(FIRSTS, SECONDS, NUMBERS, strict=True))
    return str(path)


def wanted(folder: str) -> dict[str, dict[str, float]]:
    """Every score, from the vectors themselves."""
    model = load_embedder(folder)
    encoded = tokenise(Examples((*FIRSTS, *SECONDS)), load_tokenizer(folder), 50)
    vectors = compute_vectors(model, encoded, SUBNETS)
    found = {}
    for name, own in vectors.items():
        alike = cosines(own[:20], own[20:])
        found[name] = {kind: compute_metric(kind, alike, np.asarray(NUMBERS)) for kind in ("spearman", "pearson")}
        found[name]["cosine"] = float(cosines(own, vectors["w1-d1"]).mean())
    return found


def test_which_folders_are_embedders(folder: str, tmp_path: Path) -> None:
    assert is_embedder(folder)
    classifier = tiny_folder(tmp_path / "classifier")
    assert not is_embedder(classifier)
    (classifier / "modules.json").write_text("[]")  # fine-tuned where an embedder was
    assert not is_embedder(classifier)
    assert load_model(classifier).config.num_labels == 3
    assert not is_embedder(tmp_path)
    assert not is_embedder(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "modules.json").write_text("[]")
    assert not is_embedder(tmp_path)


def test_what_takes_classifiers_names_what_takes_embedders(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    for open_it in (load_model, InferenceEngine.from_pretrained):
        with pytest.raises(ValueError, match=r"is a sentence embedder .*dynabert embed, .* EmbeddingEngine"):
            open_it(folder)
    assert not caplog.records
    load_model(folder, fresh_head=True)  # to be fine-tuned into a classifier


def test_eval_on_pairs_with_numbers(run: Run, folder: str, pairs: str) -> None:
    argv = ("eval", "--file", pairs, "--subnets", ",".join(SUBNETS))
    code, out, _ = run(*argv, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["metric"], found["examples"], found["majority_score"]) == ("spearman", 20, 0.0)
    assert (found["data"], found["model"], found["truncated"], found["skipped"]) == (pairs, folder, 0, 0)
    scores = wanted(folder)
    for row in found["subnets"]:
        assert row["metrics"] == pytest.approx(scores[row["subnet"]], abs=1e-6)
        assert row["score"] == row["metrics"]["spearman"]
        assert row["parameters"] > 0
        assert row["gflop"] > 0
    for name in ("pearson", "cosine"):
        found = json.loads(run(*argv, "--json", "--metric", name)[1])
        assert found["metric"] == name
        assert [row["score"] for row in found["subnets"]] == pytest.approx([scores[one][name] for one in SUBNETS])
    table = run(*argv)[1]
    assert "20 examples; majority 0.0 %" in table
    for part in ("spearman %", f"{100 * scores['w0.5-d1']['spearman']:.1f}", "w0.5-d0.5"):
        assert part in table


@pytest.mark.parametrize("columns", [["text"], ["sentence1", "sentence2"], ["text", "label"]])
def test_eval_on_other_texts(run: Run, tmp_path: Path, columns: list[str]) -> None:
    """Without numbers of pairs the cosine with the whole network's vectors is all that can be told."""
    path = tmp_path / "texts.tsv"
    rows = zip(FIRSTS, SECONDS if "label" not in columns else ["good", "bad"] * 10, strict=True)
    lines = ["\t".join(row[: len(columns)]) for row in rows]
    path.write_text("\n".join(["\t".join(columns), *lines]) + "\n")
    argv = ("eval", "--file", str(path), "--subnets", "w0.5-d1,w1-d1", "--max_samples", "9", "--json")
    code, out, _ = run(*argv, "--dtype", "bfloat16", "--max_batch_tokens", "64", "--per_device_eval_batch_size", "2")
    assert code == 0
    found = json.loads(out)
    assert (found["metric"], found["examples"]) == ("cosine", 9)
    half, whole = found["subnets"]
    assert half["metrics"] == {"cosine": half["score"]}
    assert half["score"] < whole["score"]
    assert whole["score"] == pytest.approx(1.0)
    code, _, err = run(*argv, "--metric", "spearman")
    assert code == 1
    assert "--metric spearman needs pairs of texts and a column of numbers, and" in err


def test_pairs_with_classes_are_scored_by_the_cosine(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "nli.tsv"
    rows = [f"{a}\t{b}\tentailment" for a, b in zip(FIRSTS, SECONDS, strict=True)]
    path.write_text("\n".join(["sentence1\tsentence2\tlabel", *rows]) + "\n")
    code, _, err = run("eval", "--file", str(path))
    assert code == 1
    assert "entailment" in err
    found = json.loads(run("eval", "--file", str(path), "--metric", "cosine", "--json")[1])
    assert found["subnets"][0]["metrics"] == {"cosine": pytest.approx(1.0)}


def test_eval_on_tasks(run: Run, tmp_path: Path) -> None:
    names = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"]
    rows = [["x"] * 7 + [*row] for row in zip(FIRSTS, SECONDS, map(str, NUMBERS), strict=True)]
    (tmp_path / "STS-B").mkdir()
    (tmp_path / "STS-B" / "dev.tsv").write_text("\n".join("\t".join(row) for row in [names, *rows]) + "\n")
    code, out, err = run("eval", "--task_name", "stsb", "--data_dir", str(tmp_path / "STS-B"), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["metric"], found["examples"]) == ("spearman", 20)
    (tmp_path / "SST-2").mkdir()
    lines = [f"{text}\t{index % 2}" for index, text in enumerate(FIRSTS)]
    (tmp_path / "SST-2" / "dev.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    found = json.loads(run("eval", "--task_name", "sst2", "--data_dir", str(tmp_path / "SST-2"), "--json")[1])
    assert (found["metric"], found["examples"]) == ("cosine", 20)


@pytest.mark.parametrize(
    ("argv", "code", "wrong"),
    [
        ((), 2, "give either --task_name or --file"),
        (("--task_name", "stsb", "--file", "PAIRS"), 2, "give either --task_name or --file"),
        (("--file", "PAIRS", "--problem_type", "regression"), 2, "--problem_type is of a classifier's labels, and"),
        (("--file", "PAIRS", "--label_separator", "|"), 2, "--label_separator is of a classifier's labels, and"),
        (("--file", "PAIRS", "--threshold", "0.3"), 2, "--threshold is of a classifier's labels, and"),
        (("--file", "PAIRS", "--metric", "accuracy"), 2, "--metric accuracy is of a classifier, and"),
        (("--file", "PAIRS", "--metric", "agreement"), 2, "is a sentence embedder; allowed: spearman, pearson, cosine"),
        (("--file", "PAIRS", "--data_dir", "glue"), 2, "--data_dir belongs to --task_name"),
        (("--task_name", "stsb", "--label_column", "score"), 2, "column names belong to --file"),
        (("--file", "PAIRS", "--label_column", "score", "--metric", "cosine"), 2, "--metric cosine takes none; leave"),
        (("--file", "nowhere.tsv"), 1, "there is no file nowhere.tsv"),
        (("--file", "PAIRS", "--label_column", "mark"), 1, "mark"),
        (("--file", "LONG"), 1, "the text of line 2 is too long; got 62 tokens; allowed: 50"),
        (("--file", "LONG", "--text_column", "text", "--label_column", "score"), 1, "names numbers of pairs, and"),
        (("--file", "PAIRS", "--max_seq_length", "51"), 1, "--max_seq_length is 51; allowed: up to the model's 50"),
        (("--file", "PAIRS", "--max_batch_tokens", "0"), 1, "--max_batch_tokens is 0; allowed: 1 or more"),
    ],
)
def test_refusals_of_eval(run: Run, pairs: str, tmp_path: Path, argv: tuple[str, ...], code: int, wrong: str) -> None:
    (tmp_path / "long.tsv").write_text("text\tscore\n" + "a " * 60 + "\t0.5\n")
    named = {"PAIRS": pairs, "LONG": str(tmp_path / "long.tsv")}
    found, out, err = run("eval", *(named.get(part, part) for part in argv))
    assert (found, out) == (code, "")
    assert wrong in err


def test_eval_cuts_at_the_length_of_the_training(run: Run, tmp_path: Path) -> None:
    from dynabert import Pooling

    short = tiny_embedder_folder(tmp_path / "short", pooling=Pooling(max_seq_length=6))
    tiny_tokenizer().save_pretrained(short)
    (tmp_path / "texts.tsv").write_text("text\n" + "\n".join(FIRSTS) + "\n")
    argv = ["--model_name_or_path", str(short), "--file", str(tmp_path / "texts.tsv")]
    assert "allowed: 6" in run("eval", *argv)[2]
    code, out, _ = run("eval", *argv, "--truncate", "--json")
    assert code == 0
    assert json.loads(out)["truncated"] == sum(len(text.split()) > 4 for text in FIRSTS)


def test_card(run: Run, pairs: str, tmp_path: Path) -> None:
    code, card, _ = run("card")
    assert code == 0
    assert "bert sentence embedder of 4 layers" in card
    assert "pipeline_tag: sentence-similarity" in card
    assert "EmbeddingEngine.from_pretrained" in card
    assert "ForSequenceClassification" not in card
    assert "Labels:" not in card
    (tmp_path / "scores.json").write_text(run("eval", "--file", pairs, "--json")[1])
    card = run("card", "--scores", str(tmp_path / "scores.json"))[1]
    assert "Score: spearman on 20 examples of pairs.tsv." in card


def test_card_of_a_run(run: Run, folder: str, pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = ("--train_file", pairs, "--validation_file", pairs, "--max_steps", "1", "--cache_dir", str(tmp_path / "c"))
    assert run("train", "--recipe", "embedding", "--output_dir", str(out), *argv)[0] == 0
    score = json.loads((out / "results.json").read_text())["parts"][-1]["rows"][0]["score"]
    for model in (out, *(path.parent for path in out.glob("*/config.json") if path.parent.name != "rewired")):
        code, card, err = run("card", "--model_name_or_path", str(model), "--run_dir", str(out))
        assert code == 0, err
        assert "sentence embedder" in card
        assert "Score: spearman on 20 examples of pairs.tsv." in card
        assert "it was its own teacher, as it came" in card
    found = json.loads(run("eval", "--model_name_or_path", str(out), "--file", pairs, "--json")[1])
    assert found["subnets"][0]["score"] == pytest.approx(score, abs=1e-5)
