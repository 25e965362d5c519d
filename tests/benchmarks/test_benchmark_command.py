"""``python -m benchmarks.run``: a tiny real run, its rows, and every way to call it wrongly."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measure, registry, rows, run
from benchmarks.problems import SHAPES, ModelShape
from benchmarks.rows import ROW_FIELDS

TOY = ModelShape("toy", hidden=16, heads=4, head_size=4, neurons=32)
FACTS = {
    "device", "driver", "cuda", "torch", "triton", "python", "dynabert_kernels", "native", "threads",
    "cpu_isa", "float32_products", "load_average", "commit", "source_digest", "date", "command",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings of a toy cache: the real ones take seconds."""
    real = run.measure_ceilings

    def small(*args: Any, **numbers: Any) -> Any:
        return real(*args, **(numbers | {"rounds": 1, "matrix_size": 32, "cache_bytes": 1 << 14}))

    monkeypatch.setattr(run, "measure_ceilings", small)
    monkeypatch.setitem(SHAPES, "toy", TOY)


def one_file(folder: Path, suffix: str) -> Path:
    (found,) = folder.glob(f"*{suffix}")
    return found


def test_a_tiny_run_checks_times_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shape", "toy", "--tokens", "5", "3+2", "--width", "1", "0.5", "--dtype", "float32", "--rounds", "2"]
    assert run.main([*arguments, "--out", str(tmp_path), "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert "ceilings measured now" in printed
    assert "no width, so measured once, at width 1: add_layer_norm" in printed
    assert "not measured: triton" in printed

    document = json.loads(one_file(tmp_path, ".json").read_text(encoding="utf-8"))
    assert set(document) == {"schema", "environment", "ceilings", "rows"}
    assert {row["benchmark"] for row in document["rows"]} == set(registry.REGISTRY)
    for row in document["rows"]:
        assert set(row) == {*ROW_FIELDS, *FACTS}
        assert row["seed"] == 7
        assert row["command"].startswith("python -m benchmarks.run --shape toy")
        if row["status"] == rows.MEASURED:
            assert row["median_ms"] > 0
            assert row["ceiling_share"] > 0
            assert row["size_bytes"] > 0
        else:
            assert row["status"] == rows.UNAVAILABLE
            assert row["note"]
            assert row["median_ms"] is None
    seen = {(row["benchmark"], row["tokens"], row["width"]) for row in document["rows"] if row["provider"] == "torch"}
    assert ("elastic_ffn", "3+2", 0.5) in seen
    assert ("add_layer_norm", "5", 1.0) in seen
    assert ("add_layer_norm", "5", 0.5) not in seen
    with one_file(tmp_path, ".csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["provider"] for line in table] == [row["provider"] for row in document["rows"]]


@pytest.mark.parametrize("cache", measure.CACHES)
def test_every_state_of_the_cache_can_be_asked_for(cache: str, tmp_path: Path) -> None:
    arguments = ["--op", "elastic_linear.ffn_out", "--provider", "reference", "--shape", "toy", "--tokens", "4"]
    more = ["--width", "0.5", "--dtype", "float32", "--rounds", "1", "--cache", cache, "--out", str(tmp_path)]
    assert run.main([*arguments, *more]) == 0
    row = json.loads(one_file(tmp_path, ".json").read_text(encoding="utf-8"))["rows"][1]
    assert (row["provider"], row["cache"]) == ("reference", cache)
    # Without width 1 in the run there is no ratio to it.
    assert row["speedup_vs_width_1"] is None


def test_a_run_that_is_out_of_time_names_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shape", "toy", "--tokens", "4", "--quick", "--out", str(tmp_path), "--time-limit-s", "-1"]
    assert run.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "not measured, the time limit of -1 s was over: add_layer_norm toy 4 float32" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "elastic_fnn"], "--op 'elastic_fnn' is unknown; allowed: add_layer_norm"),
        (["--provider", "gpu"], "--provider 'gpu' is unknown; allowed: reference, cpu, triton, cuda"),
        (["--shape", "bert"], "--shape 'bert' is unknown; allowed: minilm, bert-base"),
        (["--tokens", "8*128"], "--tokens '8*128' is not a batch"),
        (["--width", "0.8"], "width 0.8 is 9.6 of 12 heads of minilm"),
        (["--dtype", "int8"], "--dtype 'int8' is unknown; allowed: float32"),
        (["--direction", "up"], "--direction 'up' is unknown; allowed: forward, backward"),
        (["--device", "tpu"], "--device 'tpu' is unknown; allowed: cpu, cuda"),
        (["--cache", "hot"], "--cache 'hot' is unknown; allowed: use, warm, cold"),
        (["--rounds", "0"], "--rounds is 0; allowed: 1 or more"),
        (["--threads", "0"], "--threads is 0; allowed: 1 or more"),
        (["--repeats", "0"], "--repeats is 0; allowed: 1 or more"),
        (["--ceilings", "/nowhere.json"], "--ceilings /nowhere.json is not a file of rows (FileNotFoundError"),
        (
            ["--op", "elastic_ffn.backward", "--direction", "forward"],
            "no benchmark of elastic_ffn.backward in direction",
        ),
        (["--plan", "0.5"], "--plan '0.5' is not a plan"),
        (["--plan", "w1:2,skip", "--tokens", "128"], "the batch 128 has 1; allowed: a multiple of 3"),
        (["--dropout", "1"], "--dropout is 1; allowed: from 0 to below 1"),
    ],
)
def test_a_wrong_command_says_what_is_allowed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(["--device", "cuda"]) == 2
    assert "PyTorch sees no GPU here; use --device cpu" in capsys.readouterr().err


