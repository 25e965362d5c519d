"""``dynabert rewire``: score heads and neurons on calibration text, sort them, save the checkpoint."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import (
    add_command,
    add_data_options,
    add_model_options,
    check_output_dir,
    encode,
    open_model,
    read_data,
)
from dynabert.cli.output import print_json, print_table

if TYPE_CHECKING:
    from torch import Tensor

    from dynabert.importance import Importance

AGREEMENT_EXAMPLES = 32
# A permutation changes the order of sums, so float32 logits move by rounding; more than this is a fault. Half precision
# rounds at 2^-8 to 2^-11 of the value.
AGREEMENT = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.05}
# The largest sum of a head's row, weights and bias without their signs, for which that holds. Its inputs are within 1,
# so a head that is larger, as of a regression on prices, has logits that round as much coarser.
USUAL_HEAD = 8.0


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "rewire",
        run,
        "sort heads and neurons by importance",
        "Score heads and neurons of a fine-tuned checkpoint on labelled text, sort them by importance, and save the "
        "result. "
        "The full network computes the same; its narrow sub-networks keep what matters most.",
    )
    add_model_options(parser)
    add_data_options(parser, split="train")
    parser.add_argument(
        "--mode", default="per_batch", choices=("per_batch", "accumulated", "reference"), help="how batches add up"
    )
    parser.add_argument(
        "--per_device_train_batch_size", metavar="N", type=int, default=32, help="examples of a calibration batch"
    )
    parser.add_argument("--output_dir", metavar="FOLDER", required=True, help="folder for the rewired checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="write into the folder although it is not empty")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    folder = check_output_dir(args.output_dir, args.overwrite)
    examples = read_data(args)

    import numpy as np

    from dynabert.evaluation import compute_logits
    from dynabert.finetuning import labelled_batches
    from dynabert.importance import compute_importance
    from dynabert.rewiring import rewire

    model, tokenizer = open_model(args)
    encoded = encode(examples, model, tokenizer, max_seq_length=args.max_seq_length, truncate=args.truncate)
    probe = encoded.select(range(min(AGREEMENT_EXAMPLES, len(encoded))))
    before = compute_logits(model, probe, [None], max_batch_tokens=args.max_batch_tokens)["w1-d1"]
    batches = list(labelled_batches(model, encoded, args.per_device_train_batch_size))
    importance = compute_importance(model, batches, args.mode, progress=True)
    model = rewire(model, importance)
    after = compute_logits(model, probe, [None], max_batch_tokens=args.max_batch_tokens)["w1-d1"]
    difference = float(np.abs(after - before).max())
    head = model.classifier.out_proj
    largest = float((head.weight.detach().float().abs().sum(1) + head.bias.detach().float().abs()).max())
    allowed = AGREEMENT[args.dtype] * max(1.0, largest / USUAL_HEAD)
    if not difference <= allowed:
        raise RuntimeError(
            f"rewire: the full network's logits moved by {difference:.2g}; allowed for {args.dtype}: {allowed:.2g}; "
            "nothing was saved"
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    layers = summary(importance, model.config.layer_heads, model.config.layer_neurons)
    if args.json:
        print_json(
            {
                "model": args.model_name_or_path,
                "data": examples.source,
                "examples": len(encoded),
                "truncated": encoded.num_truncated,
                "mode": args.mode,
                "max_logit_difference": difference,
                "output_dir": str(folder),
                "layers": layers,
            }
        )
        return
    print_table(
        [
            "layer",
            "heads, most important first",
            "heads: share in the first half, before",
            "after",
            "neurons: before",
            "after",
        ],
        [
            [
                str(row["layer"]),
                " ".join(map(str, row["head_order"])),
                *(
                    f"{100 * row[key]:.0f} %"
                    for key in ("heads_before", "heads_after", "neurons_before", "neurons_after")
                ),
            ]
            for row in layers
        ],
        title=f"{len(encoded)} examples of {examples.source}; logits agree within {difference:.1g}; saved: {folder}",
        left=2,
    )


def summary(importance: Importance, heads: tuple[int, ...], neurons: tuple[int, ...]) -> list[dict[str, Any]]:
    """For each layer: the new order of the heads, and the share of all importance that lies in the leading half before
    and after sorting."""
    rows = []
    for layer in range(len(heads)):
        head_scores, neuron_scores = (
            importance.heads[layer, : heads[layer]],
            importance.neurons[layer, : neurons[layer]],
        )
        order = head_scores.sort(descending=True, stable=True).indices.tolist()
        rows.append(
            {
                "layer": layer,
                "head_order": order,
                "heads_before": _first_half(head_scores),
                "heads_after": _first_half(head_scores.sort(descending=True).values),
                "neurons_before": _first_half(neuron_scores),
                "neurons_after": _first_half(neuron_scores.sort(descending=True).values),
            }
        )
    return rows


def _first_half(scores: Tensor) -> float:
    total = float(scores.sum())
    return float(scores[: (len(scores) + 1) // 2].sum()) / total if total > 0.0 else 0.0
