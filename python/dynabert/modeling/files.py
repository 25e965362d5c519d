"""Weight files: finding them in a folder or on the hub, reading and writing them, with errors that name the file."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import cached_file

SAFE_WEIGHTS = "model.safetensors"
TORCH_WEIGHTS = "pytorch_model.bin"
ELASTIC_FILE = "elastic.safetensors"
# What safetensors and torch.load raise on files that are cut short or hold something else.
_BROKEN = (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError)
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def find(source: str, name: str, hub: Mapping[str, Any]) -> Path | None:
    """The file ``name`` of a folder or hub id, downloaded if need be; None where there is none.

    ``hub``: ``cache_dir``, ``revision``, ``token``, ... as transformers' ``cached_file`` takes them. Raises its
    ``OSError`` when the folder or hub id does not exist.
    """
    path = cached_file(
        source, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=True, **hub
    )
    return None if path is None else Path(path)


def weight_files(source: str, hub: Mapping[str, Any], use_safetensors: bool | None = None) -> list[Path]:
    """The weight files of a checkpoint: safetensors before pickles, one file before shards.

    Raises ``OSError`` when there is none, ``ValueError`` when an index is broken or names a shard that is not there.
    """
    wanted = [SAFE_WEIGHTS] if use_safetensors else [SAFE_WEIGHTS, TORCH_WEIGHTS]
    if use_safetensors is False:
        wanted = [TORCH_WEIGHTS]
    for name in wanted:
        if (path := find(source, name, hub)) is not None:
            return [path]
        if (index := find(source, f"{name}.index.json", hub)) is not None:
            return _shards(source, index, hub)
    looked = " or ".join(f"{name}, {name}.index.json" for name in wanted)
    onnx = "; its model.onnx is for ONNX Runtime" if (Path(source) / "model.onnx").is_file() else ""
    raise OSError(f"from_pretrained: {source} has no weights; looked for {looked}{onnx}")


def _shards(source: str, index: Path, hub: Mapping[str, Any]) -> list[Path]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"from_pretrained: {index} is not an index of shards ({error}); fetch it again") from error
    paths = []
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name:
            raise ValueError(f"from_pretrained: {index} names a shard outside its folder: {name!r}")
        if (path := find(source, name, hub)) is None:
            raise ValueError(f"from_pretrained: {index} names the shard {name}, which is not there; fetch it again")
        paths.append(path)
    return paths


def read_tensors(paths: list[Path]) -> dict[str, Tensor]:
    """All tensors of the files, in memory of their own (a mapped file would follow later changes on disk).

    Pickles are read with ``weights_only=True``. Raises ``ValueError`` naming a file that is cut short or broken, and
    ``OSError`` for one that may not be read.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with path.open("rb"):  # a file that may not be read is not there, as safetensors says it
            pass
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    tensors.update({name: file.get_tensor(name).clone() for name in file.keys()})  # noqa: SIM118
            else:
                loaded = torch.load(path, map_location="cpu", weights_only=True)
                if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
                    raise ValueError("it does not hold a state dict of tensors")
                tensors.update(loaded)
        except _BROKEN as error:
            raise ValueError(f"from_pretrained: cannot read {path}: {error}; fetch it again") from error
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file that others may read as the process's umask says; the library's are their owner's
    alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=metadata)
    path.chmod(mode)


def write_weights(folder: Path, tensors: Mapping[str, Tensor], max_shard_size: int | str) -> None:
    """Writes ``model.safetensors``, or shards and their index, and removes what an earlier save left there."""
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for name, keys in split.filename_to_tensors.items():
        # Beside, then renamed: the file may be the one that another process has mapped.
        part = folder / f"{name}.part"
        write_tensors(part, {key: tensors[key].contiguous() for key in keys}, {"format": "pt"})
        part.replace(folder / name)
    index = folder / f"{SAFE_WEIGHTS}.index.json"
    if split.is_sharded:
        content = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    else:
        index.unlink(missing_ok=True)
    for path in folder.iterdir():
        ours = path.name == SAFE_WEIGHTS or _SHARD.fullmatch(path.name) is not None
        if ours and path.name not in split.filename_to_tensors:
            path.unlink()
