"""The CUDA C++ provider of ``distillation_loss``.

Without a GPU: its device code runs on the CPU under the address and the thread sanitizer (`host_shim/`), and nvcc's
machine code is looked at. With one: the same checks as for Triton.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dynabert_kernels.ops import cuda_limits, providers
from dynabert_kernels.testing import offline_nvcc
from dynabert_kernels.testing.inputs import DTYPES, strided_rows
from tests.kernels import distillation_loss_checks as checks
from tests.kernels.distillation_loss_checks import KINDS, SHAPES, sample
from tests.kernels.host_shim import build as host_shim

NVCC = offline_nvcc.find_nvcc()
SOURCE = offline_nvcc.SOURCES / "cuda" / "distillation_loss.cu"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

# The device code on the CPU.

BARRIER_CASE = "float32-two-warps"  # a thread for each CUDA thread: larger teams take the thread sanitizer long


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """The test program built with each sanitizer, or the reason why there is none."""
    folder = tmp_path_factory.mktemp("host_shim")
    found: dict[str, Path | str] = {}
    for sanitizer in host_shim.SANITIZERS:
        reason = host_shim.why_not(sanitizer, folder)
        found[sanitizer] = reason if reason is not None else host_shim.build("distillation_loss", sanitizer, folder)
    return found


def _program(programs: dict[str, Path | str], sanitizer: str) -> Path:
    found = programs[sanitizer]
    if isinstance(found, str):
        pytest.skip(found)
    return found


def test_device_code_is_right_and_stays_in_its_memory(programs: dict[str, Path | str]) -> None:
    done = host_shim.run(_program(programs, "memory"))
    assert done.returncode == 0, done.stdout + done.stderr
    cases = {tuple(line.split()[:2]) for line in done.stdout.splitlines()}
    assert len(cases) == 8 * 2


def test_device_code_has_no_races(programs: dict[str, Path | str]) -> None:
    done = host_shim.run(_program(programs, "races"), BARRIER_CASE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert BARRIER_CASE in done.stdout


def test_a_planted_teacher_row_past_the_last_is_seen(programs: dict[str, Path | str]) -> None:
    done = host_shim.run(_program(programs, "memory"), "--plant", "float32-scalar")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_each_barrier_is_missed_when_it_is_left_out(programs: dict[str, Path | str]) -> None:
    # Proof that the thread sanitizer sees through the shim, and that no barrier is there for nothing.
    listed = host_shim.run(_program(programs, "races"), "--sites", BARRIER_CASE)
    sites = [line.split()[1] for line in listed.stdout.splitlines() if line.startswith("site ")]
    assert [site.split(":")[0] for site in sites] == ["row.cuh", "row.cuh"]  # of team_sum and team_max
    for site in sites:
        done = host_shim.run(_program(programs, "races"), "--drop", site, BARRIER_CASE)
        assert done.returncode == 66, f"{site}: {done.stdout}"
        assert "data race" in done.stderr, site


# The machine code. Both architectures are compiled by `make codegen`; here the one with fewer registers to go round.


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH and neither CUDA_HOME nor CUDA_PATH holds one")
def test_machine_code_has_no_spills_and_wide_loads() -> None:
    builds = offline_nvcc.builds_of(SOURCE, "sm_80", str(NVCC))
    # 3 dtypes, 2 kinds: 2 kernels forward and 2 backward, each with packs of 16 bytes and without; and one that sums.
    assert len(builds) == 3 * 2 * (4 * 2) + 1
    for build in builds:
        assert build.faults == [], build
        if build.kernel != "distillation_loss_group_sum_kernel":
            assert build.dtype in ("fp32", "bf16", "fp16")
            if int(build.shape.split(", ")[3]) > 1:
                assert build.vector_loads > 0, build


# What it refuses, so that the rule picks another provider.


def test_limits_are_named_in_words() -> None:
    forward, backward = (cuda_limits.supports(f"distillation_loss_{half}") for half in ("fwd", "bwd"))
    with FakeTensorMode():  # tensors of a device that need not be there

        def refusal(columns: int, column_stride: int = 1, dtype: torch.dtype = torch.float32) -> str | None:
            x = torch.empty_strided((4, columns), (5000, column_stride), dtype=dtype, device="cuda")
            rows, active = (torch.empty(count, dtype=torch.int32, device="cuda") for count in (5, 4))
            arguments = (x, x, rows, None, active, 0)
            dloss = torch.empty(4, device="cuda")
            assert forward(*arguments) == backward(dloss, *arguments)
            return forward(*arguments)

        assert refusal(2) is None
        assert refusal(4096) is None
        assert refusal(4097) == "C is 4097; it takes 1 to 4096 columns"
        assert "its last stride must be 1" in str(refusal(61, column_stride=3))
        assert "it takes float32, bfloat16 and float16" in str(refusal(61, dtype=torch.float64))


def test_the_limit_is_the_kernels() -> None:
    text = (offline_nvcc.SOURCES / "cuda" / "distillation_loss.h").read_text()
    found = re.search(r"kMaxDistillationLossColumns = (\d+);", text)
    assert found is not None
    assert int(found[1]) == cuda_limits.MAX_ROW_COLUMNS


# On a GPU.


def _needs_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if "cuda" not in providers.registered()["distillation_loss_fwd"]:
        pytest.skip("the native library was built without CUDA")


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_matches_float64(dtype: torch.dtype, kind: int) -> None:
    _needs_gpu()
    both = torch.ops.dynabert_cuda.distillation_loss_fwd, torch.ops.dynabert_cuda.distillation_loss_bwd
    for lengths, columns in SHAPES:
        for mapped in (True, False):
            given = sample(lengths, columns, dtype, mapped=mapped, device="cuda")
            checks.check_against_float64(*both, given, kind)
            views = given._replace(
                student=strided_rows(given.student), teacher=strided_rows(given.teacher, gap=8, offset=0)
            )
            checks.check_against_float64(*both, views, kind)
            if len(lengths):
                checks.check_groups_alone(*both, given, kind)
    checks.check_extreme_logits(*both, "cuda")
    checks.check_a_nan_stays_in_its_group(*both, "cuda")


def test_errors_name_what_is_wrong() -> None:
    _needs_gpu()
    given = sample((3, 2), 61, torch.float32, device="cuda")
    forward = torch.ops.dynabert_cuda.distillation_loss_fwd
    for change, message in (
        ({"teacher": given.teacher.cpu()}, r"teacher is not on CUDA device 0, where student is"),
        ({"teacher_rows": given.rows.cpu()}, r"teacher_rows is not on CUDA device 0"),
        ({"active": given.rows}, r"active has shape \(3\); allowed: \(G,\) = \(2\)"),
        ({"student": given.student.t().contiguous().t()}, r"student has stride 7 in its last dimension; allowed: 1"),
        ({"student": given.student.double()}, r"student is Double; allowed on CUDA: float32, bfloat16, float16"),
    ):
        with pytest.raises(ValueError, match="distillation_loss_fwd: " + message):
            forward(*given._replace(**change).inputs(0))
