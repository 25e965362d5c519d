"""Requests that come faster than the whole network answers: what a server with widths makes of them.

    python -m benchmarks.serving --data_dir GLUE --dtype bfloat16 --out row.json

Requests arrive at random times (an open loop: nobody waits for an answer before the next one asks), at multiples of
what the whole network alone can answer. Two servers take the same arrivals: one has the whole network only, the other
a ladder of sub-networks and a promise. Both share batches. A row for each: latencies from the request to its answer,
the share that came after the promise, and the sub-networks that answered. The weights are a plain checkpoint's: what
matters here is time. With ``--urgent_share`` the second server takes the arrivals once more, and so many of them have a
promise of their own, ``--urgent_ms``; a row each for these and for the others.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from benchmarks.engine_threads import WORDS, build_engine
from benchmarks.rows import environment
from dynabert import InferenceEngine
from dynabert.cli.demo import default_model_path
from dynabert.engine import ElasticServer, Prediction

LADDER = ("w1-d1", "w0.75-d1", "w0.5-d1", "w0.25-d1", "w0.25-d0.5")
LOADS = (0.5, 0.9, 1.5, 3.0, 5.0)
QUANTILES = (0.5, 0.95, 0.99)


def texts_of(data_dir: Path | None, count: int, seed: int) -> tuple[list[str], str]:
    """Texts in a random order, and what they are: SST-2's dev set, or made-up ones of like lengths."""
    drawn = random.Random(seed)
    if data_dir is None:
        return [" ".join(drawn.choices(WORDS, k=drawn.randint(4, 40))) for _ in range(count)], "made-up texts"
    from dynabert.data import load_task

    found = list(load_task("sst2", data_dir=data_dir, split="validation").texts)
    return drawn.choices(found, k=count), "SST-2's dev set"


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times, in seconds, of requests that come independently of each other, ``rate`` a second on average."""
    drawn = random.Random(seed)
    times, now = [], drawn.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += drawn.expovariate(rate)
    return times


def serve(
    server: ElasticServer,
    texts: Sequence[str],
    times: Sequence[float],
    *,
    urgent_share: float = 0.0,
    urgent_ms: float = 0.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Asks at these times, waits for all answers, and counts: a row of those with the server's promise, and one of the
    urgent ones where there are any."""
    drawn = random.Random(seed)
    urgent = [drawn.random() < urgent_share for _ in times]
    done: list[tuple[bool, float, str]] = []
    ended = threading.Event()

    def ask_at(at: float, text: str, soon: bool) -> None:
        def answered(future: Future[Prediction]) -> None:
            # From when it should have been asked: a generator that comes late must not hide a latency.
            done.append((soon, 1e3 * (time.perf_counter() - at), future.result().subnet))
            if len(done) == len(times):
                ended.set()

        server.ask(text, within_ms=urgent_ms if soon else None).add_done_callback(answered)

    begun = time.perf_counter()
    for index, offset in enumerate(times):
        if (wait := begun + offset - time.perf_counter()) > 0:
            time.sleep(wait)
        ask_at(begun + offset, texts[index % len(texts)], urgent[index])
    if times:
        ended.wait()
    seconds = time.perf_counter() - begun
    stats = server.stats()
    rows = []
    for soon in sorted(set(urgent)):
        promise = urgent_ms if soon else server.promise_ms
        own = [(latency, name) for which, latency, name in done if which is soon]
        ordered = sorted(latency for latency, _ in own)
        row: dict[str, Any] = {
            "promise_ms": promise,
            "requests": len(own),
            "seconds": round(seconds, 3),
            "answered_a_second": round(len(own) / seconds, 1),
            "late_share": round(sum(latency > promise for latency in ordered) / max(1, len(ordered)), 4),
            "subnets": dict(sorted(Counter(name for _, name in own).items())),
            "batches": stats.batches,
            "slowdown_at_the_end": round(stats.slowdown, 3),
        }
        for quantile in QUANTILES:
            row[f"p{round(100 * quantile)}_ms"] = round(ordered[int(quantile * (len(ordered) - 1))], 2)
        rows.append(row)
    return rows


