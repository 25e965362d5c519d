"""The CUDA C++ provider of ``add_layer_norm``.

Without a GPU: its device code runs on the CPU under the address and the thread sanitizer (`host_shim/`), and nvcc's
machine code is looked at. With one: the same checks as for Triton.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dynabert_kernels.ops import NATIVE, cuda_limits, providers
from dynabert_kernels.testing import offline_nvcc
from dynabert_kernels.testing.inputs import ADD_LAYER_NORM_SHAPES, DTYPES, add_layer_norm_input, strided_rows
from tests.kernels.host_shim import build as host_shim
from tests.kernels.layer_norm_checks import assert_same, check_against_float64, results

NVCC = offline_nvcc.find_nvcc()
LAYER_NORM = offline_nvcc.SOURCES / "cuda" / "layer_norm.cu"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

# The device code on the CPU.

BARRIER_CASE = (
    "float32-two-warps"  # a thread for each CUDA thread: larger teams take the thread sanitizer half a minute
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """The test program built with each sanitizer, or the reason why there is none."""
    folder = tmp_path_factory.mktemp("host_shim")
    found: dict[str, Path | str] = {}
    for sanitizer in host_shim.SANITIZERS:
        reason = host_shim.why_not(sanitizer, folder)
        found[sanitizer] = reason if reason is not None else host_shim.build("layer_norm", sanitizer, folder)
    return found


def _program(programs: dict[str, Path | str], sanitizer: str) -> Path:
    found = programs[sanitizer]
    if isinstance(found, str):
        pytest.skip(found)
    return found


def test_device_code_is_right_and_stays_in_its_memory(programs: dict[str, Path | str]) -> None:
    done = host_shim.run(_program(programs, "memory"))
    assert done.returncode == 0, done.stdout + done.stderr
    cases = {line.split()[0] for line in done.stdout.splitlines()}
    assert len(cases) == 8


def test_device_code_has_no_races(programs: dict[str, Path | str]) -> None:
    done = host_shim.run(_program(programs, "races"), BARRIER_CASE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert BARRIER_CASE in done.stdout


def test_a_planted_read_beyond_the_rows_is_seen(programs: dict[str, Path | str]) -> None:
    done = host_shim.run(_program(programs, "memory"), "--plant", "float32-scalar")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_each_barrier_is_missed_when_it_is_left_out(programs: dict[str, Path | str]) -> None:
    # Proof that the thread sanitizer sees through the shim, and that no barrier is there for nothing.
    listed = host_shim.run(_program(programs, "races"), "--sites", BARRIER_CASE)
    sites = [line.split()[1] for line in listed.stdout.splitlines() if line.startswith("site ")]
    assert {site.split(":")[0] for site in sites} == {"row.cuh", "layer_norm.cuh"}
    for site in sites:
        done = host_shim.run(_program(programs, "races"), "--drop", site, BARRIER_CASE)
        assert done.returncode == 66, f"{site}: {done.stdout}"
        assert "data race" in done.stderr, site


# The machine code.


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH and neither CUDA_HOME nor CUDA_PATH holds one")
@pytest.mark.parametrize("arch", offline_nvcc.ARCHS)
def test_machine_code_has_no_spills_and_wide_loads(arch: str) -> None:
    builds = offline_nvcc.builds_of(LAYER_NORM, arch, str(NVCC))
    # 3 dtypes: 2 kernels forward and 2 backward, each with packs of 16 bytes and without, and one that sums.
    assert len(builds) == 3 * (4 * 2 + 1)
    assert {build.dtype for build in builds} == {"fp32", "bf16", "fp16"}
    for build in builds:
        assert build.faults == [], build
        packed = {"add_layer_norm_forward_kernel": 3, "add_layer_norm_backward_kernel": 3}.get(build.kernel)
        if packed is not None and int(build.shape.split(", ")[packed]) > 1:
            assert build.vector_loads > 0, build


# What it refuses, so that the rule picks another provider.


def test_limits_are_named_in_words() -> None:
    supports = cuda_limits.supports("add_layer_norm_fwd")
    with FakeTensorMode():  # tensors of a device that need not be there

        def refusal(rows: int, columns: int, column_stride: int = 1, dtype: torch.dtype = torch.float32) -> str | None:
            x = torch.empty_strided((rows, columns), (5000, column_stride), dtype=dtype, device="cuda")
            vector = torch.empty(columns, dtype=dtype, device="cuda")
            return supports(x, None, vector, vector, 1e-5)

        assert refusal(4, 61) is None
        assert refusal(0, 4096) is None
        strides = "a tensor has strides (5000, 3); its last stride must be 1 (call .contiguous())"
        assert refusal(4, 61, column_stride=3) == strides
        assert "it takes float32, bfloat16 and float16" in str(refusal(4, 61, dtype=torch.float64))
        assert refusal(1, 4097) == "C is 4097; it takes 1 to 4096 columns"
        assert "one is on 'cpu'" in str(supports(torch.empty(4, 61)))


def test_the_limit_is_the_kernels() -> None:
    found = re.search(r"kMaxLayerNormColumns = (\d+);", (offline_nvcc.SOURCES / "cuda" / "layer_norm.h").read_text())
    assert found is not None
    assert int(found[1]) == cuda_limits.MAX_ROW_COLUMNS


def test_kernel_attributes_need_a_driver_and_say_so() -> None:
    if NATIVE is None or not hasattr(NATIVE, "kernel_attributes"):
        pytest.skip("the native library was built without CUDA")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="kernel_attributes: the driver does not answer"):
            NATIVE.kernel_attributes()
        return
    for kernel in NATIVE.kernel_attributes():
        assert kernel["local_bytes"] == 0, kernel
        assert 0 < kernel["registers"] <= 255


# On a GPU.


def _needs_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if "cuda" not in providers.registered()["add_layer_norm_fwd"]:
        pytest.skip("the native library was built without CUDA")


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("shape", [*ADD_LAYER_NORM_SHAPES, (3, 4096)], ids=str)
def test_matches_float64(shape: tuple[int, int], dtype: torch.dtype) -> None:
    _needs_gpu()
    forward, backward = torch.ops.dynabert_cuda.add_layer_norm_fwd, torch.ops.dynabert_cuda.add_layer_norm_bwd
    for residual in (True, False):
        sample = add_layer_norm_input(*shape, dtype, residual=residual, device="cuda")
        check_against_float64(forward, backward, sample)
        assert_same(results(forward, backward, sample), results(forward, backward, sample))
        if residual and sample.residual is not None:
            residual_view = strided_rows(sample.residual, gap=8, offset=0)
            views = sample._replace(x=strided_rows(sample.x), residual=residual_view, dy=strided_rows(sample.dy))
            check_against_float64(forward, backward, views)


def test_errors_name_what_is_wrong() -> None:
    _needs_gpu()
    x, residual, weight, bias, eps, _ = add_layer_norm_input(4, 61, torch.float32, device="cuda")
    forward = torch.ops.dynabert_cuda.add_layer_norm_fwd
    with pytest.raises(ValueError, match=r"add_layer_norm_fwd: x has stride 4 in its last dimension; allowed: 1"):
        forward(x.t().contiguous().t(), residual, weight, bias, eps)
    with pytest.raises(ValueError, match=r"weight has shape \(60\); allowed: \(C,\) = \(61\)"):
        forward(x, residual, weight[1:], bias, eps)
    with pytest.raises(ValueError, match=r"bias is not on CUDA device 0"):
        forward(x, residual, weight, bias.cpu(), eps)
    with pytest.raises(ValueError, match=r"x is Double; allowed on CUDA: float32, bfloat16, float16"):
        forward(x.double(), None, weight.double(), bias.double(), eps)
