"""Plain fine-tuning of the full network on labels: AdamW, linear warm-up and decay, nothing else.

The distillation of sub-networks lives elsewhere; this makes the network it starts from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dynabert.data.batching import token_batches
from dynabert.data.examples import MULTI_LABEL, REGRESSION, SINGLE_LABEL, is_multi_label, label_array
from dynabert.data.labels import model_problem
from dynabert.data.tokenisation import Encoded, check_ids

if TYPE_CHECKING:
    from dynabert.modeling import ElasticBertForSequenceClassification, ElasticBertPreTrainedModel


@dataclass(frozen=True)
class FineTuningArguments:
    """How to fine-tune; names and meanings are those of transformers' ``TrainingArguments``.

    Attributes:
        learning_rate: peak learning rate of the encoder.
        head_learning_rate: that of pooler and classifier; None takes ``learning_rate``.
        num_train_epochs: passes over the examples.
        per_device_train_batch_size: examples of an optimiser step (the last step of an epoch may have fewer).
        warmup_ratio: share of the steps in which the rate rises from 0; then it falls to 0 in a straight line.
        weight_decay: decoupled decay of matrices; biases and LayerNorms have none.
        adam_beta1, adam_beta2, adam_epsilon: AdamW's.
        max_grad_norm: the gradient's norm is clipped to this.
        max_batch_tokens: most tokens of a forward pass; a step with more is cut into several, with the same gradient.
        seed: decides the order of the examples and the dropout masks.
    """

    learning_rate: float = 2e-5
    head_learning_rate: float | None = None
    num_train_epochs: int = 3
    per_device_train_batch_size: int = 32
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    max_batch_tokens: int = 8192
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("num_train_epochs", "per_device_train_batch_size", "max_batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"fine_tune: {name} is {getattr(self, name)}; allowed: 1 or more")
        for name in ("learning_rate", "head_learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(f"fine_tune: {name} is {value}; allowed: above 0")
        if not 0.0 <= self.warmup_ratio < 1.0:
            raise ValueError(f"fine_tune: warmup_ratio is {self.warmup_ratio}; allowed: 0 to below 1")
        if self.weight_decay < 0.0:
            raise ValueError(f"fine_tune: weight_decay is {self.weight_decay}; allowed: 0 or more")


@dataclass(frozen=True)
class FineTuningResult:
    """What a run did: the loss of each step, the number of steps, examples seen and seconds taken."""

    losses: tuple[float, ...]
    steps: int
    examples: int
    seconds: float

    @property
    def final_loss(self) -> float:
        """Mean loss of the last tenth of the steps."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(tail) / len(tail)


def fine_tune(
    model: ElasticBertForSequenceClassification,
    encoded: Encoded,
    args: FineTuningArguments | None = None,
    *,
    progress: bool | None = None,
) -> FineTuningResult:
    """Fine-tune the full network in place, and leave it in eval mode.

    Args:
        model: the network, on its device; float32 (half precision has too few bits for these steps).
        encoded: labelled token ids; class labels are indices of the model's outputs.
        args: see `FineTuningArguments`.
        progress: True shows a bar with loss, examples per second and the time left; False none; None where stderr is a
            terminal.

    Returns:
        The record of the run. The same seed, data, machine and thread count give the same weights; the caller's random
        state is not touched.

    Raises:
        ValueError: no labels; labels of another kind than the model's, or that it has no output for; a model in half
            precision; a loss that is not finite.
    """
    args = FineTuningArguments() if args is None else args
    _check_data(model, encoded)
    if model.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"fine_tune: the model is in {model.dtype}; allowed: float32; load it with dtype=torch.float32"
        )
    started = time.perf_counter()
    optimizer = _optimizer(model, args)
    batch_size = args.per_device_train_batch_size
    steps = args.num_train_epochs * -(-len(encoded) // batch_size)
    warmup = int(args.warmup_ratio * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warmup + 1), (steps - step) / max(1, steps - warmup))
    )
    losses: list[float] = []
    generators = [model.device] if model.device.type != "cpu" else []
    seen = 0
    optimizer.zero_grad(set_to_none=True)  # a gradient that was left behind is no part of the first step
    model.train()
    try:
        with (
            torch.random.fork_rng(devices=generators, device_type=model.device.type if generators else "cuda"),
            tqdm(
                total=args.num_train_epochs * len(encoded),
                unit=" examples",
                desc="fine-tune",
                disable=None if progress is None else not progress,
            ) as bar,
        ):
            torch.manual_seed(args.seed)
            for chosen in _epochs(len(encoded), batch_size, args.num_train_epochs, args.seed):
                loss = _step(model, encoded, chosen, args.max_batch_tokens)
                value = float(loss)
                if value != value or value in (float("inf"), float("-inf")):
                    raise ValueError(f"fine_tune: the loss is {value} at step {len(losses)}; lower learning_rate")
                nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
                losses.append(value)
                seen += len(chosen)
                bar.set_postfix(loss=f"{value:.3f}", refresh=False)
                bar.update(len(chosen))
    finally:
        model.eval()
    return FineTuningResult(tuple(losses), len(losses), seen, time.perf_counter() - started)