def run(
    engine: InferenceEngine,
    texts: Sequence[str],
    *,
    ladder: Sequence[str] = LADDER,
    loads: Sequence[float] = LOADS,
    promise_ms: float = 100.0,
    seconds: float = 8.0,
    urgent_share: float = 0.0,
    urgent_ms: float = 0.0,
    seed: int = 0,
    say: bool = True,
) -> dict[str, Any]:
    """Both servers at every load, one after the other. See the module."""
    kinds = [("whole", ladder[:1], 0.0), ("elastic", ladder, 0.0)]
    if urgent_share:
        kinds.append(("urgent", ladder, urgent_share))
    with ElasticServer(engine, ladder, promise_ms=promise_ms) as measured:
        whole = measured.ladder[0]
        times = [own._asdict() for own in measured.ladder]
    lengths = engine._encoder.encode(list(texts)).lengths
    capacity = 1e3 / (whole.ms_per_token * sum(lengths) / len(lengths))
    rows = []
    for index, load in enumerate(loads):
        asked = arrivals(load * capacity, seconds, seed + index)
        for kind, subnets, share in kinds:
            with ElasticServer(engine, subnets, promise_ms=promise_ms, max_waiting=10**7) as server:
                found = serve(server, texts, asked, urgent_share=share, urgent_ms=urgent_ms, seed=seed)
            for own in found:
                # Of the third server: who has a promise of its own, and the others.
                name = kind if kind != "urgent" or own["promise_ms"] == urgent_ms else "beside urgent"
                row = {"load": load, "server": name, "offered_a_second": round(load * capacity, 1), **own}
                rows.append(row)
                if say:
                    print(f"serving: {json.dumps(row)}", file=sys.stderr, flush=True)
    return {
        "promise_ms": promise_ms,
        "capacity_a_second": round(capacity, 1),
        "mean_tokens": round(sum(lengths) / len(lengths), 2),
        "ladder": times,
        "rows": rows,
    }


