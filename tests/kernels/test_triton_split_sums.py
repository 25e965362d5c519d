"""The end of a sub-layer with its reduction cut into pieces: on a GPU where there is one, else in the interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynabert_kernels import reference
from dynabert_kernels.testing.comparison import assert_close_to_float64
from dynabert_kernels.testing.inputs import DTYPES, poison, poisoned_allocations, strided_rows
from dynabert_kernels.triton.elastic_attention import elastic_attention_fwd
from dynabert_kernels.triton.elastic_ffn import elastic_ffn_fwd
from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED
from dynabert_kernels.triton.row_tiles import Widths
from dynabert_kernels.triton.split_sums import split_linear_layer_norm
from dynabert_kernels.triton.tiles import GEMM_TILES, split_count

DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
EPS = 1e-5

pytestmark = pytest.mark.skipif(
    IMPORT_ERROR is not None or not (INTERPRETED or torch.cuda.is_available()),
    reason=IMPORT_ERROR or "no CUDA device, and TRITON_INTERPRET is set to 0",
)


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def drawn(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(DEVICE, dtype)


def composed(a: Tensor, weight: Tensor, vectors: list[Tensor], x: Tensor, lengths: list[int], ins: list[int]) -> Tensor:
    """In plain PyTorch, each product rounded as its dtype rounds."""
    out_bias, ln_weight, ln_bias = vectors
    y, row = torch.zeros_like(x), 0
    for length, k in zip(lengths, ins, strict=True):
        here = slice(row, row + length)
        if k == 0:
            y[here] = x[here]
        else:
            h = x[here] + torch.nn.functional.linear(a[here, :k], weight[:, :k], out_bias)
            y[here] = torch.nn.functional.layer_norm(h, (x.shape[1],), ln_weight, ln_bias, EPS)
        row += length
    return y


def check(
    lengths: list[int], ins: list[int], width: int, splits: int, dtype: torch.dtype, dead_rows: int = 2
) -> Tensor:
    """Errs no more than PyTorch does in the same dtype; what lies past a row's reduction, and dead rows, are NaN."""
    torch.manual_seed(0)
    rows, most = sum(lengths) + dead_rows, max(ins)
    a, x = drawn(rows, most, dtype=dtype), drawn(rows, width, dtype=dtype)
    weight = drawn(width, most + 3, dtype=dtype, scale=most**-0.5)
    vectors = [drawn(width, dtype=dtype) for _ in range(3)]
    row = 0
    for length, k in zip(lengths, ins, strict=True):
        poison(a[row : row + length, k:])
        row += length
    poison(a[row:])
    poison(x[row:])
    borders = [sum(lengths[:g]) for g in range(len(lengths) + 1)]
    widths = Widths(int32(borders), None, int32(ins), 1, 1, width, most)
    with poisoned_allocations():
        ours = split_linear_layer_norm(a, weight, vectors[0], x, *vectors[1:], widths, EPS, splits)
    assert (ours[row:] == 0).all()
    clean = [torch.nan_to_num(tensor) for tensor in (a, x)]
    yardstick = composed(clean[0], weight, vectors, clean[1], lengths, ins)
    exact = composed(clean[0].double(), weight.double(), [v.double() for v in vectors], clean[1].double(), lengths, ins)
    assert_close_to_float64(ours[:row], exact[:row], yardstick[:row])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: NAMES.get(dtype, str(dtype)))
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_one_group(dtype: torch.dtype, splits: int) -> None:
    check([7], [130], 24, splits, dtype)


@pytest.mark.parametrize("splits", [2, 3, 8])
def test_groups_of_every_reduction(splits: int) -> None:
    """Shorter than a block, exactly whole blocks, one more, and none: empty pieces give 0, a tail is added once."""
    check([3, 17, 1, 4, 2, 5], [5, 64, 65, 0, 33, 16], 20, splits, torch.float32)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 100)), min_size=1, max_size=4),
    st.integers(1, 40),
    st.integers(1, 8),
    st.integers(0, 3),
)
def test_any_plan(groups: list[tuple[int, int]], width: int, splits: int, dead_rows: int) -> None:
    lengths, ins = [length for length, _ in groups], [k for _, k in groups]
    if max(ins) > 0 and sum(lengths) > 0:
        check(lengths, ins, width, splits, torch.float32, dead_rows)


