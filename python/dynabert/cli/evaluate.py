"""``dynabert eval``: the score of every sub-network on a labelled set, with its parameters and arithmetic."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import (
    DEFAULT_THRESHOLD,
    UsageError,
    add_command,
    add_data_options,
    add_model_options,
    add_score_options,
    asked_metric,
    by_agreement,
    check_data_options,
    checked_length,
    encode,
    open_embedder,
    open_model,
    read_data,
)
from dynabert.cli.output import percent, print_json, print_table
from dynabert.cli.pick_files import say_if_untrained
from dynabert.cli.similarity_texts import only_numbers_of_pairs, read_scored, similarity_set

if TYPE_CHECKING:
    from dynabert.configuration import ElasticBertConfig, SubnetConfig
    from dynabert.data import Examples
    from dynabert.evaluation import EvaluationRow

COST_TOKENS = 128


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "eval",
        run,
        "score sub-networks on labelled text",
        "Score sub-networks of one checkpoint on labelled text; or, with --metric agreement, by how often they answer "
        "as the whole network does, which needs no labels. A sentence embedder is scored on pairs of texts with "
        "numbers, by Spearman's correlation, and on other texts by the cosine with the whole network's vectors.",
    )
    add_model_options(parser, int8=True)
    add_data_options(parser, split="validation")
    parser.add_argument(
        "--subnets", metavar="LIST", default="w1-d1", help="all (the paper's 12), or a list such as w1,w0.5-d0.75"
    )
    add_score_options(parser)
    parser.add_argument(
        "--per_device_eval_batch_size", metavar="N", type=int, help="most examples of a batch; default: no bound"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    from dynabert.engine.loading import is_embedder

    if is_embedder(args.model_name_or_path):
        _run_embedder(args)
        return
    labels = not by_agreement(args)
    examples = read_data(args, labels=labels)  # before the model is opened: a wrong path should not cost a load

    from dynabert.configuration.grid import parse_subnets
    from dynabert.evaluation import evaluate

    model, tokenizer = open_model(args)
    subnets = parse_subnets(args.subnets, model.config)
    say_if_untrained(args.model_name_or_path, model.config, [*map(str, subnets)])
    encoded = encode(
        examples, model, tokenizer, max_seq_length=args.max_seq_length, truncate=args.truncate, labels=labels
    )
    rows = evaluate(
        model,
        encoded,
        subnets,
        metric=asked_metric(args),
        threshold=args.threshold,
        max_batch_tokens=args.max_batch_tokens,
        max_batch_size=args.per_device_eval_batch_size,
        progress=None,
    )
    _show(args, model.config, examples, subnets, rows, len(encoded), encoded.num_truncated)


def _run_embedder(args: argparse.Namespace) -> None:
    """A sentence embedder: Spearman's correlation on pairs with numbers, the cosine with the whole network else."""
    from dynabert.similarity import COSINE, METRICS

    whose = f"and {args.model_name_or_path} is a sentence embedder"
    for name in ("label_separator", "problem_type"):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name} is of a classifier's labels, {whose}; leave it out")
    if args.threshold != DEFAULT_THRESHOLD:
        raise UsageError(f"--threshold is of a classifier's labels, {whose}; leave it out")
    if args.metric is not None and args.metric not in METRICS:
        raise UsageError(f"--metric {args.metric} is of a classifier, {whose}; allowed: {', '.join(METRICS)}")
    examples = _read_pairs(args)

    from dynabert.configuration.grid import parse_subnets
    from dynabert.data import tokenise
    from dynabert.similarity import score_similarity

    if args.metric not in (None, COSINE) and examples.labels is None:
        raise ValueError(
            f"--metric {args.metric} needs pairs of texts and a column of numbers, and {examples.source} has none; "
            f"allowed: {COSINE}"
        )
    model, tokenizer = open_embedder(args)
    config = model.config
    subnets = parse_subnets(args.subnets, config)
    say_if_untrained(args.model_name_or_path, config, [*map(str, subnets)])
    length = checked_length(args.max_seq_length, config, model.pooling.max_seq_length, tokenizer)
    types = None if config.type_vocab_size > 1 else False
    texts = similarity_set(examples, lambda some: tokenise(some, tokenizer, length, args.truncate, token_types=types))
    rows = score_similarity(
        model,
        texts,
        subnets,
        max_batch_tokens=args.max_batch_tokens,
        max_batch_size=args.per_device_eval_batch_size,
        progress=None,
    )
    if args.metric is not None:
        rows = [replace(row, score=row.metrics[args.metric], metric=args.metric) for row in rows]
    cut = texts.firsts.num_truncated + (0 if texts.seconds is None else texts.seconds.num_truncated)
    _show(args, config, examples, subnets, rows, len(texts), cut)


