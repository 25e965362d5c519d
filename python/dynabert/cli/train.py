"""``dynabert train``: from a plain checkpoint to an elastic one: fine-tune, rewire, distil."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynabert.cli.option_files import read_options
from dynabert.cli.options import PROBLEMS, UsageError, add_command, encode
from dynabert.cli.output import percent, print_table, say

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from dynabert.configuration import ElasticBertConfig
    from dynabert.data import Encoded, Examples
    from dynabert.distill import DistillationArguments
    from dynabert.distill.pipeline import StageResult
    from dynabert.modeling import ElasticBertForSequenceClassification

DESCRIPTION = (
    "Train an elastic checkpoint: fine-tune the network (the teacher), sort its heads and neurons by importance, then "
    "distil it into all its sub-networks, in DynaBERT's stages. With --recipe embedding the network is a sentence "
    "embedder, which needs text without labels. A run that was cut goes on where it was. Options may "
    "also stand in one .json or .yaml file, given alone."
)


def add_parser(commands: Any) -> None:
    """Add the subcommand. Its options need transformers, so they are read by `run_arguments` and not here."""
    add_command(commands, "train", run, "train an elastic checkpoint by distillation", DESCRIPTION)


MOST_CLASSES = 20  # that are named


@dataclass
class InputArguments:
    """The network to start from, and the text to train on."""

    model_name_or_path: str = field(metadata={"help": "folder or hub id of the network to start from"})
    fine_tuned: bool = field(
        default=False, metadata={"help": "it is fine-tuned already: take it as the teacher as it is"}
    )
    task_name: str | None = field(
        default=None, metadata={"help": "sst2, cola, mrpc, rte, stsb, qnli, qqp, wnli, mnli or drugreview"}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "folder of GLUE .tsv files; without it GLUE is read from the hub"}
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "your own labelled .tsv, .csv, .jsonl (each also .gz) or .parquet; a list of labels in each row: "
            "several labels of a text"
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "your own labelled file that sub-networks are scored on"}
    )
    unlabelled_file: str | None = field(
        default=None,
        metadata={"help": "text that the distillation stages use in place of the training text"},
    )
    augment: list[str] | None = field(
        default=None,
        metadata={
            "help": "altered copies of the training text for the distillation stages: 'neighbours FILE' (a table of "
            "words and their neighbours), 'masked_lm [MODEL]' (without MODEL the network to start from, where it has "
            "a masked-LM head), or 'masked_lm [MODEL] neighbours FILE' (neighbours for words of several pieces)"
        },
    )
    augment_probability: float = field(default=0.4, metadata={"help": "p: how often a word is replaced"})
    augment_candidates: int = field(default=15, metadata={"help": "M: words that a replacement is drawn from"})
    augment_copies: int | None = field(
        default=None,
        metadata={
            "help": "N: copies drawn of each example; default: 10 for mnli and qqp, 20 for sst2 and qnli, else 30"
        },
    )
    text_column: str | None = field(default=None, metadata={"help": "name of the text's column in your own files"})
    second_text_column: str | None = field(default=None, metadata={"help": "name of the second text's column"})
    label_column: str | None = field(default=None, metadata={"help": "name of the label's column"})
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": f"kind of your file's labels: {', '.join(PROBLEMS)}; default: what they look like, which is printed"
        },
    )
    bad_rows: str = field(
        default="error", metadata={"help": "what to do with rows that do not fit: error, or skip, which counts them"}
    )
    max_seq_length: int = field(default=128, metadata={"help": "longer texts are cut; how many is printed"})
    label_separator: str | None = field(
        default=None,
        metadata={
            "help": "several labels of a text: what lies between them in the label's column of a .tsv or .csv, such as "
            "'|'; lists in a .jsonl or .parquet file need none"
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "use only the first so many examples"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "score only on the first so many examples"})
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "where token ids and augmented text are kept; default: $DYNABERT_CACHE, else ~/.cache/dynabert"
        },
    )
    overwrite_cache: bool = field(
        default=False, metadata={"help": "make anew, and replace, what is kept in --cache_dir"}
    )
    no_rewiring: bool = field(
        default=False, metadata={"help": "leave heads and neurons in their order: to see what rewiring is worth"}
    )
    parts_of: list[str] | None = field(
        default=None,
        metadata={
            "help": "folders of other runs: their finished parts are taken over where all that decides them is the "
            "same, so that runs that differ late share their beginning"
        },
    )
    traceback: bool = field(default=False, metadata={"help": "show where an error came from"})


def parse(argv: Sequence[str]) -> tuple[InputArguments, DistillationArguments]:
    """The options as data: from the command line, or from one .json or .yaml file."""
    from transformers import HfArgumentParser

    from dynabert.distill import DistillationArguments

    parser = HfArgumentParser(
        (InputArguments, DistillationArguments),  # type: ignore[arg-type]
        prog="dynabert train",
        description=DESCRIPTION,
        allow_abbrev=False,  # a mistyped option is not a short form of another
    )
    if argv and argv[0].endswith((".json", ".yaml", ".yml")):
        if len(argv) > 1:
            raise UsageError(f"{argv[0]} is given beside other options; a file of options stands alone")
        if not Path(argv[0]).is_file():
            raise UsageError(f"no such file: {argv[0]}")
        given = read_options(Path(argv[0]), (InputArguments, DistillationArguments))
        return parser.parse_dict(given)  # type: ignore[return-value]
    inputs, args, unknown = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)}")
    return inputs, args  # type: ignore[return-value]


def run_arguments(argv: Sequence[str], callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Do what the options say; ``callbacks`` as in `dynabert.distill.pipeline.train_elastic`."""
    from dynabert.cli.train_embedding import RECIPE, train_embedder

    inputs, args = parse(argv)
    if args.recipe == RECIPE:
        train_embedder(inputs, args, callbacks)
        return
    _train(inputs, args, callbacks)


