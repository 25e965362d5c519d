"""``dynabert predict``: texts in, labels out, at one sub-network or several side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import (
    UsageError,
    add_column_options,
    add_command,
    add_model_options,
    add_threshold_option,
    input_lines,
)
from dynabert.cli.output import print_json, print_table, say, short_text
from dynabert.cli.pick_files import say_if_untrained

if TYPE_CHECKING:
    from dynabert.engine import InferenceEngine, Prediction


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "predict",
        run,
        "label texts",
        "Label texts given as arguments, on standard input, or in a file, at one or more sub-networks.",
    )
    add_model_options(parser, int8=True)
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text; - reads standard input, one text in each line"
    )
    parser.add_argument(
        "--pairs", action="store_true", help="texts are pairs: two arguments each, or a tab in each line"
    )
    parser.add_argument(
        "--file", metavar="FILE", help="read texts from a .txt, .tsv, .csv, .jsonl (each also .gz) or .parquet file"
    )
    add_column_options(parser, label=False)
    parser.add_argument(
        "--subnet",
        action="append",
        metavar="SUBNET",
        help="such as w0.5-d0.75, or a cascade such as w0.25-d0.5@0.9/w1 (see dynabert cascade); may be given several "
        "times; default: the whole network",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="with --file: write rows and answers to this .tsv, .csv or .jsonl file"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the --out file if it is there")
    add_threshold_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    if bool(args.texts) == (args.file is not None):
        raise UsageError("give texts, - for standard input, or --file; one of the three")
    if args.out is not None and args.file is None:
        raise UsageError("--out belongs to --file")
    if args.file is None and (args.text_column or args.second_text_column):
        raise UsageError("column names belong to --file")
    if args.pairs and args.file is not None:
        raise UsageError("--pairs is for texts given directly; name the columns of a file")
    texts = None if args.file is not None else _texts(args)

    from dynabert.configuration import SubnetConfig
    from dynabert.configuration.cascade import Cascade, as_cascade
    from dynabert.data.examples import TextError
    from dynabert.engine import InferenceEngine

    subnets = [as_cascade(text) or SubnetConfig.parse(text) for text in args.subnet or ["w1-d1"]]
    engine = InferenceEngine.from_pretrained(
        args.model_name_or_path,
        device=args.device,
        dtype=args.dtype,
        max_length=args.max_seq_length,
        max_batch_tokens=args.max_batch_tokens,
        threshold=args.threshold,
    )
    steps = [step for one in subnets for step in (one.subnets if isinstance(one, Cascade) else (one,))]
    say_if_untrained(args.model_name_or_path, engine.model.config, [*dict.fromkeys(map(str, steps))])
    if args.out is not None:
        _to_file(args, engine, subnets)
        return
    source = "standard input"
    lines: Sequence[int] | None = range(1, len(texts or ()) + 1) if args.texts == ["-"] else None
    if texts is None:
        source, texts, lines = args.file, *_file_texts(args)
    names = [str(subnet) for subnet in subnets]
    try:
        answers = engine.predict_each(texts, subnets, truncate=args.truncate)
    except TextError as error:
        if lines is None:
            raise
        raise ValueError(f"{source}: {error.named(f'the text of line {lines[error.index]}')}") from error
    if args.json:
        print_json(
            [
                {
                    "text": text if isinstance(text, str) else list(text),
                    "predictions": [a[i].to_dict() for a in answers],
                }
                for i, text in enumerate(texts)
            ]
        )
        return
    rows = [[_short(text), *(_cell(a[i]) for a in answers)] for i, text in enumerate(texts)]
    print_table(["text", *names], rows, left=1 + len(names))


def _texts(args: argparse.Namespace) -> list[Any]:
    """Texts or pairs from the arguments or standard input."""
    if args.texts == ["-"]:
        lines = input_lines()
        if not args.pairs:
            return list(lines)
        split = [tuple(line.split("\t")) for line in lines]
        for number, pair in enumerate(split, start=1):
            if len(pair) != 2:
                raise ValueError(
                    f"standard input, line {number}: a pair is two texts and one tab; found {len(pair) - 1} tabs"
                )
        return list(split)
    if "-" in args.texts:
        raise UsageError("- reads all texts from standard input; give it alone")
    if not args.pairs:
        return list(args.texts)
    if len(args.texts) % 2:
        raise UsageError(f"--pairs needs an even number of texts; got {len(args.texts)}")
    return list(zip(args.texts[::2], args.texts[1::2], strict=True))


def _file_texts(args: argparse.Namespace) -> tuple[list[Any], tuple[int, ...] | None]:
    """Texts or pairs, and the lines they stand at."""
    from dynabert.data import read_examples

    examples = read_examples(
        args.file, text_column=args.text_column, second_text_column=args.second_text_column, need_labels=False
    )
    if examples.seconds is None:
        return list(examples.texts), examples.lines
    return list(zip(examples.texts, examples.seconds, strict=True)), examples.lines


def _to_file(args: argparse.Namespace, engine: InferenceEngine, subnets: list[Any]) -> None:
    summary = engine.predict_file(
        args.file,
        args.out,
        subnets=subnets,
        text_column=args.text_column,
        second_text_column=args.second_text_column,
        truncate=args.truncate,
        overwrite=args.overwrite,
    )
    if args.json:
        print_json(
            {"rows": summary.rows, "subnets": list(summary.subnets), "out": summary.path, "seconds": summary.seconds}
        )
    else:
        say(f"{summary.rows} rows at {', '.join(summary.subnets)} in {summary.seconds:.1f} s: {summary.path}")


def _short(text: Any) -> str:
    return short_text(text if isinstance(text, str) else " | ".join(text))


def _cell(answer: Prediction) -> str:
    if answer.label is None:
        return f"{answer.score:.4f}"
    return f"{', '.join(answer.labels) or 'none'} {answer.score:.3f}"
