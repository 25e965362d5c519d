"""What setup.py decides, and what the library it built says of itself."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dynabert_kernels as dk

ROOT = Path(__file__).parents[1]


@pytest.fixture
def setup() -> ModuleType:
    """setup.py as a module; importing it builds nothing."""
    spec = importlib.util.spec_from_file_location("dynabert_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty PATH and no variable that names a toolkit; returns the folder on the PATH."""
    for name in ("CUDA_HOME", "CUDA_PATH", "DYNABERT_CUDA", "DYNABERT_CUDA_ARCHS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def toolkit(folder: Path, *, release: str = "13.0", headers: bool = True, runtime: bool = True) -> Path:
    """A folder that looks like a CUDA toolkit."""
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n")
    nvcc.chmod(0o755)
    if headers:
        (folder / "include").mkdir()
        (folder / "include" / "cuda_runtime.h").touch()
    if runtime:
        (folder / "lib64").mkdir()
        (folder / "lib64" / "libcudart_static.a").touch()
    return folder


def test_required_cuda_without_nvcc_ends_the_build(
    setup: ModuleType, no_toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNABERT_CUDA", "1")
    with pytest.raises(SystemExit, match=r"DYNABERT_CUDA=1 but .*: no nvcc on the PATH and neither CUDA_HOME nor"):
        setup.choose_cuda(None, ["csrc/cuda/layer_norm.cu"])


def test_unset_cuda_without_nvcc_says_what_is_left_out(
    setup: ModuleType, no_toolkit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup.choose_cuda(None, ["csrc/cuda/layer_norm.cu"]) is None
    assert "the CUDA half is left out: no nvcc on the PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parts", "torch_cuda", "message"),
    [
        ({"headers": False}, None, r"cuda_runtime\.h is not there \(toolkit headers\)"),
        ({"runtime": False}, None, r"libcudart_static\.a is not there \(static CUDA runtime\)"),
        ({"release": "11.8"}, None, r"is CUDA 11\.8; 12\.4 is needed"),
        ({}, "12.8", r"is CUDA 13\.0 and PyTorch was built with CUDA 12\.8"),
    ],
)
def test_a_toolkit_with_a_part_missing_is_named(
    setup: ModuleType,
    no_toolkit: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: dict,
    torch_cuda: str | None,
    message: str,
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(no_toolkit / "cuda", **parts)))
    with pytest.raises(setup.MissingCuda, match=message):
        setup.find_cuda(torch_cuda)


def test_a_wrapper_on_the_path_leads_to_the_toolkit(setup: ModuleType, no_toolkit: Path) -> None:
    """The nvcc on the PATH may lie outside the toolkit; its dry run names the real place."""
    home = toolkit(no_toolkit / "real")
    wrapper = no_toolkit / "nvcc"
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={home}/bin/..' >&2\n")
    wrapper.chmod(0o755)
    found = setup.find_cuda("13.0")
    assert found.home == home.resolve()
    assert found.version == (13, 0)


