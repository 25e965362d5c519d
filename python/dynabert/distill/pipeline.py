"""From a plain checkpoint to an elastic one: teacher, importance and rewiring, and the stages, each done once.

A classifier is fine-tuned first. A sentence embedder is its own teacher as it comes, and needs no labels.

Every part leaves a folder with its network and a `complete.json`. A run that was cut goes on from its last checkpoint;
a part that is complete is not repeated; other settings in the same folder are refused.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from dynabert.configuration import ElasticBertConfig, SubnetConfig
from dynabert.configuration.grid import subnet_text
from dynabert.configuration.subnet import depth_told, subnet_shape
from dynabert.cost import subnet_cost
from dynabert.data.tokenisation import Encoded, check_ids, with_length
from dynabert.distill.arguments import USUAL_RATE, DistillationArguments
from dynabert.distill.card import versions, write_card
from dynabert.distill.checkpoints import bring_best_here, last_checkpoint, room_warning, write_error
from dynabert.distill.losses import STEPS, Network, check_network, is_embedder, teacher_shapes
from dynabert.distill.progress import StageClock, StageProgress, told
from dynabert.distill.relations import resolved_relation_heads
from dynabert.distill.run_lock import run_lock
from dynabert.distill.run_settings import SETTINGS, begun_with, check_settings, read_json, write_json
from dynabert.distill.stages import Recipe, Stage
from dynabert.distill.taken_parts import COMPLETE, check_sources, take_parts
from dynabert.distill.trainer import DistillationTrainer, check_kind
from dynabert.evaluation import EvaluationRow, evaluate, label_targets
from dynabert.finetuning import labelled_batches, packed_batches
from dynabert.importance import compute_importance
from dynabert.modeling import ElasticBertForSentenceEmbedding, ElasticBertForSequenceClassification
from dynabert.rewiring import rewire
from dynabert.similarity import SimilaritySet, compute_vectors, score_similarity
from dynabert_kernels import SubnetShape

if TYPE_CHECKING:
    from collections.abc import Sequence

ROBERTA_WARMUP = 0.06  # of a stage's steps
SMALL_HIDDEN, SMALL_RATE = 512, 1e-4  # a network narrower than this learns at this rate
SMALL_EMBEDDER_RATE = 3e-4  # and a sentence embedder at this one
IMPORTANCE_TEXTS = 8192  # of a sentence embedder, evenly taken: millions of texts would say no more
RESULTS = "results.json"
SECONDS = "seconds.json"


@dataclass(frozen=True)
class StageResult:
    """A finished part: the folder of its network, scores of its sub-networks (empty without labelled data), seconds
    (where it was cut, of all its runs, with the steps that were done again), and Trainer's log."""

    name: str
    folder: Path
    rows: tuple[EvaluationRow, ...]
    seconds: float
    history: tuple[dict[str, Any], ...] = ()


def starting_shape(config: ElasticBertConfig, recipe: Recipe) -> SubnetShape:
    """What the student of the first stage is of the network that is distilled: ``recipe.starting_layers``, or all.

    Raises ``ValueError`` for a layer that the network has not.
    """
    layers = recipe.starting_layers
    if layers is None:
        return config.shape()
    if layers[-1] >= config.num_hidden_layers:
        raise ValueError(
            f"starting_layers are {list(layers)} and the network has {config.num_hidden_layers} layers; allowed: 0 to "
            f"{config.num_hidden_layers - 1}"
        )
    kept = range(config.num_hidden_layers)
    return SubnetShape(
        tuple(config.layer_heads[i] if i in layers else 0 for i in kept),
        tuple(config.layer_neurons[i] if i in layers else 0 for i in kept),
    )


def student_config(config: ElasticBertConfig, recipe: Recipe) -> ElasticBertConfig:
    """The configuration of the network that the stages train, which sub-networks are parts of."""
    return config if recipe.starting_layers is None else config.cut(starting_shape(config, recipe))


def stage_costs(model: Network, recipe: Recipe) -> list[dict[str, Any]]:
    """For each stage: its sub-networks with parameters and GFLOP (one text of 128 tokens), and what a step costs in
    forward passes of the full network."""
    length = min(128, model.config.max_sequence_length)
    full = subnet_cost(model.config, None, seq_length=length).gflop
    student, teacher = student_config(model.config, recipe), model.config
    found = []
    for stage in recipe.stages:
        costs = [subnet_cost(student, subnet, seq_length=length) for subnet in stage.subnets]
        widths = [1.0]
        if stage.teacher_width == "same":
            widths = sorted({subnet.width_mult for subnet in stage.subnets if subnet.heads is None}, reverse=True)
        teachers = [subnet_cost(teacher, SubnetConfig(w), seq_length=length).gflop / full for w in widths]
        if recipe.second_teacher == "width":
            teacher = student
        found.append(
            {
                "stage": stage.name,
                "subnets": [
                    {"subnet": subnet_text(s), "parameters": c.parameters, "gflop": c.gflop}
                    for s, c in zip(stage.subnets, costs, strict=True)
                ],
                "forward_passes": stage.forward_passes([c.gflop / full for c in costs], teachers),
            }
        )
    return found


