"""The losses of distillation: an independent float64 computation of the method says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dynabert import ElasticBertForSequenceClassification, SubnetConfig, distillation_losses
from dynabert.modeling.names import to_plain
from dynabert.modeling.stacking import stack
from dynabert_kernels import PackedBatch
from tests.dynabert.slow_distillation import slow_gradients, slow_loss
from tests.dynabert.tiny_networks import close, padded_batch, plain_model, slow_model, text_of

ARCHITECTURES = ("bert", "roberta", "mpnet")
GRID = [SubnetConfig(width, depth) for depth in (1.0, 0.75, 0.5) for width in (1.0, 0.75, 0.5, 0.25)]
LENGTHS = [5, 2, 9]


def elastic(plain: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    plain.save_pretrained(folder)
    return ElasticBertForSequenceClassification.from_pretrained(folder, dtype=dtype)


def pair(architecture: str, folder: Path, **changes: Any) -> tuple[Any, ...]:
    """Student and teacher: elastic and slow."""
    plains = [plain_model(architecture, seed, **changes) for seed in (0, 7)]
    models = [elastic(plain, folder / str(index)) for index, plain in enumerate(plains)]
    slows = [slow_model(plain) for plain in plains]
    for weight in slows[0].weights.values():
        weight.requires_grad_()
    return *models, *slows, plains[0]


def plain_gradients(model: ElasticBertForSequenceClassification) -> dict[str, Tensor]:
    """The elastic model's gradients under plain names."""
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()} | dict(
        model.named_buffers()
    )
    return to_plain(grads, model.config, model.parts)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("logit_weight", "hidden_weight", "teacher_width"), [(1.0, 0.1, "full"), (1.0, 1.0, "same"), (0.0, 2.0, "full")]
)
def test_losses_and_summed_gradients_are_the_methods(
    tmp_path: Path, architecture: str, logit_weight: float, hidden_weight: float, teacher_width: str
) -> None:
    student, teacher, slow, slow_teacher, plain = pair(architecture, tmp_path)
    batch = padded_batch(plain, LENGTHS)
    texts = [text_of(plain, batch, row) for row in range(len(LENGTHS))]
    found = distillation_losses(student, teacher, batch, GRID, logit_weight, hidden_weight, teacher_width)
    wanted = torch.stack(
        [
            slow_loss(
                slow,
                slow_teacher,
                texts,
                width=subnet.width_mult,
                depth=subnet.depth_mult,
                logit_weight=logit_weight,
                hidden_weight=hidden_weight,
                teacher_width=teacher_width,
            )
            for subnet in GRID
        ]
    )
    assert found.dtype == torch.float64
    close(found.detach(), wanted.detach(), 1e-12)
    found.sum().backward()
    gradients = slow_gradients(slow, wanted.sum())
    mine = plain_gradients(student)
    checked = 0
    for name, gradient in gradients.items():
        if gradient.abs().max() > 1e-12:
            close(mine[name], gradient, 1e-10)
            checked += 1
        else:
            assert mine[name].abs().max() < 1e-10, name
    assert checked > 40
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("regression_logits", [True, False])
def test_a_regression_is_told_its_numbers(tmp_path: Path, regression_logits: bool) -> None:
    student, teacher, slow, slow_teacher, plain = pair("bert", tmp_path, num_labels=1)
    batch = padded_batch(plain, LENGTHS)
    texts = [text_of(plain, batch, row) for row in range(len(LENGTHS))]
    found = distillation_losses(student, teacher, batch, ["w0.5-d0.75"], regression_logits=regression_logits)
    wanted = slow_loss(
        slow,
        slow_teacher,
        texts,
        width=0.5,
        depth=0.75,
        logit_weight=1.0,
        hidden_weight=0.1,
        regression=True,
        regression_logits=regression_logits,
    )
    close(found.detach(), wanted.detach().view(1), 1e-12)


