"""Plants each fault in a copy of the sources and demands that a check turns red: ``make faults``.

Triton faults need no build: the copy of the Python package goes first on the path. C++ faults are built in one copy of
the tree that is kept under ``out/faults`` (one file and a link each). CUDA faults are built into the host-shim program.
The checks are those of ``dynabert_kernels.testing.properties`` and of ``tests/kernels/host_shim``, and files of tests
where those do not reach. A fault whose old text is not found, or that nobody sees, is an error. Rows go to
``out/faults.json``; those of faults that were not planted this time stay there, each with its commit.

    python -m tests.faults.run --provider triton
    python -m tests.faults.run --only "dv forgets the dropout"
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.rows import commit
from tests.faults.planted import Fault, all_faults

ROOT = Path(__file__).parents[2]
# How many random samples of each op a fault may stay hidden in. Interpreted ones take a second each.
CASES = {"cpu": 400, "triton": 60}
_LIMIT_S = 600


class LostFault(ValueError):
    """The text that a fault changes is no longer there, once: the fault must follow its kernel."""


@dataclass(frozen=True)
class Verdict:
    """``red``: a check saw it. ``seen_by``: which, in words; without one, what happened instead.

    ``commit``: of the sources that were changed; None in rows from before it was kept.
    """

    name: str
    kind: str
    provider: str
    file: str
    red: bool
    seen_by: str
    seconds: float
    commit: str | None = None


def planted(fault: Fault, text: str) -> str:
    """The text of the fault's file with the fault in it."""
    count = text.count(fault.old)
    if count != 1:
        raise LostFault(f"{fault.name}: the text to change stands {count} times in {fault.file}; allowed: once")
    return text.replace(fault.old, fault.new)


def check_texts(faults: Sequence[Fault]) -> None:
    """Raises :class:`LostFault` where a fault no longer fits its file."""
    for fault in faults:
        planted(fault, (ROOT / fault.file).read_text(encoding="utf-8"))


def _run(command: list[str], folder: Path, **environment: str) -> tuple[int, str]:
    variables = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **environment}
    try:
        done = subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return -1, f"stopped after {_LIMIT_S} s"
    return done.returncode, done.stdout + done.stderr


def _tests(fault: Fault, folder: Path) -> tuple[bool, str]:
    """Whether a test of the fault's files turns red in the tree of ``folder``, and which."""
    _copy(["tests", "pyproject.toml"], folder)  # its pytest settings, or pytest looks for them above, and imports there
    environment = {"TRITON_INTERPRET": "1"} if fault.provider == "triton" else {}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-rf", *fault.seen_by]
    code, output = _run(command, folder, **environment)
    failed = [line for line in output.splitlines() if line.startswith("FAILED ")]
    if code == 1 and failed:
        return True, failed[0].removeprefix("FAILED ").partition(" - ")[0]
    return False, output.strip().splitlines()[-1][:300] if output.strip() else f"exit {code}"


def _look(fault: Fault, folder: Path) -> tuple[bool, str]:
    return (_tests if fault.seen_by[0].endswith(".py") else _properties)(fault, folder)


def _properties(fault: Fault, folder: Path) -> tuple[bool, str]:
    """Whether a property turns red in the tree of ``folder``, and which."""
    each = CASES[fault.provider]
    flags = ["--provider", fault.provider, "--op", *fault.seen_by, "--cases", str(each * len(fault.seen_by)), "--stop"]
    command = [sys.executable, "-m", "dynabert_kernels.testing.properties", *flags]
    environment = {"TRITON_INTERPRET": "1"} if fault.provider == "triton" else {}
    code, output = _run(command, folder, **environment)
    lines = [line for line in output.splitlines() if line.startswith("RED ")]
    if code == 1 and lines:
        return True, lines[0].removeprefix("RED ")[:300]
    return False, output.strip().splitlines()[-1][:300] if output.strip() else f"exit {code}"


def _copy(names: Sequence[str], folder: Path) -> None:
    """Copies what changed, so that times of the rest stay as they are and ninja leaves it alone."""
    for name in names:
        for origin in [ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).rglob("*")):
            goal = folder / origin.relative_to(ROOT)
            if not origin.is_file() or "__pycache__" in origin.parts or origin.suffix in (".so", ".pyc"):
                continue
            if not goal.is_file() or goal.read_bytes() != origin.read_bytes():
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(origin, goal)


def _triton(fault: Fault, folder: Path) -> tuple[bool, str]:
    tree = folder / "triton"
    _copy(["dynabert_kernels"], tree)
    for library in (ROOT / "dynabert_kernels").glob("_C*.so"):
        link = tree / "dynabert_kernels" / library.name
        link.unlink(missing_ok=True)
        link.symlink_to(library)
    return _in_tree(fault, tree, lambda: _look(fault, tree))


def _in_tree(fault: Fault, tree: Path, look: Callable[[], tuple[bool, str]]) -> tuple[bool, str]:
    path = tree / fault.file
    clean = path.read_text(encoding="utf-8")
    path.write_text(planted(fault, clean), encoding="utf-8")
    try:
        return look()
    finally:
        path.write_text(clean, encoding="utf-8")


