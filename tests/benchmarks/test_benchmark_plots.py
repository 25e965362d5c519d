"""Pictures: which panels some rows give, and that files are drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plots, rows
from benchmarks.rows import Row
from dynabert_kernels.testing.timing import Ceilings

CEILINGS = Ceilings({1 << 10: 80.0, 1 << 20: 10.0}, {"float32": 50.0}, {"float32": 64}, 1 << 16, "given")


def row(provider: str, num_tokens: int, width: float, **changes: Any) -> Row:
    found = Row(
        benchmark="elastic_ffn",
        op="elastic_ffn",
        direction="forward",
        provider=provider,
        shape="minilm",
        tokens=str(num_tokens),
        num_tokens=num_tokens,
        plan=f"w{width:g}",
        width=width,
        heads=12,
        neurons=1536,
        dtype="float32",
        dropout=0.0,
        cache="use",
        seed=1,
        status=rows.MEASURED,
        median_ms=num_tokens * width / 100,
        p20_ms=num_tokens * width / 110,
        p80_ms=num_tokens * width / 90,
        size_bytes=1000,
        operations=int(1000 * num_tokens * width),
        gflop_s=20.0,
        ideal_speedup=1 / width,
    )
    return replace(found, **changes)


ALL = [
    row(provider, num_tokens, width) for provider in ("torch", "cpu") for num_tokens in (16, 64) for width in (1, 0.5)
]


def test_panels_are_those_where_something_varies() -> None:
    widths = plots.width_panels(ALL)
    assert list(widths) == [f"elastic_ffn\nminilm, {num_tokens} tokens, float32" for num_tokens in (16, 64)]
    assert [r.width for r in widths["elastic_ffn\nminilm, 16 tokens, float32"]["cpu"]] == [0.5, 1]
    assert list(plots.token_panels(ALL)) == [f"elastic_ffn\nminilm, {plan}, float32" for plan in ("w1", "w0.5")]
    assert plots.width_panels([r for r in ALL if r.width == 1]) == {}
    assert plots.token_panels([r for r in ALL if r.num_tokens == 16]) == {}
    # A mixed batch lies on no line of widths.
    assert plots.width_panels([row("cpu", 16, 1), row("cpu", 16, 0.75, plan="w1:1,w0.5:1")]) == {}


def test_a_row_without_a_time_is_not_drawn() -> None:
    assert plots.timed([row("cpu", 16, 1.0, status=rows.RED, median_ms=None)]) == []


def test_pictures_are_written_beside_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are an extra")
    found = plots.draw_all(ALL, CEILINGS, tmp_path / "stem", "a heading")
    assert [path.name for path in found] == [
        f"stem-{kind}-minilm-float32.png" for kind in ("width", "tokens", "roofline")
    ]
    assert all(path.stat().st_size > 10_000 for path in found)


def test_nothing_to_draw_writes_no_picture(tmp_path: Path) -> None:
    memory_bound = row("cpu", 16, 1.0, operations=0, gflop_s=0.0, ideal_speedup=None)
    assert plots.draw_all([memory_bound], CEILINGS, tmp_path / "stem", "nothing") == []
    assert not list(tmp_path.iterdir())
