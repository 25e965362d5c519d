"""``dynabert export``: the table, the JSON, exit codes and one-line refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dynabert.cli import export, main
from dynabert.export import FORMATS, parity
from dynabert.modeling import ElasticBertModel
from tests.dynabert.tiny_texts import tiny_folder, tiny_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: str) -> tuple[int, str, str]:
        code = main(["export", *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_formats_are_those_of_the_room() -> None:
    assert export.FORMATS == FORMATS


def test_a_table_and_how_to_load(run: Run, folder: str, tmp_path: Path) -> None:
    """hf-remote through the process that it really takes."""
    out_dir = tmp_path / "out"
    argv = ["--model_name_or_path", folder, "--subnet", "w0.5-d0.5", "--output_dir", str(out_dir)]
    code, out, err = run(*argv, "--format", "hf-remote")
    assert (code, err) == (0, "")
    for part in ("w0.5-d0.5", "hf-remote in", "GFLOP at 50 tokens", "with trust_remote_code, without dynabert"):
        assert part in out
    assert f'from_pretrained("{out_dir.as_posix()}", trust_remote_code=True)' in out
    assert (out_dir / "modeling_elastic_bert.py").is_file()
    code, _, err = run(*argv, "--format", "elastic")
    assert code == 1
    assert err.startswith("dynabert export: export: output_dir")
    assert "is not empty; give another folder, or --overwrite" in err
    assert run(*argv, "--format", "elastic", "--overwrite")[0] == 0
    assert not (out_dir / "modeling_elastic_bert.py").exists()


@pytest.mark.parametrize("form", ["hf", "onnx", "elastic"])
def test_json(run: Run, folder: str, tmp_path: Path, form: str) -> None:
    out_dir = tmp_path / "out"
    argv = ["--model_name_or_path", folder, "--subnet", "d0.5", "--output_dir", str(out_dir), "--format", form]
    code, out, err = run(*argv, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found == json.loads((out_dir / "export_report.json").read_text())
    assert found["source"] == folder
    assert found["subnet"] == "w1-d0.5"
    assert found["subnet_heads"] == [0, 4, 0, 4]
    assert found["tokenizer"] is True
    assert found["versions"].keys() >= {"torch", "transformers", "dynabert-kernels"}


def test_padding_and_half_precision_are_shown(run: Run, folder: str, tmp_path: Path) -> None:
    argv = ["--model_name_or_path", folder, "--subnet", "w0.5", "--output_dir", str(tmp_path / "out")]
    code, out, err = run(*argv)
    assert (code, out) == (1, "")
    assert "the format hf cannot hold this sub-network: every layer has fewer than 4 heads" in err
    assert len(err.splitlines()) == 1
    code, out, _ = run(*argv, "--pad", "--dtype", "float16")
    assert code == 0
    assert "4 heads, 20 neurons" in out
    assert "no faster than that" in out
    assert "stored as float16, from float32" in out


def test_wrong_usage_is_two(run: Run, folder: str) -> None:
    for argv in (["--output_dir", "x"], ["--model_name_or_path", folder], ["--format", "gguf"], ["--dtype", "int8"]):
        assert run(*argv)[0] == 2


def test_refusals_are_one_line(run: Run, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    ElasticBertModel(tiny_model().config).save_pretrained(bare)
    (tmp_path / "file").write_text("x")
    for source, target, extra, wrong in (
        (folder, "out", ["--subnet", "w0.3"], "width_mult 0.3 is 1.2 of 4 heads"),
        (str(tmp_path / "nowhere"), "out", [], "nowhere"),
        (str(bare), "out", [], "has no trained classification head"),
        (folder, "file", [], "is a file; give a folder"),
        (folder, "out", ["--pad", "--format", "onnx"], "pad belongs to the format hf"),
    ):
        code, out, err = run("--model_name_or_path", source, "--output_dir", str(tmp_path / target), *extra)
        assert (code, out) == (1, "")
        assert wrong in err
        assert err.splitlines()[-1].startswith("dynabert export: ")
    monkeypatch.setattr(parity, "BOUND", -1.0)
    monkeypatch.setattr(parity, "ROUNDINGS", -1.0)
    code, _, err = run("--model_name_or_path", folder, "--output_dir", str(tmp_path / "out"))
    assert code == 1
    assert "answers otherwise than the source" in err
    assert "nothing was exported" in err
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer(run: Run, folder: str, tmp_path: Path) -> None:
    lone = tmp_path / "lone"
    shutil.copytree(folder, lone)
    for path in lone.glob("tokenizer*"):
        path.unlink()
    code, out, err = run("--model_name_or_path", str(lone), "--output_dir", str(tmp_path / "out"))
    assert code == 0
    assert "exported without a tokenizer" in err
    assert "has no tokenizer" in err
    assert "AutoTokenizer" not in out
    assert json.loads((tmp_path / "out" / "export_report.json").read_text())["parity"]["texts"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_from_outside_leaves_nothing(
    run: Run, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(parity, "compare", lambda *_: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_DFL)  # tests below nohup ignore SIGHUP
    try:
        code, _, err = run("--model_name_or_path", folder, "--output_dir", str(tmp_path / "new" / "out"))
        assert code == 128 + number
        assert f"dynabert export: ended by {number.name}" in err
        assert not list(tmp_path.iterdir())
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_so(
    run: Run, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below ``nohup``."""
    compare = parity.compare

    def hung_up(*given: object) -> object:
        os.kill(os.getpid(), signal.SIGHUP)
        return compare(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(parity, "compare", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("--model_name_or_path", folder, "--output_dir", str(tmp_path / "out"))[0] == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
