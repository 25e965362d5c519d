"""An elastic sentence embedder, trained on text without labels and measured: what its sub-networks keep, and how fast.

    python -m benchmarks.embeddings --data_dir GLUE --max_steps 600 --bf16 --out benchmarks/results/embeddings.json

all-MiniLM-L6-v2 is rewired and distilled by ``dynabert train --recipe embedding``'s own pipeline, on texts of QQP, MRPC
and CoLA (or others, ``--tasks``), labels left out. It is scored on the dev split of STS-B, whose texts are left out of
the training: Spearman's correlation of the pairs' cosines with people's scores; the mean cosine of each vector with the
whole network's before the training; how many of a text's ten nearest others are the same as the whole network finds;
and the correlation where the first text of each pair is the untrained whole network's, as where an index was made
before. Times are those of ``EmbeddingEngine``: one text of 128 tokens, and all of STS-B's texts, sub-networks in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.accuracy.tasks import TASKS
from benchmarks.rows import environment
from dynabert import DistillationArguments, ElasticBertForSentenceEmbedding, EmbeddingEngine
from dynabert.cli.demo import default_model_path
from dynabert.configuration.grid import subnet_grid, subnet_text
from dynabert.cost import subnet_cost
from dynabert.data import Examples, load_task, tokenise
from dynabert.data.metrics import compute_metric
from dynabert.distill.pipeline import train_elastic
from dynabert.engine import load_tokenizer
from dynabert.similarity import SimilaritySet, compute_vectors, cosines

TRAINED_ON = ("qqp", "mrpc", "cola")
SCORED_ON = "stsb"
LENGTH, LATENCY_TOKENS, NEAREST = 128, 128, 10
WHOLE = "w1-d1"


def read_texts(data_dir: Path, tasks: Sequence[str]) -> tuple[Examples, Examples]:
    """Texts to train on, each once and none of those that are scored; and the pairs that are."""
    scored = load_task(SCORED_ON, "validation", data_dir=data_dir)
    held_out = {*scored.texts, *(scored.seconds or ())}
    found: dict[str, None] = {}
    for task in tasks:
        examples = load_task(task, "train", data_dir=data_dir)
        found |= dict.fromkeys((*examples.texts, *(examples.seconds or ())))
    titles = ", ".join(TASKS[task].title for task in tasks)
    return Examples(tuple(text for text in found if text not in held_out), source=titles), scored


def neighbours(vectors: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.intp]:
    """(N, count): the nearest others of each vector, by cosine."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = (vectors / lengths) @ (vectors / lengths).T
    np.fill_diagonal(alike, -np.inf)
    return np.argpartition(-alike, count, axis=1)[:, :count]


def quality(
    vectors: npt.NDArray[np.floating], whole: npt.NDArray[np.floating], labels: Sequence[float], distinct: Any
) -> dict[str, float]:
    """Of one sub-network's vectors, first texts before second ones; ``distinct``: a place of each text, once."""
    count, targets = len(labels), np.asarray(labels)
    near, wanted = (neighbours(own[distinct], NEAREST) for own in (vectors, whole))
    shared = [len(np.intersect1d(a, b)) for a, b in zip(near, wanted, strict=True)]
    return {
        "spearman": compute_metric("spearman", cosines(vectors[:count], vectors[count:]), targets),
        "spearman_index": compute_metric("spearman", cosines(whole[:count], vectors[count:]), targets),
        "cosine": float(cosines(vectors, whole).mean()),
        "neighbours": statistics.fmean(shared) / NEAREST,
    }


