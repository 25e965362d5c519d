"""The method: losses, stages and the trainer. DynaBERT, arXiv 2004.04037.

What needs transformers' ``Trainer`` (and so accelerate) is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dynabert.distill.losses import distillation_losses
from dynabert.distill.stages import Recipe, Stage, recipe

if TYPE_CHECKING:
    from dynabert.distill.arguments import DistillationArguments
    from dynabert.distill.trainer import DistillationTrainer

_HOME = {
    "DistillationArguments": "dynabert.distill.arguments",
    "DistillationTrainer": "dynabert.distill.trainer",
}

__all__ = ["DistillationArguments", "DistillationTrainer", "Recipe", "Stage", "distillation_losses", "recipe"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
