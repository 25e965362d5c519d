"""``--compare``: what counts as a difference, what is refused, and which tree a process measures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import compare, rows, run
from benchmarks.compare import FASTER, NOISE, SLOWER, Change, Refused, Side

ROOT = Path(__file__).parents[2]
KEY: compare.Key = ("elastic_ffn", "cpu", "minilm", "128", "w0.5", "float32")


def document(median_ms: float | None, status: str = rows.MEASURED, note: str = "") -> dict[str, Any]:
    row = dict(zip(compare.KEY, KEY, strict=True)) | {"status": status, "median_ms": median_ms, "note": note}
    return {"environment": {"commit": "abc", "source_digest": "def"}, "rows": [row]}


def one_change(first: list[float], second: list[float]) -> Change:
    (change,) = compare.changes([{KEY: time} for time in first], [{KEY: time} for time in second])
    return change


def test_a_difference_that_every_pair_shows_and_that_exceeds_the_noise_counts() -> None:
    faster = one_change([2.0, 2.02, 1.98, 2.0, 2.01], [1.0, 1.01, 0.99, 1.0, 1.0])
    assert (faster.verdict, faster.ratio) == (FASTER, pytest.approx(2.0, rel=0.02))
    assert faster.noise == pytest.approx(0.01, abs=0.01)
    assert one_change([1.0, 1.01, 0.99], [2.0, 2.02, 1.98]).verdict == SLOWER


def test_equal_code_on_an_uneasy_machine_is_within_noise() -> None:
    # The pairs agree by luck, and two processes of one revision differ by more.
    lucky = one_change([1.05, 2.1, 1.05], [1.0, 2.0, 1.0])
    assert (lucky.verdict, lucky.noise) == (NOISE, pytest.approx(1.0))
    # Half of the pairs say the opposite.
    assert one_change([1.0, 1.0, 1.0, 1.0], [1.1, 0.9, 1.1, 0.9]).verdict == NOISE
    assert one_change([1.0, 1.0], [1.0, 1.0]).verdict == NOISE


def test_a_peer_that_differs_is_noise_of_the_machine() -> None:
    peer: compare.Key = (KEY[0], "torch", *KEY[2:])
    first: list[compare.Medians] = [{KEY: 2.0, peer: 2.0}] * 3
    second: list[compare.Medians] = [{KEY: 1.5, peer: 1.5}] * 3
    ours, theirs = compare.changes(first, second)
    assert ours.noise == theirs.noise == pytest.approx(1 / 3)
    assert (ours.verdict, theirs.verdict) == (NOISE, NOISE)
    assert compare.changes(first, [{KEY: 1.0, peer: 1.5}] * 3)[0].verdict == FASTER


def test_drift_that_both_share_cancels() -> None:
    # Each process takes 10 % longer than the one before it, in the order A B, B A.
    times = {"A": [], "B": []}  # type: dict[str, list[float]]
    clock = 1.0
    for name in "ABBAABBA":
        times[name].append(clock)
        clock *= 1.1
    assert one_change(times["A"], times["B"]).verdict == NOISE


def test_rows_that_only_one_revision_has_are_no_change() -> None:
    assert compare.changes([{KEY: 1.0}], [{}]) == []


@pytest.mark.parametrize("status", [rows.RED, rows.FAILED])
def test_a_revision_whose_check_is_red_is_refused(status: str) -> None:
    with pytest.raises(
        Refused, match=f"rows of old are wrong, the first is {status}: elastic_ffn, cpu, .*: y: error 1"
    ):
        compare.refuse_what_is_wrong(Side("old", ROOT), document(None, status, "y: error 1"))
    compare.refuse_what_is_wrong(Side("old", ROOT), document(None, rows.UNAVAILABLE, "it does not have this op"))


def test_processes_take_turns_and_both_sides_get_the_same_numbers() -> None:
    calls: list[tuple[str, list[str]]] = []

    def fake(side: Side, flags: list[str], out: Path) -> dict[str, Any]:
        calls.append((side.name, flags))
        return document(1.0)

    sides = Side("A", ROOT), Side("B", ROOT)
    first, second = compare.measure_both(sides, ["--quick"], 3, fake, Console(quiet=True))
    assert [name for name, _ in calls] == ["A", "B", "B", "A", "A", "B"]
    assert [flags for _, flags in calls] == [["--quick", "--seed", str(seed)] for seed in (1, 1, 2, 2, 3, 3)]
    assert (len(first), len(second)) == (3, 3)


def test_the_report_keeps_rows_and_what_both_sides_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = [document(2.0), document(2.0)], [document(1.0), document(1.0)]
    compare.report((Side("old", ROOT), Side("new", ROOT)), documents, tmp_path / "c.json", Console(width=200))
    printed = capsys.readouterr().out
    assert "new: 1 faster, 0 slower, 0 within noise" in printed
    kept = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert (kept["first"], kept["second"], len(kept["environments"])) == ("old", "new", 2)
    assert kept["rows"][0]["ratio"] == 2.0


def test_a_process_runs_this_runner_on_the_kernels_of_the_tree_it_is_given(tmp_path: Path) -> None:
    """A tree that is not this one: a copy of the package's first file that says so and stops."""
    package = tmp_path / "tree" / "dynabert_kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit(f'the kernels of {__file__}')\n", encoding="utf-8")
    with pytest.raises(Refused, match=r"old measured nothing \(exit 1\)\n.*the kernels of .*tree/dynabert_kernels"):
        compare.run_once(Side("old", tmp_path / "tree"), ["--quick"], tmp_path / "out")