def check_recipe(model: Network, recipe: Recipe) -> None:
    """``ValueError`` for a sub-network that the model has not, or that a stage's teacher cannot be for: before
    anything is trained, though it would fail in the second stage only."""
    student, teacher = student_config(model.config, recipe), model.config
    for stage in recipe.stages:
        check_kind(model, stage)
        shapes = [student.shape(subnet) for subnet in stage.subnets]
        if not stage.labels:
            wanted, _ = teacher_shapes(teacher, shapes, stage.teacher_width)
            if recipe.second_teacher == "width":
                teacher = student  # each later stage learns from what came out of the one before
            if stage.relation_weight != 0.0:
                resolved_relation_heads(stage.relation_heads, model.config.head_dim, (*wanted, *shapes))


def told_parts(config: ElasticBertConfig, recipe: Recipe) -> list[str]:
    """In words, of the network that is trained: depths that are no whole number of layers, and sub-networks that are
    one and the same though they have two names."""
    subnets = list(dict.fromkeys(subnet for stage in recipe.stages for subnet in stage.subnets))
    depths = dict.fromkeys(subnet.depth_mult for subnet in subnets)
    lines = [depth_told(config.num_hidden_layers, depth, recipe.depth_rule) for depth in depths]
    named: dict[SubnetShape, list[str]] = {}
    for subnet in subnets:
        shape = subnet_shape(subnet, config.layer_heads, config.layer_neurons, recipe.depth_rule)
        named.setdefault(shape, []).append(subnet_text(subnet))
    for names in named.values():
        if len(names) > 1:
            lines.append(
                f"{' and '.join(names)} are the same part of this network, which is trained under each name; leave all "
                "but one out (--depths, --subnets)"
            )
    return [line for line in lines if line is not None]


def with_defaults(
    args: DistillationArguments,
    model: Network,
    begun: dict[str, Any],
    say: Callable[[str], None],
) -> DistillationArguments:
    """The arguments with what was left open: as the folder was ``begun``, whose defaults may have been others, else by
    device and network."""
    args = copy.copy(args)
    if args.step is None:
        step = args.resolved_step()
        args.step = begun["step"] if begun.get("step") in STEPS else step
        if args.step != step:
            say(f"--step {args.step}, as this folder was begun; the default is {step} here")
    if not args.rate_is_given:
        small_rate = SMALL_EMBEDDER_RATE if is_embedder(model) else SMALL_RATE
        usual_rate = small_rate if model.config.hidden_size < SMALL_HIDDEN else USUAL_RATE
        args.learning_rate = begun.get("learning_rate", usual_rate)
        if args.learning_rate != usual_rate:
            say(f"--learning_rate {args.learning_rate:g}, as this folder was begun; the default is {usual_rate:g} here")
        elif usual_rate == small_rate:
            kind = "sentence embedders" if is_embedder(model) else "networks"
            say(f"--learning_rate {usual_rate:g}: the default of {kind} narrower than {SMALL_HIDDEN}")
    if not args.warmup_is_given:
        usual = ROBERTA_WARMUP if model.config.architecture == "roberta" else 0
        args.warmup_steps = begun.get("warmup_steps", usual)
        if args.warmup_steps:
            say(f"--warmup_steps {args.warmup_steps:g}: the rate rises in this share of a stage's steps (RoBERTa)")
        elif usual:
            say("--warmup_steps 0, as this folder was begun; the default for RoBERTa is now 0.06")
    return args


