"""Parts of one training run taken over from another one, where all that decided them is the same.

Runs that differ in their last stage alone have teacher, rewired network and first stage in common. A part is taken
only where everything that it depends on is equal; the first part that is not ends it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dynabert.distill.run_settings import FREE, SETTINGS, differences
from dynabert.distill.stages import Recipe

COMPLETE = "complete.json"
_CHECKPOINT = "checkpoint-"

TAKEN_FROM = "taken_from"  # in a part's `complete.json`: the folder that it was copied from
# Arguments that only say which recipe it is. The recipe itself stands beside them.
_OF_THE_RECIPE = {
    *("recipe", "widths", "depths", "subnets", "starting_layers", "depth_rule", "importance_mode", "teacher_width"),
    *("logit_weights", "hidden_weights", "relation_weights", "relation_heads", "regression_logits", "sampling"),
    *("final_stage", "distillation", "second_teacher", "label_weights", "embedding_weights"),
}
# Recipe's fields that the parts before a stage do not depend on.
# Of the first and the second stage.
_PAIRS = ("logit_weights", "hidden_weights", "relation_weights", "label_weights", "embedding_weights")
_AFTER_THE_FIRST = {"teacher_width", "second_teacher", "sampling", "final"}
_OF_THE_STAGES = {*_PAIRS, "relation_heads", "regression_logits", "distillation", *_AFTER_THE_FIRST}
_OF_THE_REWIRING = {"importance_mode"}


def decided_by(settings: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Of a run's settings (`pipeline.settings_of`) those that decide one part's weights and scores.

    Args:
        settings: as they are in `settings.json`.
        part: ``"teacher"``, ``"rewired"`` or a stage's name.
    """
    usual = {field.name: field.default for field in fields(Recipe) if field.init}
    recipe: dict[str, Any] = json.loads(json.dumps(usual | settings["recipe"]))
    arguments = {name: value for name, value in settings["arguments"].items() if name not in _OF_THE_RECIPE | FREE}
    found = {name: value for name, value in settings.items() if name not in ("recipe", "arguments")}
    found["data"] = dict(found["data"])
    if part in ("teacher", "rewired"):
        found["data"].pop("unlabelled", None)
        recipe = {name: value for name, value in recipe.items() if name not in _OF_THE_STAGES}
        if part == "teacher":
            found.pop("rewiring", None)
            recipe = {name: value for name, value in recipe.items() if name not in _OF_THE_REWIRING}
        if settings["fine_tuned"]:
            # Nothing was trained yet: the scores of batches are taken, as large as the training's are.
            size = "per_device_train_batch_size"
            arguments = {size: arguments.get(size)}
            found.pop("saves", None)
    elif part == "width":
        for name in _PAIRS:
            recipe[name] = recipe[name][0]
        recipe = {name: value for name, value in recipe.items() if name not in _AFTER_THE_FIRST}
    elif part == "depth":
        recipe.pop("final")
    return found | {"recipe": recipe, "arguments": arguments}


def check_sources(sources: Sequence[Path]) -> None:
    """``ValueError`` for a folder that holds no training run: a typing mistake would train everything anew."""
    for source in sources:
        if not (source / SETTINGS).is_file():
            raise ValueError(
                f"train: --parts_of {source} holds no training run; allowed: an --output_dir of 'dynabert train'"
            )


def take_parts(
    out: Path,
    settings: Mapping[str, Any],
    parts: Sequence[str],
    sources: Sequence[Path],
    say: Callable[[str], None],
) -> list[str]:
    """Copies finished parts of other runs into ``out``. A part that was begun there is left as it is.

    Args:
        out: the run's folder.
        settings: the run's own, as `pipeline.settings_of` makes them.
        parts: all of the run, in order.
        sources: folders of runs; for each part the first that has it.
        say: takes a line for people.

    Returns:
        The parts that were taken.

    Raises:
        ValueError: a source that holds no training run.
    """
    check_sources(sources)
    taken = []
    begun = {source: json.loads((source / SETTINGS).read_text(encoding="utf-8")) for source in sources}
    for part in parts:
        target = out / part
        if (target / COMPLETE).is_file():
            continue
        if target.is_dir() and any(target.iterdir()):
            break
        wanted = decided_by(settings, part)
        reasons = []
        for source, theirs in begun.items():
            if not (source / part / COMPLETE).is_file():
                reasons.append(f"{source} has not finished it")
                continue
            usual = {} if "metric" in theirs else {"metric": wanted.get("metric")}  # a version that did not say
            others = differences(decided_by(theirs, part) | usual, wanted)
            if not others:
                _copy(source / part, target)
                say(f"{part}: taken from {source}, where all that decides it is the same")
                taken.append(part)
                break
            reasons.append(f"in {source} {'; '.join(others)}")
        else:
            if reasons:
                say(f"{part}: not taken, so trained here: {' | '.join(reasons)}")
            break  # what comes after depends on it
    return taken


def _copy(source: Path, target: Path) -> None:
    """A part's own files, not its checkpoints; `complete.json` last, so that a part is complete only when it is all
    there. A copy that was cut is begun again."""
    aside = target.with_name(target.name + ".taken")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and path.name != COMPLETE:
            shutil.copyfile(path, aside / path.name)
        elif path.is_dir() and not path.name.startswith(_CHECKPOINT):  # such as sentence-transformers' pooling
            shutil.copytree(path, aside / path.name)
    content = json.loads((source / COMPLETE).read_text(encoding="utf-8"))
    content.setdefault(TAKEN_FROM, str(source))
    (aside / COMPLETE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if target.is_dir():
        target.rmdir()  # empty, see above
    os.replace(aside, target)
