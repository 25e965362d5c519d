"""``python -m benchmarks.int8_scores``: what int8 costs a trained network in its task's score.

Every sub-network of the paper's grid is scored on the task's validation set with the weights in float32, in bfloat16,
and in int8 with the rest in bfloat16 (what the engine does) and in float32. Beside each score the share of examples on
which the answer is float32's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .rows import write_found

# dtype of the model, and whether its layers' matrices are int8.
VARIANTS: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "int8": (torch.bfloat16, True),
    "int8, the rest float32": (torch.float32, True),
}


def score_variants(checkpoint: str, task: str, data_dir: str | None, max_samples: int | None = None) -> dict[str, Any]:
    """For every variant and sub-network: score, difference from float32, and agreement with its answers."""
    from dynabert.cli.options import encode
    from dynabert.configuration.grid import subnet_grid
    from dynabert.data import load_task, task_metric
    from dynabert.engine import load_model, load_tokenizer
    from dynabert.evaluation import compute_logits, score_logits

    examples = load_task(task, "validation", data_dir=data_dir)
    if max_samples is not None:
        examples = examples.head(max_samples)
    tokenizer, grid, metric = load_tokenizer(checkpoint), subnet_grid(), task_metric(task)
    rows: list[dict[str, Any]] = []
    answers: dict[str, Any] = {}
    scores: dict[str, float] = {}
    for name, (dtype, int8) in VARIANTS.items():
        model = load_model(checkpoint, dtype=torch.float32 if int8 else dtype)
        if int8:
            model.quantise_weights(dtype)
        encoded = encode(examples, model, tokenizer, max_seq_length=None, truncate=False)
        logits = compute_logits(model, encoded, grid)
        for row in score_logits(model, encoded, logits, metric=metric):
            found = logits[row.subnet].argmax(1)
            if name == "float32":
                answers[row.subnet], scores[row.subnet] = found, row.score
            rows.append(
                {
                    "weights": name,
                    "subnet": row.subnet,
                    "score": round(row.score, 5),
                    "points_lost": round(100 * (scores[row.subnet] - row.score), 3),
                    "same_answers": round(float((found == answers[row.subnet]).mean()), 5),
                }
            )
    return {
        "task": task,
        "metric": metric,
        "examples": len(examples),
        "mean_points_lost": {
            name: round(_mean([row["points_lost"] for row in rows if row["weights"] == name]), 3) for name in VARIANTS
        },
        "mean_same_answers": {
            name: round(_mean([row["same_answers"] for row in rows if row["weights"] == name]), 5) for name in VARIANTS
        },
        "rows": rows,
    }


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def shown(found: dict[str, Any]) -> str:
    """The table as text: a line a sub-network, a column for each kind of weights."""
    names = list(VARIANTS)
    cells = {(row["weights"], row["subnet"]): row for row in found["rows"]}
    lines = [
        f"{found['metric']} times 100 on {found['examples']} examples of {found['task']}; in brackets the answers that "
        "are float32's, of 100",
        "",
        "| sub-network | " + " | ".join(names) + " |",
        "| --- |" + " ---: |" * len(names),
    ]
    for subnet in dict.fromkeys(row["subnet"] for row in found["rows"]):
        here = [cells[name, subnet] for name in names]
        lines.append(
            f"| {subnet} | "
            + " | ".join(f"{100 * row['score']:.2f} ({100 * row['same_answers']:.1f})" for row in here)
            + " |"
        )
    lost = found["mean_points_lost"]
    return "\n".join([*lines, "| mean points lost | " + " | ".join(f"{lost[name]:.2f}" for name in names) + " |"])


def main(argv: Sequence[str] | None = None) -> int:
    """Scores the variants and prints the table; ``--rows`` writes it."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.int8_scores", description="Scores in int8 beside float32.", allow_abbrev=False
    )
    flags.add_argument("--model_name_or_path", required=True, help="a fine-tuned elastic checkpoint, with tokenizer")
    flags.add_argument("--task_name", required=True, help="its task, such as sst2; one with classes")
    flags.add_argument("--data_dir", help="folder of GLUE .tsv files; without it GLUE is read from the hub")
    flags.add_argument("--max_samples", type=int, help="only the first so many examples")
    flags.add_argument("--rows", type=Path, help="write the rows here, as JSON")
    options = flags.parse_args(argv)
    begun = time.monotonic()
    found = score_variants(options.model_name_or_path, options.task_name, options.data_dir, options.max_samples)
    print(shown(found))
    if options.rows is not None:
        write_found(options.rows, found, begun, "benchmarks.int8_scores", argv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
