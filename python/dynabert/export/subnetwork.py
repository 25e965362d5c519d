"""A sub-network out of an elastic model, written in a format, loaded back, compared, and only then put in its place."""

from __future__ import annotations

import copy
import json
import logging
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dynabert.configuration import Subnet
from dynabert.configuration.elastic import ElasticBertConfig
from dynabert.configuration.grid import subnet_text
from dynabert.cost import subnet_cost
from dynabert.export import onnx_graph, parity, plain, remote
from dynabert.export.folders import checked_target, staged, writing
from dynabert.export.kinds import Exported, check_exported, is_embedder, other_formats
from dynabert.export.report import FORMATS, ExportReport, Size, snippet
from dynabert.modeling import ElasticBertForSentenceEmbedding, ElasticBertForSequenceClassification, files
from dynabert_kernels import SubnetShape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("dynabert.export")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COST_TOKENS = 128
_PACKAGES = {"hf": (), "hf-remote": (), "onnx": ("onnx", "onnxruntime"), "elastic": ()}


def export_subnet(
    model: ElasticBertForSequenceClassification | ElasticBertForSentenceEmbedding,
    tokenizer: PreTrainedTokenizerBase | None,
    subnet: Subnet,
    output_dir: str | os.PathLike[str],
    *,
    format: str = "hf",
    pad: bool = False,
    dtype: str | torch.dtype = "float32",
    overwrite: bool = False,
    source: str | None = None,
) -> ExportReport:
    """Writes the sub-network ``subnet`` of ``model`` as a model of its own, and returns what was done.

    The folder is written beside its place, opened again by the tool that will open it, and compared with ``model``
    running ``subnet``: real texts where there is a tokenizer, and random ids of several lengths up to the longest.
    Logits may differ by 1e-4, or 2^-16 of what the head's weights can make of them where that is less (by eight float32
    roundings of the largest logit in any case). Only then is it renamed into place: a refused, failed or interrupted
    export leaves nothing, and what was there stays.

    ``model``: any elastic classifier or sentence embedder; it is not changed. ``tokenizer``: saved beside the weights;
    None for none.
    ``subnet``: a ``SubnetConfig``, its text form, a ``SubnetShape``, or None for the whole network.
    ``output_dir``: the folder to make; it must not hold anything, unless ``overwrite``.
    ``format``:

    * ``"hf"``: transformers' own BERT, RoBERTa or MPNet, with nothing of ours. Holds what keeps all heads and equally
      many neurons in its layers: cuts in depth and neurons. With ``pad`` any sub-network, padded with zero weights: the
      same answers, and zero they stay when it is trained on, but no faster than the padded size.
    * ``"hf-remote"``: any sub-network, narrow as it is, with the code that runs it: opens with
      ``trust_remote_code=True`` where dynabert is not installed, and with our own class.
    * ``"onnx"``: any sub-network, as a graph for ONNX Runtime, batch and sequence dynamic, arithmetic in float32. Needs
      ``pip install 'dynabert-kernels[onnx]'``.
    * ``"elastic"``: a smaller elastic checkpoint, to be trained further by our trainer, with sub-networks of its own.

    Of a sentence embedder vectors are compared, whose numbers may differ by 2^-16 of the largest. The folder has
    sentence-transformers' files (how a vector is made); that library opens the format hf, and elastic where
    transformers' own class can hold the network. In onnx the graph itself pools, and divides by the length. hf-remote
    is for classifiers.

    ``dtype``: how weights are stored, ``"float32"``, ``"bfloat16"`` or ``"float16"``. In half precision the bound above
    holds against the source with its weights rounded alike; the report also says how far the answers lie from float32.
    A tokenizer that pads on the left gets ``padding_side`` right in the format hf, since transformers' own classes read
    the first column there; it is said aloud. ``overwrite``: replace a model's folder that is there. ``source``: what
    the report names as the source; by default where ``model`` was opened.

    Raises ``ValueError`` for an unknown format or dtype, a sub-network that does not fit the model or the format
    (naming the formats that hold it), a tokenizer with more tokens than the model has, an output folder that is not
    empty or must not be replaced, and packed or int8 weights; ``TypeError`` for another kind of model; ``ImportError``
    naming the extra where a package is missing; ``RuntimeError`` where the comparison fails; ``OSError`` where the disk
    does.
    """
    if format not in FORMATS:
        raise ValueError(f"export: format is {format!r}; allowed: {', '.join(FORMATS)}")
    check_exported(model, format)
    if model.has_packed_weights:
        raise ValueError(
            "export: the model's weights are packed or in int8, for inference only; open the checkpoint anew in "
            "float32 with pack_weights=False"
        )
    stored = _stored_dtype(dtype)
    if pad and format != "hf":
        raise ValueError(f"export: pad belongs to the format hf; {format} holds narrow layers as they are")
    config = model.config
    shape = config.shape(subnet)
    named = config.name_or_path if source is None else source
    target = checked_target(output_dir, overwrite, str(named or ""))
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"export: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}; use the model's own "
            "tokenizer, or None for none"
        )
    if format == "hf":
        _check_plain(config, shape, pad, other_formats(model))
    if format == "onnx":
        onnx_graph.need_packages()

    turned = format == "hf" and getattr(tokenizer, "padding_side", "right") == "left"
    if turned:
        logger.warning(
            "export: the tokenizer pads on the left, where transformers' own classes read the first token; the format "
            "hf gets it with padding_side right"
        )
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.padding_side = "right"  # type: ignore[union-attr]
    small = model.extract(shape).eval()
    nn.Module.to(small, torch.device("cpu"), stored)
    padded: ElasticBertConfig | None = None
    with staged(target, overwrite) as work:
        with writing(target):
            if tokenizer is not None:
                tokenizer.save_pretrained(work)
            if format == "hf":
                sizes = _write_plain(small, work, stored)
                changed = (sizes.layer_heads, sizes.layer_neurons) != (
                    small.config.layer_heads,
                    small.config.layer_neurons,
                )
                padded = sizes if changed else None
            elif format == "hf-remote":
                remote.write(small, work)
            elif format == "onnx":
                onnx_graph.write(small, work)
            else:
                small.save_pretrained(work)
            if is_embedder(small):
                small.pooling.save(work, config.hidden_size)
        held = parity.compare(format, work, model, tokenizer, shape, stored)
        report = ExportReport(
            format=format,
            output_dir=str(target),
            source=str(named or ""),
            architecture=config.architecture,
            subnet=subnet_text(subnet),
            subnet_heads=tuple(shape.heads),
            subnet_neurons=tuple(shape.neurons),
            size=_size(small.config),
            padded=None if padded is None else _size(padded),
            dtype=str(stored).removeprefix("torch."),
            tokenizer=tokenizer is not None,
            padding_side_changed=turned,
            answers="vectors" if is_embedder(model) else "logits",
            parity=held,
            versions=_versions(format),
            files={
                path.relative_to(work).as_posix(): path.stat().st_size
                for path in sorted(work.rglob("*"))
                if path.is_file()
            },
            load=snippet(format, target, tokenizer is not None, is_embedder(model)),
        )
        with writing(target):
            report.write(work)
    return report


