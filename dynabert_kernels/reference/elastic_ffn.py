"""The FFN sub-layer: ``y = LayerNorm(x + dropout(act(x Win + bin) Wout + bout))`` over each group's leading neurons.

A group with 0 neurons skips the layer: its rows pass through unchanged. Rows of no group are zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dynabert_kernels.reference.add_layer_norm import add_layer_norm_bwd, add_layer_norm_fwd, statistics_dtype
from dynabert_kernels.reference.elastic_attention import hidden_dropout_scale
from dynabert_kernels.reference.elastic_linear import activate, activate_bwd
from dynabert_kernels.reference.groups import row_spans


def elastic_ffn_fwd(
    x: Tensor,
    in_weight: Tensor,
    in_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    rows: Tensor,
    neuron_counts: Tensor,
    dropout_state: Tensor | None,
    max_neurons: int,
    activation: int,
    eps: float,
    hidden_dropout: float,
    dropout_stream: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(y, pre, hidden, mean, rstd)``; all but y are empty unless saved."""
    y, hidden = torch.zeros_like(x), torch.zeros_like(x)
    pre = x.new_zeros(x.shape[0], max_neurons)
    mean = torch.zeros(x.shape[0], dtype=statistics_dtype(x.dtype), device=x.device)
    rstd = torch.zeros_like(mean)
    for span in row_spans(rows, neuron_counts, max_neurons, max_neurons):
        begin, end, neurons, _ = span
        if neurons == 0:
            y[begin:end] = x[begin:end]
            continue
        z = F.linear(x[begin:end], in_weight[:neurons], in_bias[:neurons])
        projected = F.linear(activate(z, activation), out_weight[:, :neurons], out_bias)
        factor = hidden_dropout_scale(dropout_state, hidden_dropout, dropout_stream, span, projected)
        total = x[begin:end] + (projected if factor is None else projected * factor)
        y[begin:end], mean_rows, rstd_rows = add_layer_norm_fwd(total, None, ln_weight, ln_bias, eps)
        if save:
            pre[begin:end, :neurons] = z.detach()
            hidden[begin:end], mean[begin:end], rstd[begin:end] = total.detach(), mean_rows.detach(), rstd_rows.detach()
    if not save:
        return y, x.new_empty(0), x.new_empty(0), mean.new_empty(0), mean.new_empty(0)
    return y, pre, hidden, mean, rstd


def elastic_ffn_bwd(
    dy: Tensor,
    x: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    ln_weight: Tensor,
    pre: Tensor,
    hidden: Tensor,
    mean: Tensor,
    rstd: Tensor,
    rows: Tensor,
    neuron_counts: Tensor,
    dropout_state: Tensor | None,
    max_neurons: int,
    activation: int,
    hidden_dropout: float,
    dropout_stream: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(dx, din_weight, din_bias, dout_weight, dout_bias, dln_weight, dln_bias)``."""
    dx = torch.zeros_like(x)
    din_weight, dout_weight = torch.zeros_like(in_weight), torch.zeros_like(out_weight)
    din_bias = in_weight.new_zeros(in_weight.shape[0])
    dout_bias = out_weight.new_zeros(out_weight.shape[0])
    dln_weight, dln_bias = torch.zeros_like(ln_weight), torch.zeros_like(ln_weight)
    for span in row_spans(rows, neuron_counts, max_neurons, max_neurons):
        begin, end, neurons, _ = span
        if neurons == 0:
            dx[begin:end] = dy[begin:end]
            continue
        dhidden, dw, db = add_layer_norm_bwd(
            dy[begin:end], hidden[begin:end], None, ln_weight, mean[begin:end], rstd[begin:end]
        )
        dln_weight += dw
        dln_bias += db
        factor = hidden_dropout_scale(dropout_state, hidden_dropout, dropout_stream, span, dhidden)
        dprojected = dhidden if factor is None else dhidden * factor
        z = pre[begin:end, :neurons]
        dout_bias += dprojected.sum(0)
        dout_weight[:, :neurons].addmm_(dprojected.t(), activate(z, activation))
        dz = activate_bwd(dprojected @ out_weight[:, :neurons], z, activation)
        din_bias[:neurons] += dz.sum(0)
        din_weight[:neurons].addmm_(dz.t(), x[begin:end])
        torch.addmm(dhidden, dz, in_weight[:neurons], out=dx[begin:end])
    return dx, din_weight, din_bias, dout_weight, dout_bias, dln_weight, dln_bias
