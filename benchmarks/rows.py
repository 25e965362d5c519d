"""The rows of a run: what one measurement says, on what it was made, and the files it is kept in."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import dynabert_kernels as dk
from dynabert_kernels.testing.timing import Ceilings, dtype_name

SCHEMA = 2
# Of the kernels that are measured, which need not be those beside this file: see compare.py.
ROOT = Path(dk.__file__).resolve().parent.parent

MEASURED, RED, FAILED, UNAVAILABLE = "measured", "red", "failed", "unavailable"


@dataclass(frozen=True)
class Row:
    """One provider on one problem. A number that was not measured is None, never 0.

    ``status``: ``measured``; ``red``: its result is wrong, so it has no times and no ratios; ``failed``: it raised;
    ``unavailable``: it does not take this problem. ``note`` says why. ``provider`` is ``torch`` for the plain peer.
    ``plan``: the mix of widths; ``width``: a token's on average; ``heads`` and ``neurons``: the widest group's.
    ``ceiling_share``: the floor (measured copy and matrix rates on this problem's bytes and operations) over the
    median. Ratios are of medians of the same run, above 1 is faster. ``ideal_speedup`` is the ratio of operations.
    """

    benchmark: str
    op: str
    direction: str
    provider: str
    shape: str
    tokens: str
    num_tokens: int
    plan: str
    width: float
    heads: int
    neurons: int
    dtype: str
    dropout: float
    cache: str
    seed: int
    status: str
    note: str = ""
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    best_ms: float | None = None
    host_ms: float | None = None
    rounds: int | None = None
    calls_per_sample: int | None = None
    size_bytes: int | None = None
    operations: int | None = None
    gb_s: float | None = None
    gflop_s: float | None = None
    bound: str | None = None
    floor_ms: float | None = None
    ceiling_share: float | None = None
    speedup_vs_torch: float | None = None
    speedup_vs_width_1: float | None = None
    ideal_speedup: float | None = None
    error: float | None = None
    torch_error: float | None = None
    allowed_error: float | None = None


ROW_FIELDS = tuple(field.name for field in fields(Row))


def environment(device: torch.device, arguments: Sequence[str], *, module: str = "benchmarks.run") -> dict[str, Any]:
    """What every row carries about the machine, the code and the command."""
    native = dk.config()["native"]
    return {
        "device": device_name(device),
        "driver": _driver() if device.type == "cuda" else "none",
        "cuda": torch.version.cuda or "none",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "dynabert_kernels": dk.__version__,
        "native": "not built" if native is None else ", ".join(f"{key} {value}" for key, value in native.items()),
        "cpu_isa": (dk.config()["cpu_features"] or {}).get("isa", "none"),
        "threads": torch.get_num_threads(),
        "float32_products": torch.get_float32_matmul_precision(),
        "load_average": ", ".join(f"{load:.1f}" for load in os.getloadavg())
        if hasattr(os, "getloadavg")
        else "unknown",
        "commit": commit(),
        "source_digest": source_digest(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*_program(module), *arguments]),
    }


def _program(module: str) -> list[str]:
    called = Path(sys.argv[0]).name
    return [called] if called == "dynabert-bench" else ["python", "-m", module]


def device_name(device: torch.device) -> str:
    """The marketing name of a GPU or CPU, as the machine gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # dynabert.processor reads this too; a comparison runs this module on older revisions of the package, without it.
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} CPUs"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs"


def commit() -> str:
    """The commit of the measured kernels' tree, with ``-dirty`` where it has uncommitted changes."""
    top = _output("git", "-C", str(ROOT), "rev-parse", "--show-toplevel")
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    # An environment for packages may lie inside somebody's repository, whose commit says nothing about the kernels.
    if head is None or top is None or Path(top).resolve() != ROOT:
        return f"unknown: installed package {dk.__version__}"
    return head + ("-dirty" if _output("git", "-C", str(ROOT), "status", "--porcelain") else "")


def said_options(argv: Sequence[str] | None) -> list[str]:
    """A command's options as given, with a folder of a machine shortened to its last two parts."""
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        path = Path(word)
        words.append(str(Path(*path.parts[-2:])) if path.is_absolute() else word)
    return words


def write_found(path: Path, found: Mapping[str, Any], begun: float, module: str, argv: Sequence[str] | None) -> None:
    """Writes what a command on the CPU found as JSON, with what it ran on: the header of files that hold no `Row`.

    ``begun``: `time.monotonic` at the command's beginning. ``argv``: its options; None takes those of the process.
    """
    header = {
        "seconds": round(time.monotonic() - begun, 1),
        "torch": torch.__version__,
        "device": f"CPU, {platform.machine()}",
        "cpus": os.cpu_count(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", module, *said_options(argv)]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found, **header}, indent=1) + "\n", encoding="utf-8")


def source_digest() -> str:
    """A digest of the kernels' sources: names the code where there is no repository, or a dirty one."""
    digest = hashlib.sha256()
    for folder in ("dynabert_kernels", "csrc"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".cpp", ".cu", ".h", ".cuh"}:
                digest.update(path.relative_to(ROOT).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _driver() -> str:
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else "unknown: nvidia-smi does not answer"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def plain(record: Any) -> dict[str, Any]:
    """A dataclass as plain data. Infinity and NaN, which JSON lacks, become None; the record's note says them."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(record).items()
    }


def read_ceilings(path: Path, dtypes: Sequence[torch.dtype]) -> Ceilings:
    """The ceilings in a file of rows. Raises ``ValueError`` where it has none for these dtypes."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["ceilings"]
        copies = {int(size): rate for size, rate in found.pop("copy_gb_s").items()}
        ceilings = Ceilings(copy_gb_s=copies, **found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = f"{type(error).__name__}: {error}"
        raise ValueError(f"benchmarks: --ceilings {path} is not a file of rows ({fault})") from None
    missing = [name for name in map(dtype_name, dtypes) if name not in ceilings.matrix_gflop_s]
    if missing:
        has = ", ".join(ceilings.matrix_gflop_s)
        raise ValueError(f"benchmarks: --ceilings {path} has no rate of {', '.join(missing)}; it has {has}")
    return ceilings


def write(folder: Path, stem: str, rows: Sequence[Row], facts: Mapping[str, Any], ceilings: Ceilings) -> None:
    """Writes ``stem.json`` and ``stem.csv``; every row repeats the facts, so that it stands alone."""
    folder.mkdir(parents=True, exist_ok=True)
    table = [plain(row) | dict(facts) for row in rows]
    document = {"schema": SCHEMA, "environment": dict(facts), "ceilings": ceilings.as_dict(), "rows": table}
    (folder / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with (folder / f"{stem}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*ROW_FIELDS, *facts])
        writer.writeheader()
        writer.writerows(table)
