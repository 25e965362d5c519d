"""Builds the native library ``dynabert_kernels._C``; everything that is constant stands in ``pyproject.toml``.

    pip install --no-build-isolation -e .

The library is built against the PyTorch that is already installed, through its stable ABI, so one build serves torch
2.11 and later. Environment variables, all optional:

``DYNABERT_CUDA``
    ``1``: the CUDA half is required, and the build fails when something is missing. ``0``: leave it out.
    Unset: build it where a CUDA compiler is found. No GPU and no driver are needed to build it.
``DYNABERT_CUDA_ARCHS``
    Architectures of the CUDA half, separated by spaces, commas or semicolons. Default ``80 90a``.
``CUDA_HOME``, ``CXX``, ``MAX_JOBS``
    As everywhere: the CUDA toolkit, the C++ compiler, the number of compilers at work.

Without a C++ compiler the package installs without the native library and says so, here and in ``show_config()``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11: the oldest torch a build serves
MINIMUM_NVCC = (12, 4)  # C++20 and sm_90a
DEFAULT_ARCHS = ("80", "90a")


class MissingCuda(RuntimeError):
    """The CUDA half cannot be built; the message names what is missing."""


@dataclass(frozen=True)
class CudaToolkit:
    """A CUDA toolkit with a compiler and headers."""

    home: Path
    version: tuple[int, int]

    @property
    def library_dirs(self) -> list[str]:
        return [str(folder) for name in ("lib64", "lib") if (folder := self.home / name).is_dir()]


def say(message: str) -> None:
    """To stderr: pip shows it with ``-v`` and in a failed build's log."""
    print(f"dynabert-kernels: {message}", file=sys.stderr, flush=True)


def shout(message: str) -> None:
    """A line that is not overlooked. Where there is a terminal it goes there, since pip hides a build's output."""
    line = f"\n!!! dynabert-kernels: {message}\n"
    print(line, file=sys.stderr, flush=True)
    try:
        with open("/dev/tty", "w", encoding="utf-8") as terminal:
            terminal.write(line)
    except OSError:
        return  # no terminal: the line above is in the log


