"""Products of bfloat16 through tile registers: the processor's, and the emulation that other machines test with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from tests.kernels.cpu_isas import (
    ISAS,
    cpu_op,
    double,
    int32,
    one_thread,  # noqa: F401
    strided,
    using_isa,
)
from tests.kernels.test_cpu_attention_backward import arguments_of, on_cpu
from tests.kernels.test_cpu_attention_backward import check as check_attention
from tests.kernels.test_cpu_elastic_linear import GELU, NONE

TILES = ["amx", "amx-emulated"] if "amx" in ISAS else [isa for isa in ISAS if isa == "amx-emulated"]
pytestmark = pytest.mark.skipif(
    not TILES, reason="no AVX-512 with dot products of bfloat16 and bytes: nothing to emulate with"
)
needs_processor = pytest.mark.skipif("amx" not in ISAS, reason="this processor has no tile registers")
each_tiles = pytest.mark.parametrize("isa", TILES)

ROWS = [1, 15, 16, 17, 31, 32, 33, 100]
WIDTHS = [(16, 32), (32, 64), (33, 65), (48, 96), (70, 31), (96, 128)]  # outputs, inputs

MIXED = {
    # rows of each group; outputs; inputs
    "whole tiles": ([40, 64, 33], [96, 64, 32], [128, 64, 96]),
    "odd inputs": ([17, 5, 40], [70, 33, 1], [65, 31, 97]),
    "one row each": ([1, 1, 1], [96, 48, 16], [32, 64, 128]),
}


def forward_arguments(
    rows: list[int], outputs: list[int], inputs: list[int], activation: int = GELU
) -> tuple[Any, ...]:
    torch.manual_seed(0)
    total, n, k = sum(rows), max(outputs), max(inputs)
    x = strided(torch.randn(total, k).bfloat16())
    weight = strided((torch.randn(n, k) / k**0.5).bfloat16())
    borders = torch.tensor([0, *rows]).cumsum(0).to(torch.int32)
    bias, residual = torch.randn(n).bfloat16(), torch.randn(total, n).bfloat16()
    return (x, weight, bias, residual, borders, int32(*outputs), int32(*inputs), 1, 1, n, k, activation, True)


def backward_arguments(
    rows: list[int], outputs: list[int], inputs: list[int], activation: int = GELU
) -> tuple[Any, ...]:
    x, weight, _, residual, *rest = forward_arguments(rows, outputs, inputs, activation)[:11]
    pre = torch.randn_like(residual) if activation != NONE else torch.empty(0, dtype=x.dtype)
    return (strided(residual), x, weight, pre, *rest, activation, True)


def both(op: str, arguments: tuple[Any, ...], factor: float, isa: str) -> tuple[Tensor, ...]:
    """The op's results, after they were held against float64."""
    with using_isa(isa):
        found = cpu_op(op)(*arguments)
    definition = getattr(reference, op)
    wanted, yardstick = definition(*double(arguments)), definition(*arguments)
    for one, two, three in zip(found, wanted, yardstick, strict=True):
        assert_close_to_float64(one, two, three, factor=factor)
    return tuple(found)


@each_tiles
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_every_edge_of_a_tile(rows: int, widths: tuple[int, int], isa: str) -> None:
    both("elastic_linear_fwd", forward_arguments([rows], [widths[0]], [widths[1]]), 2.0, isa)
    both("elastic_linear_bwd", backward_arguments([rows], [widths[0]], [widths[1]]), 3.0, isa)


@each_tiles
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("activation", [NONE, GELU])
def test_several_widths(name: str, activation: int, isa: str) -> None:
    both("elastic_linear_fwd", forward_arguments(*MIXED[name], activation), 2.0, isa)
    both("elastic_linear_bwd", backward_arguments(*MIXED[name], activation), 3.0, isa)


