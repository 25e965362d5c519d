"""One part of a campaign: a teacher, or one variant, of one task and seed; and the clock that stops it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dynabert.cli.options import encode
from dynabert.cli.train import open_model, parse, read_inputs, run_arguments
from dynabert.configuration import SubnetConfig
from dynabert.configuration.grid import parse_subnets, subnet_text
from dynabert.configuration.subnet import kept_layers
from dynabert.data import default_copies, task_metric
from dynabert.distill.pipeline import run_stage, with_defaults
from dynabert.distill.stages import Recipe, Stage
from dynabert.distill.taken_parts import SETTINGS
from dynabert.engine import load_tokenizer

from .begun import check_begun, keep_begun, settings_of
from .independent import run_independent
from .making import note
from .predictions import last_parts
from .variants import RECIPES, VARIANTS, folder_name, is_apart
from .width_norms import run_width_norms

TEACHER = "teacher"


class OutOfTime(Exception):
    """The budget is spent; what was begun has a checkpoint."""


class Clock(TrainerCallback):
    """Stops a stage when the time is over, with a checkpoint of where it is; and writes one every so often, so that a
    process that is ended loses little. Such a checkpoint is not scored, so it cannot be taken for the best one.

    Args:
        deadline: by `time.monotonic`; None for no end.
        save_seconds: between two checkpoints.
    """

    def __init__(self, deadline: float | None, save_seconds: float) -> None:
        self.deadline, self.save_seconds = deadline, save_seconds
        self._saved = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def check(self) -> None:
        """Raises `OutOfTime` where it is."""
        if self.over:
            raise OutOfTime

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.check()
        self._saved = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # At the end of an epoch, or of all, comes a checkpoint that is scored. One of the same step that comes before
        # would be gone on from past that score, and another network might be the best.
        epoch = state.epoch or 0.0
        ends = state.global_step >= state.max_steps or abs(epoch - round(epoch)) < 1e-9
        if not ends and (self.over or time.monotonic() - self._saved >= self.save_seconds):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = time.monotonic()
        if state.global_step < state.max_steps:
            self.check()


@dataclass(frozen=True)
class Plan:
    """What all parts of a task and seed share.

    Attributes:
        folder: of the task and seed.
        model: the plain checkpoint.
        task, data_dir: as `dynabert.data.load_task` takes them.
        recipe: a name of `RECIPES`.
        rate, epochs: of the teacher and of each stage, before a recipe or variant multiplies them.
        rest: options of ``dynabert train`` for all parts.
        neighbours: the table of words of the variants with altered copies.
        subnets: shapes of the independent networks; None for all.
    """

    folder: Path
    model: str
    task: str
    data_dir: Path
    seed: int
    recipe: str
    rate: float
    epochs: float
    rest: tuple[str, ...] = ()
    neighbours: Path | None = None
    subnets: str | None = None

    def where(self, name: str) -> Path:
        """The folder of a part."""
        return self.folder / (TEACHER if name == TEACHER else folder_name(self.recipe, name))

    def _common(self) -> list[str]:
        given = ["--task_name", self.task, "--data_dir", str(self.data_dir), "--seed", str(self.seed)]
        given += ["--report_to", "none"]
        return [*given, *([] if torch.accelerator.is_available() else ["--use_cpu"]), *self.rest]

    def arguments(self, name: str) -> list[str]:
        """The options of ``dynabert train`` of a part. The teacher knows nothing of recipes: it serves them all."""
        if name == TEACHER:
            rate, epochs, own = self.rate, self.epochs, []
        else:
            recipe, variant = RECIPES[self.recipe], VARIANTS[name]
            rate = self.rate * recipe.rate * variant.rate
            epochs = self.epochs * recipe.epochs * variant.epochs
            own = [*recipe.options, *variant.options]
            if variant.copies is not None:
                if self.neighbours is None:
                    raise ValueError(f"accuracy: the variant {name} needs --neighbours, a table of words")
                own += ["--augment", "neighbours", str(self.neighbours)]
                own += ["--augment_copies", str(variant.copies)] if variant.copies else []
            if variant.depth != 1.0:
                own += ["--starting_layers", ",".join(map(str, starting_layers(self.model, variant.depth)))]
        fresh = name == TEACHER or VARIANTS[name].independent
        model = [self.model] if fresh else [str(self.folder / TEACHER), "--fine_tuned"]
        if not fresh:
            # What a variant has in common with another one is trained once: the same weights, the same seconds.
            others = (path.parent for path in sorted(self.folder.glob(f"*/{SETTINGS}")))
            sources = [str(folder) for folder in others if folder != self.where(name)]
            own += ["--parts_of", *sources] if sources else []
        numbers = ["--learning_rate", f"{rate:g}", "--num_train_epochs", f"{epochs:g}"]
        return ["--model_name_or_path", *model, *self._common(), *numbers, *own, "--output_dir", str(self.where(name))]

    def is_done(self, name: str) -> bool:
        """Whether nothing of it is left to train."""
        folder = self.where(name)
        if name == TEACHER:
            return (folder / "complete.json").is_file()
        if not is_apart(folder.name):
            return (folder / "results.json").is_file()
        if VARIANTS[name].width_norms:
            return len(last_parts(folder)) == len(self.recipe_of(name).widths)
        wanted = self.recipe_of(name).stages[-1].subnets if self.subnets is None else parse_subnets(self.subnets)
        there = {subnet for names in last_parts(folder).values() for subnet in names}
        return {subnet_text(subnet) for subnet in wanted} <= there

    def check_begun(self) -> None:
        """Raises ``ValueError`` where the folder was begun with another model, rate, number of epochs or ``rest``."""
        check_begun(self.folder, self._settings())

    def keep_begun(self) -> None:
        """Keeps what the folder is begun with, once."""
        keep_begun(self.folder, self._settings())

    def _settings(self) -> dict[str, Any]:
        return settings_of(self.model, self.rate, self.epochs, self.rest)

    def recipe_of(self, name: str) -> Recipe:
        """The stages of a part."""
        return parse(self.arguments(name))[1].make_recipe()

    def work(self, name: str, examples: int) -> float:
        """About what a part costs, in forward passes of the whole network over one example."""
        if name == TEACHER:
            return 3.0 * self.epochs * examples
        args = parse(self.arguments(name))[1]
        recipe = args.make_recipe()

        def shares(stage: Stage) -> list[float]:
            return [subnet.width_mult * subnet.depth_mult for subnet in stage.subnets]

        if VARIANTS[name].independent:
            passes = 3.0 * len(recipe.stages) * sum(shares(recipe.stages[-1]))
        else:
            passes = sum(stage.forward_passes(shares(stage)) for stage in recipe.stages)
        copies = VARIANTS[name].copies
        texts = 1.0 if copies is None else 1.0 + (copies or default_copies(self.task))
        return passes * texts * VARIANTS[name].depth * args.num_train_epochs * examples

    def run(self, name: str, clock: Clock, command: str) -> float:
        """Trains what is left of a part, and keeps by which command and commit. Returns the seconds that it took.

        Raises `OutOfTime` when the clock says so: the same call goes on.
        """
        self.keep_begun()
        began = time.monotonic()
        before = _parts(self.where(name))
        try:
            if name == TEACHER:
                self._run_teacher(clock)
            elif VARIANTS[name].independent:
                run_independent(*parse(self.arguments(name)), self.where(name), self.subnets, [clock])
            elif VARIANTS[name].width_norms:
                run_width_norms(*parse(self.arguments(name)), self.where(name))
            else:
                run_arguments(self.arguments(name), [clock])
        finally:
            if _parts(self.where(name)) != before:
                note(self.where(name), command)
        return time.monotonic() - began

    def _run_teacher(self, clock: Clock) -> None:
        inputs, args = parse(self.arguments(TEACHER))
        train, validation, _ = read_inputs(inputs)
        assert validation is not None  # a task has one
        model = open_model(inputs, train, args.seed)
        tokenizer = load_tokenizer(inputs.model_name_or_path)
        length = min(inputs.max_seq_length, model.config.max_sequence_length)
        data, scored = (encode(e, model, tokenizer, max_seq_length=length, truncate=True) for e in (train, validation))
        own = with_defaults(args, model, {}, print)
        stage = Stage(TEACHER, (SubnetConfig(),), 0.0, 0.0, labels=True)
        metric = task_metric(self.task)
        run_stage(stage, model, None, own, data, scored, tokenizer, metric, self.where(TEACHER), print, [clock])

    def drop_checkpoints(self, name: str) -> None:
        """Removes Trainer's checkpoints of parts that are complete: nothing goes on from them."""
        folder = self.where(name)
        for part in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            if (part / "complete.json").is_file():
                for path in part.glob("checkpoint-*"):
                    shutil.rmtree(path)


def starting_layers(model: str, depth: float) -> tuple[int, ...]:
    """The layers of the plain checkpoint that a student of this depth starts from, spread over it, the last among
    them."""
    return kept_layers(AutoConfig.from_pretrained(model).num_hidden_layers, depth, "keep_last")


def _parts(folder: Path) -> set[Path]:
    return set(folder.glob("complete.json")) | set(folder.glob("*/complete.json"))


def parts_seconds(folder: Path) -> float:
    """Seconds of all parts of a folder that are complete."""
    return sum(json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in _parts(folder))


def reserved(rest: Sequence[str]) -> list[str]:
    """Options that the campaign decides itself."""
    own = {
        *("--task_name", "--seed", "--num_train_epochs", "--train_file", "--validation_file", "--fine_tuned"),
        *("--recipe", "--no_rewiring", "--no_distillation", "--distillation", "--max_steps"),
    }
    return [word for word in rest if word.split("=")[0] in own]
