"""What the demo trains: the full network on labels, then all sub-networks by distillation, for as long as it may.

A stage's learning rate has to fall to 0 by its last step, so the clock cannot simply end it. A few probe steps on
copies say what a step takes here; that gives the stage a number of steps; the clock ends it only where the probe was
wrong.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState

from dynabert.cli.output import say
from dynabert.distill.arguments import DistillationArguments
from dynabert.distill.progress import StageProgress
from dynabert.distill.trainer import DistillationTrainer
from dynabert.finetuning import FineTuningArguments
from dynabert.finetuning import fine_tune as fine_tune_network

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from dynabert.data import Encoded
    from dynabert.distill import Stage
    from dynabert.modeling import ElasticBertForSequenceClassification

# The second stage has every depth too: its step costs 2.3 times the first's, and it alone reaches the shallow networks.
WIDTH_SHARE = 1 / 3
PROBE_STEPS = 3  # the first one warms up, and is not counted
PROBE_SHARE = 0.05  # most of the time that a probe in one dtype may take
# Steps are planned for this part of the time that is left, so that a busy machine does not cut the schedule.
PLANNED_SHARE = 0.9
DTYPES = ("float32", "bfloat16")


def fine_tune(model: ElasticBertForSequenceClassification, encoded: Encoded, args: argparse.Namespace) -> None:
    """Train the full network on labels, in place, by the demo's options."""
    with _dropout(model, args.dropout):
        result = fine_tune_network(
            model,
            encoded,
            FineTuningArguments(
                learning_rate=args.learning_rate,
                head_learning_rate=args.head_learning_rate,
                num_train_epochs=args.num_train_epochs,
                per_device_train_batch_size=args.per_device_train_batch_size,
                seed=args.seed,
            ),
        )
    say(f"    {result.steps} steps, loss {result.losses[0]:.3f} to {result.final_loss:.3f}, {result.seconds:.0f} s")


@dataclass(frozen=True)
class StageRecord:
    """What a stage did.

    Attributes:
        stage, subnets: its name, and how many sub-networks learn in a step.
        planned_steps, steps: what its learning rate was laid out for, and what was done.
        cut: True: the clock ended it before its plan.
        examples, tokens: what was seen, repeated examples counted again.
        seconds: of the steps, without the probe.
        loss_first, loss_last: the sum over sub-networks, mean of the first and the last tenth of the steps.
    """

    stage: str
    subnets: int
    planned_steps: int
    steps: int
    cut: bool
    examples: int
    tokens: int
    seconds: float
    loss_first: float
    loss_last: float


@dataclass(frozen=True)
class DistillationRecord:
    """What the stages did together.

    Attributes:
        seconds_allowed: the cap; None where the steps were given.
        dtype: of the steps; weights and optimiser are float32.
        probed: seconds of a step of the first stage by dtype; empty where nothing was probed.
        stages: in their order.
    """

    seconds_allowed: float | None
    dtype: str
    probed: dict[str, float]
    stages: tuple[StageRecord, ...]


def distil(
    rewired: ElasticBertForSequenceClassification, encoded: Encoded, args: argparse.Namespace, seconds: float, out: Path
) -> tuple[ElasticBertForSequenceClassification, DistillationRecord]:
    """DynaBERT's two stages from the rewired network, which is also the teacher; labels are not used.

    Args:
        rewired: fine-tuned and rewired; left as it is.
        encoded: token ids to learn on.
        args: the demo's options.
        seconds: for both stages and the probes; not looked at where ``--distillation_steps`` are given.
        out: the folder that Trainer is told; nothing is written there.

    Returns:
        The elastic network, in eval mode, and the record of the run.
    """
    begun = time.perf_counter()
    clock = args.distillation_steps is None
    run = _Run(encoded, args, out)
    stages = run.settings("float32").make_recipe().stages
    dtype, probed = args.distillation_dtype, {}
    if dtype == "auto":
        # Half precision is faster only on some CPUs. The faster one of the two is taken for both stages.
        for name in DTYPES:
            probed[name] = run.seconds_per_step(stages[0], rewired, rewired, name, PROBE_SHARE * seconds)
        dtype = min(DTYPES, key=lambda name: probed[name])
        spoken = ", ".join(f"{name} {value:.2f} s" for name, value in probed.items())
        say(f"    a step of the first stage: {spoken}; {dtype} is taken")
    teacher, records = rewired, []
    for index, stage in enumerate(stages):
        student = copy.deepcopy(teacher)
        deadline = None
        if clock:
            share = WIDTH_SHARE if index + 1 < len(stages) else 1.0
            deadline = begun + share * seconds
            each = probed.get(dtype) if index == 0 else None
            if each is None:
                each = run.seconds_per_step(stage, student, teacher, dtype, PROBE_SHARE * seconds)
            left = PLANNED_SHARE * (deadline - time.perf_counter())
            steps = max(1, min(int(left / each), run.most_steps))
        else:
            steps = args.distillation_steps[index]
        records.append(run.train(stage, student, teacher, dtype, steps, deadline))
        # Each stage learns from what came out of the one before, so that a teacher at the student's width is its own.
        teacher = student
    return teacher, DistillationRecord(seconds if clock else None, dtype, probed, tuple(records))


