"""What the system tells of the processor."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from dynabert import processor


@pytest.mark.parametrize("key", ["flags", "Features"])
def test_a_listed_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    told = tmp_path / "cpuinfo"
    one = f"processor : 0\nmodel name\t: A: B\n{key}\t\t: avx2 fma\n\n"
    told.write_text(one + one.replace("fma", "f16c"), encoding="utf-8")
    monkeypatch.setattr(processor, "_TOLD", told)
    assert processor.cpu_name() == "A: B"
    assert processor.cpu_flags() == {"avx2", "fma", "f16c"}


def test_a_system_that_lists_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_TOLD", tmp_path / "none")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert processor.cpu_name() is None
    assert processor.cpu_flags() == frozenset()
