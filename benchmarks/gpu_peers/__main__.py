"""``python -m benchmarks.gpu_peers --works widths attention --plot``: see the package."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from benchmarks import plots, report, rows
from benchmarks.problems import DTYPES
from dynabert_kernels.ops.providers import SlowerProviderWarning
from dynabert_kernels.testing.timing import Ceilings, clock_for, dtype_name, measure_ceilings

from . import goals
from . import report as peers_report
from .contender import OURS
from .graph_check import check_graphs
from .measure import DeviceLost, PeerRow, measure, release, said
from .setting import Setting
from .works import ALLOWED, WORKS

MODULE = "benchmarks.gpu_peers"
REHEARSAL_CACHE = 2**20  # bytes; the processor's own cache would take seconds to displace


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description="Checks and times this library beside other ways to run the same network on one GPU.",
        allow_abbrev=False,
    )
    flags.add_argument("--works", nargs="+", default=None, metavar="WORK", help="names, or parts of names; see --list")
    flags.add_argument("--peers", nargs="+", default=None, metavar="PEER", help="parts of contenders' names; ours too")
    flags.add_argument("--dtype", choices=[dtype_name(dtype) for dtype in ALLOWED], help="default: bfloat16")
    flags.add_argument("--rounds", type=int, help="samples of each contender (default: 20; a rehearsal: 3)")
    flags.add_argument("--seed", type=int, default=42, help="of weights and texts")
    flags.add_argument("--time-limit-s", type=float, default=540.0, help="build no further contender after so long")
    flags.add_argument("--out", type=Path, default=Path("out/gpu_peers"), help="folder of the rows")
    flags.add_argument("--plot", action="store_true", help="draw the medians of each work, beside the rows")
    flags.add_argument(
        "--rehearse",
        action="store_true",
        help="on the CPU with a tiny network (default dtype: float32): checks answers",
    )
    flags.add_argument("--list", action="store_true", help="list works and goals, and stop")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """0: measured. 1: one answered wrong, or one of ours or a graph failed. 2: no GPU, or the command line is wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    if options.list:
        for name in WORKS:
            print(name)
            for goal in goals.GOALS:
                if goal.work == name:
                    print(f"    {goal.what}: {'at least' if goal.at_least else 'at most'} {goal.target:g} {goal.unit}")
        return 0
    try:
        chosen = _read(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.rehearse:
        torch.set_num_threads(1)
    device = torch.device("cpu" if options.rehearse else "cuda")
    dtype = DTYPES[options.dtype or ("float32" if options.rehearse else "bfloat16")]
    clock = clock_for(device)
    setting = Setting(
        device,
        dtype,
        clock,
        rounds=options.rounds or (3 if options.rehearse else 20),
        seed=options.seed,
        rehearse=options.rehearse,
        cache_bytes=REHEARSAL_CACHE if options.rehearse else 0,
    )
    return run(setting, chosen, options, given)


def _read(options: argparse.Namespace) -> list[str]:
    """The works that are asked for. Raises ``ValueError`` with what is allowed, before anything is measured."""
    if options.rounds is not None and options.rounds < 1:
        raise ValueError(f"gpu_peers: --rounds is {options.rounds}; allowed: 1 or more")
    if not options.time_limit_s > 0:
        raise ValueError(f"gpu_peers: --time-limit-s is {options.time_limit_s:g}; allowed: above 0")
    for part in options.works or ():
        if not any(part in name for name in WORKS):
            raise ValueError(f"gpu_peers: --works {part!r} is part of no work's name; allowed: {', '.join(WORKS)}")
    if options.plot:
        plots.require_matplotlib()
    if not options.rehearse and not torch.cuda.is_available():
        raise ValueError(
            f"gpu_peers: no GPU: torch {torch.__version__} sees no CUDA device here, so nothing was checked or timed.\n"
            "gpu_peers: run it on a machine with a GPU, or pass --rehearse to run its parts on the CPU."
        )
    if not options.rehearse and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ValueError(
            "gpu_peers: Triton runs in its interpreter (TRITON_INTERPRET is set): its times say nothing about a GPU; "
            "unset it"
        )
    return [name for name in WORKS if options.works is None or any(part in name for part in options.works)]


def run(setting: Setting, chosen: Sequence[str], options: argparse.Namespace, given: Sequence[str]) -> int:
    """Measures works in turn; after each one the rows are written, so that a run that is stopped leaves them."""
    begun = time.monotonic()
    out = report.console()
    if setting.rehearse:
        out.print(peers_report.REHEARSAL)
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{'rehearsal' if setting.rehearse else 'cuda'}"
    path = options.out / f"{stem}.json"
    facts = rows.environment(setting.device, given, module=MODULE)
    ceilings = _ceilings(setting)
    say_ceilings(out, facts["device"], ceilings, dtype_name(setting.dtype))
    graphs = facts["graphs"] = checked_graphs(setting)
    out.print(escape(said_of_graphs(graphs)))
    found: list[PeerRow] = []
    skipped = {name: "left out by --works" for name in WORKS if name not in chosen}
    lost = ""
    slower: list[str] = []
    for name in chosen:
        if lost or time.monotonic() - begun > options.time_limit_s:
            skipped[name] = lost or f"the time limit of {options.time_limit_s:g} s was over"
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            with slower_providers(slower):
                work = WORKS[name](setting)
                found += measure(work, setting, ceilings, options.peers, begun + options.time_limit_s)
        except DeviceLost as error:
            lost = skipped[name] = f"the device was lost: {error}"
        except Exception as error:  # a work that cannot be made must not take the others with it
            skipped[name] = said(error)
        release()
        _write(path, found, skipped, facts, ceilings, setting.rehearse, slower)
    verdicts = _write(path, found, skipped, facts, ceilings, setting.rehearse, slower)
    peers_report.print_all(out, found, verdicts, skipped)
    for text in slower:
        out.print(escape(f"SLOWER than it could be: {text}"))
    out.print(escape(f"rows: {path}"))
    if options.plot:
        heading = f"{'REHEARSAL. ' if setting.rehearse else ''}{facts['device']}, {facts['commit']}, {facts['date']}"
        picture = peers_report.draw(found, path.with_suffix(".png"), heading)
        out.print(escape(f"picture: {picture}" if picture else "no picture: nothing was timed"))
    if setting.rehearse:
        out.print(peers_report.REHEARSAL)
    bad = any(row.status == rows.RED or (row.status == rows.FAILED and row.contender.startswith(OURS)) for row in found)
    broken = any(reason.startswith(("raised", "the device")) for reason in skipped.values())
    no_graphs = graphs["wrong"] > 0 or graphs["why_off"] is not None or bool(graphs["dependent_differ"])
    no_graphs = no_graphs or bool(graphs["dependent_off"])
    return 1 if bad or broken or no_graphs else 0


@contextmanager
def slower_providers(seen: list[str]) -> Iterator[None]:
    """Adds to ``seen`` what ops say of a provider that could not take them: times of ours are then not the best."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", SlowerProviderWarning)
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, SlowerProviderWarning):
                seen.append(str(message))
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = note
        yield


def checked_graphs(setting: Setting) -> dict[str, Any]:
    """What `check_graphs` finds; where it raises, that, so that the works are tried all the same."""
    try:
        return check_graphs(setting)
    except Exception as error:
        nothing = dict.fromkeys(("batches", "graphs", "wrong"), 0)
        none = dict.fromkeys(("dependent_differ", "why_not_dependent", "dependent_off"))
        return nothing | none | {"largest_difference": 0.0, "capturing_s": 0.0, "why_off": said(error)}


def _ceilings(setting: Setting) -> Ceilings:
    if setting.rehearse:
        return measure_ceilings(
            setting.device, [setting.dtype], clock=setting.clock, rounds=2, matrix_size=128, cache_bytes=REHEARSAL_CACHE
        )
    return measure_ceilings(setting.device, [setting.dtype], clock=setting.clock)


def said_of_graphs(graphs: dict[str, Any]) -> str:
    """What the check of the engine's graphs found, in one line."""
    off = "" if graphs["why_off"] is None else f"; NONE ANY MORE: {graphs['why_off']}"
    differ, why_not = graphs["dependent_differ"], graphs["why_not_dependent"]
    early = f"; with dependent launches {differ} DIFFER" if differ is not None else ""
    early += f"; no dependent launches: {why_not}" if why_not is not None else ""
    early += f"; NO DEPENDENT ONES ANY MORE: {graphs['dependent_off']}" if graphs["dependent_off"] is not None else ""
    return (
        f"the engine's graphs: {graphs['batches']} batches through {graphs['graphs']}, {graphs['wrong']} WRONG, "
        f"largest difference {graphs['largest_difference']:.2g}, captured in {graphs['capturing_s']} s{off}{early}"
    )


def say_ceilings(out: Console, device: str, ceilings: Ceilings, dtype: str) -> None:
    """The device, and what it was measured to do at best in this run."""
    copied = ceilings.copy_gb_s[max(ceilings.copy_gb_s)]
    rate = ceilings.matrix_gflop_s[dtype] / 1e3
    out.print(escape(f"{device}; copies {copied:.4g} GB/s, {dtype} products {rate:.4g} TFLOP/s"))


def _write(
    path: Path,
    found: Sequence[PeerRow],
    skipped: dict[str, str],
    facts: dict[str, object],
    ceilings: Ceilings,
    rehearsal: bool,
    slower: Sequence[str],
) -> list[goals.Verdict]:
    verdicts = goals.judge([rows.plain(row) for row in found], skipped, rehearsal)
    peers_report.write(path, found, verdicts, skipped, facts, ceilings, rehearsal, slower)
    return verdicts


if __name__ == "__main__":
    raise SystemExit(main())
