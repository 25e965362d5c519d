"""What the folder of a task and seed was begun with: a later call with other settings is refused, whatever is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from dynabert.cli.train import parse
from dynabert.distill.run_settings import FREE, write_json

BEGUN = "campaign.json"
# Options of ``dynabert train`` that decide no weight here. When a checkpoint is written does: it is scored then.
_FREE = FREE - {"save_strategy", "save_steps"} | {"cache_dir", "overwrite_cache", "parts_of", "traceback"}
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "vocab.*", "tokenizer*", "merges.txt")


def settings_of(model: str, rate: float, epochs: float, options: Sequence[str]) -> dict[str, Any]:
    """As plain data what decides all parts of a task and seed, by the names of the campaign's options; ``options``:
    those of ``dynabert train``, by their values and not by how they were written."""
    words: dict[str, list[str]] = {}
    for word in options:
        option, equals, value = word.partition("=")
        if option.startswith("--"):
            words[option.removeprefix("--").replace("-", "_")] = [value] if equals else []
        elif words:
            words[list(words)[-1]].append(word)
    read = [vars(part) for part in parse(["--model_name_or_path", model, "--report_to", "none", *options])]
    values = {name: value for part in read for name, value in part.items()}
    own = {name: values.get(name, given) for name, given in words.items() if name not in _FREE}
    content = {"model_name_or_path": model, "learning_rate": rate, "epochs": epochs, **own, "digest": _digest(model)}
    found: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return found


def check_begun(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` where something was trained in the folder with other settings; one of an earlier version,
    which kept none, is taken as it is."""
    path = folder / BEGUN
    if not path.is_file() or not _trained(folder):
        return
    try:
        begun = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"accuracy: {path} is damaged ({error}); give another --output_dir") from error
    now = dict(settings)
    digests = begun.pop("digest", None), now.pop("digest", None)
    others = []
    if None not in digests:  # the same network may have moved, and another one may have taken its place
        models = begun.pop("model_name_or_path", None), now.pop("model_name_or_path")
        if digests[0] != digests[1]:
            others.append(f"--model_name_or_path was {models[0]}, now {models[1]}, whose files are others")
    for name in dict.fromkeys((*begun, *now)):
        if begun.get(name) != now.get(name):
            was, is_now = (repr(own[name]) if name in own else "not given" for own in (begun, now))
            others.append(f"--{name} was {was}, now {is_now}")
    if others:
        raise ValueError(
            f"accuracy: {folder} was begun with other settings: {'; '.join(others)}; use those, or another --output_dir"
        )


def keep_begun(folder: Path, settings: Mapping[str, Any]) -> None:
    """Keeps the settings where the folder has none yet, or nothing was trained by those that it has."""
    if not (folder / BEGUN).is_file() or not _trained(folder):
        write_json(folder / BEGUN, settings)


def _trained(folder: Path) -> bool:
    return any(any(folder.rglob(name)) for name in ("complete.json", "model.safetensors"))


@lru_cache
def _digest(model: str) -> str | None:
    """Of the network's files; None for a hub id, or a folder that is gone."""
    folder = Path(model)
    files = sorted({path for name in _WEIGHTS for path in folder.glob(name) if path.is_file()})
    if not files:
        return None
    found = hashlib.blake2b(digest_size=12)
    for path in files:
        found.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()
