"""One stage of DynaBERT's training on Hugging Face's ``Trainer``: padding-free, its sub-networks in one launch.

What is ours: the batches (packed, cut by tokens), the step (teacher once, all sub-networks, gradients summed, one
reduction over processes), the evaluation of every sub-network. What is Trainer's: optimiser, schedule, clipping,
checkpoints, resuming, logging.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from dynabert.configuration.grid import subnet_text
from dynabert.data.examples import MULTI_LABEL, REGRESSION, is_multi_label, label_array
from dynabert.data.tokenisation import Encoded, check_ids
from dynabert.distill.arguments import DistillationArguments
from dynabert.distill.checkpoints import last_checkpoint, write_error
from dynabert.distill.losses import (
    LossSums,
    Network,
    TeacherOutput,
    check_network,
    check_pair,
    is_embedder,
    loss_sums,
    problem_of,
    run_teacher,
    task_sums,
    teacher_shapes,
)
from dynabert.distill.relations import resolved_relation_heads
from dynabert.distill.stages import Stage
from dynabert.distill.step_weights import StepWeights, compact
from dynabert.distill.steps import EncodedRows, Sequences, StepLoader, StepSampler
from dynabert.evaluation import compute_logits, label_targets, score_logits
from dynabert.modeling.files import ELASTIC_FILE
from dynabert.modeling.model import ElasticBertForSequenceClassification, check_classifier
from dynabert.modeling.stacking import Stack, stack
from dynabert_kernels import SubnetShape

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NotFiniteError(ValueError):
    """A loss is NaN or infinite; the message names the sub-network and the step."""


class _StudentStep(nn.Module):
    """A forward and its losses as one module, so that it can run on other parameters than the student's own."""

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.student = student

    def forward(
        self, stacked: Stack, teacher: TeacherOutput | None, targets: Tensor | None, **options: Any
    ) -> LossSums:
        if teacher is not None:
            return loss_sums(self.student, stacked, teacher, targets=targets, **options)
        state = options["dropout_state"]
        x, _ = self.student.encoder.encode(stacked.batch, stacked.plan, state)
        first = x.index_select(0, stacked.batch.cu_seqlens[:-1])
        assert isinstance(self.student, ElasticBertForSequenceClassification)  # checked at construction
        logits = self.student.classify(first, state, stacked.num_groups)
        assert targets is not None  # a stage without a teacher has labels
        return LossSums(None, None, task_sums(self.student, logits, targets, stacked.num_groups))


class _StrategySaves(TrainerCallback):
    """Whether a checkpoint is asked for by ``save_strategy``: it stands before the callbacks that may ask too."""

    asked = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.asked = control.should_save

    on_epoch_end = on_step_end


