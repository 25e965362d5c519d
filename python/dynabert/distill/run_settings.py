"""What decides a training run, as plain data beside it: a folder goes on only with the settings that began it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynabert.data.tokenisation import Encoded
from dynabert.distill.arguments import DistillationArguments
from dynabert.distill.run_lock import LOCK
from dynabert.distill.stages import Recipe
from dynabert.modeling import ElasticBertForSentenceEmbedding, ElasticBertPreTrainedModel
from dynabert.similarity import SimilaritySet

SETTINGS = "settings.json"
# What may differ when a run goes on: where and how it is shown, and how much memory it may take. A launch of another
# size has the same gradients, but draws other dropout masks.
FREE = {
    "output_dir",
    "logging_dir",
    "logging_steps",
    "logging_strategy",
    "logging_first_step",
    "report_to",
    "run_name",
    "disable_tqdm",
    "save_total_limit",
    "save_steps",  # and where there are scores, see `settings_of`
    "save_strategy",
    "per_device_eval_batch_size",  # was taken once, and did nothing
    "resume_from_checkpoint",
    "max_launch_tokens",
    "local_rank",
    "deepspeed_plugin",
    "use_cpu",  # set where there is no accelerator, which earlier runs did not
    "dataloader_pin_memory",  # not used by the loader here, and follows from use_cpu
    "overwrite_output_dir",
    "log_level",
    "log_level_replica",
    "dataloader_num_workers",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
    "do_train",
    "do_eval",
    "do_predict",
    "ddp_timeout",
    "log_on_each_node",
    "include_num_input_tokens_seen",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "hub_private_repo",
    "hub_strategy",
    "hub_always_push",
    "hub_revision",
    "skip_memory_metrics",
}


def write_json(path: Path, content: Any) -> None:
    """All of it or nothing: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(content, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file


def settings_of(
    args: DistillationArguments,
    train: Encoded,
    validation: Encoded | SimilaritySet | None,
    unlabelled: Encoded | None,
    fine_tuned: bool,
    rewiring: bool,
    model: ElasticBertPreTrainedModel,
    metric: str | None,
) -> dict[str, Any]:
    """What decides the weights of a run, as plain data. A set's ``source`` is for people: its ``digest`` decides."""
    values = {name: value for name, value in args.to_dict().items() if name not in FREE}
    recipe = asdict(replace(args.make_recipe()))
    recipe.pop("stages")
    pairs = validation if isinstance(validation, SimilaritySet) else None
    scored = validation if isinstance(validation, (Encoded, type(None))) else validation.texts
    sets: dict[str, Encoded | None] = {"train": train, "validation": scored, "unlabelled": unlabelled}
    data = {
        name: None
        if found is None
        else {"source": found.source, "examples": len(found), "tokens": sum(found.lengths), "digest": _digest(found)}
        for name, found in sets.items()
    }
    content = {"arguments": values, "recipe": recipe, "data": data, "fine_tuned": fine_tuned, "rewiring": rewiring}
    if isinstance(model, ElasticBertForSentenceEmbedding):
        content["pooling"] = asdict(model.pooling)
    if pairs is not None:
        # Reported; nothing is chosen by it.
        content["similarity"] = None if pairs.labels is None else list(pairs.labels)
    elif validation is not None:
        # A score is taken where a checkpoint is written, and the best one is the result.
        saves = [str(args.save_strategy.value)]  # type: ignore[attr-defined]  # transformers makes it an enumeration
        content["saves"] = [*saves, args.save_steps] if saves == ["steps"] else saves
        content["metric"] = metric
    content["start"] = _network_digest(model)
    if args.world_size > 1:
        content["processes"] = args.world_size  # they multiply the sequences of a step
    found: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return found


def _digest(encoded: Encoded) -> str:
    """Of token ids and labels: other texts under the same name are another run."""
    found = hashlib.blake2b(digest_size=12)
    for rows in (encoded.input_ids, encoded.token_type_ids or ()):
        found.update(np.fromiter((len(row) for row in rows), dtype=np.int32).tobytes())
        found.update(np.fromiter(chain.from_iterable(rows), dtype=np.int32).tobytes())
    found.update(repr((encoded.label_names, encoded.labels)).encode())
    return found.hexdigest()


def _network_digest(model: ElasticBertPreTrainedModel) -> str:
    """Of the network that a run starts from: its weights, and what its configuration says of it."""
    found = hashlib.blake2b(digest_size=12)
    said = {k: v for k, v in model.config.to_dict().items() if k not in ("transformers_version", "_name_or_path")}
    found.update(json.dumps(said, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def read_json(path: Path, damaged: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"train: {path} is damaged ({error}); {damaged}") from error


def begun_with(out: Path) -> dict[str, Any]:
    """The settings that a folder was begun with; empty where it was not."""
    path = out / SETTINGS
    found = read_json(path, "give another --output_dir") if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def check_settings(
    out: Path,
    args: DistillationArguments,
    train: Encoded,
    validation: Encoded | SimilaritySet | None,
    unlabelled: Encoded | None,
    fine_tuned: bool,
    rewiring: bool,
    model: ElasticBertPreTrainedModel,
    metric: str | None,
) -> dict[str, Any]:
    """Writes the settings into a fresh folder, and returns them; ``ValueError`` where the folder was begun with
    others."""
    settings = settings_of(args, train, validation, unlabelled, fine_tuned, rewiring, model, metric)
    wanted = dict(settings)
    path = out / SETTINGS
    if path.is_file():
        begun = begun_with(out)
        # What is free now may have been a setting of the version that began it.
        begun["arguments"] = {k: v for k, v in begun.get("arguments", {}).items() if k not in FREE}
        # A version without one of the recipe's switches trained as its default does.
        usual = {f.name: f.default for f in fields(Recipe) if f.init}
        begun["recipe"] = json.loads(json.dumps(usual | begun.get("recipe", {})))
        for name in {"saves", "metric"} - begun.keys():
            wanted.pop(name, None)  # written by a version that did not say
        others = differences(begun, wanted)
        if others and not any(out.rglob("model.safetensors")):
            if args.should_save:
                write_json(path, wanted)  # nothing was trained by those settings yet
        elif others:
            recipe = begun["arguments"].get("recipe")
            hint = "" if recipe in (None, args.recipe) else f" (--recipe {recipe})"  # the default was another once
            raise ValueError(
                f"train: {out} was begun with other settings: {'; '.join(others)}; use those{hint}, or another "
                "--output_dir"
            )
        return settings
    ours = (path.with_suffix(".tmp").name, LOCK)  # of a run that was killed while it wrote them; of this one
    if out.is_dir() and any(found.name not in ours for found in out.iterdir()):
        raise ValueError(
            f"train: --output_dir {out} is not empty and holds no training run; give an empty folder, or that of a run "
            "to go on with"
        )
    if args.should_save:
        write_json(path, wanted)
    return settings


def differences(begun: Any, wanted: Any, name: str = "") -> list[str]:
    """What differs, in words, with its place: ``arguments.seed was 42, now 43``. Where a set of texts came from is no
    difference while its texts and labels are the same."""
    if isinstance(begun, dict) and isinstance(wanted, dict):
        same_texts = begun.get("digest") is not None and begun.get("digest") == wanted.get("digest")
        found = []
        for key in sorted({*begun, *wanted} - ({"source"} if same_texts else set())):
            found += differences(begun.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if begun == wanted else [f"{name} was {begun!r}, now {wanted!r}"]
