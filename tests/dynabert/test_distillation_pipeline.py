"""The whole run: each part once, cut and gone on with, refused with other settings; and its command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from dynabert import ElasticBertForSequenceClassification, SubnetConfig
from dynabert.cli import main
from dynabert.cli.train import parse
from dynabert.distill import pipeline, recipe
from dynabert.distill.pipeline import stage_costs, train_elastic
from tests.dynabert.tiny_networks import plain_model
from tests.dynabert.tiny_texts import tiny_tokenizer
from tests.dynabert.tiny_training import arguments, elastic, texts

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"widths": [1.0, 0.5], "depths": [1.0, 0.5], "per_device_train_batch_size": 8}


def network(folder: Path) -> Any:
    return elastic(plain_model("bert"), folder / "start", torch.float32)


def test_each_part_is_done_once(tmp_path: Path) -> None:
    said: list[str] = []
    args = arguments(tmp_path / "run", **SMALL)
    results = train_elastic(network(tmp_path), args, texts(16), texts(8, seed=5), say=said.append)
    assert [r.name for r in results] == ["teacher", "rewired", "width", "depth"]
    assert [len(r.rows) for r in results] == [1, 4, 2, 4]
    last = ElasticBertForSequenceClassification.from_pretrained(results[-1].folder)
    assert last.config.rewired
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [part["part"] for part in rows["parts"]] == ["teacher", "rewired", "width", "depth"]
    times = {r.name: (r.folder / "complete.json").stat().st_mtime_ns for r in results}
    again = train_elastic(network(tmp_path), args, texts(16), texts(8, seed=5), say=said.append)
    assert {r.name: (r.folder / "complete.json").stat().st_mtime_ns for r in again} == times
    assert said[-3:] == [
        f"{name}: complete, not repeated ({tmp_path / 'run' / name})" for name in ("teacher", "width", "depth")
    ]


@pytest.mark.parametrize(("second", "folder"), [("width", "width"), ("fine_tuned", "rewired")])
def test_who_teaches_the_second_stage(
    tmp_path: Path, second: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: dict[str, Any] = {}
    usual = pipeline.run_stage

    def watched(stage: Any, student: Any, teacher: Any, *rest: Any) -> Any:
        teachers[stage.name] = teacher
        return usual(stage, student, teacher, *rest)

    monkeypatch.setattr(pipeline, "run_stage", watched)
    args = arguments(tmp_path / "run", **SMALL, teacher_width="full", second_teacher=second)
    train_elastic(network(tmp_path), args, texts(16), say=lambda _: None)

    def same_as(folder: str) -> bool:
        other = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "run" / folder).state_dict()
        return all(torch.equal(value, other[name]) for name, value in teachers["depth"].state_dict().items())

    assert [name for name in ("rewired", "width", "depth") if same_as(name)] == [folder]


def test_a_second_teacher_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'fine_tuned' and teacher_width 'same'.*--teacher_width full"):
        arguments(tmp_path, second_teacher="fine_tuned")
    with pytest.raises(ValueError, match="second_teacher is 'none'; allowed: width, fine_tuned"):
        arguments(tmp_path, second_teacher="none")


def test_the_best_checkpoint_by_the_mean_score_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    means = iter([0.25, 0.9, 0.5])
    asked: list[float] = []

    def scripted(self: Any, *_: Any, **__: Any) -> dict[str, float]:
        asked.append(next(means) if self.stage.name == "depth" else 0.5)
        metrics = {"eval_score": asked[-1]}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    monkeypatch.setattr(pipeline.DistillationTrainer, "evaluate", scripted)
    args = arguments(tmp_path / "run", **SMALL | {"num_train_epochs": 3, "save_strategy": "epoch"})
    train_elastic(network(tmp_path), args, texts(16), texts(8, seed=5), say=lambda _: None)
    assert asked[-3:] == [0.25, 0.9, 0.5]
    folder = tmp_path / "run" / "depth"
    kept, best, last = (
        ElasticBertForSequenceClassification.from_pretrained(path).state_dict()
        for path in (folder, folder / "checkpoint-4", folder / "checkpoint-6")
    )
    assert all(torch.equal(kept[name], best[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path / "run", **SMALL)
    train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)
    other = arguments(tmp_path / "run", **SMALL | {"learning_rate": 1e-3, "logging_steps": 7})
    with pytest.raises(
        ValueError, match=r"begun with other settings: arguments\.learning_rate was 0\.01, now 0\.001; use"
    ):
        train_elastic(network(tmp_path), other, texts(8))
    best = arguments(tmp_path / "run", **SMALL | {"recipe": "best"})
    with pytest.raises(ValueError, match=r"use those \(--recipe paper\), or another --output_dir"):
        train_elastic(network(tmp_path), best, texts(8))
    with pytest.raises(ValueError, match=r"data\.train\.examples was 8, now 9; .* use those, or another"):
        train_elastic(network(tmp_path), args, texts(9))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no training run"):
        train_elastic(network(tmp_path), arguments(tmp_path / "full", **SMALL), texts(8))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = SMALL | {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}
    whole = train_elastic(network(tmp_path), arguments(tmp_path / "whole", **options), texts(16), say=lambda _: None)

    class Killed(pipeline.StageProgress):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            super().on_step_end(args, state, control, **more)
            if self.name == "depth" and state.global_step == 2:
                raise KeyboardInterrupt

    args = arguments(tmp_path / "cut", **options)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "StageProgress", Killed)
        with pytest.raises(KeyboardInterrupt):
            train_elastic(network(tmp_path), args, texts(16), say=lambda _: None)
    said: list[str] = []
    cut = train_elastic(network(tmp_path), args, texts(16), say=said.append)
    assert any(line.startswith("depth: goes on from ") for line in said)
    wanted, found = (
        ElasticBertForSequenceClassification.from_pretrained(results[-1].folder).state_dict()
        for results in (whole, cut)
    )
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_frozen_weights_are_refused(tmp_path: Path) -> None:
    """Each stage opens its network anew, and would train them. A teacher that is fine-tuned may be frozen."""
    model = network(tmp_path)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"train_elastic: \d+ parameters are frozen, such as .*; allowed: none"):
        train_elastic(model, arguments(tmp_path / "run", **SMALL), texts(8))
    assert not (tmp_path / "run").exists()
    train_elastic(model, arguments(tmp_path / "run", **SMALL), texts(8), fine_tuned=True, say=lambda _: None)


def test_a_teacher_that_is_fine_tuned_is_taken_as_it_is(tmp_path: Path) -> None:
    model = network(tmp_path)
    options: dict[str, Any] = {"recipe": "sandwich", "final_stage": True, "depth_rule": "reference"}
    args = arguments(tmp_path / "run", **options, **SMALL)
    results = train_elastic(model, args, texts(8), fine_tuned=True, rewiring=False, say=lambda _: None)
    last = ElasticBertForSequenceClassification.from_pretrained(results[-1].folder)
    assert last.config.depth_rule == "reference"  # it says which layers a depth keeps, so it travels with the weights
    assert [r.name for r in results] == ["teacher", "rewired", "width", "depth", "final"]
    teacher = ElasticBertForSequenceClassification.from_pretrained(results[0].folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], tensor), name


def test_what_a_step_costs(tmp_path: Path) -> None:
    # SPEC's table, for 12 layers: 8.5 in the first stage, 17.9 in the second with one teacher forward, sandwich 7.1.
    model = elastic(plain_model("bert", num_hidden_layers=12, max_position_embeddings=512), tmp_path)
    for name, second in (("reference", 17.9), ("sandwich", 7.1), ("paper", 19.4)):
        width, depth = stage_costs(model, recipe(name))
        assert width["forward_passes"] == pytest.approx(8.5, abs=0.05)
        assert depth["forward_passes"] == pytest.approx(second, abs=0.05)
    assert [s["subnet"] for s in depth["subnets"]][:5] == ["w1-d1", "w0.75-d1", "w0.5-d1", "w0.25-d1", "w1-d0.75"]


def test_recipes_and_their_switches() -> None:
    reference = recipe("reference")
    assert (reference.depth_rule, reference.importance_mode) == ("reference", "reference")
    stages = recipe("paper").stages
    assert [len(stage.subnets) for stage in stages] == [4, 12]
    assert [(stage.logit_weight, stage.hidden_weight) for stage in stages] == [(1.0, 0.1), (1.0, 1.0)]
    sandwich = recipe("sandwich").stages[1]
    drawn = [sandwich.chosen(step, 42) for step in range(50)]
    assert all(c[0] == SubnetConfig() and c[-1] == SubnetConfig(0.25, 0.5) and len(set(c)) == 4 for c in drawn)
    assert len(set(drawn)) > 20
    assert drawn == [sandwich.chosen(step, 42) for step in range(50)]
    best = recipe("best").stages
    assert [stage.name for stage in best] == ["width", "depth", "final"]
    assert [(stage.teacher_width, stage.labels) for stage in best] == [("full", False), ("full", False), ("full", True)]
    assert (best[0], best[1]) == (stages[0], replace(stages[1], teacher_width="full"))
    with pytest.raises(ValueError, match="recipe is 'mine'; allowed: best, paper, reference, sandwich"):
        recipe("mine")


def test_argument_refusals(tmp_path: Path) -> None:
    for changes, message in (
        ({"recipe": "mine"}, "recipe is 'mine'"),
        ({"step": "all"}, "--step is 'all'; allowed: stacked, loop"),
        ({"logit_weights": [1.0]}, "--logit_weights has 1 numbers; allowed: 2"),
        ({"subnets": "w1,w0.5", "widths": [1.0]}, "--subnets takes the place of --widths and --depths"),
        ({"depth_rule": "last"}, "--depth_rule is 'last'; allowed: keep_last, reference"),
        ({"widths": [0.5, 0.5]}, "allowed: at least one, each once"),
        ({"hidden_weights": [-1.0, 1.0]}, "hidden_weight is -1.0; allowed: 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            arguments(tmp_path, **changes)


# The command.


def write_files(folder: Path) -> tuple[Path, Path]:
    """A checkpoint with its tokenizer, and a labelled file."""
    plain_model("bert").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    lines = ["text\tlabel", *(f"good film {i % 3}\tyes" if i % 2 else f"bad film {i % 5}\tno" for i in range(12))]
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    return folder / "model", folder / "train.tsv"


def test_the_command_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = write_files(tmp_path)
    options = {
        "model_name_or_path": str(model),
        "train_file": str(file),
        "validation_file": str(file),
        "output_dir": str(tmp_path / "out"),
        "num_train_epochs": 1,
        "widths": [1.0, 0.5],
        "depths": [1.0, 0.5],
        "disable_tqdm": True,
    }
    (tmp_path / "run.json").write_text(json.dumps(options))
    assert main(["train", str(tmp_path / "run.json")]) == 0
    shown = capsys.readouterr()
    assert "stage depth: a step costs" in shown.out
    assert "12 examples; majority 50.0" in shown.out
    assert "--learning_rate 0.0001: the default of networks narrower than 512" in shown.err
    # By default the last stage is one on labels.
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["recipe"]["second_teacher"] == "fine_tuned"
    network = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "out" / "final")
    assert set(network.config.id2label.values()) == {"yes", "no"}
    check_card(tmp_path)
    for picture in ("scores.png", "learning.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 5000


def check_card(folder: Path) -> None:
    """The card beside the trained network has the run's own numbers, and nothing of this disk."""
    path = folder / "out" / "final" / "README.md"
    text = path.read_text()
    run = json.loads((folder / "out" / "results.json").read_text())
    assert set(run["versions"]) >= {"dynabert-kernels", "torch", "transformers"}
    parts = {part["part"]: part["rows"] for part in run["parts"]}
    found = {row["subnet"]: row["score"] for row in parts["final"]}
    values = {one.metric_name: one.metric_value for one in ModelCard(text).data.eval_results}
    assert values == {f"accuracy of {name}": round(score, 6) for name, score in found.items()}
    whole = found["w1-d1"]
    for name, score in found.items():
        (line,) = (own for own in text.splitlines() if own.startswith(f"| `{name}`"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        retention, corrected = (
            f"{100 * (score - low) / (whole - low):.1f} %" if whole > low else "undefined" for low in (0.0, 0.5)
        )
        assert cells[3:] == [f"{100 * score:.1f}", retention, corrected, "not measured"]
    teacher = parts["teacher"][0]["score"]
    for line in (
        "on 12 examples of train.tsv",
        f"that taught it scores {100 * teacher:.1f}",
        "a local folder named `model`",
        "learning rate: 0.0001",
        "epochs of each stage: 1",
        "weight of the hidden states' loss, width and depth stage: 0.1, 1.0",
        "seed: 42",
        f"torch {run['versions']['torch']}",
        "Labels: `no`, `yes`",
    ):
        assert line in text, line
    assert not [name for path in (folder, ROOT) for name in (str(path),) if name in text]
    path.write_text("mine")
    assert main(["train", str(folder / "run.json")]) == 0
    assert path.read_text() == "mine"


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = write_files(tmp_path)
    base = ["train", "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "out")]
    assert main(["train"]) == 2
    assert main([*base]) == 2
    assert "give either --task_name or --train_file" in capsys.readouterr().err
    assert main([*base, "--train_file", str(file), "--widths", "0.3"]) == 1
    assert "width_mult 0.3 is 1.2 of 4 heads" in capsys.readouterr().err
    assert main([*base, "--train_file", str(tmp_path / "none.tsv")]) == 1
    assert main([*base, "--train_file", str(file), "--learning_rat", "1"]) == 2
    assert "unrecognized arguments: --learning_rat 1" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "none.json")]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [None, 1])
