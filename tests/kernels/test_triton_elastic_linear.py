"""The Triton provider of ``elastic_linear``: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from dynabert_kernels.testing.inputs import DTYPES, poison, poisoned_allocations, strided_rows
from dynabert_kernels.triton import ragged_gemm
from dynabert_kernels.triton.activations import activate, activation_slope
from dynabert_kernels.triton.elastic_linear import elastic_linear_bwd, elastic_linear_fwd, supports
from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED, jit, tl
from dynabert_kernels.triton.ragged_gemm import ragged_input_gradient, ragged_linear
from dynabert_kernels.triton.ragged_sums import gradient_and_sums, ragged_weight_gradient
from dynabert_kernels.triton.row_tiles import Widths, count_tiles, find_tile, row_tile_bound
from dynabert_kernels.triton.tiles import GEMM_TILES, WEIGHT_GRADIENT_TILES
from tests.kernels.cases import PLANS

DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
NONE, GELU, GELU_TANH, RELU = range(4)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
interpreted_only = pytest.mark.skipif(not INTERPRETED, reason="float64 is for gradcheck; a GPU refuses it by name")

pytestmark = pytest.mark.skipif(
    IMPORT_ERROR is not None or not (INTERPRETED or torch.cuda.is_available()),
    reason=IMPORT_ERROR or "no CUDA device, and TRITON_INTERPRET is set to 0",
)


class Sample(NamedTuple):
    """Arguments of the op; what no row may reach holds NaN."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    rows: Tensor
    out_counts: Tensor | None
    in_counts: Tensor | None
    out_unit: int
    in_unit: int
    max_out: int
    max_in: int
    activation: int
    dy: Tensor

    @property
    def plan(self) -> tuple[Any, ...]:
        return self[4:12]


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def sample_of(
    lengths: list[int],
    outs: list[int] | None,
    ins: list[int] | None,
    dtype: torch.dtype,
    *,
    units: tuple[int, int] = (1, 1),
    bounds: tuple[int, int] | None = None,
    activation: int = NONE,
    residual: bool = True,
    dead_rows: int = 2,
    seed: int = 0,
) -> Sample:
    """Groups of the given lengths; bounds default to the widest group's. Tensors are larger than what is used."""
    generator = torch.Generator().manual_seed(seed)
    out_unit, in_unit = units
    widest = [max([0, *counts]) * unit for counts, unit in ((outs or [], out_unit), (ins or [], in_unit))]
    max_out, max_in = widest if bounds is None else bounds
    borders = [sum(lengths[:g]) for g in range(len(lengths) + 1)]
    num_rows = borders[-1] + dead_rows

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype).to(DEVICE)

    def active(columns: int, counts: list[int] | None, unit: int, most: int) -> Tensor:
        values = normal(num_rows, columns)
        poison(values[borders[-1] :])
        for g, (begin, end) in enumerate(pairwise(borders)):
            poison(values[begin:end, most if counts is None else counts[g] * unit :])
        return values

    return Sample(
        x=active(max_in + 2, ins, in_unit, max_in),
        weight=normal(max_out + 3, max_in + 5, scale=max(max_in, 1) ** -0.5),
        bias=normal(max_out + 3),
        residual=active(max_out + 1, outs, out_unit, max_out) if residual else None,
        rows=int32(*borders),
        out_counts=None if outs is None else int32(*outs),
        in_counts=None if ins is None else int32(*ins),
        out_unit=out_unit,
        in_unit=in_unit,
        max_out=max_out,
        max_in=max_in,
        activation=activation,
        dy=active(max_out, outs, out_unit, max_out),
    )


def results(sample: Sample, forward: Any = elastic_linear_fwd, backward: Any = elastic_linear_bwd) -> dict[str, Tensor]:
    """Everything a provider returns, from allocations that hold NaN."""
    x, weight, bias, residual = sample[:4]
    with poisoned_allocations():
        y, pre = forward(x, weight, bias, residual, *sample.plan, True)
        dx, dw, db = backward(sample.dy, x, weight, pre, *sample.plan, bias is not None)
    return {"y": y, "pre": pre, "dx": dx, "dw": dw, "db": db}


