"""The task loss of a sequence classifier: what the labels must look like, and what is computed from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynabert.configuration.elastic import PROBLEM_TYPES, ElasticBertConfig

IGNORED_LABEL = -100
_INTEGERS = (torch.int64, torch.int32)


def problem_type(config: ElasticBertConfig, labels: Tensor) -> str:
    """``config.problem_type``; where that is None, transformers' rule: one label is regression, integer labels are
    classes, the rest is multi-label. Unlike there, the configuration is not changed. ``ValueError`` for another one:
    it may have been set since the model was made."""
    if config.problem_type is not None:
        if config.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"problem_type is {config.problem_type!r}; allowed: None, {', '.join(map(repr, PROBLEM_TYPES))}"
            )
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return "single_label_classification" if labels.dtype in _INTEGERS else "multi_label_classification"


def check_labels(config: ElasticBertConfig, labels: Tensor, num_sequences: int, device: torch.device) -> str:
    """The problem type, after checking type, device, dtype and shape of the labels; reads no value.

    Raises ``TypeError`` for a wrong type or dtype, ``ValueError`` for a wrong shape or device.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor; got {type(labels).__name__}")
    if labels.device != device:
        raise ValueError(f"labels are on {labels.device}, the model on {device}; put both on one")
    kind = problem_type(config, labels)
    count = config.num_labels or 0
    if kind == "single_label_classification":
        if labels.dtype not in _INTEGERS:
            raise TypeError(f"labels are {labels.dtype}; allowed for {kind}: torch.int64 or torch.int32")
        if labels.shape not in ((num_sequences,), (num_sequences, 1)):
            raise ValueError(f"labels have shape {tuple(labels.shape)}; allowed for {kind}: ({num_sequences},)")
        return kind
    if not labels.dtype.is_floating_point:
        raise TypeError(f"labels are {labels.dtype}; allowed for {kind}: floating point; use labels.float()")
    shapes: set[tuple[int, ...]] = {(num_sequences, count)}
    if kind == "regression" and count == 1:
        shapes.add((num_sequences,))
    if tuple(labels.shape) not in shapes:
        allowed = " or ".join(map(str, sorted(shapes)))
        raise ValueError(f"labels have shape {tuple(labels.shape)}; allowed for {kind}: {allowed}")
    return kind


def classification_loss(config: ElasticBertConfig, kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The mean loss, in float32 (float64 for float64 logits): cross-entropy, mean squared error, or binary
    cross-entropy. Classes labelled -100 do not count."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    if kind == "single_label_classification":
        return F.cross_entropy(scores, labels.view(-1).long(), ignore_index=IGNORED_LABEL)
    targets = labels.to(scores.dtype).view_as(scores)
    if kind == "regression":
        return F.mse_loss(scores, targets)
    return F.binary_cross_entropy_with_logits(scores, targets)
