"""The benchmarks, as data: inputs, the op's arguments, a plain PyTorch peer, and bytes and operations as formulas.

Bytes count each input that is read once and each output once, in the active part only; what a fused op keeps inside
(scores, intermediate activations) counts nothing, and neither do plans and borders, which are a few dozen bytes.
Operations count matrix products, 2 for a multiply-add: they are what the measured matrix rate bounds. Element-wise work
is not counted, since the bytes bound it.

The peer is what a careful user of plain PyTorch writes at this width, in place: views of the leading rows and columns,
no copies, PyTorch's own fused pieces where it has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems import Problem
from dynabert_kernels import reference

EPS = 1e-12
GELU = 1  # the code of the exact GELU in the ops' schemas
Tensors = dict[str, Tensor]
Formula = Callable[[Problem], int]


@dataclass(frozen=True)
class Draw:
    """Random tensors on a device, drawn in float64 and rounded once, so that every dtype sees the same numbers."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        values = torch.randn(*shape, generator=self.generator, dtype=torch.float64, device=self.device)
        return (values * scale + shift).to(self.dtype)


@dataclass(frozen=True)
class Benchmark:
    """One op in one direction.

    ``registered``: the op that runs, ``torch.ops.dynabert.<registered>``, on ``arguments(problem, tensors)``; its
    leading ``len(checked)`` results are compared. ``weights`` draws full-size weights, whatever the width;
    ``activations`` what changes with each call. ``weight_bytes`` come from memory in use, since the other layers'
    weights displace them; ``activation_bytes`` were just written by the op before. ``peer_text`` is the peer in words.
    """

    name: str
    op: str
    direction: str
    registered: str
    checked: tuple[str, ...]
    elastic: bool
    weights: Callable[[Problem, Draw], Tensors]
    activations: Callable[[Problem, Draw], Tensors]
    arguments: Callable[[Problem, Tensors], tuple[Any, ...]]
    peer: Callable[[Problem, Tensors], tuple[Tensor, ...]]
    peer_text: str
    weight_bytes: Formula
    activation_bytes: Formula
    operations: Formula

    def function(self) -> Callable[..., Any]:
        """The registered op, which chooses its provider."""
        return getattr(torch.ops.dynabert, self.registered).default

    def definition(self) -> Callable[..., Any]:
        """The op's definition in plain PyTorch, for float64 arguments."""
        return getattr(reference, self.registered)


def _vectors(draw: Draw, size: int) -> Tensors:
    return {"ln_weight": draw.normal(size, scale=0.1, shift=1.0), "ln_bias": draw.normal(size, scale=0.1)}


def _no_weights(problem: Problem, draw: Draw) -> Tensors:
    return {}


def _plan(problem: Problem, device: torch.device) -> Tensors:
    layer = problem.plan.layer(0)
    borders = torch.tensor([0, *problem.lengths]).cumsum(0).to(torch.int32)
    return {
        "rows": layer.rows.to(device),
        "heads": layer.heads.to(device),
        "neurons": layer.neurons.to(device),
        "cu_seqlens": borders.to(device),
    }


def _layer_norm_weights(p: Problem, draw: Draw) -> Tensors:
    return _vectors(draw, p.C)


def _layer_norm_inputs(p: Problem, draw: Draw) -> Tensors:
    return {"x": draw.normal(p.T, p.C), "residual": draw.normal(p.T, p.C, shift=0.5)}


def _layer_norm_gradients(p: Problem, draw: Draw) -> Tensors:
    tensors = _layer_norm_inputs(p, draw) | {"dy": draw.normal(p.T, p.C)}
    total = tensors["x"] + tensors["residual"]
    exact = total.to(torch.float64)
    kept = torch.float64 if p.dtype == torch.float64 else torch.float32
    tensors["mean"] = exact.mean(1).to(kept)
    tensors["rstd"] = torch.rsqrt(exact.var(1, unbiased=False) + EPS).to(kept)
    # The peer reads what its own forward pass keeps: the sum, and statistics in the dtype of its choice.
    _, mean, rstd = torch.native_layer_norm(total, (p.C,), None, None, EPS)
    return tensors | {"total": total, "total_mean": mean, "total_rstd": rstd}