def run(args: argparse.Namespace) -> None:
    """Without options there is nothing to train on."""
    raise UsageError("--model_name_or_path, and --task_name or --train_file, are needed")


def read_inputs(inputs: InputArguments) -> tuple[Examples, Examples | None, Examples | None]:
    """Training, validation and unlabelled text."""
    from dynabert.data import load_task, read_examples
    from dynabert.data.rows import listed

    if (inputs.task_name is None) == (inputs.train_file is None):
        raise UsageError("give either --task_name or --train_file")
    if inputs.bad_rows not in ("error", "skip"):
        raise UsageError(f"--bad_rows is {inputs.bad_rows!r}; allowed: error, skip")
    if inputs.problem_type is not None and inputs.problem_type not in PROBLEMS:
        raise UsageError(f"--problem_type is {inputs.problem_type!r}; allowed: {', '.join(PROBLEMS)}")
    bad_rows: Any = inputs.bad_rows
    columns: dict[str, Any] = {
        "text_column": inputs.text_column,
        "second_text_column": inputs.second_text_column,
        "label_column": inputs.label_column,
    }
    validation = None
    if inputs.task_name is not None:
        if inputs.validation_file is not None or any(columns.values()):
            raise UsageError("--validation_file and column names belong to --train_file; a task knows its own")
        if inputs.label_separator is not None:
            raise UsageError("--label_separator belongs to --train_file; a task has one label for each text")
        if inputs.problem_type is not None:
            raise UsageError("--problem_type belongs to --train_file; a task knows its own")
        train = load_task(inputs.task_name, "train", data_dir=inputs.data_dir, bad_rows=bad_rows)
        validation = load_task(inputs.task_name, "validation", data_dir=inputs.data_dir, bad_rows=bad_rows)
    else:
        if inputs.data_dir is not None:
            raise UsageError("--data_dir belongs to --task_name; with --train_file leave it out")
        columns |= {"label_separator": inputs.label_separator, "bad_rows": bad_rows}
        if inputs.problem_type is not None:
            columns["problem"] = PROBLEMS[inputs.problem_type]
        train = read_examples(str(inputs.train_file), **columns)
        check_classes(train)
        if inputs.validation_file is not None:
            # The training text says what the labels are: a class may be missing here, or every score be whole.
            columns["label_names"] = train.label_names or None
            columns["problem"] = PROBLEMS[str(train.problem_type)]
            validation = read_examples(inputs.validation_file, **columns)
    if train.labels is None:
        raise ValueError(f"{train.source} has no labels; name the label column (--label_column)")
    unlabelled = None
    if inputs.unlabelled_file is not None:
        text: dict[str, Any] = {"text_column": inputs.text_column, "second_text_column": inputs.second_text_column}
        unlabelled = read_examples(inputs.unlabelled_file, **text, bad_rows=bad_rows, need_labels=False)
    for other in (validation, unlabelled):
        if other is not None and (other.seconds is None) != (train.seconds is None):
            kinds = ["single texts" if own.seconds is None else "pairs of texts" for own in (other, train)]
            raise ValueError(
                f"{other.source} has {kinds[0]} ({listed(other.columns)}) and {train.source} {kinds[1]} "
                f"({listed(train.columns)}); allowed: the same in both; name the columns (--text_column, "
                "--second_text_column)"
            )
    if inputs.max_train_samples is not None:
        train = train.head(inputs.max_train_samples)
    if validation is not None and inputs.max_eval_samples is not None:
        validation = validation.head(inputs.max_eval_samples)
    return train, validation, unlabelled


