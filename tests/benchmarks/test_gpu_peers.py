"""The comparison for GPUs, rehearsed on a CPU: every contender answers right, and goals are read off rows rightly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks import rows
from benchmarks.cpu_peers.peers import NotHere
from benchmarks.gpu_peers import __main__ as command
from benchmarks.gpu_peers import __main__ as gpu_peers_main
from benchmarks.gpu_peers import goals, graph_check, kernels, measure, networks, setting, training, unpadded
from benchmarks.gpu_peers.contender import GRAPH, Call, Contender, Work
from benchmarks.gpu_peers.graph_check import check_graphs
from benchmarks.gpu_peers.works import ALLOWED, WORKS
from dynabert.engine.graphs import GraphRunner
from dynabert_kernels.ops.providers import SlowerProviderWarning
from dynabert_kernels.testing.timing import Ceilings, HostClock

CEILINGS = Ceilings({100: 1000.0}, {"float32": 1e6}, {"float32": 64}, 2**20, "given")


def rehearsed(dtype: torch.dtype = torch.float32) -> setting.Setting:
    return setting.Setting(torch.device("cpu"), dtype, HostClock(), rounds=2, rehearse=True, cache_bytes=2**20)


class Rehearsal(NamedTuple):
    status: int
    printed: str
    document: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    """All works, once: a few tens of seconds, most of them the compiler's tracing."""
    folder = tmp_path_factory.mktemp("rehearsal")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command.report.Console, "print", lambda self, *given, **_: lines.extend(map(str, given)))
        threads = torch.get_num_threads()
        status = command.main(["--rehearse", "--rounds", "1", "--plot", "--out", str(folder)])
        torch.set_num_threads(threads)
    found = json.loads(next(folder.glob("*.json")).read_text(encoding="utf-8"))
    return Rehearsal(status, "\n".join(lines), found, folder)


def test_graphs_are_checked_over_changing_batches() -> None:
    found = check_graphs(rehearsed(), batches=15)
    assert (found["batches"], found["wrong"], found["why_off"]) == (45, 0, None)
    assert found["dependent_differ"] is None
    assert "a CUDA device is needed" in found["why_not_dependent"]
    assert 1 < found["graphs"] < 30
    assert found["largest_difference"] < 1e-4


def test_dependent_launches_are_compared_with_a_graph_of_the_same_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launched at its own size a batch may take other tiles, and answer with other bits: nobody's fault."""
    monkeypatch.setattr(graph_check, "why_not_programmatic", lambda _: None)
    frames: list[Any] = []
    usual = GraphRunner.outputs

    def watched(self: Any, *given: Any, **more: Any) -> Any:
        found = usual(self, *given, **more)
        if more.get("capture_now"):
            frames.append(self.frames[-1])
        return found

    monkeypatch.setattr(GraphRunner, "outputs", watched)
    found = check_graphs(rehearsed(), batches=4)
    assert (found["dependent_differ"], found["dependent_off"]) == (0, None)
    assert len(frames) == 8
    assert frames[::2] == frames[1::2]


