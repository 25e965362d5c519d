"""All layers in one call: bit for bit what the two ops give layer by layer, at every plan, and the definition's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import LayerWeights, Plan, SubnetShape
from dynabert_kernels.ops import providers
from dynabert_kernels.testing.inputs import strided_rows

HEADS, SIZE, WIDTH, NEURONS = (4, 3, 4), 16, 24, (40, 40, 33)
WHOLE = SubnetShape(HEADS, NEURONS)
PLANS: dict[str, tuple[list[SubnetShape], list[list[int]], int]] = {
    "whole": ([WHOLE], [[5, 1, 9]], 1),
    "narrow": ([SubnetShape((1, 1, 2), (7, 10, 1))], [[3, 17]], 1),
    "mixed": (
        [WHOLE, SubnetShape((2, 0, 1), (20, 0, 33)), SubnetShape((0, 3, 0), (0, 1, 0))],
        [[2], [7, 3], [1, 4]],
        1,
    ),
    "unsorted, an empty group, rows of no group": (
        [SubnetShape((1, 2, 0), (3, 40, 0)), WHOLE, WHOLE],
        [[4], [], [6, 6]],
        32,
    ),
    "a layer that nobody keeps": ([SubnetShape((4, 0, 2), (9, 0, 9))], [[8, 2]], 1),
    "no layer at all": ([SubnetShape((0, 0, 0), (0, 0, 0))], [[3, 4]], 1),
}
NATIVE = "cpu" in providers.registered()["elastic_encoder"]
PROVIDERS = ["reference", *(["cpu"] if NATIVE else [])]


def network(dtype: torch.dtype, *, strided: bool = False) -> list[LayerWeights]:
    drawn = torch.Generator().manual_seed(3)

    def some(*sizes: int) -> Tensor:
        made = (torch.randn(*sizes, generator=drawn, dtype=torch.float64) * 0.2).to(dtype)
        return strided_rows(made) if strided and len(sizes) == 2 else made

    layers = []
    for heads, neurons in zip(HEADS, NEURONS, strict=True):
        attention = some(heads, 3, SIZE, WIDTH), some(heads, 3, SIZE), some(WIDTH, heads * SIZE), some(WIDTH)
        ffn = some(neurons, WIDTH), some(neurons), some(WIDTH, neurons), some(WIDTH)
        layers.append(LayerWeights(*attention, some(WIDTH) + 1, some(WIDTH), *ffn, some(WIDTH) + 1, some(WIDTH)))
    return layers


def batch(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Plan]:
    shapes, lengths, bucket = PLANS[name]
    plan = Plan.build(shapes, lengths, row_bucket=bucket)
    borders = torch.tensor([0, *(n for group in lengths for n in group)]).cumsum(0).to(torch.int32)
    x = torch.randn(plan.num_rows, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x.to(dtype), borders, plan


def biases(plan: Plan, dtype: torch.dtype) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(7)
    reach = 2 * plan.max_seqlen - 1
    return [torch.randn(heads, reach, generator=drawn, dtype=torch.float64).to(dtype) for heads in HEADS]


def layer_by_layer(
    x: Tensor, layers: Sequence[LayerWeights], borders: Tensor, plan: Plan, position: Sequence[Tensor], **ffn: Any
) -> Tensor:
    y = x
    for index, w in enumerate(layers):
        layer = plan.layer(index)
        if not layer.max_heads and not layer.max_neurons:
            continue
        bias = position[index] if position else None
        y = dk.elastic_attention(y, *w[:6], borders, layer, max_seqlen=plan.max_seqlen, position_bias=bias)
        y = dk.elastic_ffn(y, *w[6:], layer, **ffn)
    return y


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("biased", [False, True])
def test_bit_for_bit_what_the_ops_give(name: str, dtype: torch.dtype, provider: str, biased: bool) -> None:
    x, borders, plan = batch(name, dtype)
    layers = network(dtype)
    position = biases(plan, dtype) if biased else []
    kept = x.clone()
    with dk.use_provider(provider):
        wanted = layer_by_layer(x, layers, borders, plan, position, activation="gelu_tanh")
        found = dk.elastic_encoder(x, layers, borders, plan, position_biases=position, activation="gelu_tanh")
    assert torch.equal(found, wanted)
    assert torch.equal(x, kept)
    assert found.data_ptr() != x.data_ptr()
    assert found.isfinite().all()


@pytest.mark.skipif(not NATIVE, reason="the native library is not built")
@pytest.mark.parametrize("name", PLANS)
def test_the_definition_holds(name: str) -> None:
    x, borders, plan = batch(name, torch.float64)
    layers, position = network(torch.float64, strided=True), biases(plan, torch.float64)
    with dk.use_provider("reference"):
        wanted = dk.elastic_encoder(x, layers, borders, plan, position_biases=position, scale=0.3, eps=1e-5)
    with dk.use_provider("cpu"):
        found = dk.elastic_encoder(
            strided_rows(x), layers, borders, plan, position_biases=position, scale=0.3, eps=1e-5
        )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.skipif(not NATIVE, reason="the native library is not built")
def test_what_is_beyond_the_width_is_not_read() -> None:
    x, borders, plan = batch("narrow", torch.float32)
    layers = network(torch.float32)
    wanted = dk.elastic_encoder(x, layers, borders, plan)
    heads, neurons = PLANS["narrow"][0][0].heads, PLANS["narrow"][0][0].neurons
    for layer, k, f in zip(layers, heads, neurons, strict=True):
        for tensor, first in (
            (layer.qkv_weight, k),
            (layer.qkv_bias, k),
            (layer.ffn_in_weight, f),
            (layer.ffn_in_bias, f),
        ):
            tensor[first:] = float("nan")
        layer.attention_weight[:, k * SIZE :] = float("nan")
        layer.ffn_out_weight[:, f:] = float("nan")
    assert torch.equal(dk.elastic_encoder(x, layers, borders, plan), wanted)


def test_a_provider_without_the_op_runs_layer_by_layer() -> None:
    x, borders, plan = batch("mixed", torch.float32)
    layers = network(torch.float32)
    with dk.use_provider("triton"):
        assert "triton" not in providers.registered()["elastic_encoder"]
        found = dk.elastic_encoder(x, layers, borders, plan)
    torch.testing.assert_close(found, dk.elastic_encoder(x, layers, borders, plan), rtol=0, atol=1e-5)


def test_the_op_holds_to_pytorchs_rules() -> None:
    x, borders, plan = batch("mixed", torch.float32)
    flat = [weight for layer in network(torch.float32) for weight in layer]
    bounds = list(plan.max_heads), list(plan.max_neurons)
    given = (x, flat, [], borders, plan.table, plan.num_groups, *bounds, plan.max_seqlen, 0.5, 1e-12, 1, False)
    torch.library.opcheck(torch.ops.dynabert.elastic_encoder.default, given)


def test_refusals() -> None:
    x, borders, plan = batch("mixed", torch.float32)
    layers = network(torch.float32)
    with pytest.raises(ValueError, match="elastic_encoder: 2 layers given and the plan has 3; allowed: as many"):
        dk.elastic_encoder(x, layers[:2], borders, plan)
    with pytest.raises(ValueError, match="1 position biases for 3 layers; allowed: one a layer, or none"):
        dk.elastic_encoder(x, layers, borders, plan, position_biases=biases(plan, torch.float32)[:1])
    with pytest.raises(ValueError, match="the plan has 17 rows and x 16"):
        dk.elastic_encoder(x[:-1], layers, borders, plan)
    with pytest.raises(ValueError, match="activation is 'silu'; allowed: "):
        dk.elastic_encoder(x, layers, borders, plan, activation="silu")
    learning = [layers[0]._replace(ffn_in_bias=layers[0].ffn_in_bias.requires_grad_()), *layers[1:]]
    with pytest.raises(RuntimeError, match=r"it has no backward; run it under torch\.no_grad\(\)"):
        dk.elastic_encoder(x, learning, borders, plan)
    with torch.no_grad():
        dk.elastic_encoder(x, learning, borders, plan)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_dtype_that_does_not_fit(provider: str) -> None:
    x, borders, plan = batch("mixed", torch.float32)
    layers, position = network(torch.float32), biases(plan, torch.float32)
    odd = [*layers[:2], layers[2]._replace(ffn_in_bias=layers[2].ffn_in_bias.bfloat16())]
    long = dataclasses.replace(plan, table=plan.table.long())
    with dk.use_provider(provider):
        with pytest.raises(TypeError, match=r"elastic_encoder: qkv_weight of layer 0 is torch.float32, x is torch.bfl"):
            dk.elastic_encoder(x.bfloat16(), layers, borders, plan)
        with pytest.raises(TypeError, match=r"ffn_in_bias of layer 2 is torch.bfloat16, x is torch.float32; allowed: "):
            dk.elastic_encoder(x, odd, borders, plan)
        with pytest.raises(TypeError, match=r"x is torch.int32; allowed: float32, bfloat16, float16, float64"):
            dk.elastic_encoder(x.int(), layers, borders, plan)
        with pytest.raises(TypeError, match=r"cu_seqlens is torch.int64; allowed: torch.int32"):
            dk.elastic_encoder(x, layers, borders.long(), plan)
        with pytest.raises(TypeError, match=r"the plan's table is torch.int64; allowed: torch.int32"):
            dk.elastic_encoder(x, layers, borders, long)
        with pytest.raises(TypeError, match=r"a position bias is torch.float64; allowed: torch.float32"):
            dk.elastic_encoder(x, layers, borders, plan, position_biases=[*position[:2], position[2].double()])


@pytest.mark.skipif(not NATIVE, reason="the native library is not built")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ffn_in_weight": torch.zeros(40, 23)}, r"in_weight has shape \(40, 23\)"),
        ({"qkv_weight": torch.zeros(2, 3, SIZE, WIDTH)}, "max_heads is 4; allowed: 0 to qkv_weight's 2 heads"),
        ({"ffn_norm_bias": torch.zeros(WIDTH, dtype=torch.float64)}, "ffn_norm_bias of layer 0 is"),
    ],
)
def test_a_weight_that_does_not_fit_is_named(change: dict[str, Tensor], told: str) -> None:
    x, borders, plan = batch("whole", torch.float32)
    layers = network(torch.float32)
    layers[0] = layers[0]._replace(**change)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=told):
        dk.elastic_encoder(x, layers, borders, plan)


@pytest.mark.skipif(not NATIVE, reason="the native library is not built")
def test_a_table_of_another_size_is_refused() -> None:
    x, borders, plan = batch("whole", torch.float32)
    other = dataclasses.replace(plan, table=plan.table[:-1].clone())
    with pytest.raises((ValueError, RuntimeError), match="table has 7 numbers for 1 groups and 3 layers"):
        dk.elastic_encoder(x, network(torch.float32), borders, other)
