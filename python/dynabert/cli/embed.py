"""``dynabert embed``: texts in, vectors out, at one sub-network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import UsageError, add_command, add_model_options, add_text_column_option, input_lines
from dynabert.cli.output import print_json, print_table, say, short_text
from dynabert.cli.pick_files import say_if_untrained

if TYPE_CHECKING:
    from dynabert.engine import EmbeddingEngine

MOST_COMPARED = 20  # texts of a table of cosines: as many columns as one reads


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "embed",
        run,
        "make vectors of texts",
        "Make a vector of each text given as an argument, on standard input, or in a file, and show how near they are "
        f"to each other: the cosine of every two, of up to {MOST_COMPARED} texts.",
    )
    add_model_options(parser, int8=True)
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text; - reads standard input, one text in each line"
    )
    parser.add_argument(
        "--file", metavar="FILE", help="read texts from a .txt, .tsv, .csv, .jsonl (each also .gz) or .parquet file"
    )
    add_text_column_option(parser)
    parser.add_argument("--subnet", metavar="SUBNET", help="such as w0.5-d0.75; default: the whole network")
    parser.add_argument(
        "--out", metavar="FILE", help="with --file: write the vectors to this .npy file, a row for each row"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the --out file if it is there")
    parser.add_argument("--json", action="store_true", help="print the vectors as JSON instead of a table of cosines")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    _check(args)
    texts, lines, source = (None, None, args.file) if args.out is not None else _texts(args)
    if texts is not None and not args.json and not 2 <= len(texts) <= MOST_COMPARED:
        raise ValueError(
            f"{source or 'the arguments'}: {len(texts)} text{'s' * (len(texts) != 1)}; allowed in a table of cosines: "
            f"2 to {MOST_COMPARED}; print vectors with --json, or write those of a --file with --out"
        )

    from dynabert.configuration import SubnetConfig
    from dynabert.configuration.cascade import as_cascade
    from dynabert.engine import EmbeddingEngine

    if as_cascade(args.subnet) is not None:
        raise ValueError(
            f"--subnet {args.subnet} is a cascade; allowed: one sub-network, such as w0.5-d0.75; a cascade goes by the "
            "probability of a label, which a vector has not"
        )
    subnet = SubnetConfig.parse(args.subnet or "w1-d1")
    engine = EmbeddingEngine.from_pretrained(
        args.model_name_or_path,
        device=args.device,
        dtype=args.dtype,
        max_length=args.max_seq_length,
        max_batch_tokens=args.max_batch_tokens,
    )
    say_if_untrained(args.model_name_or_path, engine.model.config, [str(subnet)])
    if texts is None:
        _to_file(args, engine, subnet)
    else:
        _show(args, engine, subnet, texts, lines, source)


def _check(args: argparse.Namespace) -> None:
    """Refuses options that contradict each other."""
    if bool(args.texts) == (args.file is not None):
        raise UsageError("give texts, - for standard input, or --file; one of the three")
    if args.out is not None and args.file is None:
        raise UsageError("--out belongs to --file")
    if args.overwrite and args.out is None:
        raise UsageError("--overwrite belongs to --out")
    if args.text_column is not None and args.file is None:
        raise UsageError("--text_column belongs to --file")
    if "-" in args.texts and len(args.texts) > 1:
        raise UsageError("- reads all texts from standard input; give it alone")


def _texts(args: argparse.Namespace) -> tuple[list[str], Sequence[int] | None, str]:
    """The texts, the lines they stand at, and where."""
    if args.file is None:
        if args.texts != ["-"]:
            return args.texts, None, ""
        texts = input_lines()
        return texts, range(1, len(texts) + 1), "standard input"

    from dynabert.data import read_examples

    examples = read_examples(args.file, text_column=args.text_column, need_labels=False)
    if examples.seconds is not None:
        raise ValueError(
            f"{args.file}: the columns {' and '.join(map(repr, examples.columns))} are pairs of texts, and a vector is "
            "of one text; name one of them with --text_column"
        )
    return list(examples.texts), examples.lines, args.file


def _show(
    args: argparse.Namespace,
    engine: EmbeddingEngine,
    subnet: Any,
    texts: list[str],
    lines: Sequence[int] | None,
    source: str,
) -> None:
    """Prints the vectors, or the cosine of every two."""
    import numpy as np

    from dynabert.data.examples import TextError

    try:
        vectors = engine.embed(texts, subnet, truncate=args.truncate)
    except TextError as error:
        if lines is None:
            raise
        raise ValueError(f"{source}: {error.named(f'the text of line {lines[error.index]}')}") from error
    if args.json:
        print_json(
            [
                {"text": text, "vector": vector.tolist(), "subnet": str(subnet)}
                for text, vector in zip(texts, vectors, strict=True)
            ]
        )
        return
    wide = vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    numbers = [str(index) for index in range(1, len(texts) + 1)]
    rows = [
        [number, short_text(text), *(f"{cosine:.3f}" for cosine in row)]
        for number, text, row in zip(numbers, texts, wide @ wide.T, strict=True)
    ]
    print_table(["", "text", *numbers], rows, left=2)


def _to_file(args: argparse.Namespace, engine: EmbeddingEngine, subnet: Any) -> None:
    summary = engine.embed_file(
        args.file,
        args.out,
        subnet=subnet,
        text_column=args.text_column,
        truncate=args.truncate,
        overwrite=args.overwrite,
    )
    if args.json:
        print_json(
            {
                "rows": summary.rows,
                "size": engine.size,
                "subnet": summary.subnets[0],
                "out": summary.path,
                "seconds": summary.seconds,
            }
        )
    else:
        say(
            f"{summary.rows} vectors of {engine.size} numbers at {summary.subnets[0]} in {summary.seconds:.1f} s: "
            f"{summary.path}"
        )
