"""``--suite``: which rows it asks for, and which it says miss their goal."""

from __future__ import annotations

from typing import Any

from benchmarks import rows, run
from benchmarks.rows import Row
from benchmarks.suites import SUITES, verdict


def row(**changes: Any) -> Row:
    facts: dict[str, Any] = {
        "benchmark": "elastic_ffn", "op": "elastic_ffn", "direction": "forward", "provider": "cpu", "shape": "minilm",
        "tokens": "128", "num_tokens": 128, "plan": "w1", "width": 1.0, "heads": 12, "neurons": 1536,
        "dtype": "float32", "dropout": 0.0, "cache": "use", "seed": 1, "status": rows.MEASURED, "median_ms": 1.0,
        "p20_ms": 0.9, "p80_ms": 1.1, "speedup_vs_torch": 1.3,
    }  # fmt: skip
    return Row(**(facts | changes))


def test_the_cpu_suite_asks_for_the_rows_of_the_comparison_with_plain_pytorch() -> None:
    flags = run.parser()
    flags.set_defaults(**SUITES["cpu"].defaults)
    job = run.read(flags.parse_args(["--suite", "cpu", "--rounds", "7"]))
    assert (job.threads, job.rounds, job.providers) == (1, 7, ("cpu",))
    assert {shape.name for shape in job.shapes} == {"bert-base", "minilm"}
    assert job.batches == [(128,), (128,) * 8]
    assert [mix.name for mix in job.mixes] == ["w1", "w0.25"]
    assert {benchmark.direction for benchmark in job.benchmarks} == {"forward", "backward"}


def test_goals_are_higher_for_fused_sub_layers_where_the_batch_is_small_or_the_network_narrow() -> None:
    suite = SUITES["cpu"]
    assert suite.goal(row()) == 1.2
    assert suite.goal(row(num_tokens=1024)) == 0.9
    assert suite.goal(row(num_tokens=1024, width=0.25)) == 1.2
    assert suite.goal(row(op="elastic_linear")) == 0.9


def test_the_verdict_names_what_misses_and_what_has_no_ratio_and_leaves_the_peer_out() -> None:
    found = [
        row(),
        row(speedup_vs_torch=1.1),
        row(op="elastic_linear", benchmark="elastic_linear.ffn_in", speedup_vs_torch=0.5),
        row(status=rows.RED, note="y: error 1", speedup_vs_torch=None, dtype="bfloat16"),
        row(provider="torch", speedup_vs_torch=1.0),
    ]
    lines = verdict(SUITES["cpu"], found)
    assert lines[0] == "no ratio: elastic_ffn, cpu, minilm, 128, w1, bfloat16: red, y: error 1"
    assert lines[1].startswith("0.50 of 0.9: elastic_linear.ffn_in")
    assert lines[2].startswith("1.10 of 1.2: elastic_ffn")
    assert lines[3].startswith("1 rows reach their goal")
    assert lines[3].endswith("2 miss it")
