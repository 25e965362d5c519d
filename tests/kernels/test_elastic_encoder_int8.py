"""The encoder in int8: exact integers on every instruction set, the definition's numbers, and every sub-network a part
of one buffer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import Int8LayerWeights, LayerWeights, SubnetShape, reference
from dynabert_kernels.ops import NATIVE, providers
from dynabert_kernels.ops.int8_weights import NEURON_CHUNK, pack_linear, unpack_linear
from dynabert_kernels.testing.inputs import strided_rows
from tests.kernels.test_elastic_encoder import HEADS, NEURONS, PLANS, PROVIDERS, SIZE, WIDTH, batch, biases, network
from tests.kernels.usable_isas import usable_isas

HERE = "cpu" in providers.registered()["elastic_encoder_int8"]
native = pytest.mark.skipif(not HERE, reason="the native library is not built")
ISAS = usable_isas()
EMULATES = NATIVE is not None and NATIVE.cpu_features()["avx512_bf16"] and NATIVE.cpu_features()["avx512_vnni"]
FLOATS = [torch.float32, torch.bfloat16]


@pytest.fixture
def every_isa() -> Iterator[tuple[str, ...]]:
    yield ISAS
    if NATIVE is not None:
        NATIVE.set_cpu_isa("auto")


def linear(x: Tensor, packed: Any, chunk: int, n: int, k: int, activation: int = 0) -> Tensor:
    return torch.ops.dynabert.int8_linear(x, *packed, chunk, n, k, activation)


def quantised(dtype: torch.dtype) -> list[Int8LayerWeights]:
    return [dk.quantise_layer(layer, dtype) for layer in network(torch.float32)]


# One product.

LINEARS = [
    (1, 5, 3, 3, 5, 3),  # less than a register, a chunk that is no whole unit
    (17, 70, 24, 24, 33, 24),  # a strip and some, a part of the second panel
    (14, 64, 90, 15, 64, 45),  # chunks that end inside a unit
    (29, 96, 256, 128, 96, 200),  # a width that ends inside a chunk
    (130, 100, 768, 768, 100, 768),  # one long chunk
    (43, 40, 3072, 128, 40, 3072),  # more chunks than are worked off at once
]


@native
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "outputs", "inputs", "chunk", "n", "k"), LINEARS)
def test_the_integers_are_exact(
    rows: int, outputs: int, inputs: int, chunk: int, n: int, k: int, dtype: torch.dtype, every_isa: tuple[str, ...]
) -> None:
    """With scales of 1 the result is a whole number, and every instruction set has the same."""
    drawn = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (outputs, inputs), generator=drawn).float()
    weight[:, ::chunk] = 127
    x = torch.randint(-127, 128, (rows, inputs), generator=drawn).to(dtype)
    x[:, 0] = 127
    x[:, k:] = float("nan")
    bias = torch.randint(-9, 9, (outputs,), generator=drawn).to(dtype)
    packed = pack_linear(weight, bias, chunk)
    wanted = (x[:, :k].double() @ weight[:n, :k].double().t() + bias[:n].double()).to(dtype)
    for isa in every_isa:
        assert NATIVE is not None
        NATIVE.set_cpu_isa(isa)
        assert torch.equal(linear(strided_rows(x), packed, chunk, n, k), wanted), isa
    with dk.use_provider("reference"):
        assert torch.equal(linear(x, packed, chunk, n, k), wanted)


@native
@pytest.mark.parametrize("activation", range(4))
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_product_is_the_definitions(dtype: torch.dtype, activation: int, every_isa: tuple[str, ...]) -> None:
    """Any scales: only the rounding of the last steps differs."""
    drawn = torch.Generator().manual_seed(2)
    x = torch.randn(37, 300, generator=drawn).to(dtype)
    packed = pack_linear(torch.randn(90, 300, generator=drawn), torch.randn(90, generator=drawn).to(dtype), 50)
    with dk.use_provider("reference"):
        wanted = linear(x, packed, 50, 77, 260, activation)
    for isa in every_isa:
        assert NATIVE is not None
        NATIVE.set_cpu_isa(isa)
        found = linear(x, packed, 50, 77, 260, activation)
        rounding = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-3}
        torch.testing.assert_close(found, wanted, **rounding)


TILED = [  # chunk, inputs, k: what a chunk's units, four inputs each, are cut into
    (64, 320, 256),  # one step of 16, as a head
    (50, 300, 260),  # 13 units: rows of tiles that are not whole, and a chunk that ends inside a unit
    (128, 768, 576),  # two steps a chunk, more chunks than a stage has
    (312, 312, 312),  # 78 units: six steps of 13
    (768, 768, 768),  # one long chunk
    (76, 152, 152),  # 19 units, which nothing divides: without tiles
    (32, 96, 96),  # 8 units: without tiles
]


@pytest.mark.skipif(not EMULATES, reason="the processor has no AVX-512 with dot products of bfloat16 and of bytes")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("chunk", "inputs", "k"), TILED)
def test_tile_registers_give_the_same_bits(
    chunk: int, inputs: int, k: int, dtype: torch.dtype, every_isa: tuple[str, ...]
) -> None:
    """The processor's and emulated ones, as many rows as strips may have, widths that end inside a panel."""
    assert NATIVE is not None
    drawn = torch.Generator().manual_seed(7)
    packed = pack_linear(torch.randn(103, inputs, generator=drawn), torch.randn(103, generator=drawn).to(dtype), chunk)
    tiled = [isa for isa in (*every_isa, "amx-emulated") if isa.startswith("amx")]
    for rows, outputs, activation in ((1, 103, 0), (15, 96, 1), (16, 40, 2), (17, 65, 3), (33, 103, 1), (100, 7, 0)):
        x = strided_rows(torch.randn(rows, inputs, generator=drawn).to(dtype))
        NATIVE.set_cpu_isa("avx512")
        wanted = linear(x, packed, chunk, outputs, k, activation)
        for isa in tiled:
            NATIVE.set_cpu_isa(isa)
            assert torch.equal(linear(x, packed, chunk, outputs, k, activation), wanted), (isa, rows)