def _read_pairs(args: argparse.Namespace) -> Examples:
    """The texts that the options name, with their numbers where they are pairs that have some; by the cosine alone
    numbers are not read."""
    from dynabert.data import read_examples
    from dynabert.similarity import COSINE

    by_cosine = args.metric == COSINE
    if by_cosine and args.label_column is not None:
        raise UsageError(f"--label_column is of labels, and --metric {COSINE} takes none; leave one of them out")
    if args.task_name is not None or args.file is None:
        return only_numbers_of_pairs(read_data(args))
    check_data_options(args)
    columns: dict[str, Any] = {
        "text_column": args.text_column,
        "second_text_column": args.second_text_column,
        "bad_rows": args.bad_rows,
    }
    if by_cosine:
        examples = read_examples(args.file, **columns, need_labels=False)
    else:
        examples = read_scored(args.file, args.label_column, columns)
    if args.label_column is not None and examples.seconds is None:
        raise ValueError(
            f"--label_column {args.label_column} names numbers of pairs, and {args.file} has single texts; leave it "
            "out, or name the second text's column with --second_text_column"
        )
    examples = only_numbers_of_pairs(examples)
    return examples if args.max_samples is None else examples.head(args.max_samples)


def _show(
    args: argparse.Namespace,
    config: ElasticBertConfig,
    examples: Examples,
    subnets: Sequence[SubnetConfig],
    rows: Sequence[EvaluationRow],
    count: int,
    truncated: int,
) -> None:
    """Prints the table, or the JSON. ``count``: scored examples; ``truncated``: texts that were cut."""
    from dynabert.cost import subnet_cost

    tokens = min(COST_TOKENS, config.max_sequence_length)
    costs = [subnet_cost(config, subnet, seq_length=tokens) for subnet in subnets]
    if args.json:
        print_json(
            {
                "model": args.model_name_or_path,
                "data": examples.source,
                "metric": rows[0].metric,
                "examples": count,
                "truncated": truncated,
                "skipped": examples.skipped,
                "majority_score": rows[0].majority,
                "cost_tokens": tokens,
                "subnets": [
                    {
                        "subnet": row.subnet,
                        "score": row.score,
                        "metrics": row.metrics,
                        "parameters": cost.parameters,
                        "gflop": cost.gflop,
                    }
                    for row, cost in zip(rows, costs, strict=True)
                ],
            }
        )
        return
    cut = f", {truncated} cut" if truncated else ""
    skipped = f", {examples.skipped} bad rows left out" if examples.skipped else ""
    print_table(
        ["sub-network", f"{rows[0].metric} %", "parameters", f"GFLOP at {tokens} tokens"],
        [
            [row.subnet, percent(row.score), f"{cost.parameters / 1e6:.1f} M", f"{cost.gflop:.2f}"]
            for row, cost in zip(rows, costs, strict=True)
        ],
        title=f"{examples.source}: {count} examples{cut}{skipped}; majority {percent(rows[0].majority)} %",
    )
