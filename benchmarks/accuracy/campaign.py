"""``python -m benchmarks.accuracy.campaign``: tasks x seeds x variants by one command, in a folder that goes on.

``OUTPUT_DIR/TASK/seedN`` holds one teacher, and beside it a folder for each variant. What is finished is not repeated,
and what was cut goes on from its last checkpoint; a folder that was begun with another model, learning rate, number of
epochs or other options of training is refused. Unknown options go to ``dynabert train``, for every part. It ends
with 0 where all is done and with 3 where the budget was spent before: give it again.

    python -m benchmarks.accuracy.campaign --data_dir glue --tasks cola rte --seeds 42 43 --output_dir runs --bf16
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..rows import said_options
from .cells import TEACHER, Clock, OutOfTime, Plan, parts_seconds, reserved
from .predictions import keep_predictions, last_parts
from .rows import collect, draw
from .tasks import TASKS, task_folder
from .variants import FIRST, RECIPES, TRIALS, VARIANTS, folder_name

NOT_DONE = 3
SMALL_HIDDEN = 512  # below it a network learns at the higher rate
SMALL_RATE, USUAL_RATE = 1e-4, 3e-5


def options_of(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The campaign's options, and those for ``dynabert train``."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy.campaign",
        description="The method and its comparisons, for tasks and seeds; unknown options go to 'dynabert train'.",
        allow_abbrev=False,
    )
    flags.add_argument("--model_name_or_path", help="the plain checkpoint; default: the packaged all-MiniLM-L6-v2")
    flags.add_argument("--data_dir", type=Path, required=True, help="the folder of GLUE's task folders")
    flags.add_argument("--output_dir", type=Path, required=True, help="of all tasks and seeds")
    flags.add_argument("--tasks", nargs="+", default=["sst2", "mrpc", "cola", "rte", "stsb"], choices=tuple(TASKS))
    flags.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    flags.add_argument("--variants", nargs="+", default=list(FIRST), choices=tuple(VARIANTS))
    flags.add_argument("--recipe", default="paper", choices=tuple(RECIPES), help="what the variants change")
    flags.add_argument("--learning_rate", type=float, help="default: 1e-4 below 512 hidden units, else 3e-5")
    flags.add_argument("--epochs", nargs="+", default=[], metavar="TASK=N", help="in place of a task's own")
    flags.add_argument("--independent_subnets", metavar="LIST", help="such as w0.5-d1,w0.25-d0.5; default: every one")
    flags.add_argument("--neighbours", type=Path, help="the table of words of the variants with altered copies")
    flags.add_argument("--budget_minutes", type=float, help="stop then, with a checkpoint; default: when all is done")
    flags.add_argument("--save_minutes", type=float, default=10.0, help="between two checkpoints to go on from")
    flags.add_argument("--keep_checkpoints", action="store_true", help="also those of parts that are complete")
    flags.add_argument("--threads", type=int, help="of the CPU; default: PyTorch's")
    flags.add_argument("--rows", type=Path, help="folder for the rows, one file a task and seed, and answers")
    flags.add_argument("--model_label", default="minilm", help="of the network, in the rows' names")
    flags.add_argument("--plan_only", action="store_true", help="say what is left, and train nothing")
    options, rest = flags.parse_known_args(argv)
    wrong = reserved(rest)
    if wrong:
        flags.error(f"{', '.join(wrong)} is decided by the campaign: see --tasks, --seeds, --epochs, --variants")
    if options.budget_minutes is not None and options.budget_minutes <= 0.0:
        flags.error(f"--budget_minutes is {options.budget_minutes}; allowed: above 0")
    altered = [name for name in options.variants if VARIANTS[name].copies is not None]
    if altered and options.neighbours is None:
        flags.error(f"{', '.join(altered)} needs --neighbours, a table of words and their neighbours")
    try:
        options.epochs = {name: float(number) for name, number in (word.split("=") for word in options.epochs)}
    except ValueError:
        flags.error(f"--epochs is {' '.join(options.epochs)}; allowed: TASK=NUMBER, such as mrpc=2")
    unknown = [name for name in options.epochs if name not in TASKS]
    if unknown:
        flags.error(f"--epochs names {', '.join(unknown)}; allowed: {', '.join(TASKS)}")
    return options, rest


def plans(options: argparse.Namespace, rest: Sequence[str]) -> list[Plan]:
    """One for each task and seed: all tasks with the first seed come first, so that a table fills early."""
    model = options.model_name_or_path
    if model is None:
        from dynabert.cli.demo import default_model_path

        model = str(default_model_path())
    rate = options.learning_rate
    if rate is None:
        from transformers import AutoConfig

        rate = SMALL_RATE if AutoConfig.from_pretrained(model).hidden_size < SMALL_HIDDEN else USUAL_RATE
    return [
        Plan(
            folder=options.output_dir / task / f"seed{seed}",
            model=model,
            task=task,
            data_dir=task_folder(task, options.data_dir, options.output_dir / "data"),
            seed=seed,
            recipe=options.recipe,
            rate=rate,
            epochs=options.epochs.get(task, TASKS[task].epochs),
            rest=tuple(rest),
            neighbours=options.neighbours,
            subnets=options.independent_subnets,
        )
        for seed in options.seeds
        for task in options.tasks
    ]


def estimate(works: Mapping[tuple[Plan, str], float]) -> tuple[float, bool]:
    """Seconds that the parts that are not done will take, by the rate of those that are; False where none is."""
    done = left = seconds = 0.0
    for (plan, name), work in works.items():
        if plan.is_done(name):
            done += work
            seconds += parts_seconds(plan.where(name))
        else:
            left += work
    return (left * seconds / done, True) if done else (0.0, False)


def told(seconds: float) -> str:
    """A time for people."""
    hours, minutes = divmod(round(seconds / 60.0), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def write_rows(plan: Plan, folder: Path | None, label: str) -> None:
    """The rows of a task and seed, beside its parts and under ``folder``.

    There also what every sub-network answered: ``predictions/LABEL`` is a folder for the scoring, over the runs of
    several machines. And the model cards of the recipes' own checkpoints."""
    found = collect(plan.folder, None)
    text = json.dumps(found, indent=1) + "\n"
    (plan.folder / "rows.json").write_text(text, encoding="utf-8")
    picture = draw(found, plan.folder / "scores.png")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{plan.task}-{label}-seed{plan.seed}.json"
        path.write_text(text, encoding="utf-8")
        if picture is not None:
            path.with_suffix(".png").write_bytes(picture.read_bytes())
        kept = folder / "predictions" / label / plan.task / f"seed{plan.seed}" / "predictions"
        kept.mkdir(parents=True, exist_ok=True)
        for answers in (plan.folder / "predictions").glob("*.npz"):
            shutil.copyfile(answers, kept / answers.name)
        for recipe in RECIPES:  # of the checkpoints that people would use, not of the comparisons
            if recipe in TRIALS:
                continue
            for part in last_parts(plan.folder / folder_name(recipe, "dynabert")):
                cards = folder / "cards"
                cards.mkdir(exist_ok=True)
                shutil.copyfile(part / "README.md", cards / f"{plan.task}-{label}-seed{plan.seed}-{recipe}.md")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of ``python -m benchmarks.accuracy.campaign``."""
    options, rest = options_of(argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    command = "python -m benchmarks.accuracy.campaign " + shlex.join(said_options(argv))
    deadline = None if options.budget_minutes is None else time.monotonic() + 60.0 * options.budget_minutes
    clock = Clock(deadline, 60.0 * options.save_minutes)
    # Variant by variant, so that the method's own rows are there for all tasks before an ablation's begin.
    names = [name for name in VARIANTS if name in options.variants]
    own = plans(options, rest)
    for plan in own:
        plan.check_begun()
    parts = [(plan, TEACHER) for plan in own] + [(plan, name) for name in names for plan in own]
    parts.sort(key=lambda part: options.seeds.index(part[0].seed))  # stable: seed by seed
    works = {(plan, name): plan.work(name, TASKS[plan.task].examples) for plan, name in parts}
    left = [part for part in parts if not part[0].is_done(part[1])]
    print(f"campaign: {len(parts)} parts, {len(parts) - len(left)} done, {len(left)} left", flush=True)
    for number, (plan, name) in enumerate(left, start=1):
        seconds, known = estimate(works)
        guess = f"about {told(seconds)} for all that is left" if known else "no time known yet"
        print(f"== [{number}/{len(left)}] {plan.task} seed {plan.seed} {plan.where(name).name}; {guess}", flush=True)
        if options.plan_only:
            continue
        try:
            clock.check()
            took = plan.run(name, clock, command)
        except OutOfTime:
            print(f"campaign: the budget is spent, {len(left) - number + 1} parts left; the same command goes on")
            return NOT_DONE
        if not options.keep_checkpoints:
            plan.drop_checkpoints(name)
        keep_predictions(plan.folder, plan.task, plan.data_dir)
        print(f"== {plan.task} seed {plan.seed} {plan.where(name).name}: {told(took)}", flush=True)
        if name != TEACHER:
            write_rows(plan, options.rows, options.model_label)
    if options.plan_only:
        return 0
    for plan in own:
        plan.keep_begun()
        keep_predictions(plan.folder, plan.task, plan.data_dir)
        write_rows(plan, options.rows, options.model_label)
    return 0


if __name__ == "__main__":
    sys.exit(main())
