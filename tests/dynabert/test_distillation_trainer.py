"""The trainer: an independent computation says where three steps lead; cuts, processes and resuming change nothing."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from dynabert import DistillationTrainer, SubnetConfig
from dynabert.distill import Stage
from dynabert.distill.pipeline import train_elastic
from dynabert.distill.progress import StageProgress, told
from dynabert.distill.stages import grid
from dynabert.distill.trainer import NotFiniteError
from dynabert.modeling.files import ELASTIC_FILE
from dynabert.modeling.names import to_plain
from dynabert_kernels.testing.frozen_replay import NoHostReads
from tests.dynabert.slow_distillation import slow_gradients, slow_loss
from tests.dynabert.tiny_networks import close, plain_model, slow_model
from tests.dynabert.tiny_training import arguments, elastic, pair, texts, weights

ROOT = Path(__file__).parents[2]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FOUR = grid((1.0, 0.5), (1.0, 0.5))
WIDTH = Stage("width", grid((1.0, 0.5), (1.0,)), 1.0, 0.1)
DEPTH = Stage("depth", FOUR, 1.0, 1.0, teacher_width="same")
SANDWICH = Stage("depth", grid((1.0, 0.75, 0.5), (1.0, 0.5)), 1.0, 1.0, sampling="sandwich")


def trained(
    folder: Path, stage: Stage = DEPTH, count: int = 12, dtype: torch.dtype = torch.float64, **changes: Any
) -> Any:
    """Weights after an epoch, and the trainer."""
    network = changes.pop("network", NO_DROPOUT)
    student, teacher = pair(folder, dtype, **network)
    trainer = DistillationTrainer(
        student, arguments(folder / "run", **changes), stage, texts(count), None, None if stage.labels else teacher
    )
    trainer.train()
    return weights(student), trainer


@pytest.mark.parametrize(
    ("stage", "warmup"),
    [(WIDTH, 0), (DEPTH, 0), (DEPTH, 1), (SANDWICH, 0)],
    ids=["width", "depth", "warm-up", "sandwich"],
)
def test_three_steps_lead_where_the_method_says(tmp_path: Path, stage: Stage, warmup: int) -> None:
    plains = [plain_model("bert", seed, **NO_DROPOUT) for seed in (0, 7)]
    student, teacher = (elastic(plain, tmp_path / str(i)) for i, plain in enumerate(plains))
    data = texts(12)
    args = arguments(tmp_path / "run", weight_decay=0.0, max_launch_tokens=60, warmup_steps=warmup)
    DistillationTrainer(student, args, stage, data, None, teacher).train()

    slow, slow_teacher = map(slow_model, plains)
    for weight in slow.weights.values():
        weight.requires_grad_()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(args.seed * 1_000_003)).tolist()
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in slow.weights.items()}
    for step in range(3):
        rows = order[4 * step : 4 * step + 4]
        batch = [(data.input_ids[i], list(range(len(data.input_ids[i]))), None) for i in rows]
        losses = [
            slow_loss(
                slow,
                slow_teacher,
                batch,
                width=subnet.width_mult,
                depth=subnet.depth_mult,
                logit_weight=stage.logit_weight,
                hidden_weight=stage.hidden_weight,
                teacher_width=stage.teacher_width,
            )
            for subnet in stage.chosen(step, args.seed)
        ]
        gradients = slow_gradients(slow, torch.stack(losses).sum())
        norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
        factor = min(1.0, 1.0 / (float(norm) + 1e-6))
        assert factor < 1.0  # clipping is at work
        rate = args.learning_rate * (step / warmup if step < warmup else (3 - step) / (3 - warmup))
        with torch.no_grad():
            for name, weight in slow.weights.items():
                first, second = moments[name]
                gradient = gradients[name] * factor
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                corrected = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
                weight -= rate * corrected[0] / (torch.sqrt(corrected[1]) + 1e-8)
    mine = to_plain(student.state_dict(), student.config, student.parts)
    checked = 0
    for name, weight in slow.weights.items():
        if name.endswith("key.bias"):
            continue  # its true gradient is zero: AdamW divides rounding by rounding
        close(mine[name], weight.detach(), 1e-7)
        checked += 1
    assert checked > 50


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "loop"},
        {"max_launch_tokens": 1},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ],
    ids=["loop", "a launch for each text", "accumulated"],
)
def test_the_cut_of_a_step_does_not_matter(tmp_path: Path, changes: dict[str, Any]) -> None:
    # Plain gradient descent: AdamW would divide rounding by rounding where a gradient is zero (the key's bias).
    wanted, whole = trained(tmp_path / "a", optim="sgd")
    found, cut = trained(tmp_path / "b", optim="sgd", **changes)
    for name, weight in wanted.items():
        close(found[name], weight, 1e-12)
    # What is told of a step is the step's: its losses, and the tokens it has seen.
    assert cut.state.num_input_tokens_seen == whole.state.num_input_tokens_seen == sum(texts(12).lengths)
    for ours, theirs in zip(cut.state.log_history[:3], whole.state.log_history[:3], strict=True):
        names = [name for name in theirs if name.startswith("loss")]
        assert len(names) == 5
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name


def test_a_stage_on_labels(tmp_path: Path) -> None:
    stage = Stage("final", FOUR, 0.0, 0.0, labels=True)
    found, trainer = trained(tmp_path / "a", stage, optim="sgd")
    looped, _ = trained(tmp_path / "b", stage, optim="sgd", step="loop")
    for name, weight in found.items():
        close(looped[name], weight, 1e-12)
    losses = [row["loss_w1-d1"] for row in trainer.state.log_history if "loss_w1-d1" in row]
    assert len(losses) == 3


class _Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    network = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    stage = Stage("depth", grid((1.0, 0.75, 0.5), (1.0, 0.5)), 1.0, 1.0, sampling="sandwich")
    whole, _ = trained(tmp_path / "whole", stage, dtype=torch.float32, network=network, **options)

    student, teacher = pair(tmp_path / "cut", torch.float32, **network)
    args = arguments(tmp_path / "cut" / "run", **options)
    cut = DistillationTrainer(student, args, stage, texts(12), None, teacher, callbacks=[_Kill(5)])
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    student, teacher = pair(tmp_path / "again", torch.float32, **network)
    trainer = DistillationTrainer(student, args, stage, texts(12), None, teacher)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    resumed = weights(student)
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    student, teacher = pair(tmp_path, **NO_DROPOUT)
    with torch.no_grad():
        student.encoder.layers[0].ffn_out_bias.fill_(float("nan"))
    stage = Stage("width", grid((1.0, 0.5), (1.0,)))
    trainer = DistillationTrainer(student, arguments(tmp_path / "run"), stage, texts(4), None, teacher)
    with pytest.raises(NotFiniteError, match=r"stage width: the loss of w1-d1 is nan at step 0; lower learning_rate"):
        trainer.train()


def test_no_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DistillationTrainer, "_launch", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"4 sub-networks; give a smaller --max_launch_tokens \(now 16384"):
        trained(tmp_path)


def test_every_sub_network_is_scored_and_the_best_mean_is_kept(tmp_path: Path) -> None:
    student, teacher = pair(tmp_path, **NO_DROPOUT)
    args = arguments(tmp_path / "run", eval_strategy="epoch", save_strategy="epoch", num_train_epochs=2)
    trainer = DistillationTrainer(student, args, DEPTH, texts(8), texts(6, seed=4), teacher)
    trainer.train()
    scored = [row for row in trainer.state.log_history if "eval_score" in row]
    assert len(scored) == 2
    for row in scored:
        values = [row[f"eval_{subnet}"] for subnet in map(str, FOUR)]
        assert row["eval_score"] == pytest.approx(sum(values) / 4)


def test_uploads_of_checkpoints_hold_the_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies the files that it knows into the folder that it uploads."""
    student, teacher = pair(tmp_path, **NO_DROPOUT)
    trainer = DistillationTrainer(student, arguments(tmp_path / "run"), DEPTH, texts(4), None, teacher)
    uploaded: list[bytes] = []
    kept = tmp_path / "run" / ELASTIC_FILE
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda *_: uploaded.append(kept.read_bytes()))
    checkpoint = tmp_path / "run" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / ELASTIC_FILE).write_bytes(b"orders")
    trainer._push_from_checkpoint(str(checkpoint))
    assert uploaded == [b"orders"]


