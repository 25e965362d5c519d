"""The command: checks, times and reports the kernels. ``python -m benchmarks.run --help``."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dynabert_kernels.ops import providers
from dynabert_kernels.testing.timing import clock_for, dtype_name, measure_ceilings

from . import plots, registry, report, rows
from .measure import CACHES, Settings, measure_group
from .problems import (
    DEFAULT_SHAPES,
    DTYPES,
    SHAPES,
    TOKENS,
    WIDTHS,
    Mix,
    ModelShape,
    Problem,
    parse_plan,
    parse_shape,
    parse_tokens,
    tokens_name,
    uniform,
)
from .registry import Benchmark
from .rows import Row

DIRECTIONS = ("forward", "backward")
DEFAULT_DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "float32", "float16")}


def parser() -> argparse.ArgumentParser:
    """The flags. Several values follow one flag: ``--width 1 0.5``."""
    flags = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description="Checks each provider against float64, then times it against plain PyTorch, interleaved.",
    )
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    flags.add_argument("--op", default=[], help="ops or benchmarks, see --list (default: all)", **several)
    flags.add_argument("--provider", default=[], help=f"of {', '.join(providers.NAMES)} (default: all)", **several)
    flags.add_argument(
        "--shape",
        default=[],
        help=f"of {', '.join(SHAPES)}, or C768-H12-D64-F3072 (default: {' '.join(DEFAULT_SHAPES)})",
        **several,
    )
    flags.add_argument("--tokens", default=[], help=f"128, 8x128, 17+128+5 (default: {' '.join(TOKENS)})", **several)
    flags.add_argument("--width", default=[], type=float, help="default: 1 0.75 0.5 0.25", **several)
    flags.add_argument(
        "--plan",
        default=[],
        help="mixed widths: w1:2,w0.5:1,skip:1 gives half of the sequences width 1, a quarter width 0.5, and lets a "
        "quarter skip the layer",
        **several,
    )
    flags.add_argument("--dropout", type=float, default=0.0, help="of attention and hidden states (default: 0)")
    flags.add_argument("--dtype", default=[], help=f"of {', '.join(DTYPES)} (default: by device)", **several)
    flags.add_argument("--direction", default=[], help="forward, backward (default: both)", **several)
    flags.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    flags.add_argument("--rounds", type=int, help="samples of each contender (default: 30)")
    flags.add_argument("--cache", default="use", help="; ".join(f"{name}: {text}" for name, text in CACHES.items()))
    flags.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    flags.add_argument("--seed", type=int, help="of the inputs (default: a fresh one, recorded)")
    flags.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of the rows (default: out/bench)")
    flags.add_argument(
        "--plot", nargs="?", type=Path, const=Path(), help="draw time against width; default beside rows"
    )
    flags.add_argument("--quick", action="store_true", help="MiniLM, 128 tokens, widths 1 and 0.5, float32, 5 rounds")
    flags.add_argument("--time-limit-s", type=float, help="start no further group after so many seconds, and name them")
    flags.add_argument("--list", action="store_true", help="list the benchmarks and their peers, and stop")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """0: measured. 1: a check was red or a provider failed. 2: the command line is wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    flags = parser()
    options = flags.parse_args(given)
    if options.list:
        for benchmark in registry.REGISTRY.values():
            print(f"{benchmark.name:24} {benchmark.direction:9} peer: {benchmark.peer_text}")
        return 0
    try:
        job = read(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return _run(job, given)


@dataclass(frozen=True)
class Job:
    """A command line, read and found right."""

    device: torch.device
    benchmarks: list[Benchmark]
    shapes: list[ModelShape]
    batches: list[tuple[int, ...]]
    mixes: list[Mix]
    dtypes: list[torch.dtype]
    providers: tuple[str, ...]
    rounds: int
    cache: str
    dropout: float
    seed: int
    threads: int | None
    time_limit_s: float
    folder: Path
    plot: Path | None

    def problems(self, shape: ModelShape, lengths: tuple[int, ...], dtype: torch.dtype) -> list[Problem]:
        """The problems of one group: every mix of widths."""
        return [Problem(shape, lengths, mix, dtype, self.dropout) for mix in self.mixes]


def read(options: argparse.Namespace) -> Job:
    """The job that the flags ask for. Raises ``ValueError`` with what is allowed, before anything is measured."""
    device = _device(options.device)
    quick: bool = options.quick
    rounds = options.rounds if options.rounds is not None else (5 if quick else 30)
    for name, value in (("--rounds", rounds), ("--threads", options.threads)):
        if value is not None and value < 1:
            raise ValueError(f"benchmarks: {name} is {value}; allowed: 1 or more")
    usual_dtypes = ("float32",) if quick else DEFAULT_DTYPES[device.type]
    job = Job(
        device=device,
        benchmarks=registry.find(
            tuple(options.op), tuple(_known("direction", options.direction, DIRECTIONS) or DIRECTIONS)
        ),
        shapes=[
            parse_shape(text) for text in dict.fromkeys(options.shape or (("minilm",) if quick else DEFAULT_SHAPES))
        ],
        batches=[parse_tokens(text) for text in dict.fromkeys(options.tokens or (TOKENS[:1] if quick else TOKENS))],
        mixes=_mixes(options, quick),
        dtypes=[DTYPES[name] for name in _known("dtype", options.dtype, DTYPES) or usual_dtypes],
        providers=tuple(_known("provider", options.provider, providers.NAMES) or providers.NAMES),
        rounds=rounds,
        cache=_known("cache", [options.cache], CACHES)[0],
        dropout=options.dropout,
        seed=secrets.randbelow(2**31) if options.seed is None else options.seed,
        threads=options.threads,
        time_limit_s=float("inf") if options.time_limit_s is None else options.time_limit_s,
        folder=options.out,
        plot=options.plot,
    )
    for shape in job.shapes:
        for lengths in job.batches:
            job.problems(shape, lengths, torch.float32)  # refuses a width that is not whole heads
    if job.plot is not None:
        plots.require_matplotlib()
        names = [mix.name for mix in job.mixes]
        if "w1" not in names or len(names) < 2 or not any(benchmark.elastic for benchmark in job.benchmarks):
            raise ValueError(
                "benchmarks: --plot draws time against width; give an elastic op, --width 1 and another one"
            )
    return job


def _run(job: Job, given: Sequence[str]) -> int:
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{job.device.type}"
    facts = rows.environment(job.device, given)
    clock = clock_for(job.device)
    ceilings = measure_ceilings(job.device, job.dtypes, clock=clock, rounds=max(5, min(job.rounds, 20)))
    settings = Settings(job.device, clock, job.providers, job.rounds, job.cache, job.seed, ceilings)
    out = report.console()
    report.print_header(out, facts, ceilings, job.cache)
    # Every op in one dtype before the next dtype: a run that is cut short has measured each op.
    groups = [
        (benchmark, shape, lengths, dtype)
        for dtype in job.dtypes
        for shape in job.shapes
        for lengths in job.batches
        for benchmark in job.benchmarks
    ]
    found: list[Row] = []
    left_out: list[str] = []
    started = time.monotonic()
    for benchmark, shape, lengths, dtype in groups:
        if time.monotonic() - started > job.time_limit_s:
            left_out.append(f"{benchmark.name} {shape.name} {tokens_name(lengths)} {dtype_name(dtype)}")
            continue
        found += measure_group(benchmark, job.problems(shape, lengths, dtype), settings)
        # After each group, so that a run that is stopped leaves what it measured.
        rows.write(job.folder, stem, found, facts, ceilings)
    order = {benchmark.name: place for place, benchmark in enumerate(job.benchmarks)}
    out.print(report.table_of(sorted(found, key=lambda row: order[row.benchmark])))
    if any(not benchmark.elastic for benchmark in job.benchmarks) and [mix.name for mix in job.mixes] != ["w1"]:
        out.print("add_layer_norm does not depend on the width: measured once, at width 1")
    report.print_faults(out, found)
    if left_out:
        out.print(f"not measured, the time limit of {job.time_limit_s:g} s was over: {'; '.join(left_out)}")
    if found:
        out.print(f"rows: {job.folder / stem}.json and .csv")
    if job.plot is not None:
        picture = job.folder / f"{stem}.png" if job.plot == Path() else job.plot
        if plots.draw(found, picture, f"{facts['device']}, {facts['threads']} threads, {facts['commit']}"):
            out.print(f"picture: {picture}")
        else:
            out.print("no picture: no op was measured at width 1 and another one")
    return 1 if any(row.status in (rows.RED, rows.FAILED) for row in found) else 0


def _mixes(options: argparse.Namespace, quick: bool) -> list[Mix]:
    """Widths first, then plans. With a plan and no width, width 1 stands beside it, to be compared with."""
    usual = (1.0,) if options.plan else (1.0, 0.5) if quick else WIDTHS
    mixes = [*map(uniform, options.width or usual), *map(parse_plan, options.plan)]
    return list({mix.name: mix for mix in mixes}.values())


def _known(flag: str, given: Sequence[str], allowed: Collection[str]) -> list[str]:
    for name in given:
        if name not in allowed:
            raise ValueError(f"benchmarks: --{flag} {name!r} is unknown; allowed: {', '.join(allowed)}")
    return list(dict.fromkeys(given))


def _device(name: str) -> torch.device:
    if name not in DEFAULT_DTYPES:
        raise ValueError(f"benchmarks: --device {name!r} is unknown; allowed: {', '.join(DEFAULT_DTYPES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("benchmarks: --device cuda, but PyTorch sees no GPU here; use --device cpu")
    return torch.device(name)


if __name__ == "__main__":
    raise SystemExit(main())