def test_the_list_names_every_benchmark_and_its_peer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for benchmark in registry.REGISTRY.values():
        assert benchmark.name in printed
        assert benchmark.peer_text in printed


def test_ceilings_of_another_run_serve_this_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--op", "elastic_linear.ffn_out", "--provider", "reference", "--shape", "toy", "--tokens", "4"]
    few += ["--width", "1", "--rounds", "1", "--out"]
    assert run.main([*few, str(tmp_path / "a"), "--dtype", "float32"]) == 0
    file = one_file(tmp_path / "a", ".json")
    assert run.main([*few, str(tmp_path / "b"), "--dtype", "float32", "--ceilings", str(file)]) == 0
    first, second = (json.loads(one_file(tmp_path / name, ".json").read_text(encoding="utf-8")) for name in "ab")
    assert first["ceilings"] == second["ceilings"]
    assert run.main([*few, str(tmp_path / "c"), "--dtype", "bfloat16", "--ceilings", str(file)]) == 2
    assert "has no rate of bfloat16; it has float32" in capsys.readouterr().err


def test_a_mixed_plan_stands_beside_the_full_width(tmp_path: Path) -> None:
    few = ["--op", "elastic_ffn", "--provider", "reference", "--shape", "C16-H4-D4-F32", "--tokens", "3+2+4"]
    more = ["--plan", "w0.5,skip:1,w1", "--dtype", "float32", "--rounds", "1", "--out", str(tmp_path)]
    assert run.main([*few, *more]) == 0
    found = json.loads(one_file(tmp_path, ".json").read_text(encoding="utf-8"))["rows"]
    assert {row["plan"] for row in found} == {"w1", "w0.5:1,skip:1,w1:1"}
    assert {row["direction"] for row in found} == {"forward", "backward"}
    mixed = next(row for row in found if row["plan"] != "w1" and row["provider"] == "reference")
    assert (mixed["width"], mixed["status"]) == (pytest.approx(5.5 / 9), rows.MEASURED)
    assert mixed["ideal_speedup"] == pytest.approx(9 / 5.5)


def test_dropout_is_checked_against_the_definition_since_pytorch_drops_other_entries(tmp_path: Path) -> None:
    few = ["--op", "elastic_ffn", "elastic_attention", "--provider", "reference", "--shape", "toy", "--tokens", "3+4"]
    more = ["--width", "0.5", "--dropout", "0.3", "--dtype", "float32", "--rounds", "1", "--out", str(tmp_path)]
    assert run.main([*few, *more]) == 0
    found = json.loads(one_file(tmp_path, ".json").read_text(encoding="utf-8"))["rows"]
    assert {row["status"] for row in found} == {rows.MEASURED}
    assert {row["dropout"] for row in found} == {0.3}


def test_rows_name_the_code_they_measured() -> None:
    digest = rows.source_digest()
    assert len(digest) == 12
    assert digest == rows.source_digest()
    assert rows.commit()
    assert set(rows.environment(torch.device("cpu"), ["--quick"])) == FACTS
