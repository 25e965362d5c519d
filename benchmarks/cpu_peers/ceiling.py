"""What the processor could do at the very most, and how many multiplications a work takes.

No engine can answer faster than its products at the rate of the instruction that they are made of, with nothing else
done and nothing waited for. Beside a ratio this says whether a goal could be met at all.
"""

from __future__ import annotations

import statistics
import threading
import time

from benchmarks.cpu_peers.works import Work
from dynabert import ElasticBertConfig
from dynabert.cost import subnet_cost
from dynabert_kernels.ops import NATIVE

KINDS = ("float32", "bfloat16", "int8")
SAMPLES = 7
SECONDS = 0.1  # of a sample: much longer than a thread and its core take to wake
TRIAL = 100_000  # turns of 12 instructions; one takes 6 to 200 cycles


def peak_rate(kind: str, threads: int) -> float | None:
    """Multiplications a second of the kernels' instruction for ``kind``, on so many threads at once; None without one.

    The median of some samples; a thread's own time does not count here, since on a shared processor the clock decides.
    """
    if NATIVE is None or not NATIVE.run_at_peak(kind, 1):
        return None
    begun = time.perf_counter()
    NATIVE.run_at_peak(kind, TRIAL)
    turns = max(1, round(TRIAL * SECONDS / (time.perf_counter() - begun)))
    rates = []
    for _ in range(SAMPLES):
        done = [0] * threads

        def work(place: int, done: list[int] = done) -> None:
            done[place] = NATIVE.run_at_peak(kind, turns)

        workers = [threading.Thread(target=work, args=(place,)) for place in range(threads)]
        begun = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        rates.append(sum(done) / (time.perf_counter() - begun))
    return statistics.median(rates)


def multiplications(config: ElasticBertConfig, work: Work) -> int:
    """Of all matrix products of a work, those of attention, pooler and classifier included; padding is not counted."""
    texts = [text for batch in work.batches for text in batch]
    subnets = work.subnet if isinstance(work.subnet, tuple) else [work.subnet] * len(texts)
    return round(
        sum(
            subnet_cost(config, subnet, seq_length=len(text)).gflop * 5e8
            for text, subnet in zip(texts, subnets, strict=True)
        )
    )
