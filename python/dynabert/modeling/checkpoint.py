"""Checkpoints: any plain BERT, RoBERTa or MPNet, or an elastic one, to our state dict; and back to plain files."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynabert.configuration.elastic import ElasticBertConfig
from dynabert.modeling import files
from dynabert.modeling.names import (
    Parts,
    canonical_names,
    encoder_prefix,
    head_names,
    is_plain,
    plain_shapes,
    to_elastic,
    to_plain,
)

logger = logging.getLogger("dynabert.modeling")

_ORDERS = ("head_order", "neuron_order")
_SCORES = ("head_scores", "neuron_scores")
_SHOWN = 6

# Lets `AutoModel.from_pretrained(folder, trust_remote_code=True)` find the classes where nobody imported dynabert.
AUTO_FILE = "elastic_bert.py"
_AUTO_TITLE = '"""Names for transformers\' Auto classes; the code is the package dynabert-kernels."""'
# Inside `try`, or transformers would say `pip install dynabert`, which is not the name of the package.
AUTO_CODE = f"""{_AUTO_TITLE}

try:
    from dynabert import ElasticBertConfig, ElasticBertForSequenceClassification, ElasticBertModel
except ImportError as error:
    raise ImportError(
        "this network is narrower than any class of transformers can hold; its code is the package dynabert-kernels, "
        f"which cannot be imported here ({{error}}); install dynabert-kernels"
    ) from error

__all__ = ["ElasticBertConfig", "ElasticBertForSequenceClassification", "ElasticBertModel"]
"""
AUTO_MAP = {
    "AutoConfig": "elastic_bert.ElasticBertConfig",
    "AutoModel": "elastic_bert.ElasticBertModel",
    "AutoModelForSequenceClassification": "elastic_bert.ElasticBertForSequenceClassification",
}
_PLAIN_CLASS = {"bert": "Bert", "roberta": "Roberta", "mpnet": "MPNet"}


@dataclass(frozen=True, eq=False)
class Loaded:
    """A checkpoint as our state dict. ``fresh``: plain names of the head's tensors that it lacked. ``scores``: the
    importance that the network was rewired by, if it was: (L, H) and (L, F)."""

    state: dict[str, Tensor]
    fresh: list[str]
    ignored: list[str]
    scores: tuple[Tensor, Tensor] | None


