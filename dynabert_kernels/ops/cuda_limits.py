"""What the CUDA C++ kernels take. What they refuse, the rule passes over, and a forced provider names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynabert_kernels.triton.environment import why_too_old

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# kMaxLayerNormColumns, kMaxDistillationLossColumns and kMaxEmbeddingColumns in csrc/cuda: a row is held in registers.
MAX_ROW_COLUMNS = 4096
_ROW_OPS = tuple(
    f"{op}_{half}" for op in ("add_layer_norm", "distillation_loss", "embed_layer_norm") for half in ("fwd", "bwd")
)


def supports(op: str) -> Callable[..., str | None]:
    """The function that says why ``op`` cannot be computed in CUDA C++ on its arguments, or None where it can."""

    def why_not(*arguments: Any) -> str | None:
        for tensor in (argument for argument in arguments if isinstance(argument, Tensor)):
            if tensor.device.type != "cuda":
                return f"it takes tensors on 'cuda', and one is on {tensor.device.type!r}"
            too_old = why_too_old(tensor.device)
            if too_old is not None:
                return too_old
            if tensor.is_floating_point() and tensor.dtype not in DTYPES:
                return f"a tensor is {tensor.dtype}; it takes float32, bfloat16 and float16"
            if tensor.dim() > 0 and tensor.shape[-1] > 1 and tensor.stride(-1) != 1 and tensor.numel() > 0:
                return f"a tensor has strides {tuple(tensor.stride())}; its last stride must be 1 (call .contiguous())"
            if op in _ROW_OPS and tensor.dim() == 2 and not 1 <= tensor.shape[1] <= MAX_ROW_COLUMNS:
                return f"C is {tensor.shape[1]}; it takes 1 to {MAX_ROW_COLUMNS} columns"
        return None

    return why_not