def _build(tree: Path) -> str | None:
    """Builds the library of a tree; the compiler's words where it fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    code, output = _run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], tree, DYNABERT_CUDA="0", MAX_JOBS="2", PATH=path
    )
    return None if code == 0 else output[-1500:]


def _cpu(fault: Fault, folder: Path) -> tuple[bool, str]:
    tree = folder / "cpu"
    _copy(["csrc", "dynabert_kernels", "python/dynabert/__init__.py", "setup.py", "pyproject.toml", "README.md"], tree)
    setup = tree / "setup.py"
    # Half the time of a build; what a fault breaks does not depend on it.
    setup.write_text(setup.read_text(encoding="utf-8").replace('"-O3",\n        "-g0"', '"-O1",\n        "-g0"'))

    def look() -> tuple[bool, str]:
        failed = _build(tree)
        return (False, f"does not build: {failed}") if failed else _look(fault, tree)

    return _in_tree(fault, tree, look)


def _cuda(fault: Fault, folder: Path) -> tuple[bool, str]:
    from tests.kernels.host_shim import build as host_shim

    tree = folder / "cuda"
    tree.mkdir(parents=True, exist_ok=True)
    _copy(["csrc/include"], tree)
    reason = host_shim.why_not(fault.sanitizer, tree)
    if reason is not None:
        return False, reason
    program, *cases = fault.seen_by

    def look() -> tuple[bool, str]:
        try:
            built = host_shim.build(program, fault.sanitizer, tree, include=tree / "csrc" / "include")
        except RuntimeError as error:
            return False, f"does not build: {str(error)[:1500]}"
        done = host_shim.run(built, *cases)
        # The thread sanitizer remembers the last four readers of a place only: a race shows in most runs, not in all.
        for _ in range(4 if fault.sanitizer == "races" and done.returncode == 0 else 0):
            if done.returncode == 0:
                done = host_shim.run(built, *cases)
        words = [line for line in (done.stdout + done.stderr).splitlines() if "WRONG" in line or "ERROR" in line]
        words += [line for line in done.stderr.splitlines() if "WARNING" in line or "runtime error" in line]
        return done.returncode != 0, f"host shim {program}: {words[0].strip()[:200] if words else done.returncode}"

    return _in_tree(fault, tree, look)


def try_fault(fault: Fault, folder: Path) -> Verdict:
    """Plants one fault and looks whether it is seen."""
    begin = time.monotonic()
    red, words = {"triton": _triton, "cpu": _cpu, "cuda": _cuda}[fault.provider](fault, folder)
    seconds = time.monotonic() - begin
    return Verdict(fault.name, fault.kind, fault.provider, fault.file, red, words, round(seconds, 1), commit())


def kept(path: Path) -> dict[str, Verdict]:
    """The rows of a file by their faults' names, without those of faults that are no more; {} where there is none."""
    if not path.is_file():
        return {}
    try:
        rows = [Verdict(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (TypeError, ValueError) as error:
        raise SystemExit(f"faults: {path} holds no rows of faults ({error}); name another file with --out") from error
    names = {fault.name for fault in all_faults()}
    return {row.name: row for row in rows if row.name in names}


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The table of all faults, as it is committed."""
    lines = ["| fault | kind | red | seen by |", "| --- | --- | --- | --- |"]
    for verdict in verdicts:
        words = verdict.seen_by.replace("|", "/").replace("\n", " ")
        lines.append(f"| {verdict.name} | {verdict.kind} | {'yes' if verdict.red else 'NO'} | {words} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every fault was seen. 1: one was not, or no longer fits its file."""
    flags = argparse.ArgumentParser(prog="python -m tests.faults.run")
    flags.add_argument("--provider", nargs="+", default=["triton", "cuda", "cpu"], choices=("triton", "cuda", "cpu"))
    flags.add_argument("--only", default="", help="faults whose name contains this")
    flags.add_argument("--out", type=Path, default=Path("out/faults.json"))
    flags.add_argument("--markdown", type=Path, help="also write the table here")
    options = flags.parse_args(arguments)
    faults = [f for f in all_faults() if f.provider in options.provider and options.only in f.name]
    try:
        check_texts(faults)
    except LostFault as lost:
        print(f"faults: {lost}", file=sys.stderr)
        return 1
    folder = (ROOT / "out" / "faults").resolve()
    found = kept(options.out)
    verdicts = []
    for fault in faults:
        verdict = try_fault(fault, folder)
        verdicts.append(verdict)
        found[verdict.name] = verdict
        print(f"{'red' if verdict.red else 'NOT SEEN':8} {verdict.seconds:6.1f} s  {verdict.name}", flush=True)
        print(f"         {verdict.seen_by}", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        table = [found[fault.name] for fault in all_faults() if fault.name in found]
        rows = [asdict(verdict) for verdict in table]
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.markdown and verdicts:
        options.markdown.write_text(markdown(table), encoding="utf-8")
    unseen = [verdict.name for verdict in verdicts if not verdict.red]
    print(f"faults: {len(verdicts)} planted, {len(verdicts) - len(unseen)} seen; rows: {options.out}")
    for name in unseen:
        print(f"NOT SEEN: {name}", file=sys.stderr)
    return 1 if unseen or not verdicts else 0


if __name__ == "__main__":
    raise SystemExit(main())