def test_several_processes_are_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: int | None
) -> None:
    """With one example to score, one of the two processes has none."""
    file = str(write_files(tmp_path)[1])
    more = {} if limit is None else {"max_eval_samples": str(limit)}
    given = options_of(tmp_path, validation_file=file, **more)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "-m", "dynabert.cli", *given]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 process(es)" in done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    # What the processes scored together is what the first one scored alone at the end.
    log = json.loads((tmp_path / "out" / "depth" / "complete.json").read_text())
    shared = [entry for entry in log["history"] if "eval_score" in entry][-1]
    alone = {row["subnet"]: row["score"] for row in results["parts"][-1]["rows"]}
    assert {name: shared[f"eval_{name}"] for name in alone} == alone
    if limit is None:  # one process has other batches, so it would be another run
        assert main(given) == 1
        assert "processes was 2, now None" in capsys.readouterr().err


def options_of(tmp_path: Path, **more: str) -> list[str]:
    """Options of a small run of the command."""
    model, file = write_files(tmp_path)
    given = {
        "model_name_or_path": str(model),
        "train_file": str(file),
        "output_dir": str(tmp_path / "out"),
        "num_train_epochs": "1",
        "disable_tqdm": "True",
    } | more
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    return ["train", *flags, "--widths", "1.0", "0.5", "--depths", "1.0", "0.5"]