def _layer_norm_peer(p: Problem, t: Tensors) -> tuple[Tensor, ...]:
    return (F.layer_norm(t["x"] + t["residual"], (p.C,), t["ln_weight"], t["ln_bias"], EPS),)


def _layer_norm_backward_peer(p: Problem, t: Tensors) -> tuple[Tensor, ...]:
    return torch.ops.aten.native_layer_norm_backward(
        t["dy"],
        t["total"],
        [p.C],
        t["total_mean"],
        t["total_rstd"],
        t["ln_weight"],
        t["ln_bias"],
        [True, True, True],
    )


def _ffn_in_weights(p: Problem, draw: Draw) -> Tensors:
    return {"weight": draw.normal(p.F, p.C, scale=p.C**-0.5), "bias": draw.normal(p.F, scale=0.1)}


def _ffn_in_inputs(p: Problem, draw: Draw) -> Tensors:
    return {"x": draw.normal(p.T, p.C)} | _plan(p, draw.device)


def _ffn_in_arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    return t["x"], t["weight"], t["bias"], None, t["rows"], t["neurons"], None, 1, 1, p.f, p.C, GELU, False


def _ffn_in_peer(p: Problem, t: Tensors) -> tuple[Tensor, ...]:
    return (F.gelu(F.linear(t["x"], t["weight"][: p.f], t["bias"][: p.f])),)


def _ffn_out_weights(p: Problem, draw: Draw) -> Tensors:
    return {"weight": draw.normal(p.C, p.F, scale=p.F**-0.5), "bias": draw.normal(p.C, scale=0.1)}


def _ffn_out_inputs(p: Problem, draw: Draw) -> Tensors:
    return {"x": draw.normal(p.T, p.f), "residual": draw.normal(p.T, p.C)} | _plan(p, draw.device)


def _ffn_out_arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    return t["x"], t["weight"], t["bias"], t["residual"], t["rows"], None, t["neurons"], 1, 1, p.C, p.f, 0, False


def _ffn_out_peer(p: Problem, t: Tensors) -> tuple[Tensor, ...]:
    return (F.linear(t["x"], t["weight"][:, : p.f], t["bias"]) + t["residual"],)


def _attention_inputs(p: Problem, draw: Draw) -> Tensors:
    return {"qkv": draw.normal(p.T, p.k, 3, p.D)} | _plan(p, draw.device)


def _attention_arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    borders = t["qkv"], t["cu_seqlens"], t["rows"], t["heads"]
    return *borders, None, None, p.k, max(p.lengths), p.D**-0.5, 0.0, 0, False


def _attention_peer(p: Problem, t: Tensors) -> tuple[Tensor, ...]:
    return (_torch_attention(p, t["qkv"]),)


def _torch_attention(p: Problem, qkv: Tensor) -> Tensor:
    """(T, k, D) of a packed (T, k, 3, D): one batched call where lengths are equal, else one for each sequence."""
    if len(set(p.lengths)) == 1:
        batch = qkv.view(len(p.lengths), p.lengths[0], p.k, 3, p.D)
        q, key, value = batch.permute(3, 0, 2, 1, 4)
        return F.scaled_dot_product_attention(q, key, value).transpose(1, 2).reshape(p.T, p.k, p.D)
    outputs = []
    for part in qkv.split(p.lengths):
        q, key, value = part.permute(2, 1, 0, 3)
        outputs.append(F.scaled_dot_product_attention(q[None], key[None], value[None])[0].transpose(0, 1))
    return torch.cat(outputs)


def _attention_layer_weights(p: Problem, draw: Draw) -> Tensors:
    return {
        "qkv_weight": draw.normal(p.H, 3, p.D, p.C, scale=p.C**-0.5),
        "qkv_bias": draw.normal(p.H, 3, p.D, scale=0.1),
        "out_weight": draw.normal(p.C, p.H * p.D, scale=(p.H * p.D) ** -0.5),
        "out_bias": draw.normal(p.C, scale=0.1),
    } | _vectors(draw, p.C)


def _layer_inputs(p: Problem, draw: Draw) -> Tensors:
    return {"x": draw.normal(p.T, p.C)} | _plan(p, draw.device)