@each_tiles
def test_many_rows_are_summed_in_chunks(isa: str) -> None:
    """More rows than a chunk holds, and several panels of sums at once."""
    both("elastic_linear_bwd", backward_arguments([1500, 777], [70, 40], [100, 33], NONE), 3.0, isa)


@needs_processor
@pytest.mark.parametrize("name", MIXED)
def test_the_emulation_gives_the_processors_numbers(name: str) -> None:
    for op, arguments in (
        ("elastic_linear_fwd", forward_arguments(*MIXED[name])),
        ("elastic_linear_bwd", backward_arguments(*MIXED[name])),
    ):
        with using_isa("amx"):
            wanted = cpu_op(op)(*arguments)
        with using_isa("amx-emulated"):
            found = cpu_op(op)(*arguments)
        for one, two in zip(found, wanted, strict=True):
            assert torch.equal(one, two)


ATTENTION = {
    # lengths of the sequences, heads, head size, what else
    "a block of keys": ([128, 32], 2, 64, {}),
    "ends inside tiles": ([129, 17, 1, 40], 3, 32, {}),
    "an odd head, with a bias": ([150, 33], 2, 29, {"bias": True}),
    "dropout and a bias": ([70, 31, 130], 2, 64, {"bias": True, "dropout": 0.2}),
    "a wide head": ([47, 200], 1, 130, {}),
}


@each_tiles
@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str, isa: str) -> None:
    """Forward and backward against float64."""
    lengths, heads, size, more = ATTENTION[name]
    check_attention(arguments_of(lengths, heads, size, torch.bfloat16, **more), isa)


@needs_processor
@pytest.mark.parametrize("name", ATTENTION)
def test_the_emulation_gives_the_processors_attention(name: str) -> None:
    lengths, heads, size, more = ATTENTION[name]
    arguments = arguments_of(lengths, heads, size, torch.bfloat16, **more)
    with using_isa("amx"):
        wanted = on_cpu(arguments)
    with using_isa("amx-emulated"):
        found = on_cpu(arguments)
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one, two)


@needs_processor
def test_the_emulation_has_no_subnormal_numbers_either() -> None:
    """Products on both sides of the smallest normal number, and factors that are none."""
    arguments = list(forward_arguments([40], [48], [65], NONE))
    arguments[0], arguments[1] = arguments[0] * 2.0**-60, arguments[1] * 2.0**-65
    arguments[0][:, ::5] *= 2.0**-70  # subnormal
    arguments[1][::3] *= 2.0**63
    arguments[2] = arguments[3] = None
    found = []
    for isa in ("amx", "amx-emulated"):
        with using_isa(isa):
            found.append(cpu_op("elastic_linear_fwd")(*arguments)[0])
    assert (found[0] == 0).any()
    assert found[0].abs().max() > 0
    assert torch.equal(found[1], found[0])


@each_tiles
def test_an_infinite_weight_past_the_width_is_not_met(isa: str) -> None:
    """Widths that end inside a tile: the numbers behind them are multiplied by nothing, not by 0."""
    rows, outputs, inputs = [40, 24], [60, 41], [75, 33]
    arguments = list(forward_arguments(rows, outputs, inputs))
    gradients = list(backward_arguments(rows, outputs, inputs))
    with using_isa(isa):
        wanted = cpu_op("elastic_linear_fwd")(*arguments)[0]
        dx = cpu_op("elastic_linear_bwd")(*gradients)[0]
        for each in (arguments, gradients):
            weight = each[1] if each is arguments else each[2]
            wide = torch.full((weight.shape[0] + 40, weight.shape[1] + 40), float("inf"), dtype=weight.dtype)
            wide[: weight.shape[0], : weight.shape[1]] = weight
            each[1 if each is arguments else 2] = wide[: weight.shape[0], : weight.shape[1]]
        assert torch.equal(cpu_op("elastic_linear_fwd")(*arguments)[0], wanted)
        assert torch.equal(cpu_op("elastic_linear_bwd")(*gradients)[0], dx)
        # The second group's rows alone may not see what only the first group uses.
        arguments[1][:, inputs[1] :] = float("inf")
        arguments[1][outputs[1] :] = float("inf")
        found = cpu_op("elastic_linear_fwd")(*arguments)[0]
    assert torch.equal(found[rows[0] :, : outputs[1]], wanted[rows[0] :, : outputs[1]])


