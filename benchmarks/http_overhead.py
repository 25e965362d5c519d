"""What HTTP adds to an answer: `dynabert serve` in a process of its own, beside the same server asked from Python.

    python -m benchmarks.http_overhead --data_dir GLUE --dtype bfloat16 --threads 1 --out row.json

Callers ask one text at a time and wait for its answer before they ask the next, each on a connection that stays open.
Both ways take turns, round by round, with the same texts and the whole network alone. A row for each number of callers:
the median latency of an answer, and the answers of a second, each the median over the rounds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.rows import environment
from benchmarks.serving import texts_of
from dynabert import ElasticBertForSequenceClassification, InferenceEngine
from dynabert.cli.demo import default_model_path
from dynabert.engine import ElasticServer

CALLERS = (1, 4, 16)
PROMISE_MS = 10_000.0  # one sub-network: nothing is chosen
WHOLE = "w1-d1"
MOST_DIFFERENT = 0.02


@contextmanager
def serving(model: str, dtype: str, threads: int | None) -> Iterator[int]:
    """The port of ``dynabert serve``, in a process of its own."""
    argv = ["serve", "--model_name_or_path", model, "--dtype", dtype, "--subnets", WHOLE, "--port", "0"]
    argv += ["--promise_ms", f"{PROMISE_MS:g}", "--truncate"]
    argv += [] if threads is None else ["--threads", str(threads)]
    with subprocess.Popen(
        [sys.executable, "-m", "dynabert.cli", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
    ) as process:
        assert process.stderr is not None
        try:
            said: list[str] = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"answering at http://[^/]+:(\d+)/", line):
                    break
            else:
                raise RuntimeError(f"dynabert serve did not begin: {''.join(said)}")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            _connect(int(found[1])).close()
            yield int(found[1])
        finally:
            process.send_signal(signal.SIGTERM)


def _connect(port: int) -> http.client.HTTPConnection:
    for _ in range(200):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.connect()
        except ConnectionRefusedError:  # it said so a moment before it listens
            time.sleep(0.05)
        else:
            return connection
    raise RuntimeError(f"nobody answers at port {port}")


def http_asker(port: int) -> Callable[[str], Any]:
    """Asks on a connection of its own."""
    connection = _connect(port)

    def ask(text: str) -> Any:
        connection.request("POST", "/predict", json.dumps({"text": text}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"HTTP {answer.status}: {body.decode()}")
        return json.loads(body)["predictions"][0]["label"]

    return ask


def one_round(askers: Sequence[Callable[[str], Any]], texts: Sequence[str]) -> tuple[float, float, list[Any]]:
    """Median latency in milliseconds, answers of a second, and the answers: asker by asker, each text once."""
    spent: list[list[float]] = [[] for _ in askers]
    answers: list[Any] = [None] * len(texts)

    def work(index: int) -> None:
        for place in range(index, len(texts), len(askers)):
            begun = time.perf_counter()
            answers[place] = askers[index](texts[place])
            spent[index].append(1e3 * (time.perf_counter() - begun))

    callers = [threading.Thread(target=work, args=(index,)) for index in range(len(askers))]
    begun = time.perf_counter()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    seconds = time.perf_counter() - begun
    return statistics.median([ms for own in spent for ms in own]), len(texts) / seconds, answers


def run(
    model: str, dtype: str, texts: Sequence[str], *, callers: Sequence[int], rounds: int, threads: int | None
) -> list[dict[str, Any]]:
    """The rows; see the module."""
    with tempfile.TemporaryDirectory() as folder:  # a head that was drawn anew must be the same in both
        torch.manual_seed(0)
        ElasticBertForSequenceClassification.from_pretrained(model).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
        engine = InferenceEngine.from_pretrained(folder, dtype=dtype)
        with serving(folder, dtype, threads) as port, ElasticServer(engine, [WHOLE], promise_ms=PROMISE_MS) as server:
            return compared(port, server, texts, callers=callers, rounds=rounds)


def compared(
    port: int, server: ElasticServer, texts: Sequence[str], *, callers: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Both ways in turns, at each number of callers."""
    rows = []

    def within(text: str) -> Any:
        return server.ask(text, truncate=True).result().label

    for count in callers:
        ways = {"python": [within] * count, "http": [http_asker(port) for _ in range(count)]}
        found: dict[str, list[tuple[float, float, list[Any]]]] = {name: [] for name in ways}
        for number in range(rounds + 1):  # the first warms up
            for name, askers in ways.items():
                one = one_round(askers, texts)
                if number:
                    found[name].append(one)
        wanted = found["python"][0][2]
        for _, _, answers in found["http"]:  # batches differ, so a text between two labels may get the other one
            differ = sum(own != other for own, other in zip(answers, wanted, strict=True))
            if differ > MOST_DIFFERENT * len(texts):
                raise RuntimeError(f"the two ways answered {differ} of {len(texts)} texts differently")
        row: dict[str, Any] = {"callers": count, "texts": len(texts), "rounds": rounds}
        for name, own in found.items():
            row[f"{name}_median_ms"] = round(statistics.median(one[0] for one in own), 3)
            row[f"{name}_answers_a_second"] = round(statistics.median(one[1] for one in own), 1)
        row["added_ms"] = round(row["http_median_ms"] - row["python_median_ms"], 3)
        rows.append(row)
        print(f"http: {json.dumps(row)}", file=sys.stderr, flush=True)
    return rows


