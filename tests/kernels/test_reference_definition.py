"""The reference itself, held against code that shares nothing with it: scalar loops and published vectors."""

from __future__ import annotations

import math

import pytest
import torch

import dynabert_kernels as dk
from dynabert_kernels.reference.dropout import dropout_scale, philox
from tests.kernels.cases import DROPOUT_STATE, PLANS, Network, bias_table, plan_of

N = Network(width=5, heads=4, size=3, neurons=12, dtype=torch.float64)


def signed(word: int) -> int:
    """A 64-bit pattern as the int64 that holds it."""
    return word - (1 << 64) if word >= 1 << 63 else word


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of Random123 for philox4x32-10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple, key: tuple, expected: tuple) -> None:
    seed = torch.tensor(signed(key[0] | key[1] << 32))
    words = philox(*(torch.tensor(word) for word in counter), seed)
    assert tuple(int(word) for word in words) == expected


def test_dropout_keeps_the_stated_share_and_scale() -> None:
    state = torch.tensor(DROPOUT_STATE)
    factor = dropout_scale(
        state, 0.3, stream=2, group=0, rows=range(400), columns=301, heads=2, like=torch.zeros(1, dtype=torch.float64)
    )
    assert factor is not None
    assert factor.shape == (2, 400, 301)
    assert set(factor.unique().tolist()) == {0.0, 1 / 0.7}
    kept = (factor > 0).double().mean().item()
    assert abs(kept - 0.7) < 5 * math.sqrt(0.3 * 0.7 / factor.numel())
    assert not torch.equal(factor[0], factor[1])


@pytest.mark.parametrize("name", PLANS)
def test_linear_by_loops(name: str) -> None:
    torch.manual_seed(0)
    plan, _ = plan_of(name, row_bucket=4)
    layer = plan.layer(0)
    x, weight, bias = N.tensor(plan.num_rows, 9), N.tensor(12, 8), N.tensor(12)
    with dk.use_provider("reference"):
        y = dk.elastic_linear(
            x,
            weight,
            bias,
            rows=layer.rows,
            out_counts=layer.heads,
            in_counts=layer.heads,
            out_unit=3,
            in_unit=2,
            max_out=layer.max_heads * 3,
            max_in=layer.max_heads * 2,
            activation="gelu",
        )
    heads, lengths = PLANS[name]
    expected = torch.zeros_like(y)
    row = 0
    for k, group in zip(heads, lengths, strict=True):
        for _ in range(sum(group)):
            for n in range(k * 3):
                total = float(bias[n]) + sum(float(x[row, i]) * float(weight[n, i]) for i in range(k * 2))
                expected[row, n] = total * 0.5 * (1 + math.erf(total / math.sqrt(2)))
            row += 1
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", PLANS)
def test_attention_by_loops(name: str) -> None:
    torch.manual_seed(1)
    plan, borders = plan_of(name, row_bucket=4)
    layer = plan.layer(0)
    qkv, table = N.tensor(plan.num_rows, 4, 3, 3), bias_table(N, plan.max_seqlen)
    with dk.use_provider("reference"):
        out = dk.varlen_attention(
            qkv,
            borders,
            max_seqlen=plan.max_seqlen,
            rows=layer.rows,
            head_counts=layer.heads,
            max_heads=layer.max_heads,
            position_bias=table,
        )
    expected = torch.zeros_like(out)
    begin = 0
    for heads, group in zip(*PLANS[name], strict=True):
        for length in group:
            for h in range(heads):
                for i in range(length):
                    scores = []
                    for j in range(length):
                        dot = sum(float(qkv[begin + i, h, 0, d] * qkv[begin + j, h, 1, d]) for d in range(3))
                        scores.append(dot / math.sqrt(3) + float(table[h, j - i + plan.max_seqlen + 1]))
                    total = sum(math.exp(score) for score in scores)
                    for d in range(3):
                        expected[begin + i, h, d] = sum(
                            math.exp(score) / total * float(qkv[begin + j, h, 2, d]) for j, score in enumerate(scores)
                        )
            begin += length
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
