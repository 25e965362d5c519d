"""The loss of query, key and value relations: held to a slow float64 computation, and what of it must not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynabert import DistillationTrainer, SubnetConfig, distillation_losses
from dynabert.distill import Stage, relations
from dynabert.distill.pipeline import train_elastic
from dynabert.distill.relations import Relations, chunks_of, relation_sum, resolved_relation_heads
from tests.dynabert.slow_distillation import slow_divergence, slow_gradients, slow_loss
from tests.dynabert.test_distillation_losses import GRID, LENGTHS, pair, plain_gradients
from tests.dynabert.tiny_networks import close, padded_batch, text_of
from tests.dynabert.tiny_training import arguments, check_descent, texts
from tests.dynabert.tiny_training import pair as small_pair

HEAD = 6  # numbers of a head of the tiny networks
SOME = [SubnetConfig(1.0, 1.0), SubnetConfig(0.25, 1.0), SubnetConfig(0.75, 0.75), SubnetConfig(0.5, 0.5)]


def losses_and_gradients(
    folder: Path, subnets: list[Any], architecture: str = "bert", **options: Any
) -> tuple[Tensor, dict[str, Tensor], Any]:
    student, teacher, *rest = pair(architecture, folder)
    batch = padded_batch(rest[-1], LENGTHS)
    losses = distillation_losses(student, teacher, batch, subnets, **options)
    losses.sum().backward()
    return losses.detach(), plain_gradients(student), (*rest, batch)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet"])
@pytest.mark.parametrize(
    ("weights", "heads", "teacher_width"),
    [((0.0, 0.0, 1.0), None, "full"), ((1.0, 0.1, 0.7), 3, "same"), ((0.0, 1.0, 2.0), 2, "full")],
)
def test_losses_and_summed_gradients_are_the_papers(
    tmp_path: Path, architecture: str, weights: tuple[float, float, float], heads: int | None, teacher_width: str
) -> None:
    logit_weight, hidden_weight, relation_weight = weights
    told: dict[str, Any] = {"logit_weight": logit_weight, "hidden_weight": hidden_weight}
    told |= {"relation_weight": relation_weight, "teacher_width": teacher_width}
    found, mine, (slow, teacher, plain, batch) = losses_and_gradients(
        tmp_path, SOME, architecture, relation_heads=heads, **told
    )
    rows = [text_of(plain, batch, row) for row in range(len(LENGTHS))]
    wanted = torch.stack(
        [
            slow_loss(slow, teacher, rows, width=s.width_mult, depth=s.depth_mult, relation_heads=heads or HEAD, **told)
            for s in SOME
        ]
    )
    close(found, wanted.detach(), 1e-12)
    assert float(found.min()) > 0.05
    checked = 0
    for name, gradient in slow_gradients(slow, wanted.sum()).items():
        if gradient.abs().max() > 1e-12:
            close(mine[name], gradient, 1e-10)
            checked += 1
        else:
            assert mine[name].abs().max() < 1e-10, name
    assert checked > 40


def test_the_last_layer_that_each_sub_network_keeps(tmp_path: Path) -> None:
    """Named layers and other heads in each layer, in one launch: each has its own last layer."""
    subnets = ["w0.5-l0,2", "h4,1,0,2-n40,7,0,13"]
    given: dict[str, Any] = {"logit_weight": 0.0, "hidden_weight": 0.0, "relation_weight": 1.0, "relation_heads": 6}
    found, _, (slow, teacher, plain, batch) = losses_and_gradients(tmp_path, subnets, **given)
    rows = [text_of(plain, batch, row) for row in range(len(LENGTHS))]
    cut = tuple([list(range(n)) for n in counts] for counts in ((4, 1, 0, 2), (40, 7, 0, 13)))
    wanted = [
        slow_loss(slow, teacher, rows, width=0.5, depth=0.5, layers=[0, 2], **given),
        slow_loss(slow, teacher, rows, width=1.0, depth=0.75, layers=[0, 1, 3], cut=cut, **given),
    ]
    close(found, torch.stack(wanted).detach(), 1e-12)


@pytest.mark.parametrize("most", [1, 700, 2**21])
def test_chunks_do_not_matter(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sequence alone, some together, all together: sums and gradients of other sizes on both sides."""
    monkeypatch.setattr(relations, "MOST_NUMBERS", most)
    seqlens = [4, 1, 7, 4, 5]
    torch.manual_seed(0)
    own = torch.randn(21, 3, 8, dtype=torch.float64, requires_grad=True)
    told = torch.randn(21, 3, 12, dtype=torch.float64)
    chunks = chunks_of(seqlens, 4, own.device)
    assert len(chunks) == {1: 5, 700: 3, 2**21: 1}[most]
    given = Relations((told,), chunks, 4)
    wanted, start = torch.zeros((), dtype=torch.float64), 0
    for length in seqlens:
        for kind in range(3):
            part = slice(start, start + length)
            wanted = wanted + slow_divergence(own[part, kind], told[part, kind], 4)
        start += length
    found = relation_sum(own, told, given)
    close(found.detach(), wanted.detach(), 1e-13)
    (gradient,) = torch.autograd.grad(wanted, own)
    (mine,) = torch.autograd.grad(2.0 * found, own)
    close(mine, 2.0 * gradient, 1e-12)
    assert torch.autograd.gradcheck(lambda x: relation_sum(x, told, given), (own,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("teacher_width", ["full", "same"])
def test_stacked_is_loop(tmp_path: Path, dtype: torch.dtype, teacher_width: str) -> None:
    changes = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    student, teacher, *_, plain = pair("roberta", tmp_path, **changes)
    student, teacher = student.to(dtype).train(), teacher.to(dtype)
    batch, state = padded_batch(plain, LENGTHS), torch.tensor([11, 5])
    found: dict[str, Any] = {}
    for step in ("stacked", "loop"):
        student.zero_grad()
        losses = distillation_losses(
            student, teacher, batch, GRID, 0.0, 0.0, teacher_width, relation_weight=1.0, step=step, dropout_state=state
        )
        losses.sum().backward()
        found[step] = losses.detach(), {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    close(found["stacked"][0], found["loop"][0], tolerance)
    assert found["stacked"][1].keys() == found["loop"][1].keys()
    largest = max(float(g.abs().max()) for g in found["loop"][1].values())
    for name, gradient in found["loop"][1].items():
        difference = (found["stacked"][1][name] - gradient).abs().max().item()
        assert difference <= tolerance * max(float(gradient.abs().max()), 1e-2 * largest), name


def test_a_weight_of_0_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, *_, plain = pair("bert", tmp_path)
    batch = padded_batch(plain, LENGTHS)
    usual = distillation_losses(student, teacher, batch, GRID)

    def never(*_: Any) -> None:
        raise AssertionError

    for name in ("project", "relation_sum", "chunks_of"):
        monkeypatch.setattr(f"dynabert.distill.losses.{name}", never)
    found = distillation_losses(student, teacher, batch, GRID, relation_weight=0.0, relation_heads=5)
    assert torch.equal(found, usual)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_network_has_its_own_relations(tmp_path: Path, dtype: torch.dtype) -> None:
    _, teacher, *_, plain = pair("bert", tmp_path)
    teacher = teacher.to(dtype)
    batch = padded_batch(plain, LENGTHS)
    for step in ("stacked", "loop"):
        losses = distillation_losses(
            teacher, teacher, batch, ["w1", "w0.5"], 0.0, 0.0, "same", relation_weight=1.0, step=step
        ).detach()
        assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # One by one the student's products have fewer rows than the teacher's: their sums may have another order.
        rounding = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
        assert float(losses.abs().max()) <= (0.0 if step == "stacked" else rounding)


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    student, teacher, *_, plain = pair("bert", tmp_path)
    batch = padded_batch(plain, LENGTHS)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        student, teacher = student.to(dtype), teacher.to(dtype)
        student.zero_grad()
        losses = distillation_losses(student, teacher, batch, GRID, 0.0, 0.0, relation_weight=1.0)
        losses.sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in student.parameters() if p.grad is not None)
        found[dtype] = losses.detach()
    close(found[torch.bfloat16], found[torch.float32], 0.1)


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    student, teacher, *_, plain = pair("bert", tmp_path)
    batch = padded_batch(plain, LENGTHS)
    said = "relation_heads is 4 and a sub-network's last layer has 1 heads of 6, 6 numbers; allowed: .*divisors of 6"
    with pytest.raises(ValueError, match=said):
        distillation_losses(student, teacher, batch, ["w1", "w0.25"], relation_weight=1.0, relation_heads=4)
    with pytest.raises(ValueError, match="relation_heads is 0; allowed: 1 or more"):
        distillation_losses(student, teacher, batch, ["w1"], relation_weight=1.0, relation_heads=0)
    with pytest.raises(ValueError, match=r"relation_weight 0\.0 leave no loss"):
        distillation_losses(student, teacher, batch, ["w1"], 0.0, 0.0)
    assert resolved_relation_heads(4, 6, [student.shape("w0.5"), student.shape("w1")]) == 4
    # Where it is one of a run's options, before anything is trained.
    args = arguments(tmp_path / "run", relation_weights=[0.0, 1.0], relation_heads=4)
    with pytest.raises(ValueError, match="relation_heads is 4 and"):
        train_elastic(student, args, texts(8))
    assert not (tmp_path / "run").exists()
    stage = Stage("width", (SubnetConfig(), SubnetConfig(0.25)), relation_weight=1.0, relation_heads=4)
    with pytest.raises(ValueError, match="relation_heads is 4 and"):
        DistillationTrainer(student, arguments(tmp_path), stage, texts(4), teacher=teacher)
    with pytest.raises(ValueError, match="relation_weight is -1; allowed: 0 or more"):
        Stage("width", (SubnetConfig(),), relation_weight=-1)
    with pytest.raises(ValueError, match="relation_heads is 0; allowed: 1 or more"):
        Stage("width", (SubnetConfig(),), relation_heads=0)


def test_the_options_reach_their_stages(tmp_path: Path) -> None:
    made = arguments(tmp_path, relation_weights=[0.5, 2.0], relation_heads=3, final_stage=True).make_recipe()
    assert [(s.relation_weight, s.relation_heads) for s in made.stages] == [(0.5, 3), (2.0, 3), (0.0, None)]
    usual = arguments(tmp_path).make_recipe()
    assert [s.relation_weight for s in usual.stages] == [0.0, 0.0]
    labels = arguments(tmp_path, relation_weights=[0.5, 2.0], distillation=False).make_recipe()
    assert [s.relation_weight for s in labels.stages] == [0.0, 0.0]
    alone = arguments(
        tmp_path, logit_weights=[0.0, 0.0], hidden_weights=[0.0, 0.0], relation_weights=[1.0, 1.0]
    ).make_recipe()
    assert len(alone.stages) == 2
    with pytest.raises(ValueError, match="--relation_weights has 1 numbers; allowed: 2"):
        arguments(tmp_path, relation_weights=[1.0])


@pytest.mark.parametrize("step", ["stacked", "loop"])
def test_bfloat16_trains(tmp_path: Path, step: str) -> None:
    student, teacher = small_pair(tmp_path, dtype=torch.float32)
    stage = Stage("depth", (SubnetConfig(), SubnetConfig(0.5, 0.5)), 0.0, 0.0, relation_weight=1.0)
    args = arguments(tmp_path / "run", bf16=True, step=step, num_train_epochs=8, learning_rate=5e-3)
    trainer = DistillationTrainer(student, args, stage, texts(8), teacher=teacher)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2])


@pytest.mark.parametrize("step", ["stacked", "loop"])
def test_a_step_of_the_trainer_goes_down_the_sum(tmp_path: Path, step: str) -> None:
    """Plain gradient descent, with a batch in several launches: the way gone is the gradient of the whole batch."""
    changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student, teacher = small_pair(tmp_path, **changes)
    data = texts(4)
    subnets = (SubnetConfig(), SubnetConfig(0.5, 0.5))
    stage = Stage("depth", subnets, 0.0, 0.0, "same", relation_weight=1.5, relation_heads=2)
    batch, _ = student.pack(data.input_ids)
    losses = distillation_losses(
        student, teacher, {"batch": batch}, subnets, 0.0, 0.0, "same", relation_weight=1.5, relation_heads=2
    )
    losses.sum().backward()
    wanted = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    check_descent(student, teacher, stage, data, wanted, tmp_path / "run", step)
