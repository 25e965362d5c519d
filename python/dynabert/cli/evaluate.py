"""``dynabert eval``: the score of every sub-network on a labelled set, with its parameters and arithmetic."""

from __future__ import annotations

import argparse
from typing import Any

from dynabert.cli.options import (
    add_command,
    add_data_options,
    add_model_options,
    add_score_options,
    asked_metric,
    by_agreement,
    encode,
    open_model,
    read_data,
)
from dynabert.cli.output import percent, print_json, print_table
from dynabert.cli.pick_files import say_if_untrained

COST_TOKENS = 128


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "eval",
        run,
        "score sub-networks on labelled text",
        "Score sub-networks of one checkpoint on labelled text; or, with --metric agreement, by how often they answer "
        "as the whole network does, which needs no labels.",
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
    labels = not by_agreement(args)
    examples = read_data(args, labels=labels)  # before the model is opened: a wrong path should not cost a load

    from dynabert.configuration.grid import parse_subnets
    from dynabert.cost import subnet_cost
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
    tokens = min(COST_TOKENS, model.config.max_sequence_length)
    costs = [subnet_cost(model.config, subnet, seq_length=tokens) for subnet in subnets]
    if args.json:
        print_json(
            {
                "model": args.model_name_or_path,
                "data": examples.source,
                "metric": rows[0].metric,
                "examples": len(encoded),
                "truncated": encoded.num_truncated,
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
    cut = f", {encoded.num_truncated} cut" if encoded.num_truncated else ""
    skipped = f", {examples.skipped} bad rows left out" if examples.skipped else ""
    print_table(
        ["sub-network", f"{rows[0].metric} %", "parameters", f"GFLOP at {tokens} tokens"],
        [
            [row.subnet, percent(row.score), f"{cost.parameters / 1e6:.1f} M", f"{cost.gflop:.2f}"]
            for row, cost in zip(rows, costs, strict=True)
        ],
        title=f"{examples.source}: {len(encoded)} examples{cut}{skipped}; majority {percent(rows[0].majority)} %",
    )
