"""Compiles a host-shim program with a sanitizer and runs it.

``python -m tests.kernels.host_shim.build`` runs every program under the address sanitizer and prints, after the
program's name, what it prints: case, result, error relative to the largest entry.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
INCLUDE = FOLDER.parents[2] / "csrc" / "include"
# -O0: compiling is what takes the time, and sanitizers see every access as it was written.
FLAGS = ("-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread")
SANITIZERS = {
    "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "races": ("-fsanitize=thread",),
}


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def _run(command: list[str], **options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **options}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@functools.cache
def why_not(sanitizer: str, folder: Path) -> str | None:
    """The reason why this sanitizer cannot be used here, found by trying it on an empty program; None where it can."""
    compiler = _compiler()
    if compiler is None:
        return "no C++ compiler (g++, or the one CXX names)"
    source, program = folder / "empty.cpp", folder / f"empty-{sanitizer}"
    source.write_text("#include <barrier>\nint main() { _Float16 half = 0; return half == 0 ? 0 : 1; }\n")
    built = _run([compiler, "-std=c++20", *SANITIZERS[sanitizer], str(source), "-o", str(program)])
    if built.returncode != 0:
        return f"{compiler} cannot build with {' '.join(SANITIZERS[sanitizer])}: {built.stderr.strip()[-200:]}"
    ran = _run([str(program)])
    # Some kernels lay out memory in a way that the thread sanitizer refuses.
    return (
        None if ran.returncode == 0 else f"a program with the {sanitizer} sanitizer does not run: {ran.stderr[-200:]}"
    )


def build(name: str, sanitizer: str, folder: Path, include: Path = INCLUDE) -> Path:
    """The program of ``name``.cpp; raises with the compiler's words where it does not compile."""
    program = folder / f"{name}-{sanitizer}"
    flags = (*FLAGS, f"-I{include}", *SANITIZERS[sanitizer])
    built = _run([str(_compiler()), *flags, str(FOLDER / f"{name}.cpp"), "-o", str(program)])
    if built.returncode != 0:
        raise RuntimeError(built.stderr)
    return program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs to the end, or to the first fault that the sanitizer finds."""
    return _run([str(program), *arguments], TSAN_OPTIONS="halt_on_error=0 exitcode=66", ASAN_OPTIONS="detect_leaks=0")


def main() -> int:
    """0: every program passes. 1: one does not. 2: they cannot be built here; the reason is printed."""
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reason = why_not("memory", folder)
        if reason is not None:
            print(reason, file=sys.stderr)
            return 2
        for source in sorted(FOLDER.glob("*.cpp")):
            done = run(build(source.stem, "memory", folder))
            failed |= done.returncode != 0
            for line in done.stdout.splitlines():
                print(source.stem, line)
            print(source.stem, "passed" if done.returncode == 0 else f"FAILED: {done.stderr[-300:]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
