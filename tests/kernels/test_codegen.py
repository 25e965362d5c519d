"""``make codegen`` reads what it says, and every fault it looks for is found where it was planted.

Kernels are compiled in a process of their own, since this one may have them interpreted.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dynabert_kernels.testing import codegen
from dynabert_kernels.testing.gpu_code import (
    CHIPS,
    KernelBuild,
    code_section,
    instruction_facts,
    local_memory_bytes,
    occupancy,
)
from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED

needs_triton = pytest.mark.skipif(IMPORT_ERROR is not None, reason=str(IMPORT_ERROR))
KEYS = {"kernel", "arch", "dtype", "registers", "spill_bytes", "shared_bytes", "tensor_core"}  # what readers rely on


def _run(tmp_path: Path, *options: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, stderr and the written list, of a run that finds no nvcc and compiles Triton kernels."""
    hidden = {"TRITON_INTERPRET", "CUDA_HOME", "CUDA_PATH"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    out = tmp_path / "codegen.json"
    command = [sys.executable, "-m", "dynabert_kernels.testing.codegen", "--out", str(out), "--jobs", "1", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr, json.loads(out.read_text()) if out.exists() else []


@needs_triton
def test_kernels_compile_well_without_gpu_and_nvcc(tmp_path: Path) -> None:
    code, said, builds = _run(tmp_path, "--only", "add_layer_norm_bwd bf16 C=768 residual")
    assert code == 0, said
    assert "CUDA C++ kernels are left out: nvcc is not on the PATH" in said
    assert {(build["kernel"], build["arch"]) for build in builds} == {
        (kernel, arch)
        for kernel in ("add_layer_norm_bwd_kernel", "add_layer_norm_sum_partials_kernel")
        for arch in ("sm_80", "sm_90")
    }
    for build in builds:
        assert build.keys() >= KEYS
        assert build["spill_bytes"] == 0
        assert 16 <= build["registers"] <= 255
        assert build["vector_loads"] > 0
        assert build["compiler"].startswith("triton ")
        assert 0 < build["occupancy"] <= 1


@needs_triton
def test_planted_faults_are_found(tmp_path: Path) -> None:
    code, said, builds = _run(tmp_path, "--cases", "kernels.planted_kernels", "--arch", "sm_90")
    assert code == 1, said
    faults = {build["shape"]: build["faults"] for build in builds}
    assert faults["N=16384"][0].startswith("spills: ")
    assert faults["stride 1"] == ["multiplies matrices without tensor cores"]
    assert faults["stride 3"] == ["loads aligned rows piece by piece"]
    assert faults["early"] == ["launched early: 1 waits, 2 uses of memory before the first"]
    assert faults["never waits"] == ["launched early: 0 waits, 0 uses of memory before the first"]
    assert faults["waits for nothing"] == ["waits for a kernel that it is not launched early for"]
    assert faults["y=65536"] == ["grid: (1, 65536), allowed (2147483647, 65535, 65535)"]


@needs_triton
def test_kernels_of_inference_can_be_launched_early(tmp_path: Path) -> None:
    """On sm_90 alone, and then each waits before it touches memory; a product has its weight brought to L2 before."""
    code, said, builds = _run(tmp_path, "--only", "split sums bf16 3072 to 768, tile 3, dependent")
    assert code == 0, said
    found = {(b["kernel"], b["arch"]): (b["dependent"], b["waits"], b["early"], b["prefetches"]) for b in builds}
    assert found == {
        ("split_linear_kernel", "sm_80"): (False, 0, 0, 0),
        ("split_linear_kernel", "sm_90"): (True, 1, 0, 1),
        ("add_pieces_layer_norm_kernel", "sm_80"): (False, 0, 0, 0),
        ("add_pieces_layer_norm_kernel", "sm_90"): (True, 1, 0, 0),
    }


@needs_triton
def test_a_further_triton_compiles_the_same_launches(tmp_path: Path) -> None:
    # The installed one stands in for another: what counts is that its rows are joined and its faults too.
    import triton

    folder = tmp_path / "further"
    folder.mkdir()
    (folder / "triton").symlink_to(Path(triton.__file__).parent)
    only = ("--cases", "kernels.planted_kernels", "--arch", "sm_90", "--only", "planted_stride")
    code, said, builds = _run(tmp_path, *only, "--triton", str(folder))
    assert code == 1, said
    assert "2 builds, 2 unfit" in said
    assert [build["compiler"] for build in builds] == [f"triton {triton.__version__}"] * 2
    assert builds[0] == builds[1]


@needs_triton
def test_a_further_triton_that_fails_is_not_passed_over(tmp_path: Path) -> None:
    broken = tmp_path / "further" / "triton"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('planted')\n")
    only = ("--cases", "kernels.planted_kernels", "--arch", "sm_90", "--only", "planted_matrix")
    code, said, builds = _run(tmp_path, *only, "--triton", str(broken.parent))
    assert code == 1, said
    assert "triton cannot be imported (planted)" in said
    assert f"the Triton in {broken.parent} did not get to the end" in said
    assert builds == []
    code, said, _ = _run(tmp_path, *only, "--triton", str(tmp_path / "nowhere"))
    assert code == 2
    assert f"no Triton in {tmp_path / 'nowhere'}; install one: pip install" in said


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here, not interpreted")
def test_interpreted_kernels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert codegen.main(["--out", str(tmp_path / "none.json")]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
    assert not (tmp_path / "none.json").exists()


def _build(**changes: Any) -> KernelBuild:
    facts: dict[str, Any] = dict.fromkeys(KernelBuild.__dataclass_fields__, 0)
    facts |= {"arch": "sm_90a", "kernel": "k", "provider": "cuda", "dtype": "bf16", "shape": "", "compiler": ""}
    build = KernelBuild(**{**facts, **changes})
    build.judge()
    return build


def test_shared_memory_over_the_chips_limit_is_a_fault() -> None:
    # An offline build of 278,584 bytes compiles for sm_90 and could never be launched.
    assert _build(shared_bytes=CHIPS["sm_90"].shared_bytes_per_block).faults == []
    assert _build(shared_bytes=278_584).faults == ["shared memory: 278584 bytes, sm_90a has 232448"]
    assert _build(arch="sm_80", shared_bytes=200_000).faults == ["shared memory: 200000 bytes, sm_80 has 166912"]


def test_a_stack_is_a_fault_without_a_spill_too() -> None:
    # ptxas sometimes gives up with few registers and kilobytes of stack: registers alone hide it.
    assert _build(registers=32, stack_bytes=4096).faults == ["spills: 0 bytes, stack 4096"]


def test_instructions_are_counted() -> None:
    sass = """
        /*0010*/  LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/  HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0030*/  HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0040*/  LDGSTS.E.BYPASS.128 [R9], desc[UR4][R2.64] ;
        /*0050*/  @!P0 STL [R1+0x4], R5 ;
        /*0060*/  STL.128 [R1+0x10], R8 ;
        /*0070*/  LDL.64 R6, [R1+0x10] ;
        /*0080*/  USETMAXREG.DEALLOC.CTAPOOL 0x28 ;
    """
    facts = instruction_facts(sass)
    assert facts == {
        "tensor_core": True,
        "tensor_core_instructions": 2,
        "instruction": "wgmma + mma",
        "cp_async": 1,
        "tma": 0,
        "vector_loads": 2,
        "waits": 0,
        "prefetches": 0,
        "early": 0,
        "specialised": True,
    }
    early = instruction_facts(sass + "/*0090*/  ACQBULK ;\nPREEXIT ;\nSTG.E [R2.64], R4 ;")
    assert (early["waits"], early["early"]) == (1, 2)  # the load and the asynchronous copy; local memory is a thread's
    assert local_memory_bytes(sass) == 4 + 16 + 8


@pytest.mark.parametrize(
    ("sass", "waits"),
    [
        ("/*0010*/ ACQBULK ;\n/*0020*/ PREEXIT ;\n/*0030*/ LDG.E R4, [R2] ;", 1),
        ("/*0010*/ @P0 BRA 0x30 ;\n/*0020*/ CCTL.E.PF2 [R6] ;\n/*0030*/ ACQBULK ;", 1),
        ("/*0010*/ PREEXIT ;\n/*0020*/ ACQBULK ;", 0),  # leave is given before all is there
        ("/*0010*/ @P0 EXIT ;\n/*0020*/ ACQBULK ;", 0),  # a block that ends first ends the grid too early
        ("/*0010*/ @!P1 ACQBULK ;\n/*0020*/ LDG.E R4, [R2] ;", 0),
        ("/*0010*/ @P0 BRA 0x40 ;\n/*0020*/ ACQBULK ;\n/*0040*/ LDG.E R4, [R2] ;", 0),
        ("/*0010*/ @P0 BRA R4 ;\n/*0020*/ ACQBULK ;", 0),  # who knows where that goes
    ],
)
def test_a_wait_counts_where_every_way_comes_to_it(sass: str, waits: int) -> None:
    assert instruction_facts(sass)["waits"] == waits


def test_occupancy_is_bound_by_the_scarcest() -> None:
    assert occupancy("sm_90", registers=32, shared_bytes=0, warps=4) == 1.0
    assert occupancy("sm_90", registers=128, shared_bytes=0, warps=8) == 0.25  # registers: 16 warps
    assert occupancy("sm_90", registers=32, shared_bytes=100_000, warps=4) == 0.125  # shared memory: 2 blocks
    assert occupancy("sm_80", registers=32, shared_bytes=100_000, warps=4) == 0.062  # there it is 1
    assert occupancy("sm_90", registers=16, shared_bytes=0, warps=1) == 0.5  # 32 blocks of one warp


def _elf(sections: dict[bytes, bytes]) -> bytes:
    """A file of 64-bit ELF with these sections, and one of their names: no more of it than a cubin is read for."""
    names = b"\0" + b"\0".join([*sections, b".shstrtab"]) + b"\0"
    body, table = b"", b""
    for name, content in {**sections, b".shstrtab": names}.items():
        table += struct.pack("<IIQQQQIIQQ", names.index(name), 1, 0, 0, 64 + len(body), len(content), 0, 0, 1, 0)
        body += content
    head = b"\x7fELF".ljust(0x28, b"\0") + struct.pack("<Q", 64 + len(body))
    return head.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, len(sections) + 1, len(sections)) + body + table


def test_the_instructions_of_a_cubin_are_its_one_section_of_code() -> None:
    assert code_section(_elf({b".nv.info": b"xyz", b".text.kernel": b"0123456789abcdef"})) == b"0123456789abcdef"
    with pytest.raises(RuntimeError, match="a cubin holds 0 kernels; one is expected"):
        code_section(_elf({b".nv.info": b"xyz"}))
    with pytest.raises(RuntimeError, match="a cubin holds 2 kernels"):
        code_section(_elf({b".text.a": b"0", b".text.b": b"1"}))
