"""What a distillation run is told: transformers' ``TrainingArguments``, and what is DynaBERT's own beside them."""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from dynabert.configuration.grid import parse_subnets, subnet_text
from dynabert.configuration.subnet import DEPTH_RULES
from dynabert.distill.losses import STEPS, TEACHER_WIDTHS
from dynabert.distill.stages import RECIPES, SAMPLING, SECOND_TEACHERS, Recipe, recipe
from dynabert.importance import MODES

_MEMORY = "a lower --max_launch_tokens bounds the memory of a launch, with the same gradients"
_LOADER = "token ids lie in memory, and a batch is a list of them: there is nothing for a process of its own to load"
_SCORES = "sub-networks are scored by the task's own score, from their logits on all of the labelled text"
_GRADIENTS = "gradients are added over the processes once a step, without DistributedDataParallel's forward"
# Options of Trainer that the step here does not follow. Taken in silence they would be believed.
_UNSUPPORTED = {
    "accelerator_config": "batches are made and shared among the processes here",
    "activation_checkpointing": _MEMORY,
    "activation_checkpointing_kwargs": _MEMORY,
    "auto_find_batch_size": "give --per_device_train_batch_size",
    "average_tokens_across_devices": "every mean runs over the whole optimiser step, in all processes",
    "batch_eval_metrics": _SCORES,
    "bf16_full_eval": "the sub-networks are scored in float32",
    "data_seed": "--seed decides the order of the data too",
    "dataloader_drop_last": "the last batch of an epoch is used as it is",
    "dataloader_in_order": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_num_workers": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "ddp_broadcast_buffers": _GRADIENTS,
    "ddp_bucket_cap_mb": _GRADIENTS,
    "ddp_find_unused_parameters": _GRADIENTS,
    "ddp_static_graph": _GRADIENTS,
    "debug": "a loss or a weight that is not finite ends the run, and is named",
    "deepspeed": "start it with torchrun",
    "do_predict": "dynabert predict answers with a sub-network of the finished run",
    "eval_accumulation_steps": _SCORES,
    "eval_do_concat_batches": _SCORES,
    "eval_use_gather_object": _SCORES,
    "fp16_full_eval": "the sub-networks are scored in float32",
    "fsdp": "start it with torchrun",
    "fsdp_config": "start it with torchrun",
    "gradient_checkpointing": _MEMORY,
    "gradient_checkpointing_kwargs": _MEMORY,
    "group_by_length": "nothing is padded here",
    "ignore_data_skip": "a run that was cut goes on with the batch that comes next",
    "include_for_metrics": _SCORES,
    "label_names": "the labels are those of the data set, the column that --label_column names",
    "label_smoothing_factor": "the losses are those of the method",
    "length_column_name": "nothing is padded here",
    "liger_kernel_config": "the layers are fused ops already",
    "load_best_model_at_end": (
        "leave it out: where there is labelled text to score (--validation_file, or a task), each stage ends with its "
        "best checkpoint by --metric_for_best_model in any case; that network is OUTPUT_DIR/STAGE, such as "
        "distilled/depth, and its checkpoint-* folder is kept too"
    ),
    "neftune_noise_alpha": "the embeddings are used as they are",
    "parallelism_config": "start it with torchrun: each process trains on its share of a batch",
    "per_device_eval_batch_size": "texts are scored in batches of a number of tokens",
    "prediction_loss_only": _SCORES,
    "resume_from_checkpoint": "a run goes on by itself from the last checkpoint in --output_dir",
    "torch_compile": "the layers are fused ops already",
    "torch_empty_cache_steps": _MEMORY,
    "train_sampling_strategy": "the order is drawn from --seed",
    "use_cache": "an encoder keeps nothing from token to token",
    "use_liger_kernel": "the layers are fused ops already",
}
# What says the same as the default, though it is not equal to it.
_SAME_AS_DEFAULT: dict[str, Any] = {"label_names": ["labels"]}


USUAL_RATE = 2e-5  # the paper's

# A switch that a recipe may set otherwise: HfArgumentParser lets only those with a default stand alone on the line.
_SWITCH: dict[str, Any] = {"nargs": "?", "const": True}


