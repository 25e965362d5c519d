"""``dynabert export``: a sub-network as a model of its own, compared with its source before it appears."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import add_command
from dynabert.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from dynabert.export import ExportReport
    from dynabert.export.kinds import Exported

FORMATS = ("hf", "hf-remote", "onnx", "elastic")


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "export",
        run,
        "a sub-network as a model that other tools open",
        "Write a sub-network as a model of its own. The export is opened again by the tool that will open it and "
        "compared with the source; only then does the folder appear.",
    )
    parser.add_argument(
        "--model_name_or_path",
        metavar="PATH",
        required=True,
        help="folder or hub id of a fine-tuned checkpoint, or of a sentence embedder",
    )
    parser.add_argument(
        "--subnet", metavar="SUBNET", default="w1-d1", help="such as w0.5-d0.75 or h12,6,0-n3072,1536,0"
    )
    parser.add_argument(
        "--format",
        default="hf",
        choices=FORMATS,
        help="hf: plain BERT, RoBERTa or MPNet (all heads, equal layers; else --pad); hf-remote: any classifier, with "
        "its own code, for trust_remote_code; onnx: any, for ONNX Runtime; elastic: any, to be trained further by "
        "dynabert",
    )
    parser.add_argument("--output_dir", metavar="FOLDER", required=True, help="folder to make")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model's folder that is there, once the export has passed"
    )
    parser.add_argument(
        "--pad",
        action="store_true",
        help="with hf: fill missing heads and neurons up with zeros; same answers, no faster than the full width",
    )
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="how weights are stored"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    from dynabert.export.folders import checked_target

    checked_target(args.output_dir, args.overwrite, args.model_name_or_path)  # before the model is opened

    from dynabert.engine import load_embedder, load_model, load_tokenizer
    from dynabert.engine.loading import is_embedder
    from dynabert.export import export_subnet

    load: Callable[[str], Exported] = load_embedder if is_embedder(args.model_name_or_path) else load_model
    model = load(args.model_name_or_path)
    try:
        tokenizer = load_tokenizer(args.model_name_or_path)
    except ValueError as error:
        tokenizer = None
        say(f"dynabert export: exported without a tokenizer: {error}")
    report = export_subnet(
        model,
        tokenizer,
        args.subnet,
        args.output_dir,
        format=args.format,
        pad=args.pad,
        dtype=args.dtype,
        overwrite=args.overwrite,
        source=args.model_name_or_path,
    )
    if args.json:
        print_json(report.to_dict())
        return
    _show(report)


def _show(report: ExportReport) -> None:
    size, parity = report.size, report.parity
    rows = [
        ["sub-network", report.subnet],
        ["layers", str(len(size.heads))],
        ["heads", _counts(size.heads)],
        ["neurons", _counts(size.neurons)],
        ["parameters", f"{size.parameters / 1e6:.1f} M"],
        [f"GFLOP at {size.cost_tokens} tokens", f"{size.gflop:.2f}"],
    ]
    if report.padded is not None:
        filled = report.padded
        rows.append(
            [
                "padded with zeros to",
                f"{_counts(filled.heads)} heads, {_counts(filled.neurons)} neurons, {filled.parameters / 1e6:.1f} M, "
                f"{filled.gflop:.2f} GFLOP: no faster than that",
            ]
        )
    rows += [
        ["weights stored as", report.dtype],
        ["size", f"{sum(report.files.values()) / 1e6:.1f} MB in {len(report.files)} files"],
        ["opened again with", parity.opened_with],
        [
            f"largest difference of {'a logit' if report.answers == 'logits' else 'a number of a vector'}",
            f"{parity.max_difference:.2g} (allowed {parity.bound:.2g})",
        ],
    ]
    if parity.stored_max_difference is not None:
        rows.append(
            [
                f"stored as {report.dtype}, from float32",
                f"{parity.stored_max_difference:.2g} (allowed {parity.stored_bound:.2g})",
            ]
        )
    print_table(["", "export"], rows, title=f"{report.source}: {report.format} in {report.output_dir}", left=2)
    sys.stdout.write(f"To load it:\n\n{report.load}")


def _counts(counts: tuple[int, ...]) -> str:
    """One number where all layers have it."""
    return str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))
