"""The README's demo table, from results with and without distillation."""

from __future__ import annotations

from typing import Any

from benchmarks.readme_table import DEPTHS, WIDTHS, table


def results(*, distilled: bool) -> dict[str, Any]:
    kinds = {"": 0.2, "_unrewired": 0.1} | ({"_distilled": 0.3} if distilled else {})
    rows = [
        {"subnet": f"w{width}-d{depth}", "parameters": 2e6, "gflop": 1.5, "latency_ms": 10 * float(width)}
        | {f"score{kind}": value + 0.4 for kind, value in kinds.items()}
        | {f"metrics{kind}": {"matthews_correlation": value} for kind, value in kinds.items()}
        | {f"divergence{kind}": 1.0 - value for kind, value in kinds.items()}
        for depth in DEPTHS
        for width in WIDTHS
    ]
    stages = [{"steps": steps, "seconds": 60.0, "cut": False} for steps in (7, 9)]
    return {
        "subnets": rows,
        "latency": {"seq_length": 128, "device": "cpu", "dtype": "float32", "rounds": 3},
        "versions": {"torch": "2.13.0"},
        "threads": 1,
        "train_examples": 600,
        "examples": 379,
        "majority_score": 0.65,
        "seed": 42,
        "distillation": {"stages": stages, "batch_size": 8, "dtype": "float32"} if distilled else None,
    }


def test_distilled_columns_stand_first() -> None:
    lines = table(results(distilled=True)).splitlines()
    assert lines[0] == (
        "| width, depth | parameters | GFLOP | latency | time | Matthews, distilled | rewired | not rewired "
        "| accuracy, distilled | rewired | not rewired |"
    )
    assert lines[4] == "| 0.5, 1 | 2.0 M | 1.50 | 5.0 ms | 0.50 | 30.0 | 20.0 | 10.0 | 70.0 % | 60.0 % | 50.0 % |"
    assert {line.count("|") for line in lines[:14]} == {12}
    assert "7 and 9 steps of 8 reviews, 2.0 minutes, float32" in lines[-1]
    assert (
        "10.0 not rewired, 20.0 rewired, 30.0 distilled (lower than rewired at 0 of 12, in accuracy at 0)" in lines[-1]
    )
    assert "0.80 nats rewired, 0.70 distilled" in lines[-1]
    assert "1 thread, " in lines[-1]


def test_what_was_no_gain_is_said() -> None:
    found = results(distilled=True)
    found["subnets"][3]["metrics_distilled"]["matthews_correlation"] = 0.1
    found["subnets"][0]["score_distilled"] = found["subnets"][3]["score_distilled"] = 0.5
    found["distillation"]["stages"][1]["cut"] = True
    text = table(found)
    assert "lower than rewired at 1 of 12, in accuracy at 2" in text
    assert "9 steps of 8 reviews, ended by the clock" in text


def test_without_distillation() -> None:
    for absent in (True, False):
        found = results(distilled=False)
        if absent:
            del found["distillation"]  # a row from before there was any
        lines = table(found).splitlines()
        assert lines[0].endswith("| time | Matthews, rewired | not rewired | accuracy, rewired | not rewired |")
        assert "distilled" not in "\n".join(lines)
        assert "No sub-network was trained here" in lines[-1]