class DistillationTrainer(Trainer):
    """Trains the sub-networks of one stage together.

    Args:
        model: the student, an ``ElasticBertForSequenceClassification`` or an ``ElasticBertForSentenceEmbedding`` in
            float32 (float64 for checks); trained in place.
        args: see `DistillationArguments`.
        stage: which sub-networks learn, and by which loss; see `Stage`. It decides: what ``args`` say of the recipe is
            for those who make stages from it (``args.make_recipe().stages``), and so is the network's depth rule.
        train_dataset: token ids; labels are used only by a stage that learns from them.
        eval_dataset: labelled token ids for a classifier, or None.
        teacher: the network that is learned from; frozen. None in a stage that learns from labels.
        processing_class: the tokenizer, saved beside each checkpoint.
        metric: name of the score that sub-networks are judged by; None: the task's usual one.
        callbacks: as in ``Trainer``.

    Raises:
        TypeError: another kind of model; data that is not `Encoded`.
        ValueError: a student in half precision, networks that do not belong together, a stage without its teacher or
            its labels, labels of another kind than the network's, sub-networks that do not fit.

    The same seed, data, machine and thread count give the same weights, also when a run was cut and resumed.
    """

    def __init__(
        self,
        model: Network,
        args: DistillationArguments,
        stage: Stage,
        train_dataset: Encoded,
        eval_dataset: Encoded | None = None,
        teacher: Network | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        metric: str | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        check_network("DistillationTrainer", model)
        if teacher is not None:
            check_network("DistillationTrainer: teacher", teacher)
        check_kind(model, stage, eval_dataset)
        for name, data in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if data is not None and not isinstance(data, Encoded):
                raise TypeError(
                    f"DistillationTrainer: {name} must be Encoded (dynabert.data.tokenise); got {type(data).__name__}"
                )
            if data is not None:
                check_ids("DistillationTrainer", data, model.config.vocab_size, model.config.max_sequence_length)
        if model.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"DistillationTrainer: the student is in {model.dtype}; allowed: float32; load it with "
                "dtype=torch.float32 and give bf16=True for half precision"
            )
        if stage.reads_labels and train_dataset.labels is None:
            raise ValueError(
                f"DistillationTrainer: stage {stage.name} learns from labels and {train_dataset.source} has none"
            )
        if not len(train_dataset):
            raise ValueError(f"DistillationTrainer: {train_dataset.source} has no examples; at least one is needed")
        for data in (train_dataset, eval_dataset):
            if is_embedder(model) or data is None or not data.labels:
                continue
            if is_multi_label(data.labels) != (problem_of(model) == MULTI_LABEL):
                raise ValueError(
                    f"DistillationTrainer: the labels of {data.source} are not of the model's kind, "
                    f"{problem_of(model)}; give a model with their problem_type"
                )
        if isinstance(model, ElasticBertForSequenceClassification):
            if stage.reads_labels:
                label_targets(model, train_dataset, "DistillationTrainer")
            if eval_dataset is not None:
                label_targets(model, eval_dataset, "DistillationTrainer")
        if not stage.labels and teacher is None:
            raise ValueError(f"DistillationTrainer: stage {stage.name} distils and has no teacher; give teacher=")
        told = stage.regression_logits or problem_of(model) != REGRESSION
        others = stage.hidden_weight, stage.relation_weight, stage.label_weight, stage.embedding_weight
        if not stage.labels and not any(others) and not told:
            raise ValueError(
                f"DistillationTrainer: stage {stage.name} leaves out a regression's logits and has a hidden_weight of "
                "0 (and a relation_weight and label_weight of 0), so there is nothing to learn; give one of them"
            )
        self.stage, self.metric = stage, metric
        self._shapes = {subnet: model.shape(subnet) for subnet in stage.subnets}
        if teacher is not None:
            relation = stage.relation_weight != 0.0
            check_pair(model, teacher, relation=relation)
            if relation:
                shapes = list(self._shapes.values())
                wanted, _ = teacher_shapes(teacher.config, shapes, stage.teacher_width)
                resolved_relation_heads(stage.relation_heads, model.config.head_dim, (*wanted, *shapes))
        super().__init__(
            model=model,
            args=args,
            train_dataset=EncodedRows(train_dataset),  # type: ignore[arg-type]
            eval_dataset=None if eval_dataset is None else EncodedRows(eval_dataset),  # type: ignore[arg-type]
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.args: DistillationArguments = args
        if args.fp16 and getattr(self.accelerator, "scaler", None) is None:
            raise ValueError(
                "DistillationTrainer: fp16 needs a GPU: without loss scaling small gradients become 0; give bf16 "
                "(--bf16) or neither"
            )
        self._half = next((HALF[name] for name in HALF if getattr(args, name)), None)
        self._step = _StudentStep(model)
        self._weights = StepWeights(self._step, self._half)
        self.teacher: Any = None
        if teacher is not None:
            # The student is its own teacher as it is now: in half precision it would be a copy in any case.
            apart = self._half is None and teacher is not model
            frozen: nn.Module = teacher if apart else copy.deepcopy(teacher)
            self.teacher = nn.Module.to(frozen, device=args.device, dtype=self._half).eval()
        self._in_one_launch = args.resolved_step() == "stacked"
        self._counts = (0, 0)
        self._batch_of_step = 0
        self._scores: dict[str, float] | None = None  # of the network as it is now
        self._losses: dict[str, tuple[Tensor, int]] = {}
        self._saves = _StrategySaves()
        self.callback_handler.callbacks.insert(1, self._saves)  # after transformers' own, which follows the strategy
        self.model_accepts_loss_kwargs = True  # the step is normalised here, over all of it

    # Batches ---------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> StepLoader:
        """Each process's share of each batch, without padding and without repeated examples."""
        args = self.args
        sampler = StepSampler(
            len(self.train_dataset),  # type: ignore[arg-type]
            args.per_device_train_batch_size,
            num_processes=args.world_size,
            process=args.process_index,
            seed=args.seed,
        )
        return StepLoader(self.train_dataset, sampler)  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Sequences], num_batches: int, device: torch.device
    ) -> tuple[list[Sequences], None]:
        """The batches of an optimiser step, and how many sequences and tokens it has in all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        sequences, tokens = sum(map(len, batches)), sum(batch.num_tokens for batch in batches)
        if self.args.world_size > 1:  # alone nothing has to be read back from the device
            counts = torch.tensor([sequences, tokens], device=device)
            dist.all_reduce(counts)
            sequences, tokens = counts.tolist()
        self._counts = (sequences, tokens)
        self._batch_of_step = 0
        return batches, None

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: Trainer's estimate knows no sub-networks."""
        return 0

    def _track_num_input_tokens(self, inputs: Any) -> None:
        if self._batch_of_step == 1:  # the count is of the whole step, which may have several batches
            self.state.num_input_tokens_seen += self._counts[1]

    # The step --------------------------------------------------------------------------------------------------------

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: Sequences, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of all sub-networks on one batch; gradients are added, and reduced with the last."""
        student = self._step.student
        student.train()
        self._scores = None
        subnets = self.stage.chosen(self.state.global_step, self.args.seed)
        shapes = [self._shapes[subnet] for subnet in subnets]
        losses = torch.zeros(len(shapes), dtype=_wide(student.dtype), device=student.device)
        launches = inputs.launches(max(1, self.args.max_launch_tokens // len(shapes)))
        for index, launch in enumerate(launches):
            try:
                losses += self._launch(student, launch, shapes, self._dropout_state(student, index))
            except torch.OutOfMemoryError as error:
                raise torch.OutOfMemoryError(
                    f"stage {self.stage.name}: {student.device} has no memory for a launch of "
                    f"{launch.num_tokens} tokens and {len(shapes)} sub-networks; give a smaller --max_launch_tokens "
                    f"(now {self.args.max_launch_tokens}; the gradients stay the same); {self._kept()}"
                ) from error
        self._batch_of_step += 1
        if self.accelerator.sync_gradients:
            self._reduce_gradients(student)
        if self.args.world_size > 1:
            dist.all_reduce(losses)
        self._record([subnet_text(subnet) for subnet in subnets], losses)
        return losses.sum().float()

    def _launch(
        self,
        student: Network,
        launch: Sequences,
        shapes: Sequence[SubnetShape],
        state: Tensor | None,
    ) -> Tensor:
        """Backward of every sub-network on some sequences; their share of the step's losses, (S,)."""
        types = launch.token_type_ids
        packed, _ = student.pack(launch.input_ids, None if types is None else list(types))
        seqlens = [len(ids) for ids in launch.input_ids]
        stage, output, targets = self.stage, None, None
        wants_hidden, wants_relation = stage.hidden_weight != 0.0, stage.relation_weight != 0.0
        if stage.reads_labels:
            targets = self._targets(student, launch)
        if not stage.labels:
            assert self.teacher is not None  # checked at construction
            output = run_teacher(
                self.teacher,
                packed,
                seqlens,
                shapes,
                stage.teacher_width,
                hidden=wants_hidden,
                relation=wants_relation,
                relation_heads=stage.relation_heads,
            )
        sequences, tokens = self._counts
        runs, rows = [shapes], None
        if not self._in_one_launch:
            runs = [[shape] for shape in shapes]
            packed, rows = compact(packed, student.config.padding_idx)
        weights = self._weights.of_launch(rows)
        found, done = [], 0
        for run in runs:
            options: dict[str, Any] = {"dropout_state": state}
            if output is not None:
                options |= {"first": done, "logits": self._wants_logits(student)}
                options |= {"hidden": wants_hidden, "relation": wants_relation}
                options["embedding"] = stage.embedding_weight != 0.0
            elif state is not None:
                options["dropout_state"] = state + torch.tensor([0, done]).to(state.device)
            given = (stack(packed, seqlens, run), output, targets)
            sums = torch.func.functional_call(self._step, weights, given, options)
            losses = sums.weighted(
                logit_weight=stage.logit_weight,
                hidden_weight=stage.hidden_weight,
                relation_weight=stage.relation_weight,
                label_weight=1.0 if stage.labels else stage.label_weight,
                embedding_weight=stage.embedding_weight,
                num_sequences=sequences,
                hidden_numbers=tokens * student.config.hidden_size,
            )
            self.accelerator.backward(losses.sum())
            found.append(losses.detach())
            done += len(run)
        self._weights.finish()
        return torch.cat(found)

    def _wants_logits(self, student: Network) -> bool:
        if self.stage.logit_weight == 0.0:
            return False
        return problem_of(student) != REGRESSION or self.stage.regression_logits

    def _targets(self, student: Network, launch: Sequences) -> Tensor:
        assert launch.labels is not None  # checked at construction
        found = label_array(launch.labels, problem_of(student), student.config.num_labels or 0)
        return torch.from_numpy(found).to(student.device)

    def _dropout_state(self, student: Network, launch: int) -> Tensor | None:
        """Seed and offset of a launch: they follow from the run's seed and the place in it, so a resumed run draws the
        same. Processes and steps differ in the seed, launches and sub-networks in the offset."""
        config = student.config
        head = student.classifier.dropout.p if isinstance(student, ElasticBertForSequenceClassification) else 0.0
        if not (config.hidden_dropout_prob or config.attention_probs_dropout_prob or head):
            return None
        # The key: run and process in its upper half, the step in its lower one. The counter: 256 batches of a step,
        # 65,536 launches of each, and 256 sub-networks, whose number is added to the offset.
        run = (self.args.seed * 1_000_003 + self.args.process_index) % 2**31
        offset = (self._batch_of_step * 2**16 + launch) * 2**8
        key = run * 2**32 + self.state.global_step
        return torch.tensor([key, offset % 2**32], dtype=torch.int64).to(student.device, non_blocking=True)

    def _reduce_gradients(self, student: nn.Module) -> None:
        """Adds every gradient over the processes, once a step, whichever sub-network made it.

        The losses are shares of the whole step's mean, so the sum is the step's gradient. DistributedDataParallel's own
        hooks see nothing: its forward is not used.
        """
        if self.args.world_size == 1:
            return
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=self.args.device)
        dist.all_reduce(there, op=dist.ReduceOp.MAX)
        reached = [p for p, some in zip(parameters, there.tolist(), strict=True) if some]
        for parameter in reached:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for group in _buckets([p.grad for p in reached]):  # type: ignore[misc]
            flat = torch.cat([gradient.reshape(-1) for gradient in group])
            dist.all_reduce(flat)
            for gradient, summed in zip(group, flat.split([g.numel() for g in group]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def _record(self, names: Sequence[str], losses: Tensor) -> None:
        if losses.device.type == "cpu" or self.state.global_step % max(1, int(self.args.logging_steps)) == 0:
            self._check_losses(dict(zip(names, losses, strict=True)))
        for name, loss in zip(names, losses, strict=True):
            total, count = self._losses.get(name, (torch.zeros_like(loss), 0))
            # A batch's losses are its share of the step's mean: they add up to it, over the batches of a step.
            self._losses[name] = (total + loss, count + (self._batch_of_step == 1))

    def _check_losses(self, losses: dict[str, Tensor]) -> None:
        """Reads them from the device."""
        values = torch.stack(list(losses.values())).tolist() if losses else []
        for name, value in zip(losses, values, strict=True):
            if not math.isfinite(value):
                raise NotFiniteError(
                    f"stage {self.stage.name}: the loss of {name} is {value} at step {self.state.global_step}; "
                    f"lower learning_rate; {self._kept()}"
                )

    def _kept(self) -> str:
        last, _ = last_checkpoint(Path(str(self.args.output_dir)))
        return "no checkpoint of this stage is there yet" if last is None else f"the last good checkpoint is {last}"

    def _check_weights(self) -> None:
        """A gradient may overflow while the losses are finite still."""
        for name, weight in self._step.student.named_parameters():
            if not bool(weight.isfinite().all()):
                raise NotFiniteError(
                    f"stage {self.stage.name}: {name} is not finite after step {self.state.global_step}; lower "
                    f"learning_rate; {self._kept()}"
                )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's own, of a network that is finite; a disk that is full, or a folder that cannot be written, is one
        error that says what is kept."""
        self._check_losses({name: total for name, (total, _) in self._losses.items()})
        self._check_weights()
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise write_error(Path(str(self.args.output_dir)), error) from error

    # The best checkpoint ---------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint that ``save_strategy`` asks for is scored, where there are scores, however often they are asked
        for besides. One that a callback asks for is not: a run that is stopped by the clock and goes on is to end with
        the network of one that was not."""
        asked, state = self.args.eval_strategy, self.state
        if self._saves.asked and asked != "no":
            begun = (state.epoch or 0.0) if asked == "epoch" else state.global_step
            self.control.should_evaluate |= begun >= self.args.eval_delay
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Once for a network, though the end of a step and that of an epoch may both ask for it."""
        if self._scores is None:
            self._scores = super()._evaluate(*args, **kwargs)
        return self._scores

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """The best is one of the checkpoints: a score of a network that is not kept cannot be gone back to."""
        kept = self._saves.asked or self.args.save_strategy in ("best", "no")
        return kept and super()._determine_best_metric(metrics, trial)

    # What is told ----------------------------------------------------------------------------------------------------

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """A checkpoint's upload copies transformers' own files; where heads and neurons once stood lies in another."""
        orders, kept = Path(checkpoint_folder) / ELASTIC_FILE, Path(self.args.output_dir or ".") / ELASTIC_FILE
        if self.is_world_process_zero() and orders.is_file():
            shutil.copy(orders, kept)
        super()._push_from_checkpoint(checkpoint_folder)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each sub-network's mean loss since the last log."""
        if "loss" in logs and self._losses:
            for name, (total, count) in self._losses.items():
                logs[f"loss_{name}"] = float(total) / count
            self._losses = {}
        super().log(logs, start_time)

    def evaluate(  # type: ignore[override]
        self, eval_dataset: Encoded | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores of every sub-network of the stage; ``eval_score`` is their mean. Each process runs its share."""
        rows = self.eval_dataset if eval_dataset is None else EncodedRows(eval_dataset)
        if rows is None:
            raise ValueError("evaluate: no eval_dataset was given")
        self._check_weights()
        student, encoded = self._step.student, rows.encoded  # type: ignore[union-attr]
        check_classifier("evaluate", student)
        assert isinstance(student, ElasticBertForSequenceClassification)
        if self.args.world_size == 1:
            logits = compute_logits(student, encoded, list(self.stage.subnets))
        else:
            logits = self._shared_logits(student, encoded)
        found = score_logits(student, encoded, logits, metric=self.metric)
        metrics = {f"{metric_key_prefix}_{row.subnet}": row.score for row in found}
        metrics[f"{metric_key_prefix}_score"] = sum(row.score for row in found) / len(found)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *_: Any, **__: Any) -> Any:
        """Not here: Trainer's own knows no sub-networks."""
        raise NotImplementedError(
            "DistillationTrainer.predict: a stage has several sub-networks; use dynabert.evaluation.compute_logits for "
            "their logits on token ids, or InferenceEngine for texts"
        )

    def _shared_logits(
        self, student: ElasticBertForSequenceClassification, encoded: Encoded
    ) -> dict[str, npt.NDArray[np.floating]]:
        """`compute_logits`, every process on its share of the examples; all of it in all processes."""
        world, subnets = self.args.world_size, list(self.stage.subnets)
        mine = encoded.select(range(self.args.process_index, len(encoded), world))
        own = compute_logits(student, mine, subnets) if len(mine) else None
        gathered: list[Any] = [None] * world
        dist.all_gather_object(gathered, own)
        whole: dict[str, npt.NDArray[np.floating]] = {}
        for name in map(subnet_text, subnets):
            first = gathered[0][name]  # the first process has an example
            whole[name] = np.empty((len(encoded), first.shape[1]), first.dtype)
            for process, found in enumerate(gathered):
                if found is not None:
                    whole[name][process::world] = found[name]
        return whole


def check_kind(model: Network, stage: Stage, eval_dataset: Encoded | None = None) -> None:
    """``ValueError`` for a loss, or scores, of another kind of network."""
    if not is_embedder(model):
        if stage.embedding_weight != 0.0:
            raise ValueError(
                f"DistillationTrainer: stage {stage.name} has an embedding_weight of {stage.embedding_weight} and the "
                "model is a classifier; allowed: 0; the weight is for an ElasticBertForSentenceEmbedding"
            )
        return
    given = {"logit_weight": stage.logit_weight, "label_weight": stage.label_weight, "labels": stage.labels}
    wrong = [f"{name} {value}" for name, value in given.items() if value]
    if wrong:
        raise ValueError(
            f"DistillationTrainer: stage {stage.name} has {', '.join(wrong)} and the model is a sentence embedder, "
            "which has neither logits nor labels; allowed: hidden_weight, relation_weight and embedding_weight "
            "(--recipe embedding)"
        )
    if eval_dataset is not None:
        raise ValueError(
            "DistillationTrainer: eval_dataset is labelled text and the model is a sentence embedder; allowed: None; "
            "score its vectors with dynabert.similarity.score_similarity"
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _buckets(gradients: Sequence[Tensor], most_numbers: int = 16 * 2**20) -> Iterator[list[Tensor]]:
    """Runs of gradients of one dtype, of about 64 MB in float32."""
    run: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if run and (size + gradient.numel() > most_numbers or gradient.dtype != run[0].dtype):
            yield run
            run, size = [], 0
        run.append(gradient)
        size += gradient.numel()
    if run:
        yield run
