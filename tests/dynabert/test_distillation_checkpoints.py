"""A checkpoint that was cut is never gone on from; a disk that fills is one clear error, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from dynabert import ElasticBertForSequenceClassification
from dynabert.distill import pipeline
from dynabert.distill.checkpoints import CheckpointError, checkpoints, last_checkpoint, missing, room_warning
from dynabert.distill.pipeline import train_elastic
from dynabert.distill.trainer import DistillationTrainer, NotFiniteError
from tests.dynabert.test_distillation_pipeline import SMALL, network, options_of
from tests.dynabert.tiny_training import arguments, texts

ROOT = Path(__file__).parents[2]
EACH_STEP = SMALL | {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps a stage, its last two checkpoints there."""
    folder = tmp_path_factory.mktemp("whole")
    train_elastic(network(folder), arguments(folder / "run", **EACH_STEP), texts(16), say=lambda _: None)
    return folder


def test_whole_ones_are_found(whole: Path) -> None:
    depth = whole / "run" / "depth"
    assert [path.name for path in checkpoints(depth)] == ["checkpoint-4", "checkpoint-3"]
    assert last_checkpoint(depth) == (depth / "checkpoint-4", [])
    assert last_checkpoint(whole / "none") == (None, [])


def test_a_network_alone_is_not_called_cut(whole: Path, tmp_path: Path) -> None:
    """What --save_only_model leaves."""
    shutil.copytree(whole / "run" / "width", tmp_path / "width")
    for name in ("optimizer.pt", "scheduler.pt"):
        (tmp_path / "width" / "checkpoint-4" / name).unlink()
    _, passed = last_checkpoint(tmp_path / "width")
    assert "checkpoint-4 holds the network alone (optimizer.pt is not there); it is passed over" in passed[0]


SCORED = {"scored every 3, written at 4": {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "epoch"}}
SCORED["scored at 4, written every 3"] = {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 3}
SCORED["scored later"] = {"eval_strategy": "epoch", "save_strategy": "epoch", "eval_delay": 2}


@pytest.mark.parametrize("options", SCORED.values(), ids=SCORED.keys())
def test_the_best_is_one_of_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Scores are asked for at other steps than checkpoints are written at: the best of those that are kept is taken."""
    asked: list[int] = []
    best = 8 if options["save_strategy"] == "epoch" else 6

    def scripted(self: Any, *_: Any, **__: Any) -> dict[str, float]:
        step = self.state.global_step
        if self.stage.name == "depth":
            asked.append(step)
        metrics = {"eval_score": 0.9 if step == best - 1 else 0.7 if step == best else 0.1}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    monkeypatch.setattr(DistillationTrainer, "evaluate", scripted)
    args = arguments(tmp_path / "run", **SMALL | options | {"num_train_epochs": 3, "save_total_limit": None})
    train_elastic(network(tmp_path), args, texts(32), texts(8, seed=5), say=lambda _: None)
    folder = tmp_path / "run" / "depth"
    assert len(asked) == len(set(asked))
    written = {int(path.name.removeprefix("checkpoint-")) for path in checkpoints(folder)}
    assert {step for step in written if step >= 4 * options.get("eval_delay", 0)} <= set(asked)
    kept, wanted = (
        ElasticBertForSequenceClassification.from_pretrained(path).state_dict()
        for path in (folder, folder / f"checkpoint-{best}")
    )
    assert all(torch.equal(kept[name], wanted[name]) for name in kept)


class Hourly(TrainerCallback):
    """Asks for a checkpoint at the sixth step, as a clock would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save |= state.global_step == 6


def test_a_checkpoint_of_the_clock_is_not_scored(tmp_path: Path) -> None:
    """A run that is saved by the clock ends with the network of one that is not."""
    found = []
    for name, callbacks in (("run", []), ("clock", [Hourly()])):
        options = {"num_train_epochs": 3, "save_strategy": "epoch", "save_total_limit": None}
        args = arguments(tmp_path / name, **SMALL | options)
        given = args, texts(32), texts(8, seed=5)
        results = train_elastic(network(tmp_path), *given, say=lambda _: None, callbacks=callbacks)
        found.append([[row["step"] for row in one.history if "eval_score" in row] for one in results])
    written = [{path.name for path in checkpoints(tmp_path / name / "depth")} for name in ("clock", "run")]
    assert written[0] - written[1] == {"checkpoint-6"}
    assert found[0] == found[1]
    assert found[0][-1] == [4, 8, 12]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [None, 0, 0.5, 0.99])
def test_a_cut_file_is_seen(whole: Path, tmp_path: Path, name: str, left: float | None) -> None:
    checkpoint = tmp_path / "checkpoint-9"
    shutil.copytree(whole / "run" / "depth" / "checkpoint-4", checkpoint)
    assert missing(checkpoint) is None
    path = checkpoint / name
    content = path.read_bytes()
    path.unlink() if left is None else path.write_bytes(content[: int(len(content) * left)])
    assert missing(checkpoint) == f"{name} is {'not there' if left is None else 'cut'}"


def test_a_run_goes_on_before_a_cut_checkpoint(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole / "run", run)
    (run / "depth" / "complete.json").unlink()
    path = run / "depth" / "checkpoint-4" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:1000])
    said: list[str] = []
    train_elastic(network(tmp_path), arguments(run, **EACH_STEP), texts(16), say=said.append)
    assert f"depth: {path.parent} was cut while it was written (optimizer.pt is cut); it is passed over" in said
    assert f"depth: goes on from {run / 'depth' / 'checkpoint-3'}" in said
    same_weights(whole / "run" / "depth", run / "depth")
    assert missing(path.parent) is None  # written anew