def test_the_distillation_stages_take_text_without_labels(tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": f"good film {i}"}) + "\n" for i in range(7)))
    assert main(options_of(tmp_path, unlabelled_file=str(tmp_path / "more.jsonl"))) == 0
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["data"]["train"]["examples"] == 12
    assert settings["data"]["unlabelled"]["examples"] == 7


def test_a_class_may_be_missing_from_the_validation_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dev.tsv").write_text("text\tlabel\ngood film\tyes\nbad film\tyes\n")
    assert main(options_of(tmp_path, validation_file=str(tmp_path / "dev.tsv"))) == 0
    assert "2 examples; majority 100.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "more", "told"),
    [
        ("text\tlabel\ngood film\tmaybe\n", {}, "maybe"),
        ("text\tlabel\ngood film\tyes\n", {"label_column": "mark"}, "mark"),
        ("words\tlabel\ngood film\tyes\n", {"text_column": "text"}, "words"),
        ("text\nbad film\n", {}, "label"),
        (
            "sentence1\tsentence2\tlabel\ngood film\tbad film\tyes\n",
            {},
            "has pairs of texts ('sentence1', 'sentence2', 'label') and ",
        ),
    ],
)
def test_a_validation_file_that_does_not_fit_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, more: dict[str, str], told: str
) -> None:
    (tmp_path / "dev.tsv").write_text(content)
    assert main(options_of(tmp_path, validation_file=str(tmp_path / "dev.tsv"), **more)) == 1
    error = capsys.readouterr().err
    assert told in error
    assert not (tmp_path / "out").exists()


