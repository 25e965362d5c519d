"""Compiles every GPU kernel without a GPU and looks at the machine code.

    python -m dynabert_kernels.testing.codegen --out out/codegen.json --triton .venv/triton-3.6.0

Triton kernels for sm_80 and sm_90, CUDA C++ kernels (where nvcc is found) for sm_80 and sm_90a. `--triton` names the
folder of a further Triton (`pip install --target`), which compiles the same launches in a process of its own: versions
differ in what spills. Exit code 1 when a kernel does not compile, spills registers, has a stack, asks for more shared
memory than the chip has, or multiplies matrices without tensor cores: but for the first, silent failures. 2 when
nothing could be compiled.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from dynabert_kernels.testing import offline_nvcc, offline_triton
from dynabert_kernels.testing.gpu_code import KernelBuild
from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED

CASES = "dynabert_kernels.testing.codegen_cases"
CASES_AT_ONCE = 6  # of one job, whose kernels are read together


def _triton_job(module: str, indices: Sequence[int], arch: str) -> list[KernelBuild]:
    cases = importlib.import_module(module).triton_cases()
    return offline_triton.builds_of([cases[index] for index in indices], arch)


def _cuda_job(source: Path, arch: str, nvcc: str) -> list[KernelBuild]:
    return offline_nvcc.builds_of(source, arch, nvcc)


def say(message: str) -> None:
    print(f"codegen: {message}", file=sys.stderr, flush=True)


def collect(module: str, only: str, archs: Sequence[str], providers: Sequence[str], jobs: int) -> list[KernelBuild]:
    """All builds that were asked for."""
    work: list[tuple[Any, ...]] = []
    if "triton" in providers and IMPORT_ERROR is not None:
        say(f"Triton kernels are left out: {IMPORT_ERROR}")
    elif "triton" in providers:
        cases = importlib.import_module(module).triton_cases()
        chosen = [index for index, case in enumerate(cases) if only in case.name]
        work += [
            (_triton_job, module, chosen[first : first + CASES_AT_ONCE], arch)
            for first in range(0, len(chosen), CASES_AT_ONCE)
            for arch in offline_triton.ARCHS
            if arch in archs
        ]
    if "cuda" in providers:
        nvcc = offline_nvcc.find_nvcc()
        if nvcc is None:
            say("CUDA C++ kernels are left out: nvcc is not on the PATH and neither CUDA_HOME nor CUDA_PATH holds one")
        elif not offline_nvcc.sources():
            say(f"CUDA C++ kernels are left out: no sources under {offline_nvcc.SOURCES.name}/cuda")
        else:
            for source in offline_nvcc.sources():
                work += [(_cuda_job, source, arch, nvcc) for arch in offline_nvcc.ARCHS if arch.rstrip("a") in archs]
    if jobs == 1 or len(work) < 4:
        results = [job(*arguments) for job, *arguments in work]
    else:
        # spawn: a forked child would share Triton's compiler threads in whatever state they are.
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            results = [future.result() for future in [pool.submit(*item) for item in work]]
    builds = [build for group in results for build in group]
    return [build for build in builds if build.provider == "triton" or only in build.kernel]


def collect_with(folder: Path, module: str, only: str, archs: Sequence[str], jobs: int) -> list[KernelBuild]:
    """The builds of the Triton that lies in a folder, made by a process that finds it before the installed one."""
    paths = [str(folder.resolve()), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "rows.json"
        command = [sys.executable, "-m", "dynabert_kernels.testing.codegen", "--rows-only", "--out", str(out)]
        command += ["--provider", "triton", "--cases", module, "--only", only, "--jobs", str(jobs)]
        command += [argument for arch in archs for argument in ("--arch", arch)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the Triton in {folder} did not get to the end; see its message above")
        return [KernelBuild(**row) for row in json.loads(out.read_text())]


def show(builds: Sequence[KernelBuild]) -> None:
    """A table of what was compiled."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("kernel", "compiler", "arch", "dtype", "built for"):
        table.add_column(title, no_wrap=True)
    for title in (
        "warps",
        "registers",
        "spill",
        "shared",
        "occupancy",
        "16-byte loads",
        "cp.async, TMA",
        "products by",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict")
    for build in builds:
        table.add_row(
            *(build.kernel, build.compiler, build.arch, build.dtype, build.shape),
            *(str(build.warps), str(build.registers), str(build.spill_bytes), str(build.shared_bytes)),
            *(f"{build.occupancy:.0%}", str(build.vector_loads), str(build.cp_async + build.tma)),
            build.instruction,
            "[red]" + "; ".join(build.faults) + "[/red]" if build.faults else "[green]ok[/green]",
        )
    # A table that is cut at 80 columns in a log says nothing.
    Console(width=None if sys.stdout.isatty() else 220).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="dynabert_kernels.testing.codegen", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/codegen.json"), help="where the list of builds is written"
    )
    parser.add_argument("--only", default="", help="compile only the launches and kernels whose name holds this text")
    parser.add_argument("--arch", choices=tuple(offline_triton.ARCHS), action="append", help="default: all of them")
    parser.add_argument("--provider", choices=("triton", "cuda"), action="append", help="default: both")
    parser.add_argument(
        "--triton", type=Path, action="append", default=[], metavar="FOLDER", help="compile with this Triton too"
    )
    parser.add_argument("--rows-only", action="store_true", help="write the list, print no table, judge nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilations at once")
    parser.add_argument("--cases", default=CASES, help="module whose triton_cases() lists the launches")
    options = parser.parse_args(argv)
    providers = options.provider or ("triton", "cuda")
    if INTERPRETED and "triton" in providers:
        say("TRITON_INTERPRET is set, so kernels are interpreted and not compiled; unset it and run again")
        return 2
    for folder in options.triton:
        if not (folder / "triton" / "__init__.py").is_file():
            say(f"no Triton in {folder}; install one: pip install --no-deps --target {folder} triton==3.6.0")
            return 2
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = (
            cache  # a cached build of another Triton or of an edited kernel must not answer
        )
        archs = options.arch or tuple(offline_triton.ARCHS)
        builds = collect(options.cases, options.only, archs, providers, options.jobs)
        try:
            # CUDA C++ alone needs no Triton.
            for folder in options.triton if "triton" in providers else ():
                builds += collect_with(folder, options.cases, options.only, archs, options.jobs)
        except RuntimeError as error:
            say(str(error))
            return 1
    if not builds:
        say("nothing was compiled")
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([build.as_dict() for build in builds], indent=1) + "\n")
    if options.rows_only:
        return 0
    show(builds)
    faulty = [build for build in builds if build.faults]
    say(f"{len(builds)} builds, {len(faulty)} unfit; written to {options.out}")
    for build in faulty:
        say(f"{build.kernel} ({build.compiler}, {build.arch}, {build.dtype}, {build.shape}): {'; '.join(build.faults)}")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
