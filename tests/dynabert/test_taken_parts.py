"""Parts that a run takes over from another one: exactly those that it would have made itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dynabert.cli import main
from dynabert.distill.pipeline import train_elastic
from dynabert.distill.taken_parts import decided_by
from tests.dynabert.test_distillation_pipeline import SMALL, network, options_of
from tests.dynabert.tiny_training import arguments, texts

PARTS = ["teacher", "rewired", "width", "depth"]


def run(folder: Path, name: str, parts_of: list[Path] = [], **changes: Any) -> list[str]:  # noqa: B006
    """Trains, and says which parts were taken. ``given`` are arguments of `train_elastic`."""
    given = changes.pop("given", {})
    said: list[str] = []
    args = arguments(folder / name, **SMALL | changes)
    train_elastic(network(folder), args, texts(16), texts(8, seed=5), say=said.append, parts_of=parts_of, **given)
    return [line.split(":")[0] for line in said if "taken from" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# What is changed, whether the network is fine-tuned already, and the parts that both runs have in common.
CHANGES: dict[str, tuple[dict[str, Any], bool, list[str]]] = {
    "nothing": ({}, False, PARTS),
    "the second stage's sampling": ({"sampling": "sandwich"}, False, PARTS[:3]),
    "the second stage's teacher": ({"teacher_width": "full"}, False, PARTS[:3]),
    "the second stage's other teacher": ({"teacher_width": "full", "second_teacher": "fine_tuned"}, False, PARTS[:3]),
    "the second stage's weights": ({"hidden_weights": [0.1, 0.5]}, False, PARTS[:3]),
    "a last stage": ({"final_stage": True}, False, PARTS),
    "the first stage's weights": ({"hidden_weights": [1.0, 1.0]}, False, PARTS[:2]),
    "the relations' weights": ({"relation_weights": [0.0, 1.0]}, False, PARTS[:3]),
    "the labels' weights": ({"label_weights": [0.0, 1.0]}, False, PARTS[:3]),
    "the labels' weights in both stages": ({"label_weights": [1.0, 1.0]}, False, PARTS[:2]),
    "distillation": ({"distillation": False}, False, PARTS[:2]),
    "importance": ({"importance_mode": "accumulated"}, False, PARTS[:1]),
    "the depth rule": ({"depth_rule": "reference"}, False, []),
    "the widths": ({"widths": [1.0, 0.25]}, False, []),
    "the learning rate": ({"learning_rate": 2e-2}, False, []),
    "the rate, of a fine-tuned network": ({"learning_rate": 2e-2}, True, PARTS[:2]),
    "the epochs, of a fine-tuned network": ({"num_train_epochs": 2}, True, PARTS[:2]),
    "the batch, of a fine-tuned network": ({"per_device_train_batch_size": 4}, True, []),
    "the seed": ({"seed": 7}, False, []),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_two_runs_have_in_common_is_taken(tmp_path: Path, what: str) -> None:
    """And nothing else is: the run ends with the weights that it has alone, to the bit."""
    changes, fine_tuned, common = CHANGES[what]
    given = {"fine_tuned": fine_tuned}
    run(tmp_path, "first", given=given)
    assert run(tmp_path, "second", [tmp_path / "first"], given=given, **changes) == common
    run(tmp_path, "alone", given=given, **changes)
    for part in [*PARTS, *(["final"] if "final_stage" in changes else [])]:
        found, wanted = weights(tmp_path / "second" / part), weights(tmp_path / "alone" / part)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), part
        own = [json.loads((tmp_path / name / part / "complete.json").read_text()) for name in ("second", "alone")]
        assert own[0]["rows"] == own[1]["rows"]
        assert own[0].get("taken_from") == (str(tmp_path / "first") + f"/{part}" if part in common else None)
        assert not list((tmp_path / "second" / part).glob("checkpoint-*")) or part not in common


def test_rewiring_and_text_without_labels_decide_too(tmp_path: Path) -> None:
    run(tmp_path, "first")
    first = [tmp_path / "first"]
    assert run(tmp_path, "plain", first, given={"rewiring": False}) == ["teacher"]
    assert run(tmp_path, "other text", first, given={"unlabelled": texts(16, seed=9)}) == ["teacher", "rewired"]


def test_why_a_part_is_not_taken_is_said(tmp_path: Path) -> None:
    run(tmp_path, "first")
    said: list[str] = []
    args = arguments(tmp_path / "second", **SMALL, learning_rate=2e-2)
    given = {"say": said.append, "parts_of": [tmp_path / "first"]}
    train_elastic(network(tmp_path), args, texts(16), texts(8, seed=5), **given)
    reason = f"teacher: not taken, so trained here: in {tmp_path / 'first'} arguments.learning_rate was 0.01, now 0.02"
    assert reason in said


def test_where_the_texts_lie_and_what_is_free_decide_nothing(tmp_path: Path) -> None:
    run(tmp_path, "first")
    settings = json.loads((tmp_path / "first" / "settings.json").read_text())
    moved = json.loads(json.dumps(settings))
    moved["data"]["train"]["source"] = "/mnt/train.csv"
    moved["arguments"]["ddp_timeout"] = 7  # as a version wrote it to which it was not free
    del moved["metric"]
    (tmp_path / "first" / "settings.json").write_text(json.dumps(moved))
    assert run(tmp_path, "second", [tmp_path / "first"]) == PARTS
    assert run(tmp_path, "first") == []  # it goes on, and finds all of it done
    moved["data"]["train"]["digest"] = "another"
    (tmp_path / "first" / "settings.json").write_text(json.dumps(moved))
    with pytest.raises(ValueError, match=r"data\.train\.digest was 'another', .*data\.train\.source was '/mnt"):
        run(tmp_path, "first")


def test_the_metric_decides(tmp_path: Path) -> None:
    run(tmp_path, "first", given={"metric": "accuracy"})
    with pytest.raises(ValueError, match="begun with other settings: metric was 'accuracy', now None"):
        run(tmp_path, "first")
    assert run(tmp_path, "second", [tmp_path / "first"]) == []


def test_the_first_folder_that_has_a_part_gives_it(tmp_path: Path) -> None:
    run(tmp_path, "early", importance_mode="accumulated")
    run(tmp_path, "late")
    sources = [tmp_path / "early", tmp_path / "late"]
    assert run(tmp_path, "both", sources, sampling="sandwich") == PARTS[:3]
    origins = [json.loads((tmp_path / "both" / part / "complete.json").read_text())["taken_from"] for part in PARTS[:3]]
    assert [Path(origin).parent.name for origin in origins] == ["early", "late", "late"]
    # Taken once more, it is still said where a part was made.
    assert run(tmp_path, "again", [tmp_path / "both"]) == PARTS[:3]
    assert "early" in json.loads((tmp_path / "again" / "teacher" / "complete.json").read_text())["taken_from"]


def test_a_part_that_was_begun_or_is_not_complete_is_made_here(tmp_path: Path) -> None:
    run(tmp_path, "first")
    (tmp_path / "first" / "rewired" / "complete.json").unlink()
    assert run(tmp_path, "second", [tmp_path / "first"]) == ["teacher"]  # the width stage needs the rewired network
    run(tmp_path, "third")
    (tmp_path / "third" / "width" / "complete.json").unlink()
    assert run(tmp_path, "third", [tmp_path / "second"]) == []


def test_a_copy_that_was_cut_is_made_again(tmp_path: Path) -> None:
    run(tmp_path, "first")
    (tmp_path / "second" / "teacher.taken").mkdir(parents=True)
    (tmp_path / "second" / "settings.json").write_text((tmp_path / "first" / "settings.json").read_text())
    assert run(tmp_path, "second", [tmp_path / "first"]) == PARTS
    assert not list((tmp_path / "second").glob("*.taken"))


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options_of(tmp_path, parts_of=str(tmp_path / "nothing"))) == 1
    shown = capsys.readouterr().err
    assert "nothing holds no training run; allowed: an --output_dir of 'dynabert train'" in shown
    assert not (tmp_path / "out").exists()  # refused before anything is written


def test_every_setting_is_somebodys(tmp_path: Path) -> None:
    """A setting that no stage's key had would be taken for one that decides nothing."""
    run(tmp_path, "run", final_stage=True)
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    last = decided_by(settings, "final")
    assert last["recipe"] == settings["recipe"]
    own = {k: v for k, v in last.items() if k not in ("recipe", "arguments")}
    assert own == {k: v for k, v in settings.items() if k not in ("recipe", "arguments")}
