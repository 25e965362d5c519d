"""Named sets of rows, with what they must show: ``dynabert-bench --suite cpu``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .measure import PEER
from .rows import Row

FUSED_OPS = ("elastic_attention", "elastic_ffn")


@dataclass(frozen=True)
class Suite:
    """``defaults``: values of flags that were not given. ``least``: the ratio to plain PyTorch that every row must
    reach; ``least_fused``: that of the fused sub-layers where a batch is small or a network narrow.
    """

    text: str
    defaults: Mapping[str, Any]
    least: float
    least_fused: float

    def goal(self, row: Row) -> float:
        """The ratio to plain PyTorch that a row must reach."""
        small = row.num_tokens <= 128 or row.width <= 0.25
        return self.least_fused if row.op in FUSED_OPS and small else self.least


SUITES = {
    "cpu": Suite(
        text="every op, forward and backward, C++ against plain PyTorch, one thread; under ten minutes",
        defaults={
            "device": "cpu",
            "provider": ["cpu"],
            "shape": ["bert-base", "minilm"],
            "tokens": ["128", "8x128"],
            "width": [1.0, 0.25],
            "dtype": ["float32", "bfloat16"],
            "threads": 1,
            "rounds": 20,
            "time_limit_s": 560.0,
        },
        least=0.9,
        least_fused=1.2,
    )
}


def verdict(suite: Suite, found: Sequence[Row]) -> list[str]:
    """What misses its goal, in words, the worst first; then how many reach it."""
    missed, reached, unmeasured = [], 0, []
    for row in found:
        where = f"{row.benchmark}, {row.provider}, {row.shape}, {row.tokens}, {row.plan}, {row.dtype}"
        if row.provider == PEER:
            continue
        if row.speedup_vs_torch is None:
            unmeasured.append(f"no ratio: {where}: {row.status}, {row.note}")
        elif row.speedup_vs_torch < suite.goal(row):
            spread = "" if row.p20_ms is None or row.p80_ms is None else f"{row.p20_ms:.4g} to {row.p80_ms:.4g} ms"
            line = f"{row.speedup_vs_torch:.2f} of {suite.goal(row):g}: {where} (p20 to p80: {spread})"
            missed.append((row.speedup_vs_torch / suite.goal(row), line))
        else:
            reached += 1
    lines = [line for _, line in sorted(missed)]
    heading = f"{reached} rows reach their goal ({suite.least:g} of plain PyTorch; {suite.least_fused:g} of "
    heading += f"{' and '.join(FUSED_OPS)} at 128 tokens or a quarter of the width), {len(missed)} miss it"
    return [*unmeasured, *lines, heading]