_ATTENTION_WEIGHTS = ("qkv_weight", "qkv_bias", "out_weight", "out_bias", "ln_weight", "ln_bias")
_FFN_WEIGHTS = ("in_weight", "in_bias", "out_weight", "out_bias", "ln_weight", "ln_bias")


def _attention_layer_arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    tensors = t["x"], *(t[name] for name in _ATTENTION_WEIGHTS), t["cu_seqlens"], t["rows"], t["heads"], None, None
    return *tensors, p.k, max(p.lengths), p.D**-0.5, EPS, 0.0, 0.0, 0, False


def _attention_layer_peer(p: Problem, t: Tensors) -> tuple[Tensor, ...]:
    x = t["x"]
    qkv = F.linear(x, t["qkv_weight"][: p.k].flatten(0, 2), t["qkv_bias"][: p.k].flatten()).view(p.T, p.k, 3, p.D)
    context = _torch_attention(p, qkv).flatten(1)
    projected = F.linear(context, t["out_weight"][:, : p.k * p.D], t["out_bias"])
    return (F.layer_norm(x + projected, (p.C,), t["ln_weight"], t["ln_bias"], EPS),)


def _ffn_weights(p: Problem, draw: Draw) -> Tensors:
    return {
        "in_weight": draw.normal(p.F, p.C, scale=p.C**-0.5),
        "in_bias": draw.normal(p.F, scale=0.1),
        "out_weight": draw.normal(p.C, p.F, scale=p.F**-0.5),
        "out_bias": draw.normal(p.C, scale=0.1),
    } | _vectors(draw, p.C)


def _ffn_arguments(p: Problem, t: Tensors) -> tuple[Any, ...]:
    tensors = t["x"], *(t[name] for name in _FFN_WEIGHTS), t["rows"], t["neurons"], None
    return *tensors, p.f, GELU, EPS, 0.0, 0, False


def _ffn_peer(p: Problem, t: Tensors) -> tuple[Tensor, ...]:
    inner = F.gelu(F.linear(t["x"], t["in_weight"][: p.f], t["in_bias"][: p.f]))
    projected = F.linear(inner, t["out_weight"][:, : p.f], t["out_bias"])
    return (F.layer_norm(t["x"] + projected, (p.C,), t["ln_weight"], t["ln_bias"], EPS),)


