"""The Triton launches whose kernels must compile well: every op's launchers, called as a model calls them.

The tensors are meta tensors. A launcher that is called compiles what a GPU would run: the same tile, warps,
specialisation on alignment and on missing arguments. So nothing about a kernel is written down twice. A new op adds a
function here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NUM_ROWS = 4096


@dataclass(frozen=True)
class TritonCase:
    """One launch.

    `matrix_kernels`: names of the kernels in it that must use tensor cores. `aligned`: rows start at multiples of 16
    bytes, so every kernel in it must load 16 bytes at a time (a mask or a stride that the compiler cannot see through
    loses that in silence).
    """

    op: str
    dtype: str
    shape: str
    launch: Callable[[], object]
    matrix_kernels: frozenset[str] = frozenset()
    aligned: bool = True

    @property
    def name(self) -> str:
        return f"{self.op} {self.dtype} {self.shape}"


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor without data, taken to start at a multiple of 16 bytes as allocations do."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def add_layer_norm_cases() -> Iterator[TritonCase]:
    from dynabert_kernels.triton.add_layer_norm import add_layer_norm_bwd, add_layer_norm_fwd
    from dynabert_kernels.triton.tiles import MAX_ROW_COLUMNS

    def forward(dtype: torch.dtype, num_columns: int, residual: bool) -> Callable[[], object]:
        def launch() -> object:
            x, vector = meta(NUM_ROWS, num_columns, dtype=dtype), meta(num_columns, dtype=dtype)
            return add_layer_norm_fwd(x, x if residual else None, vector, vector, 1e-12)

        return launch

    def backward(dtype: torch.dtype, num_columns: int, residual: bool) -> Callable[[], object]:
        def launch() -> object:
            x, vector = meta(NUM_ROWS, num_columns, dtype=dtype), meta(num_columns, dtype=dtype)
            statistic = meta(NUM_ROWS, dtype=torch.float32)
            return add_layer_norm_bwd(x, x, x if residual else None, vector, statistic, statistic)

        return launch

    # MiniLM, BERT-base, BERT-large, the widest row allowed, and a width whose rows are not aligned.
    for num_columns in (384, 768, 1024, MAX_ROW_COLUMNS, 1025):
        for name, dtype in DTYPES.items():
            shape = f"C={num_columns} residual"
            aligned = num_columns % 16 == 0
            yield TritonCase("add_layer_norm_fwd", name, shape, forward(dtype, num_columns, True), aligned=aligned)
            yield TritonCase("add_layer_norm_bwd", name, shape, backward(dtype, num_columns, True), aligned=aligned)
    # The embedding's LayerNorm has no residual.
    for name, dtype in DTYPES.items():
        yield TritonCase("add_layer_norm_fwd", name, "C=768", forward(dtype, 768, False))
        yield TritonCase("add_layer_norm_bwd", name, "C=768", backward(dtype, 768, False))


def triton_cases() -> list[TritonCase]:
    """All launches, in a fixed order."""
    return [*add_layer_norm_cases()]
