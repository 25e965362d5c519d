"""The benchmark of a training step: its plain PyTorch peer computes the same, and rows say what was run."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks import training_step
from tests.dynabert.tiny_networks import plain_model


def test_the_peer_computes_the_same_and_rows_are_written(tmp_path: Path) -> None:
    network = {"vocab_size": 1100, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 128}
    plain_model("bert", num_labels=2, num_hidden_layers=4, **network).save_pretrained(tmp_path / "model")
    out = tmp_path / "rows.json"
    threads = torch.get_num_threads()
    try:
        options = ["--model_name_or_path", str(tmp_path / "model"), "--batch_size", "3", "--rounds", "1"]
        assert training_step.main([*options, "--threads", "1", "--out", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    facts = json.loads(out.read_text())
    assert facts["gradients_agree_within"] < 1e-4
    assert [row["contender"] for row in facts["rows"]] == list(training_step.CONTENDERS)
    for row in facts["rows"]:
        assert row["median_s"] > 0
        assert row["peak_bytes"] > 0


def test_lengths_are_those_of_a_set() -> None:
    assert sum(count for _, count in training_step.SST2_LENGTHS) == 872
    batches = training_step.draw_batches(2, 5, 1100, seed=1)
    assert batches == training_step.draw_batches(2, 5, 1100, seed=1)
    assert all(4 <= len(text) <= 55 for batch in batches for text in batch)
