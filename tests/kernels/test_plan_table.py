"""``plan_table`` and ``plan_on_device``: what ``Plan.build`` makes, made from numbers on the device."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.ops import providers
from dynabert_kernels.testing import offline_nvcc
from dynabert_kernels.testing.inputs import poisoned_allocations
from tests.kernels.cases import Network
from tests.kernels.host_shim import build as host_shim

NVCC = offline_nvcc.find_nvcc()
Numbers = tuple[Tensor, Tensor, Tensor, Tensor]
PROVIDERS = ("reference", "cpu", "cuda")


def _device(provider: str) -> str:
    """Where the provider computes, or a skip that says why it cannot."""
    if provider not in providers.registered()["plan_table"]:
        pytest.skip(f"the native library was built without the provider {provider}")
    if provider == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda" if provider == "cuda" else "cpu"


def _numbers(shapes: list[dk.SubnetShape], lengths: list[list[int]], device: str = "cpu", unused: int = 0) -> Numbers:
    """The same as tensors; ``unused`` places for sequences stay empty."""

    def int32(numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    return (
        int32([length for group in lengths for length in group] + [0] * unused),
        int32([len(group) for group in lengths]),
        int32([shape.heads for shape in shapes]),
        int32([shape.neurons for shape in shapes]),
    )


def _random_plan(seed: int) -> tuple[list[dk.SubnetShape], list[list[int]]]:
    draw = random.Random(seed)
    layers = draw.randint(1, 4)
    shapes, lengths = [], []
    for _ in range(draw.randint(1, 6)):
        heads = [draw.choice([0, 1, 3, 12]) for _ in range(layers)]
        shapes.append(dk.SubnetShape(tuple(heads), tuple(64 * count for count in heads)))
        lengths.append([draw.randint(1, 300) for _ in range(draw.choice([0, 1, 2, 40]))])
    return shapes, lengths


SHAPE = dk.SubnetShape((4, 0, 2), (12, 0, 6))
CASES: dict[str, tuple[list[dk.SubnetShape], list[list[int]]]] = {
    "one token": ([SHAPE], [[1]]),
    "no sequences": ([SHAPE], [[]]),
    "empty groups": ([SHAPE, SHAPE, SHAPE], [[], [3, 4], []]),
    "more sequences than a block has threads": ([SHAPE, SHAPE], [[2] * 300, [5] * 701]),
    "more groups than a block has threads": ([SHAPE] * 300, [[3]] * 300),
    **{f"random {seed}": _random_plan(seed) for seed in range(30)},
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", CASES)
def test_is_what_plan_build_makes(provider: str, name: str) -> None:
    shapes, lengths = CASES[name]
    device = _device(provider)
    want = dk.Plan.build(shapes, lengths)
    flat = [length for group in lengths for length in group]
    with dk.use_provider(provider), poisoned_allocations():
        for unused in (0, 3):
            table, cu_seqlens = dk.plan_table(*_numbers(shapes, lengths, device, unused))
            assert table.dtype == cu_seqlens.dtype == torch.int32
            assert torch.equal(table.cpu(), want.table)
            borders = torch.tensor([0, *flat, *[0] * unused]).cumsum(0)
            assert cu_seqlens.tolist() == borders.tolist()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_sequences_past_the_last_group_belong_to_none(provider: str) -> None:
    device = _device(provider)
    seqlens, sizes, heads, neurons = _numbers([SHAPE, SHAPE], [[5, 2], [3]], device)
    longer = torch.cat([seqlens, torch.tensor([7, 9], dtype=torch.int32, device=device)])
    with dk.use_provider(provider):
        table, cu_seqlens = dk.plan_table(longer, sizes, heads, neurons)
    assert table[:3].tolist() == [0, 7, 10]
    assert cu_seqlens.tolist() == [0, 5, 7, 10, 17, 26]


def test_the_definition_reads_nothing_outside_whatever_the_sizes_say() -> None:
    _, _, heads, neurons = _numbers([SHAPE, SHAPE, SHAPE], [[1], [1], [1]])
    seqlens = torch.tensor([4, 5], dtype=torch.int32)
    table, _ = reference.plan_table(seqlens, torch.tensor([-3, 4, 1000000], dtype=torch.int32), heads, neurons)
    assert table[:4].tolist() == [0, 0, 4, 9]


def test_a_plan_from_the_device_computes_what_a_built_one_does() -> None:
    # Bounds are wider than what comes: zeros and padding must not show.
    network = Network(width=16, heads=4, size=4, neurons=12, dtype=torch.float32)
    torch.manual_seed(0)
    shapes = [dk.SubnetShape((2, 0), (6, 0)), dk.SubnetShape((1, 1), (3, 3)), dk.SubnetShape((0, 2), (0, 5))]
    lengths = [[5, 2], [4], [3]]
    built = dk.Plan.build(shapes, lengths)
    plan, borders = dk.plan_on_device(
        *_numbers(shapes, lengths, unused=2), bounds=dk.SubnetShape((4, 3), (12, 9)), max_seqlen=9, num_rows=20
    )
    assert (plan.num_groups, plan.max_heads, plan.max_neurons) == (3, (4, 3), (12, 9))
    assert (plan.num_layers, plan.max_seqlen, plan.num_rows) == (2, 9, 20)
    attention, ffn = network.attention(), network.ffn()
    own = torch.tensor([0, *[n for group in lengths for n in group]]).cumsum(0).to(torch.int32)
    x = network.tensor(20, 16)
    x[built.num_rows :] = float("nan")
    for index in range(2):
        y = dk.elastic_attention(x, *attention, borders, plan.layer(index), max_seqlen=plan.max_seqlen)
        y = dk.elastic_ffn(y, *ffn, plan.layer(index))
        want = dk.elastic_attention(
            x[: built.num_rows], *attention, own, built.layer(index), max_seqlen=built.max_seqlen
        )
        want = dk.elastic_ffn(want, *ffn, built.layer(index))
        torch.testing.assert_close(y[: built.num_rows], want)
        assert not y[built.num_rows :].any()


@pytest.mark.parametrize("provider", ["reference", "cpu"])
def test_opcheck(provider: str) -> None:
    _device(provider)
    shapes, lengths = CASES["empty groups"]
    with dk.use_provider(provider):
        torch.library.opcheck(torch.ops.dynabert.plan_table.default, _numbers(shapes, lengths))


def test_compiles_whole_and_once_for_all_plans() -> None:
    torch._dynamo.reset()
    compiles = 0

    def counting_backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        nonlocal compiles
        compiles += 1
        return graph.forward

    def rows_of(*numbers: Tensor) -> Tensor:
        plan, _ = dk.plan_on_device(*numbers, bounds=dk.SubnetShape((4, 4, 4), (12, 12, 12)), max_seqlen=9, num_rows=64)
        return plan.layer(2).heads + plan.rows[1:]

    compiled = torch.compile(rows_of, backend=counting_backend, fullgraph=True)
    for lengths in ([[3, 2], [4]], [[9, 1], [2]], [[1, 1], [1]]):
        numbers = _numbers([SHAPE, SHAPE], lengths)
        assert torch.equal(compiled(*numbers), rows_of(*numbers))
    assert compiles == 1
    torch._dynamo.reset()


def test_a_captured_graph_takes_new_lengths_and_widths() -> None:
    _device("cuda")
    shapes, lengths = [SHAPE, SHAPE], [[3, 2], [4]]
    numbers = _numbers(shapes, lengths, "cuda")
    dk.plan_table(*numbers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        table, cu_seqlens = dk.plan_table(*numbers)
    other = [dk.SubnetShape((1, 2, 3), (4, 5, 6)), SHAPE]
    for static, new in zip(numbers, _numbers(other, [[7, 1], [6]], "cuda"), strict=True):
        static.copy_(new)
    graph.replay()
    assert torch.equal(table.cpu(), dk.Plan.build(other, [[7, 1], [6]]).table)
    assert cu_seqlens.tolist() == [0, 7, 8, 14]


# Errors.

GOOD = dict(zip(("seqlens", "group_sizes", "heads", "neurons"), _numbers([SHAPE, SHAPE], [[5, 2], [3]]), strict=True))
BOUNDS: dict[str, Any] = {"bounds": SHAPE, "max_seqlen": 5, "num_rows": 10}


def _int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def _edited(name: str, place: tuple[int, ...], value: int) -> dict[str, Tensor]:
    changed = GOOD[name].clone()
    changed[place] = value
    return {name: changed}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seqlens": [1]}, TypeError, "seqlens must be a tensor (B,); got list"),
        ({"seqlens": _int32(5, 2, 3).long()}, TypeError, "seqlens is torch.int64; allowed: torch.int32"),
        ({"group_sizes": _int32()}, ValueError, "no group given; give at least one"),
        ({"group_sizes": torch.zeros(2, 1).int()}, ValueError, "group_sizes must be a tensor of one dimension"),
        ({"heads": torch.zeros(3, 3).int()}, ValueError, "heads has shape (3, 3); allowed: (G, L) = (2, any)"),
        ({"neurons": torch.zeros(2, 4).int()}, ValueError, "neurons has shape (2, 4); allowed: (G, L) = (2, 3)"),
        ({"neurons": torch.zeros(2, 3)}, TypeError, "neurons is torch.float32; allowed: torch.int32"),
        ({"heads": torch.zeros(3, 2).int().t()}, ValueError, "heads has strides (1, 2); allowed: contiguous"),
        ({"heads": torch.zeros(2, 3, device="meta").int()}, ValueError, "heads is on meta, seqlens on cpu"),
    ],
)
def test_errors_of_every_provider(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(f"plan_table: {message}")):
        dk.plan_table(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_edited("seqlens", (1,), -2), "seqlens[1] is -2; allowed: 0 or more"),
        ({"seqlens": _int32(2**30, 2**30, 1)}, "seqlens reach 2147483648 tokens at sequence 1"),
        (_edited("group_sizes", (0,), -1), "group_sizes[0] is -1; allowed: 0 or more"),
        (_edited("group_sizes", (1,), 2), "group_sizes reach 4 sequences at group 1; allowed: up to seqlens' 3"),
        (_edited("heads", (1, 0), 0), "group 1 has 0 heads and 12 neurons in layer 0; allowed: 1 or more of both"),
        (_edited("neurons", (0, 2), -1), "group 0 has 2 heads and -1 neurons in layer 2"),
    ],
)
def test_the_cpu_checks_the_numbers(change: dict[str, Any], message: str) -> None:
    _device("cpu")
    with dk.use_provider("cpu"), pytest.raises(ValueError, match=re.escape(f"plan_table: {message}")):
        dk.plan_table(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bounds": ((4, 0, 2), (12, 0, 6))}, TypeError, "bounds must be a SubnetShape; got tuple"),
        ({"bounds": dk.SubnetShape((4,), (12,))}, ValueError, "bounds has 1 layers, heads has 3"),
        ({"max_seqlen": -1}, ValueError, "max_seqlen is -1; allowed: 0 to 2147483647"),
        ({"num_rows": 2**31}, ValueError, "num_rows is 2147483648; allowed: 0 to 2147483647"),
    ],
)
def test_errors_of_the_bounds(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(f"plan_on_device: {message}")):
        dk.plan_on_device(**GOOD, **{**BOUNDS, **change})


# The device code on the CPU, and the machine code.


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("host_shim")

    def built(sanitizer: str) -> Path:
        reason = host_shim.why_not(sanitizer, folder)
        if reason is not None:
            pytest.skip(reason)
        return host_shim.build("plan_table", sanitizer, folder)

    return built


def test_device_code_is_right_and_stays_in_its_memory(program: Callable[[str], Path]) -> None:
    path = program("memory")
    done = host_shim.run(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 6
    done = host_shim.run(path, "--plant", "places-not-used")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def test_device_code_has_no_races_and_each_barrier_is_needed(program: Callable[[str], Path]) -> None:
    path = program("races")
    done = host_shim.run(path)
    assert done.returncode == 0, done.stdout + done.stderr
    sites = [line.split()[1] for line in host_shim.run(path, "--sites").stdout.splitlines() if line.startswith("site")]
    assert len(sites) == 2
    for site in sites:
        done = host_shim.run(path, "--drop", site, "places-not-used")
        assert done.returncode == 66, f"{site}: {done.stdout}"
        assert "data race" in done.stderr, site


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH and neither CUDA_HOME nor CUDA_PATH holds one")
def test_machine_code_does_not_spill() -> None:
    builds = offline_nvcc.builds_of(offline_nvcc.SOURCES / "cuda" / "plan_table.cu", "sm_90a", str(NVCC))
    assert [build.kernel for build in builds] == ["plan_table_kernel"]
    assert builds[0].faults == []
