"""Opening a model and its tokenizer, refusing what would answer nonsense: fresh heads and empty tokenizers."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dynabert.modeling import ElasticBertForSentenceEmbedding, ElasticBertForSequenceClassification, Pooling
    from dynabert.modeling.base import ElasticBertPreTrainedModel

Network = TypeVar("Network", bound="ElasticBertPreTrainedModel")

# Any of these holds a vocabulary.
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")


def check_there(path: str | Path) -> None:
    """``OSError`` for a hub id that cannot be reached and is not kept: one file is asked for, not each in turn, since
    the hub's client tries each of them for half a minute. A folder, or an id without the file, is left to the reader.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers.utils import cached_file

    source = str(path)
    if Path(source).is_dir():
        return
    if Path(source).is_file():
        raise NotADirectoryError(f"from_pretrained: {source} is a file; give the folder of a checkpoint, or a hub id")
    if _nothing_to_ask() and not _is_kept(source, "config.json"):
        if any(_is_kept(source, name) for name in _VOCABULARIES):
            return
        raise OSError(
            f"from_pretrained: {source} is no folder here, and no model of the hub that can be had: it is not kept "
            "here, and the hub's address is not known; give a folder, or go online"
        )
    try:
        cached_file(source, "config.json")
    except OSError as error:
        if not isinstance(error.__cause__, LocalEntryNotFoundError):
            return  # the hub answered: what it lacks is said by who needs it
        if any(_is_kept(source, name) for name in _VOCABULARIES):
            return  # a tokenizer alone, kept here
        raise OSError(
            f"from_pretrained: {source} is no folder here, and no model of the hub that can be had: {error}"
        ) from error


def _is_kept(source: str, name: str) -> bool:
    """Whether a file of this hub id was downloaded before. A path is no id, which the client says with an error."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(source, name), str)
    except HFValidationError:
        return False


def _nothing_to_ask() -> bool:
    """Whether the hub's host has no address here: the client would ask six times, for half a minute. A proxy knows
    names of its own, so behind one it is tried."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if host is None or getproxies():
        return False
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return True
    return False


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    fresh_head: bool = False,
    int8: bool = False,
    **options: Any,
) -> ElasticBertForSequenceClassification:
    """Open a sequence classifier, in eval mode, on a device and in a dtype.

    Args:
        path: folder or hub id; the folder of a ``dynabert train`` opens as the network that it ended with.
        device, dtype: where and in what to run; the weights are converted once, here.
        fresh_head: False refuses a checkpoint that lacks a classification head, whose answers would be random; True
            draws the head anew from torch's default generator (for fine-tuning).
        int8: True turns the layers' matrices into int8 and the rest from ``dtype`` into bfloat16, for inference on a
            CPU (`ElasticBertForSequenceClassification.quantise_weights`).
        options: passed to ``from_pretrained`` (``num_labels``, ``id2label``, ...).

    Raises:
        ValueError: no classification head in the checkpoint, as in a sentence embedder's; a device that is not there,
            or int8 elsewhere than on the CPU.
        OSError: no such model.
    """
    from dynabert.modeling import ElasticBertForSequenceClassification

    target = _target(path, device, int8)
    if not fresh_head and is_embedder(path):
        raise ValueError(
            f"from_pretrained: {path} is a sentence embedder (modules.json, and no classification head), whose answers "
            "are vectors; allowed: a classifier; dynabert embed, eval, card and export take an embedder, and so does "
            "EmbeddingEngine"
        )
    loaded: Any = ElasticBertForSequenceClassification.from_pretrained(
        str(path), dtype=dtype, output_loading_info=True, **options
    )
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing and not fresh_head:
        raise ValueError(
            f"from_pretrained: {path} has no trained classification head (missing: {', '.join(missing)}), so its "
            "answers would be random; "
            "fine-tune it first, or give a fine-tuned checkpoint"
        )
    return _placed(model, target, int8)


