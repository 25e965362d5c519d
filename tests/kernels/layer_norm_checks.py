"""What is asked of every provider of ``add_layer_norm``: Triton and CUDA tests call the same checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from dynabert_kernels.testing.inputs import AddLayerNormInput, poisoned_allocations

Forward = Callable[..., tuple[Tensor, Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]


def exact_results(sample: AddLayerNormInput) -> dict[str, Tensor]:
    """The definition, computed in float64."""
    x, residual, weight, bias, dy = (
        None if t is None else t.double() for t in (sample.x, sample.residual, sample.weight, sample.bias, sample.dy)
    )
    y, mean, rstd = reference.add_layer_norm_fwd(x, residual, weight, bias, sample.eps)
    dx, dw, db = reference.add_layer_norm_bwd(dy, x, residual, weight, mean, rstd)
    return {"y": y, "mean": mean, "rstd": rstd, "dx": dx, "dw": dw, "db": db}


def torch_results(sample: AddLayerNormInput) -> dict[str, Tensor]:
    """PyTorch's own LayerNorm in the sample's dtype; its statistics in float32, as ours are (float64 for float64)."""
    x, weight, bias = (t.detach().requires_grad_() for t in (sample.x, sample.weight, sample.bias))
    h = x if sample.residual is None else x + sample.residual
    y = torch.nn.functional.layer_norm(h, (x.shape[1],), weight, bias, sample.eps)
    dx, dw, db = torch.autograd.grad(y, (x, weight, bias), sample.dy)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = sample.x.to(wide) if sample.residual is None else sample.x.to(wide) + sample.residual.to(wide)
    _, mean, rstd = torch.native_layer_norm(h, (x.shape[1],), None, None, sample.eps)
    return {"y": y.detach(), "mean": mean[:, 0], "rstd": rstd[:, 0], "dx": dx, "dw": dw, "db": db}


def results(forward: Forward, backward: Backward, sample: AddLayerNormInput) -> dict[str, Tensor]:
    """Everything a provider returns, from allocations that hold NaN."""
    x, residual, weight, bias, eps, dy = sample
    with poisoned_allocations():
        y, mean, rstd = forward(x, residual, weight, bias, eps)
        dx, dw, db = backward(dy, x, residual, weight, mean, rstd)
    return {"y": y, "mean": mean, "rstd": rstd, "dx": dx, "dw": dw, "db": db}


def check_against_float64(forward: Forward, backward: Backward, sample: AddLayerNormInput) -> None:
    """Result, statistics and every gradient err no more than PyTorch does in the same dtype."""
    ours, exact, yardstick = results(forward, backward, sample), exact_results(sample), torch_results(sample)
    for name, value in yardstick.items():
        assert_close_to_float64(ours[name], exact[name], value, name=name)


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Bit for bit."""
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def as_keywords(sample: AddLayerNormInput) -> dict[str, Any]:
    """The arguments of the backward op but the statistics, by name."""
    return {"dy": sample.dy, "x": sample.x, "residual": sample.residual, "weight": sample.weight}
