"""A student of some of its teacher's layers: what it is compared with, and a run that starts from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dynabert import DistillationTrainer, ElasticBertForSequenceClassification, SubnetConfig, distillation_losses
from dynabert.cli import main
from dynabert.distill import Recipe, Stage, pipeline
from dynabert.distill.losses import teacher_layers
from dynabert.distill.pipeline import check_recipe, stage_costs, train_elastic
from tests.dynabert.slow_distillation import slow_loss
from tests.dynabert.test_distillation_losses import LENGTHS, pair
from tests.dynabert.test_distillation_pipeline import SMALL, network, options_of
from tests.dynabert.tiny_networks import close, padded_batch, text_of
from tests.dynabert.tiny_training import arguments, texts
from tests.dynabert.tiny_training import pair as small_pair

START = (0, 2, 3)  # of 4 layers
# The student's sub-network, and which layers of the deep network it has: 2 of 3 are its first and its last.
SUBNETS = {"w1": (1.0, [0, 2, 3]), "w0.5": (0.5, [0, 2, 3]), "w0.25-d0.67": (0.25, [0, 3]), "w0.5-l1": (0.5, [2])}
WEIGHTS: dict[str, Any] = {"logit_weight": 1.0, "hidden_weight": 0.5, "relation_weight": 0.7, "relation_heads": 6}


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet"])
@pytest.mark.parametrize("teacher_width", ["full", "same"])
@pytest.mark.parametrize("step", ["stacked", "loop"])
def test_each_layer_is_compared_with_the_one_that_it_was(
    tmp_path: Path, architecture: str, teacher_width: str, step: str
) -> None:
    """The deep network that skips the other layers has the same losses, and gradients of the layers that are left."""
    deep, teacher, slow, slow_teacher, plain = pair(architecture, tmp_path)
    student = deep.extract("w1-l0,2,3")
    assert student.config.layer_index == START
    batch = padded_batch(plain, LENGTHS)
    given = WEIGHTS | {"teacher_width": teacher_width}
    found = distillation_losses(student, teacher, batch, list(SUBNETS), step=step, **given)
    rows = [text_of(plain, batch, row) for row in range(len(LENGTHS))]
    wanted = [
        slow_loss(slow, slow_teacher, rows, width=width, depth=1.0, layers=layers, **given)
        for width, layers in SUBNETS.values()
    ]
    close(found.detach(), torch.stack(wanted).detach(), 1e-12)
    found.sum().backward()
    names = [f"w{width}-l{','.join(map(str, layers))}" for width, layers in SUBNETS.values()]
    distillation_losses(deep, teacher, batch, names, step=step, **given).sum().backward()
    gradients, checked = dict(deep.named_parameters()), 0
    for name, parameter in student.named_parameters():
        for place, own in reversed(list(enumerate(START))):
            name = name.replace(f"layers.{place}.", f"layers.-{own}.")
        aim = gradients[name.replace("layers.-", "layers.")].grad
        if parameter.grad is None:
            assert aim is None
            continue
        assert float((parameter.grad - aim).abs().max()) <= 1e-10 * max(float(aim.abs().max()), 1e-3), name
        checked += 1
    assert checked > 40


def test_the_deep_teacher_at_its_width_is_whole(tmp_path: Path) -> None:
    """A student that keeps all its layers says how wide a deeper teacher runs; one of several widths does not."""
    deep, teacher, *_, plain = pair("bert", tmp_path)
    batch = padded_batch(plain, LENGTHS)
    student = deep.extract("w1-l0,3")
    assert distillation_losses(student, teacher, batch, ["w0.5"], teacher_width="same").shape == (1,)
    with pytest.raises(ValueError, match="says no width for the skipped ones"):
        distillation_losses(student, teacher, batch, ["h4,1-n40,7"], teacher_width="same")


def test_which_layers_are_the_same(tmp_path: Path) -> None:
    deep, teacher, *_, plain = pair("bert", tmp_path)
    student, other = deep.extract("w1-l0,2,3"), teacher.extract("w1-l1,2,3")
    assert teacher_layers(student.config, teacher.config.layer_index) == START
    assert teacher_layers(student.extract("w1-l2").config, student.config.layer_index) == (2,)
    assert teacher_layers(student.config, other.config.layer_index) == (0, 1, 2)  # as many: each in its place
    batch = padded_batch(plain, LENGTHS)
    assert distillation_losses(student, other, batch, ["w1"]).shape == (1,)
    said = r"num_hidden_layers is 2 in the student and 3 in the teacher, whose layers are \[1, 2, 3\] .* are \[0, 3\]"
    with pytest.raises(ValueError, match=said):
        distillation_losses(student.extract("w1-l0,2"), other, batch, ["w1"])
    with pytest.raises(ValueError, match="num_hidden_layers is 4 in the student and 3 in the teacher"):
        distillation_losses(deep, student, batch, ["w1"])


def test_the_trainer_takes_a_deeper_teacher(tmp_path: Path) -> None:
    deep, teacher = small_pair(tmp_path, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    student = deep.extract("w1-l1,3")
    stage = Stage("width", (SubnetConfig(), SubnetConfig(0.5)), 0.0, 1.0)
    args = arguments(tmp_path / "run", num_train_epochs=10)
    trainer = DistillationTrainer(student, args, stage, texts(8), teacher=teacher)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]


OPTIONS = SMALL | {"starting_layers": "0,2,3", "depths": [1.0, 0.67]}


def opened(folder: Path) -> Any:
    return ElasticBertForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize(
    "more", [{}, {"distillation": False}, {"teacher_width": "full", "relation_weights": [1.0, 1.0]}]
)
def test_a_run_starts_from_them(tmp_path: Path, more: dict[str, Any]) -> None:
    args = arguments(tmp_path / "run", **OPTIONS | {"learning_rate": 1e-9} | more)
    results = train_elastic(network(tmp_path), args, texts(16), texts(8, seed=5), say=lambda _: None)
    assert [(r.name, opened(r.folder).config.layer_index) for r in results] == [
        ("teacher", (0, 1, 2, 3)),
        ("rewired", (0, 1, 2, 3)),
        ("width", START),
        ("depth", START),
    ]
    assert [len(r.rows) for r in results] == [1, 4, 2, 4]
    # Hardly trained, it is still the rewired network's layers, and scored as these were.
    rewired, width = opened(results[1].folder), opened(results[2].folder)
    for name, tensor in rewired.extract("w1-l0,2,3").state_dict().items():
        assert torch.allclose(width.state_dict()[name].float(), tensor.float(), atol=1e-6), name
    assert [row.score for row in results[1].rows[:2]] == [row.score for row in results[2].rows]
    card = (results[-1].folder / "README.md").read_text()
    assert "layers of the teacher that the student started from, the first is 0: 0, 2, 3" in card
    assert ("relations, width and depth stage" in card) == ("relation_weights" in more)
    recipe = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert recipe["starting_layers"] == [0, 2, 3]
    with pytest.raises(ValueError, match=r"recipe\.starting_layers was \[0, 2, 3\], now None"):
        train_elastic(
            network(tmp_path), arguments(tmp_path / "run", **SMALL | {"depths": [1.0, 0.75]}), texts(16), texts(8)
        )


@pytest.mark.parametrize("part", ["width", "depth"])
def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    options = OPTIONS | {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}
    whole = train_elastic(network(tmp_path), arguments(tmp_path / "whole", **options), texts(16), say=lambda _: None)

    class Killed(pipeline.StageProgress):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            super().on_step_end(args, state, control, **more)
            if self.name == part and state.global_step == 2:
                raise KeyboardInterrupt

    args = arguments(tmp_path / "cut", **options)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "StageProgress", Killed)
        with pytest.raises(KeyboardInterrupt):
            train_elastic(network(tmp_path), args, texts(16), say=lambda _: None)
    cut = train_elastic(network(tmp_path), args, texts(16), say=lambda _: None)
    wanted, found = (opened(results[-1].folder).state_dict() for results in (whole, cut))
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_a_run_without_a_width_stage(tmp_path: Path) -> None:
    """The first stage's teacher is the fine-tuned network, deeper than the student, at the student's width."""
    args = arguments(tmp_path / "run", subnets="w0.5-l0,2", starting_layers="0,2,3", per_device_train_batch_size=8)
    results = train_elastic(network(tmp_path), args, texts(8), say=lambda _: None)
    assert [r.name for r in results] == ["teacher", "rewired", "depth"]
    assert opened(results[-1].folder).config.layer_index == START


def test_what_a_step_costs(tmp_path: Path) -> None:
    """In forward passes of the deep network: the student's are three quarters of one, as is the second teacher's."""
    model = network(tmp_path)
    recipe = Recipe(widths=(1.0,), depths=(1.0,), starting_layers=START, teacher_width="full")
    width, depth = stage_costs(model, recipe)
    assert [s["subnet"] for s in width["subnets"]] == ["w1-d1"]
    assert width["forward_passes"] - depth["forward_passes"] == pytest.approx(0.25, abs=0.02)
    assert depth["forward_passes"] == pytest.approx(4 * 0.75, abs=0.05)


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in (
        (
            "",
            "--starting_layers is ''; allowed: numbers of layers, from 0, between commas, in one text such as '0,2,4'",
        ),
        ("0,two", "--starting_layers is '0,two'"),
        ("-1,2", "--starting_layers is '-1,2'"),
        ("0,2,2", r"starting_layers are \[0, 2, 2\]; allowed: at least one, from 0, each above the one before"),
        ("2,0", r"starting_layers are \[2, 0\]"),
    ):
        with pytest.raises(ValueError, match=said):
            arguments(tmp_path, starting_layers=given)
    with pytest.raises(ValueError, match="at least one"):
        Recipe(starting_layers=())
    said = r"starting_layers are \[0, 4\] and the network has 4 layers; allowed: 0 to 3"
    with pytest.raises(ValueError, match=said):
        train_elastic(network(tmp_path), arguments(tmp_path / "run", starting_layers="0,4"), texts(8))
    assert not (tmp_path / "run").exists()
    # Sub-networks are parts of the student: a layer that only the teacher has is none of them.
    with pytest.raises(ValueError, match="3"):
        check_recipe(network(tmp_path), arguments(tmp_path, subnets="w1-l0,3", starting_layers="0,2,3").make_recipe())
    assert main([*options_of(tmp_path), "--starting_layers", "0,9"]) == 1
    assert "allowed: 0 to" in capsys.readouterr().err
