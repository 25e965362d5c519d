"""Tiny networks, texts and arguments for training in float64 on the CPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from dynabert import DistillationArguments, ElasticBertForSequenceClassification
from dynabert.data import Encoded
from dynabert.distill import DistillationTrainer
from dynabert.distill.stages import Stage
from tests.dynabert.tiny_networks import VOCABULARY, plain_model


def elastic(plain: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    """The elastic network of a plain one."""
    plain.save_pretrained(folder)
    return ElasticBertForSequenceClassification.from_pretrained(folder, dtype=dtype)


def pair(folder: Path, dtype: torch.dtype = torch.float64, **changes: Any) -> tuple[Any, Any]:
    """Student and teacher."""
    student, teacher = (
        elastic(plain_model("bert", seed, **changes), folder / f"network{seed}", dtype) for seed in (0, 7)
    )
    return student, teacher


def texts(count: int, seed: int = 3) -> Encoded:
    """Random labelled texts of 1 to 9 tokens."""
    rng = random.Random(seed)
    ids = tuple([rng.randrange(5, VOCABULARY) for _ in range(rng.randrange(1, 10))] for _ in range(count))
    return Encoded(ids, None, tuple(rng.randrange(3) for _ in ids), ("LABEL_0", "LABEL_1", "LABEL_2"))


def arguments(folder: Path, **changes: Any) -> DistillationArguments:
    """Arguments of a quiet run, on the CPU where there is nothing else: `use_cpu` is not given, as in the README."""
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "recipe": "paper",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return DistillationArguments(**(values | changes))


def weights(model: ElasticBertForSequenceClassification) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def check_descent(
    student: Any, teacher: Any, stage: Stage, data: Encoded, wanted: dict[str, torch.Tensor], folder: Path, step: str
) -> None:
    """One step of plain gradient descent, with a batch in several launches, goes down the gradient ``wanted`` (by name;
    zero where a weight is not named)."""
    rate = 1e-3
    before = weights(student)
    args = arguments(
        folder,
        optim="sgd",
        learning_rate=rate,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_launch_tokens=20,
        step=step,
    )
    trainer = DistillationTrainer(student, args, stage, data, teacher=teacher)
    trainer.train()
    assert trainer.state.global_step == 1
    assert len(wanted) > 20
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, parameter in student.named_parameters():
        gone = (before[name] - parameter.detach()) / rate
        assert (gone - wanted.get(name, torch.zeros_like(gone))).abs().max() <= 1e-8 * largest, name