def _refuse_unsupported(args: TrainingArguments) -> None:
    defaults = {f.name: f.default for f in fields(TrainingArguments)}
    for name, instead in _UNSUPPORTED.items():
        given, usual = getattr(args, name, None), defaults.get(name)
        if name == "accelerator_config":
            given = _accelerator_changes(given)
        off = not given and usual in (None, False, "", MISSING) and name != "data_seed"  # a seed of 0 is one
        same = str(getattr(given, "value", given)) == str(getattr(usual, "value", usual))
        if given is not None and not off and not same and given != _SAME_AS_DEFAULT.get(name):
            raise ValueError(f"--{name} is {given!r}; allowed here: its default; {instead}")


def _check_optimiser(args: TrainingArguments) -> None:
    name = str(getattr(args.optim, "value", args.optim))
    if name.endswith("layerwise") or "lomo" in name:
        raise ValueError(
            f"--optim is {name}; allowed: one that steps once for all weights, such as adamw_torch: a step here adds "
            "the gradients of several backward passes, and this one would step in each of them"
        )


def _accelerator_changes(given: Any) -> Any:
    """What differs from accelerate's own settings of a loader: transformers fills these in where there are none."""
    if isinstance(given, AcceleratorConfig):
        given = given.to_dict()
    if not isinstance(given, dict):
        return given  # a file's name, or None
    usual = AcceleratorConfig().to_dict()
    return {name: value for name, value in given.items() if name not in usual or value != usual[name]}


def _check_numbers(args: TrainingArguments) -> None:
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; allowed: 1 or more")
    if not (math.isfinite(args.learning_rate) and args.learning_rate > 0.0):
        raise ValueError(f"--learning_rate is {args.learning_rate}; allowed: a number above 0")
    if args.max_steps <= 0 and not (math.isfinite(args.num_train_epochs) and args.num_train_epochs > 0.0):
        raise ValueError(
            f"--num_train_epochs is {args.num_train_epochs}; allowed: a number above 0, or --max_steps in its place; "
            "without a step nothing is trained"
        )
    if not (math.isfinite(args.weight_decay) and args.weight_decay >= 0.0):
        raise ValueError(f"--weight_decay is {args.weight_decay}; allowed: 0 or more")
    if args.greater_is_better is False:
        raise ValueError("--greater_is_better is False; allowed: its default; of every score here more is better")
    if not 0 <= args.seed < 2**32:
        raise ValueError(f"--seed is {args.seed}; allowed: 0 to {2**32 - 1}")


def _check_processes(args: TrainingArguments) -> None:
    """Processes that do not know of each other would each train the whole, in one folder."""
    started = os.environ.get("WORLD_SIZE", "1")
    if started != str(args.world_size):
        raise ValueError(
            f"train: WORLD_SIZE is {started} and this process trains as one of {args.world_size} on {args.device}; "
            "allowed: both the same; start it with torchrun or accelerate launch (with --use_cpu True where the "
            "processes are to share the CPU), or unset WORLD_SIZE"
        )


class _NotGiven(int):
    """The 0 of a number that was left open: a copy of the arguments tells it from a 0 that was asked for."""


class _UsualRate(float):
    """The learning rate that was left open: a copy of the arguments tells it from the same one that was asked for."""