def is_embedder(path: str | Path) -> bool:
    """Whether a folder or hub id is a sentence embedder: it has a `modules.json`, and its configuration names no
    classifier. A training run's folder is what the run ended with. False where there is nothing of the kind, or nothing
    at all.
    """
    from transformers.utils import cached_file

    from dynabert.configuration.run_folder import checked_source, network_folder
    from dynabert.modeling.pooling import MODULES_FILE

    try:
        source = network_folder(checked_source(path))
        check_there(source)
        found = [
            cached_file(
                source,
                name,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            for name in (MODULES_FILE, "config.json")
        ]
        if None in found:
            return False
        content = json.loads(Path(str(found[1])).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # said by whoever opens it
        return False
    names = content.get("architectures") if isinstance(content, dict) else None
    return not any("ForSequenceClassification" in str(name) for name in names or ())


def load_embedder(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    pooling: Pooling | None = None,
    **options: Any,
) -> ElasticBertForSentenceEmbedding:
    """Open a sentence embedder, in eval mode, on a device and in a dtype.

    Args:
        path: folder or hub id of sentence-transformers, or of a network alone.
        device, dtype, int8: as in `load_model`.
        pooling: how a text's vector is made; None as the folder says
            (`ElasticBertForSentenceEmbedding.from_pretrained`).
        options: passed to ``from_pretrained`` (``depth_rule``, ...).

    Raises:
        ValueError: a folder of sentence-transformers that makes its vectors in a way that cannot be computed here; a
            device that is not there, or int8 elsewhere than on the CPU.
        OSError: no such model.
    """
    from dynabert.modeling import ElasticBertForSentenceEmbedding

    target = _target(path, device, int8)
    model = ElasticBertForSentenceEmbedding.from_pretrained(str(path), dtype=dtype, pooling=pooling, **options)
    return _placed(model, target, int8)


def load_served(
    load: Callable[..., Network],
    path: str | Path,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype,
    pack_weights: bool,
    **options: Any,
) -> tuple[Network, PreTrainedTokenizerBase]:
    """A model as an engine serves it, and its tokenizer.

    Args:
        load: `load_model` or `load_embedder`.
        path, device: as there.
        dtype: a dtype of `dynabert.engine.torch_dtype`, or int8.
        pack_weights: on a CPU, whether the weights are brought into the order in which products read them.
        options: passed to ``load``.

    Raises:
        ValueError: an unknown dtype; int8 weights that are not to be packed; no tokenizer; what ``load`` raises.
        OSError: no such model.
    """
    from dynabert.engine.device import INT8, torch_dtype

    int8 = dtype == INT8 or dtype is torch.int8
    if int8 and not pack_weights:
        raise ValueError("from_pretrained: pack_weights is False with int8; int8 weights always are packed")
    model = load(path, device=device, dtype=torch.float32 if int8 else torch_dtype(dtype), int8=int8, **options)
    if not int8 and pack_weights and model.device.type == "cpu":
        model.pack_weights()
    return model, load_tokenizer(path)


def _target(path: str | Path, device: str | torch.device, int8: bool) -> torch.device:
    """Where a network is to go; refused before anything is read where it cannot."""
    from dynabert.configuration.run_folder import checked_source
    from dynabert.engine.device import checked_device

    if int8 and not str(device).startswith("cpu"):
        raise ValueError(f"from_pretrained: int8 runs on the CPU; device is {device}; use float16 or bfloat16 there")
    target = checked_device(device)
    check_there(checked_source(path))
    return target


def _placed(model: Network, target: torch.device, int8: bool) -> Network:
    movable: Any = model  # transformers' own signature of `to` is not torch's
    placed: Network = movable.to(target).eval()
    return placed.quantise_weights() if int8 else placed


def load_masked_lm(path: str | Path, *, device: str | torch.device = "cpu") -> PreTrainedModel:
    """Open a masked language model, in eval mode, on a device.

    Raises:
        ValueError: the checkpoint has no trained masked-LM head (a sentence encoder, a fine-tuned classifier), so the
            words it offers would be random; it is elastic, or of a kind without such a head; a device that is not
            there.
        OSError: no such model.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModelForMaskedLM

    import dynabert.modeling  # noqa: F401  (an elastic checkpoint is to be known, and refused by name)
    from dynabert.engine.device import checked_device

    target = checked_device(device)
    check_there(path)
    config = AutoConfig.from_pretrained(str(path))
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise ValueError(
            f"from_pretrained: {path} is of type {config.model_type!r}, which has no masked-LM head; give the "
            "checkpoint that was pre-trained, such as bert-base-uncased"
        )
    loaded: Any = AutoModelForMaskedLM.from_pretrained(str(path), output_loading_info=True)
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"from_pretrained: {path} has no trained masked-LM head (missing: {', '.join(missing)}), so the words it "
            "offers would be random; give the checkpoint that was pre-trained, such as bert-base-uncased"
        )
    placed: PreTrainedModel = model.to(target).eval()
    return placed


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a model, or of the network that a ``dynabert train`` ended with.

    Raises:
        ValueError: the folder (or hub id) holds no vocabulary; transformers would make an empty tokenizer that knows no
            word.
        OSError: no such folder or hub id.
    """
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    import dynabert.modeling  # noqa: F401  (registers the elastic model type, by which AutoTokenizer looks)
    from dynabert.configuration.run_folder import network_folder

    source = network_folder(path)
    check_there(source)
    if not any(cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in _VOCABULARIES):
        raise ValueError(
            f"from_pretrained: {source} has no tokenizer; looked for {', '.join(_VOCABULARIES)}; save it there with "
            "tokenizer.save_pretrained"
        )
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    return tokenizer
