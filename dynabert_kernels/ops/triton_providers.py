"""Registers the Triton kernels as providers, where Triton is installed."""

from __future__ import annotations

import importlib.util

from dynabert_kernels.ops import providers


def load() -> None:
    """Registers the Triton provider of each op that has one; says why there is none."""
    if importlib.util.find_spec("triton") is None:
        providers.mark_unavailable("triton", "Triton is not installed (pip install triton)")
        return
    from dynabert_kernels.triton import add_layer_norm, elastic_ffn, elastic_linear, embed_layer_norm

    for name in ("add_layer_norm_fwd", "add_layer_norm_bwd"):
        providers.register(name, "triton", getattr(add_layer_norm, name), add_layer_norm.supports)
    for name in ("embed_layer_norm_fwd", "embed_layer_norm_bwd"):
        providers.register(name, "triton", getattr(embed_layer_norm, name), embed_layer_norm.supports)
    for name in ("elastic_linear_fwd", "elastic_linear_bwd"):
        providers.register(name, "triton", getattr(elastic_linear, name), elastic_linear.supports)
    for name in ("elastic_ffn_fwd", "elastic_ffn_bwd"):
        providers.register(name, "triton", getattr(elastic_ffn, name), elastic_ffn.supports)

    from dynabert_kernels.triton import distillation_loss

    for name in ("distillation_loss_fwd", "distillation_loss_bwd"):
        providers.register(name, "triton", getattr(distillation_loss, name), distillation_loss.supports)

    from dynabert_kernels.triton import varlen_attention, varlen_attention_backward

    for module, half in ((varlen_attention, "fwd"), (varlen_attention_backward, "bwd")):
        name = f"varlen_attention_{half}"
        providers.register(name, "triton", getattr(module, name), getattr(module, f"supports_{half}"))

    from dynabert_kernels.triton import elastic_attention

    for half in ("fwd", "bwd"):
        name = f"elastic_attention_{half}"
        supports = getattr(elastic_attention, f"supports_{half}")
        providers.register(name, "triton", getattr(elastic_attention, name), supports)
