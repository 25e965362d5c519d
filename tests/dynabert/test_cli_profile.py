"""``dynabert profile`` through ``main(argv)``: the file, the tables, and what is refused before anything is timed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import dynabert.profile
from dynabert.cli import main
from dynabert.cli.profile import default_dtypes, names, numbers
from dynabert.profile import DeviceProfile
from tests.dynabert.tiny_texts import tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


def short(folder: str, path: Path, *more: str) -> list[str]:
    """A profile of a second."""
    return [
        *("profile", "--model_name_or_path", folder, "--output_file", str(path), "--max_minutes", "0.01"),
        *("--seq_lengths", "8,16", "--check", "4", *more),
    ]


def test_a_profile_is_written_and_shown(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "profile.json"
    threads = torch.get_num_threads()
    assert main(short(folder, path, "--threads", "1")) == 0
    assert torch.get_num_threads() == threads
    shown = capsys.readouterr()
    for text in ("w0.5-d0.75", "8 x 16", "float32: milliseconds", "random ones", "later", "interpolated"):
        assert text in shown.out
    assert "dynabert pick --profile" in shown.err
    profile = DeviceProfile.load(path, check_device=False)
    assert profile.facts.threads == 1
    assert (profile.batch_sizes, profile.seq_lengths) == ((1, 8), (8, 16))
    assert profile.dtypes == default_dtypes("cpu")
    assert profile.latency_ms("w0.5-d0.5", 4, 12) > 0.0


def test_json(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a profile.json"
    assert main(short(folder, path, "--dtypes", "float32", "--batch_sizes", "1", "--json")) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == json.loads(path.read_text(encoding="utf-8"))
    assert f"dynabert pick --profile '{path}' --max_latency_ms" in shown.err  # as a shell takes it


def test_a_file_is_not_replaced_in_silence(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "profile.json"
    path.write_text("mine", encoding="utf-8")
    assert main(short(folder, path)) == 1
    assert "is there; give another file, or --overwrite" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine"
    assert main(short(folder, path, "--dtypes", "float32", "--batch_sizes", "1", "--overwrite")) == 0
    assert main(short(folder, tmp_path / "no" / "profile.json")) == 1
    assert "make it first" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynabert.profile, "profile_device", lambda *_, **__: pytest.fail("measured"))
    assert main(short(folder, tmp_path / ("x" * 252))) == 1
    assert re.search(r"--output_file .*x cannot be written: .*; give another file", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_one_or_few_sub_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layers in (1, 2):
        sizes = {"num_hidden_layers": layers, "num_attention_heads": 1, "intermediate_size": 1}
        small = str(tiny_folder(tmp_path / f"model-{layers}", **sizes))
        path = tmp_path / f"{layers}.json"
        assert main(short(small, path, "--threads", "1", "--dtypes", "float32", "--batch_sizes", "1")) == 0
        shown = capsys.readouterr().err
        assert "slice" not in shown
        assert "invalid value" not in shown
        assert "--max_minutes, or a network of few sub-networks, did not allow more" in shown
        assert DeviceProfile.load(path, check_device=False).latency_ms(None, 1, 8) > 0.0


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--batch_sizes", "1,x"], "--batch_sizes is '1,x'; allowed: whole numbers from 1"),
        (["--seq_lengths", "0"], "--seq_lengths is '0'"),
        (["--dtypes", "float32,int4"], "--dtypes is 'float32,int4'; allowed: float32, bfloat16, float16, int8"),
        (["--threads", "0"], "--threads is 0; allowed: 1 or more"),
        (["--max_minutes", "nan"], "--max_minutes is nan; allowed: above 0"),
        (["--check", "-1"], "--check is -1; allowed: 0 or more"),
    ],
)
def test_wrong_usage(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], wrong: str
) -> None:
    assert main([*short(folder, tmp_path / "p.json"), *options]) == 2
    assert wrong in capsys.readouterr().err


def test_too_long_for_the_model(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*short(folder, tmp_path / "p.json"), "--seq_lengths", "51"]) == 1
    assert "beyond the model's 50 positions" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


def test_lists_are_read() -> None:
    assert numbers("--batch_sizes", "8, 1") == (8, 1)
    assert names("int8, float32") == ("int8", "float32")
    assert default_dtypes("cuda") == ("float32", "bfloat16", "float16")
