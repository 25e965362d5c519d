"""``python -m benchmarks.cpu_peers --model minilm --out rows.json``: see the package."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cpu_peers import report
from benchmarks.cpu_peers.ceiling import KINDS, multiplications, peak_rate
from benchmarks.cpu_peers.peers import OURS, Builder, NotHere, Peer
from benchmarks.cpu_peers.works import Ids, Work, dev_texts, interleave, sst2_like, works
from benchmarks.rows import environment
from dynabert import ElasticBertConfig, InferenceEngine
from dynabert.cli.demo import default_model_path
from dynabert.processor import cpu_flags

SEED = 42
TEXTS = 256
REST = 0.04  # seconds before each run with several threads, see interleave
SENTENCE = "it 's a charming and often affecting journey ."


# What decides which kernels an engine picks.
_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")


def instructions() -> list[str]:
    """Those of the processor's instruction sets that matter here; empty where the system does not list them."""
    found = cpu_flags()
    return [flag for flag in _FLAGS if flag in found]


def prepare(model: str, folder: Path) -> Path:
    """A checkpoint with a head of two labels, and its tokenizer, for all peers. Weights of ``base`` are random."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

    torch.manual_seed(SEED)
    source = model if model not in ("minilm", "base") else str(default_model_path())
    tokenizer = AutoTokenizer.from_pretrained(source)
    if model == "base":
        network = AutoModelForSequenceClassification.from_config(BertConfig(num_labels=2))
    else:
        network = AutoModelForSequenceClassification.from_pretrained(source)
    head = network.classifier if isinstance(network.classifier, torch.nn.Linear) else network.classifier.out_proj
    torch.nn.init.normal_(head.weight)  # logits that are large beside what rounding does to them
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def time_works(
    peers: Sequence[Peer], todo: Sequence[Work], seconds: float, rounds: int = 3, rest: float = 0.0
) -> list[dict[str, Any]]:
    """One row for each work and peer.

    Works on the same batches, which differ in the sub-network alone, take turns in the same rounds: their ratios are
    then free of what else the machine does meanwhile. ``seconds``: for each work.
    """
    rows: list[dict[str, Any]] = []
    for batches, group in itertools.groupby(todo, key=lambda work: work.batches):
        together = list(group)
        contenders: dict[tuple[str, str], Callable[[], object]] = {}
        for work, peer in itertools.product(together, peers):
            if peer.name in OURS:
                chosen = list(work.subnet) if isinstance(work.subnet, tuple) else work.subnet
                contenders[work.name, peer.name] = lambda peer=peer, chosen=chosen, batches=batches: [  # type: ignore[misc]
                    peer.answer(batch, chosen) for batch in batches
                ]
            elif not work.only_ours:
                contenders[work.name, peer.name] = lambda peer=peer, batches=batches: [  # type: ignore[misc]
                    peer.answer(batch) for batch in batches
                ]
        if not contenders:
            continue
        first = together[0]
        print(f"{first.name}: {first.real_tokens} tokens, {first.padded_tokens} padded", file=sys.stderr)
        for (name, peer_name), times in interleave(contenders, seconds * len(together), rounds, rest=rest).items():
            rows.append({
                "work": name, "peer": peer_name, **times.numbers(), "texts": sum(map(len, batches)),
                "tokens": first.real_tokens, "padded_tokens": first.padded_tokens,
            })  # fmt: skip
    return rows


def time_end_to_end(folder: Path, seconds: float, rounds: int = 3) -> list[dict[str, Any]]:
    """One text at a time, from a str to a label: our engine, and transformers' pipeline on the whole network."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    engine = InferenceEngine.from_pretrained(folder)
    half = InferenceEngine.from_pretrained(folder, dtype="bfloat16")
    plain = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    asked = pipeline(
        "text-classification", model=plain, tokenizer=AutoTokenizer.from_pretrained(str(folder)), device="cpu"
    )
    found = interleave(
        {
            "ours float32, w0.25-d1": lambda: engine.predict(SENTENCE, subnet="w0.25-d1"),
            "ours float32, w1-d1": lambda: engine.predict(SENTENCE),
            "ours bfloat16, w0.25-d1": lambda: half.predict(SENTENCE, subnet="w0.25-d1"),
            "transformers pipeline float32": lambda: asked(SENTENCE),
            **sentence_transformers(folder),
        },
        seconds,
        rounds,
        most=400,
    )
    tokens = len(engine.tokenizer(SENTENCE)["input_ids"])
    work = "one text, with tokenising"
    return [
        {"work": work, "peer": name, **times.numbers(), "texts": 1, "tokens": tokens, "padded_tokens": tokens}
        for name, times in found.items()
    ]