def test_the_best_checkpoint_is_known_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that was begun with a relative path, cut and moved knows which checkpoint was its best."""
    scores: list[float] = []

    def scripted(self: Any, *_: Any, **__: Any) -> dict[str, float]:
        metrics = {"eval_score": scores.pop(0) if self.stage.name == "depth" else 0.5}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    class Stop(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if Path(args.output_dir).name == "depth" and state.global_step == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(DistillationTrainer, "evaluate", scripted)
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    scores[:] = [0.5, 0.9, 0.4]
    data = {"train": texts(16), "validation": texts(8, seed=5), "say": lambda _: None}
    with pytest.raises(KeyboardInterrupt):
        train_elastic(network(tmp_path), arguments(Path("run"), **EACH_STEP), callbacks=[Stop()], **data)
    monkeypatch.chdir(tmp_path)
    shutil.move(tmp_path / "first" / "run", tmp_path / "moved")
    scores[:] = [0.3]
    train_elastic(network(tmp_path), arguments(Path("moved"), **EACH_STEP), **data)
    depth = tmp_path / "moved" / "depth"
    assert [path.name for path in checkpoints(depth)] == ["checkpoint-4", "checkpoint-2"]
    same_weights(depth / "checkpoint-2", depth)
    assert "does not exist anymore" not in caplog.text


def same_weights(one: Path, other: Path) -> None:
    wanted, found = (ElasticBertForSequenceClassification.from_pretrained(path).state_dict() for path in (one, other))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_no_room_for_a_checkpoint(tmp_path: Path) -> None:
    """The files of the process may not grow beyond what the weights take: the optimiser's cannot be written."""
    command = options_of(tmp_path, save_strategy="steps", save_steps="1")
    limit = 2 * (tmp_path / "model" / "model.safetensors").stat().st_size
    code = (
        "import resource, sys\n"
        "from dynabert.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}

    def run(most: int) -> subprocess.CompletedProcess[str]:
        given = [sys.executable, "-c", code, str(most), *command]
        return subprocess.run(given, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)

    failed = run(limit)
    assert failed.returncode == 1, failed.stderr[-3000:]
    last = failed.stderr.strip().splitlines()[-1]
    teacher = tmp_path / "out" / "teacher"
    assert last.startswith(f"dynabert train: a checkpoint could not be written in {teacher}: "), last
    assert "MB are free there; no checkpoint of this stage is there yet; mend that and give the same command" in last
    assert missing(teacher / "checkpoint-1") is not None
    done = run(2**40)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"teacher: {teacher / 'checkpoint-1'} was cut while it was written" in done.stderr
    assert (tmp_path / "out" / "depth" / "complete.json").is_file()


def test_what_is_kept_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = torch.save

    def full(content: Any, path: Any, *more: Any, **named: Any) -> None:
        if "depth/checkpoint-3" in str(path):
            raise OSError(28, "No space left on device")
        written(content, path, *more, **named)

    monkeypatch.setattr(torch, "save", full)
    args = arguments(tmp_path / "run", **EACH_STEP)
    with pytest.raises(CheckpointError, match=r"No space left on device; .* MB are free there; .*-2 is whole"):
        train_elastic(network(tmp_path), args, texts(16), say=lambda _: None)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path / "run", **EACH_STEP)
    step = DistillationTrainer._launch

    def poisoned(self: Any, *given: Any) -> Any:
        losses = step(self, *given)
        if self.stage.name == "depth" and self.state.global_step == 2:
            losses[1] = float("nan")
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.DistillationTrainer, "_launch", poisoned)
        with pytest.raises(NotFiniteError, match=r"stage depth: the loss of w0\.5-d1 is nan at step 2"):
            train_elastic(network(tmp_path), args, texts(16), say=lambda _: None)
    depth = tmp_path / "run" / "depth"
    assert last_checkpoint(depth) == (depth / "checkpoint-2", [])
    weights = ElasticBertForSequenceClassification.from_pretrained(depth / "checkpoint-2").state_dict()
    assert all(weight.isfinite().all() for weight in weights.values())
    train_elastic(network(tmp_path), args, texts(16), say=lambda _: None)
    same_weights(whole / "run" / "depth", depth)


def test_a_network_that_is_not_finite_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path / "run", **EACH_STEP)
    reduce = DistillationTrainer._reduce_gradients

    def poisoned(self: Any, student: Any) -> None:
        reduce(self, student)
        if self.stage.name == "depth" and self.state.global_step == 2:
            student.classifier.out_proj.weight.grad[0, 0] = float("nan")

    monkeypatch.setattr(pipeline.DistillationTrainer, "_reduce_gradients", poisoned)
    with pytest.raises(NotFiniteError, match=r"stage depth: \S+ is not finite after step 3; lower learning_rate"):
        train_elastic(network(tmp_path), args, texts(16), say=lambda _: None)
    assert [path.name for path in checkpoints(tmp_path / "run" / "depth")] == ["checkpoint-2", "checkpoint-1"]


def test_room_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(tmp_path)
    assert room_warning(tmp_path / "not" / "yet", model, 2, 4) is None
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**10))
    warning = room_warning(tmp_path / "not" / "yet", model, 2, 4)
    assert warning is not None
    assert warning.startswith(f"{tmp_path} has 0.0 MB free; this run may need ")
