"""``elastic_linear``: a linear map over the leading features, how many from the plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.ops import checks
from dynabert_kernels.ops.registration import define, dense_gradient, differentiate, needs_save


def _fwd_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    rows: Tensor,
    out_counts: Tensor | None,
    in_counts: Tensor | None,
    out_unit: int,
    in_unit: int,
    max_out: int,
    max_in: int,
    activation: int,
    save: bool,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape[0], max_out)
    return y, x.new_empty(x.shape[0], max_out) if save and activation != 0 else x.new_empty(0)


def _bwd_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    pre: Tensor,
    rows: Tensor,
    out_counts: Tensor | None,
    in_counts: Tensor | None,
    out_unit: int,
    in_unit: int,
    max_out: int,
    max_in: int,
    activation: int,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[0] if has_bias else 0)


_fwd = define(
    "elastic_linear_fwd",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor rows, Tensor? out_counts, Tensor? in_counts,"
    " SymInt out_unit, SymInt in_unit, SymInt max_out, SymInt max_in, int activation, bool save)"
    " -> (Tensor y, Tensor pre)",
    reference=reference.elastic_linear_fwd,
    fake=_fwd_fake,
)
_bwd = define(
    "elastic_linear_bwd",
    "(Tensor dy, Tensor x, Tensor weight, Tensor pre, Tensor rows, Tensor? out_counts, Tensor? in_counts,"
    " SymInt out_unit, SymInt in_unit, SymInt max_out, SymInt max_in, int activation, bool has_bias)"
    " -> (Tensor dx, Tensor dw, Tensor db)",
    reference=reference.elastic_linear_bwd,
    fake=_bwd_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, residual, rows, out_counts, in_counts, *numbers, save = inputs
    ctx.save_for_backward(x, weight, output[1], rows, out_counts, in_counts)
    ctx.numbers, ctx.has_bias, ctx.has_residual, ctx.saved = numbers, bias is not None, residual is not None, save
    ctx.residual_shape = None if residual is None else residual.shape


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 13
    x, weight, pre, rows, out_counts, in_counts = ctx.saved_tensors
    if ctx.numbers[-1] != 0 and not ctx.saved:
        raise RuntimeError("elastic_linear: backward needs the forward to have run with save=True")
    gradient = dense_gradient(dy)
    dx, dw, db = _bwd(gradient, x, weight, pre, rows, out_counts, in_counts, *ctx.numbers, ctx.has_bias)
    dresidual = _residual_gradient(ctx, gradient, rows, out_counts) if ctx.has_residual else None
    return dx, dw, db if ctx.has_bias else None, dresidual, *([None] * 9)


def _residual_gradient(ctx: Any, dy: Tensor, rows: Tensor, out_counts: Tensor | None) -> Tensor:
    """dy where the residual was added, zero elsewhere."""
    out_unit, _, max_out, _, _ = ctx.numbers
    group = torch.searchsorted(rows, torch.arange(dy.shape[0], device=rows.device, dtype=rows.dtype), right=True) - 1
    inside = group < rows.shape[0] - 1
    if out_counts is None:
        width = torch.where(inside, max_out, 0)
    else:
        counts = torch.cat([out_counts, out_counts.new_zeros(1)])
        width = counts[group.clamp(max=out_counts.shape[0])] * out_unit
    columns = torch.arange(max_out, device=rows.device)
    masked = torch.where(columns[None, :] < width[:, None], dy, dy.new_zeros(()))
    if ctx.residual_shape[1] == max_out:
        return masked
    return torch.nn.functional.pad(masked, (0, ctx.residual_shape[1] - max_out))


_call = differentiate("elastic_linear_fwd", setup=_setup, backward=_backward)


def elastic_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    out_counts: Tensor | None = None,
    in_counts: Tensor | None = None,
    out_unit: int = 1,
    in_unit: int = 1,
    max_out: int | None = None,
    max_in: int | None = None,
    activation: str = "none",
) -> Tensor:
    """A linear map that uses only the leading rows and columns of its weight, in place.

    For row ``t`` of group ``g``, with ``n = out_counts[g] * out_unit`` and ``k = in_counts[g] * in_unit``:
    ``y[t, :n] = act(x[t, :k] @ weight[:n, :k].T + bias[:n]) + residual[t, :n]`` and ``y[t, n:] = 0``.

    ``x``: (T, at least max_in). ``weight``: (N, K), nn.Linear's layout. ``bias``: (N,) or None. ``residual``:
    (T, at least max_out) or None. All of one dtype: float32, bfloat16, float16 or float64.
    ``rows``: (G+1,) int32 borders of the groups (None: one group, all rows). ``out_counts``, ``in_counts``: (G,) int32
    (None: every group uses ``max_out`` or ``max_in``). ``max_out``, ``max_in``: the largest ``n`` and ``k``, at most
    ``N`` and ``K`` (None: all of it). ``activation``: ``"none"``, ``"gelu"`` (exact), ``"gelu_tanh"`` or ``"relu"``.

    Returns (T, max_out) in x's dtype. Rows past the last border are zero. The weight is never copied; its gradient has
    its full shape and is zero in the inactive part. Accumulates in float32 (float64 for float64). Deterministic. The
    counts are data: a new plan is not a new compiled graph. Does not synchronise, except with the reference provider on
    a GPU.

    Raises ``ValueError`` on a shape, device or bound that does not fit, ``TypeError`` on a dtype.
    """
    op = "elastic_linear"
    checks.shape(op, "x", x, (None, None), "(T, K)")
    checks.shape(op, "weight", weight, (None, None), "(N, K)")
    checks.same(op, ("x", x), {"weight": weight, "bias": bias, "residual": residual})
    bound_out = weight.shape[0] if max_out is None else max_out
    bound_in = weight.shape[1] if max_in is None else max_in
    if not 0 <= bound_out <= weight.shape[0]:
        raise ValueError(f"{op}: max_out is {bound_out}; allowed: 0 to the weight's {weight.shape[0]} rows")
    if not 0 <= bound_in <= weight.shape[1]:
        raise ValueError(f"{op}: max_in is {bound_in}; allowed: 0 to the weight's {weight.shape[1]} columns")
    if x.shape[1] < bound_in:
        raise ValueError(f"{op}: x has {x.shape[1]} columns; allowed: at least max_in = {bound_in}")
    if out_unit < 1 or in_unit < 1:
        raise ValueError(f"{op}: out_unit is {out_unit} and in_unit is {in_unit}; allowed: 1 or more")
    if bias is not None:
        checks.shape(op, "bias", bias, (weight.shape[0],), "(N,)")
    if residual is not None:
        checks.shape(op, "residual", residual, (x.shape[0], None), "(T, N)")
        if residual.shape[1] < bound_out:
            raise ValueError(f"{op}: residual has {residual.shape[1]} columns; allowed: at least max_out = {bound_out}")
    code = checks.activation_code(op, activation)
    borders = checks.whole_batch(x.shape[0], x.device) if rows is None else rows
    checks.indices(op, "rows", borders, x.device, torch.int32)
    for name, counts in (("out_counts", out_counts), ("in_counts", in_counts)):
        if counts is not None:
            checks.indices(op, name, counts, x.device, torch.int32)
            if counts.shape[0] != borders.shape[0] - 1:
                raise ValueError(
                    f"{op}: {name} has {counts.shape[0]} entries; allowed: one a group, {borders.shape[0] - 1}"
                )
    save = needs_save(x, weight, bias, residual)
    y, _ = _call(
        x, weight, bias, residual, borders, out_counts, in_counts, out_unit, in_unit, bound_out, bound_in, code, save
    )
    return y


__all__ = ["elastic_linear"]