def test_unlabelled_text_that_does_not_fit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "more.tsv").write_text("sentence1\tsentence2\ngood film\tbad film\n")
    assert main(options_of(tmp_path, unlabelled_file=str(tmp_path / "more.tsv"))) == 1
    assert "more.tsv has pairs of texts" in (error := capsys.readouterr().err)
    assert "allowed: the same in both; name the columns (--text_column, --second_text_column)" in error


def test_a_teacher_with_other_labels_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options_of(tmp_path)) == 0
    teacher = str(tmp_path / "out" / "teacher")
    (tmp_path / "other.tsv").write_text("text\tlabel\ngood film\tup\nbad film\tdown\n")
    capsys.readouterr()
    given = {"model_name_or_path": teacher, "fine_tuned": "True", "output_dir": str(tmp_path / "second")}
    assert main(options_of(tmp_path, **given, train_file=str(tmp_path / "other.tsv"))) == 1
    error = capsys.readouterr().err
    assert "the data has down, up; the model has no, yes; use the model's names or the numbers 0 to 1" in error


def test_tensorboard_has_each_subnetwork(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    file = str(write_files(tmp_path)[1])
    given = options_of(tmp_path, validation_file=file, report_to="tensorboard", logging_steps="1")
    assert main(given) == 0
    (written,) = (tmp_path / "out" / "depth").glob("runs/*/events.*")
    found = EventAccumulator(str(written))
    found.Reload()
    for name in ("w1-d1", "w0.5-d1", "w1-d0.5", "w0.5-d0.5"):
        assert {f"train/loss_{name}", f"eval/{name}"} <= set(found.Tags()["scalars"])


# What was taken in silence once.


def test_another_start_or_other_data_is_another_run(tmp_path: Path) -> None:
    args = arguments(tmp_path / "run", **SMALL)
    train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)
    other = elastic(plain_model("bert", 9), tmp_path / "other", torch.float32)
    with pytest.raises(ValueError, match=r"begun with other settings: start was '\w+', now '\w+'; use those"):
        train_elastic(other, args, texts(8))
    changed = network(tmp_path)
    changed.config.hidden_dropout_prob = 0.3
    with pytest.raises(ValueError, match="start was"):
        train_elastic(changed, args, texts(8))
    data = texts(8)
    swapped = replace(data, labels=tuple(reversed(data.labels or ())))
    with pytest.raises(ValueError, match=r"data\.train\.digest was"):
        train_elastic(network(tmp_path), args, swapped)


