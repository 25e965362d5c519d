"""One table of every op, provider, direction and dtype: its largest error against float64, beside PyTorch's own.

``make proof``, or ``python -m benchmarks.proof``. Inputs are the random samples of
:mod:`dynabert_kernels.testing.random_samples` (any plan, NaN in all that must not be read), fresh with every run; the
seed is recorded and ``--seed`` gives the same again. A cell is red where a result errs more than twice what PyTorch
errs in the same dtype, three times for a gradient, or a few roundings where that is less.

Without a GPU the Triton kernels run in Triton's interpreter (``interpreted``), and of CUDA C++ the device code runs on
the CPU in the host shim (``host shim``), held to limits of its own; what ran nowhere is ``not run``, and says why.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from dynabert_kernels.ops import providers
from dynabert_kernels.testing import properties
from dynabert_kernels.testing.comparison import Check
from dynabert_kernels.testing.inputs import poisoned_allocations
from dynabert_kernels.testing.random_samples import BUILDERS, random_sample
from dynabert_kernels.testing.timing import dtype_name
from dynabert_kernels.triton.environment import INTERPRETED

from . import rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DIRECTIONS = ("forward", "backward")
# Samples of a cell; the interpreter takes about a second for one.
SAMPLES = {"reference": 12, "cpu": 24, "triton": 4, "cuda": 24}
# Host-shim programs that are not named like their op.
SHIM_OPS = {"layer_norm": "add_layer_norm", "embedding": "embed_layer_norm"}
GREEN, RED, NOT_RUN = "green", "RED", "not run"


@dataclass(frozen=True)
class Cell:
    """One cell of the table. ``how``: native, interpreted, host shim or plain PyTorch. ``share``: of what is allowed,
    the most that a result used; red above 1. ``worst``: that result."""

    op: str
    provider: str
    how: str
    direction: str
    dtype: str
    status: str
    samples: int = 0
    error: float | None = None
    torch_error: float | None = None
    share: float | None = None
    worst: str = ""
    note: str = ""


def _with(cell: Cell, check: Check, where: str) -> Cell:
    """The cell after one more result. A NaN is the largest of all."""
    error, share = check.error, check.error / check.allowed_error if check.allowed_error else 0.0
    red = not check.green
    larger = cell.share is None or not share <= cell.share
    return replace(
        cell,
        status=RED if red or cell.status == RED else GREEN,
        error=error if cell.error is None or not error <= cell.error else cell.error,
        torch_error=max(check.torch_error, cell.torch_error or 0.0),
        share=share if larger else cell.share,
        worst=f"{check.name} of {where}" if larger else cell.worst,
        note=f"{cell.note}; {where}: {check}".lstrip("; ") if red else cell.note,
    )


def cells_of(op: str, provider: str, dtype: torch.dtype, seed: int, samples: int) -> list[Cell]:
    """Both directions of one op on one provider in one dtype, on a CPU."""
    how = {"reference": "plain PyTorch", "triton": "interpreted" if INTERPRETED else "native"}.get(provider, "native")
    cells = {name: Cell(op, provider, how, name, dtype_name(dtype), NOT_RUN) for name in DIRECTIONS}
    table = providers.registered()
    missing = providers.unavailable().get(provider, "the provider does not have it")
    for name, half in zip(DIRECTIONS, ("fwd", "bwd"), strict=True):
        if provider not in table.get(f"{op}_{half}", ()):
            cells[name] = replace(cells[name], note=missing)
    backward = properties.has_backward(op, provider)
    if provider not in table[f"{op}_fwd"]:
        return list(cells.values())
    for index in range(seed, seed + samples):
        sample = random_sample(op, index, provider=provider, dtype=dtype)
        try:
            with poisoned_allocations():
                ours = properties.results(sample, provider, backward=backward)
        except Exception as error:  # Triton's own errors are no RuntimeErrors
            refusal = str(error).partition("was forced, but ")[2]
            status, note = (NOT_RUN, refusal) if refusal else (RED, f"seed {index}: {type(error).__name__}: {error}")
            for name in DIRECTIONS if backward else DIRECTIONS[:1]:
                if cells[name].status != GREEN or status == RED:
                    cells[name] = replace(cells[name], status=status, note=note)
            continue
        checks = properties.judged(sample, ours, provider, dtype=dtype)
        for result, check in checks.items():
            name = DIRECTIONS[0] if result == "y" else DIRECTIONS[1]
            cells[name] = _with(cells[name], check, f"seed {index}")
        for name in DIRECTIONS if backward else DIRECTIONS[:1]:
            cells[name] = replace(cells[name], samples=cells[name].samples + 1)
    return list(cells.values())


def shim_cells(lines: Sequence[str]) -> Iterator[Cell]:
    """Cells of what the host-shim programs printed: ``program case result error``, at the end ``program passed``."""
    found: dict[tuple[str, str, str], Cell] = {}
    passed = {words[0] for line in lines if len(words := line.split()) == 2 and words[1] == "passed"}
    for line in lines:
        words = line.split()
        # Some programs name the kind of loss after the case.
        if len(words) not in (4, 5) or "-" not in words[1]:
            continue
        program, case, *_, result, number = words
        try:
            error = float(number)
        except ValueError:
            continue
        op, dtype = SHIM_OPS.get(program, program), case.split("-")[0]
        direction = DIRECTIONS[1] if result.startswith("d") else DIRECTIONS[0]
        key = (op, direction, dtype)
        cell = found.get(key, Cell(op, "cuda", "host shim", direction, dtype, GREEN if program in passed else RED))
        larger = cell.error is None or not error <= cell.error
        found[key] = replace(
            cell,
            samples=cell.samples + 1,
            error=error if larger else cell.error,
            worst=f"{result} of {case}" if larger else cell.worst,
            note="device code on the CPU, within the shim's own limit; compiled for GPUs by make codegen, run on none",
        )
    yield from found.values()


def _run_shim() -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.host_shim.build"], capture_output=True, text=True, check=False
    )
    return (done.stdout if done.returncode != 2 else "").splitlines()


def _cuda_without_gpu(ops: Sequence[str]) -> list[Cell]:
    """Every cell of CUDA C++ where no GPU is: the host shim's, or that it was not run, and why."""
    shim = {(cell.op, cell.direction, cell.dtype): cell for cell in shim_cells(_run_shim())}
    cells = []
    table = providers.registered()
    for op in ops:
        for direction, half in zip(DIRECTIONS, ("fwd", "bwd"), strict=True):
            for dtype in map(dtype_name, DTYPES):
                has = "cuda" in table.get(f"{op}_{half}", ())
                note = "compiled into the native library; no GPU to run it" if has else "no CUDA C++ kernel built here"
                empty = Cell(op, "cuda", "compiled" if has else "", direction, dtype, NOT_RUN, note=note)
                cells.append(shim.get((op, direction, dtype), empty))
    return cells


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def markdown(cells: Sequence[Cell], seed: int) -> str:
    """The table: a line for each op, provider and direction, a column for each dtype; error / PyTorch's."""
    names = [dtype_name(dtype) for dtype in DTYPES]
    lines = [
        f"Largest error against float64 / PyTorch's own, relative to the largest entry; samples from seed {seed}.",
        "",
        "| op | provider | how | direction | " + " | ".join(names) + " |",
        "| --- " * (4 + len(names)) + "|",
    ]
    groups: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.op, cell.provider, cell.direction), {})[cell.dtype] = cell
    for (op, provider, direction), by_dtype in sorted(groups.items()):
        texts = []
        for name in names:
            cell = by_dtype.get(name)
            if cell is None or cell.status == NOT_RUN:
                texts.append("not run")
            else:
                mark = " **RED**" if cell.status == RED else ""
                own = f" / {_number(cell.torch_error)}" if cell.torch_error is not None else ""
                texts.append(f"{_number(cell.error)}{own}{mark}")
        how = ", ".join(dict.fromkeys(cell.how for cell in by_dtype.values() if cell.how)) or "none"
        lines.append(f"| {op} | {provider} | {how} | {direction} | {' | '.join(texts)} |")
    reasons: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell.status == NOT_RUN:
            reasons.setdefault(f"{cell.provider}: {cell.note}", {})[f"{cell.op} {cell.direction} {cell.dtype}"] = None
    lines += ["", "Not run:", *(f"* {reason} ({len(which)} cells)" for reason, which in reasons.items())]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """0: no cell is red. 1: one is."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.proof", description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--provider", nargs="+", default=list(providers.NAMES), choices=providers.NAMES)
    flags.add_argument("--op", nargs="+", default=[], choices=sorted(BUILDERS), help="default: all")
    flags.add_argument("--samples", type=int, help="of each cell (default: by provider)")
    flags.add_argument("--seed", type=int, help="of the first sample (default: a fresh one, recorded)")
    flags.add_argument("--out", type=Path, default=Path("out/proof.json"))
    flags.add_argument("--markdown", type=Path, help="also write the table here")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = flags.parse_args(given)
    if "triton" in options.provider and not torch.cuda.is_available() and not INTERPRETED and arguments is None:
        # Triton decides when kernels are defined whether they are interpreted, so only a new process can.
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.proof", *given], env=environment, check=False
        ).returncode
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    ops = options.op or sorted(BUILDERS)
    cells: list[Cell] = []
    with properties.one_thread():
        for provider in options.provider:
            if provider == "cuda":
                cells += _cuda_without_gpu(ops)
                continue
            for op in ops:
                for dtype in DTYPES:
                    count = SAMPLES[provider] if options.samples is None else options.samples
                    with properties.interpreter(provider):
                        found = cells_of(op, provider, dtype, seed, count)
                    cells += found
                    for cell in found:
                        if cell.status == RED:
                            print(f"RED {cell.op} {cell.provider} {cell.direction} {cell.dtype}: {cell.note}")
    facts = rows.environment(torch.device("cpu"), given, module="benchmarks.proof") | {"seed": seed}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"schema": rows.SCHEMA, "facts": facts, "rows": [_finite(asdict(cell)) for cell in cells]}
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    table = markdown(cells, seed)
    print(table)
    if options.markdown is not None:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(table, encoding="utf-8")
    counts = {status: sum(cell.status == status for cell in cells) for status in (GREEN, RED, NOT_RUN)}
    print(f"cells: {counts}; seed {seed}; rows: {options.out}")
    return 1 if counts[RED] or not counts[GREEN] else 0


def _finite(row: dict[str, object]) -> dict[str, object]:
    """JSON knows no infinity."""
    infinite = (float("inf"), float("-inf"))
    return {k: None if isinstance(v, float) and (v != v or v in infinite) else v for k, v in row.items()}


if __name__ == "__main__":
    raise SystemExit(main())