@pytest.mark.skipif(not EMULATES, reason="the processor has no AVX-512 with dot products of bfloat16 and of bytes")
@pytest.mark.parametrize("dtype", FLOATS)
def test_tile_registers_in_a_batch_of_widths(dtype: torch.dtype, every_isa: tuple[str, ...]) -> None:
    """Spans that share blocks, on one thread and on several."""
    assert NATIVE is not None
    lengths, shapes = [[33], [9, 4], [17], [1], [40]], [(4, 1100), (1, 200), (3, 2048), (2, 5), (2, 640)]
    layer = dk.quantise_layer(one_layer(4, 64, 104, 2048), dtype)
    plan = dk.Plan.build([SubnetShape((heads,), (neurons,)) for heads, neurons in shapes], lengths)
    borders = torch.tensor([0, *(n for group in lengths for n in group)]).cumsum(0).to(torch.int32)
    x = torch.randn(plan.num_rows, 104, generator=torch.Generator().manual_seed(8)).to(dtype)
    found: dict[str, Tensor] = {}
    threads = torch.get_num_threads()
    try:
        for isa in sorted({*(isa for isa in every_isa if isa.startswith("a")), "amx-emulated"} - {"avx2"}):
            NATIVE.set_cpu_isa(isa)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                one = dk.elastic_encoder_int8(x, [layer], borders, plan)
                assert torch.equal(found.setdefault(isa, one), one), (isa, count)
    finally:
        torch.set_num_threads(threads)
    for isa, one in found.items():
        if dtype == torch.float32 or isa != "avx512":
            assert torch.equal(one, found["avx512" if dtype == torch.float32 else "amx-emulated"]), isa
        else:  # attention in bfloat16 has other products with tiles, summed in another order
            torch.testing.assert_close(one, found["amx-emulated"], rtol=2e-2, atol=2e-2)