def test_the_same_again_and_from_strided_rows() -> None:
    torch.manual_seed(1)
    a, x, weight = (
        drawn(9, 96, dtype=torch.float32),
        drawn(9, 20, dtype=torch.float32),
        drawn(20, 96, dtype=torch.float32),
    )
    vectors = [drawn(20, dtype=torch.float32) for _ in range(3)]
    widths = Widths(int32([0, 4, 9]), None, int32([96, 40]), 1, 1, 20, 96)

    def run(a: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return split_linear_layer_norm(a, weight, vectors[0], x, *vectors[1:], widths, EPS, 4)

    first = run(a, x, weight)
    assert torch.equal(first, run(a, x, weight))
    assert torch.equal(first, run(strided_rows(a), strided_rows(x), strided_rows(weight)))


def test_the_sub_layers_use_it_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference alone; the answers are the saving forward's, but for h, which is not rounded."""
    torch.manual_seed(2)
    used: list[int] = []

    def counted(*given: object, **more: object) -> Tensor:
        used.append(given[8])  # type: ignore[arg-type]
        return split_linear_layer_norm(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("dynabert_kernels.triton.elastic_ffn.split_linear_layer_norm", counted)
    monkeypatch.setattr("dynabert_kernels.triton.elastic_attention.split_linear_layer_norm", counted)
    width, size, heads, neurons = 16, 16, 4, 96
    x = drawn(11, width, dtype=torch.float32)
    vectors = [drawn(width, dtype=torch.float32) for _ in range(3)]
    rows, counts, cu = int32([0, 6, 9]), int32([96, 40]), int32([0, 4, 6, 9])
    ffn = (drawn(neurons, width, dtype=torch.float32), drawn(neurons, dtype=torch.float32))
    into = (*ffn, drawn(width, neurons, dtype=torch.float32, scale=0.1), *vectors)
    given = (x, *into, rows, counts, None, neurons, 1, EPS, 0.0, 0)
    saved, bare = elastic_ffn_fwd(*given, True), elastic_ffn_fwd(*given, False)
    torch.testing.assert_close(bare[0], saved[0], rtol=1e-5, atol=1e-5)
    assert [tensor.numel() for tensor in bare[1:]] == [0, 0, 0, 0]
    qkv = (drawn(heads, 3, size, width, dtype=torch.float32, scale=0.3), drawn(heads, 3, size, dtype=torch.float32))
    out = (drawn(width, heads * size, dtype=torch.float32, scale=0.1), *vectors)
    tail = (None, None, heads, 5, 0.25, EPS, 0.0, 0.0, 0)
    given = (x, *qkv, *out, cu, rows, int32([4, 1]), *tail)
    saved, bare = elastic_attention_fwd(*given, True), elastic_attention_fwd(*given, False)
    torch.testing.assert_close(bare[0], saved[0], rtol=1e-5, atol=1e-5)
    assert len(bare) == len(saved)
    assert len(used) == 2
    assert min(used) > 1


@pytest.mark.skipif(not INTERPRETED, reason="sizes of the interpreter's tiles")
def test_how_many_pieces() -> None:
    """Only where tiles are fewer than multiprocessors, and only whole runs of blocks."""
    x = torch.zeros(10, 256)
    assert GEMM_TILES["interpreter", 4][-1].block_k == 16
    assert split_count(x, 1, 16, 256) == 8
    assert split_count(x, 1, 16, 127) == 4
    assert split_count(x, 1, 16, 32) == 2
    assert split_count(x, 1, 16, 31) == 1
    assert split_count(torch.zeros(100, 256), 1, 64, 256) == 1


def test_the_definition_agrees() -> None:
    """`composed` is the reference op's sub-layer."""
    torch.manual_seed(3)
    x, weight = drawn(5, 8, dtype=torch.float64), drawn(8, 12, dtype=torch.float64)
    into, bias = drawn(12, 8, dtype=torch.float64), drawn(12, dtype=torch.float64)
    vectors = [drawn(8, dtype=torch.float64) for _ in range(3)]
    rows, counts = int32([0, 3, 5]), int32([12, 0])
    wanted = reference.elastic_ffn_fwd(x, into, bias, weight, *vectors, rows, counts, None, 12, 0, EPS, 0.0, 0, False)[
        0
    ]
    a = torch.nn.functional.linear(x, into, bias)
    torch.testing.assert_close(composed(a, weight, vectors, x, [3, 2], [12, 0]), wanted)