def check_classes(train: Examples) -> None:
    """``ValueError`` where the labels leave nothing to tell apart: a single class, or the same labels on every text."""
    if train.problem_type == "multi_label_classification":
        same: set[Any] = set(train.labels or ())
        if len(same) == 1:
            names = ", ".join(repr(train.label_names[index]) for index in next(iter(same)))
            raise ValueError(
                f"{train.source} has the same labels for every text, {names or 'none'}; at least two texts must "
                "differ; a list holds the names or numbers of a text's labels, not zeros and ones"
            )
    elif len(train.label_names) == 1:
        raise ValueError(f"{train.source} has one class, {train.label_names[0]!r}; at least two are needed")


def open_model(inputs: InputArguments, train: Examples, seed: int) -> ElasticBertForSequenceClassification:
    """The network with a head for the data: its own, or where it has none (or another's) a fresh one by the seed."""
    import torch

    from dynabert.engine import load_model

    labels: dict[str, Any] = {}
    if not inputs.fine_tuned:
        labels = {"num_labels": train.num_labels, "problem_type": train.problem_type}
        if train.label_names:
            labels["id2label"] = dict(enumerate(train.label_names))
            labels["label2id"] = {name: index for index, name in enumerate(train.label_names)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_model(
            inputs.model_name_or_path,
            fresh_head=not inputs.fine_tuned,
            ignore_mismatched_sizes=not inputs.fine_tuned,
            **labels,
        )


def labels_told(inputs: InputArguments, train: Examples) -> str:
    """What the labels are taken for, and how many there are of each: a wrong guess must show before hours of it."""
    kind = train.problem_type
    if kind == "regression":
        values: Any = train.labels
        told = f"{len(values)} numbers from {min(values):g} to {max(values):g}"
        whole = all(value.is_integer() for value in values)
        guessed = whole and inputs.problem_type is None and inputs.task_name is None
        more = "; for classes give --problem_type single_label_classification" if guessed else ""
        return f"{train.source}: regression: {told}{more}"
    counts = list(train.label_counts().items())
    shown = ", ".join(f"{name} {count}" for name, count in counts[:MOST_CLASSES])
    if len(counts) > MOST_CLASSES:
        shown += f" and {len(counts) - MOST_CLASSES} more"
    if kind == "multi_label_classification":
        sizes = [len(own) for own in train.labels or ()]  # type: ignore[arg-type]
        return (
            f"{train.source}: several labels for each text: {train.num_labels} classes, "
            f"{sum(sizes) / len(sizes):.1f} of them a text, {sizes.count(0)} texts without; {kind}: {shown}"
        )
    numbers = all(name.lstrip("+-").isdigit() for name in train.label_names)
    guessed = numbers and inputs.problem_type is None and inputs.task_name is None
    more = "; for numbers give --problem_type regression" if guessed else ""
    return f"{train.source}: {kind}: {train.num_labels} classes: {shown}{more}"


def _unused(examples: Examples) -> str:
    from dynabert.data.rows import listed

    return f"{examples.source}: columns that are not used: {listed(examples.unused)}; used: {listed(examples.columns)}"


def _train(inputs: InputArguments, args: DistillationArguments, callbacks: Sequence[TrainerCallback] = ()) -> None:
    from accelerate import PartialState
    from transformers.utils.logging import disable_progress_bar

    from dynabert.cli.train_augment import augmented, check_options
    from dynabert.data import task_metric, tokenise_once
    from dynabert.distill.pipeline import check_recipe, stage_costs, student_config, train_elastic
    from dynabert.engine import load_tokenizer

    quiet = args.process_index != 0
    disable_progress_bar()  # one for each file that is written; the stages have their own

    def tell(text: str) -> None:
        if not quiet:
            say(text)

    asked = check_options(inputs, args)
    train, validation, unlabelled = read_inputs(inputs)
    tell(labels_told(inputs, train))
    for own in (train, validation, unlabelled):
        if own is not None and own.skipped:
            tell(f"{own.source}: {own.skipped} bad rows left out")
    files = (train, validation, unlabelled) if inputs.task_name is None else (unlabelled,)
    for line in dict.fromkeys(_unused(own) for own in files if own is not None and own.unused):
        tell(line)
    if asked is not None:
        unlabelled = augmented(inputs, args, asked, train, tell)
    tokenizer = load_tokenizer(inputs.model_name_or_path)
    model = open_model(inputs, train, args.seed)
    recipe = args.make_recipe()
    check_recipe(model, recipe)

    once = partial(
        tokenise_once,
        cache_dir=inputs.cache_dir,
        overwrite=inputs.overwrite_cache and not quiet,
        say=tell,
    )

    def encoded(examples: Examples | None) -> Encoded | None:
        if examples is None:
            return None
        length = min(inputs.max_seq_length, model.config.max_sequence_length)
        has_labels = examples.labels is not None
        found = encode(examples, model, tokenizer, max_seq_length=length, truncate=True, labels=has_labels, cache=once)
        if found.num_truncated:
            tell(f"{examples.source}: {found.num_truncated} of {len(found)} texts cut to {length} tokens")
        return found

    with args.main_process_first(local=True, desc="token ids"):  # the others find them kept
        data, scored, others = encoded(train), encoded(validation), encoded(unlabelled)
    assert data is not None  # a training set is there
    if recipe.starting_layers is not None:
        tell(
            f"the student starts from {len(recipe.starting_layers)} of {model.config.num_hidden_layers} layers; its "
            "sub-networks are parts of these"
        )
    if not quiet:
        show_costs(stage_costs(model, recipe))
    tell(
        f"{len(data)} examples to train on, {'' if others is None else f'{len(others)} texts to distil on, '}"
        f"{0 if scored is None else len(scored)} to score; "
        f"{args.world_size} process(es); --step {args.resolved_step()}"
    )
    results = train_elastic(
        model,
        args,
        data,
        scored,
        tokenizer=tokenizer,
        fine_tuned=inputs.fine_tuned,
        unlabelled=others,
        rewiring=not inputs.no_rewiring,
        metric=None if inputs.task_name is None else task_metric(inputs.task_name),
        parts_of=inputs.parts_of or (),
        say=tell,
        callbacks=callbacks,
    )
    if not quiet:
        show(results, Path(str(args.output_dir)))
        draw(results, student_config(model.config, recipe), Path(str(args.output_dir)))
    if args.world_size > 1:
        # The group's threads, left running, may abort a process at its end.
        PartialState().destroy_process_group()


def show_costs(costs: Sequence[Mapping[str, Any]]) -> None:
    """What `dynabert.distill.pipeline.stage_costs` says: a table for each stage."""
    for cost in costs:
        print_table(
            ["sub-network", "parameters", "GFLOP, 128 tokens"],
            [[c["subnet"], f"{c['parameters'] / 1e6:.1f} M", f"{c['gflop']:.2f}"] for c in cost["subnets"]],
            title=f"stage {cost['stage']}: a step costs {cost['forward_passes']:.1f} forward passes",
        )


def show(results: Sequence[StageResult], out: Path) -> None:
    """Each sub-network's score after each part, and where the network is."""
    names = [row.subnet for row in results[-1].rows]
    if names:
        parts = [r for r in results if r.rows]
        found = {r.name: {row.subnet: row.score for row in r.rows} for r in parts}
        last = parts[-1].rows[0]
        print_table(
            ["sub-network", *(r.name for r in parts)],
            [[n, *(percent(found[r.name][n]) if n in found[r.name] else "" for r in parts)] for n in names],
            title=f"{last.metric}, times 100; {last.examples} examples; majority {percent(last.majority)}",
        )
    seconds = ", ".join(f"{r.name} {r.seconds:.0f} s" for r in results)
    say(f"{seconds}; the elastic network and its model card: {results[-1].folder}; all rows: {out / 'results.json'}")


def draw(results: Sequence[StageResult], config: ElasticBertConfig, out: Path) -> None:
    """Two pictures beside the results, where there are scores and matplotlib is installed."""
    parts = {r.name: {row.subnet: row.score for row in r.rows} for r in results if len(r.rows) > 1}
    if not parts:
        return
    try:
        from dynabert.cli.train_plot import plot_learning, plot_scores
    except ImportError as error:
        say(f"no pictures: {error}; pip install matplotlib")
        return
    from dynabert.cost import subnet_cost

    length = min(128, config.max_sequence_length)
    names = {subnet for scores in parts.values() for subnet in scores}
    gflop = {subnet: subnet_cost(config, subnet, seq_length=length).gflop for subnet in names}
    last = results[-1].rows[0]
    plot_scores(parts, gflop, last.metric, last.majority, out / "scores.png")
    plot_learning({r.name: r.history for r in results}, last.metric, out / "learning.png")
    say(f"pictures: {out / 'scores.png'}, {out / 'learning.png'}")
