"""Does ``dynabert pick`` keep its limit? Its choice under many limits, each timed again in a process of its own.

Run: ``python -m benchmarks.pick_limits --model FOLDER --scores FILE --profile FILE --out row.json``. The limits lie
evenly between the fastest and the slowest sub-network of the grid, by the profile. For each, ``dynabert pick`` runs as
a user runs it, with its own second measurement, and then a fresh process times the choice by the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import environment
from dynabert.configuration.grid import subnet_grid
from dynabert.engine import load_model
from dynabert.profile import DeviceProfile, measure_latency

ROUNDS = 60


def limits_between(lowest: float, highest: float, count: int) -> list[float]:
    """``count`` limits, the first just above the lowest, the last at the highest."""
    step = (highest - lowest) / count
    return [round(lowest + step * (1 + index), 3) for index in range(count)]


def picked(options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """What ``dynabert pick --json`` printed."""
    command = [sys.executable, "-m", "dynabert.cli", "pick", "--model_name_or_path", str(options.model), "--json"]
    command += ["--scores", str(options.scores), "--profile", str(options.profile), "--threads", str(options.threads)]
    command += ["--max_latency_ms", str(limit), "--batch_size", str(options.batch_size)]
    command += ["--seq_length", str(options.seq_length)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"dynabert pick ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return dict(json.loads(done.stdout))


def time_one(options: argparse.Namespace) -> dict[str, float]:
    """The chosen sub-network's passes in this process, by the wall clock."""
    torch.set_num_threads(options.threads)
    model = load_model(options.model).pack_weights()
    (row,) = measure_latency(model, [options.time], options.batch_size, options.seq_length, rounds=ROUNDS, warmup=10)
    return {"median_ms": row.median_ms, "p20_ms": row.p20_ms, "p80_ms": row.p80_ms}


def timed_apart(options: argparse.Namespace, subnet: str) -> dict[str, float]:
    """`time_one` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.pick_limits", "--model", str(options.model), "--time", subnet]
    command += ["--threads", str(options.threads), "--batch_size", str(options.batch_size)]
    command += ["--seq_length", str(options.seq_length)]
    environ = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    return dict(json.loads(done.stdout))


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each limit."""
    profile = DeviceProfile.load(options.profile)
    config = load_model(options.model).config
    grid = [profile.latency_ms(config.shape(one), options.batch_size, options.seq_length) for one in subnet_grid()]
    rows = []
    for limit in limits_between(min(grid), max(grid), options.limits):
        found = picked(options, limit)
        chosen = found["chosen"]
        subnet = chosen if isinstance(chosen, str) else chosen["subnet"]
        times = timed_apart(options, subnet)
        tried = len(found["verified"])
        rows.append({"limit_ms": limit, "subnet": subnet, "tried": tried, **times, "kept": times["median_ms"] <= limit})
        print(f"limit {limit:.3f} ms: {subnet}, {times['median_ms']:.3f} ms, {tried} tried", file=sys.stderr)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every limit was kept; 1: one was not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pick_limits", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of an elastic checkpoint")
    parser.add_argument("--scores", type=Path, help="its results.json")
    parser.add_argument("--profile", type=Path, help="this device's profile")
    parser.add_argument("--limits", type=int, default=8, help="how many")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--seq_length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1, help="the profile's")
    parser.add_argument("--out", type=Path, help="JSON file of the rows")
    parser.add_argument("--time", help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if options.limits < 1 or options.threads < 1:
        parser.error("--limits and --threads must be 1 or more")
    if options.time:
        print(json.dumps(time_one(options)))
        return 0
    if options.scores is None or options.profile is None:
        parser.error("--scores and --profile are needed")
    rows = run(options)
    kept = sum(row["kept"] for row in rows)
    print(f"{kept} of {len(rows)} limits kept, timed again by the wall clock in a fresh process")
    if options.out is not None:
        facts = environment(torch.device("cpu"), given, module="benchmarks.pick_limits")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"rows": rows, **facts}, indent=1) + "\n", encoding="utf-8")
    return 0 if kept == len(rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