def sentence_transformers(folder: Path) -> dict[str, Callable[[], object]]:
    """That library's ``encode``, where it is installed: the same encoder and a mean of its states, without a head."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return {}
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]

    encoder = SentenceTransformer(str(folder), device="cpu")
    return {"sentence-transformers float32": lambda: encoder.encode(SENTENCE, show_progress_bar=False)}


def memory(folder: Path) -> dict[str, int]:
    """Bytes of the checkpoint's weights, and of what an engine holds after it has served every sub-network."""
    from safetensors.torch import load_file

    stored = sum(
        t.numel() * t.element_size() for file in folder.glob("*.safetensors") for t in load_file(file).values()
    )
    engine = InferenceEngine.from_pretrained(folder)
    for depth in (1, 0.75, 0.5):
        for width in (1, 0.75, 0.5, 0.25):
            engine.predict(SENTENCE, subnet=f"w{width}-d{depth}")
    held = {t.data_ptr(): t.numel() * t.element_size() for t in [*engine.model.parameters(), *engine.model.buffers()]}
    return {"checkpoint_bytes": stored, "engine_bytes": sum(held.values())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of ``python -m benchmarks.cpu_peers``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_peers", description=__doc__)
    parser.add_argument("--model", default="minilm", help="minilm, base (random weights), or a folder of a classifier")
    parser.add_argument("--threads", type=int, default=1, help="of every engine")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each work; see --rounds")
    parser.add_argument(
        "--peers", nargs="*", default=None, metavar="PEER", help="names, or parts of names; default all"
    )
    parser.add_argument("--works", nargs="*", default=None, metavar="WORK", help="parts of names; default: all")
    parser.add_argument("--data_dir", type=Path, default=None, help="GLUE folder; without it lengths like SST-2's")
    parser.add_argument("--tasks", nargs="*", default=["sst2"], help="whose dev texts, from --data_dir")
    parser.add_argument("--texts", type=int, default=None, help=f"of each task; default {TEXTS}, with --quick 64")
    parser.add_argument("--rounds", type=int, default=3, help="least number of timed rounds of each work")
    parser.add_argument("--quick", action="store_true", help="a check that all of it runs: few texts, one round")
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the rows; a picture is put beside it")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.rounds = 0.5, 1
    if options.texts is None:
        options.texts = 64 if options.quick else TEXTS
    if options.threads < 1 or options.seconds <= 0 or options.texts < 1 or options.rounds < 1:
        parser.error("--threads, --texts and --rounds must be 1 or more, and --seconds above 0")
    torch.set_num_threads(options.threads)
    given = list(sys.argv[1:] if arguments is None else arguments)
    with tempfile.TemporaryDirectory(prefix="dynabert-peers-") as scratch:
        folder = prepare(options.model, Path(scratch))
        found = measure(folder, options)
    facts = environment(torch.device("cpu"), given, module="benchmarks.cpu_peers")
    if options.data_dir is not None:
        facts["command"] = facts["command"].replace(str(options.data_dir), "GLUE")
    result = {"model": options.model, **found, **facts, "instructions": instructions()}
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        report.draw(result, options.out.with_suffix(".png"))
    print(report.table(result))
    return 0


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Rows of the peers that are here and answer right, and why the others are not measured."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    builder = Builder(folder, options.threads)
    config = ElasticBertConfig.from_pretrained(folder)
    vocabulary = builder.plain.config.vocab_size
    check: Ids = sst2_like(8, vocabulary, SEED)
    wanted: NDArray[np.floating] = builder.build("torch eager float32").answer(check)
    peers, absent, agree, versions = [], {}, {}, {}
    for name in builder.names():
        if options.peers is not None and not any(part in name for part in options.peers):
            continue
        print(f"building {name}", file=sys.stderr)
        try:
            peer, agree[name] = builder.take_part(name, check, wanted)
        except NotHere as reason:
            absent[name] = str(reason)
            continue
        peers.append(peer)
        versions[name] = peer.version
    real = {f"{options.texts} texts like SST-2": sst2_like(options.texts, vocabulary, SEED)}
    if options.data_dir is not None:
        real = {task: dev_texts(task, options.data_dir, tokenizer, options.texts) for task in options.tasks}
    todo = [
        work
        for work in works(vocabulary, real, SEED)
        if options.works is None or any(part in work.name for part in options.works)
    ]
    rest = REST if options.threads > 1 else 0.0
    peak = {kind: peak_rate(kind, options.threads) for kind in KINDS}
    rows = time_works(peers, todo, options.seconds, options.rounds, rest)
    if options.works is None or any(part in "one text, with tokenising" for part in options.works):
        rows += time_end_to_end(folder, options.seconds, options.rounds)
    return {
        "rows": rows,
        "not_measured": absent,
        "largest_difference": agree,
        "versions": versions,
        "rest_seconds": rest,
        "peak_multiplications_per_second": peak,
        "multiplications": {work.name: multiplications(config, work) for work in todo},
        "memory": memory(folder),
    }


if __name__ == "__main__":
    raise SystemExit(main())
