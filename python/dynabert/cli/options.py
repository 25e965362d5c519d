"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynabert.configuration import ElasticBertConfig
    from dynabert.data import Encoded, Examples
    from dynabert.modeling import ElasticBertForSentenceEmbedding, ElasticBertForSequenceClassification
    from dynabert.modeling.base import ElasticBertPreTrainedModel

    Network = TypeVar("Network", bound=ElasticBertPreTrainedModel)


# transformers' names, and what `dynabert.data.read_examples` calls them.
PROBLEMS = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
DEFAULT_THRESHOLD = 0.5


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names a default only where there is one to name."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class UsageError(Exception):
    """Options that contradict each other: exit code 2."""


def add_command(commands: Any, name: str, run: Any, help_text: str, description: str) -> argparse.ArgumentParser:
    """A subcommand's parser; ``run(args)`` does its work."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=description, formatter_class=HelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def add_model_options(parser: argparse.ArgumentParser, *, int8: bool = False) -> None:
    """Which model, where and in what it runs, and how long a text may be. ``int8``: whether it may run in int8."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_name_or_path", metavar="PATH", required=True, help="folder or hub id of a fine-tuned checkpoint"
    )
    group.add_argument("--device", metavar="DEVICE", default="cpu", help="where to run, such as cpu or cuda")
    dtypes = ("float32", "bfloat16", "float16", *(("int8",) if int8 else ()))
    told = "weights' dtype; int8: the layers' on a CPU, the rest is bfloat16" if int8 else "weights' dtype"
    group.add_argument("--dtype", default="float32", choices=dtypes, help=told)
    group.add_argument(
        "--max_seq_length",
        metavar="N",
        type=int,
        help="most tokens of a text; default: as in the training, else the model's positions",
    )
    group.add_argument("--truncate", action="store_true", help="cut texts that are too long, else refuse them")
    group.add_argument("--max_batch_tokens", metavar="N", type=int, default=4096, help="most tokens of a batch")


def add_text_column_option(parser: argparse.ArgumentParser) -> None:
    """Name of the column that holds the text."""
    parser.add_argument(
        "--text_column", metavar="NAME", help="name of the text's column; default: found by its usual names"
    )


def add_column_options(parser: argparse.ArgumentParser, *, label: bool) -> None:
    """Names of the columns in the user's own file."""
    add_text_column_option(parser)
    parser.add_argument("--second_text_column", metavar="NAME", help="name of the second text's column, for pairs")
    if label:
        parser.add_argument("--label_column", metavar="NAME", help="name of the label's column")


def add_data_options(parser: argparse.ArgumentParser, *, split: str, file_names: tuple[str, ...] = ("--file",)) -> None:
    """Where labelled text comes from. ``file_names``: names of the option for one's own file."""
    group = parser.add_argument_group("data: a named task, or a file of your own")
    group.add_argument(
        "--task_name", metavar="TASK", help="sst2, cola, mrpc, rte, stsb, qnli, qqp, wnli, mnli or drugreview"
    )
    group.add_argument(
        "--data_dir", metavar="FOLDER", help="folder of GLUE .tsv files; without it GLUE is read from the hub"
    )
    group.add_argument("--split", metavar="SPLIT", default=split, help="split of the task")
    group.add_argument(
        *file_names,
        dest="file",
        metavar="FILE",
        help="your own labelled .tsv, .csv, .jsonl (each also .gz) or .parquet",
    )
    group.add_argument(
        "--label_separator",
        metavar="TEXT",
        help="several labels of a text: what lies between them in the label's column, such as '|'; lists in a .jsonl "
        "or .parquet file need none",
    )
    group.add_argument(
        "--problem_type", choices=tuple(PROBLEMS), help="kind of your file's labels; default: what they look like"
    )
    add_column_options(group, label=True)  # type: ignore[arg-type]  # a group adds arguments as a parser does
    group.add_argument(
        "--bad_rows", default="error", choices=("error", "skip"), help="what to do with rows that do not fit"
    )
    group.add_argument("--max_samples", metavar="N", type=int, help="use only the first so many examples")


def input_lines() -> list[str]:
    """The lines of standard input, each a text; ``ValueError`` where there is none."""
    lines = [line.rstrip("\r\n") for line in sys.stdin]
    if not lines:
        raise ValueError("standard input holds no text; give one text in each line")
    return lines


def add_threshold_option(parser: argparse.ArgumentParser) -> None:
    """From which probability a label is assigned where a text may have several."""
    parser.add_argument(
        "--threshold",
        metavar="P",
        type=float,
        default=DEFAULT_THRESHOLD,
        help="least probability at which a multi-label model assigns a label",
    )


def add_score_options(parser: argparse.ArgumentParser) -> None:
    """By which score sub-networks are compared."""
    parser.add_argument(
        "--metric",
        metavar="METRIC",
        help="accuracy, f1, matthews_correlation, pearson or spearman; for several labels a text micro_f1, macro_f1 or "
        "subset_accuracy; agreement, with the whole network, for text without labels; default: the task's own, or the "
        "first of its kind; a sentence embedder, in dynabert eval: spearman, pearson or cosine",
    )
    add_threshold_option(parser)


def check_data_options(args: argparse.Namespace) -> None:
    """Refuses options of `add_data_options` that contradict each other."""
    if (args.task_name is None) == (args.file is None):
        raise UsageError("give either --task_name or --file")
    if args.max_samples is not None and args.max_samples < 1:
        raise ValueError(f"--max_samples is {args.max_samples}; allowed: 1 or more")
    if args.file is not None and args.data_dir is not None:
        raise UsageError("--data_dir belongs to --task_name; with --file leave it out")


