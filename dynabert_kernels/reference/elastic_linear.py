"""A linear map over the leading features: ``y = act(x[:, :k] @ W[:n, :k].T + b[:n]) + residual``, n and k by group."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynabert_kernels.reference.groups import row_spans

NONE, GELU, GELU_TANH, RELU = range(4)


def activate(pre: Tensor, activation: int) -> Tensor:
    """The activation of code ``activation``."""
    if activation == GELU:
        return F.gelu(pre)
    if activation == GELU_TANH:
        return F.gelu(pre, approximate="tanh")
    if activation == RELU:
        return F.relu(pre)
    return pre


def activate_bwd(gradient: Tensor, pre: Tensor, activation: int) -> Tensor:
    """Gradient of the value before the activation."""
    if activation == GELU:
        return torch.ops.aten.gelu_backward(gradient, pre)
    if activation == GELU_TANH:
        return torch.ops.aten.gelu_backward(gradient, pre, approximate="tanh")
    if activation == RELU:
        return gradient * (pre > 0)
    return gradient


def elastic_linear_fwd(
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
    """``(y, pre)``: y (T, max_out), zero past a row's width; pre is empty unless it is saved and differs from y."""
    y = x.new_zeros(x.shape[0], max_out)
    keep_pre = save and activation != NONE
    pre = x.new_zeros(x.shape[0], max_out) if keep_pre else x.new_empty(0)
    outs = row_spans(rows, out_counts, max_out, max_out // out_unit)
    ins = row_spans(rows, in_counts, max_in, max_in // in_unit)
    for (begin, end, out, _), (_, _, into, _) in zip(outs, ins, strict=True):
        n = max_out if out_counts is None else out * out_unit
        k = max_in if in_counts is None else into * in_unit
        z = F.linear(x[begin:end, :k], weight[:n, :k], None if bias is None else bias[:n])
        if keep_pre:
            pre[begin:end, :n] = z
        z = activate(z, activation)
        y[begin:end, :n] = z if residual is None else z + residual[begin:end, :n]
    return y, pre


def elastic_linear_bwd(
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
    """``(dx, dw, db)``, zero in the inactive parts; db is empty when there is no bias."""
    dx, dw = torch.zeros_like(x), torch.zeros_like(weight)
    db = weight.new_zeros(weight.shape[0] if has_bias else 0)
    outs = row_spans(rows, out_counts, max_out, max_out // out_unit)
    ins = row_spans(rows, in_counts, max_in, max_in // in_unit)
    for (begin, end, out, _), (_, _, into, _) in zip(outs, ins, strict=True):
        n = max_out if out_counts is None else out * out_unit
        k = max_in if in_counts is None else into * in_unit
        dz = dy[begin:end, :n]
        if activation != NONE:
            dz = activate_bwd(dz, pre[begin:end, :n], activation)
        torch.mm(dz, weight[:n, :k], out=dx[begin:end, :k])
        dw[:n, :k].addmm_(dz.t(), x[begin:end, :k])
        if has_bias:
            db[:n] += dz.sum(0)
    return dx, dw, db
