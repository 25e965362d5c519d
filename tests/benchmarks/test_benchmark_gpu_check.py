"""``benchmarks/gpu_check.sh``, with a stand-in for Python: which parts it runs, and how it ends."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.check import CASES
from benchmarks.registry import REGISTRY

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.sh"

CHECKED = "add_layer_norm varlen_attention embed_layer_norm elastic_ffn"
TIMED = "elastic_ffn add_layer_norm varlen_attention"

# Answers the script's questions, notes every other call, and fails those that $FAILING names.
STAND_IN = """#!/usr/bin/env bash
case "$*" in
  *is_available*) echo "$SEES_GPU 2.11.0"; exit 0 ;;
  *get_device_capability*) echo 90a; exit 0 ;;
  *CASES*) echo "$CHECKED"; exit 0 ;;
  *REGISTRY*) echo "$TIMED"; exit 0 ;;
esac
echo "$DYNABERT_CUDA $DYNABERT_CUDA_ARCHS $*" >> "$CALLS"
[[ -n "$FAILING" && "$*" == *"$FAILING"* ]] && exit "${CODE:-1}"
exit 0
"""


def run_script(
    folder: Path, *arguments: str, sees_gpu: int, failing: str = "", code: int = 1, checked: str = CHECKED
) -> tuple[subprocess.CompletedProcess[str], str]:
    """The ended script and the calls it made of Python."""
    stand_in, calls = folder / "python", folder / "calls"
    stand_in.write_text(STAND_IN, encoding="utf-8")
    stand_in.chmod(0o755)
    names = {
        "PYTHON": stand_in,
        "OUT": folder / "out",
        "CALLS": calls,
        "SEES_GPU": sees_gpu,
        "CHECKED": checked,
        "TIMED": TIMED,
        "FAILING": failing,
        "CODE": code,
    }
    environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
    for name in ("DYNABERT_CUDA", "DYNABERT_CUDA_ARCHS"):
        environment.pop(name, None)
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    return done, calls.read_text(encoding="utf-8") if calls.exists() else ""


def test_without_a_gpu_it_says_so_and_does_nothing(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, sees_gpu=0)
    assert done.returncode == 2
    assert "no GPU: torch 2.11.0 sees no CUDA device here, so nothing was checked or timed" in done.stderr
    assert "--rehearse" in done.stderr
    assert calls == ""


def test_with_a_gpu_it_builds_with_cuda_for_this_card_then_checks_and_times_on_it(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, sees_gpu=1)
    assert done.returncode == 0, done.stdout
    assert "1 90a setup.py build_ext --inplace" in calls
    for op in CHECKED.split():
        for dtype in ("float32", "bfloat16", "float16"):
            assert f"-m benchmarks.check --device cuda --op {op} --dtype {dtype} " in calls
    for provider in ("triton", "cuda"):
        assert f"-m dynabert_kernels.testing.properties --provider {provider} " in calls
    assert "-m benchmarks.run --device cuda --op add_layer_norm varlen_attention elastic_ffn --plot" in calls
    assert "ALL GOOD" in (tmp_path / "out" / "gpu_check" / "summary.txt").read_text(encoding="utf-8")


def test_time_that_a_part_does_not_need_is_the_next_ones(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, sees_gpu=1)
    # Nothing took any time: all that the ten minutes leave.
    (checks,) = re.findall(r"== check \(at most (\d+) s\)", done.stdout)
    assert 360 <= int(checks) <= 385
    (limit,) = re.findall(r"== bench \(at most (\d+) s\)", done.stdout)
    (begun,) = re.findall(r"benchmarks.run .*--time-limit-s (\d+)", calls)
    assert 520 <= int(limit) <= 545
    assert int(limit) - int(begun) == 65


@pytest.mark.parametrize(
    "failing",
    ["setup.py", "--op elastic_ffn --dtype bfloat16", "properties --provider cuda", "benchmarks.run"],
)
def test_a_failing_part_does_not_stop_the_next_one_and_is_not_forgotten(tmp_path: Path, failing: str) -> None:
    done, calls = run_script(tmp_path, sees_gpu=1, failing=failing)
    assert done.returncode == 1
    assert "varlen_attention elastic_ffn --plot" in calls
    summary = (tmp_path / "out" / "gpu_check" / "summary.txt").read_text(encoding="utf-8")
    assert summary.count("FAILED (1)") == 1
    assert "NOT GOOD" in summary


def test_an_op_that_loses_the_device_is_not_timed_and_the_others_are(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, sees_gpu=1, failing="--op varlen_attention --dtype float16", code=3)
    assert done.returncode == 1
    assert "--op add_layer_norm elastic_ffn --plot" in calls
    assert "without varlen_attention: a check of it did not end by itself" in done.stdout


def test_when_no_op_answers_nothing_is_timed(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, sees_gpu=1, failing="benchmarks.check", code=139)
    assert done.returncode == 1
    assert "benchmarks.run" not in calls
    assert "left out: no op can be timed" in done.stdout


def test_a_rehearsal_runs_the_parts_on_the_cpu_and_says_what_it_is(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, "--rehearse", "--no-build", sees_gpu=0)
    assert done.returncode == 0
    assert "REHEARSAL on the CPU" in done.stdout
    assert "--device cpu" in calls
    assert "--device cuda" not in calls
    assert "setup.py" not in calls
    assert "left out (--no-build)" in done.stdout


def test_the_script_asks_for_the_ops_that_have_cases_and_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    questions = re.findall(r"-c '(from benchmarks[^']*)'", SCRIPT.read_text(encoding="utf-8"))
    answers = []
    for question in questions:
        exec(question)
        answers.append(set(capsys.readouterr().out.split()))
    assert answers == [{op for op, _ in CASES}, {benchmark.op for benchmark in REGISTRY.values()}]


def test_a_check_that_names_no_op_is_a_failure(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, sees_gpu=1, checked="")
    assert done.returncode == 1
    assert "benchmarks/check.py names no op" in done.stdout
    assert "benchmarks.run" not in calls


def test_an_earlier_run_s_rows_stay_until_this_one_may_begin(tmp_path: Path) -> None:
    rows = tmp_path / "out" / "gpu_check" / "rows.json"
    rows.parent.mkdir(parents=True)
    rows.write_text("{}", encoding="utf-8")
    assert run_script(tmp_path, sees_gpu=0)[0].returncode == 2
    assert run_script(tmp_path, sees_gpu=1, failing="import numpy")[0].returncode == 2
    assert run_script(tmp_path, "--rehearse", sees_gpu=0)[0].returncode == 0
    assert rows.is_file()
    assert (tmp_path / "out" / "gpu_check-rehearsal" / "summary.txt").is_file()
    assert run_script(tmp_path, sees_gpu=1)[0].returncode == 0
    assert not rows.exists()


def test_without_matplotlib_there_are_no_pictures(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, sees_gpu=1, failing="import matplotlib")
    assert done.returncode == 0
    assert "-m benchmarks.run" in calls
    assert "--plot" not in calls


def test_an_unknown_argument_is_refused(tmp_path: Path) -> None:
    done, calls = run_script(tmp_path, "--fast", sees_gpu=1)
    assert done.returncode == 2
    assert "unknown argument; got '--fast'; allowed: --rehearse, --no-build" in done.stderr
    assert calls == ""


def bench(folder: Path, *arguments: str, built: bool, sees_gpu: int, missing: bool = False) -> tuple[int, str, str]:
    """``gpu_bench.sh`` with a stand-in for Python: its status, what it told, the calls it made."""
    stand_in, calls = folder / "python", folder / "calls"
    stand_in.write_text(
        f"""#!/usr/bin/env bash
