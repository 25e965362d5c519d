"""``add_layer_norm``: residual sum and LayerNorm in one pass.

This op is the pattern for all others: schema, fake, reference, autograd, public function, in this order. Providers
other than the reference register themselves in :mod:`dynabert_kernels.ops.native` and
:mod:`dynabert_kernels.ops.triton_providers`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.ops import checks
from dynabert_kernels.ops.registration import define, dense_gradient, differentiate
from dynabert_kernels.reference.add_layer_norm import statistics_dtype


def _fwd_fake(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide = statistics_dtype(x.dtype)
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=wide), x.new_empty(x.shape[0], dtype=wide)


def _bwd_fake(
    dy: Tensor, x: Tensor, residual: Tensor | None, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


_fwd = define(
    "add_layer_norm_fwd",
    "(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps) -> (Tensor y, Tensor mean, Tensor rstd)",
    reference=reference.add_layer_norm_fwd,
    fake=_fwd_fake,
)
_bwd = define(
    "add_layer_norm_bwd",
    "(Tensor dy, Tensor x, Tensor? residual, Tensor weight, Tensor mean, Tensor rstd)"
    " -> (Tensor dx, Tensor dw, Tensor db)",
    reference=reference.add_layer_norm_bwd,
    fake=_bwd_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, residual, weight, _, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, residual, weight, mean, rstd)


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None, None, None
    x, residual, weight, mean, rstd = ctx.saved_tensors
    dx, dw, db = _bwd(dense_gradient(dy), x, residual, weight, mean, rstd)
    return dx, None if residual is None else dx, dw, db, None


_call = differentiate("add_layer_norm_fwd", setup=_setup, backward=_backward)


def add_layer_norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-12) -> Tensor:
    """LayerNorm of the sum of a branch and its residual.

    ``y = (h - mean(h)) / sqrt(var(h) + eps) * weight + bias`` with ``h = x + residual`` and the variance over ``C``
    entries, not ``C - 1``.

    ``x``: (T, C), float32, bfloat16, float16 or float64; rows may be strided. ``residual``: the same shape and dtype,
    or None. ``weight``, ``bias``: (C,), of x's dtype. Returns (T, C) in x's dtype.

    Sum and statistics are float32 (float64 for float64), rounded once at the store. Deterministic, forward and
    backward. Does not synchronise. Raises ``ValueError`` on a shape or device that does not match, ``TypeError`` on a
    dtype that does not.

    Source: Ba et al., "Layer Normalization", arXiv 1607.06450.
    """
    op = "add_layer_norm"
    checks.shape(op, "x", x, (None, None), "(T, C)")
    width = x.shape[1]
    if residual is not None:
        checks.shape(op, "residual", residual, (x.shape[0], width), "(T, C)")
    checks.shape(op, "weight", weight, (width,), "(C,)")
    checks.shape(op, "bias", bias, (width,), "(C,)")
    checks.same(op, ("x", x), {"residual": residual, "weight": weight, "bias": bias})
    y, _, _ = _call(x, residual, weight, bias, float(eps))
    return y


__all__ = ["add_layer_norm"]