def test_no_two_launches_draw_the_same_dropout(tmp_path: Path) -> None:
    student, teacher = pair(tmp_path)
    trainer = DistillationTrainer(student, arguments(tmp_path / "run"), DEPTH, texts(4), None, teacher)
    seen = set()
    for step in (0, 1, 32_768, 65_536, 2**31):
        for batch in (0, 1, 255):
            for launch in (0, 1, 255, 256, 65_535):
                trainer.state.global_step, trainer._batch_of_step = step, batch
                key, offset = trainer._dropout_state(student, launch).tolist()
                # Each of up to 256 sub-networks adds its number to the offset, which is a word of 32 bits.
                assert offset % 256 == 0 <= offset < 2**32
                seen.add((key, offset))
    assert len(seen) == 5 * 3 * 5


@pytest.mark.parametrize("bf16", [False, True])
def test_a_stacked_step_reads_nothing_back_from_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    """On a GPU a read in the middle of a step empties the queue of kernels. Losses are read where they are logged."""
    own, seen = DistillationTrainer.training_step, []

    def watched(self: DistillationTrainer, *given: Any) -> torch.Tensor:
        with NoHostReads():
            seen.append(own(self, *given))
        return seen[-1]

    monkeypatch.setattr(DistillationTrainer, "training_step", watched)
    monkeypatch.setattr(DistillationTrainer, "_record", lambda *_: None)
    network = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    trained(tmp_path, dtype=torch.float32, network=network, step="stacked", bf16=bf16)
    assert len(seen) == 3


