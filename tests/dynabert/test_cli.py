"""The command line through ``main(argv)``: results, JSON, exit codes, one-line refusals, and a light start."""

from __future__ import annotations

import importlib.metadata
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynabert import ElasticBertForSequenceClassification, InferenceEngine
from dynabert.cli import COMMANDS, main
from tests.dynabert.tiny_texts import some_texts, tiny_folder, tiny_tokenizer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    return str(tiny_folder(tmp_path_factory.mktemp("model"), num_labels=2, **names))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "reviews.tsv"
    rows = "".join(f"{text}\t{('bad', 'good')[i % 3 == 0]}\n" for i, text in enumerate(some_texts(24)))
    path.write_text("text\tlabel\n" + rows, encoding="utf-8")
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: str) -> tuple[int, str, str]:
        code = main([*argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# Usage
# ------------------------------------------------------------------------------------------------------------------


def test_help(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in (
        "train",
        "predict",
        "embed",
        "eval",
        "rewire",
        "profile",
        "pick",
        "cascade",
        "export",
        "card",
        "demo",
        "env",
    ):
        assert command in out
        assert run(command, "--help")[0] == 0
    assert len(COMMANDS) == 13


def test_version(run: Run) -> None:
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out == f"dynabert-kernels {importlib.metadata.version('dynabert-kernels')}\n"


def test_help_is_quick_and_light() -> None:
    script = "import sys; from dynabert.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    best = 9.0
    for _ in range(3):
        start = time.perf_counter()
        assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
        best = min(best, time.perf_counter() - start)
    assert best < 1.0


@pytest.mark.parametrize(
    ("argv", "wrong"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["predict", "good"], "required: --model_name_or_path"),
        (["predict", "--model_name_or_path", "m"], "give texts, - for standard input, or --file"),
        (["predict", "--model_name_or_path", "m", "good", "--file", "a.txt"], "one of the three"),
        (["predict", "--model_name_or_path", "m", "good", "--out", "a.tsv"], "--out belongs to --file"),
        (["predict", "--model_name_or_path", "m", "good", "--text_column", "x"], "column names belong to --file"),
        (["predict", "--model_name_or_path", "m", "--file", "a.txt", "--pairs"], "--pairs is for texts given directly"),
        (
            ["predict", "--model_name_or_path", "m", "--pairs", "a", "b", "c"],
            "--pairs needs an even number of texts; got 3",
        ),
        (["predict", "--model_name_or_path", "m", "-", "good"], "give it alone"),
        (["predict", "--model_name_or_path", "m", "good", "--dtype", "int3"], "invalid choice: 'int3'"),
        (["eval", "--model_name_or_path", "m"], "give either --task_name or --file"),
        (["eval", "--model_name_or_path", "m", "--task_name", "sst2", "--file", "a.tsv"], "give either"),
        (
            ["eval", "--model_name_or_path", "m", "--file", "a.tsv", "--data_dir", "d"],
            "--data_dir belongs to --task_name",
        ),
        (["eval", "--model_name_or_path", "m", "--task_name", "sst2", "--text_column", "x"], "a task knows its own"),
        (["rewire", "--model_name_or_path", "m", "--task_name", "sst2"], "required: --output_dir"),
    ],
)
def test_wrong_usage_is_two(run: Run, argv: list[str], wrong: str) -> None:
    code, out, err = run(*argv)
    assert code == 2
    assert wrong in err
    assert out == ""


# predict
# ----------------------------------------------------------------------------------------------------------------


def test_predict_json(run: Run, folder: str) -> None:
    code, out, _ = run(
        "predict",
        "--model_name_or_path",
        folder,
        "--json",
        "--subnet",
        "w1",
        "--subnet",
        "w0.5-d0.75",
        "good",
        "bad film",
    )
    assert code == 0
    found = json.loads(out)
    assert [one["text"] for one in found] == ["good", "bad film"]
    engine = InferenceEngine.from_pretrained(folder)
    for one in found:
        assert [p["subnet"] for p in one["predictions"]] == ["w1-d1", "w0.5-d0.75"]
        for prediction in one["predictions"]:
            own = engine.predict(one["text"], subnet=prediction["subnet"])
            assert prediction["label"] == own.label
            assert prediction["logits"] == pytest.approx(own.logits, abs=1e-5)


def test_predict_table(run: Run, folder: str) -> None:
    code, out, _ = run(
        "predict", "--model_name_or_path", folder, "--subnet", "w1", "--subnet", "w0.5", "a [bold] good film " * 4
    )
    assert code == 0
    assert "w1-d1" in out
    assert "w0.5-d1" in out
    assert "[bold]" in out  # text is text, not markup


def test_predict_shows_no_control_characters(run: Run, folder: str) -> None:
    code, out, _ = run("predict", "--model_name_or_path", folder, "good\x1b[31m film\nnew é")
    assert code == 0
    assert r"good\x1b[31m film\nnew é" in out
    assert "\x1b" not in out


def test_predict_says_what_was_never_trained(run: Run, folder: str) -> None:
    argv = ["predict", "--model_name_or_path", folder, "good"]
    assert "rewired" not in run(*argv)[2]
    assert "not rewired: its narrow sub-networks keep whatever" in run(*argv, "--subnet", "w0.5")[2]
    assert "not rewired: its narrow sub-networks keep whatever" in run(*argv, "--subnet", "w0.5@0.9/w1")[2]


def test_predict_pairs(run: Run, folder: str) -> None:
    code, out, _ = run("predict", "--model_name_or_path", folder, "--json", "--pairs", "good", "bad")
    assert code == 0
    assert json.loads(out)[0]["text"] == ["good", "bad"]


def test_predict_standard_input(run: Run, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("good film\nbad plot\r\n"))
    code, out, _ = run("predict", "--model_name_or_path", folder, "--json", "-")
    assert code == 0
    assert [one["text"] for one in json.loads(out)] == ["good film", "bad plot"]
    monkeypatch.setattr("sys.stdin", io.StringIO("good\tbad\n"))
    assert json.loads(run("predict", "--model_name_or_path", folder, "--json", "--pairs", "-")[1])[0]["text"] == [
        "good",
        "bad",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run("predict", "--model_name_or_path", folder, "-")[0] == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("good\n"))
    code, _, err = run("predict", "--model_name_or_path", folder, "--pairs", "-")
    assert (code, "line 1: a pair is two texts and one tab; found 0 tabs" in err) == (1, True)


def test_predict_file(run: Run, folder: str, reviews: str, tmp_path: Path) -> None:
    out_path = str(tmp_path / "out.tsv")
    argv = ["predict", "--model_name_or_path", folder, "--file", reviews, "--out", out_path, "--subnet", "w0.5"]
    code, out, err = run(*argv)
    assert (code, out) == (0, "")
    assert "24 rows at w0.5-d1" in err
    assert len(Path(out_path).read_text().splitlines()) == 25
    code, _, err = run(*argv)
    assert code == 1
    assert "exists" in err
    code, out, _ = run(*argv, "--overwrite", "--json")
    assert json.loads(out)["rows"] == 24
    code, out, _ = run("predict", "--model_name_or_path", folder, "--file", reviews, "--json")
    assert len(json.loads(out)) == 24


def test_predict_too_long(run: Run, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["predict", "--model_name_or_path", folder, "--max_seq_length", "8", "a " * 20]
    code, out, err = run(*argv)
    assert (code, out) == (1, "")
    assert err.startswith("dynabert predict: tokenise: text 0 is too long; got 22 tokens; allowed: 8")
    assert run(*argv, "--truncate", "--json")[0] == 0
    path = tmp_path / "in.csv"
    path.write_text(f'text\n"good\nfilm"\n{"a " * 20}\n', encoding="utf-8")
    for extra in ([], ["--out", str(tmp_path / "out.csv")]):
        code, _, err = run(*argv[:-1], "--file", str(path), *extra)
        assert code == 1
        assert f"{path}: tokenise: the text of line 4 is too long; got 22 tokens; allowed: 8" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("good\n" + "a " * 20 + "\n"))
    assert "standard input: tokenise: the text of line 2 is too long" in run(*argv[:-1], "-")[2]


# eval
# -------------------------------------------------------------------------------------------------------------------


def test_eval_json(run: Run, folder: str, reviews: str) -> None:
    code, out, _ = run("eval", "--model_name_or_path", folder, "--file", reviews, "--subnets", "all", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["examples"] == 24
    assert found["metric"] == "accuracy"
    assert found["majority_score"] == pytest.approx(16 / 24)
    assert len(found["subnets"]) == 12
    whole, *_, least = found["subnets"]
    assert whole["subnet"] == "w1-d1"
    assert whole["parameters"] > least["parameters"]
    assert whole["gflop"] > least["gflop"]
    assert whole["score"] == whole["metrics"]["accuracy"]


def test_eval_table_and_options(run: Run, folder: str, reviews: str) -> None:
    argv = ["eval", "--model_name_or_path", folder, "--file", reviews, "--subnets", "w1,w0.5-d0.5"]
    code, out, _ = run(*argv, "--metric", "f1", "--max_samples", "9", "--per_device_eval_batch_size", "2")
    assert code == 0
    assert "9 examples; majority" in out
    assert "w0.5-d0.5" in out
    assert "f1 %" in out


def test_eval_says_what_was_never_trained(run: Run, folder: str, reviews: str, tmp_path: Path) -> None:
    argv = ["eval", "--model_name_or_path", folder, "--file", reviews, "--subnets"]
    assert "not rewired: its narrow sub-networks keep whatever stands first" in run(*argv, "w1,w0.5")[2]
    assert "rewired" not in run(*argv, "w1")[2]
    trained = tmp_path / "trained"
    model = ElasticBertForSequenceClassification.from_pretrained(folder)
    model.config.rewired = True
    model.save_pretrained(trained)
    tiny_tokenizer().save_pretrained(trained)
    argv[2] = str(trained)
    said = run(*argv, "w1,w0.5")[2]  # such as dynabert rewire leaves
    assert "holds no record of a training (complete.json): unless" in said
    assert "sub-networks are untrained: w0.5-d1; dynabert train trains them\n" in said
    assert "record" not in run(*argv, "w1")[2]
    (trained / "complete.json").write_text(json.dumps({"rows": [], "history": [{"loss": 1.0}]}))
    assert "trained" not in run(*argv, "w1,w0.5")[2].replace(str(trained), "")  # trained, and not scored
    (trained / "complete.json").write_text(json.dumps({"rows": [{"subnet": "w1-d1"}, {"subnet": "w0.5-d1"}]}))
    code, _, said = run(*argv, "w1,w0.25,w0.5,w1-d0.5")
    assert code == 0
    assert "not among the sub-networks that this checkpoint was trained for: w0.25-d1, w1-d0.5\n" in said
    assert "not among" not in run(*argv, "w1,w0.5")[2]
    # A run's rewired part has a record of scores, without steps.
    rows = [{"subnet": "w1-d1"}, {"subnet": "w0.5-d1"}]
    (trained / "complete.json").write_text(json.dumps({"rows": rows, "history": []}))
    assert "was rewired, and none of these sub-networks trained yet: w0.5-d1; those" in run(*argv, "w1,w0.5")[2]
    assert "trained" not in run(*argv, "w1")[2].replace(str(trained), "")
    (trained / "complete.json").write_text(json.dumps({"rows": rows, "history": [{"loss": 1.0}]}))
    assert "trained" not in run(*argv, "w1,w0.5")[2].replace(str(trained), "")


def test_eval_named_task(run: Run, folder: str, tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\ngood film\t1\nbad film\t0\n", encoding="utf-8")
    argv = ["eval", "--model_name_or_path", folder, "--data_dir", str(tmp_path), "--json"]
    code, _, err = run(*argv, "--task_name", "sst2")  # its classes are negative and positive, the model's bad and good
    assert code == 1
    assert "the data has negative, positive; the model has bad, good" in err
    numbered = str(tiny_folder(tmp_path / "numbered", num_labels=2))
    code, out, _ = run(*argv, "--task_name", "sst2", "--model_name_or_path", numbered)
    assert code == 0
    assert json.loads(out)["examples"] == 2


@pytest.mark.parametrize(
    ("extra", "wrong"),
    [
        (["--subnets", "w0.3"], "w0.3-d1 does not fit this network: width_mult 0.3 is 1.2 of 4 heads"),
        (["--subnets", "half"], "unknown sub-network 'half'"),
        (["--text_column", "nope"], "text_column 'nope' is not in the table; its columns are 'text', 'label'"),
        (["--max_seq_length", "4"], "is too long"),
        (["--max_seq_length", "99"], "--max_seq_length is 99; allowed: up to the model's 50 positions"),
        (["--metric", "bleu"], "metric 'bleu' does not fit"),
        (["--max_samples", "0"], "--max_samples is 0; allowed: 1 or more"),
        (["--device", "nowhere"], "nowhere"),
    ],
)
def test_eval_refusals_are_one_line(run: Run, folder: str, reviews: str, extra: list[str], wrong: str) -> None:
    code, out, err = run("eval", "--model_name_or_path", folder, "--file", reviews, *extra)
    assert (code, out) == (1, "")
    assert wrong in err
    last = err.splitlines()[-1]
    assert last.startswith("dynabert eval: ")
    assert "Traceback" not in err


def test_bad_row_names_file_and_line(run: Run, folder: str, tmp_path: Path) -> None:
    path = tmp_path / "r.tsv"
    path.write_text("text\tlabel\ngood\tgood\nbroken\n", encoding="utf-8")
    code, _, err = run("eval", "--model_name_or_path", folder, "--file", str(path))
    assert code == 1
    assert f"{path}, line 3: 1 fields between tabs" in err
    with pytest.warns(UserWarning, match="1 bad rows were left out"):
        code, out, _ = run("eval", "--model_name_or_path", folder, "--file", str(path), "--bad_rows", "skip", "--json")
    assert json.loads(out)["skipped"] == 1


def test_traceback_when_asked_for(folder: str, tmp_path: Path) -> None:
    argv = ["eval", "--model_name_or_path", folder, "--file", str(tmp_path / "nowhere.tsv")]
    assert main(argv) == 1
    with pytest.raises(FileNotFoundError):
        main([*argv, "--traceback"])


def test_bounds_are_named_by_their_options(run: Run, folder: str, reviews: str) -> None:
    argv = ["eval", "--model_name_or_path", folder, "--file", reviews]
    for name in ("--max_batch_tokens", "--per_device_eval_batch_size"):
        assert f"dynabert eval: {name} is 0; allowed: 1 or more" in run(*argv, name, "0")[2]


def test_a_file_is_no_model(run: Run, reviews: str) -> None:
    code, _, err = run("predict", "--model_name_or_path", reviews, "good")
    assert code == 1
    assert "is a file; give the folder of a checkpoint, or a hub id" in err


def test_missing_model(run: Run, reviews: str, tmp_path: Path) -> None:
    code, _, err = run("eval", "--model_name_or_path", str(tmp_path / "nowhere"), "--file", reviews)
    assert code == 1
    assert "nowhere" in err
    assert len(err.splitlines()) == 1


def test_the_systems_own_errors_are_in_words(run: Run, folder: str, reviews: str, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("kept", encoding="utf-8")
    for place in (taken, taken / "below"):
        code, _, err = run("demo", "--output_dir", str(place))
        assert (code, err) == (1, f"dynabert demo: {place} cannot be a folder: {taken} is a file; give another path\n")
    given = ("rewire", "--model_name_or_path", folder, "--file", reviews)
    code, _, err = run(*given, "--output_dir", str(taken / "below"))
    assert (code, err) == (
        1,
        f"dynabert rewire: --output_dir {taken / 'below'} lies in {taken}, which is a file; give another folder\n",
    )
    assert taken.read_text(encoding="utf-8") == "kept"
    code, _, err = run("demo", "--output_dir", "/proc/nowhere")
    assert code == 1
    assert err.startswith("dynabert demo: /proc/nowhere: ")
    assert err.endswith("; give a path that can be read or written\n")


def test_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("dynabert.engine.InferenceEngine.from_pretrained", broken)
    with pytest.raises(KeyError):
        main(["predict", "--model_name_or_path", folder, "good"])


def test_interrupt(monkeypatch: pytest.MonkeyPatch, folder: str, run: Run) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dynabert.engine.InferenceEngine.from_pretrained", stop)
    code, _, err = run("predict", "--model_name_or_path", folder, "good")
    assert (code, err) == (130, "dynabert predict: interrupted\n")


# rewire
# -----------------------------------------------------------------------------------------------------------------


def test_rewire(run: Run, folder: str, reviews: str, tmp_path: Path) -> None:
    out_dir = tmp_path / "rewired"
    argv = ["rewire", "--model_name_or_path", folder, "--file", reviews, "--output_dir", str(out_dir)]
    code, out, _ = run(*argv, "--json", "--per_device_train_batch_size", "8")
    assert code == 0
    found = json.loads(out)
    assert found["examples"] == 24
    assert found["mode"] == "per_batch"
    assert found["max_logit_difference"] < 1e-5
    assert len(found["layers"]) == 4
    for layer in found["layers"]:
        assert sorted(layer["head_order"]) == [0, 1, 2, 3]
        assert layer["heads_after"] >= layer["heads_before"]
        assert layer["neurons_after"] >= layer["neurons_before"]
        assert layer["neurons_after"] >= 0.5
    before = ElasticBertForSequenceClassification.from_pretrained(folder)
    after = ElasticBertForSequenceClassification.from_pretrained(out_dir)
    assert after.config.rewired
    ids = torch.tensor([[1, 5, 9, 2]])
    assert torch.allclose(before(input_ids=ids).logits, after(input_ids=ids).logits, atol=1e-5)
    assert not torch.allclose(
        before(input_ids=ids, subnet="w0.5").logits, after(input_ids=ids, subnet="w0.5").logits, atol=1e-3
    )
    assert InferenceEngine.from_pretrained(out_dir).predict("good", subnet="w0.5").label in ("bad", "good")

    code, _, err = run(*argv)
    assert code == 1
    assert "is not empty; give another folder, or --overwrite" in err
    code, out, _ = run(*argv, "--overwrite", "--mode", "accumulated")
    assert code == 0
    assert "logits agree within" in out


def test_rewire_allows_the_rounding_of_large_logits(run: Run, folder: str, tmp_path: Path) -> None:
    """Of a regression on prices, say: an absolute bound refused each."""
    model = ElasticBertForSequenceClassification.from_pretrained(
        folder, num_labels=1, problem_type="regression", ignore_mismatched_sizes=True
    )
    torch.manual_seed(0)
    with torch.no_grad():
        model.classifier.out_proj.weight.normal_(0.0, 1e5)
    prices = tmp_path / "prices"
    model.save_pretrained(prices)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (prices / name).write_bytes((Path(folder) / name).read_bytes())
    rows = [f"good film {i}\t{1e5 + i:.1f}" for i in range(12)]
    (tmp_path / "prices.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    given = ["--model_name_or_path", str(prices), "--file", str(tmp_path / "prices.tsv"), "--json"]
    code, out, err = run("rewire", *given, "--output_dir", str(tmp_path / "rewired"))
    assert code == 0, err
    assert 1e-4 < json.loads(out)["max_logit_difference"] < 1.0


def test_rewire_refuses_before_it_works(run: Run, folder: str, reviews: str, tmp_path: Path) -> None:
    path = tmp_path / "a_file"
    path.write_text("x")
    code, _, err = run("rewire", "--model_name_or_path", folder, "--file", reviews, "--output_dir", str(path))
    assert (code, "is a file; give a folder" in err) == (1, True)
    out_dir = tmp_path / "out"
    code, _, err = run(
        "rewire",
        "--model_name_or_path",
        folder,
        "--file",
        reviews,
        "--output_dir",
        str(out_dir),
        "--max_seq_length",
        "4",
    )
    assert code == 1
    assert "is too long" in err
    assert not out_dir.exists()


# env
# --------------------------------------------------------------------------------------------------------------------


def test_env(run: Run) -> None:
    code, out, _ = run("env")
    assert code == 0
    assert f"torch {torch.__version__}" in out
    assert "elastic_ffn_fwd" in out
    code, out, _ = run("env", "--json")
    found = json.loads(out)
    assert found["packages"]["torch"]
    assert found["threads"] == torch.get_num_threads()
    assert found["devices"][0] == "cpu"
    assert "providers" in found["kernels"]


def test_a_reader_that_stops_early_is_no_error(folder: str) -> None:
    predict = f"{sys.executable} -W ignore -m dynabert.cli predict --model_name_or_path {folder} --json good bad"
    result = subprocess.run(
        ["bash", "-c", f"{predict} | head -c 1; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["[0"]
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


def test_warnings_are_one_line(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "r.tsv"
    path.write_text("text\tlabel\ngood\tgood\nbroken\n", encoding="utf-8")
    argv = [
        sys.executable,
        "-m",
        "dynabert.cli",
        "eval",
        "--model_name_or_path",
        folder,
        "--file",
        str(path),
        "--bad_rows",
        "skip",
    ]
    result = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert f"dynabert eval: {path}: 1 bad rows were left out" in result.stderr
    assert "warnings.warn" not in result.stderr
