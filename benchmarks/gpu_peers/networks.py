"""Contenders that run a whole network forward: ours, transformers' own, compiled, cut out, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cpu_peers.peers import Ids, Logits
from dynabert.export import modeling_elastic_bert, plain, remote
from dynabert.modeling.names import to_plain
from dynabert_kernels.triton.dependent_launch import programmatic_launch, why_not_programmatic

from . import unpadded
from .contender import OURS, Answer, Call, Contender, both_ways, compiled, step_begins
from .setting import WIDTHS, Model, Setting, encoder_operations, in_float32, padded, subnet

HF, COMPILED = "HF eager", "HF compile"
UNPADDED, STAIRCASE = "unpadded torch", "staircase torch"
CUT_OUT = "cut out, compile"


class PlainLogits(nn.Module):
    """A padded classifier with or without a mask, and logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.masked = Logits(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, labels)."""
        if attention_mask is None:
            logits: Tensor = self.masked.model(input_ids=input_ids).logits
            return logits
        return self.masked(input_ids, attention_mask)  # type: ignore[no-any-return]


def transformers_network(model: Model) -> nn.Module:
    """transformers' own classifier with the same weights; attention by ``scaled_dot_product_attention``."""
    from transformers import BertForSequenceClassification

    form = plain.plain_form(model)
    config: Any = form.config
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        network = BertForSequenceClassification(config)
    network.load_state_dict(form.tensors, strict=False, assign=True)
    return _placed(network, model)


def cut_out_network(model: Model, width: float) -> nn.Module:
    """The sub-network as ``dynabert export --format hf-remote`` writes it: plain PyTorch, narrow layers."""
    small = model.extract(subnet(width))
    config = modeling_elastic_bert.ElasticBertConfig(**remote.elastic_values(small))  # type: ignore[arg-type]
    with torch.device("meta"):
        network = modeling_elastic_bert.ElasticBertForSequenceClassification(config)
    tensors = to_plain(small.state_dict(), small.config, small.parts)
    network.load_state_dict(tensors, strict=True, assign=True)
    return _placed(network, model)


def _placed(network: nn.Module, model: Model) -> nn.Module:
    for name, buffer in [*network.named_buffers()]:
        if buffer.device.type == "meta":  # positions and token types, which no file holds
            owner, _, last = name.rpartition(".")
            count = torch.arange(buffer.shape[-1]) if last == "position_ids" else torch.zeros(buffer.shape[-1])
            network.get_submodule(owner).register_buffer(last, count.long().expand(buffer.shape), persistent=False)
    left = [name for name, tensor in network.named_parameters() if tensor.device.type == "meta"]
    if left:
        raise RuntimeError(f"weights without a value: {', '.join(left)}")
    return nn.Module.to(network, device=model.device, dtype=model.dtype).eval()


def reference(setting: Setting, network: str, ids: Ids, widths: Sequence[float]) -> Answer:
    """Logits in float32 by the cut-out networks, text by text of each width; none of our kernels."""
    exact = in_float32(setting.model(network))
    found: list[Tensor | None] = [None] * len(ids)
    for width in dict.fromkeys(widths):
        own = [place for place, other in enumerate(widths) if other == width]
        answer = PlainLogits(cut_out_network(exact, width))(*padded(setting, [ids[place] for place in own]))
        for place, logits in zip(own, answer, strict=True):
            found[place] = logits
    return {"logits": torch.stack([logits for logits in found if logits is not None])}


# Builders ------------------------------------------------------------------------------------------------------------


def ours(setting: Setting, model: Model, ids: Ids, widths: Sequence[float]) -> Call:
    """`packed_logits` on a batch that lies on the device."""
    asked = subnet(widths[0]) if len(set(widths)) == 1 else [subnet(width) for width in widths]
    batch, plan = model.pack(ids, subnet=asked)
    return lambda: model.packed_logits(batch, plan)


def extracted(setting: Setting, model: Model, ids: Ids, width: float) -> Call:
    """The same kernels on a copy of the sub-network alone, its weights packed to their active part."""
    small = model.extract(subnet(width))
    return ours(setting, small, ids, [1.0] * len(ids))


def hf_eager(setting: Setting, model: Model, ids: Ids) -> Call:
    """transformers, padded."""
    network, inputs = PlainLogits(transformers_network(model)), padded(setting, ids)
    return lambda: network(*inputs)


def hf_compiled(setting: Setting, model: Model, ids: Ids) -> Call:
    """transformers, compiled for this bucket."""
    network, inputs = PlainLogits(transformers_network(model)), padded(setting, ids)
    run = compiled(setting, network)

    def call() -> Any:
        step_begins()
        return run(*inputs)

    return call


