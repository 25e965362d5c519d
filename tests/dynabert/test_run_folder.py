"""A training run's folder, given where a network is asked for: the README's commands, one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dynabert import ElasticBertForSequenceClassification, InferenceEngine
from dynabert.cli import main
from dynabert.configuration.run_folder import network_folder
from dynabert.engine import load_tokenizer
from tests.dynabert.test_distillation_pipeline import options_of


def test_each_command_takes_what_train_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options_of(tmp_path, validation_file=str(tmp_path / "train.tsv"))) == 0
    run, file = str(tmp_path / "out"), str(tmp_path / "train.tsv")
    here = ["--model_name_or_path", run]
    capsys.readouterr()
    times = ["--batch_sizes", "1", "--seq_lengths", "8", "--max_minutes", "0.2"]
    assert main(["profile", *here, "--output_file", str(tmp_path / "profile.json"), *times]) == 0
    assert f"dynabert profile: {run} is a training run; its network is {run}/final\n" in capsys.readouterr().err
    assert main(["pick", *here, "--file", file, "--max_params", "1M", "--output_dir", str(tmp_path / "picked")]) == 0
    small = ["--subnet", "w0.5-d0.5", "--output_dir", str(tmp_path / "small"), "--format", "elastic"]
    assert main(["export", *here, *small]) == 0
    assert main(["eval", *here, "--file", file, "--subnets", "all"]) == 0
    assert main(["predict", *here, "good film"]) == 0
    capsys.readouterr()
    assert main(["card", *here]) == 0
    assert "these scores may be a little too good" in capsys.readouterr().out  # the run's own are found
    # What would destroy the run is refused: it holds the source.
    assert main(["export", *here, "--subnet", "w0.5-d0.5", "--output_dir", run, "--overwrite"]) == 1
    assert "holds the source" in capsys.readouterr().err
    wanted = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "out" / "final")
    found = ElasticBertForSequenceClassification.from_pretrained(run)
    inside = ElasticBertForSequenceClassification.from_pretrained(run, subfolder="width")
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in wanted.state_dict().items())
    assert not all(torch.equal(value, inside.state_dict()[name]) for name, value in wanted.state_dict().items())
    assert load_tokenizer(run)("good")["input_ids"] == load_tokenizer(tmp_path / "out" / "final")("good")["input_ids"]
    assert InferenceEngine.from_pretrained(run).predict("good").label in ("no", "yes")


def test_texts_are_as_long_as_in_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, long = tmp_path / "valid.tsv", tmp_path / "long.txt"
    file.write_text("text\tlabel\na good film\tyes\n" + "bad film " * 9 + "\tno\n", encoding="utf-8")
    long.write_text("good film\n" + "bad film " * 9 + "\n", encoding="utf-8")
    assert main(options_of(tmp_path, validation_file=str(file), max_seq_length="8")) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["parts"][-1]["rows"]
    here = ["--model_name_or_path", str(tmp_path / "out")]
    assert InferenceEngine.from_pretrained(tmp_path / "out").max_length == 8
    for command in (["eval", "--file", str(file)], ["predict", "--file", str(long)]):
        capsys.readouterr()
        assert main([*command, *here]) == 1
        said = capsys.readouterr().err
        assert f"{command[-1]}: tokenise: the text of line {3 if command[0] == 'eval' else 2} is too long" in said
        assert "allowed: 8; shorten it, cut it with truncate=True (--truncate), or, where the model has" in said
        assert main([*command, *here, "--max_seq_length", "30"]) == 0
    names = ",".join(row["subnet"] for row in rows)
    capsys.readouterr()
    assert main(["eval", *here, "--file", str(file), "--subnets", names, "--truncate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["truncated"] == 1
    assert [row["score"] for row in found["subnets"]] == [row["score"] for row in rows]
    small = ["--subnet", "w0.5-d0.5", "--output_dir", str(tmp_path / "small"), "--format", "elastic"]
    assert main(["export", *here, *small]) == 0  # the length goes with it
    assert InferenceEngine.from_pretrained(tmp_path / "small").max_length == 8


def test_a_run_without_an_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text("{}")
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(OSError, match=r"is a training run that has not ended; go on with its dynabert train, or give"):
        ElasticBertForSequenceClassification.from_pretrained(tmp_path)
    assert main(["predict", "--model_name_or_path", str(tmp_path), "good"]) == 1
    assert "networks there: teacher" in capsys.readouterr().err
    (tmp_path / "results.json").write_text(json.dumps({"parts": [{"part": "depth"}]}))
    with pytest.raises(OSError, match="its last part, depth, is not there; networks there: teacher"):
        network_folder(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(OSError, match=r"whose results\.json cannot be read \(KeyError"):
        network_folder(tmp_path)


def test_what_is_no_run_stays_as_it_is(tmp_path: Path) -> None:
    assert network_folder("org/name") == "org/name"
    assert network_folder(tmp_path) == str(tmp_path)
    for name in ("settings.json", "config.json"):  # a network that holds a file of that name
        (tmp_path / name).write_text("{}")
    assert network_folder(tmp_path) == str(tmp_path)
