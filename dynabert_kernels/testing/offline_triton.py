"""Compiles Triton kernels as a GPU would run them, without a GPU.

A stand-in for Triton's driver names the architecture, and launches are turned into compilations: the launcher's own
arguments go through Triton's own specialisation. Seen to work in triton 3.6 and 3.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch

from dynabert_kernels.testing.codegen_cases import TritonCase
from dynabert_kernels.testing.gpu_code import (
    KernelBuild,
    cubin_file,
    disassembled,
    instruction_facts,
    local_memory_bytes,
    needed_tool,
    occupancy,
    resource_usage,
)

ARCHS = {"sm_80": 80, "sm_90": 90}
_GRID_LIMITS = (2**31 - 1, 65535, 65535)


class OfflineDriver:
    """What a launch asks of a driver before it compiles.

    Each architecture is a device of its own, since Triton keeps compiled kernels by device.
    """

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


def compile_launches(case: TritonCase, arch: str) -> list[tuple[str, tuple[int, ...], Any]]:
    """(kernel's name, grid, compiled kernel) of each launch that the case makes, in order. Launches nothing."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiled: list[tuple[str, tuple[int, ...], Any]] = []
    original = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append((self.__name__, tuple(grid), kernel))
        return kernel

    before = driver._active
    driver.set_active(OfflineDriver(ARCHS[arch]))
    try:
        with mock.patch.object(JITFunction, "run", compile_only):
            case.launch()
    finally:
        driver._active = before
    if not compiled:
        raise RuntimeError(f"codegen: {case.name} launched no kernel; was Triton's interpreter on?")
    return compiled


def builds_of(cases: Sequence[TritonCase], arch: str) -> list[KernelBuild]:
    """The builds of every kernel that the cases launch, in their order."""
    import triton

    cuobjdump = needed_tool("cuobjdump")
    launches = [(case, *launch) for case in cases for launch in compile_launches(case, arch)]
    texts = disassembled([kernel.asm["cubin"] for *_, kernel in launches], arch)
    builds = []
    for (case, name, grid, kernel), sass in zip(launches, texts, strict=True):
        with cubin_file(kernel.asm["cubin"]) as path:
            (usage,) = resource_usage(path, cuobjdump).values()
        warps, shared_bytes = kernel.metadata.num_warps, kernel.metadata.shared
        build = KernelBuild(
            kernel=name.lstrip("_"),
            provider="triton",
            arch=arch,
            dtype=case.dtype,
            shape=case.shape,
            warps=warps,
            registers=usage["REG"],
            stack_bytes=usage["STACK"],
            spill_bytes=local_memory_bytes(sass),
            shared_bytes=shared_bytes,
            occupancy=occupancy(arch, usage["REG"], shared_bytes, warps),
            compiler=f"triton {triton.__version__}",
            matrix=name in case.matrix_kernels,
            aligned=case.aligned and name not in case.unaligned_kernels,
            dependent=kernel.metadata.launch_pdl,
            **instruction_facts(sass),
        )
        build.judge()
        if any(size > limit for size, limit in zip(grid, _GRID_LIMITS, strict=False)):
            build.faults.append(f"grid: {grid}, allowed {_GRID_LIMITS}")
        builds.append(build)
    return builds