def test_half_precision_keeps_float32_weights(tmp_path: Path) -> None:
    full, _ = trained(tmp_path / "a", dtype=torch.float32)
    half, trainer = trained(tmp_path / "b", dtype=torch.float32, bf16=True)
    start, _ = pair(tmp_path / "c", torch.float32, **NO_DROPOUT)
    assert all(weight.dtype == torch.float32 for weight in half.values())
    moved = {name: (full[name] - w).abs().mean() for name, w in weights(start).items() if not name.endswith("bias")}
    apart = {name: (full[name] - half[name]).abs().mean() for name in moved}
    assert sum(apart.values()) < 0.3 * sum(moved.values())
    assert trainer.teacher.dtype == torch.bfloat16


def test_refusals(tmp_path: Path) -> None:
    student, teacher = pair(tmp_path, **NO_DROPOUT)
    args = arguments(tmp_path / "run")
    with pytest.raises(ValueError, match="stage width distils and has no teacher"):
        DistillationTrainer(student, args, WIDTH, texts(4))
    with pytest.raises(TypeError, match=r"train_dataset must be Encoded .* got list"):
        DistillationTrainer(student, args, WIDTH, [1], None, teacher)  # type: ignore[arg-type]
    unlabelled = texts(4)
    unlabelled = type(unlabelled)(unlabelled.input_ids)
    with pytest.raises(ValueError, match="stage final learns from labels and examples has none"):
        DistillationTrainer(student, args, Stage("final", FOUR, 0.0, 0.0, labels=True), unlabelled)
    nothing = Stage("width", WIDTH.subnets, 1.0, 0.0, regression_logits=False)
    one, other = pair(tmp_path / "regression", num_labels=1)
    with pytest.raises(ValueError, match="so there is nothing to learn"):
        DistillationTrainer(one, args, nothing, texts(4), None, other)
    with pytest.raises(ValueError, match=r"is 1\.2 of 4 heads"):
        DistillationTrainer(student, args, Stage("width", (SubnetConfig(0.3),)), texts(4), None, teacher)
    with pytest.raises(ValueError, match=r"the student is in torch\.bfloat16"):
        DistillationTrainer(student.to(torch.bfloat16), args, WIDTH, texts(4), None, teacher)


def test_labels_that_are_not_the_networks_are_refused(tmp_path: Path) -> None:
    """A float that is taken for a class, and a class beyond the outputs, before anything is trained."""
    student, teacher = pair(tmp_path, **NO_DROPOUT)
    args, labels, data = arguments(tmp_path / "run"), Stage("final", FOUR, 0.0, 0.0, labels=True), texts(4)
    numbers = replace(data, labels=(0.5, 1.5, 2.5, 0.5), label_names=())
    beyond = replace(data, labels=(0, 1, 2, 3), label_names=("a", "b", "c", "d"))
    for wrong, why in (
        (numbers, "examples has numbers of a regression as labels, the model is for single_label_classification"),
        (beyond, "examples has label 3, the model has 3 outputs"),
    ):
        with pytest.raises(ValueError, match=f"DistillationTrainer: {why}"):
            DistillationTrainer(student, args, labels, wrong)
        with pytest.raises(ValueError, match=f"DistillationTrainer: {why}"):
            DistillationTrainer(student, args, WIDTH, data, wrong, teacher)
        with pytest.raises(ValueError, match=f"train_elastic: {why}"):
            train_elastic(student, args, wrong)
    assert not (tmp_path / "run").exists()
    DistillationTrainer(student, args, WIDTH, beyond, data, teacher)  # its labels are not read
    with pytest.raises(ValueError, match="DistillationTrainer: examples has no examples; at least one"):
        DistillationTrainer(student, args, WIDTH, texts(0), None, teacher)