REGISTRY = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="add_layer_norm",
            op="add_layer_norm",
            direction="forward",
            registered="add_layer_norm_fwd",
            checked=("y",),
            elastic=False,
            weights=_layer_norm_weights,
            activations=_layer_norm_inputs,
            arguments=lambda p, t: (t["x"], t["residual"], t["ln_weight"], t["ln_bias"], EPS),
            peer=_layer_norm_peer,
            peer_text="F.layer_norm(x + residual)",
            weight_bytes=lambda p: 2 * p.C * p.e,
            # x, residual, y; mean and rstd of each row
            activation_bytes=lambda p: 3 * p.T * p.C * p.e + 2 * p.T * p.statistic_bytes,
            operations=lambda p: 0,
        ),
        Benchmark(
            name="add_layer_norm.backward",
            op="add_layer_norm",
            direction="backward",
            registered="add_layer_norm_bwd",
            checked=("dx", "dw", "db"),
            elastic=False,
            weights=_layer_norm_weights,
            activations=_layer_norm_gradients,
            arguments=lambda p, t: tuple(t[name] for name in ("dy", "x", "residual", "ln_weight", "mean", "rstd")),
            peer=_layer_norm_backward_peer,
            peer_text="aten.native_layer_norm_backward on the kept sum",
            # weight in; dw and db out
            weight_bytes=lambda p: 3 * p.C * p.e,
            # dy, x, residual, dx; mean and rstd of each row
            activation_bytes=lambda p: 4 * p.T * p.C * p.e + 2 * p.T * p.statistic_bytes,
            operations=lambda p: 0,
        ),
        Benchmark(
            name="elastic_linear.ffn_in",
            op="elastic_linear",
            direction="forward",
            registered="elastic_linear_fwd",
            checked=("y",),
            elastic=True,
            weights=_ffn_in_weights,
            activations=_ffn_in_inputs,
            arguments=_ffn_in_arguments,
            peer=_ffn_in_peer,
            peer_text="F.gelu(F.linear(x, W[:f], b[:f]))",
            weight_bytes=lambda p: (p.f * p.C + p.f) * p.e,
            activation_bytes=lambda p: (p.T * p.C + p.T * p.f) * p.e,
            operations=lambda p: 2 * p.T * p.C * p.f,
        ),
        Benchmark(
            name="elastic_linear.ffn_out",
            op="elastic_linear",
            direction="forward",
            registered="elastic_linear_fwd",
            checked=("y",),
            elastic=True,
            weights=_ffn_out_weights,
            activations=_ffn_out_inputs,
            arguments=_ffn_out_arguments,
            peer=_ffn_out_peer,
            peer_text="F.linear(x, W[:, :f], b) + residual",
            weight_bytes=lambda p: (p.C * p.f + p.C) * p.e,
            # x, residual, y
            activation_bytes=lambda p: (p.T * p.f + 2 * p.T * p.C) * p.e,
            operations=lambda p: 2 * p.T * p.C * p.f,
        ),
        Benchmark(
            name="varlen_attention",
            op="varlen_attention",
            direction="forward",
            registered="varlen_attention_fwd",
            checked=("out",),
            elastic=True,
            weights=_no_weights,
            activations=_attention_inputs,
            arguments=_attention_arguments,
            peer=_attention_peer,
            peer_text="F.scaled_dot_product_attention, batched where lengths are equal, else one call a sequence",
            weight_bytes=lambda p: 0,
            # query, key, value, out
            activation_bytes=lambda p: 4 * p.T * p.k * p.D * p.e,
            operations=lambda p: 4 * p.squared_lengths * p.k * p.D,
        ),
        Benchmark(
            name="elastic_attention",
            op="elastic_attention",
            direction="forward",
            registered="elastic_attention_fwd",
            checked=("y",),
            elastic=True,
            weights=_attention_layer_weights,
            activations=_layer_inputs,
            arguments=_attention_layer_arguments,
            peer=_attention_layer_peer,
            peer_text="F.linear, F.scaled_dot_product_attention, F.linear, F.layer_norm(x + ...), on views of k heads",
            weight_bytes=lambda p: (4 * p.k * p.D * p.C + 3 * p.k * p.D + 3 * p.C) * p.e,
            activation_bytes=lambda p: 2 * p.T * p.C * p.e,
            operations=lambda p: 8 * p.T * p.C * p.k * p.D + 4 * p.squared_lengths * p.k * p.D,
        ),
        Benchmark(
            name="elastic_ffn",
            op="elastic_ffn",
            direction="forward",
            registered="elastic_ffn_fwd",
            checked=("y",),
            elastic=True,
            weights=_ffn_weights,
            activations=_layer_inputs,
            arguments=_ffn_arguments,
            peer=_ffn_peer,
            peer_text="F.linear, F.gelu, F.linear, F.layer_norm(x + ...), on views of f neurons",
            weight_bytes=lambda p: (2 * p.f * p.C + p.f + 3 * p.C) * p.e,
            activation_bytes=lambda p: 2 * p.T * p.C * p.e,
            operations=lambda p: 4 * p.T * p.C * p.f,
        ),
    )
}


def find(names: tuple[str, ...], directions: tuple[str, ...]) -> list[Benchmark]:
    """Benchmarks by their name or their op's; no names are all. Raises ``ValueError`` on an unknown one."""
    ops = {benchmark.op for benchmark in REGISTRY.values()}
    for name in names:
        if name not in REGISTRY and name not in ops:
            raise ValueError(f"benchmarks: --op {name!r} is unknown; allowed: {', '.join(sorted(ops | set(REGISTRY)))}")
    found = [
        benchmark
        for benchmark in REGISTRY.values()
        if (not names or benchmark.name in names or benchmark.op in names) and benchmark.direction in directions
    ]
    if not found:
        raise ValueError(
            f"benchmarks: no benchmark of {', '.join(names)} in direction {', '.join(directions)}; "
            f"there are: {', '.join(f'{b.name} ({b.direction})' for b in REGISTRY.values())}"
        )
    return found