def test_settings_that_never_trained_hold_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_stage", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_elastic(network(tmp_path), arguments(tmp_path / "run", **SMALL), texts(8))
    assert (tmp_path / "run" / "settings.json").is_file()
    other = arguments(tmp_path / "run", **SMALL | {"learning_rate": 1e-3})
    train_elastic(network(tmp_path), other, texts(8), say=lambda _: None)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["arguments"]["learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"label_smoothing_factor": 0.3}, "--label_smoothing_factor is 0.3; allowed here: its default; the losses are"),
        ({"neftune_noise_alpha": 5.0}, "--neftune_noise_alpha is 5.0"),
        ({"data_seed": 7}, "--data_seed is 7"),
        ({"data_seed": 0}, "--data_seed is 0"),
        ({"dataloader_num_workers": 2}, "--dataloader_num_workers is 2; allowed here: its default; token ids lie in"),
        ({"dataloader_in_order": False}, "--dataloader_in_order is False"),
        ({"label_names": ["targets"]}, r"--label_names is \['targets'\]; .* the column that --label_column names"),
        ({"include_for_metrics": ["loss"]}, r"--include_for_metrics is \['loss'\]; .* scored by the task's own score"),
        ({"prediction_loss_only": True}, "--prediction_loss_only is True"),
        ({"average_tokens_across_devices": False}, "--average_tokens_across_devices is False"),
        ({"accelerator_config": {"even_batches": False}}, "--accelerator_config is {'even_batches': False}"),
        ({"torch_empty_cache_steps": 5}, "--torch_empty_cache_steps is 5; .*--max_launch_tokens"),
        ({"debug": "underflow_overflow"}, "--debug is 'underflow_overflow'"),
        ({"use_liger_kernel": True}, "--use_liger_kernel is True"),
        ({"optim": "galore_adamw_layerwise"}, "--optim is galore_adamw_layerwise; allowed: one that steps once"),
        ({"train_sampling_strategy": "sequential"}, "--train_sampling_strategy is"),
        ({"dataloader_drop_last": True}, "--dataloader_drop_last is True"),
        ({"resume_from_checkpoint": "here"}, "a run goes on by itself"),
        ({"per_device_train_batch_size": 0}, "--per_device_train_batch_size is 0; allowed: 1 or more"),
        ({"gradient_accumulation_steps": 0}, "--gradient_accumulation_steps is 0; allowed: 1 or more"),
        ({"seed": -1}, "--seed is -1; allowed: 0 to 4294967295"),
        ({"metric_for_best_model": "accuracy"}, r"allowed: score .*, or one of them: w1-d1, w0.75-d1"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path: Path, option: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        arguments(tmp_path, **option)


def test_a_float64_network_stays_one(tmp_path: Path) -> None:
    """Stages open what the one before wrote; they must not go on in float32 in silence."""
    model = elastic(plain_model("bert"), tmp_path / "start", torch.float64)
    options: dict[str, Any] = SMALL | {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    found = train_elastic(model, arguments(tmp_path / "run", **options), texts(8), texts(4), say=lambda _: None)
    for part in found:
        assert ElasticBertForSequenceClassification.from_pretrained(part.folder, dtype="auto").dtype == torch.float64


def test_an_option_that_says_what_is_done_anyway_is_taken(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "label_names": ["labels"],
        "accelerator_config": {"split_batches": False},
        "ddp_find_unused_parameters": False,
        "dataloader_num_workers": 0,
        "include_for_metrics": [],
    }
    args = arguments(tmp_path, **given)
    assert replace(replace(args)).label_names == ["labels"]  # a copy goes through the same checks


def test_the_higher_score_is_the_better_one_whatever_was_left_out(tmp_path: Path) -> None:
    assert arguments(tmp_path, metric_for_best_model=None).greater_is_better
    assert arguments(tmp_path).greater_is_better


def test_the_best_of_one_subnetwork(tmp_path: Path) -> None:
    """The teacher's and the width stage have no such sub-network: there the mean decides."""
    args = arguments(tmp_path / "run", **SMALL | {"metric_for_best_model": "w0.5-d0.5", "save_strategy": "epoch"})
    train_elastic(network(tmp_path), args, texts(16), texts(8, seed=5), say=lambda _: None)
    assert (tmp_path / "run" / "results.json").is_file()


def test_scores_are_taken_where_a_checkpoint_is_written(tmp_path: Path) -> None:
    options = SMALL | {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 4}
    train_elastic(
        network(tmp_path), arguments(tmp_path / "run", **options), texts(16), texts(8, seed=5), say=lambda _: None
    )
    log = json.loads((tmp_path / "run" / "depth" / "complete.json").read_text())["history"]
    assert [entry["step"] for entry in log if "eval_score" in entry] == [3, 6, 8]


def test_a_damaged_file_of_a_run_is_named(tmp_path: Path) -> None:
    args = arguments(tmp_path / "run", **SMALL)
    train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)
    path = tmp_path / "run" / "depth" / "complete.json"
    path.write_text('{"rows": [')
    with pytest.raises(ValueError, match=r"complete\.json is damaged .*delete it: the part goes on"):
        train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)


def test_fp16_without_loss_scaling_is_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path / "run", **SMALL | {"fp16": True})
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)