class _Run:
    """What all stages and probes share."""

    def __init__(self, encoded: Encoded, args: argparse.Namespace, out: Path) -> None:
        self._encoded, self._args, self._out = encoded, args, out
        self._batch = args.distillation_batch_size
        self._per_epoch = -(-len(encoded) // self._batch)
        self.most_steps = math.ceil(args.distillation_epochs * self._per_epoch)

    def settings(self, dtype: str, **changes: Any) -> DistillationArguments:
        """The trainer's arguments: the paper's recipe, on the CPU, without checkpoints."""
        values: dict[str, Any] = {
            "output_dir": str(self._out),
            "recipe": "paper",
            "learning_rate": self._args.distillation_learning_rate,
            "per_device_train_batch_size": self._batch,
            "warmup_steps": 0.1,
            "bf16": dtype == "bfloat16",
            "seed": self._args.seed,
            "use_cpu": True,
            "step": "stacked",  # as in the committed rows, which the printed command repeats bit for bit
            "save_strategy": "no",
            "report_to": "none",
            "dataloader_pin_memory": False,
        }
        return DistillationArguments(**(values | changes))

    def seconds_per_step(
        self,
        stage: Stage,
        student: ElasticBertForSequenceClassification,
        teacher: ElasticBertForSequenceClassification,
        dtype: str,
        seconds: float,
    ) -> float:
        """What a step takes on average, from a few on a copy; one step at least, of a batch of average length."""
        clock = _Clock(time.perf_counter() + seconds)
        settings = self.settings(dtype, max_steps=PROBE_STEPS, disable_tqdm=True)
        self._steps(stage, copy.deepcopy(student), teacher, settings, [clock])
        taken, tokens = clock.taken[1:] or clock.taken, clock.tokens[1:] or clock.tokens
        # A step's time goes with its tokens, and a batch of a few texts can be far from the average.
        mean = sum(self._encoded.lengths) / self._per_epoch
        return sum(taken) / sum(tokens) * mean

    def train(
        self,
        stage: Stage,
        student: ElasticBertForSequenceClassification,
        teacher: ElasticBertForSequenceClassification,
        dtype: str,
        steps: int,
        deadline: float | None,
    ) -> StageRecord:
        """One stage in place, of so many steps, or until the deadline."""
        clock = _Clock(deadline)
        settings = self.settings(dtype, max_steps=steps, logging_steps=max(1, steps // 10))
        began = time.perf_counter()
        state = self._steps(stage, student, teacher, settings, [clock, StageProgress(stage.name)])
        student.eval()
        done = state.global_step
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        record = StageRecord(
            stage.name,
            len(stage.subnets),
            steps,
            done,
            done < steps,
            done // self._per_epoch * len(self._encoded) + done % self._per_epoch * self._batch,
            sum(clock.tokens),
            round(time.perf_counter() - began, 1),
            losses[0],
            losses[-1],
        )
        say(
            f"    {stage.name}: {record.subnets} sub-networks, {done} of {steps} steps, {record.examples} examples, "
            f"loss {record.loss_first:.3f} to {record.loss_last:.3f}, {record.seconds:.0f} s"
            + (", ended by the clock" if record.cut else "")
        )
        return record

    def _steps(
        self,
        stage: Stage,
        student: ElasticBertForSequenceClassification,
        teacher: ElasticBertForSequenceClassification,
        settings: DistillationArguments,
        callbacks: Sequence[TrainerCallback],
    ) -> TrainerState:
        trainer = DistillationTrainer(student, settings, stage, self._encoded, teacher=teacher, callbacks=[*callbacks])
        for usual in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(usual)
        with _dropout(student, self._args.dropout):
            trainer.train()
        return trainer.state


class _Clock(TrainerCallback):
    """Times every step and counts its tokens; ends the stage after the step in which the deadline passed."""

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.taken: list[float] = []
        self.tokens: list[int] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._before = time.perf_counter()
        self._seen = int(state.num_input_tokens_seen)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now, seen = time.perf_counter(), int(state.num_input_tokens_seen)
        self.taken.append(now - self._before)
        self.tokens.append(seen - self._seen)
        self._before, self._seen = now, seen
        if self.deadline is not None and now >= self.deadline:
            control.should_training_stop = True
        if control.should_training_stop or state.global_step >= state.max_steps:
            control.should_log = True  # the loss since the last log


@contextmanager
def _dropout(model: ElasticBertForSequenceClassification, probability: float) -> Iterator[None]:
    """Another dropout for a while: the checkpoint keeps its own, for whoever trains it further."""
    config = model.config
    kept = config.hidden_dropout_prob, config.attention_probs_dropout_prob, model.classifier.dropout.p
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = model.classifier.dropout.p = probability
    try:
        yield
    finally:
        config.hidden_dropout_prob, config.attention_probs_dropout_prob, model.classifier.dropout.p = kept
