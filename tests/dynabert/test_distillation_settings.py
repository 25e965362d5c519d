"""What a run is told and refuses before it trains, what its defaults are, and what may change when it goes on."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dynabert.cli import main
from dynabert.configuration import RoundedDepthWarning
from dynabert.distill import pipeline
from dynabert.distill.checkpoints import room_warning
from dynabert.distill.pipeline import student_config, told_parts, train_elastic, with_defaults
from dynabert.distill.run_lock import run_lock
from dynabert.engine import loading
from tests.dynabert.test_distillation_pipeline import SMALL, network, options_of, write_files
from tests.dynabert.tiny_networks import plain_model
from tests.dynabert.tiny_training import arguments, elastic, texts


def settings(folder: Path) -> Any:
    return json.loads((folder / "settings.json").read_text())


def test_a_teacher_of_no_width_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(tmp_path / "run", subnets="w1,h4,1,0,2-n40,7,0,13")
    with pytest.raises(ValueError, match="says no width for the skipped ones"):
        train_elastic(network(tmp_path), args, texts(8))
    assert not (tmp_path / "run").exists()
    given = options_of(tmp_path, recipe="paper")[:-6]
    assert main([*given, "--subnets", "w1,h4,1,0,2-n40,7,0,13"]) == 1
    assert "use teacher_width='full'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_checkpoints_of_the_best_need_something_to_score(tmp_path: Path) -> None:
    """None would be written, and a run that is cut would begin anew."""
    with pytest.raises(ValueError, match="--save_strategy is best and there is no labelled text to score"):
        train_elastic(network(tmp_path), arguments(tmp_path / "run", save_strategy="best"), texts(8))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_train_epochs": 0}, "--num_train_epochs is 0; allowed: a number above 0, or --max_steps"),
        ({"num_train_epochs": -1}, "--num_train_epochs is -1"),
        ({"num_train_epochs": float("nan")}, "--num_train_epochs is nan"),
        ({"learning_rate": float("nan")}, "--learning_rate is nan; allowed: a number above 0"),
        ({"learning_rate": -1e-3}, "--learning_rate is -0.001"),
        ({"weight_decay": -0.1}, "--weight_decay is -0.1; allowed: 0 or more"),
        ({"greater_is_better": False}, "--greater_is_better is False; allowed: its default; of every score"),
        ({"gradient_checkpointing": True}, "--gradient_checkpointing is True; .*a lower --max_launch_tokens"),
        ({"activation_checkpointing": True}, "--activation_checkpointing is True; .*a lower --max_launch_tokens"),
        ({"per_device_eval_batch_size": 16}, "--per_device_eval_batch_size is 16; allowed here: its default"),
    ],
)
def test_numbers_that_train_nothing_are_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        arguments(tmp_path, **changes)
    assert arguments(tmp_path, num_train_epochs=0, max_steps=3).max_steps == 3


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_a_rate_that_follows_the_score_knows_that_more_is_better(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"lr_scheduler_type": name, "eval_strategy": "epoch"}
    args = arguments(tmp_path, **options, lr_scheduler_kwargs={"patience": 3})
    assert args.lr_scheduler_kwargs == {"mode": "max", "patience": 3}
    assert replace(args).lr_scheduler_kwargs == args.lr_scheduler_kwargs
    assert arguments(tmp_path, **options, lr_scheduler_kwargs={"mode": "min"}).lr_scheduler_kwargs == {"mode": "min"}


def test_what_a_depth_keeps_is_told_where_it_is_not_whole(tmp_path: Path) -> None:
    """Four layers: 0.6 of them are 2.4, and then it is the same network as 0.5."""
    config = network(tmp_path).config
    made = arguments(tmp_path, depths=[1.0, 0.6, 0.5], widths=[1.0]).make_recipe()
    with pytest.warns(RoundedDepthWarning, match="depth 0.6 of 4 layers"):
        told = told_parts(config, made)
    assert told == [
        "depth 0.6 of 4 layers is 2.4, so 2 are kept: 1, 3 (depth_rule 'keep_last')",
        "w1-d0.6 and w1-d0.5 are the same part of this network, which is trained under each name; leave all but one "
        "out (--depths, --subnets)",
    ]
    assert told_parts(config, arguments(tmp_path).make_recipe()) == []
    shallow = student_config(config, arguments(tmp_path, starting_layers="0,1,3").make_recipe())
    told = told_parts(shallow, arguments(tmp_path, widths=[1.0]).make_recipe())
    assert told[0] == "depth 0.75 of 3 layers is 2.25, so 2 are kept: 0, 2 (depth_rule 'keep_last')"
    assert told[2].startswith("w1-d0.75 and w1-d0.5 are the same part of this network")


def test_it_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        raise KeyboardInterrupt

    with pytest.warns(RoundedDepthWarning, match="whole here: 0.5 .2. or 0.75 .3."), pytest.raises(KeyboardInterrupt):
        train_elastic(network(tmp_path), arguments(tmp_path / "run", depths=[1.0, 0.6]), texts(8), say=say)
    assert said[0].startswith("depth 0.6 of 4 layers is 2.4, so 2 are kept: 1, 3")
    assert not (tmp_path / "run").exists()


# Labels.


def labelled(folder: Path, labels: str) -> Path:
    lines = ["text\tlabel", *(f"film {i}\t{label}" for i, label in enumerate(labels.split()))]
    (folder / "labelled.tsv").write_text("\n".join(lines) + "\n")
    return folder / "labelled.tsv"


@pytest.mark.parametrize(
    ("labels", "more", "told"),
    [
        ("1.0 0.0 1.0", {}, "regression: 3 numbers from 0 to 1; for classes give --problem_type single_label_class"),
        (
            "1.0 0.0 1.0",
            {"problem_type": "single_label_classification"},
            "single_label_classification: 2 classes: 0.0 1, 1.0 2\n",
        ),
        (
            "1 5 3 5",
            {},
            "single_label_classification: 3 classes: 1 1, 3 1, 5 2; for numbers give --problem_type regression",
        ),
        ("1 5 3 5", {"problem_type": "regression"}, "regression: 4 numbers from 1 to 5\n"),
        ("no yes yes", {}, "single_label_classification: 2 classes: no 1, yes 2\n"),
    ],
)
def test_the_kind_of_the_labels_is_told_before_it_trains(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    labels: str,
    more: dict[str, str],
    told: str,
) -> None:
    found: list[Any] = []

    def stop(model: Any, *_: Any, **__: Any) -> None:
        found.append(model.config)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train_elastic", stop)
    file = labelled(tmp_path, labels)
    given = options_of(tmp_path, train_file=str(file), validation_file=str(file), cache_dir=str(tmp_path / "c"), **more)
    assert main(given) == 130
    shown = capsys.readouterr()
    assert f"labelled.tsv: {told}" in shown.out + shown.err
    assert found[0].problem_type == ("regression" if "regression" in told[:10] else "single_label_classification")


def test_the_kind_of_the_labels_may_be_said_to_the_other_commands_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain_model("bert", num_labels=1, problem_type="regression").save_pretrained(tmp_path / "numbers")
    write_files(tmp_path)[0].joinpath("tokenizer.json").replace(tmp_path / "numbers" / "tokenizer.json")
    given = ["eval", "--model_name_or_path", str(tmp_path / "numbers"), "--file", str(labelled(tmp_path, "1 5 3 5"))]
    assert main(given) == 1
    assert "say the kind of the labels (--problem_type)" in capsys.readouterr().err
    assert main([*given, "--problem_type", "regression"]) == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"problem_type": "classes"}, "--problem_type is 'classes'; allowed: single_label_classification, multi"),
        ({"bad_rows": "drop"}, "--bad_rows is 'drop'; allowed: error, skip"),
        ({"unlabelled_file": "more.tsv", "distillation": "False"}, "--unlabelled_file has no labels, and with"),
    ],
)
def test_options_that_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, str], told: str
) -> None:
    assert main(options_of(tmp_path, **more)) == 2
    assert told in capsys.readouterr().err


def test_bad_rows_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = labelled(tmp_path, "no yes no yes")
    file.write_text(file.read_text() + "\tyes\n")
    given = {"train_file": str(file), "cache_dir": str(tmp_path / "c")}
    assert main(options_of(tmp_path, **given)) == 1
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    with pytest.warns(UserWarning, match="1 bad rows were left out; the first: "):
        assert main(options_of(tmp_path, **given, bad_rows="skip")) == 0
    shown = capsys.readouterr()
    assert "labelled.tsv: 1 bad rows left out" in shown.out + shown.err
    assert "1 process(es); --step " in shown.out + shown.err
    assert settings(tmp_path / "out")["data"]["train"]["examples"] == 4


# Defaults, and what a folder was begun with.


@pytest.mark.skipif(torch.accelerator.is_available(), reason="what is taken on a CPU")
def test_the_step_is_the_devices_or_the_folders(tmp_path: Path) -> None:
    said: list[str] = []
    args = arguments(tmp_path / "run", **SMALL)
    train_elastic(network(tmp_path), args, texts(8), say=said.append)
    assert settings(tmp_path / "run")["arguments"]["step"] == "loop"
    assert args.step is None  # the caller's arguments are left as they are
    begun = settings(tmp_path / "run")
    begun["arguments"]["step"] = "stacked"  # the default of earlier versions
    (tmp_path / "run" / "settings.json").write_text(json.dumps(begun))
    train_elastic(network(tmp_path), args, texts(8), say=said.append)
    assert "--step stacked, as this folder was begun; the default is loop here" in said
    with pytest.raises(ValueError, match=r"arguments\.step was 'stacked', now 'loop'"):
        train_elastic(network(tmp_path), arguments(tmp_path / "run", **SMALL, step="loop"), texts(8))


def test_roberta_warms_up(tmp_path: Path) -> None:
    def warmup(name: str, architecture: str, **more: Any) -> Any:
        model = elastic(plain_model(architecture), tmp_path / f"start-{name}", torch.float32)
        args = arguments(tmp_path / name, **SMALL, **more)
        said.clear()
        train_elastic(model, args, texts(8), say=said.append)
        return settings(tmp_path / name)["arguments"]["warmup_steps"]

    said: list[str] = []
    assert warmup("roberta", "roberta") == 0.06
    assert said[0].startswith("--warmup_steps 0.06: the rate rises")
    assert warmup("given", "roberta", warmup_steps=0) == 0
    assert warmup("bert", "bert") == 0
    begun = settings(tmp_path / "roberta")
    begun["arguments"]["warmup_steps"] = 0  # the default of earlier versions
    (tmp_path / "roberta" / "settings.json").write_text(json.dumps(begun))
    assert warmup("roberta", "roberta") == 0
    assert said[0] == "--warmup_steps 0, as this folder was begun; the default for RoBERTa is now 0.06"


def test_a_copy_of_the_arguments_knows_what_was_left_open(tmp_path: Path) -> None:
    model = elastic(plain_model("roberta"), tmp_path / "start", torch.float32)
    for given, wanted in (({}, 0.06), ({"warmup_steps": 0}, 0), ({"warmup_steps": 5}, 5)):
        args = arguments(tmp_path, **given)
        copies = [replace(args, seed=7), replace(replace(args, seed=7), seed=8), copy.deepcopy(args)]
        for plain in (args.to_dict(), json.loads(args.to_json_string())):
            # What `to_dict` makes of the environment is not taken back.
            copies.append(type(args)(**{name: plain[name] for name in ("output_dir", "seed", "warmup_steps")}))
        for own in (args, *copies):
            assert own.warmup_steps == (wanted if given else 0)
            assert own.get_warmup_steps(100) == (wanted if given else 0)
            made = with_defaults(own, model, {}, print)
            assert (made.warmup_steps, made.warmup_is_given) == (wanted, True)
            assert replace(made, seed=9).warmup_steps == made.to_dict()["warmup_steps"] == wanted


def test_a_small_network_has_a_higher_rate_where_none_is_given(tmp_path: Path) -> None:
    small = elastic(plain_model("bert"), tmp_path / "start", torch.float32)
    wide = copy.deepcopy(small)
    wide.config.hidden_size = 512
    open_rate = {"learning_rate": None}
    for model, given, wanted in (
        (small, open_rate, 1e-4),
        (wide, open_rate, 2e-5),
        (small, {"learning_rate": 2e-5}, 2e-5),
        (wide, {"learning_rate": 1e-4}, 1e-4),
    ):
        args = arguments(tmp_path, **given)
        for own in (
            args,
            replace(args, seed=7),
            copy.deepcopy(args),
            type(args)(learning_rate=args.to_dict()["learning_rate"]),
        ):
            assert own.learning_rate == (given["learning_rate"] or 2e-5)
            made = with_defaults(own, model, {}, print)
            assert (made.learning_rate, made.rate_is_given) == (wanted, True)
            assert replace(made, seed=9).learning_rate == made.to_dict()["learning_rate"] == wanted
    said: list[str] = []
    made = with_defaults(arguments(tmp_path, **open_rate), small, {"learning_rate": 2e-5}, said.append)
    assert made.learning_rate == 2e-5
    assert said == ["--learning_rate 2e-05, as this folder was begun; the default is 0.0001 here"]


@pytest.mark.parametrize("scored", [True, False])
def test_when_checkpoints_are_written_is_a_setting_where_there_are_scores(tmp_path: Path, scored: bool) -> None:
    validation = texts(8, seed=5) if scored else None
    first = arguments(tmp_path / "run", **SMALL | {"save_strategy": "steps", "save_steps": 2})
    train_elastic(network(tmp_path), first, texts(8), validation, say=lambda _: None)
    for changes in ({"save_strategy": "steps", "save_steps": 1}, {"save_strategy": "epoch"}):
        other = arguments(tmp_path / "run", **SMALL | changes)
        if scored:
            with pytest.raises(ValueError, match=r"saves was \['steps', 2\], now"):
                train_elastic(network(tmp_path), other, texts(8), validation)
        else:
            train_elastic(network(tmp_path), other, texts(8), validation, say=lambda _: None)
    begun = settings(tmp_path / "run")
    begun.pop("saves", None)  # as an earlier version wrote it
    (tmp_path / "run" / "settings.json").write_text(json.dumps(begun))
    train_elastic(network(tmp_path), other, texts(8), validation, say=lambda _: None)


def test_a_folder_of_a_version_with_fewer_switches_goes_on(tmp_path: Path) -> None:
    args = arguments(tmp_path / "run", **SMALL)
    train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)
    begun = settings(tmp_path / "run")
    for part in ("arguments", "recipe"):
        for name in ("relation_weights", "relation_heads", "starting_layers", "label_weights"):
            del begun[part][name]
    (tmp_path / "run" / "settings.json").write_text(json.dumps(begun))
    train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)
    other = arguments(tmp_path / "run", **SMALL, relation_weights=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"recipe\.relation_weights was \[0\.0, 0\.0\], now \[0\.0, 1\.0\]"):
        train_elastic(network(tmp_path), other, texts(8))


def test_seconds_of_a_stage_are_those_of_all_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(pipeline.StageProgress):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            super().on_step_end(args, state, control, **more)
            if self.name == "depth" and state.global_step == 2:
                kept.append(json.loads((tmp_path / "run" / "depth" / "seconds.json").read_text())["seconds"])
                raise KeyboardInterrupt
            if self.name == "depth":
                time.sleep(0.5)

    kept: list[float] = []
    args = arguments(tmp_path / "run", **SMALL | {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2})
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "StageProgress", Killed)
        with pytest.raises(KeyboardInterrupt):
            train_elastic(network(tmp_path), args, texts(16), say=lambda _: None)
    assert kept[0] >= 0.5  # written with the checkpoint, so that a kill without a word leaves it too
    path = tmp_path / "run" / "depth" / "seconds.json"
    path.write_text('{"seconds": 1000.0}\n')
    results = train_elastic(network(tmp_path), args, texts(16), say=lambda _: None)
    assert 1000.0 < results[-1].seconds < 1100.0
    whole = json.loads((tmp_path / "run" / "results.json").read_text())
    assert whole["seconds"] == pytest.approx(sum(r.seconds for r in results), abs=0.2)


# Disk and hub.


def test_settings_that_did_not_fit_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is told with the file, and the folder may be used again; also where the write was killed."""
    path = tmp_path / "run" / "settings.json"

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dynabert.distill.run_settings.os.fsync", full)
        with pytest.raises(OSError, match="No space left on device") as error:
            train_elastic(network(tmp_path), arguments(tmp_path / "run", **SMALL), texts(8), say=lambda _: None)
    assert error.value.filename == str(path)
    assert not path.parent.exists()
    path.parent.mkdir()
    path.with_suffix(".tmp").write_text("{")
    train_elastic(network(tmp_path), arguments(tmp_path / "run", **SMALL), texts(8), say=lambda _: None)
    assert path.is_file()
    assert not path.with_suffix(".tmp").exists()