def test_wrong_settings_are_refused(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNABERT_CUDA", "yes")
    with pytest.raises(SystemExit, match="DYNABERT_CUDA is 'yes'; allowed: 0, 1 or unset"):
        setup.choose_cuda(None, [])
    monkeypatch.setenv("DYNABERT_CUDA_ARCHS", "80 hopper")
    with pytest.raises(SystemExit, match="DYNABERT_CUDA_ARCHS has 'hopper'"):
        setup.cuda_archs()


def test_architectures(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYNABERT_CUDA_ARCHS", raising=False)
    assert setup.cuda_archs() == ["80", "90a"]
    monkeypatch.setenv("DYNABERT_CUDA_ARCHS", "sm_90a; 8.6,100a")
    assert setup.cuda_archs() == ["90a", "86", "100a"]


def test_without_a_compiler_the_package_still_installs_and_says_so(
    setup: ModuleType, no_toolkit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup.extension() == {}
    assert "NO C++ COMPILER FOUND, the native library is NOT built" in capsys.readouterr().err


def test_what_was_asked_for_by_name_is_not_left_out(
    setup: ModuleType, no_toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler or a CUDA half that the caller named: the slower package would be a surprise."""
    monkeypatch.setenv("DYNABERT_CUDA", "1")
    with pytest.raises(SystemExit, match=r"DYNABERT_CUDA=1 but no C\+\+ compiler is found"):
        setup.extension()
    monkeypatch.setenv("CXX", "ccache g++-99")
    with pytest.raises(SystemExit, match=r"CXX is 'ccache g\+\+-99', and no such program is found; give a C\+\+20"):
        setup.extension()


def test_without_torch_the_build_says_what_to_do(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"install torch first .*\n +pip install --no-build-isolation -e \."):
        setup.import_torch()


def test_build_facts() -> None:
    if dk.NATIVE is None:
        pytest.skip("the native library is not built")
    facts = dk.NATIVE.build_info()
    assert set(facts) == {"compiler", "flags", "torch", "torch_target", "cuda", "cuda_archs", "commit", "with_cuda"}
    assert facts["compiler"]
    assert "-std=c++20" in facts["flags"]
    assert facts["torch_target"] == "2.11"
    assert tuple(map(int, facts["torch"].split("+")[0].split(".")[:2])) >= (2, 11)
    assert facts["with_cuda"] is bool(facts["cuda"])
    assert bool(facts["cuda"]) is bool(facts["cuda_archs"])
    assert re.fullmatch(r"([0-9a-f]{12}(\+changes)?)?", facts["commit"])


def test_processor_facts() -> None:
    if dk.NATIVE is None:
        pytest.skip("the native library is not built")
    facts = dk.NATIVE.cpu_features()
    names = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni"}
    names |= {"amx_bf16", "amx_int8"}
    assert set(facts) == names | {"isa", "available"}
    assert facts["isa"] == (os.environ.get("DYNABERT_CPU_ISA") or facts["available"][-1])
    assert facts["available"][0] == "generic"
    assert ("avx512" in facts["available"]) <= facts["avx512f"]
    assert ("amx" in facts["available"]) <= facts["amx_int8"]
    supported = torch.backends.cpu.get_cpu_capability()
    if "AVX512" in supported:
        assert facts["avx512f"]


def test_forcing_an_instruction_set() -> None:
    if dk.NATIVE is None:
        pytest.skip("the native library is not built")
    try:
        dk.NATIVE.set_cpu_isa("generic")
        assert dk.NATIVE.cpu_features()["isa"] == "generic"
    finally:
        dk.NATIVE.set_cpu_isa("auto")
    with pytest.raises(ValueError, match="set_cpu_isa: 'sse9' is no instruction set; allowed: auto, generic"):
        dk.NATIVE.set_cpu_isa("sse9")


@pytest.mark.parametrize(("value", "shown"), [("generic", "generic"), ("sse9", "no instruction set; allowed: auto")])
def test_the_environment_forces_an_instruction_set(value: str, shown: str) -> None:
    """A wrong value ends the import, not the first op in the middle of a run."""
    if dk.NATIVE is None:
        pytest.skip("the native library is not built")
    # The library alone, without the package around it: sooner.
    script = f"import importlib.util as u, torch\ns = u.spec_from_file_location('_C', {dk.NATIVE.__file__!r})\n"
    script += "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.cpu_features()['isa'])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "DYNABERT_CPU_ISA": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown in done.stdout + done.stderr
    assert (done.returncode == 0) is (value == "generic")


def test_packing() -> None:
    if dk.NATIVE is None:
        pytest.skip("the native library is not built")
    ids, positions, borders, longest = dk.NATIVE.pack_sequences([[7, 8, 9], [], (5,)], position_offset=2)
    assert ids.tolist() == [7, 8, 9, 5]
    assert positions.tolist() == [2, 3, 4, 2]
    assert borders.tolist() == [0, 3, 3, 4]
    assert longest == 3
    assert [str(a.dtype) for a in (ids, positions, borders)] == ["int64", "int64", "int32"]
    assert dk.NATIVE.pack_sequences([])[2].tolist() == [0]
    with pytest.raises(TypeError, match="integer"):
        dk.NATIVE.pack_sequences([[1, "a"]])
    with pytest.raises(TypeError, match="each sequence must be a list of integers"):
        dk.NATIVE.pack_sequences([3])


def test_wide_registers_only_in_the_code_that_is_chosen_at_run_time() -> None:
    """No function outside the namespaces avx2 and avx512 uses 256 or 512-bit registers, avx2 no 512-bit ones.

    An inline function of the standard library, compiled with AVX-512 and linked for all, would end the process on an
    older processor.
    """
    if dk.NATIVE is None:
        pytest.skip("the native library is not built")
    if shutil.which("objdump") is None:
        pytest.skip("objdump (binutils) is not installed")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", dk.NATIVE.__file__], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, set[str]] = {}
    function = ""
    for line in listing.splitlines():
        header = re.match(r"[0-9a-f]+ <(.+)>:$", line)
        if header:
            function = header[1]
        elif "%zmm" in line or "%ymm" in line:
            found.setdefault("zmm" if "%zmm" in line else "ymm", set()).add(function)
    if not found:
        pytest.skip("this build has no x86 vector code")
    # The static CUDA runtime brings functions of its own; they have no C++ names of ours or of the standard library.
    ours = {kind: {name for name in names if name.startswith("_Z")} for kind, names in found.items()}
    assert all("6avx512" in name for name in ours["zmm"])
    assert all("6avx512" in name or "4avx2" in name for name in ours["ymm"])
