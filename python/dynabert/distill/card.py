"""The model card beside a trained network, from what its run wrote; and the versions that the run was made with."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

import dynabert_kernels as dk
from dynabert.configuration import ElasticBertConfig
from dynabert.model_card import HUB_SETS, CardScores, CardTraining, hub_set, model_card

CARD = "README.md"


def versions() -> dict[str, str]:
    """What decides a run besides its settings; of a source tree the commit too, with ``-dirty`` where it is changed."""
    found = {"dynabert-kernels": dk.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    commit = _commit(Path(dk.__file__).parents[1])
    return found if commit is None else {**found, "commit": commit}


def _commit(root: Path) -> str | None:
    if not (root / ".git").exists():  # an installed package may lie within another project's repository
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def write_card(
    folder: Path,
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    base_model: str | None = None,
    *,
    embedder: bool = False,
) -> None:
    """Writes `README.md` into the folder of a trained network, unless one is there.

    ``settings``, ``results``: what the run's `settings.json` and `results.json` hold. ``base_model``: hub id or folder
    of the network that the run began with. ``embedder``: whether it is a sentence embedder.
    """
    path = folder / CARD
    if path.exists():
        return
    text = model_card(
        ElasticBertConfig.from_pretrained(folder),
        scores=run_scores(settings, results, folder.name),
        training=CardTraining.read(settings, results),
        base_model=base_model,
        datasets=run_datasets(settings),
        embedder=embedder,
    )
    path.write_text(text, encoding="utf-8")


def run_scores(settings: Mapping[str, Any], results: Mapping[str, Any], part: str | None = None) -> CardScores | None:
    """The scores of a part of a run, by default the last one's; None where nothing was scored."""
    if not any(own["rows"] for own in results["parts"]):
        return None
    data = (settings.get("data") or {}).get("validation")
    return CardScores.read({**results, "data": None if data is None else data["source"]}, part)


def run_datasets(settings: Mapping[str, Any]) -> list[str]:
    """Hub ids among the sets that a run learned from."""
    sources = [str(own["source"]) for own in (settings.get("data") or {}).values() if own is not None]
    found = {hub_set(source.partition(" + ")[0]) for source in sources}  # augmented text too
    return [name for name in HUB_SETS if name in found]