def report(found: dict[str, Any]) -> str:
    """A table of a file's rows, in Markdown."""
    lines = [
        "| callers | median ms, from Python | over HTTP | answers of a second, from Python | over HTTP |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['callers']} | {row['python_median_ms']:.2f} | {row['http_median_ms']:.2f} | "
        f"{row['python_answers_a_second']:.0f} | {row['http_answers_a_second']:.0f} |"
        for row in found["rows"]
    ]
    facts = found["environment"]
    lines += [
        "",
        f"{found['model']}, {found['dtype']}, {found['texts']}, {facts['device']}, {facts['threads']} "
        f"thread{'s' * (facts['threads'] > 1)} for the network, callers on the same machine, torch {facts['torch']}; "
        f"the median of {found['rows'][0]['rounds']} rounds, in turns. `{facts['command'].split(' --out')[0]}`; the "
        "rows: `benchmarks/results/http-overhead.json`.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of ``python -m benchmarks.http_overhead``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="folder of a model with its tokenizer; default: all-MiniLM-L6-v2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), default="float32")
    parser.add_argument("--data_dir", type=Path, default=None, help="GLUE's folder; default: made-up texts")
    parser.add_argument("--callers", nargs="+", type=int, default=list(CALLERS), help="that ask at the same time")
    parser.add_argument("--texts", type=int, default=320, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None, help="of the network; default: PyTorch's")
    parser.add_argument("--out", type=Path, default=None, help="write the rows to this file")
    options = parser.parse_args(arguments)
    if min(*options.callers, options.texts, options.rounds) < 1:
        parser.error("--callers, --texts and --rounds must be 1 or more")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = options.model or str(default_model_path())
    texts, source = texts_of(options.data_dir, options.texts, 0)
    given = list(sys.argv[1:] if arguments is None else arguments)
    facts = environment(torch.device("cpu"), given, module="benchmarks.http_overhead")
    row = {
        "model": Path(model).name if options.model else "all-MiniLM-L6-v2",
        "dtype": options.dtype,
        "texts": source,
        "rows": run(
            model,
            options.dtype,
            texts,
            callers=options.callers,
            rounds=options.rounds,
            threads=options.threads,
        ),
        "environment": facts,
    }
    if options.out is not None:  # first: a reader that stops early must not take it along
        options.out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    print(report(row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