case "$*" in
  *"import numpy, rich"*) echo "No module named 'transformers'"; exit {int(missing)} ;;
  *"import _C"*) exit {int(not built)} ;;
  *is_available*) exit {int(not sees_gpu)} ;;
  *get_device_capability*) echo 90a; exit 0 ;;
esac
echo "$DYNABERT_CUDA $DYNABERT_CUDA_ARCHS $PYTHONPATH $*" >> "{calls}"
""",
        encoding="utf-8",
    )
    stand_in.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stand_in)}
    for name in ("DYNABERT_CUDA", "DYNABERT_CUDA_ARCHS", "PYTHONPATH"):
        environment.pop(name, None)
    script = str(SCRIPT.with_name("gpu_bench.sh"))
    done = subprocess.run(["bash", script, *arguments], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr, calls.read_text(encoding="utf-8") if calls.exists() else ""


def test_the_peers_are_timed_from_a_bare_checkout(tmp_path: Path) -> None:
    root = SCRIPT.parents[1]
    code, _, calls = bench(tmp_path, "--works", "widths", built=False, sees_gpu=1)
    assert code == 0
    build, run = calls.splitlines()
    assert build == f"1 90a {root}/python:{root} setup.py build_ext --inplace"
    assert run.endswith(f"{root}/python:{root} -m benchmarks.gpu_peers --time-limit-s 400 --works widths")
    (tmp_path / "calls").unlink()
    code, _, calls = bench(tmp_path, "--rehearse", built=True, sees_gpu=0)
    assert code == 0
    assert len(calls.splitlines()) == 1
    assert calls.endswith("-m benchmarks.gpu_peers --time-limit-s 400 --rehearse\n")


def test_a_package_that_the_peers_need_is_named(tmp_path: Path) -> None:
    code, told, calls = bench(tmp_path, built=True, sees_gpu=1, missing=True)
    assert (code, calls) == (2, "")
    assert "lacks a package: No module named 'transformers'" in told
