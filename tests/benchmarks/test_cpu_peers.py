"""The benchmark against other engines: who is missing is named, a wrong one is not timed, and the ratios are right."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.cpu_peers import __main__ as command
from benchmarks.cpu_peers import peers, report, works
from benchmarks.cpu_peers.peers import Builder, NotHere
from tests.dynabert.tiny_networks import plain_model
from tests.dynabert.tiny_texts import WORDS, tiny_tokenizer

CHECK = [[1, 5, 2], [1, 7, 8, 9, 2]]
WANTED = np.array([[1.0, -2.0], [0.5, 4.0]])


class FakeBuilder(Builder):
    """Peers that are not engines, without a checkpoint."""

    def __init__(self, makers: dict[str, Callable[[], tuple[Callable[..., NDArray[Any]], str]]]) -> None:
        self._fakes = makers

    def _makers(self) -> dict[str, Callable[[], tuple[Callable[..., NDArray[Any]], str]]]:
        return self._fakes


def _constant(values: NDArray[Any]) -> Callable[..., NDArray[Any]]:
    return lambda ids: values


def test_a_right_peer_takes_part() -> None:
    builder = FakeBuilder({"fake float32": lambda: (_constant(WANTED + 0.002), "fake 1")})
    peer, off = builder.take_part("fake float32", CHECK, WANTED)
    assert peer.version == "fake 1"
    assert off == pytest.approx(0.002 / 4)


@pytest.mark.parametrize("wrong", [WANTED + 0.1, WANTED * np.nan])
def test_a_wrong_peer_is_not_timed(wrong: NDArray[Any]) -> None:
    builder = FakeBuilder({"fake float32": lambda: (_constant(wrong), "fake 1")})
    with pytest.raises(NotHere, match=r"its logits differ by .* allowed: 0\.001"):
        builder.take_part("fake float32", CHECK, WANTED)


def test_a_peer_that_raises_is_named() -> None:
    def broken() -> tuple[Callable[..., NDArray[Any]], str]:
        raise RuntimeError("no such operation\nand a long trace")

    with pytest.raises(NotHere, match=r"^raised RuntimeError: no such operation$"):
        FakeBuilder({"fake float32": broken}).take_part("fake float32", CHECK, WANTED)


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(NotHere, match=r"no_such_engine not installed \(see constraints-peers.txt\)"):
        peers._need("json", "no_such_engine")


def test_padding() -> None:
    ids, mask = peers.padded(CHECK)
    assert ids.tolist() == [[1, 5, 2, 0, 0], [1, 7, 8, 9, 2]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_works_are_the_same_each_time() -> None:
    real: dict[str, works.Ids] = {"like SST-2": works.sst2_like(70, 2000, 1)}
    found = works.works(2000, real, seed=1)
    assert found == works.works(2000, real, seed=1)
    by_name = {work.name: work for work in found}
    assert len(by_name) == len(found)
    arrival, ordered = by_name["like SST-2, arrival order"], by_name["like SST-2, sorted by length"]
    assert [len(batch) for batch in arrival.batches] == [32, 32, 6]
    assert arrival.real_tokens == ordered.real_tokens < ordered.padded_tokens < arrival.padded_tokens
    assert by_name["1 x 128"].padded_tokens == 128
    assert len(by_name["16 x 128, four widths"].subnet or ()) == 16


def test_rounds_are_interleaved() -> None:
    calls: list[str] = []
    times = works.interleave({name: lambda name=name: calls.append(name) for name in "abc"}, 0.0, rounds=3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    numbers = times["a"].numbers()
    assert numbers["samples"] == 3
    assert set(numbers) == {"samples", "median_ms", "quartiles_ms", "min_ms", "cpu_median_ms"}


def _result(model: str, times: dict[tuple[str, str], float]) -> dict[str, Any]:
    rows = [
        {"work": work, "peer": peer, "median_ms": time, "cpu_median_ms": time / 2 if peer.startswith("ours") else time}
        for (work, peer), time in times.items()
    ]
    return {
        "model": model, "rows": rows, "memory": {"engine_bytes": 101, "checkpoint_bytes": 100}, "device": "a CPU",
        "not_measured": {"OpenVINO float32": "openvino not installed"}, "threads": 1, "load_average": "0.1",
        "commit": "abc", "command": "python -m benchmarks.cpu_peers",
    }  # fmt: skip


def test_ratios() -> None:
    ours, other = "ours bfloat16", "OpenVINO bfloat16"
    times = {("1 x 128", ours): 10.0, ("1 x 128", other): 12.0, ("1 x 128, w0.25-d1", ours): 4.0}
    times |= {(f"16 x 128, {width}", ours): time for width, time in zip(works.WIDTHS, (40, 30, 20, 10), strict=True)}
    times["16 x 128, four widths", ours] = 26.0
    result = _result("minilm", times)
    found = {what: (measured, goal) for what, measured, goal, _ in report.ratios(result)}
    assert found["1 x 128: ours bfloat16 against OpenVINO bfloat16"] == (pytest.approx(1.2), 1.3)
    assert found["1 x 128: ours bfloat16, time(1) / time(0.25)"] == (pytest.approx(2.5), 3.2)
    # The shares: a quarter of the texts at each width, of the time that all of them take at it.
    mixed = found["16 x 128: ours bfloat16, four widths against the sum of shares"]
    assert mixed == (pytest.approx(26 / 25), 1.06)
    text = report.table(result)
    assert "| 1 x 128: ours bfloat16 against OpenVINO bfloat16 | 1.20 | 2.40 | at least 1.3 | missed |" in text
    assert "four widths against the sum of shares | 1.04 | 1.04 | at most 1.06 | met |" in text
    assert "not measured: OpenVINO float32: openvino not installed" in text


def test_goals_of_the_model_alone() -> None:
    times = {("1 x 128", "ours bfloat16"): 10.0, ("1 x 128", "OpenVINO bfloat16"): 10.0}
    (base,) = [goal for what, _, goal, _ in report.ratios(_result("base", times)) if "OpenVINO" in what]
    assert base == 1.0
    assert not [what for what, *_ in report.ratios(_result("a/folder", times)) if "OpenVINO" in what]


def test_the_command_writes_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole path on a tiny network: the other engines, which are not here, are named, and ours is timed."""
    folder, out = tmp_path / "model", tmp_path / "rows" / "rows.json"
    plain_model("bert").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    real_spec, gone = importlib.util.find_spec, {"openvino", "onnxruntime"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else real_spec(name))
    monkeypatch.setattr(command, "SENTENCE", " ".join(WORDS[:6]))
    monkeypatch.setattr(command, "prepare", lambda model, scratch: folder)
    monkeypatch.setattr(command, "sst2_like", lambda count, vocabulary, seed: CHECK)
    monkeypatch.setattr(command, "works", lambda vocabulary, real, seed: [works.Work("two", (CHECK,))])
    threads = torch.get_num_threads()
    chosen = ["--peers", "ours float32", "torch eager float32", "OpenVINO"]
    try:
        assert command.main(["--quick", *chosen, "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    result = json.loads(out.read_text(encoding="utf-8"))
    rows = [row for row in result["rows"] if row["work"] == "two"]
    assert {row["peer"] for row in rows} == {"ours float32", "torch eager float32"}
    assert all(row["median_ms"] > 0 and row["cpu_median_ms"] > 0 and row["tokens"] == 8 for row in rows)
    assert "transformers pipeline float32" in {row["peer"] for row in result["rows"]}
    assert set(result["not_measured"]) == {"OpenVINO float32", "OpenVINO bfloat16"}
    assert result["largest_difference"]["ours float32"] < 1e-3
    assert result["memory"]["engine_bytes"] > 0
    assert "not measured: OpenVINO float32: openvino not installed" in capsys.readouterr().out
    assert out.with_suffix(".png").stat().st_size > 1000
    assert report.main([str(out)]) == 0


@pytest.mark.parametrize("wrong", [["--threads", "0"], ["--rounds", "0"], ["--seconds", "0"], ["--texts", "0"]])
def test_bad_numbers(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(wrong)
