"""``python -m benchmarks.export_parity``: which sub-network opens in which format, where, and how closely it answers.

The packaged all-MiniLM-L6-v2 with a classification head drawn anew, and a RoBERTa and an MPNet of its size with random
weights; all rewired by random scores, so that heads and neurons stand elsewhere than they did. Every sub-network is
exported in every format, and plain again with ``pad``. Every row is an export that was loaded back and compared; a
format that refuses a sub-network is a row that says why.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .rows import write_found

SEED = 0
LABELS = 2
HEAD_STD = 0.3  # so that logits are about 1, as a trained head's are
SUBNETS = {
    "full": "w1-d1",
    "half of both": "w0.5-d0.5",
    "depth": "d0.5",
    "neurons": "h12,12,12,12,12,12-n384,384,384,384,384,384",
    "each layer its own": "h12,3,0,6,1,9-n1536,384,0,100,7,768",
}
# Column -> format and pad.
COLUMNS = {"hf": ("hf", False), "hf, padded": ("hf", True), "hf-remote": ("hf-remote", False)}
COLUMNS |= {"onnx": ("onnx", False), "elastic": ("elastic", False)}


def networks() -> dict[str, tuple[Any, Any]]:
    """Name -> model and tokenizer (None where the words mean nothing)."""
    from transformers import MPNetConfig, RobertaConfig

    from dynabert import ElasticBertForSequenceClassification, Importance, rewire
    from dynabert.cli.demo import default_model_path
    from dynabert.engine import load_model, load_tokenizer

    torch.manual_seed(SEED)
    path = default_model_path()
    minilm = load_model(path, fresh_head=True, num_labels=LABELS)
    sizes: dict[str, Any] = {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 514,
        "num_labels": LABELS,
        "initializer_range": 0.05,
    }
    found: dict[str, tuple[Any, Any]] = {"all-MiniLM-L6-v2": (minilm, load_tokenizer(path))}
    for name, config in (("RoBERTa, random", RobertaConfig(**sizes)), ("MPNet, random", MPNetConfig(**sizes))):
        found[name] = (ElasticBertForSequenceClassification(config).eval(), None)
    for model, _ in found.values():
        with torch.no_grad():
            model.classifier.out_proj.weight.normal_(0.0, HEAD_STD)
        layers = model.config.num_hidden_layers
        rewire(model, Importance(torch.rand(layers, 12), torch.rand(layers, 1536)))
    return found


def export_all(made: dict[str, tuple[Any, Any]], dtypes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each network, sub-network, format and dtype."""
    from dynabert.export import export_subnet

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="dynabert-parity-") as scratch:
        for name, (model, tokenizer) in made.items():
            for kind, subnet in SUBNETS.items():
                for column, (form, pad) in COLUMNS.items():
                    for dtype in dtypes:
                        row: dict[str, Any] = {"network": name, "kind": kind, "subnet": subnet}
                        row |= {"format": column, "dtype": dtype}
                        target = Path(scratch) / "out"
                        try:
                            report = export_subnet(
                                model, tokenizer, subnet, target, format=form, pad=pad, dtype=dtype, overwrite=True
                            )
                        except ValueError as error:
                            rows.append(row | {"refused": str(error)})
                            continue
                        parity, held = report.parity, report.padded or report.size
                        rows.append(
                            row
                            | {
                                "max_difference": parity.max_difference,
                                "stored_max_difference": parity.stored_max_difference,
                                "largest_logit": parity.largest_logit,
                                "opened_with": parity.opened_with,
                                "parameters": held.parameters,
                                "gflop": held.gflop,
                                "bytes": sum(report.files.values()),
                            }
                        )
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text: a line for each network and sub-network, a column for each format."""
    cells = {(row["network"], row["kind"], row["format"]): row for row in rows if row["dtype"] == "float32"}
    lines = [
        "largest difference of a logit, the export opened by its own tool against the source; float32",
        "",
        "| network | sub-network | " + " | ".join(COLUMNS) + " |",
        "| --- | --- |" + " ---: |" * len(COLUMNS),
    ]
    for network, kind in dict.fromkeys((row["network"], row["kind"]) for row in rows):
        found = [cells[network, kind, column] for column in COLUMNS]
        texts = ["refused" if "refused" in one else f"{one['max_difference']:.1e}" for one in found]
        lines.append(f"| {network} | {kind} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exports, prints the table; ``--rows`` writes it."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.export_parity", description="Exports, opened and compared.", allow_abbrev=False
    )
    flags.add_argument("--dtypes", nargs="+", default=["float32"], help="how weights are stored")
    flags.add_argument("--rows", type=Path, help="write the rows here, as JSON")
    options = flags.parse_args(argv)
    begun = time.monotonic()
    rows = export_all(networks(), options.dtypes)
    print(shown(rows))
    if options.rows is not None:
        write_found(options.rows, {"rows": rows}, begun, "benchmarks.export_parity", argv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
