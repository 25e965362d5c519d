"""The benchmark of pick's limits: where they lie, and that a missed one is told."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import pick_limits


def test_limits_reach_from_the_fastest_to_the_slowest() -> None:
    assert pick_limits.limits_between(2.0, 10.0, 4) == [4.0, 6.0, 8.0, 10.0]


@pytest.mark.parametrize(("median", "code"), [(3.0, 0), (5.0, 1)])
def test_a_missed_limit_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], median: float, code: int
) -> None:
    rows: list[dict[str, Any]] = [{"limit_ms": 4.0, "subnet": "w1-d1", "median_ms": median, "kept": median <= 4.0}]
    monkeypatch.setattr(pick_limits, "run", lambda options: rows)
    assert pick_limits.main(["--model", "m", "--scores", "s", "--profile", "p"]) == code
    assert f"{1 - code} of 1 limits kept" in capsys.readouterr().out