@native
def test_a_row_of_zeros_and_a_row_that_is_not_finite() -> None:
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(3))
    x[1] = 0
    x[2, 5] = float("nan")
    x[3, 7] = float("inf")
    packed = pack_linear(torch.eye(24), torch.arange(24.0), 24)
    found = linear(x, packed, 24, 24, 24)
    assert torch.equal(found[1], torch.arange(24.0))
    assert found[2].isnan().all()
    assert not found[3].isfinite().any()
    torch.testing.assert_close(found[0], x[0] + torch.arange(24.0), rtol=0, atol=float(x[0].abs().max()) / 254 + 1e-5)


# Weights.


def one_layer(heads: int, size: int, width: int, neurons: int) -> LayerWeights:
    drawn = torch.Generator().manual_seed(5)

    def some(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=drawn) * 0.2

    attention = some(heads, 3, size, width), some(heads, 3, size), some(width, heads * size), some(width)
    ffn = some(neurons, width), some(neurons), some(width, neurons), some(width)
    return LayerWeights(*attention, some(width) + 1, some(width), *ffn, some(width) + 1, some(width))


def test_what_is_packed() -> None:
    """Each number within half a step of the weight's, and its place is the one that is written down."""
    weight = torch.randn(70, 50, generator=torch.Generator().manual_seed(4))
    weight[3] = 0
    packed = pack_linear(weight, torch.zeros(70), 20)
    assert packed.weight.shape == (3, 3, 5, 32, 4)
    assert packed.weight.dtype == torch.int8
    whole = unpack_linear(packed.weight, 20)
    assert int(packed.weight.abs().max()) == 127
    scale = packed.scale.t()[..., None]
    back = (whole * scale).reshape(96, 60)
    assert not back[70:].any()
    assert not back[:, 50:].any()
    assert not back[3].any()
    step = scale.expand(96, 3, 20).reshape(96, 60)[:70, :50]
    assert ((back[:70, :50] - weight).abs() <= step * 0.5001).all()
    assert torch.equal(packed.offset, -128 * whole.sum(2, dtype=torch.int32).t())


def test_a_narrower_network_has_the_same_numbers() -> None:
    """Leading heads, and whole chunks of neurons, are packed as they are without the others."""
    size, width = 12, 40
    whole = one_layer(3, size, width, 2 * NEURON_CHUNK + 17)
    part = whole._replace(
        qkv_weight=whole.qkv_weight[:2],
        qkv_bias=whole.qkv_bias[:2],
        attention_weight=whole.attention_weight[:, : 2 * size],
        ffn_in_weight=whole.ffn_in_weight[:NEURON_CHUNK],
        ffn_in_bias=whole.ffn_in_bias[:NEURON_CHUNK],
        ffn_out_weight=whole.ffn_out_weight[:, :NEURON_CHUNK],
    )
    big, small = dk.quantise_layer(whole), dk.quantise_layer(part)
    for name, chunk in (("attention", size), ("ffn_out", NEURON_CHUNK), ("qkv", width), ("ffn_in", width)):
        ours, theirs = getattr(small, name), getattr(big, name)
        outputs = ours.bias.numel()
        numbers = unpack_linear(ours.weight, chunk)[:outputs]
        assert torch.equal(numbers, unpack_linear(theirs.weight, chunk)[:outputs, : numbers.shape[1]])
        assert torch.equal(ours.scale[:, :outputs], theirs.scale[: ours.scale.shape[0], :outputs])