def read_data(args: argparse.Namespace, *, labels: bool = True) -> Examples:
    """The labelled examples that the options name; ``labels`` False: their text alone, labelled or not."""
    from dynabert.data import load_task, read_examples

    check_data_options(args)
    if not labels:
        for name in ("label_column", "label_separator", "problem_type"):
            if getattr(args, name) is not None:
                raise UsageError(f"--{name} is of labels, and --metric {args.metric} takes none; leave one of them out")
    if args.file is not None:
        examples = read_examples(
            args.file,
            text_column=args.text_column,
            second_text_column=args.second_text_column,
            label_column=args.label_column if labels else None,
            label_separator=args.label_separator if labels else None,
            need_labels=labels,
            problem="auto" if args.problem_type is None else PROBLEMS[args.problem_type],  # type: ignore[arg-type]
            bad_rows=args.bad_rows,
        )
    else:
        if args.text_column or args.second_text_column or args.label_column:
            raise UsageError("column names belong to --file; a task knows its own")
        if args.label_separator is not None:
            raise UsageError("--label_separator belongs to --file; a task has one label for each text")
        if args.problem_type is not None:
            raise UsageError("--problem_type belongs to --file; a task knows its own")
        examples = load_task(args.task_name, args.split, data_dir=args.data_dir, bad_rows=args.bad_rows)
    return examples if args.max_samples is None else examples.head(args.max_samples)


def by_agreement(args: argparse.Namespace) -> bool:
    """Whether the score is the agreement with the whole network, which needs no labels."""
    from dynabert.data.metrics import AGREEMENT

    return bool(args.metric == AGREEMENT)


def asked_metric(args: argparse.Namespace) -> str | None:
    """The score that is asked for: ``--metric``, else the task's own, else None, which is the kind's first."""
    from dynabert.data import task_metric

    return args.metric or (task_metric(args.task_name) if args.task_name else None)


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """PyTorch's threads on the CPU while a command runs; None leaves them."""
    import torch

    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def open_model(args: argparse.Namespace) -> tuple[ElasticBertForSequenceClassification, PreTrainedTokenizerBase]:
    """The model and tokenizer that the options name."""
    from dynabert.engine import load_model

    return _opened(args, load_model)


def open_embedder(args: argparse.Namespace) -> tuple[ElasticBertForSentenceEmbedding, PreTrainedTokenizerBase]:
    """The sentence embedder and tokenizer that the options name."""
    from dynabert.engine import load_embedder

    return _opened(args, load_embedder)


def _opened(args: argparse.Namespace, load: Callable[..., Network]) -> tuple[Network, PreTrainedTokenizerBase]:
    from dynabert.engine import load_tokenizer, torch_dtype

    for name in ("max_batch_tokens", "per_device_eval_batch_size", "per_device_train_batch_size"):
        if (count := getattr(args, name, None)) is not None and count < 1:
            raise ValueError(f"--{name} is {count}; allowed: 1 or more")
    tokenizer = load_tokenizer(args.model_name_or_path)
    int8 = args.dtype == "int8"
    dtype = torch_dtype("float32" if int8 else args.dtype)
    return load(args.model_name_or_path, device=args.device, dtype=dtype, int8=int8), tokenizer


def checked_length(
    asked: int | None, config: ElasticBertConfig, trained: int | None, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Most tokens of a text: as ``asked``, else as in the training (``trained``, else what the tokenizer says).

    Raises ``ValueError`` for more than the model has positions, and for a tokenizer of another model.
    """
    from dynabert.data.tokenisation import check_tokenizer, usual_length

    check_tokenizer(config.name_or_path or "model", tokenizer, config.vocab_size)
    positions = config.max_sequence_length
    if asked is not None and asked > positions:
        raise ValueError(f"--max_seq_length is {asked}; allowed: up to the model's {positions} positions")
    if asked is not None:
        return asked
    return usual_length(tokenizer, positions) if trained is None else min(trained, positions)


def encode(
    examples: Examples,
    model: ElasticBertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int | None,
    truncate: bool,
    labels: bool = True,
    cache: Callable[..., Encoded] | None = None,
) -> Encoded:
    """Token ids of examples for a model, labels turned into indices of its outputs; ``labels`` False: text alone.

    ``cache``: `dynabert.data.tokenise_once`, with its folder; None: tokenised now, and not kept.
    """
    from dynabert.data import align_labels, model_labels, model_problem, tokenise

    config = model.config
    length = checked_length(max_seq_length, config, None, tokenizer)
    aligned = align_labels(examples, model_labels(config), model_problem(config)) if labels else examples
    return (tokenise if cache is None else cache)(
        aligned,
        tokenizer,
        length,
        truncate,
        token_types=None if config.type_vocab_size > 1 else False,
    )


def check_output_dir(path: str, overwrite: bool) -> Path:
    """The folder to write to; refused when it holds something and overwriting was not asked for."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {path} is a file; give a folder")
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not above.is_dir():
        raise ValueError(f"--output_dir {path} lies in {above}, which is a file; give another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"--output_dir {path} lies in {above}, which cannot be written to; give another folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"--output_dir {path} is not empty; give another folder, or --overwrite")
    return folder