@dataclass
class DistillationArguments(TrainingArguments):
    """``TrainingArguments``, names and meanings unchanged, with the paper's defaults, and the switches of DynaBERT.

    ``per_device_train_batch_size`` sequences times processes times ``gradient_accumulation_steps`` make an optimiser
    step, and every mean runs over all of it. What is left at None is the recipe's.
    """

    output_dir: str | None = field(default="distilled", metadata={"help": "folder of checkpoints and results"})
    learning_rate: float | None = field(  # type: ignore[assignment]  # a number once it is made
        default=None,
        metadata={
            "help": "peak learning rate; default: 2e-5, for networks narrower than 512 1e-4, for such sentence "
            "embedders 3e-4"
        },
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "sequences of a process in a step"})
    num_train_epochs: float = field(default=3.0, metadata={"help": "passes over the training data in each stage"})
    warmup_steps: float | None = field(  # type: ignore[assignment]  # a number once it is made
        default=None,
        metadata={"help": "steps in which the rate rises, or below 1 their share; default: 0, for RoBERTa 0.06"},
    )
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled weight decay"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "the summed gradient is clipped to this norm"})
    save_strategy: str = field(default="epoch", metadata={"help": "when a checkpoint is written"})
    save_total_limit: int | None = field(default=2, metadata={"help": "checkpoints kept of a stage"})
    metric_for_best_model: str | None = field(
        default="score",
        metadata={
            "help": "by which the best checkpoint of a stage is chosen; score: the sub-networks' mean (micro F1 where "
            "a text has several labels)"
        },
    )

    logging_steps: float = field(default=50, metadata={"help": "steps between two logs of the sub-networks' losses"})

    recipe: str = field(default="best", metadata={"help": f"one of {', '.join(RECIPES)}; other switches change it"})
    widths: list[float] | None = field(default=None, metadata={"help": "width multipliers"})
    depths: list[float] | None = field(default=None, metadata={"help": "depth multipliers"})
    subnets: str | None = field(
        default=None, metadata={"help": "named sub-networks in place of the grid, such as 'w1,w0.5-l0,2,5'"}
    )
    starting_layers: str | None = field(
        default=None,
        metadata={
            "help": "the teacher's layers that the student starts from, from 0, such as '0,2,4'; depths are parts of "
            "these; default: all"
        },
    )
    depth_rule: str | None = field(default=None, metadata={"help": f"one of {', '.join(DEPTH_RULES)}"})
    importance_mode: str | None = field(
        default=None,
        metadata={"help": f"one of {', '.join(MODES)}; per_batch depends on --per_device_train_batch_size"},
    )
    teacher_width: str | None = field(
        default=None, metadata={"help": f"of the second stage's teacher: {' or '.join(TEACHER_WIDTHS)}"}
    )
    second_teacher: str | None = field(
        default=None,
        metadata={
            "help": f"of the second stage: {' or '.join(SECOND_TEACHERS)}: what came out of the first stage, or the "
            "first stage's own teacher, which needs --teacher_width full"
        },
    )
    logit_weights: list[float] | None = field(
        default=None, metadata={"help": "of the logits' loss in the first and the second stage"}
    )
    hidden_weights: list[float] | None = field(
        default=None, metadata={"help": "of the hidden states' loss in the first and the second stage"}
    )
    relation_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "of the loss of query, key and value relations in the first and the second stage; default: 0"
        },
    )
    label_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "of the task's own loss on labels in the first and the second stage, beside what is distilled; "
            "default: 0"
        },
    )
    embedding_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "of the loss of a sentence embedder's vectors in the first and the second stage; default: 1 in "
            "--recipe embedding, else 0"
        },
    )
    relation_heads: int | None = field(
        default=None,
        metadata={"help": "heads that the relations are cut into; default: as many as a head has numbers"},
    )
    regression_logits: bool | None = field(
        default=None, metadata={"help": "True or False: distil the logits of a regression too"} | _SWITCH
    )
    sampling: str | None = field(
        default=None, metadata={"help": f"{' or '.join(SAMPLING)}: sub-networks of a step in the second stage"}
    )
    final_stage: bool | None = field(default=None, metadata={"help": "True or False: a last stage on labels"} | _SWITCH)
    distillation: bool = field(
        default=True,
        metadata={"help": "False: the same stages learn from labels, without a teacher: to see what it is worth"},
    )
    step: str | None = field(
        default=None,
        metadata={
            "help": "stacked: a step's sub-networks in one launch; loop: one by one; the same gradients; default: loop "
            "on a CPU (faster there, in less memory), stacked elsewhere"
        },
    )
    max_launch_tokens: int = field(
        default=16384, metadata={"help": "most tokens of a launch, all copies counted; a step with more is cut"}
    )

    def __post_init__(self) -> None:
        # Small networks, and those of RoBERTa's kind, have other defaults: see `pipeline.with_defaults`.
        if self.learning_rate is None:
            self.learning_rate = _UsualRate(USUAL_RATE)
        if self.warmup_steps is None:
            self.warmup_steps = _NotGiven(0)
        _check_numbers(self)
        _check_optimiser(self)
        _refuse_unsupported(self)  # before transformers asks for what would go with them
        if not torch.accelerator.is_available():
            # Said before transformers looks for its device (once, in the next line): without it several processes do
            # not find each other on a CPU, and bf16 is taken for a wish for a GPU.
            self.use_cpu = True
        # transformers derives from it which way is better, so None must not wait until a stage puts the score there.
        self.metric_for_best_model = self.metric_for_best_model or "score"
        super().__post_init__()
        if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            # They follow the score. Left open they would take it for a loss, and a better one for a worse.
            given: Any = self.lr_scheduler_kwargs or {}
            self.lr_scheduler_kwargs = {"mode": "max", **given}
        _check_processes(self)
        _refuse_unsupported(self)  # and what it made of the environment
        # The means of a step are taken over all of it here, so nothing is left to scale; a NaN is never to be hidden.
        self.logging_nan_inf_filter = False
        if self.step is not None and self.step not in STEPS:
            raise ValueError(f"--step is {self.step!r}; allowed: {', '.join(STEPS)}")
        if self.max_launch_tokens < 1:
            raise ValueError(f"--max_launch_tokens is {self.max_launch_tokens}; allowed: 1 or more")
        allowed = {
            "depth_rule": DEPTH_RULES,
            "importance_mode": MODES,
            "teacher_width": TEACHER_WIDTHS,
            "sampling": SAMPLING,
            "second_teacher": SECOND_TEACHERS,
        }
        for name, values in allowed.items():
            given = getattr(self, name)
            if given is not None and given not in values:
                raise ValueError(f"--{name} is {given!r}; allowed: {', '.join(values)}")
        for name in ("logit_weights", "hidden_weights", "relation_weights", "label_weights", "embedding_weights"):
            given = getattr(self, name)
            if given is not None and len(given) != 2:
                raise ValueError(f"--{name} has {len(given)} numbers; allowed: 2, for the first and the second stage")
        made = self.make_recipe()  # names what does not hold, before anything runs
        known = ["score", *dict.fromkeys(subnet_text(subnet) for stage in made.stages for subnet in stage.subnets)]
        if (self.metric_for_best_model or "score").removeprefix("eval_") not in known:
            raise ValueError(
                f"--metric_for_best_model is {self.metric_for_best_model!r}; allowed: score (the sub-networks' mean), "
                f"or one of them: {', '.join(known[1:])}"
            )

    @property
    def warmup_is_given(self) -> bool:
        """Whether somebody asked for ``warmup_steps``; also of copies, by `dataclasses.replace` or `to_dict`."""
        return not isinstance(self.warmup_steps, _NotGiven)

    @property
    def rate_is_given(self) -> bool:
        """Whether somebody asked for ``learning_rate``; also of copies."""
        return not isinstance(self.learning_rate, _UsualRate)

    def to_dict(self) -> dict[str, Any]:
        """As transformers' own; ``warmup_steps`` and ``learning_rate`` are None where they were left open."""
        found: dict[str, Any] = super().to_dict()
        if not self.warmup_is_given:
            found["warmup_steps"] = None
        if not self.rate_is_given:
            found["learning_rate"] = None
        return found

    def resolved_step(self) -> str:
        """``step``, or where it is None what its default is on this device.

        On a CPU one by one is faster, and a sub-network's activations are freed before the next one's are made:
        benchmarks/results/training-step.json. On a GPU one launch for all is there to fill it; that is unmeasured.
        """
        return self.step or ("loop" if self.device.type == "cpu" else "stacked")

    def make_recipe(self) -> Recipe:
        """The recipe with what these arguments change in it. Raises ``ValueError`` for what does not hold."""
        made = recipe(self.recipe)
        changes: dict[str, object] = {}
        for name in (
            "widths",
            "depths",
            "depth_rule",
            "importance_mode",
            "teacher_width",
            "logit_weights",
            "hidden_weights",
            "relation_weights",
            "label_weights",
            "embedding_weights",
            "relation_heads",
            "regression_logits",
            "sampling",
            "second_teacher",
        ):
            given = getattr(self, name)
            if given is not None:
                changes[name] = tuple(given) if isinstance(given, list) else given
        if self.subnets is not None:
            if self.widths is not None or self.depths is not None:
                raise ValueError("--subnets takes the place of --widths and --depths; give one or the other")
            changes["subnets"] = tuple(parse_subnets(self.subnets))
        if self.starting_layers is not None:
            text = self.starting_layers if isinstance(self.starting_layers, str) else ""
            words = [word.strip() for word in text.split(",")]
            if not all(word.isascii() and word.isdigit() for word in words):
                raise ValueError(
                    f"--starting_layers is {self.starting_layers!r}; allowed: numbers of layers, from 0, between "
                    "commas, in one text such as '0,2,4'"
                )
            changes["starting_layers"] = tuple(map(int, words))
        if self.final_stage is not None:
            changes["final"] = self.final_stage
        changes["distillation"] = self.distillation
        return replace(made, **changes)  # type: ignore[arg-type]
