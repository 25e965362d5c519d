"""``python -m benchmarks.gpu_peers --out rows.json``: see the package."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu_peers.graph_check import check_graphs
from benchmarks.gpu_peers.listed import ELSEWHERE, WORKS
from benchmarks.gpu_peers.picture import draw
from benchmarks.gpu_peers.report import run_work, table_of
from benchmarks.gpu_peers.works import Setting
from benchmarks.rows import environment, said_options
from dynabert_kernels.testing.timing import clock_for, measure_ceilings

MODULE = "benchmarks.gpu_peers"
NO_GPU = 2


def main(argv: Sequence[str] | None = None) -> int:
    """0: every answer was right; 1: one was wrong, or no graph was to be had; 2: no GPU, or a wrong option."""
    flags = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description="Our runtime beside its peers on a GPU, against stated goals."
    )
    flags.add_argument("--works", nargs="+", default=list(WORKS), choices=tuple(WORKS))
    flags.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    flags.add_argument("--rounds", type=int, default=30, help="samples of each contender")
    flags.add_argument("--time_limit", type=float, default=540.0, metavar="SECONDS", help="begin no work after it")
    flags.add_argument(
        "--compile_mode",
        default="max-autotune",
        choices=("max-autotune", "reduce-overhead"),
        help="of PyTorch's compiler; the first takes minutes a network, both use CUDA graphs",
    )
    flags.add_argument("--out", type=Path, default=Path("out/bench/gpu_peers.json"))
    flags.add_argument("--plot", action="store_true", help="also a picture beside the rows")
    flags.add_argument("--rehearse", action="store_true", help="all parts with a tiny network, on a CPU where need be")
    options = flags.parse_args(argv)
    if options.rounds < 1 or options.time_limit <= 0.0:
        flags.error(f"--rounds is {options.rounds}, --time_limit {options.time_limit:g}; allowed: 1 or more; above 0")
    there = torch.cuda.is_available()
    if not there and not options.rehearse:
        print(
            f"gpu_peers: no GPU: torch {torch.__version__} sees no CUDA device here, so nothing was timed; run it on a "
            "machine with a GPU, or pass --rehearse to run its parts on the CPU",
            file=sys.stderr,
        )
        return NO_GPU
    device = torch.device("cuda", torch.cuda.current_device()) if there else torch.device("cpu")
    return run(options, device, said_options(argv))


def run(options: argparse.Namespace, device: torch.device, said: Sequence[str]) -> int:
    """All chosen works on a device; the file is written anew after each."""
    begun, console = time.monotonic(), Console()
    dtype = torch.float32 if options.rehearse and device.type == "cpu" else getattr(torch, options.dtype)
    clock = clock_for(device)
    small: dict[str, Any] = {"matrix_size": 128, "cache_bytes": 2**20, "rounds": 2} if options.rehearse else {}
    ceilings = measure_ceilings(device, (dtype,), clock=clock, **small)
    setting = Setting(device, dtype, options.rehearse, ceilings, options.compile_mode)
    found: dict[str, Any] = {
        **environment(device, list(said), module=MODULE),
        "rehearsal": options.rehearse,
        "compile_mode": options.compile_mode,
        "dtype": str(dtype).removeprefix("torch."),
        "ceilings": ceilings.as_dict(),
        "measured_elsewhere": ELSEWHERE,
        "not_begun": [],
        "rows": [],
    }
    graphs = found["graphs"] = check_graphs(setting)
    console.print(
        f"graphs: {graphs['batches']} batches through {graphs['graphs']} graphs, {graphs['wrong']} wrong, largest "
        f"difference {graphs['largest_difference']:.2g} of the largest logit; captured in {graphs['capturing_s']} s"
        + (f"; OFF: {graphs['why_off']}" if graphs["why_off"] else "")
    )
    for name in options.works:
        if time.monotonic() - begun > options.time_limit:
            found["not_begun"].append(name)
            console.print(f"{name}: not begun, the time is up; --works {name} runs it alone")
        else:
            row = run_work(WORKS[name](setting), setting, clock, options.rounds)
            found["rows"].append({"name": name, **row})
            console.print(table_of(row, rehearse=options.rehearse))
        found["seconds"] = round(time.monotonic() - begun, 1)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        heading = f"{found['device']}, {found['dtype']}, {found['commit']}" + (
            ", REHEARSAL" if options.rehearse else ""
        )
        drawn = draw(found["rows"], options.out.with_suffix(".png"), heading)
        console.print("no picture: nothing was timed" if drawn is None else f"picture: {drawn}")
    for goal, where in ELSEWHERE.items():
        console.print(f"not measured here: {goal} ({where})")
    console.print(f"rows: {options.out}")
    wrong = any(why.startswith("WRONG") for row in found["rows"] for why in row["left_out"].values())
    return int(wrong or graphs["wrong"] > 0 or graphs["why_off"] is not None)


if __name__ == "__main__":
    sys.exit(main())