def _listed(names: list[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def load(
    source: str,
    config: ElasticBertConfig,
    parts: Parts,
    *,
    dtype: torch.dtype | None,
    hub: Mapping[str, Any],
    use_safetensors: bool | None,
    ignore_mismatched_sizes: bool,
    model_name: str,
    expected_unused: str | None = None,
) -> Loaded:
    """Reads the checkpoint ``source`` for a model of ``config`` and ``parts``, cast to ``dtype`` (None: the file's).

    A pooler or classification head that the file lacks altogether is drawn from torch's default generator and said
    aloud; every other tensor must be there, in its shape, and no unknown one may be. ``expected_unused``: a pattern of
    names that such a model never uses: they are not told.
    """
    tensors = files.read_tensors(files.weight_files(source, hub, use_safetensors))
    names, ignored, unknown = canonical_names(tensors, config, parts)
    shapes = plain_shapes(config, parts)
    if unknown:
        raise ValueError(
            f"from_pretrained: {source} holds {len(unknown)} tensors that a {config.architecture} of this "
            f"configuration does not have: {_listed(unknown)}"
        )
    found = {plain: tensors[name] for plain, name in names.items()}
    fresh = _fresh(config, parts, found, shapes, ignore_mismatched_sizes)
    missing = [plain for plain in shapes if plain not in found and plain not in fresh]
    if missing:
        raise ValueError(
            f"from_pretrained: {source} lacks {len(missing)} of {len(shapes)} tensors: {_listed(missing)}; "
            "fetch the whole checkpoint"
        )
    wrong = [
        f"{plain} is {tuple(tensor.shape)}, the configuration says {shapes[plain]}"
        for plain, tensor in found.items()
        if tuple(tensor.shape) != shapes[plain]
    ]
    if wrong:
        head = {plain for group in head_names(config, parts) for plain in group}
        only_head = all(tuple(found[plain].shape) == shapes[plain] for plain in found if plain not in head)
        way_out = "; for a new head give ignore_mismatched_sizes=True" if only_head else ""
        raise ValueError(f"from_pretrained: {source}: {'; '.join(wrong[:_SHOWN])}{way_out}")
    not_float = [plain for plain, tensor in found.items() if not tensor.dtype.is_floating_point]
    if not_float:
        raise ValueError(f"from_pretrained: {source}: not floating point: {_listed(not_float)}")
    if dtype is None:
        dtype = next(iter(found.values())).dtype
    for plain in fresh:
        weight = torch.zeros(shapes[plain])
        if plain.endswith("weight"):
            weight.normal_(0.0, config.initializer_range)
        found[plain] = weight
    if fresh:
        logger.warning(
            "%s: these weights are not in the checkpoint %s and are newly initialized: %s. Train the model on a task "
            "before you use its predictions.",
            model_name,
            source,
            ", ".join(fresh),
        )
    told = [name for name in ignored if expected_unused is None or not re.search(expected_unused, name)]
    if told:
        logger.warning("%s: these weights of %s are not used: %s", model_name, source, _listed(told))
    state = to_elastic({plain: tensor.to(dtype) for plain, tensor in found.items()}, config, parts)
    orders, scores = _read_orders(source, config, hub)
    prefix = encoder_prefix(parts)
    state |= {prefix + name: order for name, order in orders.items()}
    return Loaded(state, fresh, ignored, scores)


def _fresh(
    config: ElasticBertConfig,
    parts: Parts,
    found: dict[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    ignore_mismatched_sizes: bool,
) -> list[str]:
    """Names of the head's tensors to draw anew. A head that is there in part is not fresh: its rest is missing."""
    fresh: list[str] = []
    for group in head_names(config, parts):
        there = [plain for plain in group if plain in found]
        if not there:
            fresh += sorted(group, reverse=True)
        elif ignore_mismatched_sizes:
            for plain in there:
                if tuple(found[plain].shape) != shapes[plain]:
                    del found[plain]
                    fresh.append(plain)
    return fresh


def check_source(source: str) -> None:
    """Refuses what can be neither a folder nor a hub id, before anything is asked of a hub.

    Raises ``OSError``: a file, or a path that is not there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return
    if path.exists():
        raise OSError(f"from_pretrained: {source} is a file; give the folder that holds config.json and the weights")
    if source.count("/") > 1 or source.startswith((".", "/", "~")) or source.endswith("/"):
        raise OSError(f"from_pretrained: there is no folder {source}; give a checkpoint's folder, or a hub id")


def identity_orders(config: ElasticBertConfig) -> dict[str, Tensor]:
    """``layers.0.head_order`` and so on of a network that was never rewired."""
    orders = {}
    for layer in range(config.num_hidden_layers):
        orders[f"layers.{layer}.head_order"] = torch.arange(config.layer_heads[layer])
        orders[f"layers.{layer}.neuron_order"] = torch.arange(config.layer_neurons[layer])
    return orders


def _read_orders(
    source: str, config: ElasticBertConfig, hub: Mapping[str, Any]
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
    orders = identity_orders(config)
    path = files.find(source, files.ELASTIC_FILE, hub)
    if path is None:
        configured = _configured_head_orders(source, config, hub) if config.rewired else None
        if configured is not None:
            orders |= configured
        elif config.rewired and config.has_relative_bias:
            raise ValueError(
                f"from_pretrained: {source} was rewired but {files.ELASTIC_FILE} is not there; its heads cannot be "
                "matched with the relative position bias; fetch the whole checkpoint"
            )
        if config.rewired:
            logger.warning(
                "%s was rewired but %s is not there: the network computes the same, but where its heads and neurons "
                "once stood is not known.",
                source,
                files.ELASTIC_FILE,
            )
        return orders, None
    stored = files.read_tensors([path])
    missing = [name for name in orders if name not in stored]
    if missing:
        raise ValueError(f"from_pretrained: {path} lacks {_listed(missing)}; fetch it again")
    for name, order in orders.items():
        found = stored[name]
        if found.shape != order.shape or found.dtype != torch.int64 or len(set(found.tolist())) != len(found):
            raise ValueError(f"from_pretrained: {path}: {name} must hold {len(order)} different places")
        if len(found) and int(found.min()) < 0:
            raise ValueError(f"from_pretrained: {path}: {name} names the place {int(found.min())}; allowed: 0 or more")
        if name.endswith("head_order") and config.has_relative_bias:
            heads = config.relative_attention_heads
            if not 0 <= int(found.min()) <= int(found.max()) < heads:
                raise ValueError(f"from_pretrained: {path}: {name} names heads outside 0 to {heads - 1}")
        orders[name] = found
    if all(name in stored for name in _SCORES):
        heads, neurons = stored[_SCORES[0]], stored[_SCORES[1]]
        layers = config.num_hidden_layers
        for name, table, least in (
            (_SCORES[0], heads, max(config.layer_heads)),
            (_SCORES[1], neurons, max(config.layer_neurons)),
        ):
            if table.dim() != 2 or table.shape[0] != layers or table.shape[1] < least:
                raise ValueError(
                    f"from_pretrained: {path}: {name} has shape {tuple(table.shape)}; allowed: ({layers}, {least})"
                )
        return orders, (heads, neurons)
    return orders, None


def _configured_head_orders(source: str, config: ElasticBertConfig, hub: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The ``head_orders`` of an exported MPNet's ``config.json``, which stay where transformers saves it again."""
    path = files.find(source, "config.json", hub)
    if path is None or not config.has_relative_bias:
        return None
    block = json.loads(path.read_text(encoding="utf-8")).get("elastic") or {}
    stored = block.get("head_orders")
    if stored is None:
        return None
    allowed = range(config.relative_attention_heads)
    lengths = [len(order) for order in stored]
    if lengths != list(config.layer_heads) or any(
        len(set(order)) != len(order) or not set(order) <= set(allowed) for order in stored
    ):
        raise ValueError(
            f"from_pretrained: {path}: head_orders must name, for each of {len(config.layer_heads)} layers, so many "
            f"different places of {len(allowed)} as the layer has heads"
        )
    return {f"layers.{layer}.head_order": torch.tensor(order) for layer, order in enumerate(stored)}


def state_from_plain(state: Mapping[str, Any], config: ElasticBertConfig, parts: Parts) -> dict[str, Any]:
    """Our state dict from a plain one, orders left out; any other is returned as it is.

    Raises ``ValueError`` when one of query, key, value of a layer is missing.
    """
    if not is_plain(state):
        return dict(state)
    names, others, unknown = canonical_names(state, config, parts)
    try:
        result: dict[str, Any] = to_elastic({plain: state[name] for plain, name in names.items()}, config, parts)
    except KeyError as error:
        raise ValueError(f"load_state_dict: the plain state dict lacks {error}") from error
    return result | {name: state[name] for name in (*others, *unknown)}


def save(
    folder: Path,
    config: ElasticBertConfig,
    parts: Parts,
    state: Mapping[str, Tensor],
    scores: tuple[Tensor, Tensor] | None,
    *,
    class_name: str,
    dtype: torch.dtype,
    max_shard_size: int | str,
) -> None:
    """Writes config.json, the weights under their plain names, and elastic.safetensors where there is something to say.

    ``state``: our whole state dict. Writes into an existing folder; what an earlier save left there is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = config.saved_form()
    content["dtype"] = str(dtype).removeprefix("torch.")
    plain = config.plain_obstacle() is None
    if plain:
        stem = _PLAIN_CLASS[config.architecture]
        content["architectures"] = [f"{stem}ForSequenceClassification" if parts.head else f"{stem}Model"]
        auto = folder / AUTO_FILE
        if auto.is_file() and auto.read_text(encoding="utf-8").startswith(_AUTO_TITLE):
            auto.unlink()  # left by an earlier save of an elastic network
    else:
        content["architectures"] = [class_name]
        content["auto_map"] = AUTO_MAP
        (folder / AUTO_FILE).write_text(AUTO_CODE, encoding="utf-8")
    files.write_weights(folder, to_plain(state, config, parts), max_shard_size)
    save_orders(folder, config, parts, state, scores)
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def save_orders(
    folder: Path,
    config: ElasticBertConfig,
    parts: Parts,
    state: Mapping[str, Tensor],
    scores: tuple[Tensor, Tensor] | None,
) -> None:
    """Writes ``elastic.safetensors``: where heads and neurons once stood, and their scores. No file, and none left of
    an earlier save, where nothing was moved and nothing scored."""
    prefix = encoder_prefix(parts)
    names = [f"layers.{layer}.{name}" for layer in range(config.num_hidden_layers) for name in _ORDERS]
    orders = {name: state[prefix + name].cpu() for name in names}
    aside = folder / files.ELASTIC_FILE
    identity = identity_orders(config)
    if scores is not None or any(not torch.equal(orders[name], identity[name]) for name in orders):
        tensors = {name: order.contiguous() for name, order in orders.items()}
        if scores is not None:
            tensors |= {name: score.cpu().contiguous() for name, score in zip(_SCORES, scores, strict=True)}
        files.write_tensors(aside, tensors)
    else:
        aside.unlink(missing_ok=True)