def test_multi_label_outputs_are_told_label_by_label(tmp_path: Path) -> None:
    student, teacher, *_, plain = pair("bert", tmp_path, problem_type="multi_label_classification")
    batch = padded_batch(plain, LENGTHS)
    found = distillation_losses(student, teacher, batch, ["w1"], 1.0, 0.0)
    mine, told = student(**batch).logits, teacher(**batch).logits.detach()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(mine, torch.sigmoid(told), reduction="sum")
    close(found.detach(), (wanted / len(LENGTHS)).detach().view(1), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("teacher_width", ["full", "same"])
def test_stacked_is_loop(tmp_path: Path, dtype: torch.dtype, teacher_width: str) -> None:
    # With dropout: each sub-network draws the same masks in one launch and alone, the head's too.
    changes = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    student, teacher, *_, plain = pair("roberta", tmp_path, **changes)
    student, teacher = student.to(dtype).train(), teacher.to(dtype).train()
    batch, state = padded_batch(plain, LENGTHS), torch.tensor([11, 5])
    found: dict[str, Any] = {}
    for step in ("stacked", "loop"):
        student.zero_grad()
        losses = distillation_losses(
            student, teacher, batch, GRID, teacher_width=teacher_width, step=step, dropout_state=state
        )
        losses.sum().backward()
        grads = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
        found[step] = (losses.detach(), grads)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    close(found["stacked"][0], found["loop"][0], tolerance)
    assert found["stacked"][1].keys() == found["loop"][1].keys()
    largest = max(float(g.abs().max()) for g in found["loop"][1].values())
    for name, gradient in found["loop"][1].items():
        difference = (found["stacked"][1][name] - gradient).abs().max().item()
        assert difference <= tolerance * max(float(gradient.abs().max()), 1e-3 * largest), name
    other = distillation_losses(student, teacher, batch, GRID, dropout_state=torch.tensor([12, 5]))
    assert not torch.equal(other, found["stacked"][0])


def test_padding_and_packing_do_not_matter(tmp_path: Path) -> None:
    student, teacher, *_, plain = pair("bert", tmp_path)
    right = padded_batch(plain, LENGTHS)
    ids = [row[mask.bool()].tolist() for row, mask in zip(right["input_ids"], right["attention_mask"], strict=True)]
    types = [
        row[mask.bool()].tolist() for row, mask in zip(right["token_type_ids"], right["attention_mask"], strict=True)
    ]
    packed = {"batch": PackedBatch.from_lists(ids, token_type_ids=types)}
    close(
        distillation_losses(student, teacher, packed, GRID).detach(),
        distillation_losses(student, teacher, right, GRID).detach(),
        1e-12,
    )


def test_named_layers_and_layer_by_layer_sub_networks(tmp_path: Path) -> None:
    student, teacher, *_, plain = pair("bert", tmp_path)
    batch = padded_batch(plain, LENGTHS)
    found = distillation_losses(student, teacher, batch, ["w0.5-l0,2", "h4,1,0,2-n40,7,0,13"])
    assert found.shape == (2,)
    with pytest.raises(ValueError, match="says no width for the skipped ones"):
        distillation_losses(student, teacher, batch, ["h4,1,0,2-n40,7,0,13"], teacher_width="same")


def test_refusals(tmp_path: Path) -> None:
    student, teacher, *_, plain = pair("bert", tmp_path)
    batch = padded_batch(plain, LENGTHS)
    with pytest.raises(ValueError, match="no sub-network given"):
        distillation_losses(student, teacher, batch, [])
    with pytest.raises(ValueError, match="w1-d1 is the same sub-network as w1"):
        distillation_losses(student, teacher, batch, ["w1", "w1-d1"])
    with pytest.raises(TypeError, match="give a list of them"):
        distillation_losses(student, teacher, batch, "w1")
    with pytest.raises(ValueError, match="teacher_width is 'wide'; allowed: 'full', 'same'"):
        distillation_losses(student, teacher, batch, ["w1"], teacher_width="wide")
    with pytest.raises(ValueError, match="step is 'all'; allowed: 'stacked', 'loop'"):
        distillation_losses(student, teacher, batch, ["w1"], step="all")
    with pytest.raises(ValueError, match=r"the batch says subnet 'w0\.5'; allowed: tokens alone; name the sub-net"):
        distillation_losses(student, teacher, batch | {"subnet": "w0.5"}, ["w1"])
    with pytest.raises(ValueError, match="leave no loss"):
        distillation_losses(student, teacher, batch, ["w1"], 0.0, 0.0)
    with pytest.raises(ValueError, match="put both in one dtype"):
        distillation_losses(student, teacher.float(), batch, ["w1"])
    other = elastic(plain_model("bert", num_hidden_layers=3), tmp_path / "other")
    with pytest.raises(ValueError, match="num_hidden_layers is 4 in the student and 3 in the teacher"):
        distillation_losses(student, other, batch, ["w1"])
    ids = PackedBatch.from_lists([[1, 2, 3]], row_bucket=8)
    with pytest.raises(ValueError, match="without row padding"):
        stack(ids, [3], [student.shape(None)])