def report(found: dict[str, Any]) -> str:
    """A table of a file's rows, in Markdown."""
    lines = [
        "| requests, of what the whole network can answer | p50, p99 ms, whole network alone | late | p50, p99 ms, "
        "with widths | late | its answers by sub-network |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    by_key = {(row["load"], row["server"]): row for row in found["rows"]}
    order = [own["subnet"] for own in found["ladder"]]
    for load in dict.fromkeys(load for load, _ in by_key):
        whole, elastic = by_key[load, "whole"], by_key[load, "elastic"]
        cells = [f"{load:g}x ({whole['offered_a_second']:.0f} a second)"]
        for row in (whole, elastic):
            cells += [f"{row['p50_ms']:.0f}, {row['p99_ms']:.0f}", f"{100 * row['late_share']:.1f} %"]
        shares = [
            f"{name} {100 * elastic['subnets'][name] / elastic['requests']:.0f} %"
            for name in order
            if name in elastic["subnets"]
        ]
        lines.append(f"| {' | '.join([*cells, ', '.join(shares)])} |")
    facts = found["environment"]
    lines += [
        "",
        f"{found['model']}, {found['dtype']}, {found['texts']} ({found['mean_tokens']:.0f} tokens a text), "
        f"{facts['device']}, {facts['threads']} thread{'s' * (facts['threads'] > 1)}, torch {facts['torch']}. A "
        f"promise of {found['promise_ms']:g} ms; *late*: answered after it. Requests arrive at random times, for "
        f"{found['seconds']:g} seconds; all are answered, however late. `{facts['command'].split(' --out')[0]}`; "
        "the rows: `benchmarks/results/serving.json`.",
    ]
    return "\n".join(lines)


def urgent_report(found: dict[str, Any]) -> str:
    """A table of the rows of a run with urgent requests, in Markdown."""
    lines = [
        "| requests, of what the whole network can answer | who | p50, p99 ms | late | by the whole network |",
        "| --- | --- | --- | --- | --- |",
    ]
    by_key = {(row["load"], row["server"]): row for row in found["rows"]}
    whole = found["ladder"][0]["subnet"]

    words = {"elastic": "nobody is urgent", "urgent": "the urgent ones", "beside urgent": "the others"}
    for load in dict.fromkeys(load for load, _ in by_key):
        for kind, who in words.items():
            row = by_key[load, kind]
            wide = row["subnets"].get(whole, 0) / row["requests"]
            lines.append(
                f"| {load:g}x ({row['offered_a_second']:.0f} a second) | {who} | {row['p50_ms']:.0f}, "
                f"{row['p99_ms']:.0f} | {100 * row['late_share']:.1f} % | {100 * wide:.0f} % |"
            )
    facts = found["environment"]
    lines += [
        "",
        f"{found['model']}, {found['dtype']}, {found['texts']}, {facts['device']}, {facts['threads']} "
        f"thread{'s' * (facts['threads'] > 1)}, torch {facts['torch']}. A promise of {found['promise_ms']:g} ms, and "
        f"of {found['urgent_ms']:g} ms for {100 * found['urgent_share']:g} % of the requests, drawn at random. "
        f"`{facts['command'].split(' --out')[0]}`; the rows: `benchmarks/results/serving-urgent.json`.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of ``python -m benchmarks.serving``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="folder of a model with its tokenizer; default: all-MiniLM-L6-v2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), default="float32")
    parser.add_argument("--data_dir", type=Path, default=None, help="GLUE's folder; default: made-up texts")
    parser.add_argument(
        "--subnets", nargs="+", default=list(LADDER), help="the ladder; the first is the whole network's"
    )
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS), help="requests, in the whole network's")
    parser.add_argument("--promise_ms", type=float, default=100.0, help="in which a request is to be answered")
    parser.add_argument("--seconds", type=float, default=8.0, help="for which requests come, at each load")
    parser.add_argument("--urgent_share", type=float, default=0.0, help="of the requests; they have --urgent_ms")
    parser.add_argument("--urgent_ms", type=float, default=20.0, help="the promise of urgent requests")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--out", type=Path, default=None, help="write the rows to this file")
    options = parser.parse_args(arguments)
    if options.seconds <= 0 or options.promise_ms <= 0 or min(options.loads) <= 0:
        parser.error("--seconds, --promise_ms and --loads must be above 0")
    if not 0.0 <= options.urgent_share < 1.0 or not 0.0 < options.urgent_ms < options.promise_ms:
        parser.error("--urgent_share must be from 0, below 1, and --urgent_ms above 0, below --promise_ms")
    engine = build_engine(options.model or str(default_model_path()), options.dtype)
    texts, source = texts_of(options.data_dir, 2000, options.seed)
    given = list(sys.argv[1:] if arguments is None else arguments)
    facts = environment(engine.device, given, module="benchmarks.serving")
    gc.collect()
    gc.freeze()  # as a service should: else every full collection walks through all of PyTorch, while requests wait
    found = run(
        engine,
        texts,
        ladder=options.subnets,
        loads=options.loads,
        promise_ms=options.promise_ms,
        seconds=options.seconds,
        urgent_share=options.urgent_share,
        urgent_ms=options.urgent_ms,
        seed=options.seed,
    )
    model = Path(options.model).name if options.model else "all-MiniLM-L6-v2"
    row = {"model": model, "dtype": options.dtype, "texts": source, "seconds": options.seconds, **found}
    row |= {"urgent_share": options.urgent_share, "urgent_ms": options.urgent_ms} if options.urgent_share else {}
    row["environment"] = facts
    if options.out is not None:  # first: a reader that stops early must not take it along
        options.out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    print(urgent_report(row) if options.urgent_share else report(row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
