"""Latency: every sub-network is timed in every round, in changing order, and the conditions are stated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dynabert.profile import measure_latency
from tests.dynabert.tiny_texts import tiny_model

SUBNETS = ["w1", "w0.5-d0.75", "w0.25-d0.5"]


def test_rows_state_their_conditions() -> None:
    rows = measure_latency(tiny_model(), SUBNETS, batch_size=3, seq_length=11, rounds=4, warmup=1)
    assert [row.subnet for row in rows] == ["w1-d1", "w0.5-d0.75", "w0.25-d0.5"]
    for row in rows:
        assert 0.0 < row.p20_ms <= row.median_ms <= row.p80_ms
        assert (row.rounds, row.batch_size, row.seq_length) == (4, 3, 11)
        assert row.threads == torch.get_num_threads()
        assert (row.device, row.dtype) == ("cpu", "float32")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_int8_is_named(dtype: torch.dtype) -> None:
    small = tiny_model().quantise_weights(dtype)
    (row,) = measure_latency(small, ["w1"], seq_length=4, rounds=1, warmup=0)
    assert row.dtype == "int8"


def test_rounds_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    ran: list[tuple[int, ...]] = []
    run = model.packed_logits

    def watched(batch: Any, plan: Any) -> Any:
        ran.append(plan.max_heads)
        return run(batch, plan)

    monkeypatch.setattr(model, "packed_logits", watched)
    measure_latency(model, SUBNETS, rounds=8, warmup=2, seq_length=4)
    shapes = [model.shape(subnet).heads for subnet in SUBNETS]
    assert ran[:6] == shapes * 2  # warm-up
    timed = [ran[6 + 3 * i : 9 + 3 * i] for i in range(8)]
    assert all(sorted(one) == sorted(shapes) for one in timed)
    assert len({tuple(one) for one in timed}) > 1


@pytest.mark.parametrize("training", [False, True])
def test_mode_is_put_back(training: bool) -> None:
    model = tiny_model().train(training)
    measure_latency(model, ["w1"], rounds=1, warmup=0, seq_length=4)
    assert model.training is training


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"rounds": 0}, "rounds is 0; allowed: 1 or more"),
        ({"warmup": -1}, "warmup is -1; allowed: 0 or more"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seq_length": 51}, "seq_length is 51; allowed: 1 to 50"),
        ({"seq_length": 0}, "seq_length is 0"),
        ({"subnets": []}, "each sub-network is needed once; got none"),
        ({"subnets": ["w1", "w1-d1"]}, "got w1-d1, w1-d1"),
    ],
)
def test_refusals(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match="measure_latency: ") as error:
        measure_latency(tiny_model(), **({"subnets": ["w1"], "seq_length": 4} | options))
    assert wrong in str(error.value)