def test_a_quarter_of_the_bytes() -> None:
    """At BERT-base's shape, scales, offsets, biases and LayerNorms included."""
    width, heads, neurons = 768, 12, 3072
    size = width // heads
    sizes = [(heads, 3, size, width), (heads, 3, size), (width, width), *[(width,)] * 3]
    sizes += [(neurons, width), (neurons,), (width, neurons), *[(width,)] * 3]
    plain = LayerWeights(*(torch.ones(shape) for shape in sizes))
    packed = dk.quantise_layer(plain, torch.bfloat16)
    before = sum(tensor.nbytes for tensor in plain)
    after = sum(tensor.nbytes for tensor in packed.tensors())
    assert before == 28_351_488
    assert after <= 0.265 * before


def test_weights_that_cannot_be_quantised() -> None:
    layer = network(torch.float32)[0]
    layer.ffn_in_weight[2, 3] = float("nan")
    with pytest.raises(ValueError, match="quantise_layer: a weight is NaN or infinite; it cannot be quantised"):
        dk.quantise_layer(layer)
    with pytest.raises(ValueError, match="a sum over 70000 inputs; allowed: 1 to 65536"):
        pack_linear(torch.zeros(1, 70000), torch.zeros(1), 70000)
    layer = layer._replace(ffn_out_weight=torch.zeros(WIDTH, NEURONS[0] + 1))
    with pytest.raises(ValueError, match="quantise_layer: ffn_out_weight has shape"):
        dk.quantise_layer(layer)


# The encoder.


@native
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_definition_holds(name: str, dtype: torch.dtype, biased: bool, every_isa: tuple[str, ...]) -> None:
    """As near to float64 as the definition in the same dtype is. Near a half, rounding falls to either side, so a
    number may be a step off in both."""
    x, borders, plan = batch(name, dtype)
    layers = quantised(dtype)
    position = biases(plan, dtype) if biased else []
    options: dict[str, Any] = {"position_biases": position, "activation": "gelu_tanh", "eps": 1e-5}
    with dk.use_provider("reference"):
        same = dk.elastic_encoder_int8(x, layers, borders, plan, **options)
    flat = [t.double() if t.is_floating_point() else t for layer in layers for t in layer.tensors()]
    exact = reference.elastic_encoder_int8(
        x.double(),
        flat,
        [bias.double() for bias in position],
        borders,
        plan.table,
        plan.num_groups,
        plan.max_heads,
        plan.max_neurons,
        plan.max_seqlen,
        SIZE**-0.5,
        1e-5,
        2,
    )
    kept = x.clone()
    theirs = (same.double() - exact).abs()
    for isa in every_isa:
        assert NATIVE is not None
        NATIVE.set_cpu_isa(isa)
        found = dk.elastic_encoder_int8(strided_rows(x), layers, borders, plan, **options)
        ours = (found.double() - exact).abs()
        floor = 5e-3 if dtype == torch.float32 else 2e-2  # a few steps of an inner activation
        assert float(ours.max()) <= 2 * float(theirs.max()) + floor, isa
        assert float(ours.mean()) <= 2 * float(theirs.mean()) + floor / 25, isa
    assert torch.equal(x, kept)


@native
@pytest.mark.parametrize("name", PLANS)
def test_near_the_network_in_float32(name: str) -> None:
    x, borders, plan = batch(name, torch.float32)
    wanted = dk.elastic_encoder(x, network(torch.float32), borders, plan)
    found = dk.elastic_encoder_int8(x, quantised(torch.float32), borders, plan)
    assert float((found - wanted).norm()) <= 0.03 * float(wanted.norm())


