"""Weights packed once: the same answers as plain ones at every width, on every instruction set that packs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import dynabert_kernels as dk
from dynabert_kernels import LayerWeights, Plan, SubnetShape
from dynabert_kernels.layout.packed_weights import pack_matrix, unpack_matrix
from dynabert_kernels.ops import NATIVE
from dynabert_kernels.testing.inputs import strided_rows
from tests.kernels.test_elastic_encoder import PLANS, SIZE, batch, biases, network
from tests.kernels.usable_isas import usable_isas

ISAS = usable_isas()
pytestmark = pytest.mark.skipif(NATIVE is None, reason="the native library is not built")


def packing(dtype: torch.dtype) -> list[str]:
    """The instruction sets of this processor with which weights of this dtype are packed."""
    found = []
    for isa in ISAS:
        NATIVE.set_cpu_isa(isa)
        if dk.packed_panel(dtype):
            found.append(isa)
    if ISAS:
        NATIVE.set_cpu_isa("auto")
    return found


COMBINATIONS = [(isa, dtype) for dtype in (torch.float32, torch.bfloat16) for isa in packing(dtype)]
each_packing = pytest.mark.parametrize(("isa", "dtype"), COMBINATIONS, indirect=["isa"], ids=str)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    NATIVE.set_cpu_isa(request.param)
    yield request.param
    NATIVE.set_cpu_isa("auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (16, 8), (33, 7), (70, 40), (5, 129)])
@pytest.mark.parametrize("panel", [16, 32])
def test_a_matrix_comes_back(shape: tuple[int, int], panel: int, dtype: torch.dtype) -> None:
    weight = strided_rows(torch.randn(shape).to(dtype))
    packed = pack_matrix(weight, panel)
    outputs, inputs = shape
    numbers = 1 if dtype == torch.float32 else 2
    assert packed.shape == (-(-outputs // panel), -(-inputs // numbers), panel, numbers)
    assert torch.equal(unpack_matrix(packed, outputs, inputs), weight)
    for output, given in ((0, 0), (outputs - 1, inputs - 1), (outputs // 2, inputs // 3)):
        place = packed[output // panel, given // numbers, output % panel, given % numbers]
        assert place == weight[output, given]
    assert packed.double().abs().sum() == weight.double().abs().sum()  # 0 elsewhere


@each_packing
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("biased", [False, True])
def test_the_answers_of_plain_weights(name: str, dtype: torch.dtype, biased: bool, isa: str) -> None:
    x, borders, plan = batch(name, dtype)
    layers = network(dtype, strided=True)
    packed = [dk.pack_layer(layer) for layer in layers]
    position = biases(plan, dtype) if biased else []
    wanted = dk.elastic_encoder(x, layers, borders, plan, position_biases=position)
    found = dk.elastic_encoder(x, packed, borders, plan, position_biases=position)
    exact = dtype == torch.float32 or all(f % 2 == 0 for shape in PLANS[name][0] for f in shape.neurons)
    if exact:
        assert torch.equal(found, wanted)
    else:  # an odd sum is ended in another way
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.05)
    with dk.use_provider("reference"):
        defined = dk.elastic_encoder(x, packed, borders, plan, position_biases=position)
    torch.testing.assert_close(found, defined, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)


@each_packing
@pytest.mark.parametrize("rows", [1, 13, 14, 15, 100, 300])
def test_long_sums_and_many_rows(dtype: torch.dtype, rows: int, isa: str) -> None:
    """Sums over several chunks of the kernel, with two widths in one batch, on two threads as on one."""
    drawn = torch.Generator().manual_seed(1)
    width, neurons = 48, 2100

    def some(*sizes: int) -> torch.Tensor:
        return (torch.randn(*sizes, generator=drawn) * 0.1).to(dtype)

    attention = some(2, 3, 8, width), some(2, 3, 8), some(width, 16), some(width), some(width), some(width)
    ffn = some(neurons, width), some(neurons), some(width, neurons), some(width), some(width), some(width)
    layer = LayerWeights(*attention, *ffn)
    plan = Plan.build([SubnetShape((2,), (neurons,)), SubnetShape((1,), (1026,))], [[rows], [2]])
    borders = torch.tensor([0, rows, rows + 2], dtype=torch.int32)
    x = some(rows + 2, width)
    wanted = dk.elastic_encoder(x, [layer], borders, plan)
    packed = dk.pack_layer(layer)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(dk.elastic_encoder(x, [packed], borders, plan), wanted)
    finally:
        torch.set_num_threads(threads)


@each_packing
@pytest.mark.parametrize("name", ["narrow", "mixed"])
def test_what_is_beyond_the_width_leaves_no_trace(name: str, dtype: torch.dtype, isa: str) -> None:
    """NaN in weights that no group reaches, also in the odd half of a pair of bfloat16."""
    x, borders, plan = batch(name, dtype)
    wanted = dk.elastic_encoder(x, [dk.pack_layer(layer) for layer in network(dtype)], borders, plan)
    layers = network(dtype)
    for index, layer in enumerate(layers):
        heads, neurons = plan.max_heads[index], plan.max_neurons[index]
        for tensor, first in (
            (layer.qkv_weight, heads),
            (layer.qkv_bias, heads),
            (layer.ffn_in_weight, neurons),
            (layer.ffn_in_bias, neurons),
        ):
            tensor[first:] = float("nan")
        layer.attention_weight[:, heads * SIZE :] = float("nan")
        layer.ffn_out_weight[:, neurons:] = float("inf")
    assert torch.equal(dk.elastic_encoder(x, [dk.pack_layer(layer) for layer in layers], borders, plan), wanted)


@pytest.mark.parametrize("isa", packing(torch.bfloat16), indirect=True)
@pytest.mark.parametrize("neurons", [1, 3, 33, 511, 513, 1023, 1025])
def test_an_odd_width_beside_a_wider_one(neurons: int, isa: str) -> None:
    drawn = torch.Generator().manual_seed(2)

    def some(*sizes: int) -> torch.Tensor:
        return (torch.randn(*sizes, generator=drawn) * 0.2).to(torch.bfloat16)

    width, most = 32, 1100
    attention = some(2, 3, 8, width), some(2, 3, 8), some(width, 16), some(width), some(width), some(width)
    ffn = some(most, width), some(most), some(width, most), some(width), some(width), some(width)
    layer = LayerWeights(*attention, *ffn)
    layer.ffn_out_weight[:, neurons] = float("inf")  # the other half of the narrow group's last pair
    layer.ffn_in_weight[neurons] = 0.0
    layer.ffn_in_bias[neurons] = 0.0
    plan = Plan.build([SubnetShape((2,), (neurons,))], [[3]])
    borders, x = torch.tensor([0, 3], dtype=torch.int32), some(3, width)
    found = dk.elastic_encoder(x, [dk.pack_layer(layer)], borders, plan)
    wide = LayerWeights(*(weight.double() for weight in layer))
    wanted = dk.elastic_encoder(x.double(), [wide], borders, plan)
    torch.testing.assert_close(found.double(), wanted, rtol=0.02, atol=0.03)


def test_refusals() -> None:
    x, borders, plan = batch("whole", torch.float32)
    layers = network(torch.float32)
    if dk.packed_panel(torch.float32) == 0:
        with pytest.raises(ValueError, match=r"weights of torch\.float32 are not packed on this machine"):
            dk.pack_layer(layers[0])
        return
    packed = [dk.pack_layer(layer) for layer in layers]
    with pytest.raises(ValueError, match=r"pack_layer: weights of torch\.float16 are not packed on this machine"):
        dk.pack_layer(network(torch.float16)[0])
    with pytest.raises(ValueError, match=r"pack_layer: ffn_out_weight has shape \(24, 40\)"):
        dk.pack_layer(layers[2]._replace(ffn_out_weight=layers[0].ffn_out_weight))
    with pytest.raises(TypeError, match="some layers are packed and some are not"):
        dk.elastic_encoder(x, [packed[0], *layers[1:]], borders, plan)
    with (
        dk.use_provider("triton"),
        pytest.raises(ValueError, match="packed weights run on the CPU by the native library or the reference"),
    ):
        dk.elastic_encoder(x, packed, borders, plan)
    cut = packed[0]._replace(qkv_weight=packed[0].qkv_weight[..., :8, :])
    with pytest.raises((ValueError, RuntimeError), match=r"qkv_weight has shape .*; allowed: .*packed for the instr"):
        dk.elastic_encoder(x, [cut, *packed[1:]], borders, plan)
    swapped = packed[0]._replace(attention_weight=packed[0].ffn_out_weight)
    with pytest.raises((ValueError, RuntimeError), match="out_weight has shape"):
        dk.elastic_encoder(x, [swapped, *packed[1:]], borders, plan)
    meta = LayerWeights(*(weight.to("meta") for weight in layers[0]))
    with pytest.raises(ValueError, match="the weights are on meta; allowed: the CPU"):
        dk.pack_layer(meta)


def test_packed_for_another_instruction_set() -> None:
    if not {"avx2", "avx512"} <= set(ISAS):
        pytest.skip("needs a processor with AVX-512")
    x, borders, plan = batch("whole", torch.float32)
    packed = [dk.pack_layer(layer) for layer in network(torch.float32)]
    try:
        NATIVE.set_cpu_isa("avx2")
        with pytest.raises((ValueError, RuntimeError), match="pack it anew"):
            dk.elastic_encoder(x, packed, borders, plan)
        NATIVE.set_cpu_isa("generic")
        with pytest.raises((ValueError, RuntimeError), match="weights of this dtype are not; pass the plain weights"):
            dk.elastic_encoder(x, packed, borders, plan)
    finally:
        NATIVE.set_cpu_isa("auto")


def test_the_op_holds_to_pytorchs_rules() -> None:
    if not packing(torch.float32):
        pytest.skip("no weights are packed on this processor")
    x, borders, plan = batch("mixed", torch.float32)
    flat = [weight for layer in network(torch.float32) for weight in dk.pack_layer(layer)]
    bounds = list(plan.max_heads), list(plan.max_neurons)
    given = (x, flat, [], borders, plan.table, plan.num_groups, *bounds, plan.max_seqlen, 0.5, 1e-12, 1, True)
    torch.library.opcheck(torch.ops.dynabert.elastic_encoder.default, given)