def repository(folder: Path, setup: str) -> Path:
    """A git repository with one commit, whose setup.py is ``setup``."""
    folder.mkdir()
    (folder / "setup.py").write_text(setup, encoding="utf-8")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        names = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(folder), *names, *command], check=True, capture_output=True)
    return folder


def test_a_revision_is_checked_out_and_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYNABERT_CUDA", raising=False)
    root = repository(tmp_path / "r", "import os; open('built', 'a').write(os.environ['DYNABERT_CUDA'])\n")
    said: list[str] = []
    for _ in range(2):
        side = compare.checkout("HEAD", root, "cpu", said.append)
    assert side.folder.parent == root / "build" / "revisions"
    assert (side.folder / "built").read_text(encoding="utf-8") == "0"
    assert len(said) == 2
    # Built for a CPU, it does not serve a GPU; built for a GPU, it serves both.
    for device in ("cuda", "cpu"):
        compare.checkout("HEAD", root, device, said.append)
    assert (side.folder / "built").read_text(encoding="utf-8") == "01"
    with pytest.raises(ValueError, match="--compare 'nothing' is no revision"):
        compare.checkout("nothing", root, "cpu", said.append)


def test_a_revision_that_does_not_build_is_refused(tmp_path: Path) -> None:
    root = repository(tmp_path / "r", "raise SystemExit('planted: no compiler')\n")
    with pytest.raises(Refused, match=r"(?s)HEAD does not build; see .*planted: no compiler"):
        compare.checkout("HEAD", root, "cpu", lambda text: None)


def test_a_job_s_flags_give_the_same_job() -> None:
    words = "--op elastic_ffn --shape C96-H3-D32-F96 --tokens 2x8 5+3 --plan w1:1,skip:1 --dropout 0.1 --threads 1"
    job = run.read(run.parser().parse_args([*words.split(), "--seed", "3"]))
    again = run.read(run.parser().parse_args([*job.flags(), "--seed", "3"]))
    assert again == job
    assert [mix.name for mix in again.mixes] == ["w1", "w1:1,skip:1"]


def test_three_revisions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--compare", "a", "b", "c"]) == 2
    assert "--compare got 3 revisions; allowed: one or two" in capsys.readouterr().err