def check(sample: Sample, ours: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Result and every gradient err no more than PyTorch does in the same dtype."""
    ours = results(sample) if ours is None else ours
    doubled = Sample(*[v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in sample])
    functions = reference.elastic_linear_fwd, reference.elastic_linear_bwd
    exact, yardstick = results(doubled, *functions), results(sample, *functions)
    for name, value in ours.items():
        assert_close_to_float64(value, exact[name], yardstick[name], name=name)
    return ours


# name: lengths, out counts, in counts (units of 7 and 5 or of 16), and what the plan covers
MIXED: dict[str, tuple[list[int], list[int] | None, list[int] | None]] = {
    "widest first": ([5, 9, 3], [3, 2, 1], None),  # attention's qkv and FFN in
    "ragged reduction": ([5, 9, 3], None, [3, 2, 1]),  # attention out and FFN out
    "not sorted": ([3, 17, 2], [1, 3, 2], [2, 1, 3]),
    "nothing out": ([4, 2, 3], [3, 0, 2], [3, 2, 1]),
    "nothing in": ([4, 2, 3], [3, 2, 1], [3, 0, 2]),
    "an empty group": ([4, 0, 5], [3, 1, 3], [2, 3, 2]),
    "equal neighbours": ([4, 3, 6], [2, 2, 2], [3, 3, 3]),
    "all empty": ([0, 0], [1, 2], None),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in MIXED), *((n, d) for n in list(MIXED)[:2] for d in DTYPES[1:])],
    ids=lambda value: NAMES[value] if isinstance(value, torch.dtype) else value,
)
def test_widths_by_group(name: str, dtype: torch.dtype) -> None:
    lengths, outs, ins = MIXED[name]
    units = (7, 5) if dtype == torch.float32 else (16, 16)
    bounds = (3 * units[0], 3 * units[1])
    sample = sample_of(lengths, outs, ins, dtype, units=units, bounds=bounds, activation=GELU)
    ours = check(sample)
    assert (ours["y"][sum(lengths) :] == 0).all()


@pytest.mark.parametrize("name", PLANS)
def test_the_plans_of_all_ops(name: str) -> None:
    heads, lengths = PLANS[name]
    check(sample_of([sum(group) for group in lengths], heads, None, torch.float32, units=(9, 1), bounds=(36, 20)))


@each_dtype
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),  # nothing whole anywhere
        (16, 32, 32),  # whole tiles exactly
        (17, 33, 33),  # one past the tile in every direction
        (2, 8, 0),  # no inputs: the bias alone
        (2, 0, 8),  # no outputs
        (0, 8, 8),  # no rows
    ],
    ids=str,
)
def test_one_width(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, n, k = shape
    check(sample_of([rows], None, None, dtype, bounds=(n, k), dead_rows=0))


@each_dtype
@pytest.mark.parametrize("activation", [GELU_TANH, RELU], ids=["tanh", "relu"])
def test_activations(activation: int, dtype: torch.dtype) -> None:
    check(sample_of([7], [1], None, dtype, units=(20, 1), bounds=(20, 18), activation=activation))


@pytest.mark.parametrize("activation", [NONE, GELU])
def test_without_bias_and_residual(activation: int) -> None:
    sample = sample_of([7, 3], [2, 1], None, torch.float32, units=(8, 1), bounds=(16, 18), activation=activation)
    ours = check(sample._replace(bias=None, residual=None))
    assert ours["db"].shape == (0,)
    y, pre = elastic_linear_fwd(*sample[:4], *sample.plan, False)
    assert pre.shape == (0,)
    assert y.shape == (12, 16)


@interpreted_only
@pytest.mark.parametrize("activation", [GELU, GELU_TANH])
def test_float64_is_computed_in_float64(activation: int) -> None:
    check(sample_of([4, 6], [1, 2], [2, 1], torch.float64, units=(9, 17), activation=activation))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=NAMES.get)
def test_strided_rows_and_a_broadcast_gradient(dtype: torch.dtype) -> None:
    # The gaps hold NaN, and rows start at odd addresses.
    sample = sample_of([6, 5], [2, 1], [1, 2], dtype, units=(16, 16), activation=GELU)
    assert sample.residual is not None
    strided = sample._replace(
        x=strided_rows(sample.x, gap=3, offset=1),
        weight=strided_rows(sample.weight, gap=5, offset=3),
        residual=strided_rows(sample.residual, gap=8, offset=0),
        dy=sample.dy[:1].expand(sample.dy.shape),
    )
    check(strided)


@jit
def _activation_kernel(z_ptr: tl.tensor, y_ptr: tl.tensor, slope_ptr: tl.tensor, ACTIVATION: tl.constexpr) -> None:
    index = tl.arange(0, 1024)
    z = tl.load(z_ptr + index)
    tl.store(y_ptr + index, activate(z, ACTIVATION))
    tl.store(slope_ptr + index, activation_slope(z, ACTIVATION))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy's, of exp and of z^3
@pytest.mark.parametrize("activation", [NONE, GELU, GELU_TANH, RELU])
def test_activations_over_their_whole_range(activation: int) -> None:
    z = torch.linspace(-15, 15, 1024, device=DEVICE)
    z[:7] = torch.tensor([-1e30, -100.0, -1e-30, 0.0, 1e-30, 100.0, float("nan")])
    y, slope = torch.empty_like(z), torch.empty_like(z)
    _activation_kernel[(1,)](z, y, slope, activation)
    assert y[6].isnan()
    assert activation in (NONE, RELU) or slope[6].isnan()
    z[6] = y[6] = slope[6] = 0.0
    exact = reference.elastic_linear.activate(z.double(), activation)
    exact_slope = reference.elastic_linear.activate_bwd(torch.ones_like(z).double(), z.double(), activation)
    exact_slope[0] = {NONE: 1.0}.get(activation, 0.0)  # PyTorch's tanh-GELU has NaN there
    exact_slope[6] = slope[6]
    assert ((y.double() - exact).abs() <= 1.2e-7 * z.double().abs()).all()
    assert ((slope.double() - exact_slope).abs() <= 3e-7).all()


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[int], list[int] | None, list[int] | None]:
    groups = draw(st.integers(1, 4))

    def counts() -> list[int] | None:
        widths = st.lists(st.integers(0, 3), min_size=groups, max_size=groups)
        return draw(st.one_of(st.none(), widths))

    return draw(st.lists(st.integers(0, 20), min_size=groups, max_size=groups)), counts(), counts()


@settings(deadline=None, max_examples=5, derandomize=True)
@given(plan=plans(), units=st.tuples(st.integers(1, 17), st.integers(1, 17)), dead=st.integers(0, 3))
def test_any_plan(
    plan: tuple[list[int], list[int] | None, list[int] | None], units: tuple[int, int], dead: int
) -> None:
    sample = sample_of(*plan, torch.float32, units=units, bounds=(3 * units[0], 3 * units[1]), dead_rows=dead)
    check(sample)


def test_gradients_are_deterministic_and_rows_independent() -> None:
    sample = sample_of([20, 17], [2, 3], None, torch.float32, units=(11, 1), bounds=(33, 16), activation=GELU)
    first, second = results(sample), results(sample)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    # The second group alone: bit for bit, with the same tile.
    alone = elastic_linear_fwd(
        sample.x[20:37],
        sample.weight,
        sample.bias,
        sample.residual[20:37],
        int32(0, 17),
        int32(3),
        *sample.plan[2:],
        True,
    )
    assert torch.equal(alone[0], first["y"][20:37])


def test_sums_over_more_groups_than_one_step_of_the_scan() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, outs, ins = torch.randint(0, 4, (3, 36), generator=generator).tolist()
    sample = sample_of(lengths, outs, ins, torch.float32, units=(5, 6), bounds=(15, 18), residual=False)
    dw, db = torch.empty_like(sample.weight), torch.empty_like(sample.weight[:, 0])
    widths = Widths(*sample.plan[:-1])
    ragged_weight_gradient(sample.dy, sample.x, dw, widths)
    gradient_and_sums(sample.dy, None, None, db, widths._replace(in_counts=None))
    check(sample, {"dw": dw, "db": db})


def test_a_plan_that_does_not_fit_is_cut_at_the_bounds() -> None:
    # No foreign memory is read or written: the counts are device data, which no launcher can refuse.
    sample = sample_of([4, 5], [3, 2], [2, 3], torch.float32, units=(5, 6), dead_rows=0)
    cut = results(sample)
    plan = {"rows": int32(0, 4, 900), "out_counts": int32(300, 2), "in_counts": int32(2, 300)}
    for name, value in results(sample._replace(**plan)).items():
        assert torch.equal(value, cut[name]), name


# The tiles of the chips, and their way to load.


def test_descriptor_loads_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # 64 inputs are whole blocks and 49 are not; each group's last row tile is ragged.
    sample = sample_of([20, 18], [3, 2], [64, 49], torch.float16, units=(16, 1), activation=GELU)
    aligned = {
        name: torch.nn.functional.pad(getattr(sample, name), (0, 6 if name == "x" else 3)) for name in ("x", "weight")
    }
    sample = sample._replace(**aligned)
    used = []
    original = ragged_gemm.tensor_descriptor
    monkeypatch.setattr(ragged_gemm, "architecture", lambda _: "sm_90")
    monkeypatch.setattr(ragged_gemm, "tensor_descriptor", lambda *a: used.append(a) or original(*a))
    check(sample)
    assert len(used) == 4  # both operands of the forward product and of the input's gradient


@pytest.mark.skipif(not INTERPRETED, reason="a GPU runs its own tiles in every other test")
def test_the_largest_tiles_of_a_chip() -> None:
    sample = sample_of([130, 5], [2, 1], None, torch.float16, units=(72, 1), bounds=(144, 130), residual=False)
    widths = Widths(*sample.plan[:-1])
    tile, sums = GEMM_TILES["sm_90", 2][0], WEIGHT_GRADIENT_TILES["sm_80", 2][0]
    dx, dw = torch.empty_like(sample.x), torch.empty_like(sample.weight)
    y = poison(sample.x.new_empty(sample.x.shape[0], 144))
    ragged_linear(sample.x, sample.weight, sample.bias, None, y, None, widths, activation=0, zero_fill=True, tile=tile)
    ragged_input_gradient(
        sample.dy, sample.weight, None, None, dx, None, widths, activation=0, zero_fill=True, tile=tile
    )
    ragged_weight_gradient(sample.dy, sample.x, dw, widths, tile=sums)
    check(sample, {"y": y, "dx": dx, "dw": dw})


@jit
def _record_tiles_kernel(
    rows_ptr: tl.tensor,
    outs_ptr: tl.tensor,
    ins_ptr: tl.tensor,
    table_ptr: tl.tensor,
    total_ptr: tl.tensor,
    num_groups: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    ZERO_FILL: tl.constexpr,
) -> None:
    total = count_tiles(
        rows_ptr, outs_ptr, ins_ptr, num_groups, num_rows, num_columns, 1, 1, num_columns, 9, ZERO_FILL, 4, 8
    )
    tl.store(total_ptr, total)
    for tile in range(total):
        found = find_tile(
            tile, rows_ptr, outs_ptr, ins_ptr, num_groups, num_rows, num_columns, 1, 1, num_columns, 9, ZERO_FILL, 4, 8
        )
        for i in tl.static_range(7):
            tl.store(table_ptr + tile * 7 + i, found[i])


@pytest.mark.parametrize("zero_fill", [True, False], ids=["zeros", "active"])
def test_tiles_cover_each_active_entry_once(zero_fill: bool) -> None:
    # More groups than one step of the scan, and a group of more row tiles than a band.
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 2, (40,), generator=generator).tolist()
    lengths[35] = 37
    outs = torch.randint(0, 17, (40,), generator=generator).tolist()
    ins = torch.randint(0, 3, (40,), generator=generator).tolist()
    borders = [sum(lengths[:g]) for g in range(41)]
    num_rows = borders[-1] + 6
    bound = row_tile_bound(num_rows, 40, 4) * 2
    table, total = int32(*[-1] * (bound * 7)), int32(0)
    _record_tiles_kernel[(1,)](int32(*borders), int32(*outs), int32(*ins), table, total, 40, num_rows, 16, zero_fill)
    assert total.item() <= bound
    covered = torch.zeros(num_rows, 16, dtype=torch.int32)
    for group, begin, first, end, column, width, reduction in table.view(-1, 7)[: total.item()].tolist():
        assert group == 40 or (begin, width, reduction) == (borders[group], outs[group], ins[group])
        assert group < 40 or width == 0
        assert begin <= first < end <= min(first + 4, (*borders, num_rows)[group + 1])
        covered[first:end, column : column + 8] += 1
    wanted = torch.zeros_like(covered)
    for g, (begin, end) in enumerate(pairwise(borders)):
        wanted[begin:end, : -(-outs[g] // 8) * 8 if ins[g] > 0 else 0] = 1
    assert torch.equal(covered, torch.ones_like(covered) if zero_fill else wanted)


def test_a_row_tile_bound_is_enough() -> None:
    for block in (1, 4, 16):
        for lengths in ([1, 1, 1], [0, 0, 7], [16, 17, 1], [3], [0], [33, 0, 0, 31, 1]):
            for dead in (0, 1, 5):
                rows = sum(lengths) + dead
                if rows > 0:
                    assert sum(-(-n // block) for n in (*lengths, dead)) <= row_tile_bound(rows, len(lengths), block)


# Through the registered op.


@interpreted_only
def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, residual = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 2), (2, 2), (2,), (2, 2))
    )
    plan = {"rows": int32(0, 1, 2), "out_counts": int32(1, 2), "in_counts": int32(2, 1), "activation": "gelu"}
    with dk.use_provider("triton"):
        assert torch.autograd.gradcheck(lambda *a: dk.elastic_linear(*a, **plan), (x, weight, bias, residual))


def test_opcheck() -> None:
    sample = sample_of([2, 3], [2, 1], None, torch.float32, units=(3, 1), bounds=(6, 5), activation=GELU, dead_rows=0)
    tensors = [t.nan_to_num().requires_grad_() for t in sample[:4]]
    with dk.use_provider("triton"):
        torch.library.opcheck(torch.ops.dynabert.elastic_linear_fwd.default, (*tensors, *sample.plan, True))


# What it refuses.


def test_supports_names_what_it_refuses() -> None:
    sample = sample_of([4], [1], None, torch.float32, units=(8, 1), bounds=(8, 6))
    arguments = (*sample[:4], *sample.plan, True)
    assert supports(*arguments) is None
    turned = sample.weight.t().contiguous().t()
    assert "its last stride must be 1" in str(supports(sample.x, turned, *arguments[2:]))
    assert "dtype is torch.int32" in str(supports(sample.x.int(), *arguments[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(4)}, r"x has the wrong shape; got \(4,\); allowed: at least \(0, 6\)"),
        ({"x": torch.ones(4, 5)}, r"x has the wrong shape; got \(4, 5\); allowed: at least \(0, 6\)"),
        ({"weight": torch.ones(7, 6)}, r"weight has the wrong shape; got \(7, 6\); allowed: at least \(8, 6\)"),
        ({"weight": torch.ones(8, 6).half()}, r"weight does not fit; got torch.float16 on .*; convert it"),
        ({"weight": torch.ones(6, 8).t()}, r"the columns of weight do not lie side by side; got strides \(1, 8\)"),
        ({"bias": torch.ones(7)}, r"bias has the wrong shape; got \(7,\); allowed: \(8,\), that is N"),
        ({"residual": torch.ones(4, 7)}, r"residual has the wrong shape; got \(4, 7\); allowed: at least \(4, 8\)"),
        ({"rows": torch.tensor([0, 2, 4])}, r"rows does not fit; .*allowed: torch.int32"),
        (
            {"out_counts": torch.ones(1, dtype=torch.int32)},
            r"out_counts has the wrong shape; got \(1,\); allowed: \(2,\)",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_errors_of_the_launchers(change: dict[str, Tensor], message: str) -> None:
    good: dict[str, Any] = {
        "x": torch.ones(4, 6),
        "weight": torch.ones(8, 6),
        "bias": torch.ones(8),
        "residual": None,
        "rows": torch.tensor([0, 2, 4], dtype=torch.int32),
        "out_counts": torch.tensor([2, 1], dtype=torch.int32),
        "in_counts": None,
        "out_unit": 4,
        "in_unit": 1,
        "max_out": 8,
        "max_in": 6,
        "activation": 1,
    }
    arguments = {**good, **change}
    arguments = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=r"elastic_linear_fwd \(triton\): " + message):
        elastic_linear_fwd(*arguments.values(), True)
    x, weight, _, _, *plan = arguments.values()
    if change.keys() <= {"x", "weight", "rows", "out_counts"}:
        pre = torch.ones(4, 8, device=DEVICE)
        with pytest.raises(ValueError, match=r"elastic_linear_bwd \(triton\): " + message):
            elastic_linear_bwd(pre, x, weight, pre, *plan, True)