def test_a_small_disk_is_told_in_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("", (), {"free": 3 * 2**19}))
    told = room_warning(tmp_path, torch.nn.Linear(1024, 1024), 2, 4)
    assert told is not None
    assert re.search(r"has 1\.5 MB free; this run may need 160\.2 MB for its checkpoints", told), told


def test_a_model_that_cannot_be_had_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[str] = []

    def offline(source: str, name: str, **_: Any) -> None:
        asked.append(name)
        raise OSError("We couldn't connect") from LocalEntryNotFoundError("no file kept")

    monkeypatch.setattr(transformers.utils, "cached_file", offline)
    monkeypatch.setattr(loading, "_nothing_to_ask", lambda: False)
    for load in (loading.load_tokenizer, loading.load_model, loading.load_masked_lm):
        asked.clear()
        with pytest.raises(OSError, match="nobody/nothing is no folder here, and no model of the hub that can be had"):
            load("nobody/nothing")
        assert asked == ["config.json"]


def test_a_hub_without_an_address_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils

    asked: list[str] = []

    def unknown(*_: Any) -> None:
        raise OSError("Name or service not known")

    def cached_file(source: str, name: str, **_: Any) -> None:
        asked.append(name)
        raise OSError("asked")  # as where the hub answers: the reader says what it lacks

    monkeypatch.setattr(transformers.utils, "cached_file", cached_file)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(OSError, match="the hub's address is not known; give a folder, or go online"):
        loading.check_there("nobody/nothing")
    assert not asked
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # it knows addresses that this machine does not
    loading.check_there("nobody/nothing")
    assert asked == ["config.json"]


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """The second is refused by name, whatever the first has done so far; what a killed run left is in nobody's way."""
    out = tmp_path / "run"
    args = arguments(out, **SMALL)
    with run_lock(out):
        with pytest.raises(
            ValueError, match=rf"another run works in .*run \(process {os.getpid()} on .*\); wait for it"
        ):
            train_elastic(network(tmp_path), args, texts(8))
        with run_lock(out, wanted=False):
            pass
    assert not out.exists()
    out.mkdir()
    (out / "running.lock").write_text("process 1 on a machine that is off")
    train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)
    assert (out / "results.json").is_file()
    assert not (out / "running.lock").exists()
    train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)  # and goes on


def test_a_killed_run_lets_go_of_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = "import sys, time; from pathlib import Path; from dynabert.distill.run_lock import run_lock\n"
    code += "with run_lock(Path(sys.argv[1])):\n    print('holds', flush=True)\n    time.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "holds\n"
        with pytest.raises(ValueError, match=f"process {other.pid} on "), run_lock(out):
            pass
        other.kill()
    with run_lock(out):
        assert (out / "running.lock").read_text().startswith(f"process {os.getpid()} on ")
