"""What a compiled GPU kernel needs and holds, read from its machine code: no driver and no GPU are asked.

The tools (`cuobjdump`, `nvdisasm`) come with Triton, or with a CUDA toolkit.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Chip:
    """Limits of one architecture, from NVIDIA's table of compute capabilities."""

    shared_bytes_per_block: int  # the most a launch can ask for
    shared_bytes: int  # of one multiprocessor
    max_warps: int = 64
    max_blocks: int = 32
    registers: int = 65536


# A build does not check the shared memory limit: a kernel over it compiles and can never be launched.
CHIPS = {"sm_80": Chip(166_912, 167_936), "sm_90": Chip(232_448, 233_472)}


def chip_of(arch: str) -> Chip:
    """The limits of `sm_90` and of `sm_90a` alike."""
    return CHIPS[arch.rstrip("af")]


def occupancy(arch: str, registers: int, shared_bytes: int, warps: int) -> float:
    """Estimated share of a multiprocessor's warps that can be resident at once."""
    chip = chip_of(arch)
    # Registers are given out by 256 to a warp, and each of the four partitions serves its own warps; a block also takes
    # 1 KB of shared memory for the system.
    registers_per_warp = -(-max(registers, 1) * 32 // 256) * 256
    by_registers = chip.registers // 4 // registers_per_warp * 4 // warps
    by_shared = chip.shared_bytes // (shared_bytes + 1024)
    blocks = min(by_registers, by_shared, chip.max_warps // warps, chip.max_blocks)
    return round(blocks * warps / chip.max_warps, 3)


@dataclass
class KernelBuild:
    """One kernel, compiled for one architecture.

    `shape`: the sizes it was specialised for. `matrix`: it must use tensor cores. `aligned`: it must load 16 bytes at a
    time.
    """

    kernel: str
    provider: str
    arch: str
    dtype: str
    shape: str
    warps: int
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    tensor_core: bool
    tensor_core_instructions: int
    instruction: str  # what multiplies matrices: "wgmma", "mma", both, or "none"
    cp_async: int
    tma: int
    vector_loads: int
    specialised: bool
    occupancy: float
    compiler: str
    waits: int = 0  # for the kernels before it, on every way through the kernel, see `triton/dependent_launch.py`
    prefetches: int = 0  # instructions that bring lines to L2; before a wait, too
    early: int = 0  # instructions on memory that another kernel may write, before it waits
    matrix: bool = False
    aligned: bool = False
    dependent: bool = False  # it is launched while the kernel before it may still run
    faults: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Fills `faults` with what makes this build unfit, in words."""
        limit = chip_of(self.arch).shared_bytes_per_block
        self.faults = []
        if self.spill_bytes or self.stack_bytes:
            self.faults.append(f"spills: {self.spill_bytes} bytes, stack {self.stack_bytes}")
        if self.shared_bytes > limit:
            self.faults.append(f"shared memory: {self.shared_bytes} bytes, {self.arch} has {limit}")
        if self.matrix and not self.tensor_core:
            self.faults.append("multiplies matrices without tensor cores")
        if self.aligned and not (self.vector_loads or self.tma):
            self.faults.append("loads aligned rows piece by piece")
        if self.dependent and (not self.waits or self.early):
            self.faults.append(f"launched early: {self.waits} waits, {self.early} uses of memory before the first")
        if self.waits and not self.dependent:
            self.faults.append("waits for a kernel that it is not launched early for")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def toolkit_homes() -> list[Path]:
    """CUDA toolkits that the environment names."""
    return [Path(home) for key in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(key))]


def find_tool(name: str) -> str | None:
    """Path of a tool in Triton's package, in a CUDA toolkit or on the PATH; None if there is none."""
    candidates = [home / "bin" / name for home in toolkit_homes()]
    package = importlib.util.find_spec("triton")
    if package is not None and package.origin is not None:
        candidates.insert(0, Path(package.origin).parent / "backends" / "nvidia" / "bin" / name)
    return next((str(path) for path in candidates if path.is_file()), None) or shutil.which(name)


def needed_tool(name: str) -> str:
    """`find_tool`, or a RuntimeError that says where it comes from."""
    found = find_tool(name)
    if found is None:
        raise RuntimeError(f"codegen: no {name}; it comes with Triton and with the CUDA toolkit; install one of them")
    return found


def run(command: list[str]) -> str:
    """stdout and stderr of a tool that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@contextmanager
def cubin_file(cubin: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        yield file.name


def resource_usage(path: str, cuobjdump: str) -> dict[str, dict[str, int]]:
    """For each kernel of a cubin: REG, STACK, LOCAL, SHARED as `cuobjdump` names them."""
    found: dict[str, dict[str, int]] = {}
    for name, line in re.findall(r"Function (\S+):\s*\n(.*)", run([cuobjdump, "-res-usage", path])):
        found[name] = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", line)}
    return found


def instructions(path: str, cuobjdump: str) -> dict[str, str]:
    """For each kernel of a cubin: its machine code as text."""
    parts = re.split(r"^\s*Function : (\S+)\s*$", run([cuobjdump, "-sass", path]), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def code_section(cubin: bytes) -> bytes:
    """The instructions of a cubin that holds one kernel: its ELF section ``.text.NAME``."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    # Of each: the offset of its name, and the offset and length of what it holds.
    sections = [struct.unpack_from("<I20xQQ", cubin, table + index * size) for index in range(count)]
    names = sections[names_index][1]
    found = [
        cubin[start : start + length]
        for name, start, length in sections
        if cubin.startswith(b".text.", names + name) and length
    ]
    if len(found) != 1:
        raise RuntimeError(f"codegen: a cubin holds {len(found)} kernels; one is expected")
    return found[0]


_ADDRESS = re.compile(r"\s*/\*([0-9a-f]{4,})\*/")


def disassembled(cubins: Sequence[bytes], arch: str) -> list[str]:
    """The machine code of each cubin, which holds one kernel, as text.

    One call of nvdisasm for all, since most of a call's time is its start: it is given the kernels' instructions in a
    row. Addresses count from the first kernel's start, also those that branches name.
    """
    nvdisasm = needed_tool("nvdisasm")
    places: dict[bytes, int] = {}  # of each different cubin, which kernel in the row it is
    starts: list[int] = []
    code = b""
    for cubin in cubins:
        if cubin not in places:
            places[cubin] = len(starts)
            starts.append(len(code))
            code += code_section(cubin)
    chip = "SM" + arch.removeprefix("sm_").rstrip("a") + ("a" if arch.startswith("sm_90") else "")
    with cubin_file(code) as path:
        text = run([nvdisasm, "--binary", chip, path])
    lines: list[list[str]] = [[] for _ in starts]
    for line in text.splitlines():
        found = _ADDRESS.match(line)
        if found is not None:
            lines[bisect_right(starts, int(found[1], 16)) - 1].append(line)
    if not all(lines):
        raise RuntimeError(f"codegen: {nvdisasm} left {sum(not some for some in lines)} kernels out")
    parts = ["\n".join(some) for some in lines]
    return [parts[places[cubin]] for cubin in cubins]


_WIDTH = {"": 4, ".64": 8, ".128": 16, ".U8": 1, ".S8": 1, ".U16": 2, ".S16": 2}


def local_memory_bytes(sass: str) -> int:
    """Bytes moved by the instructions that store to and load from local memory: spills, as `ptxas -v` counts them."""
    return sum(_WIDTH.get(suffix, 4) for suffix in re.findall(r"\b(?:STL|LDL)(\.64|\.128|\.[US]8|\.[US]16)?", sass))


# Global memory: loads, stores, atomics, asynchronous and bulk copies. Parameters and constants are a launch's own.
_SHARED_MEMORY_OF_KERNELS = re.compile(r"\b(?:LDG|STG|LD|ST|LDGSTS|ATOM|ATOMG|RED|REDG|UTMALDG|UTMASTG|UBLKCP)\b")


def _always_waits(before: str, sass: str) -> bool:
    """Whether every way through a kernel comes to its first wait before it gives leave or ends.

    ``before``: the machine code up to the wait. It is not predicated, nothing leaves the kernel or gives leave before,
    and no branch goes past it.
    """
    line = before.rsplit("\n", 1)[-1]
    if "@" in line or re.search(r"\b(?:EXIT|PREEXIT|RET|BRX|JMP|CALL)\b", before):
        return False
    place = re.search(r"/\*([0-9a-f]{4,})\*/", line)
    targets = [int(target, 16) for target in re.findall(r"\bBRA\S*\s+(?:`\()?(?:\S+,\s*)?0x([0-9a-f]+)", before)]
    branches = len(re.findall(r"\bBRA\b", before))
    return len(targets) == branches and (not targets or (place is not None and max(targets) <= int(place[1], 16)))


def instruction_facts(sass: str) -> dict[str, Any]:
    """Counts of the instructions that tell whether a kernel became what it was written to be."""

    def count(pattern: str) -> int:
        return len(re.findall(pattern, sass))

    before_the_wait, *after = sass.split("ACQBULK")
    sure = bool(after) and _always_waits(before_the_wait, sass)

    wgmma, mma = count(r"\b(?:HGMMA|IGMMA|QGMMA)\b"), count(r"\b(?:HMMA|IMMA|DMMA)\b")
    return {
        "tensor_core": wgmma + mma > 0,
        "tensor_core_instructions": wgmma + mma,
        "instruction": " + ".join(name for name, uses in (("wgmma", wgmma), ("mma", mma)) if uses) or "none",
        "cp_async": count(r"\bLDGSTS\b"),
        "tma": count(r"\b(?:UTMALDG|UTMASTG|UBLKCP)\b"),
        "vector_loads": count(r"\bLD(?:G|GSTS)\S*\.128\b"),
        "waits": len(after) if sure else 0,
        "prefetches": count(r"\bCCTL\S*\.PF2\b"),
        "early": len(_SHARED_MEMORY_OF_KERNELS.findall(before_the_wait)) if after else 0,
        "specialised": count(r"\bUSETMAXREG\b") > 0,
    }
