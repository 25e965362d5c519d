"""Many threads, one engine, random sub-networks: is every answer the solo one, and does memory stay flat?

Run: ``python -m benchmarks.engine_threads --seconds 60 --out row.json``. Each thread asks, again and again, for a few
random texts at random sub-networks (one for all of them, or one for each), and compares every answer with what one
thread alone was answered before. Exit code 1 when an answer differed, or when more memory was held in the second half
of the time than in the first.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from benchmarks.rows import environment
from dynabert import ElasticBertForSequenceClassification, InferenceEngine
from dynabert.cli.demo import default_model_path

SUBNETS = [f"w{width}-d{depth}" for depth in (1, 0.75, 0.5) for width in (1, 0.75, 0.5, 0.25)]
TEXTS = 64
_SENTENCE = "a the film story plot is was not very good bad slow funny moving dull with and of its cast never again"
WORDS = _SENTENCE.split()
SAMPLES = 20  # of memory
LARGEST_GROWTH = 8 * 2**20  # bytes, from the first half's most to the second's: the allocator's own to and fro
# The head's product may round otherwise in a batch.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3, "int8": 2e-2}


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS line; this measurement needs Linux")


def build_engine(path: str, dtype: str) -> InferenceEngine:
    """An engine on this checkpoint; a head that it lacks is drawn anew, since the answers need only be repeatable."""
    torch.manual_seed(0)
    int8 = dtype == "int8"
    loaded = torch.float32 if int8 else getattr(torch, dtype)
    model = ElasticBertForSequenceClassification.from_pretrained(path, dtype=loaded).eval()
    if int8:
        model.quantise_weights()
    elif model.device.type == "cpu":
        model.pack_weights()
    return InferenceEngine(model, AutoTokenizer.from_pretrained(path))


def run(engine: InferenceEngine, seconds: float, threads: int, seed: int = 0) -> dict[str, object]:
    """Asks from all threads for so long and returns the counts; see the module."""
    drawn = random.Random(seed)
    texts = [" ".join(drawn.choices(WORDS, k=drawn.randint(1, 24))) for _ in range(TEXTS)]
    solo = {subnet: [one.logits for one in engine.predict(texts, subnet=subnet)] for subnet in SUBNETS}
    tolerance = TOLERANCE[str(engine.dtype).removeprefix("torch.")]
    answers, wrong, failed = [0] * threads, [0] * threads, []
    largest = [0.0] * threads
    until = time.monotonic() + seconds

    def ask(index: int) -> None:
        own = random.Random((seed, index).__hash__())
        try:
            while time.monotonic() < until:
                chosen = own.choices(range(TEXTS), k=own.randint(1, 12))
                many = (
                    own.choices(SUBNETS, k=len(chosen)) if own.random() < 0.5 else [own.choice(SUBNETS)] * len(chosen)
                )
                subnet = many if len(set(many)) > 1 else many[0]
                found = engine.predict([texts[i] for i in chosen], subnet=subnet)
                for place, name, one in zip(chosen, many, found, strict=True):
                    off = max(abs(a - b) for a, b in zip(one.logits, solo[name][place], strict=True))
                    largest[index] = max(largest[index], off)
                    answers[index] += 1
                    wrong[index] += off > tolerance or one.subnet != name
        except Exception as error:  # a thread that dies must not be counted as one that is right
            failed.append(f"thread {index}: {type(error).__name__}: {error}")

    asking = [threading.Thread(target=ask, args=(index,)) for index in range(threads)]
    for thread in asking:
        thread.start()
    held = []
    while any(thread.is_alive() for thread in asking):
        held.append(resident_bytes())
        asking[0].join(timeout=seconds / SAMPLES)
    for thread in asking:
        thread.join()
    half = max(1, len(held) // 2)
    return {
        "seconds": seconds,
        "callers": threads,
        "answers": sum(answers),
        "wrong": sum(wrong),
        "failed": failed,
        "largest_difference": max(largest),
        "tolerance": tolerance,
        "most_resident_bytes_first_half": max(held[:half]),
        "most_resident_bytes_second_half": max(held[half:], default=0),
        "resident_bytes": held,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of ``python -m benchmarks.engine_threads``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_threads", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="folder of a model with its tokenizer; default: all-MiniLM-L6-v2")
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="float32")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="write the row to this file")
    options = parser.parse_args(arguments)
    if options.seconds <= 0 or options.threads < 1:
        parser.error("--seconds must be above 0 and --threads 1 or more")
    engine = build_engine(options.model or str(default_model_path()), options.dtype)
    found = run(engine, options.seconds, options.threads, options.seed)
    given = list(sys.argv[1:] if arguments is None else arguments)
    facts = environment(engine.device, given, module="benchmarks.engine_threads")
    row = {"dtype": options.dtype, **found, **facts}
    print(json.dumps(row, indent=1))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    first, second = (int(str(found[f"most_resident_bytes_{half}_half"])) for half in ("first", "second"))
    grown = second - first
    return int(bool(found["wrong"] or found["failed"] or not found["answers"]) or grown > LARGEST_GROWTH)


if __name__ == "__main__":
    raise SystemExit(main())
