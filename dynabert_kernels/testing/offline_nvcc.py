"""Compiles the CUDA C++ kernels and reads what the compiler made of them. Needs nvcc, no GPU and no driver."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from dynabert_kernels.testing.gpu_code import (
    KernelBuild,
    find_tool,
    instruction_facts,
    instructions,
    occupancy,
    run,
    toolkit_homes,
)

ARCHS = ("sm_80", "sm_90a")
SOURCES = Path(__file__).resolve().parents[2] / "csrc"
# As in setup.py; --keep leaves the PTX, which holds the launch bounds.
FLAGS = ("-cubin", "-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xptxas", "-v", "--keep")
INCLUDES = (f"-I{SOURCES}", f"-I{SOURCES / 'include'}")
_DTYPES = {"float": "fp32", "__nv_bfloat16": "bf16", "__half": "fp16"}
# Base names of kernels that multiply matrices, which must therefore use tensor cores. None is written yet.
MATRIX_KERNELS: frozenset[str] = frozenset()


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME or CUDA_PATH, else on the PATH; None if there is none."""
    named = [home / "bin" / "nvcc" for home in toolkit_homes()]
    return next((str(path) for path in named if path.is_file()), None) or shutil.which("nvcc")


def sources() -> list[Path]:
    """The files with kernels; none where the package was installed without its sources."""
    return sorted((SOURCES / "cuda").glob("*.cu"))


def nvcc_version(nvcc: str) -> str:
    found = re.search(r"release ([\d.]+)", run([nvcc, "--version"]))
    return f"nvcc {found[1]}" if found else "nvcc"


def demangle(names: list[str]) -> list[str]:
    """C++ names as they were written, where c++filt is there."""
    tool = shutil.which("c++filt")
    if tool is None:
        return names
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return text.splitlines()


def _short(name: str) -> tuple[str, str, str]:
    """(kernel, dtype, template arguments) of a demangled name such as ``void a::b_kernel<float, 32>(float const*)``."""
    found = re.match(r"(?:\w+ )?(?:[\w:]*::)?(\w+)(?:<(.*?)>)?\(", name)
    if found is None:
        return name, "", ""
    arguments = (found[2] or "").split(", ")
    return found[1], _DTYPES.get(arguments[0], ""), found[2] or ""


def _block_threads(ptx: str) -> dict[str, int]:
    """Largest block of each kernel, as its launch bounds promise."""
    found = {}
    for entry in re.split(r"\.entry\s+", ptx)[1:]:
        bound = re.search(r"\.maxntid\s+(\d+)", entry[: entry.find("{")])
        found[re.split(r"[(\s]", entry, maxsplit=1)[0]] = int(bound[1]) if bound else 1024
    return found


_USE = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


def builds_of(source: Path, arch: str, nvcc: str) -> list[KernelBuild]:
    """Every kernel of one source file, compiled as setup.py compiles it."""
    compiler = nvcc_version(nvcc)
    cuobjdump = find_tool("cuobjdump")
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder) / "kernels.cubin")
        log = run([nvcc, *FLAGS, *INCLUDES, f"-arch={arch}", "--keep-dir", folder, "-o", cubin, str(source)])
        threads = _block_threads("\n".join(path.read_text() for path in Path(folder).glob("*.ptx")))
        sass = instructions(cubin, cuobjdump) if cuobjdump is not None else {}
    uses = list(_USE.finditer(log))
    builds = []
    for use, name in zip(uses, demangle([use["name"] for use in uses]), strict=True):
        kernel, dtype, shape = _short(name)
        shared = re.search(r"(\d+) bytes smem", use["rest"])
        shared_bytes = int(shared[1]) if shared else 0
        warps = -(-threads.get(use["name"], 1024) // 32)
        build = KernelBuild(
            kernel=kernel,
            provider="cuda",
            arch=arch,
            dtype=dtype,
            shape=shape,
            warps=warps,
            registers=int(use["registers"]),
            stack_bytes=int(use["stack"]),
            spill_bytes=int(use["stores"]) + int(use["loads"]),
            shared_bytes=shared_bytes,
            occupancy=occupancy(arch, int(use["registers"]), shared_bytes, warps),
            compiler=compiler,
            matrix=kernel in MATRIX_KERNELS,
            **instruction_facts(sass.get(use["name"], "")),
        )
        build.judge()
        builds.append(build)
    if not builds:
        raise RuntimeError(f"codegen: {source.name} for {arch} compiled, but the compiler named no kernel:\n{log}")
    return builds
