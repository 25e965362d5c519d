"""One engine serves requests of different widths: each may name its sub-network, and shares a batch with others.

    python examples/serve_mixed_widths.py --model_name_or_path elastic     # your elastic checkpoint
    python examples/serve_mixed_widths.py --tiny                           # a tiny random network

Shows: an `ElasticServer`; clients that ask it from several threads, each request at a sub-network of the caller's
choice or at any that answers in time; and that every answer is what its sub-network gives alone. Prints requests a
second, latencies and how full the batches were. Seconds with `--tiny`; with a real network `--requests` decides.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import tiny_network

from dynabert import InferenceEngine
from dynabert.engine import ElasticServer, Prediction

# What the server chooses from, the best first. A caller who leaves it the choice says "auto".
LADDER = ("w1-d1", "w0.5-d1", "w0.25-d0.5")
ASKED = ("auto", *LADDER)


def client(server: ElasticServer, texts: list[str], seed: int, found: list[tuple[str, str, Prediction]]) -> None:
    """Asks for each text at a sub-network of its choice, a few at a time."""
    chance = random.Random(seed)
    for start in range(0, len(texts), 8):
        asked = [(text, chance.choice(ASKED)) for text in texts[start : start + 8]]
        answers = [server.ask(text, subnet) for text, subnet in asked]
        found += [(text, subnet, answer.result()) for (text, subnet), answer in zip(asked, answers, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model_name_or_path", help="an elastic checkpoint with its tokenizer")
    parser.add_argument("--tiny", action="store_true", help="a tiny random network in place of yours")
    parser.add_argument("--clients", type=int, default=4, help="threads that ask")
    parser.add_argument("--requests", type=int, default=400, help="of all clients together")
    parser.add_argument("--promise_ms", type=float, default=50.0, help="in which a request is to be answered")
    args = parser.parse_args()
    if bool(args.model_name_or_path) == args.tiny:
        parser.error("give either --model_name_or_path or --tiny")

    with tempfile.TemporaryDirectory() as folder:
        path = tiny_network.tiny_checkpoint(Path(folder)) if args.tiny else args.model_name_or_path
        engine = InferenceEngine.from_pretrained(path)
    texts = [text for text, _ in tiny_network.texts(args.requests)]

    found: list[tuple[str, str, Prediction]] = []
    with ElasticServer(engine, LADDER, promise_ms=args.promise_ms) as server:
        clients = [
            threading.Thread(target=client, args=(server, texts[number :: args.clients], number, found))
            for number in range(args.clients)
        ]
        begun = time.perf_counter()
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        seconds = time.perf_counter() - begun
        stats = server.stats()

    print(
        f"{len(found)} requests from {args.clients} threads in {seconds:.2f} s: {len(found) / seconds:.0f} a second, "
        f"{stats.batches} batches of {stats.answered / stats.batches:.1f} requests ({os.cpu_count()} CPUs)"
    )
    print(
        f"p50 {stats.p50_ms:.1f} ms, p99 {stats.p99_ms:.1f} ms; {stats.late} came after the promise of "
        f"{args.promise_ms:g} ms"
    )
    for subnet in LADDER:
        own = [(text, answer) for text, _, answer in found if answer.subnet == subnet]
        chosen = sum(asked == "auto" and answer.subnet == subnet for _, asked, answer in found)
        alone = engine.predict([text for text, _ in own], subnet=subnet)
        difference = max((abs(a.score - b.score) for (_, a), b in zip(own, alone, strict=True)), default=0.0)
        print(
            f"{subnet}: {len(own)} requests, {chosen} of them by the server's choice; the largest difference from this "
            f"sub-network alone is {difference:.1e}"
        )
        assert difference < 1e-5


if __name__ == "__main__":
    main()