def labelled_batches(
    model: ElasticBertForSequenceClassification, encoded: Encoded, batch_size: int = 32
) -> Iterator[dict[str, Any]]:
    """Packed batches with labels, in the set's own order: what `dynabert.compute_importance` takes.

    Args:
        model: the network that the batches are for.
        encoded: labelled token ids; class labels are indices of the model's outputs.
        batch_size: examples of a batch (the last may have fewer).

    Yields:
        ``{"batch": PackedBatch, "plan": Plan, "labels": (B,) tensor}`` for the full network, on the model's device; the
        labels of a multi-label set are (B, labels) zeros and ones.

    Raises:
        ValueError: no labels; labels that do not fit the model's outputs; a ``batch_size`` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"labelled_batches: batch_size is {batch_size}; allowed: 1 or more")
    _check_data(model, encoded)
    for start in range(0, len(encoded), batch_size):
        run = range(start, min(start + batch_size, len(encoded)))
        batch, plan = model.pack(*encoded.rows(run))
        yield {"batch": batch, "plan": plan, "labels": _targets(model, encoded, run)}


def packed_batches(
    model: ElasticBertPreTrainedModel, encoded: Encoded, batch_size: int = 32
) -> Iterator[dict[str, Any]]:
    """As `labelled_batches`, without labels: what `dynabert.compute_importance` takes for a sentence embedder.

    Yields:
        ``{"batch": PackedBatch, "plan": Plan}`` for the full network, on the model's device.

    Raises:
        ValueError: ids that the model does not take; a ``batch_size`` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"packed_batches: batch_size is {batch_size}; allowed: 1 or more")
    check_ids("packed_batches", encoded, model.config.vocab_size, model.config.max_sequence_length)
    for start in range(0, len(encoded), batch_size):
        batch, plan = model.pack(*encoded.rows(range(start, min(start + batch_size, len(encoded)))))
        yield {"batch": batch, "plan": plan}


def _check_data(model: ElasticBertForSequenceClassification, encoded: Encoded) -> None:
    """``ValueError`` for ids that the model does not take, and for labels that are not there, or not of its kind and
    number."""
    check_ids("fine_tune", encoded, model.config.vocab_size, model.config.max_sequence_length)
    if encoded.labels is None:
        raise ValueError(f"{encoded.source} has no labels; name the label column")
    outputs, problem, many = model.config.num_labels, model_problem(model.config), is_multi_label(encoded.labels)
    if many != (problem == MULTI_LABEL):
        raise ValueError(
            f"fine_tune: {encoded.source} has {'a set of labels' if many else 'one label'} for each text and the model "
            f"is for {problem}; give it the data's problem_type"
        )
    if not encoded.label_names and not many:
        if outputs != 1:
            raise ValueError(
                f"fine_tune: {encoded.source} is a regression and the model has {outputs} outputs; give it 1"
            )
        return
    least = 1 if many else 2
    if outputs != len(encoded.label_names) or outputs < least:
        raise ValueError(
            f"fine_tune: {encoded.source} has {len(encoded.label_names)} classes and the model {outputs} outputs; "
            f"both must be the same, and {least} or more"
        )


def _targets(model: ElasticBertForSequenceClassification, encoded: Encoded, indices: Sequence[int]) -> Tensor:
    """Labels of some examples on the model's device: (N,) int64 classes; (N,) float32 values of a regression; (N,
    labels) float32 zeros and ones."""
    assert encoded.labels is not None  # checked before
    many = is_multi_label(encoded.labels)
    kind = MULTI_LABEL if many else SINGLE_LABEL if encoded.label_names else REGRESSION
    chosen = [encoded.labels[i] for i in indices]
    return torch.from_numpy(label_array(chosen, kind, model.config.num_labels or 0)).to(model.device)


def _optimizer(model: ElasticBertForSequenceClassification, args: FineTuningArguments) -> torch.optim.AdamW:
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = "classifier" in name or "pooler" in name
            # Biases and LayerNorms are one number per feature, or one per head, 3 and head feature (the packed bias).
            decayed = parameter.dim() > 1 and not name.endswith("bias")
            groups.setdefault((head, decayed), []).append(parameter)
    head_rate = args.learning_rate if args.head_learning_rate is None else args.head_learning_rate
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": head_rate if head else args.learning_rate,
                "weight_decay": args.weight_decay if decayed else 0.0,
            }
            for (head, decayed), parameters in groups.items()
        ],
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )


def _epochs(count: int, batch_size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """The examples of each step, freshly shuffled in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, batch_size):
            yield order[start : start + batch_size]


def _step(model: ElasticBertForSequenceClassification, encoded: Encoded, chosen: list[int], max_tokens: int) -> Tensor:
    """Forward and backward of one optimiser step; the mean loss over its examples."""
    total = torch.zeros((), device=model.device)
    for run in token_batches([len(encoded.input_ids[i]) for i in chosen], max_tokens, order=range(len(chosen))):
        part = [chosen[i] for i in run]
        batch, plan = model.pack(*encoded.rows(part))
        loss = model(batch=batch, plan=plan, labels=_targets(model, encoded, part)).loss
        # Weighted by examples, so that a step cut into parts has the gradient of the whole.
        loss = loss * (len(part) / len(chosen))
        loss.backward()
        total += loss.detach()
    return total
