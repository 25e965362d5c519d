"""The machinery of planted faults, and a few of them that need no build of the library. ``make faults``: all."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dynabert_kernels.triton.environment import INTERPRETED
from tests.faults import run
from tests.faults.planted import Fault, all_faults

FAULTS = {fault.name: fault for fault in all_faults()}
# The quickest to be seen: a few seconds each.
SOME = [
    "triton: columns past C reach the variance",
    "triton: the bias is missing in the last active column",
    "triton: dw and db take turns on one place",
    "triton: what a cut reduction has past its last whole pieces is lost",  # seen by a file of tests
]


def test_every_fault_still_fits_its_kernel() -> None:
    run.check_texts(list(FAULTS.values()))


def test_the_kinds_that_matter_are_planted_in_every_provider() -> None:
    for provider in ("triton", "cpu", "cuda"):
        kinds = {fault.kind for fault in FAULTS.values() if fault.provider == provider}
        missing = {
            "one column too few",
            "group border off by one",
            "missing bias at a tile's edge",
            "a read beyond the active part",
            "wrong scale",
            "accumulates in bfloat16",
        } - kinds
        assert not missing, f"{provider}: {missing}"


def test_a_text_that_is_gone_or_stands_twice_is_an_error() -> None:
    fault = next(iter(FAULTS.values()))
    with pytest.raises(run.LostFault, match=r"stands 0 times in .*; allowed: once"):
        run.planted(fault, "nothing")
    with pytest.raises(run.LostFault, match="stands 2 times"):
        run.planted(fault, fault.old * 2)


def test_rows_of_other_faults_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = list(FAULTS.values())[:3]
    asked = []

    def seen(fault: Fault, _: Path) -> run.Verdict:
        asked.append(fault.name)
        return run.Verdict(fault.name, fault.kind, fault.provider, fault.file, True, "now", 1.0, "abc")

    monkeypatch.setattr(run, "try_fault", seen)
    gone = run.Verdict("triton: of a kernel that is no more", "", "triton", "", True, "then", 1.0)
    before = [gone, *(replace(seen(fault, tmp_path), seen_by="then") for fault in (third, first))]
    out, table = tmp_path / "faults.json", tmp_path / "faults.md"
    out.write_text(json.dumps([asdict(verdict) for verdict in before]), encoding="utf-8")
    asked.clear()
    assert run.main(["--only", second.name, "--out", str(out), "--markdown", str(table)]) == 0
    assert asked == [second.name]
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert [(row["name"], row["seen_by"]) for row in rows] == [
        (first.name, "then"),
        (second.name, "now"),
        (third.name, "then"),
    ]
    assert table.read_text(encoding="utf-8").count("| yes |") == 3
    out.write_text('{"rows": 1}', encoding="utf-8")
    with pytest.raises(SystemExit, match="holds no rows of faults"):
        run.main(["--only", second.name, "--out", str(out)])


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here, not interpreted")
@pytest.mark.parametrize("name", SOME)
def test_a_planted_fault_is_seen(name: str, tmp_path: Path) -> None:
    verdict = run.try_fault(FAULTS[name], tmp_path)
    assert verdict.red, verdict.seen_by
    assert verdict.seen_by.startswith(FAULTS[name].seen_by[0])


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here, not interpreted")
def test_a_change_that_is_no_fault_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.CASES, "triton", 2)
    fault = FAULTS[SOME[0]]
    harmless: Fault = replace(fault, new=f"{fault.old}  # the same")
    verdict = run.try_fault(harmless, tmp_path)
    assert not verdict.red, verdict.seen_by
    assert "'hold': 2" in verdict.seen_by


def test_a_device_fault_is_seen_in_the_host_shim(tmp_path: Path) -> None:
    from tests.kernels.host_shim import build as host_shim

    reason = host_shim.why_not("memory", tmp_path)
    if reason is not None:
        pytest.skip(reason)
    verdict = run.try_fault(FAULTS["cuda: the last row is left out"], tmp_path)
    assert verdict.red, verdict.seen_by