def test_a_network_may_learn_from_what_it_was(tmp_path: Path) -> None:
    """A student that is given as its own teacher too learns from a copy: the teacher does not move with it."""
    moved = []
    for same in (True, False):
        student, _ = pair(tmp_path / str(same), **NO_DROPOUT)
        teacher = student if same else copy.deepcopy(student)
        args = arguments(tmp_path / "run", num_train_epochs=3)
        DistillationTrainer(student, args, WIDTH, texts(8), None, teacher).train()
        moved.append(weights(student))
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in moved[0])


def test_predict_says_where_to_go(tmp_path: Path) -> None:
    student, teacher = pair(tmp_path, **NO_DROPOUT)
    trainer = DistillationTrainer(student, arguments(tmp_path / "run"), WIDTH, texts(4), None, teacher)
    with pytest.raises(NotImplementedError, match=r"use dynabert\.evaluation\.compute_logits"):
        trainer.predict(texts(4))


# Several processes.

SCRIPT = """
import copy
import os
import sys
from dataclasses import replace
from pathlib import Path
import torch
import torch.distributed
from tests.dynabert.test_distillation_trainer import DEPTH, NO_DROPOUT
from tests.dynabert.tiny_training import arguments, pair, texts, weights
from dynabert import DistillationTrainer
folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
student, teacher = pair(folder / f"rank{os.environ['RANK']}", dtype, **NO_DROPOUT)
args = arguments(folder / "run", ddp_backend="gloo", per_device_train_batch_size=2, step=sys.argv[3], optim="sgd")
DistillationTrainer(student, args, DEPTH, texts(11), None, teacher).train()
if args.process_index == 0:
    torch.save(weights(student), folder / "weights.pt")
torch.distributed.destroy_process_group()  # its threads, left running, may abort a process at its end
"""


@pytest.mark.parametrize(("dtype", "step"), [("float64", "loop"), ("float32", "stacked")])
def test_two_processes_are_one(tmp_path: Path, dtype: str, step: str) -> None:
    # 11 texts: the last step has 3, so that the processes have 2 and 1 of them.
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    script = [str(tmp_path / "train.py"), str(tmp_path), dtype, step]
    done = subprocess.run([*command, *script], env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "weights.pt")
    wanted, _ = trained(tmp_path / "one", count=11, dtype=getattr(torch, dtype), step=step, optim="sgd")
    start = weights(pair(tmp_path / "start", getattr(torch, dtype), **NO_DROPOUT)[0])
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    for name, weight in wanted.items():
        # Plain gradient descent: the way gone is the sum of the gradients.
        gone, distance = (weight - start[name]).norm().item(), (found[name] - weight).norm().item()
        assert distance <= tolerance * max(gone, weight.norm().item() if dtype == "float32" else 0.0), name


@pytest.mark.parametrize(("quiet", "seconds", "wanted"), [(False, 0.0, 3), (False, 1e9, 1), (True, 0.0, 0)])
def test_a_log_file_shows_where_a_stage_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: bool, seconds: float, wanted: int
) -> None:
    monkeypatch.setattr("dynabert.distill.progress.SECONDS_BETWEEN_LINES", seconds)
    student, teacher = pair(tmp_path, **NO_DROPOUT)
    lines: list[str] = []
    progress = StageProgress("depth", lines.append)
    args = arguments(tmp_path / "run", disable_tqdm=quiet)
    DistillationTrainer(student, args, DEPTH, texts(12), None, teacher, callbacks=[progress]).train()
    assert len(lines) == wanted
    last = r"depth: step 3 of 3, \d+\.\d examples/s, 0\.0 min left, w1-d1 \d+\.\d{3}, w0\.5-d0\.5 \d+\.\d{3}, tokens/s"
    assert not lines or re.match(last, lines[-1]), lines


def test_a_log_file_shows_where_importance_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynabert.distill.progress.SECONDS_BETWEEN_LINES", 0.0)
    lines: list[str] = []
    assert list(told(iter("abc"), 3, "importance", lines.append)) == ["a", "b", "c"]
    assert [line.split(",")[0] for line in lines] == ["importance: batch 1 of 3", "importance: batch 2 of 3"]
    assert list(told("abc", 3, "importance", lines.append, quiet=True)) == ["a", "b", "c"]
    assert len(lines) == 2
