"""The CUDA C++ provider of ``embed_layer_norm``.

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
from dynabert_kernels.testing.inputs import DTYPES
from tests.kernels.embed_checks import SHAPES, assert_same, check_against_float64, embed_input, results
from tests.kernels.host_shim import build as host_shim

NVCC = offline_nvcc.find_nvcc()
EMBEDDING = offline_nvcc.SOURCES / "cuda" / "embedding.cu"
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
        found[sanitizer] = reason if reason is not None else host_shim.build("embedding", sanitizer, folder)
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


def test_a_planted_read_beyond_the_tokens_is_seen(programs: dict[str, Path | str]) -> None:
    done = host_shim.run(_program(programs, "memory"), "--plant", "float32-scalar")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_each_barrier_is_missed_when_it_is_left_out(programs: dict[str, Path | str]) -> None:
    listed = host_shim.run(_program(programs, "races"), "--sites", BARRIER_CASE)
    sites = [line.split()[1] for line in listed.stdout.splitlines() if line.startswith("site ")]
    # row.cuh and layer_norm.cuh have the barriers that test_cuda_layer_norm.py leaves out.
    assert {site.split(":")[0] for site in sites} == {"row.cuh", "layer_norm.cuh", "sums_by_id.cuh"}
    for site in sites:
        if site.startswith("layer_norm.cuh"):
            continue
        done = host_shim.run(_program(programs, "races"), "--drop", site, BARRIER_CASE)
        assert done.returncode == 66, f"{site}: {done.stdout}"
        assert "data race" in done.stderr, site


# The machine code.


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH and neither CUDA_HOME nor CUDA_PATH holds one")
def test_machine_code_has_no_spills_and_wide_loads() -> None:
    builds = offline_nvcc.builds_of(EMBEDDING, offline_nvcc.ARCHS[-1], str(NVCC))  # `make codegen` looks at all
    # 3 dtypes: 2 kernels forward and 2 backward, each with packs and without, 2 that sum pieces, one that joins them
    # and one that sums dw and db.
    assert len(builds) == 3 * (4 * 2 + 2 + 1 + 1)
    assert {build.dtype for build in builds} == {"fp32", "bf16", "fp16"}
    places = {"embed_layer_norm_forward_kernel": 3, "embed_layer_norm_backward_kernel": 3, "sum_pieces_kernel": 3}
    for build in builds:
        assert build.faults == [], build
        packed = places.get(build.kernel)
        if packed is not None and int(build.shape.split(", ")[packed]) > 1:
            assert build.vector_loads > 0, build


# What it refuses, so that the rule picks another provider.


def test_limits_are_named_in_words() -> None:
    with FakeTensorMode():  # tensors of a device that need not be there
        ids = torch.empty(5, dtype=torch.int64, device="cuda")

        def refusal(columns: int, stride: int = 1, dtype: torch.dtype = torch.float32) -> str | None:
            word = torch.empty_strided((9, columns), (5000, stride), dtype=dtype, device="cuda")
            vector = torch.empty(columns, dtype=dtype, device="cuda")
            supports = cuda_limits.supports("embed_layer_norm_fwd")
            return supports(ids, ids, None, word, word, None, vector, vector, None, None, 1e-5, 0.0, 0, -1)

        assert refusal(4096) is None
        assert refusal(4097) == "C is 4097; it takes 1 to 4096 columns"
        assert refusal(61, stride=3) == "a tensor has strides (5000, 3); its last stride must be 1 (call .contiguous())"
        assert "it takes float32, bfloat16 and float16" in str(refusal(61, dtype=torch.float64))


def test_the_limit_is_the_kernels() -> None:
    found = re.search(r"kMaxEmbeddingColumns = (\d+);", (offline_nvcc.SOURCES / "cuda" / "embedding.h").read_text())
    assert found is not None
    assert int(found[1]) == cuda_limits.MAX_ROW_COLUMNS


# On a GPU.


def _needs_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if "cuda" not in providers.registered()["embed_layer_norm_fwd"]:
        pytest.skip("the native library was built without CUDA")


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(shape: str, dtype: torch.dtype) -> None:
    _needs_gpu()
    forward, backward = torch.ops.dynabert_cuda.embed_layer_norm_fwd, torch.ops.dynabert_cuda.embed_layer_norm_bwd
    for types in ("given", "type 0", "no table"):
        sample = embed_input(shape, dtype, types=types, dropout_p=0.3, device="cuda")
        check_against_float64(forward, backward, sample)
        check_against_float64(forward, backward, sample.as_views())
        assert_same(results(forward, backward, sample), results(forward, backward, sample))
    check_against_float64(forward, backward, embed_input(shape, dtype, device="cuda"))


def test_errors_name_what_is_wrong() -> None:
    _needs_gpu()
    sample = embed_input("MiniLM", torch.float32, device="cuda")
    forward = torch.ops.dynabert_cuda.embed_layer_norm_fwd
    with pytest.raises(ValueError, match=r"position is not on CUDA device 0, where word is"):
        forward(*sample._replace(position=sample.position.cpu()).forward())
    with pytest.raises(ValueError, match=r"weight has shape \(383\); allowed: \(C,\) = \(384\)"):
        forward(*sample._replace(weight=sample.weight[1:]).forward())
    with pytest.raises(ValueError, match=r"word is Double; allowed on CUDA: float32, bfloat16, float16"):
        forward(*sample.to(torch.float64).forward())
