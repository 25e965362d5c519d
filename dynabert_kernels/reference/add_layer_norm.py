"""Residual sum and LayerNorm: ``y = (h - mean(h)) * rstd(h) * weight + bias`` with ``h = x + residual``."""

from __future__ import annotations

import torch
from torch import Tensor


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Statistics are float32, and float64 for float64 input."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def add_layer_norm_fwd(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, mean, rstd)``: y (T, C) in x's dtype, mean and rstd (T,) in the statistics dtype."""
    wide = statistics_dtype(x.dtype)
    h = x.to(wide) if residual is None else x.to(wide) + residual.to(wide)
    mean = h.mean(1)
    centred = h - mean[:, None]
    rstd = torch.rsqrt(centred.square().mean(1) + eps)
    y = centred * rstd[:, None] * weight.to(wide) + bias.to(wide)
    return y.to(x.dtype), mean, rstd


def add_layer_norm_bwd(
    dy: Tensor, x: Tensor, residual: Tensor | None, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``(dx, dw, db)``; the residual's gradient equals dx."""
    wide = mean.dtype
    h = x.to(wide) if residual is None else x.to(wide) + residual.to(wide)
    normal = (h - mean[:, None]) * rstd[:, None]
    gradient = dy.to(wide)
    scaled = gradient * weight.to(wide)
    dx = (scaled - scaled.mean(1, keepdim=True) - normal * (scaled * normal).mean(1, keepdim=True)) * rstd[:, None]
    dw = (gradient * normal).sum(0)
    return dx.to(x.dtype), dw.to(weight.dtype), gradient.sum(0).to(weight.dtype)
