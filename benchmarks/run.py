"""The command: checks, times and reports the kernels. ``dynabert-bench --help``, or ``python -m benchmarks.run``."""

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
from rich.markup import escape

from dynabert_kernels.ops import providers
from dynabert_kernels.testing.timing import Ceilings, Clock, clock_for, dtype_name, measure_ceilings

from . import compare, plots, registry, report, rows
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
from .suites import SUITES, Suite, verdict

DIRECTIONS = ("forward", "backward")
DEFAULT_DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "float32", "float16")}


def parser() -> argparse.ArgumentParser:
    """The flags. Several values follow one flag: ``--width 1 0.5``."""
    flags = argparse.ArgumentParser(
        prog="dynabert-bench",
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
        "--plot", action="store_true", help="draw time against width and tokens, and the roofline, beside the rows"
    )
    flags.add_argument(
        "--suite", choices=list(SUITES), help="; ".join(f"{name}: {suite.text}" for name, suite in SUITES.items())
    )
    flags.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="REV",
        help="measure this revision against another one, or against the working tree, instead",
    )
    flags.add_argument("--repeats", type=int, default=5, help="processes of each revision of --compare (default: 5)")
    flags.add_argument("--ceilings", type=Path, help="take them from this file of rows instead of measuring them")
    flags.add_argument("--quick", action="store_true", help="MiniLM, 128 tokens, widths 1 and 0.5, float32, 5 rounds")
    flags.add_argument("--time-limit-s", type=float, help="start no further group after so many seconds, and name them")
    flags.add_argument("--list", action="store_true", help="list the benchmarks and their peers, and stop")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """0: measured. 1: a check was red or a provider failed. 2: the command line is wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    flags = parser()
    options = flags.parse_args(given)
    if options.suite is not None:
        flags.set_defaults(**SUITES[options.suite].defaults)
        options = flags.parse_args(given)
    if options.list:
        for benchmark in registry.REGISTRY.values():
            print(f"{benchmark.name:32} {benchmark.direction:9} peer: {benchmark.peer_text}")
        return 0
    try:
        job = read(options)
        return _compare(job, options) if options.compare else _run(job, given)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except compare.Refused as error:
        print(error, file=sys.stderr)
        return 1


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
    plot: bool
    suite: Suite | None
    ceilings: Path | None

    def problems(self, shape: ModelShape, lengths: tuple[int, ...], dtype: torch.dtype) -> list[Problem]:
        """The problems of one group: every mix of widths."""
        return [Problem(shape, lengths, mix, dtype, self.dropout) for mix in self.mixes]

    def flags(self) -> list[str]:
        """The command line of this job, with every default written out; without seed, folder and pictures."""
        widths = [f"{mix.parts[0][0]!r}" for mix in self.mixes if len(mix.parts) == 1]
        plans = [mix.name for mix in self.mixes if len(mix.parts) > 1]
        several = {
            "--op": [benchmark.name for benchmark in self.benchmarks],
            "--provider": self.providers,
            "--shape": [shape.name for shape in self.shapes],
            "--tokens": [tokens_name(lengths) for lengths in self.batches],
            "--width": widths,
            "--plan": plans,
            "--dtype": [dtype_name(dtype) for dtype in self.dtypes],
            "--device": [self.device.type],
            "--rounds": [str(self.rounds)],
            "--cache": [self.cache],
            "--dropout": [repr(self.dropout)],
            "--threads": [] if self.threads is None else [str(self.threads)],
        }
        return [word for flag, values in several.items() if values for word in (flag, *values)]

    def measure_ceilings(self, clock: Clock) -> Ceilings:
        """The device's ceilings, measured now unless a file was named."""
        if self.ceilings is not None:
            return rows.read_ceilings(self.ceilings, self.dtypes)
        return measure_ceilings(self.device, self.dtypes, clock=clock, rounds=max(5, min(self.rounds, 20)))


def read(options: argparse.Namespace) -> Job:
    """The job that the flags ask for. Raises ``ValueError`` with what is allowed, before anything is measured."""
    device = _device(options.device)
    quick: bool = options.quick
    rounds = options.rounds if options.rounds is not None else (5 if quick else 30)
    for name, value in (("--rounds", rounds), ("--threads", options.threads), ("--repeats", options.repeats)):
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
        suite=None if options.suite is None else SUITES[options.suite],
        ceilings=options.ceilings,
    )
    for shape in job.shapes:
        for lengths in job.batches:
            job.problems(shape, lengths, torch.float32)  # refuses a width that is not whole heads
    if job.plot:
        plots.require_matplotlib()
    if len(options.compare) > 2:
        raise ValueError(f"benchmarks: --compare got {len(options.compare)} revisions; allowed: one or two")
    return job


def _run(job: Job, given: Sequence[str]) -> int:
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{job.device.type}"
    facts = rows.environment(job.device, given)
    clock = clock_for(job.device)
    ceilings = job.measure_ceilings(clock)
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
    widthless = sorted({benchmark.op for benchmark in job.benchmarks if not benchmark.elastic})
    if widthless and [mix.name for mix in job.mixes] != ["w1"]:
        out.print(f"no width, so measured once, at width 1: {', '.join(widthless)}")
    report.print_faults(out, found)
    if left_out:
        out.print(f"not measured, the time limit of {job.time_limit_s:g} s was over: {'; '.join(left_out)}")
    if found:
        out.print(f"rows: {job.folder / stem}.json and .csv")
    if job.plot:
        heading = f"{facts['device']}, {facts['threads']} threads, {facts['commit']}, {facts['date']}"
        pictures = plots.draw_all(found, ceilings, job.folder / stem, heading)
        for picture in pictures:
            out.print(f"picture: {picture}")
        if not pictures:
            out.print("no picture: nothing was measured at two widths or two batches, and nothing multiplies")
    if job.suite is not None:
        for line in verdict(job.suite, found):
            out.print(escape(line))
    return 1 if any(row.status in (rows.RED, rows.FAILED) for row in found) else 0


def _mixes(options: argparse.Namespace, quick: bool) -> list[Mix]:
    """Widths first, then plans. With a plan and no width, width 1 stands beside it, to be compared with."""
    usual = (1.0,) if options.plan else (1.0, 0.5) if quick else WIDTHS
    mixes = [*map(uniform, options.width or usual), *map(parse_plan, options.plan)]
    return list({mix.name: mix for mix in mixes}.values())


def _compare(job: Job, options: argparse.Namespace) -> int:
    """0: measured. Raises ``compare.Refused`` where a revision is wrong or does not build."""
    out = report.console()

    def say(text: str) -> None:
        out.print(escape(text))

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    first, *others = [compare.checkout(revision, rows.ROOT, job.device.type, say) for revision in options.compare]
    second = others[0] if others else compare.Side("working tree", rows.ROOT)
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{job.device.type}-compare"
    # Measured once: what decides here are the ratios, and every process then rotates as many weights.
    ceilings = job.measure_ceilings(clock_for(job.device))
    rows.write(job.folder, f"{stem}-ceilings", [], rows.environment(job.device, []), ceilings)
    flags = [*job.flags(), "--ceilings", str((job.folder / f"{stem}-ceilings.json").resolve())]
    sides = (first, second)
    documents = compare.measure_both(sides, flags, options.repeats, compare.run_once, out)
    compare.report(sides, documents, job.folder / f"{stem}.json", out)
    return 0


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