@each_tiles
def test_a_row_is_what_it_is_alone(isa: str) -> None:
    x, weight, bias, residual, _, _, _, *rest = forward_arguments([100], [96], [160])
    with using_isa(isa):
        together = cpu_op("elastic_linear_fwd")(x, weight, bias, residual, int32(0, 100), None, None, *rest)[0]
        for first, last in ((0, 1), (5, 22), (64, 100)):
            alone = cpu_op("elastic_linear_fwd")(
                x[first:last], weight, bias, residual[first:last], int32(0, last - first), None, None, *rest
            )[0]
            assert torch.equal(alone, together[first:last])


@each_tiles
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int, isa: str) -> None:
    arguments, gradients = forward_arguments(*MIXED["odd inputs"]), backward_arguments(*MIXED["odd inputs"])
    with using_isa(isa):
        wanted = (*cpu_op("elastic_linear_fwd")(*arguments), *cpu_op("elastic_linear_bwd")(*gradients))
        torch.set_num_threads(threads)
        found = (*cpu_op("elastic_linear_fwd")(*arguments), *cpu_op("elastic_linear_bwd")(*gradients))
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one, two)


@needs_processor
def test_pytorchs_own_products_between_ours() -> None:
    """Its library sets the tiles' shapes for itself; neither may find the other's."""
    arguments = forward_arguments([100], [96], [160])
    a, b = torch.randn(70, 96).bfloat16(), torch.randn(50, 96).bfloat16()
    with using_isa("amx"):
        ours, theirs = cpu_op("elastic_linear_fwd")(*arguments)[0], torch.nn.functional.linear(a, b)
        for _ in range(5):
            assert torch.equal(torch.nn.functional.linear(a, b), theirs)
            assert torch.equal(cpu_op("elastic_linear_fwd")(*arguments)[0], ours)


@each_tiles
@pytest.mark.parametrize("name", MIXED)
def test_packed_weights_give_the_numbers_of_plain_ones(name: str, isa: str) -> None:
    """Plain weights are the left side of a product, or are turned where there are many rows; packed ones the right."""
    drawn = torch.Generator().manual_seed(3)
    size, heads, neurons = 96, 3, 200

    def some(*sizes: int) -> Tensor:
        return (torch.randn(*sizes, generator=drawn) * 0.2).bfloat16()

    attention = some(heads, 3, 32, size), some(heads, 3, 32), some(size, heads * 32), some(size)
    ffn = some(neurons, size), some(neurons), some(size, neurons), some(size)
    layer = dk.LayerWeights(*attention, some(size) + 1, some(size), *ffn, some(size) + 1, some(size))
    lengths = [[rows, 1] for rows in MIXED[name][0]]
    shapes = [dk.SubnetShape((h,), (f,)) for h, f in ((3, 200), (2, 96), (1, 34))]
    plan = dk.Plan.build(shapes, lengths)
    borders = torch.tensor([0, *(n for group in lengths for n in group)]).cumsum(0).to(torch.int32)
    x = torch.randn(plan.num_rows, size, generator=drawn).bfloat16()
    with using_isa(isa):
        assert dk.packed_panel(torch.bfloat16) == 16
        wanted = dk.elastic_encoder(x, [layer], borders, plan)
        assert torch.equal(dk.elastic_encoder(x, [dk.pack_layer(layer)], borders, plan), wanted)
        with dk.use_provider("reference"):
            defined = dk.elastic_encoder(x, [layer], borders, plan)
    torch.testing.assert_close(wanted, defined, rtol=0, atol=0.1)
