"""One engine serves requests of different widths: each names its sub-network, and shares a batch with others.

    python examples/serve_mixed_widths.py --model_name_or_path elastic     # your elastic checkpoint
    python examples/serve_mixed_widths.py --tiny                           # a tiny random network

Shows: clients that ask from several threads; a queue whose worker takes whatever is waiting, up to a bound, and answers
it in one call with a sub-network for each text; that two workers may use one engine at once; and that every answer is
what its sub-network gives alone. Prints requests a second and how full the batches were. Seconds with `--tiny`; with a
real network `--requests` decides.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import tiny_network
import torch

from dynabert import InferenceEngine
from dynabert.engine import Prediction

# A caller in a hurry takes a narrow network, one with time the whole.
SUBNETS = ("w1-d1", "w0.5-d1", "w0.25-d0.5")


class MixedWidthServer:
    """A queue before an engine. ``ask`` returns at once; the answer is the future's result."""

    def __init__(self, engine: InferenceEngine, workers: int = 2, most: int = 32) -> None:
        self.engine, self.most = engine, most
        self.batch_sizes: list[int] = []
        self._waiting: queue.SimpleQueue[tuple[str, str, Future[Prediction]] | None] = queue.SimpleQueue()
        self._workers = [threading.Thread(target=self._work) for _ in range(workers)]
        for worker in self._workers:
            worker.start()

    def ask(self, text: str, subnet: str) -> Future[Prediction]:
        """The answer to a text, at a sub-network, when it is there. A text that is refused fails alone."""
        answer: Future[Prediction] = Future()
        self._waiting.put((text, subnet, answer))
        return answer

    def close(self) -> None:
        """Answers what is waiting, then ends the workers."""
        for _ in self._workers:
            self._waiting.put(None)
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while (request := self._waiting.get()) is not None:  # waits for the first
            taken = [request]
            while len(taken) < self.most:
                try:
                    request = self._waiting.get_nowait()  # and takes the others that are there already
                except queue.Empty:
                    break
                if request is None:
                    self._waiting.put(None)  # the end comes after what was taken
                    break
                taken.append(request)
            self._answer(taken)

    def _answer(self, taken: list[tuple[str, str, Future[Prediction]]]) -> None:
        self.batch_sizes.append(len(taken))
        try:
            found = self.engine.predict([text for text, _, _ in taken], subnet=[subnet for _, subnet, _ in taken])
        except Exception as error:  # of one request, which should not fail the others
            if len(taken) == 1:
                taken[0][2].set_exception(error)
                return
            for request in taken:
                self._answer([request])
            return
        for (_, _, answer), prediction in zip(taken, found, strict=True):
            answer.set_result(prediction)


def client(server: MixedWidthServer, texts: list[str], seed: int, found: list[tuple[str, str, Prediction]]) -> None:
    """Asks for each text at a sub-network of its choice, a few at a time."""
    chance = random.Random(seed)
    for start in range(0, len(texts), 8):
        asked = [(text, chance.choice(SUBNETS)) for text in texts[start : start + 8]]
        answers = [server.ask(text, subnet) for text, subnet in asked]
        found += [(text, subnet, answer.result()) for (text, subnet), answer in zip(asked, answers, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model_name_or_path", help="an elastic checkpoint with its tokenizer")
    parser.add_argument("--tiny", action="store_true", help="a tiny random network in place of yours")
    parser.add_argument("--clients", type=int, default=4, help="threads that ask")
    parser.add_argument("--requests", type=int, default=400, help="of all clients together")
    args = parser.parse_args()
    if bool(args.model_name_or_path) == args.tiny:
        parser.error("give either --model_name_or_path or --tiny")

    torch.set_num_threads(1)  # two workers that each take every core would wait for each other
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_network.tiny_checkpoint(Path(folder)) if args.tiny else args.model_name_or_path
        engine = InferenceEngine.from_pretrained(path)
    texts = [text for text, _ in tiny_network.texts(args.requests)]

    server = MixedWidthServer(engine)
    found: list[tuple[str, str, Prediction]] = []
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
    server.close()

    sizes = server.batch_sizes
    print(
        f"{len(found)} requests from {args.clients} threads in {seconds:.2f} s: {len(found) / seconds:.0f} a second, "
        f"{len(sizes)} batches of {sum(sizes) / len(sizes):.1f} requests ({os.cpu_count()} CPUs, one thread a worker)"
    )
    for subnet in SUBNETS:
        own = [(text, answer) for text, asked, answer in found if asked == subnet]
        alone = engine.predict([text for text, _ in own], subnet=subnet)
        difference = max(abs(a.score - b.score) for (_, a), b in zip(own, alone, strict=True))
        print(f"{subnet}: {len(own)} requests, the largest difference from this sub-network alone is {difference:.1e}")
        assert difference < 1e-5


if __name__ == "__main__":
    main()