def timed(engine: EmbeddingEngine, texts: Sequence[str], subnets: Sequence[str], rounds: int) -> dict[str, Any]:
    """Median milliseconds of a text of `LATENCY_TOKENS` tokens alone, and texts of a second of many, in turns."""
    alone = "word " * (LATENCY_TOKENS - 2)
    ways = {"latency_ms": [alone], "texts": list(texts)}
    found: dict[str, dict[str, list[float]]] = {name: {way: [] for way in ways} for name in subnets}
    for number in range(rounds + 1):  # the first warms up
        for name in subnets:
            for way, some in ways.items():
                repeats = 5 if way == "latency_ms" else 1
                for _ in range(repeats):
                    begun = time.perf_counter()
                    engine.embed(some, name, truncate=True)
                    if number:
                        found[name][way].append(time.perf_counter() - begun)
    return {
        name: {
            "latency_ms": round(1e3 * statistics.median(own["latency_ms"]), 3),
            "texts_a_second": round(len(texts) / statistics.median(own["texts"]), 1),
        }
        for name, own in found.items()
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Trains what is not there yet, scores and times."""
    path = options.model or default_model_path()
    tokenizer = load_tokenizer(path)
    train, scored = read_texts(options.data_dir, options.tasks)
    model = ElasticBertForSentenceEmbedding.from_pretrained(path)
    length = min(LENGTH, model.config.max_sequence_length)
    encoded = tokenise(train, tokenizer, length, True)
    firsts, seconds = (tokenise(Examples(own), tokenizer, length, True) for own in (scored.texts, scored.seconds or ()))
    labels: Any = scored.labels
    pairs = SimilaritySet(firsts, seconds, labels, TASKS[SCORED_ON].title)
    args = DistillationArguments(
        output_dir=str(options.output_dir),
        recipe="embedding",
        max_steps=options.max_steps,
        num_train_epochs=options.epochs,
        seed=options.seed,
        bf16=options.bf16,
        save_strategy="steps",
        save_steps=200,
    )
    results = train_elastic(
        model, args, encoded, tokenizer=tokenizer, say=lambda line: print(line, file=sys.stderr, flush=True)
    )
    (whole,) = compute_vectors(model, pairs.texts, [None]).values()
    subnets = [subnet_text(subnet) for subnet in subnet_grid()]
    texts = [*scored.texts, *(scored.seconds or ())]
    places = {text: place for place, text in reversed(list(enumerate(texts)))}
    distinct = np.asarray(sorted(places.values()))
    parts = {"untouched": model}
    for result in results[1:]:
        parts[result.name] = ElasticBertForSentenceEmbedding.from_pretrained(result.folder)
    rows = {name: {"subnet": name} | _cost(model, name) for name in subnets}
    for part, own in parts.items():
        for name, vectors in compute_vectors(own, pairs.texts, subnets).items():
            rows[name][part] = {k: round(v, 5) for k, v in quality(vectors, whole, labels, distinct).items()}
        print(f"embeddings: {part} scored", file=sys.stderr, flush=True)
    engine = EmbeddingEngine.from_pretrained(results[-1].folder)
    for name, times in timed(engine, texts, subnets, options.rounds).items():
        rows[name] |= times
    return {
        "model": Path(str(path)).parent.name if options.model is None else Path(options.model).name,
        "trained_on": {"tasks": list(options.tasks), "texts": len(train), "tokens": sum(encoded.lengths)},
        "scored_on": {"task": SCORED_ON, "pairs": len(pairs), "texts": len(distinct)},
        "steps": args.max_steps,
        "epochs": options.epochs,
        "learning_rate": json.loads((options.output_dir / "settings.json").read_text())["arguments"]["learning_rate"],
        "batch": args.per_device_train_batch_size,
        "seed": options.seed,
        "bf16": options.bf16,
        "recipe": {"hidden_weights": args.make_recipe().hidden_weights},
        "seconds": {result.name: result.seconds for result in results},
        "rounds": options.rounds,
        "rows": list(rows.values()),
    }


def _cost(model: ElasticBertForSentenceEmbedding, name: str) -> dict[str, Any]:
    cost = subnet_cost(model.config, name, seq_length=min(LATENCY_TOKENS, model.config.max_sequence_length))
    return {"parameters": cost.parameters, "gflop": round(cost.gflop, 4)}


def report(found: dict[str, Any]) -> str:
    """A table of a file's rows, in Markdown."""
    lines = [
        "| width, depth | latency | time | texts of a second | Spearman, distilled | rewired | untouched | cosine with "
        "the whole | the same neighbours | Spearman, index of the whole |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    first = found["rows"][0]
    for row in found["rows"]:
        width, _, depth = row["subnet"].removeprefix("w").partition("-d")
        own = row["depth"]
        lines.append(
            f"| {width}, {depth} | {row['latency_ms']:.1f} ms | {row['latency_ms'] / first['latency_ms']:.2f} | "
            f"{row['texts_a_second']:.0f} | {100 * own['spearman']:.1f} | {100 * row['rewired']['spearman']:.1f} | "
            f"{100 * row['untouched']['spearman']:.1f} | {own['cosine']:.3f} | {100 * own['neighbours']:.0f} % | "
            f"{100 * own['spearman_index']:.1f} |"
        )
    facts, seconds = found["environment"], found["seconds"]
    titles = ", ".join(TASKS[task].title for task in found["trained_on"]["tasks"])
    asked = found["steps"] * found["batch"] if found["steps"] > 0 else found["epochs"] * found["trained_on"]["texts"]
    lines += [
        "",
        f"all-MiniLM-L6-v2, distilled on texts of {titles} without labels, {asked:,.0f} of them in each of two stages, "
        f"{sum(seconds.values()) / 60:.0f} minutes of {facts['device']} beside other work, seed {found['seed']}. "
        f"Scored on the {found['scored_on']['pairs']:,} pairs of STS-B's dev split, whose texts were left out of the "
        "training: Spearman's correlation of cosines with people's scores, times 100. *The same neighbours*: of the "
        f"ten nearest of each of {found['scored_on']['texts']:,} texts, those that the whole network before training "
        "finds too. *Index of the "
        "whole*: the first text of each pair has the vector of that network, the second one the sub-network's. "
        f"*Latency*: one text of {LATENCY_TOKENS} tokens, {facts['threads']} thread"
        f"{'s' * (facts['threads'] > 1)}, float32; *texts of a second*: STS-B's own; medians of {found['rounds']} "
        f"rounds, in turns. `{facts['command'].split(' --out')[0]}`; the rows: `benchmarks/results/embeddings.json`.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of ``python -m benchmarks.embeddings``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embeddings", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="folder of a sentence embedder; default: all-MiniLM-L6-v2")
    parser.add_argument("--data_dir", type=Path, required=True, help="GLUE's folder")
    parser.add_argument("--tasks", nargs="+", default=list(TRAINED_ON), choices=sorted(TASKS), help="whose texts train")
    parser.add_argument("--output_dir", type=Path, default=Path("out/embeddings"), help="the run's folder; it goes on")
    parser.add_argument("--max_steps", type=int, default=-1, help="steps of each stage, in place of epochs")
    parser.add_argument("--epochs", type=float, default=1.0, help="of each stage")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16")
    parser.add_argument("--threads", type=int, default=None, help="of PyTorch")
    parser.add_argument("--rounds", type=int, default=7, help="of the times")
    parser.add_argument("--out", type=Path, default=None, help="write the rows to this file")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; allowed: 1 or more")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    given = list(sys.argv[1:] if arguments is None else arguments)
    facts = environment(torch.device("cpu"), given, module="benchmarks.embeddings")  # the code as it is now
    found = run(options) | {"environment": facts}
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