@native
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_beyond_the_width_is_not_read(dtype: torch.dtype) -> None:
    """Packed numbers of other heads and neurons may be anything; so may their scales and biases."""
    x, borders, plan = batch("narrow", dtype)
    layers = quantised(dtype)
    wanted = dk.elastic_encoder_int8(x, layers, borders, plan)
    heads, neurons = PLANS["narrow"][0][0].heads, PLANS["narrow"][0][0].neurons
    for layer, k, f in zip(layers, heads, neurons, strict=True):
        for part, first in ((layer.qkv, k * 3 * SIZE), (layer.ffn_in, f)):
            part.bias.view(-1)[first:] = float("nan")
            part.scale[:, first:] = float("nan")
            for output in range(first, part.weight.shape[0] * 32):
                part.weight[output // 32, :, :, output % 32] = -128
        layer.attention.weight[:, k:] = -128
        layer.attention.scale[k:] = float("nan")
        layer.ffn_out.weight[:, -(-f // NEURON_CHUNK) :] = -128
    assert torch.equal(dk.elastic_encoder_int8(x, layers, borders, plan), wanted)


@native
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_sub_network_in_a_batch_is_the_one_alone(dtype: torch.dtype) -> None:
    """Bit for bit, and whatever the number of threads."""
    x, borders, plan = batch("mixed", dtype)
    layers, together = quantised(dtype), None
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found = dk.elastic_encoder_int8(x, layers, borders, plan)
            assert together is None or torch.equal(found, together)
            together = found
    finally:
        torch.set_num_threads(threads)
    assert together is not None
    shapes, lengths, _ = PLANS["mixed"]
    start = 0
    for shape, group in zip(shapes, lengths, strict=True):
        rows = slice(start, start + sum(group))
        start = rows.stop
        cuts = torch.tensor([0, *group]).cumsum(0).to(torch.int32)
        alone = dk.elastic_encoder_int8(x[rows], layers, cuts, dk.Plan.build([shape], [group]))
        assert torch.equal(alone, together[rows])


@native
def test_widths_that_end_in_different_blocks_of_chunks() -> None:
    """More neurons than are worked off at once, beside groups that have fewer, in one product."""
    lengths, neurons = [[30], [9, 4], [17], [5]], (2600, 200, 1100, 2048)
    layer = dk.quantise_layer(one_layer(2, 12, 24, 2600))
    shapes = [SubnetShape((2,), (count,)) for count in neurons]
    plan = dk.Plan.build(shapes, lengths)
    borders = torch.tensor([0, *(n for group in lengths for n in group)]).cumsum(0).to(torch.int32)
    x = torch.randn(plan.num_rows, 24, generator=torch.Generator().manual_seed(6))
    together = dk.elastic_encoder_int8(x, [layer], borders, plan)
    with dk.use_provider("reference"):
        wanted = dk.elastic_encoder_int8(x, [layer], borders, plan)
    torch.testing.assert_close(together, wanted, rtol=0, atol=5e-3)
    start = 0
    for shape, group in zip(shapes, lengths, strict=True):
        rows = slice(start, start + sum(group))
        start = rows.stop
        cuts = torch.tensor([0, *group]).cumsum(0).to(torch.int32)
        alone = dk.elastic_encoder_int8(x[rows], [layer], cuts, dk.Plan.build([shape], [group]))
        assert torch.equal(alone, together[rows])


@native
def test_rows_of_no_group_are_zero() -> None:
    x, borders, plan = batch("unsorted, an empty group, rows of no group", torch.float32)
    found = dk.elastic_encoder_int8(x, quantised(torch.float32), borders, plan)
    assert found[:16].isfinite().all()
    assert not found[16:].any()


def test_the_ops_hold_to_pytorchs_rules() -> None:
    x, borders, plan = batch("mixed", torch.float32)
    flat = [tensor for layer in quantised(torch.float32) for tensor in layer.tensors()]
    bounds = list(plan.max_heads), list(plan.max_neurons)
    given = (x, flat, [], borders, plan.table, plan.num_groups, *bounds, plan.max_seqlen, 0.5, 1e-12, 1)
    torch.library.opcheck(torch.ops.dynabert.elastic_encoder_int8.default, given)
    packed = pack_linear(torch.randn(8, WIDTH), torch.randn(8), WIDTH)
    torch.library.opcheck(torch.ops.dynabert.int8_linear.default, (x, *packed, WIDTH, 5, 20, 1))


def test_refusals() -> None:
    x, borders, plan = batch("mixed", torch.float32)
    layers = quantised(torch.float32)
    with pytest.raises(ValueError, match="elastic_encoder_int8: 2 layers given and the plan has 3; allowed: as many"):
        dk.elastic_encoder_int8(x, layers[:2], borders, plan)
    with pytest.raises(ValueError, match="1 position biases for 3 layers; allowed: one a layer, or none"):
        dk.elastic_encoder_int8(x, layers, borders, plan, position_biases=biases(plan, torch.float32)[:1])
    with pytest.raises(ValueError, match="the plan has 17 rows and x 16"):
        dk.elastic_encoder_int8(x[:-1], layers, borders, plan)
    with pytest.raises(ValueError, match="activation is 'silu'; allowed: "):
        dk.elastic_encoder_int8(x, layers, borders, plan, activation="silu")
    with pytest.raises(TypeError, match=r"x is torch\.float64; allowed: float32, bfloat16"):
        dk.elastic_encoder_int8(x.double(), layers, borders, plan)
    with pytest.raises(RuntimeError, match=r"it has no backward; run it under torch\.no_grad\(\)"):
        dk.elastic_encoder_int8(x.requires_grad_(), layers, borders, plan)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_dtype_that_does_not_fit(provider: str) -> None:
    x, borders, plan = batch("mixed", torch.float32)
    layers, position = quantised(torch.float32), biases(plan, torch.float32)
    wide = layers[1]._replace(attention=layers[1].attention._replace(offset=layers[1].attention.offset.long()))
    with dk.use_provider(provider):
        with pytest.raises(TypeError, match=r"qkv_bias of layer 0 is torch.float32, x is torch.bfloat16; allowed"):
            dk.elastic_encoder_int8(x.bfloat16(), layers, borders, plan)
        with pytest.raises(TypeError, match=r"attention_offset of layer 1 is torch.int64, .*; allowed: torch.int32"):
            dk.elastic_encoder_int8(x, [layers[0], wide, layers[2]], borders, plan)
        with pytest.raises(TypeError, match=r"cu_seqlens is torch.int64; allowed: torch.int32"):
            dk.elastic_encoder_int8(x, layers, borders.long(), plan)
        with pytest.raises(TypeError, match=r"a position bias is torch.float64; allowed: torch.float32"):
            dk.elastic_encoder_int8(x, layers, borders, plan, position_biases=[*position[:2], position[2].double()])


@native
@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("qkv", {"scale": torch.zeros(1, 192, dtype=torch.float64)}, "qkv_scale of layer 0 is torch.float64"),
        ("qkv", {"bias": torch.zeros(2, 3, SIZE)}, "max_heads is 4; allowed: 0 to qkv_bias's 2 heads"),
        ("attention", {"weight": torch.zeros(1, 2, 4, 32, 4, dtype=torch.int8)}, "attention_weight has shape"),
        ("ffn_in", {"bias": torch.zeros(40, dtype=torch.bfloat16)}, "ffn_in_bias of layer 0 is torch.bfloat16"),
        ("ffn_out", {"offset": torch.zeros(1, 31, dtype=torch.int32)}, "ffn_out_offset has shape"),
    ],
)
def test_a_weight_that_does_not_fit_is_named(part: str, change: dict[str, Tensor], told: str) -> None:
    x, borders, plan = batch("whole", torch.float32)
    layers = quantised(torch.float32)
    layers[0] = layers[0]._replace(**{part: getattr(layers[0], part)._replace(**change)})
    with pytest.raises((ValueError, TypeError, RuntimeError), match=told):
        dk.elastic_encoder_int8(x, layers, borders, plan)


def test_the_shapes_of_this_file() -> None:
    """What the plans of the other file ask for is what is quantised here."""
    assert [layer.qkv.bias.shape[0] for layer in quantised(torch.float32)] == list(HEADS)
    assert [layer.ffn_in.bias.shape[0] for layer in quantised(torch.float32)] == list(NEURONS)
