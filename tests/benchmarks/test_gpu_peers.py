"""The GPU comparison rehearsed on a CPU: every contender of every work answers right, and goals are judged right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_peers.__main__ import main
from benchmarks.gpu_peers.graph_check import check_graphs
from benchmarks.gpu_peers.listed import ELSEWHERE, WORKS
from benchmarks.gpu_peers.networks import PlainSubnet, make_networks, operations, padded
from benchmarks.gpu_peers.report import judge, run_work, table_of
from benchmarks.gpu_peers.works import Goal, Setting, Work, ratio, subnet_of
from dynabert_kernels.testing.timing import Ceilings, HostClock

CPU = torch.device("cpu")
CEILINGS = Ceilings({2**20: 10.0}, {"float32": 100.0}, {"float32": 128}, 2**20, "given")
SETTING = Setting(CPU, torch.float32, True, CEILINGS)


@pytest.mark.parametrize("name", list(WORKS))
def test_every_contender_answers_right(name: str) -> None:
    row = run_work(WORKS[name](SETTING), SETTING, HostClock(), 1)
    assert row["left_out"] == {}
    assert row["times"].keys() == row["differences"].keys()
    assert all(difference < 1e-4 for difference in row["differences"].values())
    for goal in row["goals"]:
        assert goal["verdict"] == "rehearsal"
        assert (goal["number"] is None) == ("bytes" in goal["goal"])  # counted on a GPU alone
    assert row["goals"]
    table_of(row, rehearse=True)


def test_a_wrong_or_broken_contender_is_left_out_and_said() -> None:
    right = torch.ones(2, 2)

    def broken() -> Callable[[], Tensor]:
        raise RuntimeError("no kernel\nand a long story")

    contenders = {"right": lambda: lambda: right, "wrong": lambda: lambda: right * 1.1, "broken": broken}
    goal = Goal("wrong / right", ratio("wrong", "right"), 1.0, 0.5)
    work = Work("a work", contenders, lambda name: lambda: right, (goal,))
    row = run_work(work, replace(SETTING, rehearse=False), HostClock(), 2)
    assert list(row["times"]) == ["right"]
    assert row["left_out"]["wrong"].startswith("WRONG: differs by 0.1")
    assert row["left_out"]["broken"] == "raised RuntimeError: no kernel"
    assert row["goals"][0]["verdict"] == "not measured"
    table_of(row, rehearse=False)


def test_an_answer_that_goes_wrong_while_it_is_timed_is_left_out() -> None:
    """As where a graph's inputs were given away."""
    right = torch.ones(2, 2)
    calls: list[int] = []

    def spoiled() -> Tensor:
        calls.append(1)
        return right if len(calls) < 5 else right * 2

    def raises() -> Tensor:
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("overwritten by a subsequent run")
        return right

    goal = Goal("b / a", ratio("b", "a"), 1.0, 0.5)
    row = run_work(Work("a work", {"b": lambda: spoiled}, lambda name: lambda: right, (goal,)), SETTING, HostClock(), 3)
    assert row["left_out"]["b"].startswith("WRONG")
    assert row["times"] == {}
    calls.clear()
    row = run_work(Work("a work", {"b": lambda: raises}, lambda name: lambda: right, (goal,)), SETTING, HostClock(), 3)
    assert row["left_out"]["b"] == "the timing raised RuntimeError: overwritten by a subsequent run"


@pytest.mark.parametrize(
    ("number", "most", "verdict"),
    [
        (0.9, True, "stretch"),
        (1.05, True, "met"),
        (1.2, True, "missed"),
        (0.9, False, "missed"),
        (2.0, False, "stretch"),
    ],
)
def test_verdicts(number: float, most: bool, verdict: str) -> None:
    goal = Goal("a / b", ratio("a", "b"), 1.1, 1.0 if most else 1.5, most)
    assert judge(goal, {"a": number, "b": 1.0})["verdict"] == verdict


@pytest.mark.parametrize("subnet", [None, "w0.5", "w0.25-d0.5"])
def test_plain_pytorch_is_the_sub_network(subnet: str | None) -> None:
    """Padded, packed, on copies and on views: the model's own logits."""
    networks = make_networks("tiny", CPU, torch.float32)
    texts = [[1005, 1006, 1007], [1100], [1001, 1002, 1003, 1004, 1005]]
    shape = networks.ours.shape(subnet)
    with torch.inference_mode():
        batch, plan = networks.ours.pack(texts, subnet=subnet)
        wanted = networks.ours.packed_logits(batch, plan)
        for copy in (True, False):
            net = PlainSubnet(networks.ours, shape, copy=copy)
            ids, mask = padded(texts, CPU, 4)
            assert ids.shape == (3, 8)
            torch.testing.assert_close(net(ids, mask[:, None, None].bool()), wanted, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(net.packed(batch, [3, 1, 5]), wanted, rtol=1e-5, atol=1e-6)


def test_graphs_are_checked_over_changing_batches() -> None:
    found = check_graphs(SETTING, batches=15)
    assert found["batches"] == 45
    assert found["wrong"] == 0
    assert 1 < found["graphs"] < 30
    assert found["largest_difference"] < 1e-4
    assert found["why_off"] is None


def test_operations_are_those_of_the_products() -> None:
    networks = make_networks("tiny", CPU, torch.float32)
    width, neurons, tokens = 64, 128, 5
    layer = 2 * tokens * (4 * width * width + 2 * width * neurons) + 4 * tokens * tokens * width
    assert operations(networks.ours, networks.ours.shape(None), [tokens]) == 2 * layer
    assert operations(networks.ours, networks.ours.shape("w1-d0.5"), [tokens]) == layer


def test_names_tell_their_width() -> None:
    assert [subnet_of(name) for name in ("ours w0.5", "torch on views", "ours, graph", "compiled pruned")] == [
        "w0.5",
        None,
        None,
        None,
    ]


def test_the_command_writes_rows_and_says_what_it_leaves_to_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.json"
    options = ["--rehearse", "--works", "latency-warm", "widths", "--rounds", "1", "--time_limit", "0.001"]
    assert main([*options, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["rehearsal"] is True
    assert found["graphs"]["wrong"] == 0
    assert found["not_begun"] == ["latency-warm", "widths"]
    assert found["measured_elsewhere"] == ELSEWHERE
    assert "gpu_peers" in found["command"]
    assert main(["--rehearse", "--works", "latency-warm", "--rounds", "1", "--plot", "--out", str(out)]) == 0
    assert out.with_suffix(".png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "latency-warm: not begun" in said
    assert "not measured here: attention's bandwidth" in said.replace("\n", " ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--rounds", "0"])
    assert "--rounds is 0" in capsys.readouterr().err