def find_cxx() -> list[str] | None:
    """The C++ compiler that the build will call, or None. Ends the build where ``CXX`` names one that is not there."""
    named = os.environ.get("CXX")
    candidates = [named] if named else ["c++", "g++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if command and shutil.which(command[-1] if "ccache" in command[0] else command[0]):
            return command
    if named:
        raise SystemExit(
            f"dynabert-kernels: CXX is {named!r}, and no such program is found; give a C++20 compiler's name on the "
            "PATH or its whole path, or unset CXX"
        )
    return None


def compiler_version(command: list[str]) -> str:
    """The first line of ``--version``."""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().splitlines()[0] if done.stdout or done.stderr else "unknown"


def _toolkit_candidates() -> list[Path]:
    """Folders that may be the toolkit, most trusted first."""
    found = [Path(value) for name in ("CUDA_HOME", "CUDA_PATH") if (value := os.environ.get(name))]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        # The nvcc on the PATH may be a wrapper that lies outside the toolkit: its own dry run says where it works from.
        dry = subprocess.run(
            [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
        )
        top = re.search(r"^#\$ TOP=(.*)$", dry.stderr + dry.stdout, re.M)
        if top:
            found.append(Path(top[1].strip()))
    return found


def find_cuda(torch_cuda: str | None) -> CudaToolkit:
    """The toolkit to build with. ``torch_cuda``: the CUDA version of the installed PyTorch, None for a CPU build.

    Raises ``MissingCuda`` and names what is missing.
    """
    candidates = _toolkit_candidates()
    if not candidates:
        raise MissingCuda("no nvcc on the PATH and neither CUDA_HOME nor CUDA_PATH is set")
    faults = []
    for home in (Path(os.path.realpath(path)) for path in candidates):
        nvcc = home / "bin" / "nvcc"
        if not nvcc.is_file():
            faults.append(f"{nvcc} is not there")
            continue
        if not (home / "include" / "cuda_runtime.h").is_file():
            faults.append(f"{home / 'include' / 'cuda_runtime.h'} is not there (toolkit headers)")
            continue
        runtimes = [home / name / "libcudart_static.a" for name in ("lib64", "lib")]
        if not any(path.is_file() for path in runtimes):
            faults.append(f"{runtimes[0]} is not there (static CUDA runtime)")
            continue
        text = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=False).stdout
        release = re.search(r"release (\d+)\.(\d+)", text)
        if release is None:
            faults.append(f"{nvcc} --version names no release")
            continue
        version = (int(release[1]), int(release[2]))
        if version < MINIMUM_NVCC:
            faults.append(f"{nvcc} is CUDA {version[0]}.{version[1]}; {MINIMUM_NVCC[0]}.{MINIMUM_NVCC[1]} is needed")
            continue
        if torch_cuda is not None and int(torch_cuda.split(".")[0]) != version[0]:
            faults.append(f"{nvcc} is CUDA {version[0]}.{version[1]} and PyTorch was built with CUDA {torch_cuda}")
            continue
        return CudaToolkit(home, version)
    raise MissingCuda("; ".join(faults))


def choose_cuda(torch_cuda: str | None, sources: list[str]) -> CudaToolkit | None:
    """The toolkit, or None where the CUDA half is left out. Ends the build when it was required and cannot be built."""
    wanted = os.environ.get("DYNABERT_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"dynabert-kernels: DYNABERT_CUDA is {wanted!r}; allowed: 0, 1 or unset")
    if wanted == "0":
        say("the CUDA half is left out (DYNABERT_CUDA=0)")
        return None
    try:
        if not sources:
            raise MissingCuda("this source tree has no csrc/cuda/*.cu")
        return find_cuda(torch_cuda)
    except MissingCuda as missing:
        if wanted == "1":
            raise SystemExit(
                f"dynabert-kernels: DYNABERT_CUDA=1 but the CUDA half cannot be built: {missing}. "
                "Install the CUDA toolkit (nvcc, headers, static runtime; no GPU is needed) and set CUDA_HOME, "
                "or set DYNABERT_CUDA=0."
            ) from missing
        say(f"the CUDA half is left out: {missing}")
        return None


def cuda_archs() -> list[str]:
    """Architectures to generate code for, such as ``["80", "90a"]``."""
    text = os.environ.get("DYNABERT_CUDA_ARCHS", "")
    archs = [part for part in re.split(r"[\s,;]+", text) if part] or list(DEFAULT_ARCHS)
    cleaned = [arch.removeprefix("sm_").replace(".", "") for arch in archs]
    for arch in cleaned:
        if not re.fullmatch(r"\d{2,3}[af]?", arch):
            raise SystemExit(f"dynabert-kernels: DYNABERT_CUDA_ARCHS has {arch!r}; allowed: numbers such as 80, 90a")
    return cleaned


def git_commit() -> str:
    """The commit of this checkout, with ``+changes`` when files differ from it; "" outside a checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return ""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD")
    return commit + ("+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else "")


def write_facts(facts: dict[str, str]) -> Path:
    """Writes the build facts as a header and returns its folder. The file changes only when a fact does."""
    folder = ROOT / "build" / "generated"
    folder.mkdir(parents=True, exist_ok=True)

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    lines = ["// Written by setup.py at each build.", "#pragma once", "", "#define DYNABERT_BUILD_FACTS \\"]
    lines += [f"  {{{quoted(key)}, {quoted(value)}}}, \\" for key, value in facts.items()]
    text = "\n".join(lines)[:-2] + "\n"
    header = folder / "dynabert_build_facts.h"
    if not header.is_file() or header.read_text(encoding="utf-8") != text:
        header.write_text(text, encoding="utf-8")
    return folder


def import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            f"dynabert-kernels: PyTorch cannot be imported here ({error}). The native library is built against the "
            "PyTorch you run: install torch first (2.11 or later), then\n"
            "    pip install --no-build-isolation -e ."
        ) from error
    return torch


def sources() -> tuple[list[str], list[str]]:
    """C++ sources of the host and CPU part, and sources of the CUDA half, relative to the root."""

    def found(pattern: str) -> list[str]:
        return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))

    host = found("csrc/host/*.cpp") + found("csrc/cpu/*.cpp") + found("csrc/torch/*.cpp")
    cuda = [name for name in host if name.endswith("_cuda.cpp")]
    return [name for name in host if name not in cuda], found("csrc/cuda/*.cu") + found("csrc/cuda/*.cpp") + cuda


def extension() -> dict[str, Any]:
    """What setup() needs to build the native library; empty where there is no C++ compiler."""
    torch = import_torch()
    compiler = find_cxx()
    if compiler is None:
        if os.environ.get("DYNABERT_CUDA") == "1":
            raise SystemExit(
                "dynabert-kernels: DYNABERT_CUDA=1 but no C++ compiler is found, and the CUDA half needs one too. "
                "Install g++ 12 or clang++ 16 (or set CXX), or set DYNABERT_CUDA=0."
            )
        shout(
            "NO C++ COMPILER FOUND, the native library is NOT built. The package works on plain PyTorch, slower. "
            "Install g++ 12 or clang++ 16 (or set CXX) and install again."
        )
        return {}
    import pybind11
    import torch.utils.cpp_extension as cpp_extension

    host, cuda = sources()
    toolkit = choose_cuda(torch.version.cuda, cuda)
    archs = cuda_archs() if toolkit is not None else []
    cxx = [
        "-O3",
        "-g0",  # Python's own flags ask for debug information, which makes the library ten times larger
        "-std=c++20",
        "-fvisibility=hidden",
        "-fno-math-errno",  # sqrt as one instruction
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-Wno-unused-parameter",  # in torch's headers
        "-Wno-maybe-uninitialized",  # false alarms inside GCC 12's own intrinsics headers
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
    ]
    nvcc: list[str] = []
    include_dirs = [str(ROOT / "csrc" / "include"), str(ROOT / "csrc"), pybind11.get_include()]
    library_dirs: list[str] = []
    libraries: list[str] = []
    if toolkit is not None:
        host = host + cuda
        cxx.append("-DUSE_CUDA")
        nvcc = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xcompiler", "-fvisibility=hidden", "-DUSE_CUDA"]
        # torch forbids conversions of half and bfloat16 by these macros; kernels need them.
        nvcc += [f"-U__CUDA_NO_{kind}__" for kind in ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS")]
        nvcc += ["-U__CUDA_NO_BFLOAT16_CONVERSIONS__", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
        for arch in archs:
            nvcc += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
        # torch sets None in a CPU build, and guesses wrong beside a wrapper.
        cpp_extension.CUDA_HOME = str(toolkit.home)
        include_dirs.append(str(toolkit.home / "include"))
        library_dirs = toolkit.library_dirs
        libraries = ["cudart_static", "dl", "rt", "pthread"]  # static: no libcudart to be found at import
    facts = {
        "compiler": compiler_version(compiler),
        "flags": " ".join(cxx),
        "torch": torch.__version__,
        "torch_target": "2.11",
        "cuda": ".".join(map(str, toolkit.version)) if toolkit is not None else "",
        "cuda_archs": " ".join(archs),
        "commit": git_commit(),
    }
    include_dirs.append(str(write_facts(facts)))
    native = cpp_extension.CppExtension(
        "dynabert_kernels._C",
        host,
        include_dirs=include_dirs,
        library_dirs=library_dirs,
        libraries=libraries,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
    )
    # Only the stable ABI is used; libtorch_python and libtorch would tie the build to one torch.
    native.libraries = [name for name in native.libraries if name not in ("torch", "torch_python")]

    class Build(cpp_extension.BuildExtension):
        """torch's build, told in one line what it builds."""

        def build_extensions(self) -> None:
            half = f"with CUDA {facts['cuda']} for {facts['cuda_archs']}" if toolkit else "without CUDA"
            say(f"building dynabert_kernels._C {half}, {facts['compiler']}, torch {facts['torch']}")
            super().build_extensions()

    return {"ext_modules": [native], "cmdclass": {"build_ext": Build}}


def main() -> None:
    from setuptools import find_packages, setup

    kernels = find_packages(".", include=["dynabert_kernels", "dynabert_kernels.*"])
    dynabert = find_packages("python", include=["dynabert", "dynabert.*"])
    # The folder keeps its short name in the repository; as an installed package it must not be anybody's "benchmarks".
    benchmarks = [f"dynabert_{name}" for name in find_packages(".", include=["benchmarks", "benchmarks.*"])]
    setup(
        packages=kernels + dynabert + benchmarks,
        package_dir={
            "dynabert_kernels": "dynabert_kernels",
            "dynabert": "python/dynabert",
            "dynabert_benchmarks": "benchmarks",
        },
        package_data={"dynabert_kernels": ["py.typed"], "dynabert": ["py.typed"]},
        **extension(),
    )


if __name__ == "__main__":
    main()