def train_elastic(
    model: Network,
    args: DistillationArguments,
    train: Encoded,
    validation: Encoded | SimilaritySet | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    fine_tuned: bool = False,
    unlabelled: Encoded | None = None,
    rewiring: bool = True,
    metric: str | None = None,
    parts_of: Sequence[str | Path] = (),
    say: Callable[[str], None] = print,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[StageResult]:
    """Trains an elastic network in ``args.output_dir``: every part that is not there yet.

    Args:
        model: the network to start from; the teacher, once it is fine-tuned.
        args: see `DistillationArguments`; ``num_train_epochs`` and ``max_steps`` hold for each stage.
        train: labelled token ids: the teacher learns from the labels, and importance is taken on them. For a sentence
            embedder token ids, whose labels are not looked at.
        validation: labelled token ids that every sub-network is scored on, or None. For a sentence embedder a
            `dynabert.similarity.SimilaritySet`; its stages end with their last checkpoint.
        tokenizer: saved beside each network, with the length of the training's texts (``train.max_length``) as its
            ``model_max_length``, which is what `dynabert.InferenceEngine` and the commands then allow by default.
        fine_tuned: True: ``model`` is the teacher as it is. A sentence embedder always is.
        unlabelled: token ids for the distillation stages in place of ``train`` (augmented or unlabelled text).
        rewiring: False leaves heads and neurons in their order: for comparison.
        metric: name of the score; None: the task's usual one.
        parts_of: folders of other runs. A part that one of them has complete is taken over where all that decides it
            is the same there; `dynabert.distill.taken_parts` says what does. A part that was begun here is not.
        say: takes a line for people.
        callbacks: of each stage's trainer, beside its own. One that raises stops the run, which goes on from its last
            checkpoint when it is called again.

    Returns:
        The parts in order: teacher, rewired, then each stage. The last one's folder holds the elastic network and its
        model card (a README.md that is there stays); beside it, `results.json` has all rows.

    Raises:
        TypeError: another kind of model; data that is not `Encoded`.
        ValueError: another run works in the folder; settings other than those that it was begun with, naming the
            differences; a folder of ``parts_of`` without a run; a loss that is not finite; data without labels or with
            others than the network's; a frozen parameter; what the trainer refuses.
    """
    check_network("train_elastic", model)
    fine_tuned = fine_tuned or is_embedder(model)
    if not isinstance(args, DistillationArguments):
        raise TypeError(f"train_elastic: args must be DistillationArguments; got {type(args).__name__}")
    pairs = validation if isinstance(validation, SimilaritySet) else None
    if validation is not None and is_embedder(model) != (pairs is not None):
        wanted = "a SimilaritySet (dynabert.similarity)" if is_embedder(model) else "Encoded (dynabert.data.tokenise)"
        raise TypeError(
            f"train_elastic: validation is {type(validation).__name__} and the model {type(model).__name__}; allowed: "
            f"{wanted}, or None"
        )
    scored = pairs.texts if pairs is not None else validation
    for name, data in (("train", train), ("validation", scored), ("unlabelled", unlabelled)):
        if data is not None and not isinstance(data, Encoded):
            raise TypeError(
                f"train_elastic: {name} must be Encoded (dynabert.data.tokenise); got {type(data).__name__}"
            )
        if data is not None:
            check_ids("train_elastic", data, model.config.vocab_size, model.config.max_sequence_length)
    if isinstance(model, ElasticBertForSequenceClassification):
        for labelled in (train, validation):
            if isinstance(labelled, Encoded):
                label_targets(model, labelled, "train_elastic")
    still = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if still and not fine_tuned:
        raise ValueError(
            f"train_elastic: {len(still)} parameters are frozen, such as {still[0]}; allowed: none, for each stage "
            "trains all of the network that it opens; let them go, or train single stages with DistillationTrainer"
        )
    out = Path(str(args.output_dir))
    recipe = args.make_recipe()
    check_recipe(model, recipe)
    if unlabelled is not None and any(stage.label_weight for stage in recipe.stages):
        raise ValueError(
            f"train: label_weights are {list(recipe.label_weights)} and the stages are to distil on "
            f"{unlabelled.source}, which has no labels; leave one out: --label_weights, or --unlabelled_file and "
            "--augment"
        )
    if not isinstance(validation, Encoded) and args.save_strategy == "best":
        instead = "" if is_embedder(model) else "; or give --validation_file"
        raise ValueError(
            "train: --save_strategy is best and there is no labelled text to score, so no checkpoint would ever be "
            f"written; allowed: epoch, steps or no{instead}"
        )
    for line in told_parts(student_config(model.config, recipe), recipe):
        say(line)
    args = with_defaults(args, model, begun_with(out).get("arguments", {}), say)
    if tokenizer is not None:
        tokenizer = with_length(tokenizer, train.max_length)
    with run_lock(out, args.should_save):
        return _train_parts(
            model,
            args,
            recipe,
            train,
            validation,
            unlabelled,
            tokenizer,
            fine_tuned,
            rewiring,
            metric,
            parts_of,
            say,
            callbacks,
        )


def _train_parts(
    model: Network,
    args: DistillationArguments,
    recipe: Recipe,
    train: Encoded,
    validation: Encoded | SimilaritySet | None,
    unlabelled: Encoded | None,
    tokenizer: PreTrainedTokenizerBase | None,
    fine_tuned: bool,
    rewiring: bool,
    metric: str | None,
    parts_of: Sequence[str | Path],
    say: Callable[[str], None],
    callbacks: Sequence[TrainerCallback],
) -> list[StageResult]:
    """Every part that is not there yet, in a folder that this run alone works in."""
    out = Path(str(args.output_dir))
    # What is not a training stage is done by the first process; the others wait, and find it done.
    sources = [Path(folder) for folder in parts_of]
    check_sources(sources)
    with args.main_process_first(local=False, desc="settings"):
        wanted = check_settings(out, args, train, validation, unlabelled, fine_tuned, rewiring, model, metric)
        if args.should_save:
            take_parts(out, wanted, ["teacher", "rewired", *(stage.name for stage in recipe.stages)], sources, say)
    model.config.depth_rule = recipe.depth_rule
    base_model = model.config.name_or_path or None
    warning = room_warning(out, model, args.save_total_limit, 2 + len(recipe.stages))
    if warning is not None:
        say(f"warning: {warning}")
    results = []

    teacher_stage = Stage("teacher", (SubnetConfig(),), 0.0, 0.0, labels=True)
    teacher_folder = out / "teacher"
    with args.main_process_first(local=False, desc="teacher"):
        if fine_tuned and not _is_complete(teacher_folder):
            _finish(teacher_folder, model, tokenizer, _scores(model, validation, teacher_stage, metric), 0.0, args)
    results.append(
        run_stage(
            teacher_stage, model, None, args, train, validation, tokenizer, metric, teacher_folder, say, callbacks
        )
    )
    teacher = _open(teacher_folder, model)
    if isinstance(validation, SimilaritySet) and isinstance(teacher, ElasticBertForSentenceEmbedding):
        (whole,) = compute_vectors(teacher, validation.texts, [None]).values()
        validation = replace(validation, whole=whole)  # the teacher's, from here on

    rewired_folder = out / "rewired"
    with args.main_process_first(local=False, desc="rewired"):
        if not _is_complete(rewired_folder):
            begun = time.perf_counter()
            student = copy.deepcopy(teacher)
            if rewiring:
                some = _some(train, IMPORTANCE_TEXTS) if is_embedder(teacher) else train
                told_of = "the training data" if some is train else f"{len(some)} of {len(train)} texts, evenly taken"
                say(f"rewired: importance of heads and neurons on {told_of}")
                size = args.per_device_train_batch_size
                if isinstance(teacher, ElasticBertForSequenceClassification):
                    rows_of = labelled_batches(teacher, some, size)
                else:
                    rows_of = packed_batches(teacher, some, size)
                batches = told(
                    rows_of,
                    -(-len(some) // size),
                    "importance",
                    say,
                    quiet=bool(args.disable_tqdm),
                )
                student = rewire(student, compute_importance(teacher, batches, recipe.importance_mode))
            rows = _scores(_started(student, recipe), validation, recipe.stages[-1], metric)
            _finish(rewired_folder, student, tokenizer, rows, time.perf_counter() - begun, args)
    results.append(_result("rewired", rewired_folder))

    previous = rewired_folder
    for stage in recipe.stages:
        folder = out / stage.name
        # The first stage learns from the fine-tuned network; each later one from what came out of the one before, or
        # from the fine-tuned one too. Both are taken in rewired order, so that a teacher at the student's width is its
        # leading part too. The fine-tuned network keeps all its layers also where the student starts from some.
        from_first = stage.name == "width" or recipe.second_teacher == "fine_tuned"
        guide = None if stage.labels else _open(rewired_folder if from_first else previous, model)
        student = _open(previous, model)
        if previous == rewired_folder:
            student = _started(student, recipe)
        data = train if stage.labels or unlabelled is None else unlabelled
        results.append(
            run_stage(stage, student, guide, args, data, validation, tokenizer, metric, folder, say, callbacks)
        )
        previous = folder
    if args.should_save:
        _write_results(out, results, args)
        settings = read_json(out / SETTINGS, "give another --output_dir")
        found = read_json(out / RESULTS, "delete it")
        write_card(results[-1].folder, settings, found, base_model, embedder=is_embedder(model))
    return results


def run_stage(
    stage: Stage,
    student: Network,
    teacher: Network | None,
    args: DistillationArguments,
    train: Encoded,
    validation: Encoded | SimilaritySet | None,
    tokenizer: PreTrainedTokenizerBase | None,
    metric: str | None,
    folder: Path,
    say: Callable[[str], None],
    callbacks: Sequence[TrainerCallback] = (),
) -> StageResult:
    """One stage in ``folder``: read back where it is complete, gone on with where it was cut, else trained."""
    if _is_complete(folder):
        say(f"{stage.name}: complete, not repeated ({folder})")
        return _result(stage.name, folder)
    clock = StageClock(folder / SECONDS)
    own = copy.copy(args)
    own.output_dir = str(folder)
    labelled = validation if isinstance(validation, Encoded) else None
    if labelled is not None and own.eval_strategy == "no":
        # Scores are what the best checkpoint is chosen by: wherever one is written they are taken.
        own.eval_strategy = "epoch" if own.save_strategy == "best" else own.save_strategy
        own.eval_steps = own.save_steps
    if (own.metric_for_best_model or "score").removeprefix("eval_") not in map(subnet_text, stage.subnets):
        own.metric_for_best_model = "score"  # or a sub-network that only a later stage has
    set_seed(args.seed)
    both = [StageProgress(stage.name), clock, *callbacks]
    trainer = DistillationTrainer(student, own, stage, train, labelled, teacher, tokenizer, metric, callbacks=both)
    for usual in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(usual)  # ours says more
    last, passed_over = last_checkpoint(folder)
    for line in passed_over:
        say(f"{stage.name}: {line}")
    if last is not None:
        say(f"{stage.name}: goes on from {last}")
        with args.main_process_first(local=False, desc="best"):
            if args.should_save:
                bring_best_here(last)
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        if trainer.is_world_process_zero():
            clock.write()
    if trainer.is_world_process_zero():
        best = trainer.state.best_model_checkpoint
        chosen = student if best is None else _open(Path(best), student)
        rows = _scores(chosen, validation, stage, metric)
        _finish(folder, chosen, tokenizer, rows, clock.seconds(), args, trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()
    return _result(stage.name, folder)


def _some(encoded: Encoded, most: int) -> Encoded:
    """At most so many of them, evenly taken; all of them where there are no more."""
    if len(encoded) <= most:
        return encoded
    return encoded.select([place * len(encoded) // most for place in range(most)])


def _scores(
    model: Network, validation: Encoded | SimilaritySet | None, stage: Stage, metric: str | None
) -> list[EvaluationRow]:
    if validation is None:
        return []
    if isinstance(model, ElasticBertForSentenceEmbedding):
        assert isinstance(validation, SimilaritySet)  # checked at the door
        return score_similarity(model, validation, list(stage.subnets))
    assert isinstance(validation, Encoded)
    return evaluate(model, validation, list(stage.subnets), metric=metric)


def _started(model: Network, recipe: Recipe) -> Network:
    """What the first stage trains of the rewired network: all of it, or ``recipe.starting_layers``."""
    return model if recipe.starting_layers is None else model.extract(starting_shape(model.config, recipe))


def _open(folder: Path, like: Network) -> Network:
    """A part's network, of the run's class and dtype: half precision is stored weights alone, and trains in float32."""
    wide = like.dtype if like.dtype == torch.float64 else torch.float32
    return type(like).from_pretrained(folder, dtype=wide)


def _is_complete(folder: Path) -> bool:
    return (folder / COMPLETE).is_file()


def _finish(
    folder: Path,
    model: Network,
    tokenizer: PreTrainedTokenizerBase | None,
    rows: Sequence[EvaluationRow],
    seconds: float,
    args: DistillationArguments,
    history: Sequence[dict[str, Any]] = (),
) -> None:
    """Saves a part; `complete.json` last, so that a part is complete only when all of it is on disk."""
    if not args.should_save:
        return
    try:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise write_error(folder, error) from error
    content = {"rows": [row.to_dict() for row in rows], "seconds": round(seconds, 1), "history": list(history)}
    write_json(folder / COMPLETE, content)


def _result(name: str, folder: Path) -> StageResult:
    content = read_json(folder / COMPLETE, "delete it: the part goes on from its last checkpoint")
    rows = tuple(EvaluationRow(**row) for row in content["rows"])
    return StageResult(name, folder, rows, content["seconds"], tuple(content["history"]))


def _write_results(out: Path, results: Sequence[StageResult], args: DistillationArguments) -> None:
    parts = [{"part": r.name, "seconds": r.seconds, "rows": [row.to_dict() for row in r.rows]} for r in results]
    seconds = round(sum(r.seconds for r in results), 1)
    write_json(out / RESULTS, {"seed": args.seed, "seconds": seconds, "versions": versions(), "parts": parts})
