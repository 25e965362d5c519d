"""``classification_head``: from packed states to logits in one call, for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.ops import checks, providers
from dynabert_kernels.ops.registration import define, needs_save, without_autocast

NAME = "classification_head"


def _fake(x: Tensor, cu_seqlens: Tensor, *others: Tensor | None) -> Tensor:
    out_weight = others[2]
    assert out_weight is not None
    return x.new_empty(cu_seqlens.shape[0] - 1, out_weight.shape[0])


_head = define(
    NAME,
    "(Tensor x, Tensor cu_seqlens, Tensor? dense_weight, Tensor? dense_bias, Tensor out_weight, Tensor out_bias)"
    " -> Tensor",
    reference=reference.classification_head,
    fake=_fake,
)


def classification_head(
    x: Tensor,
    cu_seqlens: Tensor,
    dense_weight: Tensor | None,
    dense_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor,
) -> Tensor:
    """Logits from each sequence's first token: ``out(tanh(dense(x[cu_seqlens[i]])))``, without dropout.

    ``x``: (T, C), the last hidden states of packed tokens. ``cu_seqlens``: (B+1,) int32, the sequences' borders.
    ``dense_weight``, ``dense_bias``: (C, C) and (C,), BERT's pooler or the first map of the other heads; both None
    leave it and the tanh out. ``out_weight``: (labels, C), ``out_bias``: (labels,). All of x's dtype.

    Returns (B, labels). Each product is summed in float32 (float64 for float64) and rounded once; so is the tanh.
    Deterministic. Does not synchronise. ``cpu`` computes it in one native call: for one text PyTorch's two products
    cost more in finding their kernels than in multiplying. Elsewhere, and where a provider that has no such op is
    forced, it is plain PyTorch.

    Raises ``RuntimeError`` where a gradient is wanted; ``ValueError`` on a shape or device that does not fit,
    ``TypeError`` on a dtype that does not.
    """
    if torch.is_grad_enabled() and needs_save(x, dense_weight, dense_bias, out_weight, out_bias):
        raise RuntimeError(f"{NAME}: it has no backward; run it under torch.no_grad()")
    checks.shape(NAME, "x", x, (None, None), "(T, C)")
    checks.shape(NAME, "out_weight", out_weight, (None, x.shape[1]), "(labels, C)")
    checks.same(
        NAME,
        ("x", x),
        {"dense_weight": dense_weight, "dense_bias": dense_bias, "out_weight": out_weight, "out_bias": out_bias},
    )
    if (dense_weight is None) != (dense_bias is None):
        raise ValueError(f"{NAME}: dense_weight and dense_bias belong together; give both, or neither")
    checks.indices(NAME, "cu_seqlens", cu_seqlens, x.device, torch.int32)
    forced = providers.forced_provider()
    if forced is not None and not providers.has(NAME, forced):
        plain = without_autocast(reference.classification_head)
        return plain(x, cu_seqlens, dense_weight, dense_bias, out_weight, out_bias)
    return _head(x, cu_seqlens, dense_weight, dense_bias, out_weight, out_bias)
