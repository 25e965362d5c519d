"""Stages that learn from a teacher and from labels at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dynabert.configuration import SubnetConfig
from dynabert.distill import DistillationTrainer, distillation_losses
from dynabert.distill.pipeline import train_elastic
from dynabert.distill.stages import Stage
from tests.dynabert.test_distillation_relations import small_pair
from tests.dynabert.tiny_training import arguments, check_descent, texts

SUBNETS = (SubnetConfig(), SubnetConfig(0.5, 0.5))


@pytest.mark.parametrize("step", ["stacked", "loop"])
@pytest.mark.parametrize("told", [(1.0, 0.5), (0.0, 0.0), (0.0, 0.5), (1.0, 0.0)])
def test_a_step_goes_down_both_losses(tmp_path: Path, step: str, told: tuple[float, float]) -> None:
    """Plain gradient descent, with a batch in several launches: the way gone is the gradient of distillation's sum and
    of each sub-network's own mean loss on labels."""
    student, teacher = small_pair(tmp_path, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    data = texts(4)
    stage = Stage("depth", SUBNETS, *told, "same", label_weight=0.75)
    batch, _ = student.pack(data.input_ids)
    if any(told):
        distillation_losses(student, teacher, {"batch": batch}, SUBNETS, *told, "same").sum().backward()
    labels = torch.tensor(data.labels)
    for subnet in SUBNETS:
        packed, plan = student.pack(data.input_ids, subnet=subnet)
        (0.75 * student(batch=packed, plan=plan, labels=labels).loss).backward()
    wanted = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    check_descent(student, teacher, stage, data, wanted, tmp_path / "run", step)


def test_the_option_reaches_its_stages(tmp_path: Path) -> None:
    made = arguments(tmp_path, label_weights=[0.0, 2.0], final_stage=True).make_recipe()
    assert [(s.label_weight, s.labels, s.reads_labels) for s in made.stages] == [
        (0.0, False, False),
        (2.0, False, True),
        (0.0, True, True),
    ]
    alone: dict[str, Any] = {name: [0.0, 0.0] for name in ("logit_weights", "hidden_weights")}
    assert len(arguments(tmp_path, label_weights=[1.0, 1.0], **alone).make_recipe().stages) == 2
    undistilled = arguments(tmp_path, label_weights=[1.0, 1.0], distillation=False).make_recipe()
    assert [s.label_weight for s in undistilled.stages] == [0.0, 0.0]
    with pytest.raises(ValueError, match="all weights are 0"):
        arguments(tmp_path, **alone)
    with pytest.raises(ValueError, match="--label_weights has 1 numbers; allowed: 2"):
        arguments(tmp_path, label_weights=[1.0])
    with pytest.raises(ValueError, match=r"label_weight is -1\.0; allowed: 0 or more"):
        arguments(tmp_path, label_weights=[0.0, -1.0])


def test_text_without_labels_is_refused(tmp_path: Path) -> None:
    student, teacher = small_pair(tmp_path)
    bare = replace(texts(8), labels=None)
    with pytest.raises(ValueError, match=r"stage depth learns from labels and .* has none"):
        DistillationTrainer(
            student, arguments(tmp_path / "a"), Stage("depth", SUBNETS, label_weight=1.0), bare, teacher=teacher
        )
    args = arguments(tmp_path / "b", label_weights=[0.0, 1.0])
    with pytest.raises(ValueError, match="which has no labels; leave one out: --label_weights, or --unlabelled_file"):
        train_elastic(student, args, texts(8), unlabelled=bare, say=lambda _: None)
    assert not (tmp_path / "b").exists() or not any((tmp_path / "b").iterdir())
