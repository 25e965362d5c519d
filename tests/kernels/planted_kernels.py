"""Kernels with a planted fault each: `codegen --cases kernels.planted_kernels` must find every one of them."""

from __future__ import annotations

import torch

from dynabert_kernels.testing.codegen_cases import TritonCase, meta
from dynabert_kernels.triton.dependent_launch import begin_dependent
from dynabert_kernels.triton.environment import jit, tl


@jit
def _planted_spill_kernel(x_ptr: tl.tensor, N: tl.constexpr) -> None:
    # 16,384 numbers in one warp, all alive at once: 512 registers a thread, twice what there is.
    offsets = tl.arange(0, N)
    x = tl.load(x_ptr + offsets)
    total = tl.sum(x, axis=0)
    tl.store(x_ptr + offsets, x * total)


@jit
def _planted_copy_kernel(x_ptr: tl.tensor, stride: tl.tensor, N: tl.constexpr) -> None:
    offsets = tl.arange(0, N) * stride
    tl.store(x_ptr + offsets, tl.load(x_ptr + offsets) + 1.0)


@jit
def _planted_early_kernel(x_ptr: tl.tensor, WAITS: tl.constexpr, N: tl.constexpr) -> None:
    # Launched early, it reads what the kernel before it may still write.
    offsets = tl.arange(0, N)
    x = tl.load(x_ptr + offsets)
    if WAITS:
        begin_dependent()
    tl.store(x_ptr + offsets, x + 1.0)


def triton_cases() -> list[TritonCase]:
    def x() -> torch.Tensor:
        return meta(65536, dtype=torch.float32)

    def early(waits: bool, **options: bool) -> object:
        return _planted_early_kernel[(1,)](x(), WAITS=waits, N=1024, **options)

    return [
        TritonCase("planted_spill", "fp32", "N=16384", lambda: _planted_spill_kernel[(1,)](x(), N=16384, num_warps=1)),
        TritonCase(
            "planted_matrix",
            "fp32",
            "stride 1",
            lambda: _planted_copy_kernel[(1,)](x(), 1, N=1024),
            matrix_kernels=frozenset({"_planted_copy_kernel"}),
        ),
        TritonCase("planted_stride", "fp32", "stride 3", lambda: _planted_copy_kernel[(1,)](x(), 3, N=1024)),
        TritonCase("planted_grid", "fp32", "y=65536", lambda: _planted_copy_kernel[(1, 65536)](x(), 1, N=2048)),
        TritonCase("planted_early", "fp32", "early", lambda: early(True, launch_pdl=True)),
        TritonCase("planted_early", "fp32", "never waits", lambda: early(False, launch_pdl=True)),
        TritonCase("planted_early", "fp32", "waits for nothing", lambda: early(True)),
    ]
