"""Networks of the same shapes that know nothing of each other: what a user would do without this method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynabert.cli.options import encode
from dynabert.cli.train import InputArguments, open_model, read_inputs
from dynabert.configuration.grid import parse_subnets, subnet_text
from dynabert.data import task_metric
from dynabert.distill.pipeline import StageResult, run_stage, with_defaults
from dynabert.distill.stages import Stage
from dynabert.engine import load_tokenizer

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from dynabert.distill import DistillationArguments


def run_independent(
    inputs: InputArguments,
    args: DistillationArguments,
    out: Path,
    only: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[StageResult]:
    """A network for each sub-network of the recipe (or of ``only``), fine-tuned on labels, in a folder of its own.

    Each starts from the plain checkpoint: the layers that the depth rule keeps, their leading heads and neurons. Each
    takes as many steps as a sub-network of the elastic one: the epochs of all its stages.
    """
    recipe = args.make_recipe()
    wanted = recipe.stages[-1].subnets if only is None else tuple(parse_subnets(only))
    train, validation, _ = read_inputs(inputs)
    assert validation is not None  # a task has one
    metric = None if inputs.task_name is None else task_metric(inputs.task_name)
    tokenizer = load_tokenizer(inputs.model_name_or_path)
    found = []
    for subnet in wanted:
        name = subnet_text(subnet)
        model = open_model(inputs, train, args.seed)
        model.config.depth_rule = recipe.depth_rule
        length = min(inputs.max_seq_length, model.config.max_sequence_length)
        data, scored = (encode(e, model, tokenizer, max_seq_length=length, truncate=True) for e in (train, validation))
        own = with_defaults(args, model, {}, print)
        own.num_train_epochs = args.num_train_epochs * len(recipe.stages)
        stage = Stage(name, (subnet,), 0.0, 0.0, labels=True)
        result = run_stage(stage, model, None, own, data, scored, None, metric, out / name, print, callbacks)
        print(f"independent {name}: {100 * result.rows[0].score:.1f}", flush=True)
        found.append(result)
    return found
