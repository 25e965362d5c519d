"""The benchmarks, as data: inputs, the op's arguments, a plain PyTorch peer, and bytes and operations as formulas.

One file for each op; a new op is a new file and its name in ``_OPS``.

Bytes count each input that is read once and each output once: inputs in the active part only, outputs as the op is
defined, so with the zeros of a weight's gradient beyond the width. What a fused op keeps inside (scores, intermediate
activations) counts nothing, and neither do plans and borders, which are a few dozen bytes. In a batch of mixed widths,
weights count once, at the widest group. Operations count matrix products, 2 for a multiply-add, summed over the groups:
they are what the measured matrix rate bounds. Element-wise work is not counted, since the bytes bound it.
"""

from __future__ import annotations

from . import (
    add_layer_norm,
    distillation_loss,
    elastic_attention,
    elastic_ffn,
    elastic_linear,
    embed_layer_norm,
    varlen_attention,
)
from .benchmark import Benchmark, Draw
from .peers import Tensors

_OPS = (
    add_layer_norm,
    embed_layer_norm,
    elastic_linear,
    varlen_attention,
    elastic_attention,
    elastic_ffn,
    distillation_loss,
)
REGISTRY: dict[str, Benchmark] = {benchmark.name: benchmark for op in _OPS for benchmark in op.BENCHMARKS}


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


__all__ = ["REGISTRY", "Benchmark", "Draw", "Tensors", "find"]
