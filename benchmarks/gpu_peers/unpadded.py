"""Plain PyTorch without padding: packed tokens, one attention that knows the borders; and the staircase of widths.

What a careful user writes without this library. The weights are the elastic network's own: at the full width they are
laid out as PyTorch's attention likes them, and for the staircase they are views of the leading heads and neurons.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cpu_peers.peers import Ids, NotHere
from dynabert_kernels import PackedBatch

from .contender import Call, Noted
from .setting import Model, Setting

# (T, H, D) query, key and value of packed texts to (T, H, D).
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Norm = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class Borders(NamedTuple):
    """Where packed texts begin and end: (B+1,) int32 on the device, lengths as the host knows them; the dtype of q."""

    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    dtype: torch.dtype


def varlen(borders: Borders) -> Attention:
    """``torch.nn.attention.varlen``, which newer versions of PyTorch have, on a GPU."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        raise NotHere("this torch has no torch.nn.attention.varlen")
    if borders.cu_seqlens.device.type != "cuda":
        raise NotHere("torch.nn.attention.varlen has no CPU kernel")
    from torch.nn.attention.varlen import varlen_attn

    at, longest = borders.cu_seqlens, max(borders.lengths)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found: Any = varlen_attn(q, k, v, at, at, longest, longest)
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out

    return attention


def nested(borders: Borders) -> Attention:
    """``scaled_dot_product_attention`` of nested tensors in the jagged layout."""
    at, longest, shortest = borders.cu_seqlens.long(), max(borders.lengths), min(borders.lengths)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = [
            torch.nested.nested_tensor_from_jagged(
                part.contiguous(), at, min_seqlen=shortest, max_seqlen=longest
            ).transpose(1, 2)
            for part in (q, k, v)
        ]
        found: Tensor = F.scaled_dot_product_attention(own[0], own[1], own[2]).transpose(1, 2).values()
        return found

    return attention


def flex(borders: Borders) -> Attention:
    """``flex_attention`` with a mask that keeps texts apart; compiled on a GPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device, total = borders.cu_seqlens.device, sum(borders.lengths)
    lengths = torch.tensor(borders.lengths, device=device)
    text = torch.arange(len(borders.lengths), device=device).repeat_interleave(lengths)
    mask = create_block_mask(lambda b, h, q, k: text[q] == text[k], None, None, total, total, device=str(device))
    run: Any = torch.compile(flex_attention) if device.type == "cuda" else flex_attention

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found: Tensor = run(*(part.transpose(0, 1)[None] for part in (q, k, v)), block_mask=mask)
        return found[0].transpose(0, 1)

    return attention


def one_by_one(borders: Borders) -> Attention:
    """One call of ``scaled_dot_product_attention`` a text: stands in on a CPU, where the fast ones are not."""
    lengths = list(borders.lengths)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [
            F.scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in own))[0].transpose(0, 1)
            for own in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        ]
        return torch.cat(parts)

    return attention


def xformers(borders: Borders) -> Attention:
    """xformers' attention with a block-diagonal mask, where it is installed."""
    if importlib.util.find_spec("xformers") is None:
        raise NotHere("xformers is not installed")
    if borders.cu_seqlens.device.type != "cuda":
        raise NotHere("xformers' attention needs a GPU")
    from xformers.ops import fmha, memory_efficient_attention  # type: ignore[import-not-found, unused-ignore]

    mask = fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(borders.lengths))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found: Tensor = memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask)
        return found[0]

    return attention


def best_attention(borders: Borders) -> Attention:
    """The fastest that this PyTorch has here: varlen, else nested tensors, else flex; on a CPU text by text."""
    if borders.cu_seqlens.device.type != "cuda":
        return one_by_one(borders)
    for make in (varlen, nested):
        try:
            attention = make(borders)
            attention(*_probe(borders))
        except (NotHere, RuntimeError, ImportError, AttributeError):
            continue
        return attention
    return flex(borders)


def name_of(attention: Attention) -> str:
    """Which of the functions here made it."""
    return str(getattr(attention, "__qualname__", "unknown")).partition(".")[0].replace("_", " ")


def _probe(borders: Borders) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.zeros(sum(borders.lengths), 3, 1, 64, dtype=borders.dtype, device=borders.cu_seqlens.device)
    return x[:, 0], x[:, 1], x[:, 2]


def torch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """PyTorch's LayerNorm."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def liger_norm(setting: Setting) -> Norm:
    """Liger's LayerNorm, where it is installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise NotHere("liger_kernel is not installed")
    if setting.device.type != "cuda":
        raise NotHere("Liger's kernels need a GPU")
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # type: ignore[import-not-found, unused-ignore]

    return lambda x, weight, bias, eps: LigerLayerNormFunction.apply(x, weight, bias, eps)