def _stored_dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"export: dtype is {dtype!r}; allowed: {', '.join(DTYPES)}; int8 is made at opening")
    return DTYPES[name]


def _check_plain(config: ElasticBertConfig, shape: SubnetShape, pad: bool, others: str) -> None:
    """Raises ``ValueError`` where the format hf cannot hold the sub-network, naming the others, which can."""
    plain.room_for_heads(config, others)
    reason = plain.obstacle(config, shape)
    if reason is None or pad:
        return
    near = plain.nearest_plain(config, shape)
    nearest = f"; the nearest that hf holds as it is: {near}" if near else ""
    raise ValueError(
        f"export: the format hf cannot hold this sub-network: {reason}; formats that can: {others}; or "
        f"hf with --pad, filled up with zero weights (same answers, no faster than the full width){nearest}"
    )


def _write_plain(small: Exported, folder: Path, dtype: torch.dtype) -> ElasticBertConfig:
    """Writes the plain form; returns the sizes it has."""
    form = plain.plain_form(small)
    content = form.config.to_diff_dict() | {"dtype": str(dtype).removeprefix("torch.")}
    content["architectures"] = [plain.class_name(small)]
    files.write_weights(folder, form.tensors, "50GB")
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    return form.sizes


def _size(config: ElasticBertConfig) -> Size:
    tokens = min(COST_TOKENS, config.max_sequence_length)
    cost = subnet_cost(config, seq_length=tokens)
    return Size(tuple(config.layer_heads), tuple(config.layer_neurons), cost.parameters, cost.gflop, tokens)


def _versions(form: str) -> dict[str, str]:
    """Versions of what wrote and opened the export."""
    found: dict[str, Any] = {}
    for name in ("dynabert-kernels", "torch", "transformers", *_PACKAGES[form]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