def cut_out_compiled(setting: Setting, model: Model, ids: Ids, widths: Sequence[float]) -> Call:
    """One compiled plain network for each width, each on the texts of its width, one after another."""
    runs = []
    for width in dict.fromkeys(widths):
        own = [text for text, other in zip(ids, widths, strict=True) if other == width]
        network = PlainLogits(cut_out_network(model, width))
        runs.append((compiled(setting, network), padded(setting, own)))

    def call() -> Any:
        step_begins()
        return [run(*inputs) for run, inputs in runs]

    return call


def cut_out_contenders(setting: Setting, network: str, ids: Ids, width: float) -> list[Contender]:
    """The sub-network by itself, compiled: what somebody deploys who wants one width only."""
    widths = [width] * len(ids)
    return [
        Contender(
            f"w{width:g} {CUT_OUT}",
            lambda: cut_out_compiled(setting, setting.model(network), ids, widths),
            wanted=f"w{width:g}",
            answer=joined,
        )
    ]


def joined(found: Any) -> Answer:
    """The logits of several networks, one after another."""
    return {"logits": torch.cat(list(found))}


# Contenders by name --------------------------------------------------------------------------------------------------


def our_contenders(setting: Setting, network: str, ids: Ids, widths: Sequence[float], label: str) -> list[Contender]:
    """Ours, eager and in a CUDA graph, named ``ours LABEL``."""
    return both_ways(
        setting,
        f"{OURS} {label}",
        lambda: ours(setting, setting.model(network), ids, widths),
        wanted=label,
        operations=encoder_operations(setting, network, ids, widths),
    )


def dependent_contenders(
    setting: Setting, network: str, ids: Ids, widths: Sequence[float], label: str
) -> list[Contender]:
    """Ours with programmatic dependent launches, where the device has them."""
    if why_not_programmatic(setting.device) is not None:
        return []

    def build() -> Call:
        call = ours(setting, setting.model(network), ids, widths)

        def dependent() -> Any:
            with programmatic_launch():
                return call()

        return dependent

    operations = encoder_operations(setting, network, ids, widths)
    return both_ways(setting, f"{OURS} {label}, dependent", build, wanted=label, operations=operations)


def extracted_contenders(setting: Setting, network: str, ids: Ids, width: float) -> list[Contender]:
    """The price of computing in place: the same kernels on the weights cut out."""
    return both_ways(
        setting,
        f"{OURS} w{width:g}, cut out",
        lambda: extracted(setting, setting.model(network), ids, width),
        wanted=f"w{width:g}",
        operations=encoder_operations(setting, network, ids, [width] * len(ids)),
    )


def padded_contenders(setting: Setting, network: str, ids: Ids) -> list[Contender]:
    """transformers at the full width."""
    return [
        Contender(HF, lambda: hf_eager(setting, setting.model(network), ids), wanted="w1"),
        Contender(COMPILED, lambda: hf_compiled(setting, setting.model(network), ids), wanted="w1"),
    ]


def unpadded_contenders(setting: Setting, network: str, ids: Ids) -> list[Contender]:
    """Plain PyTorch on packed tokens at the full width, and the same with other people's kernels."""

    def build(attention: Any = unpadded.best_attention, liger: bool = False) -> Call:
        norm = unpadded.liger_norm(setting) if liger else unpadded.torch_norm
        return unpadded.unpadded(setting, setting.model(network), ids, attention, norm)

    return [
        *both_ways(setting, UNPADDED, build, wanted="w1"),
        Contender(f"{UNPADDED}, xformers", lambda: build(unpadded.xformers), wanted="w1"),
        Contender(f"{UNPADDED}, Liger", lambda: build(liger=True), wanted="w1"),
    ]


def mixed_widths(count: int) -> list[float]:
    """Four widths, a quarter of the texts each, wide to narrow."""
    if count % len(WIDTHS):
        raise ValueError(f"mixed_widths: {count} texts; allowed: a multiple of {len(WIDTHS)}")
    return [width for width in WIDTHS for _ in range(count // len(WIDTHS))]


def mixed_contenders(setting: Setting, network: str, ids: Ids) -> list[Contender]:
    """Four widths in one batch: the staircase, and four compiled networks."""
    widths = mixed_widths(len(ids))
    model = setting.model
    return [
        *both_ways(
            setting, STAIRCASE, lambda: unpadded.staircase(setting, model(network), ids, widths), wanted="mixed"
        ),
        Contender(
            f"four {CUT_OUT}",
            lambda: cut_out_compiled(setting, model(network), ids, widths),
            wanted="mixed",
            answer=joined,
        ),
    ]