def test_one_class_is_not_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.tsv").write_text("text\tlabel\ngood film\tyes\nbad film\tyes\n")
    assert main(options_of(tmp_path, train_file=str(tmp_path / "one.tsv"))) == 1
    assert "one.tsv has one class, 'yes'; at least two are needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.yaml", "- a\n", "holds list; allowed: one table"),
        ("a.yaml", "final_stage: 'False'\n", "final_stage is 'False'; allowed: true or false"),
        ("a.yaml", "widths: 0.5\n", "widths is 0.5; allowed: a list"),
        ("a.yaml", "parts_of: elastic\n", "parts_of is 'elastic'; allowed: a list"),
        ("a.yaml", "learning_rate: fast\n", "learning_rate is 'fast'; allowed: a number"),
        ("a.yaml", "max_train_samples: 1.5\n", "max_train_samples is 1.5; allowed: a whole number"),
        ("a.yaml", "learning_rat: 1\n", "has unknown options: learning_rat"),
        ("a.yaml", "a: [\n", "cannot be read"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "{}", "lacks model_name_or_path"),
    ],
)
def test_a_file_of_options_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, told: str
) -> None:
    file = tmp_path / name
    start = "" if told.startswith(("holds", "cannot", "lacks")) else f"model_name_or_path: {tmp_path}\n"
    file.write_text(start + content)
    assert main(["train", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"dynabert train: {file}" in error
    assert told in error
    assert main(["train", str(file), "--seed", "3"]) == 2
    assert "a file of options stands alone" in capsys.readouterr().err


def test_numbers_of_a_yaml_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model_name_or_path: m\nlearning_rate: 1e-3\nwidths: [1, 5e-1]\nmax_train_samples: '16'\n")
    inputs, args = parse([str(file)])
    assert (args.learning_rate, args.widths, inputs.max_train_samples) == (1e-3, [1.0, 0.5], 16)


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # such as Apple's, which joins no processes
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2 and this process trains as one of 1 on cpu; allowed"):
        arguments(tmp_path)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="where there is no accelerator")
def test_without_an_accelerator_the_cpu_is_taken_as_if_it_were_named(tmp_path: Path) -> None:
    args = arguments(tmp_path / "run", **SMALL)
    assert (args.use_cpu, args.n_gpu, args.dataloader_pin_memory) == (True, 0, False)
    train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)
    # A run that was begun before it was set goes on.
    path = tmp_path / "run" / "settings.json"
    begun = json.loads(path.read_text())
    begun["arguments"] |= {"use_cpu": False, "dataloader_pin_memory": True}
    path.write_text(json.dumps(begun))
    train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)
