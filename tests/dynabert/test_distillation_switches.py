"""The switches of the method, each held to the independent float64 computation: losses, gradients, a step on labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynabert import DistillationTrainer, SubnetConfig, distillation_losses
from dynabert.distill import Stage
from dynabert.distill.stages import grid
from dynabert.modeling.names import to_plain
from tests.dynabert.slow_distillation import kept_reference, slow_gradients, slow_loss, slow_task_loss
from tests.dynabert.test_distillation_losses import GRID, LENGTHS, pair, plain_gradients
from tests.dynabert.tiny_networks import close, padded_batch, plain_model, slow_model, text_of
from tests.dynabert.tiny_training import arguments, elastic, texts

WEIGHTS = {"logit_weight": 1.0, "hidden_weight": 0.5}
Wanted = Callable[..., Tensor]


def check(
    folder: Path, subnets: Sequence[SubnetConfig | str], wanted_of: Wanted, *, rule: str = "keep_last", **options: Any
) -> None:
    """Losses and summed gradients of sub-networks, against ``wanted_of(student, teacher, texts)``, (S,)."""
    network = options.pop("network", {})
    student, teacher, slow, slow_teacher, plain = pair("bert", folder, **network)
    student.config.depth_rule = rule
    batch = padded_batch(plain, LENGTHS)
    found = distillation_losses(student, teacher, batch, subnets, *WEIGHTS.values(), **options)
    wanted = wanted_of(slow, slow_teacher, [text_of(plain, batch, row) for row in range(len(LENGTHS))])
    close(found.detach(), wanted.detach(), 1e-12)
    found.sum().backward()
    mine, checked = plain_gradients(student), 0
    for name, gradient in slow_gradients(slow, wanted.sum()).items():
        if gradient.abs().max() > 1e-12:
            close(mine[name], gradient, 1e-10)
            checked += 1
        else:
            assert mine[name].abs().max() < 1e-10, name
    assert checked > 30


@pytest.mark.parametrize("layers", [4, 5])
@pytest.mark.parametrize("teacher_width", ["full", "same"])
def test_the_released_codes_depth_rule(tmp_path: Path, layers: int, teacher_width: str) -> None:
    def wanted(slow: Any, teacher: Any, rows: Any) -> Tensor:
        return torch.stack(
            [
                slow_loss(
                    slow,
                    teacher,
                    rows,
                    width=subnet.width_mult,
                    depth=subnet.depth_mult,
                    layers=kept_reference(layers, subnet.depth_mult),
                    teacher_width=teacher_width,
                    **WEIGHTS,
                )
                for subnet in SOME
            ]
        )

    network = {"num_hidden_layers": layers}
    check(tmp_path, SOME, wanted, rule="reference", network=network, teacher_width=teacher_width)


SOME = [SubnetConfig(width, depth) for depth in (0.75, 0.5) for width in (1.0, 0.25)]


@pytest.mark.parametrize("teacher_width", ["full", "same"])
def test_layers_by_name(tmp_path: Path, teacher_width: str) -> None:
    def wanted(slow: Any, teacher: Any, rows: Any) -> Tensor:
        options = {"width": 0.5, "depth": 0.5, "layers": [0, 2], "teacher_width": teacher_width}
        return slow_loss(slow, teacher, rows, **options, **WEIGHTS).view(1)

    check(tmp_path, ["w0.5-l0,2"], wanted, teacher_width=teacher_width)


def test_heads_and_neurons_layer_by_layer(tmp_path: Path) -> None:
    heads, neurons = ([list(range(n)) for n in counts] for counts in ((4, 1, 0, 2), (40, 7, 0, 13)))

    def wanted(slow: Any, teacher: Any, rows: Any) -> Tensor:
        options = {"width": 1.0, "depth": 0.75, "layers": [0, 1, 3], "cut": (heads, neurons)}
        return slow_loss(slow, teacher, rows, **options, **WEIGHTS).view(1)

    check(tmp_path, ["h4,1,0,2-n40,7,0,13"], wanted)


@pytest.mark.parametrize("regression_logits", [True, False])
def test_gradients_of_a_regression(tmp_path: Path, regression_logits: bool) -> None:
    def wanted(slow: Any, teacher: Any, rows: Any) -> Tensor:
        options = {"teacher_width": "same", "regression": True, "regression_logits": regression_logits}
        return torch.stack(
            [slow_loss(slow, teacher, rows, width=s.width_mult, depth=s.depth_mult, **options, **WEIGHTS) for s in SOME]
        )

    options = {"teacher_width": "same", "regression_logits": regression_logits}
    check(tmp_path, SOME, wanted, network={"num_labels": 1}, **options)


@pytest.mark.parametrize("regression", [False, True], ids=["classes", "regression"])
def test_a_step_of_the_final_stage(tmp_path: Path, regression: bool) -> None:
    """Plain gradient descent: the way gone is the sum of the twelve gradients."""
    network = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain = plain_model("bert", 0, **network, **({"num_labels": 1} if regression else {}))
    student, slow = elastic(plain, tmp_path / "network"), slow_model(plain)
    for weight in slow.weights.values():
        weight.requires_grad_()
    data = texts(4)
    if regression:
        data = replace(data, labels=(0.5, -1.0, 2.0, 0.125), label_names=())
    rate = 1e-3
    args = arguments(tmp_path / "run", optim="sgd", learning_rate=rate, lr_scheduler_type="constant", max_grad_norm=0.0)
    assert len(GRID) == 12
    stage = Stage("final", grid((1.0, 0.75, 0.5, 0.25), (1.0, 0.75, 0.5)), 0.0, 0.0, labels=True)
    DistillationTrainer(student, args, stage, data).train()
    rows = [(ids, list(range(len(ids))), None) for ids in data.input_ids]
    losses = [
        slow_task_loss(slow, rows, data.labels or (), width=s.width_mult, depth=s.depth_mult, regression=regression)
        for s in stage.subnets
    ]
    mine = to_plain(student.state_dict(), student.config, student.parts)
    for name, gradient in slow_gradients(slow, torch.stack(losses).sum()).items():
        start = slow.weights[name].detach()
        if gradient.abs().max() > 1e-9:  # the key's bias has none
            close((start - mine[name]) / rate, gradient, 1e-7)
        else:
            close(mine[name], start, 1e-9)
