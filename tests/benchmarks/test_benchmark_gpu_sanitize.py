"""``benchmarks/gpu_sanitize.sh``, with stand-ins for Python and the sanitizer: what it runs, and how it ends."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from dynabert_kernels.testing.random_samples import BUILDERS

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_sanitize.sh"
STAND_IN = """#!/usr/bin/env bash
[[ "$*" == *is_available* ]] && exit "$((1 - SEES_GPU))"
echo "$*" >> "$CALLS"
[[ -n "$FAILING" && "$*" == *"$FAILING"* ]] && exit "$CODE"
sleep "$LASTS"
exit 0
"""
SANITIZER = """#!/usr/bin/env bash
echo "sanitizer $*" >> "$CALLS"
while [[ "$1" == --* ]]; do
  shift 2  # each of its options has a value
done
exec "$@"
"""


def run_script(
    folder: Path,
    *arguments: str,
    sees_gpu: int = 1,
    failing: str = "",
    code: int = 9,
    sanitizer: bool = True,
    total: int = 60,
    lasts: float = 0,
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The ended script and the calls that it made."""
    (folder / "bin").mkdir()
    for name, text in (("python", STAND_IN), ("compute-sanitizer", SANITIZER)):
        if name == "python" or sanitizer:
            (folder / "bin" / name).write_text(text, encoding="utf-8")
            (folder / "bin" / name).chmod(0o755)
    names = {
        "PYTHON": folder / "bin" / "python",
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "CUDA_HOME": folder / "nowhere",
        "OUT": folder / "out",
        "CALLS": folder / "calls",
        "SEES_GPU": sees_gpu,
        "FAILING": failing,
        "CODE": code,
        "JOBS": 4,
        "TOTAL": total,
        "LASTS": lasts,
    }
    environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    calls = folder / "calls"
    return done, calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []


def test_every_op_of_every_provider_goes_under_every_tool(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ALL CLEAN" in done.stdout
    under = [call for call in calls if call.startswith("sanitizer")]
    assert len(under) == 3 * 2 * len(BUILDERS)
    for op in BUILDERS:
        for provider in ("triton", "cuda"):
            for tool in ("memcheck", "racecheck", "synccheck"):
                (call,) = [c for c in under if f"--tool {tool} " in c and f"--provider {provider} --op {op} " in c]
                assert "--error-exitcode 9" in call
                assert "dynabert_kernels.testing.properties" in call
    assert (tmp_path / "out" / "gpu_sanitize" / "summary.txt").read_text(encoding="utf-8").endswith("ALL CLEAN\n")


@pytest.mark.parametrize(("code", "said"), [(9, "FOUND BY THE SANITIZER"), (1, "FAILED (1)"), (124, "STOPPED after")])
def test_what_is_found_is_named_and_does_not_stop_the_others(tmp_path: Path, code: int, said: str) -> None:
    few = ("--tools", "memcheck", "--providers", "triton cuda", "--ops", "elastic_ffn embed_layer_norm")
    done, calls = run_script(tmp_path, *few, failing="--provider cuda --op embed_layer_norm", code=code)
    assert done.returncode == 1
    assert len([call for call in calls if call.startswith("sanitizer")]) == 4
    (line,) = [line for line in done.stdout.splitlines() if said in line]
    assert line.startswith("memcheck-cuda-embed_layer_norm")
    assert "NOT CLEAN" in done.stdout


def test_an_op_that_a_provider_has_not_is_no_failure_and_nothing_at_all_is(tmp_path: Path) -> None:
    one = ("--tools", "memcheck", "--ops", "elastic_ffn")
    done, _ = run_script(tmp_path, *one, failing="--provider cuda", code=2)
    assert done.returncode == 0
    assert "not there" in done.stdout
    (tmp_path / "again").mkdir()
    done, _ = run_script(tmp_path / "again", *one, failing="properties", code=2)
    assert done.returncode == 2
    assert "nothing ran" in done.stdout


def test_the_summary_comes_in_time_and_names_what_was_left_out(tmp_path: Path) -> None:
    done, calls = run_script(
        tmp_path, "--tools", "memcheck", "--ops", "a b c d", "--providers", "triton cuda", total=2, lasts=9
    )
    assert done.returncode == 1
    assert len([call for call in calls if call.startswith("sanitizer")]) == 4
    summary = (tmp_path / "out" / "gpu_sanitize" / "summary.txt").read_text(encoding="utf-8")
    assert len(re.findall(r"STOPPED after [12] s", summary)) == 4  # on a busy machine a second is over before it begins
    assert summary.count("LEFT OUT: the 2 s of all were over") == 4
    assert summary.endswith("NOT CLEAN\n")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, sees_gpu=0)
    assert done.returncode == 2
    assert "has no torch that sees a CUDA device, so nothing was run" in done.stderr
    assert calls == []
    (tmp_path / "again").mkdir()
    done, calls = run_script(tmp_path / "again", sanitizer=False)
    assert done.returncode == 2
    assert "compute-sanitizer is neither on the PATH nor under CUDA_HOME" in done.stderr
    assert calls == []


def test_a_rehearsal_says_what_it_is(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, "--rehearse", "--ops", "elastic_ffn", "--cases", "3", sees_gpu=0)
    assert done.returncode == 0
    assert "REHEARSAL on the CPU, without a sanitizer" in done.stdout
    assert calls == ["-m dynabert_kernels.testing.properties --provider cpu --op elastic_ffn --cases 3"]


@pytest.mark.parametrize(("given", "said"), [("--fast", "unknown argument; got '--fast'"), ("--ops", "needs a value")])
def test_wrong_arguments_are_refused(tmp_path: Path, given: str, said: str) -> None:
    done, calls = run_script(tmp_path, given)
    assert done.returncode == 2
    assert said in done.stderr
    assert calls == []