def test_a_check_of_graphs_that_raises_takes_no_work_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(_: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(gpu_peers_main, "check_graphs", raising)
    found = gpu_peers_main.checked_graphs(rehearsed())
    assert "the device is gone" in found["why_off"]
    assert "NONE ANY MORE" in gpu_peers_main.said_of_graphs(found)


def test_every_contender_of_every_work_answers_right(rehearsal: Rehearsal) -> None:
    assert rehearsal.status == 0
    assert "0 WRONG" in rehearsal.printed
    found = rehearsal.document["rows"]
    assert list(dict.fromkeys(row["work"] for row in found)) == list(WORKS)
    for row in found:
        name = f"{row['work']}: {row['contender']}: {row['note']}"
        if row["status"] == rows.UNAVAILABLE:
            assert "xformers" in row["note"] or "liger" in row["note"].lower(), name
        else:
            assert row["status"] == rows.MEASURED, name
            assert 0 <= row["difference"] <= row["allowed"], name
            assert row["median_ms"] > 0, name
            if "unpadded" in row["contender"] or "staircase" in row["contender"]:
                assert row["note"] == "attention: one by one"  # which one it was on a GPU must not be guessed
    wanted = {contender.name for make in WORKS.values() for contender in make(rehearsed()).contenders}
    assert {row["contender"] for row in found} == wanted


def test_a_rehearsal_says_what_it_is(rehearsal: Rehearsal) -> None:
    assert rehearsal.printed.count("REHEARSAL on the CPU") == 2
    assert rehearsal.document["rehearsal"] is True
    for row in rehearsal.document["rows"]:
        assert row["rehearsal"] is True
        assert {"device", "torch", "commit", "date", "command"} <= set(row)
    assert "--rehearse" in rehearsal.document["environment"]["command"]
    assert next(rehearsal.folder.glob("*-rehearsal.png")).stat().st_size > 1000


def test_every_goal_has_a_number_or_a_reason(rehearsal: Rehearsal) -> None:
    found = rehearsal.document["goals"]
    assert len(found) == len(goals.GOALS)
    for goal in found:
        if goal["verdict"] == goals.NOT_MEASURED:
            assert "peak_bytes was not measured" in goal["reason"], goal  # of a GPU's allocator
        else:
            assert goal["verdict"] == goals.REHEARSED
            assert goal["value"] is not None
    assert {goal["work"] for goal in found} == set(WORKS)


def test_the_references_tell_widths_and_texts_apart() -> None:
    """Else a contender that ran another width, or answered in another order, would pass for right."""
    given = rehearsed()
    ids = given.batch(8, 128)
    with torch.no_grad():
        answers = [networks.reference(given, "base", ids, [width] * len(ids)) for width in setting.WIDTHS]
        answers.append(networks.reference(given, "base", ids, networks.mixed_widths(len(ids))))
        turned = {"logits": answers[0]["logits"].flip(0)}
    for place, one in enumerate(answers):
        for other in [*answers[place + 1 :], turned]:
            assert measure.difference(one, other) > 2 * ALLOWED[torch.bfloat16]["logits"]


def test_bfloat16_keeps_its_bounds_in_a_step() -> None:
    """With copies in half precision of weights in float32, which a rehearsal in float32 does not make."""
    given = rehearsed(torch.bfloat16)
    work = WORKS["distillation 32 x 128"](given)
    found = measure.measure(work, given, _ceilings("bfloat16"), ["ours", training.LOOP])
    timed = [row for row in found if row.status == rows.MEASURED]
    assert [row.contender for row in timed] == ["ours in one", training.IN_TWO, training.LOOP]
    assert all(row.difference is not None and 0 < row.difference <= 0.1 for row in timed)


def _ceilings(dtype: str) -> Ceilings:
    return Ceilings(CEILINGS.copy_gb_s, {dtype: 1e6}, {dtype: 64}, 2**20, "given")


@pytest.mark.parametrize("make", [unpadded.nested, unpadded.flex])
def test_each_attention_of_packed_texts_is_the_same(make: Callable[..., Any]) -> None:
    lengths = (5, 16, 1, 9)
    borders = unpadded.Borders(torch.tensor([0, 5, 21, 22, 31], dtype=torch.int32), lengths, torch.float32)
    q, k, v = torch.randn(3, 31, 2, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    wanted = unpadded.one_by_one(borders)(q, k, v)
    torch.testing.assert_close(make(borders)(q, k, v), wanted)


@pytest.mark.parametrize("make", [unpadded.varlen, unpadded.xformers])
def test_an_attention_that_is_not_here_says_why(make: Callable[..., Any]) -> None:
    borders = unpadded.Borders(torch.tensor([0, 5], dtype=torch.int32), (5,), torch.float32)
    with pytest.raises(NotHere, match=r"no CPU kernel|not installed|needs a GPU|no torch\.nn"):
        make(borders)


def test_the_staircase_wants_wide_texts_first() -> None:
    given = rehearsed()
    with pytest.raises(ValueError, match="allowed: from wide to narrow"):
        unpadded.staircase(given, given.model("base"), given.batch(2, 4), [0.5, 1.0])


# Measuring -----------------------------------------------------------------------------------------------------------


def made(contenders: list[Contender]) -> Work:
    return Work("made", "made", contenders, {"all": lambda: {"logits": torch.tensor([1.0, -2.0])}}, 1e-3)


def says(value: float) -> Callable[[], Call]:
    return lambda: lambda: torch.tensor([1.0, value])


def test_wrong_failing_and_absent_contenders_are_told_apart_and_the_others_go_on() -> None:
    def absent() -> Call:
        raise NotHere("no such library")

    def broken() -> Call:
        raise torch.OutOfMemoryError("CUDA out of memory\nand a long trace")

    def drifting() -> Call:
        answers = iter([-2.0])
        return lambda: torch.tensor([1.0, next(answers, 5.0)])

    contenders = [
        Contender("right", says(-2.0005)),
        Contender("wrong", says(-2.1)),
        Contender("no number", says(float("nan"))),
        Contender("another shape", lambda: lambda: torch.zeros(3)),
        Contender("wrong at the second call", drifting),
        Contender("absent", absent),
        Contender("broken", broken),
    ]
    found = {row.contender: row for row in measure.measure(made(contenders), rehearsed(), CEILINGS)}
    assert [name for name, row in found.items() if row.median_ms is not None] == ["right"]
    assert found["right"].difference == pytest.approx(2.5e-4, rel=0.01)
    for name in ("wrong", "no number", "another shape", "wrong at the second call"):
        assert found[name].status == rows.RED
    assert found["wrong"].note == "its answer differs by 0.05 of the largest; allowed: 0.001"
    assert (found["absent"].status, found["absent"].note) == (rows.UNAVAILABLE, "no such library")
    assert found["broken"].status == rows.FAILED
    assert found["broken"].note == "raised OutOfMemoryError: CUDA out of memory"


def test_one_that_fails_while_it_is_timed_is_left_out() -> None:
    calls = 0

    def later() -> Call:
        def call() -> Tensor:
            nonlocal calls
            calls += 1
            if calls > 3:
                raise RuntimeError("out of memory")
            return torch.tensor([1.0, -2.0])

        return call

    found = measure.measure(made([Contender("good", says(-2.0)), Contender("late", later)]), rehearsed(), CEILINGS)
    assert [(row.contender, row.status) for row in found] == [("good", rows.MEASURED), ("late", rows.FAILED)]
    assert found[1].note == "raised RuntimeError: out of memory"
    assert found[1].median_ms is None


def test_shares_of_the_ceilings() -> None:
    one = Contender("one", says(-2.0), operations=2_000_000, size_bytes=1000)
    row = measure.measure(made([one]), rehearsed(), CEILINGS)[0]
    assert row.median_ms is not None
    assert row.ceiling_share == pytest.approx(2e6 / 1e6 / 1e6 / row.median_ms)  # at 1e6 GFLOP/s
    assert row.copy_share == pytest.approx(1000 / row.median_ms / 1e6 / 1000)  # at 1000 GB/s


def test_after_the_limit_nothing_more_is_built() -> None:
    found = measure.measure(made([Contender("one", says(-2.0))]), rehearsed(), CEILINGS, until=time.monotonic() - 1)
    assert (found[0].status, found[0].note) == (rows.UNAVAILABLE, "the time limit was over")


def test_difference() -> None:
    wanted = {"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([100.0])}
    assert measure.difference({"a": torch.tensor([2.0, 0.2]), "b": torch.tensor([101.0])}, wanted) == pytest.approx(0.1)
    assert measure.difference({"a": torch.tensor([2.0, 0.2])}, wanted) == float("inf")
    # A gradient that is nothing but rounding beside the others.
    small = {"a": torch.tensor([1e-6]), "b": torch.tensor([100.0])}
    assert measure.difference({"a": torch.tensor([2e-6]), "b": torch.tensor([100.0])}, small) < 1e-4


# Goals ---------------------------------------------------------------------------------------------------------------


def row(work: str, contender: str, median: float | None, **numbers: Any) -> dict[str, Any]:
    status = rows.MEASURED if median is not None else rows.UNAVAILABLE
    blank = dict.fromkeys(("ceiling_share", "copy_share", "gflop_s", "peak_bytes"))
    return {"work": work, "contender": contender, "median_ms": median, "status": status, "note": "", **blank, **numbers}


def judged(found: list[dict[str, Any]], **skipped: str) -> dict[tuple[str, str], goals.Verdict]:
    return {(v.goal.work, v.goal.what): v for v in goals.judge(found, skipped)}


def test_goals_met_missed_and_not_measured() -> None:
    found = [
        row("widths", "ours w1", 10.0, ceiling_share=0.70),
        row("widths", "ours w1" + GRAPH, 8.0, ceiling_share=0.80),
        row("widths", "ours w0.75", 7.8),
        row("widths", "ours w0.75" + GRAPH, 6.1),  # 0.7625
        row("widths", "ours w0.5", 5.3),  # 0.53 of the eager one: this one has no graph
        row("widths", "ours w0.25" + GRAPH, 3.2),  # 0.4
        row("widths", "ours w0.75, cut out", 7.7),
        row("widths", "ours w0.75, cut out" + GRAPH, 6.0),
        row("widths", networks.COMPILED, 10.0),
        row("widths", networks.HF, 12.0),
    ]
    seen = judged(found, attention="left out by --works")
    assert seen["widths", "time(0.75) / time(1)"].value == pytest.approx(0.7625)
    assert seen["widths", "time(0.75) / time(1)"].verdict == goals.STRETCH
    assert seen["widths", "time(0.5) / time(1)"].value == pytest.approx(0.53)
    assert seen["widths", "time(0.5) / time(1)"].verdict == goals.MET
    assert seen["widths", "time(0.25) / time(1)"].verdict == goals.MISSED
    assert seen["widths", "price of zero copy at 0.75"].value == pytest.approx(100 / 60)
    assert seen["widths", "price of zero copy at 0.75"].verdict == goals.MET
    assert seen["widths", "share of the matrix ceiling"].value == pytest.approx(80.0)
    assert seen["widths", "against HF compile"].value == pytest.approx(1.25)
    assert seen["widths", "against HF compile"].verdict == goals.MISSED
    left_out = seen["attention", "32 x 512 forward"]
    assert (left_out.verdict, left_out.reason) == (goals.NOT_MEASURED, "left out by --works")


def test_mixed_widths_products_and_memory() -> None:
    widths = [row("widths", f"ours w{width:g}", time) for width, time in zip(setting.WIDTHS, (8, 6, 4, 2), strict=True)]
    products = [
        row("products", f"{who} {label}", time)
        for who, time in (("ours", 2.0), ("torch", 1.9))
        for label in kernels.PRODUCTS
    ]
    step = "distillation 32 x 128"
    found = [
        *widths,
        row("widths", "ours mixed", 5.2),
        *products,
        row("ragged product", "ours ragged", 1.0, gflop_s=930.0),
        row("ragged product", "ours dense", 1.0, gflop_s=1000.0),
        row(step, "ours in one", 10.0, peak_bytes=120),
        row(step, training.IN_TWO, 11.0, peak_bytes=71),
        row(step, training.LOOP, 40.0, peak_bytes=100),
        row(step, training.COMPILED_LOOPS[0], None, note="raised OutOfMemoryError: CUDA out of memory"),
        row(step, training.COMPILED_LOOPS[1], 26.0),
    ]
    seen = judged(found)
    assert seen["widths", "four widths mixed against the sum of shares"].value == pytest.approx(1.04)
    assert seen["products", "four products against F.linear"].verdict == goals.MET
    assert seen["ragged product", "rate of ragged over dense"].value == pytest.approx(93.0)
    assert seen[step, "against the loop"].verdict == goals.MET
    assert seen[step, "against the compiled loop"].verdict == goals.STRETCH
    assert seen[step, "peak activations in one launch over the loop's"].verdict == goals.MET
    assert seen[step, "peak activations in two micro-batches over the loop's"].verdict == goals.MISSED


def test_a_goal_whose_peer_failed_says_what_happened() -> None:
    found = [
        row("short ragged", "ours w1", 1.0),
        row("short ragged", networks.COMPILED, None, note="raised BackendCompilerFailed: no compiler"),
    ]
    verdict = judged(found)["short ragged", "against padded HF compile"]
    assert verdict.verdict == goals.NOT_MEASURED
    assert verdict.reason == f"{networks.COMPILED}: raised BackendCompilerFailed: no compiler"


# The command ---------------------------------------------------------------------------------------------------------


def test_without_a_gpu_it_says_so_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "sees no CUDA device here, so nothing was checked or timed" in said
    assert "--rehearse" in said
    assert not (tmp_path / "out").exists()


def test_an_interpreted_triton_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert command.main([]) == 2
    assert "Triton runs in its interpreter (TRITON_INTERPRET is set)" in capsys.readouterr().err


def test_a_provider_that_could_not_take_an_op_is_remembered() -> None:
    seen: list[str] = []

    def warn_twice() -> None:
        with command.slower_providers(seen):
            warnings.warn("provider 'triton' does not compute its ops", SlowerProviderWarning, stacklevel=1)
            warnings.warn("something else", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="something else"):
        warn_twice()
    assert seen == ["provider 'triton' does not compute its ops"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--works", "nothing"], "--works 'nothing' is part of no work's name; allowed: products"),
        (["--rounds", "0"], "--rounds is 0; allowed: 1 or more"),
        (["--time-limit-s", "0"], "--time-limit-s is 0; allowed: above 0"),
    ],
)
def test_bad_options(wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--rehearse", *wrong]) == 2
    assert said in capsys.readouterr().err


def test_the_list_names_every_work_and_goal(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in WORKS)
    assert printed.count(": at ") == len(goals.GOALS)


def test_a_work_that_cannot_be_made_ends_neither_run_nor_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(given: setting.Setting) -> Work:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(WORKS, "products", broken)
    assert command.main(["--rehearse", "--works", "product", "--rounds", "1", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "not measured: products: raised RuntimeError: out of memory" in printed
    assert "not measured: attention: left out by --works" in printed
    document = json.loads(next(tmp_path.glob("*.json")).read_text(encoding="utf-8"))
    assert {row["work"] for row in document["rows"]} == {"ragged product"}


def test_works_after_the_time_limit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--rehearse", "--works", "product", "--time-limit-s", "1e-9", "--out", str(tmp_path)]
    assert command.main(given) == 0
    assert "not measured: products: the time limit of 1e-09 s was over" in capsys.readouterr().out


# Texts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "mean", "longest"), [(128, 52, 128), (32, 178, 384), (6, 6, 12), (1, 5, 5)])
def test_ragged_lengths_have_the_mean_and_the_longest(count: int, mean: int, longest: int) -> None:
    lengths = setting.ragged_lengths(count, mean, longest, 42)
    assert (len(lengths), sum(lengths), max(lengths)) == (count, count * mean, longest)
    assert min(lengths) >= 1


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed: a mean"):
        setting.ragged_lengths(2, 10, 5, 1)


def test_padding_goes_to_a_bucket_and_equal_lengths_need_no_mask() -> None:
    given = rehearsed()
    ids, mask = setting.padded(given, [[5, 6, 7, 8, 9], [4]])
    assert ids.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0, 0]]
    assert mask is not None
    assert mask.sum(1).tolist() == [5, 1]
    assert setting.padded(given, [[5, 6], [7, 8]])[1] is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="times and CUDA graphs need a GPU")
def test_on_a_gpu(tmp_path: Path) -> None:
    """In a process of its own: the tests' has Triton interpreted."""
    command_line = [sys.executable, "-m", command.MODULE, "--works", "products", "single, warm", "--rounds", "3"]
    command_line += ["--peers", "ours", "torch", "--out", str(tmp_path)]
    done = subprocess.run(command_line, env={**os.environ, "TRITON_INTERPRET": "0"}, cwd=rows.ROOT, check=False)
    assert done.returncode == 0
    found = json.loads(next(tmp_path.glob("*-cuda.json")).read_text(encoding="utf-8"))["rows"]
    assert all(row["median_ms"] > 0 for row in found if row["contender"].startswith("ours"))