def embed(model: Model, batch: PackedBatch, norm: Norm) -> Tensor:
    """(T, C) of packed tokens."""
    tables = model.encoder.embeddings
    x = F.embedding(batch.input_ids, tables.word_embeddings.weight)
    x = x + F.embedding(batch.position_ids, tables.position_embeddings.weight)
    if tables.token_type_embeddings is not None:
        x = x + tables.token_type_embeddings.weight[0]
    return norm(x, tables.norm.weight, tables.norm.bias, tables.norm.eps)


def unpadded(
    setting: Setting, model: Model, ids: Ids, attention: Callable[[Borders], Attention], norm: Norm = torch_norm
) -> Call:
    """The whole network on packed tokens."""
    batch, _ = model.pack(ids)
    attend = attention(Borders(batch.cu_seqlens, tuple(map(len, ids)), setting.dtype))
    layers = model.encoder.elastic_layers
    # Query, key and value each as one block: (3, H, D, C) instead of the elastic layers' (H, 3, D, C).
    blocks = [
        (layer.qkv_weight.transpose(0, 1).flatten(0, 2).contiguous(), layer.qkv_bias.transpose(0, 1).flatten())
        for layer in layers
    ]
    size, eps = model.config.head_dim, model.config.layer_norm_eps
    first = batch.cu_seqlens[:-1].long()

    def run() -> Tensor:
        x = embed(model, batch, norm)
        for layer, block in zip(layers, blocks, strict=True):
            q, k, v = F.linear(x, *block).view(x.shape[0], 3, -1, size).unbind(1)
            out = F.linear(attend(q, k, v).flatten(1), layer.attention_weight, layer.attention_bias)
            x = norm(x + out, layer.attention_norm.weight, layer.attention_norm.bias, eps)
            inner = F.gelu(F.linear(x, layer.ffn_in_weight, layer.ffn_in_bias))
            out = F.linear(inner, layer.ffn_out_weight, layer.ffn_out_bias)
            x = norm(x + out, layer.ffn_norm.weight, layer.ffn_norm.bias, eps)
        return model.classify(x.index_select(0, first))

    return Noted(run, f"attention: {name_of(attend)}")


def staircase(setting: Setting, model: Model, ids: Ids, widths: Sequence[float]) -> Call:
    """Mixed widths in plain PyTorch: one packed batch, widest first; each product once for each width, on views.

    ``widths``: one for each text, falling. Embeddings, LayerNorms and the head run once on all rows.
    """
    if sorted(widths, reverse=True) != list(widths):
        raise ValueError(f"staircase: widths are {list(widths)}; allowed: from wide to narrow; sort the texts")
    batch, _ = model.pack(ids)
    config, layers = model.config, model.encoder.elastic_layers
    size, eps = config.head_dim, config.layer_norm_eps
    groups: list[tuple[int, int, int, Attention]] = []  # rows, heads, neurons, attention of its own borders
    for width in dict.fromkeys(widths):
        lengths = tuple(len(text) for text, own in zip(ids, widths, strict=True) if own == width)
        borders = torch.tensor([0, *lengths], device=setting.device).cumsum(0).to(torch.int32)
        heads, neurons = round(config.num_attention_heads * width), round(config.intermediate_size * width)
        groups.append((sum(lengths), heads, neurons, best_attention(Borders(borders, lengths, setting.dtype))))
    rows = [group[0] for group in groups]
    first = batch.cu_seqlens[:-1].long()

    def attention_out(layer: Any, x: Tensor, heads: int, attend: Attention) -> Tensor:
        qkv = F.linear(x, layer.qkv_weight[:heads].flatten(0, 2), layer.qkv_bias[:heads].flatten())
        q, k, v = qkv.view(x.shape[0], heads, 3, size).unbind(2)
        return F.linear(attend(q, k, v).flatten(1), layer.attention_weight[:, : heads * size], layer.attention_bias)

    def ffn_out(layer: Any, x: Tensor, neurons: int) -> Tensor:
        inner = F.gelu(F.linear(x, layer.ffn_in_weight[:neurons], layer.ffn_in_bias[:neurons]))
        return F.linear(inner, layer.ffn_out_weight[:, :neurons], layer.ffn_out_bias)

    def run() -> Tensor:
        x = embed(model, batch, torch_norm)
        for layer in layers:
            parts = zip(x.split(rows), groups, strict=True)
            out = torch.cat([attention_out(layer, part, heads, attend) for part, (_, heads, _, attend) in parts])
            x = torch_norm(x + out, layer.attention_norm.weight, layer.attention_norm.bias, eps)
            parts = zip(x.split(rows), groups, strict=True)
            out = torch.cat([ffn_out(layer, part, neurons) for part, (_, _, neurons, _) in parts])
            x = torch_norm(x + out, layer.ffn_norm.weight, layer.ffn_norm.bias, eps)
        return model.classify(x.index_select(0, first))

    chosen = dict.fromkeys(name_of(attend) for _, _, _, attend in groups)
    return Noted(run, f"attention: {', '.join(chosen)}")
