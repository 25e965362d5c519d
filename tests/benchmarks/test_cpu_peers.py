"""The comparison with other CPU engines: who takes part, what a row holds, and what the goals make of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.cpu_peers import __main__ as command
from benchmarks.cpu_peers import ceiling, peers, report, works
from benchmarks.cpu_peers.peers import Builder, NotHere, Peer
from dynabert_kernels.ops import NATIVE
from tests.dynabert.tiny_texts import tiny_model, tiny_tokenizer


def test_padding() -> None:
    ids, mask = peers.padded([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_rounds_are_interleaved_and_at_least_three_are_timed() -> None:
    calls: list[str] = []
    times = works.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0.0)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]  # warm-up, then each round begins with another
    numbers = times["a"].numbers()
    assert numbers["samples"] == 3
    assert numbers["min_ms"] <= numbers["median_ms"]  # type: ignore[operator]


def test_fewer_rounds_when_asked() -> None:
    times = works.interleave({"a": lambda: None}, seconds=0.0, rounds=1)["a"]
    assert times.numbers()["samples"] == 1
    assert times.numbers()["quartiles_ms"] == [1e3 * times.wall[0]] * 2


def test_widths_take_turns_in_the_same_rounds() -> None:
    """A machine that gets busy between two widths would otherwise be read as the gain of a width."""
    calls: list[str] = []

    def answer(batch: works.Ids, subnet: str | None = None) -> NDArray[Any]:
        calls.append(subnet or "whole")
        return np.zeros((1, 2))

    batch = ([[1, 2, 3]],)
    todo = [works.Work("a", batch), works.Work("a, w0.25-d1", batch, "w0.25-d1", only_ours=True)]
    todo.append(works.Work("b", ([[1, 2]],)))
    rows = command.time_works([Peer("ours float32", answer, "")], todo, 0.0, rounds=2)
    assert calls == ["whole", "w0.25-d1", "whole", "w0.25-d1", "w0.25-d1", "whole", "whole", "whole", "whole"]
    assert [(row["work"], row["tokens"], row["samples"]) for row in rows] == [
        ("a", 3, 2),
        ("a, w0.25-d1", 3, 2),
        ("b", 2, 2),
    ]


def test_works_have_the_tokens_they_name() -> None:
    found = {work.name: work for work in works.works(1100, {"real": works.sst2_like(40, 1100, 1)}, 1)}
    assert found["8 x 128"].real_tokens == found["8 x 128"].padded_tokens == 1024
    arrival, by_length = found["real, arrival order"], found["real, sorted by length"]
    assert [len(batch) for batch in arrival.batches] == [32, 8]
    assert arrival.real_tokens == by_length.real_tokens
    assert by_length.padded_tokens < arrival.padded_tokens
    assert (
        found["16 x 128, four widths"].subnet
        == ("w1-d1",) * 4 + ("w0.75-d1",) * 4 + ("w0.5-d1",) * 4 + ("w0.25-d1",) * 4
    )


def test_one_batch_is_not_called_sorted() -> None:
    names = [work.name for work in works.works(1100, {"real": works.sst2_like(works.BATCH, 1100, 1)}, 1)]
    assert "real, arrival order" in names
    assert "real, sorted by length" not in names


def test_one_that_answers_wrong_is_not_timed() -> None:
    wanted = np.array([[1.0, -2.0]])
    right = Peer("ours float32", lambda batch: wanted + 1e-4, "")
    wrong = Peer("ours float32", lambda batch: wanted * 1.1, "")
    broken = Peer("ours bfloat16", lambda batch: wanted * np.nan, "")
    assert peers.difference(right, [[1]], wanted) == pytest.approx(5e-5)
    with pytest.raises(NotHere, match=r"its logits differ by 0\.1 of the largest; allowed: 0\.001"):
        peers.difference(wrong, [[1]], wanted)
    with pytest.raises(NotHere, match="differ by nan"):
        peers.difference(broken, [[1]], wanted)


def test_one_that_raises_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> tuple[Callable[..., NDArray[Any]], str]:
        raise RuntimeError("no such operation\nand a long trace")

    wanted = np.array([[1.0, -2.0]])
    makers = {"broken float32": broken, "good float32": lambda: ((lambda batch: wanted), "good 1")}
    monkeypatch.setattr(Builder, "_makers", lambda self: makers)
    builder = Builder.__new__(Builder)
    with pytest.raises(NotHere, match=r"^raised RuntimeError: no such operation$"):
        builder.take_part("broken float32", [[1]], wanted)
    peer, off = builder.take_part("good float32", [[1]], wanted)
    assert (peer.name, peer.version, off) == ("good float32", "good 1", 0.0)


@pytest.mark.parametrize("wrong", [["--threads", "0"], ["--rounds", "0"], ["--seconds", "0"], ["--texts", "0"]])
def test_bad_numbers(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(wrong)


def test_a_peer_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    tiny = Builder.__new__(Builder)
    for name in ("OpenVINO bfloat16", "ONNX Runtime int8"):
        with pytest.raises(NotHere, match=r"not installed \(see constraints-peers\.txt\)"):
            tiny.build(name)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From a checkpoint to rows, table and picture, with the engines that are always there."""
    model, folder = tiny_model(vocab_size=1100, num_labels=2, max_position_embeddings=160), tmp_path / "model"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    monkeypatch.setattr(command, "prepare", lambda name, scratch: folder)
    monkeypatch.setattr(command, "SENTENCE", "good film")
    out = tmp_path / "rows.json"
    given = [
        "--threads",
        "1",
        "--seconds",
        "0.01",
        "--texts",
        "8",
        "--out",
        str(out),
        "--peers",
        "ours",
        "eager",
        "ONNX",
    ]
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(command, "time_end_to_end", lambda folder, seconds, rounds: [])
    assert command.main(given) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {row["peer"] for row in result["rows"]} >= {"ours float32", "ours bfloat16", "torch eager float32"}
    assert all(row["samples"] >= 3 and row["median_ms"] > 0 for row in result["rows"])
    assert "ONNX Runtime int8" in result["not_measured"]
    assert result["largest_difference"]["ours float32"] < 1e-3
    assert result["memory"]["engine_bytes"] > 0
    assert out.with_suffix(".png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "8 x 128: ours float32, time(1) / time(0.25)" in printed
    assert "not measured: ONNX Runtime int8" in printed


def test_goals_from_rows() -> None:
    def row(work: str, peer: str, median: float) -> dict[str, Any]:
        return {"work": work, "peer": peer, "median_ms": median, "cpu_median_ms": median / (2 if "ours" in peer else 1)}

    result = {
        "model": "base",
        "rows": [
            row("1 x 128", "ours bfloat16", 10.0),
            row("1 x 128", "OpenVINO bfloat16", 12.0),
            row("1 x 128, w0.25-d1", "ours bfloat16", 4.0),
            row("sst2, arrival order", "ours bfloat16", 10.0),
            row("sst2, arrival order", "OpenVINO bfloat16", 15.0),
            *[row(f"16 x 128, {w}", "ours bfloat16", t) for w, t in zip(works.WIDTHS, (8, 6, 4, 2), strict=True)],
            row("16 x 128, four widths", "ours bfloat16", 5.5),
        ],
        "memory": {"engine_bytes": 101, "checkpoint_bytes": 100},
        "not_measured": {"ONNX Runtime int8": "not installed"},
        "device": "x", "threads": 1, "load_average": "0", "commit": "c", "command": "python",
    }  # fmt: skip
    found = {ratio.what: (ratio.measured, ratio.goal) for ratio in report.ratios(result)}
    assert found["1 x 128: ours bfloat16 against OpenVINO bfloat16"] == (pytest.approx(1.2), 1.0)
    assert found["sst2, arrival order: ours bfloat16 against OpenVINO bfloat16"] == (pytest.approx(1.5), 1.7)
    assert found["1 x 128: ours bfloat16, time(1) / time(0.25)"] == (pytest.approx(2.5), 3.2)
    assert found["16 x 128: ours bfloat16, four widths against the sum of shares"] == (pytest.approx(1.1), 1.06)
    table = report.table(result)
    assert "| 1 x 128: ours bfloat16 against OpenVINO bfloat16 | 1.20 | 2.40 |  | at least 1 | met |" in table
    assert table.count("missed") == 3
    assert "not measured: ONNX Runtime int8: not installed" in table


def test_a_goal_above_the_processors_peak_is_told_from_one_that_we_miss() -> None:
    rows = [
        {"work": "1 x 128", "peer": peer, "median_ms": ms, "cpu_median_ms": ms}
        for peer, ms in (("ours bfloat16", 10.0), ("OpenVINO bfloat16", 8.0), ("torch eager bfloat16", 9.0))
    ]
    result = {
        "model": "base", "rows": rows, "memory": {"engine_bytes": 1, "checkpoint_bytes": 1}, "not_measured": {},
        "device": "x", "threads": 1, "load_average": "0", "commit": "c", "command": "python",
        "peak_multiplications_per_second": {"bfloat16": 1e9, "int8": None}, "multiplications": {"1 x 128": 6e6},
    }  # fmt: skip
    openvino, torch_eager = report.ratios(result)[:2]
    assert openvino.limit == pytest.approx(8 / 6)
    assert not openvino.met
    assert not openvino.out_of_reach  # 1.0 was asked for
    assert torch_eager.limit == pytest.approx(9 / 6)
    assert torch_eager.out_of_reach  # 1.7 was
    table = report.table(result)
    assert "| 0.90 | 0.90 | 1.50 | at least 1.7 | missed; above the processor's peak |" in table
    assert "1 x 128, ours bfloat16: 60 %" in table


def test_multiplications_and_the_peak() -> None:
    config = tiny_model().config
    one, two = works.Work("a", ([[5] * 8],)), works.Work("b", ([[5] * 8, [5] * 3],), ("w1-d1", "w0.5-d1"))
    least, more = ceiling.multiplications(config, one), ceiling.multiplications(config, two)
    width, layers, neurons = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    layer = 8 * (4 * width * width + 2 * neurons * width) + 2 * 8 * 8 * width
    assert least == layers * layer + width * width + config.num_labels * width
    assert least < more < 1.5 * least
    if NATIVE is None or NATIVE.cpu_features()["isa"] == "generic":
        assert ceiling.peak_rate("float32", 1) is None
    else:
        assert 1e9 < ceiling.peak_rate("float32", 2) < 1e12
        assert NATIVE.run_at_peak("float32", 0) == 0
        if NATIVE.cpu_features()["isa"] == "amx":
            assert NATIVE.run_at_peak("bfloat16", 3) == 3 * 12 * 16 * 16 * 32
            assert NATIVE.run_at_peak("int8", 3) == 3 * 12 * 16 * 16 * 64
        with pytest.raises(ValueError, match="allowed: float32, bfloat16, int8"):
            NATIVE.run_at_peak("float64", 1)


def test_the_end_to_end_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our engine beside transformers' pipeline, from a str to a label."""
    from dynabert.cli.demo import default_model_path

    if not Path(default_model_path()).is_dir():
        pytest.skip("the packaged model is not installed")
    folder = command.prepare("minilm", tmp_path)
    rows = command.time_end_to_end(folder, seconds=0.05)
    assert [row["peer"].split()[0] for row in rows].count("transformers") == 1
    assert all(row["texts"] == 1 and row["tokens"] == 12 for row in rows)
