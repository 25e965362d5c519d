"""Attention in one step, over sequences no longer than a tile: on a GPU where there is one, else interpreted.

The op's own tests reach it too, wherever their sequences are short enough.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynabert_kernels.testing.inputs import DTYPES
from dynabert_kernels.triton import short_attention, varlen_attention, varlen_attention_backward
from dynabert_kernels.triton.attention_arguments import Sequences
from dynabert_kernels.triton.attention_dropout import MAX_KEYS
from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED
from dynabert_kernels.triton.tiles import SHORT_TILES, ShortTile, short_attention_tile
from tests.kernels.test_triton_varlen_attention import DEVICE, HEADS, NAMES, Case, case, check, ours

pytestmark = pytest.mark.skipif(
    IMPORT_ERROR is not None or not (INTERPRETED or torch.cuda.is_available()),
    reason=IMPORT_ERROR or "no CUDA device, and TRITON_INTERPRET is set to 0",
)
# A GPU has no such tile for float32, which is what the interpreter's tests compare in.
interpreted_only = pytest.mark.skipif(not INTERPRETED, reason="a GPU uses its own tiles already")


@pytest.fixture
def tile(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the tile's rows for both halves, and counts the launches of the one-step kernels."""
    launches: list[str] = []

    def use(block: int) -> list[str]:
        def choose(kernel: str, _: torch.Tensor, max_seqlen: int) -> ShortTile | None:
            launches.append(kernel)
            return ShortTile(block, 4) if max_seqlen <= block else None

        for module in (varlen_attention, varlen_attention_backward):
            monkeypatch.setattr(module, "short_attention_tile", choose)
        return launches

    return use


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.get)
@pytest.mark.parametrize(("bias", "dropout"), [(False, 0.0), (True, 0.3)], ids=["plain", "bias and dropout"])
def test_mixed_heads_and_lengths(dtype: torch.dtype, bias: bool, dropout: float) -> None:
    check(
        partial(
            case, [[5, 9, 12], [16, 1, 0, 3], [], [7]], [2, 1, 2, 0], dtype, bias=bias, dropout=dropout, dead_rows=5
        )
    )


@interpreted_only
@pytest.mark.parametrize(
    "lengths",
    [
        [1],  # softmax of one number
        [1] * 20,  # a window of as many sequences as rows
        [16, 16, 16],  # each fills its window
        [15, 16, 2, 14, 1],  # each second program takes a sequence; one starts in a window's last row
        [3, 16, 16, 16, 4],  # a window's first rows belong to the one before, its last sequence to the second program
        [8, 8, 8, 8],  # exactly as many rows as the tile, twice
        [1, 15, 1, 15, 16],  # a sequence ends where a window does
        [0, 4, 0, 0, 3, 0, 16, 0, 0, 9, 0],  # empty sequences, first and last too
    ],
    ids=str,
)
def test_lengths(lengths: list[int]) -> None:
    check(partial(case, [lengths], heads=1, bias=True))


@interpreted_only
@pytest.mark.parametrize(
    ("block", "groups"),
    [
        (64, [[5, 17, 30, 64], [1, 40, 23], [64]]),  # what GPUs use
        (32, [[31, 2], [32, 7, 25]]),
    ],
    ids=str,
)
def test_other_tiles(block: int, groups: list[list[int]], tile: Any) -> None:
    launches = tile(block)
    check(partial(case, groups, [2, 1, 2][: len(groups)], bias=True, dropout=0.3, dead_rows=1))
    assert launches == ["forward", "backward"]


@interpreted_only
@given(
    groups=st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 16), max_size=6)), min_size=1, max_size=4),
    dead_rows=st.integers(0, 20),
)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_random_plans(groups: list[tuple[int, list[int]]], dead_rows: int) -> None:
    counts, lengths = [count for count, _ in groups], [list(group) for _, group in groups]
    check(partial(case, lengths, counts, dropout=0.5, dead_rows=dead_rows))


@pytest.mark.parametrize("size", [32, 64])
def test_head_sizes(size: int) -> None:
    check(partial(case, [[9, 13], [6]], [2, 1], torch.bfloat16, heads=2, size=size, bias=True, dropout=0.2))


@interpreted_only
def test_both_kernels_agree(tile: Any) -> None:
    """Bit for bit where a tile holds all keys: the same products in the same order."""
    sample = case([[5, 9], [12]], [2, 1], bias=True, dropout=0.25, dead_rows=2)
    tile(32)
    short = ours(sample)
    tile(0)
    long = ours(sample)
    for name, value in long.items():
        torch.testing.assert_close(short[name], value, msg=lambda text, name=name: f"{name}: {text}")


def _unheld(cut: int) -> Case:
    """Rows that a group owns and no sequence holds hold NaN."""
    sample = case([[4, 3, 9]], heads=2)
    sample.qkv[cut:] = float("nan")
    sample.dout[cut:] = float("nan")
    return sample._replace(cu_seqlens=sample.cu_seqlens[:-1].contiguous())


def test_rows_that_no_sequence_holds_are_zero() -> None:
    got = check(_unheld(7))
    assert (got["out"][7:] == 0).all()
    assert (got["lse"][:, 7:] == 0).all()
    assert (got["dqkv"][7:] == 0).all()


def test_windows_without_a_sequence_are_zero() -> None:
    """Whole windows past the last sequence, of a group and of none."""
    sample = case([[3]], heads=1, dead_rows=40)
    owned = sample._replace(rows=torch.tensor([0, 40], dtype=torch.int32, device=DEVICE))
    for given_rows in (sample, owned):
        got = check(given_rows)
        assert (got["out"][3:] == 0).all()
        assert (got["dqkv"][3:] == 0).all()


@interpreted_only
def test_without_fill_the_inactive_part_is_not_written() -> None:
    sample = case([[5, 14], [12, 3], [6]], [2, 1, 0], dropout=0.2, dead_rows=2)
    filled = ours(sample)
    out, lse, dqkv = (torch.full_like(filled[name], 7.0) for name in ("out", "lse", "dqkv"))
    sequences = Sequences(*sample[1:-1])
    short = ShortTile(16, 4)
    short_attention.short_attention_forward(sample.qkv, sequences, out, lse, short, fill=False)
    short_attention.short_attention_backward(
        sample.dout, sample.qkv, out, lse, None, sequences, dqkv, short, fill=False
    )
    active = torch.zeros(len(out), HEADS + 1, dtype=torch.bool, device=DEVICE)
    for begin, end, count in [(0, 19, 2), (19, 34, 1)]:
        active[begin:end, :count] = True
    for name, got in (("out", out), ("dqkv", dqkv), ("lse", lse.t())):
        mask, wanted = active[:, : got.shape[1]], filled[name].t() if name == "lse" else filled[name]
        assert torch.equal(got[mask], wanted[mask]), name
        assert (got[~mask] == 7.0).all(), name


def test_backward_is_deterministic() -> None:
    sample = case([[5, 16], [12, 3, 9]], [2, 1], bias=True, dropout=0.2)
    first, second = ours(sample), ours(sample)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@interpreted_only
def test_a_bias_of_minus_infinity_masks() -> None:
    """Also a row that it masks wholly: the last of its sequence may not see itself."""
    sample = case([[11, 5]], heads=1, bias=True)
    centre = sample.position_bias.shape[1] // 2
    sample.position_bias[:, : centre - 3] = -float("inf")  # keys more than 3 places to the left
    check(sample)


@interpreted_only
def test_the_host_chooses_by_the_longest_sequence(tile: Any) -> None:
    qkv = torch.zeros(1, 1, 3, 16)
    assert short_attention_tile("forward", qkv, 16) is not None
    assert short_attention_tile("forward", qkv, 17) is None


def test_tiles_keep_what_the_kernel_relies_on() -> None:
    for by_kernel in SHORT_TILES.values():
        assert by_kernel.keys() <= {"forward", "backward"}
        for by_size in by_kernel.values():
            assert all(tile.block <= MAX_KEYS for tile in by_size.values())  # a row's dropout bits
