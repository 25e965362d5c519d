"""The accuracy campaign: every variant on a tiny network, resumed, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.accuracy.__main__ import VARIANTS, known_commands, main
from benchmarks.accuracy.rows import collect, final_scores, shown
from benchmarks.accuracy.variants import folder_name, split_name
from tests.dynabert.test_distillation_pipeline import write_files

ROOT = Path(__file__).parents[2]


def options(folder: Path) -> list[str]:
    model, train = write_files(folder)
    validation = train
    return [
        *("--model_name_or_path", str(model), "--train_file", str(train), "--validation_file", str(validation)),
        *("--output_dir", str(folder / "out"), "--widths", "1.0", "0.5", "--depths", "1.0", "0.5", "--use_cpu"),
        *("--num_train_epochs", "1", "--per_device_train_batch_size", "4"),
        *("--report_to", "none", "--disable_tqdm", "True"),
    ]


def test_every_variant_leaves_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = options(tmp_path)
    assert main([*given, "--rows", str(tmp_path / "rows.json")]) == 0
    found = json.loads((tmp_path / "rows.json").read_text())
    scores = final_scores(found)
    assert list(scores) == ["rewired only", "dynabert", "no_rewiring", "no_distillation", "independent"]
    assert all(len(column) == 4 for column in scores.values())
    assert (tmp_path / "rows.png").is_file()
    (call,) = found["commands"]["dynabert"]
    assert found["commands"] == {name: [call] for name in VARIANTS}
    assert str(tmp_path) not in call
    text = capsys.readouterr().out
    assert "| sub-network | rewired only | dynabert | no rewiring | no distillation | independent |" in text
    # Labels are all that the variant without distillation has: it logs no teacher's loss, and runs the same stages.
    settings = json.loads((tmp_path / "out" / "no_distillation" / "settings.json").read_text())
    assert settings["recipe"]["distillation"] is False
    done = (tmp_path / "out" / "dynabert" / "depth" / "complete.json").stat().st_mtime_ns
    assert main([*given, "--variants", "dynabert"]) == 0
    assert (tmp_path / "out" / "dynabert" / "depth" / "complete.json").stat().st_mtime_ns == done
    assert collect(tmp_path / "out", ["independent"])["rows"]
    # A call that repeats nothing leaves the calls that made the rows.
    assert json.loads((tmp_path / "out" / "rows.json").read_text())["commands"] == found["commands"]


def test_variants_in_several_calls_keep_their_own(tmp_path: Path) -> None:
    given = options(tmp_path)
    assert main([*given, "--variants", "dynabert"]) == 0
    alone = [*given, "--variants", "independent", "--independent_subnets"]
    assert main([*alone, "w0.5-d1"]) == 0
    assert main([*alone, "w0.5-d1,w0.5-d0.5"]) == 0
    commands = json.loads((tmp_path / "out" / "rows.json").read_text())["commands"]
    assert list(commands) == ["dynabert", "independent"]
    assert [call.rsplit(" ", 1)[1] for call in commands["dynabert"]] == ["dynabert"]
    assert [call.rsplit(" ", 1)[1] for call in commands["independent"]] == ["w0.5-d1", "w0.5-d1,w0.5-d0.5"]


@pytest.mark.parametrize(
    ("old", "known"),
    [
        ({"command": "python -m x --variants dynabert,no_rewiring"}, ["dynabert", "no_rewiring"]),
        ({"command": "python -m x --variants=independent --seed 1"}, ["independent"]),
        ({"command": "python -m x --seed 1"}, list(VARIANTS)),
        ({}, []),
    ],
)
def test_rows_of_an_older_file(tmp_path: Path, old: dict[str, str], known: list[str]) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(old))
    assert known_commands(tmp_path / "rows.json") == {name: [old["command"]] for name in known}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results/accuracy").glob("*.json")), ids=lambda p: p.stem)
def test_committed_rows_are_read(path: Path) -> None:
    """The recipe that a variant changes is in its file too, with the command that made it; in the campaign's files each
    variant has its own."""
    found = json.loads(path.read_text())
    known, there = known_commands(path), {row["variant"] for row in found["rows"]}
    assert there
    for name in there:
        recipe = folder_name(split_name(name)[0], "dynabert")
        assert recipe in there
        assert known[recipe]
        assert "made" not in found or known[name]
    assert "| sub-network |" in shown(found)


def test_what_is_asked_for_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--output_dir", str(tmp_path), "--variants", "dynabert,magic"])
    assert "--variants has magic; allowed: dynabert, no_rewiring" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--output_dir", str(tmp_path), "--variants", "independent"])
    assert "run the variant dynabert first" in capsys.readouterr().err


def test_the_table_takes_the_last_part() -> None:
    row = {"variant": "dynabert", "part": "width", "subnet": "w1-d1", "score": 0.5}
    found = {
        "metric": "accuracy",
        "examples": 8,
        "majority": 0.5,
        "teacher": 0.8,
        "rows": [row, row | {"part": "rewired", "score": 0.2}, row | {"part": "depth", "score": 0.75}],
    }
    assert final_scores(found) == {"dynabert": {"w1-d1": 0.75}, "rewired only": {"w1-d1": 0.2}}
    assert "| w1-d1 | 75.0 | 20.0 |" in shown(found)


def test_a_teacher_without_a_score_has_no_retention(tmp_path: Path) -> None:
    """CoLA's Matthews of a teacher that learned nothing."""
    row = {"subnet": "w1-d1", "score": 0.0, "metric": "matthews_correlation", "examples": 4, "majority": 0.0}
    for part in ("teacher", "dynabert/depth"):
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / "complete.json").write_text(json.dumps({"rows": [row], "seconds": 1.0}))
    (tmp_path / "dynabert" / "results.json").write_text("{}")
    (found,) = collect(tmp_path)["rows"]
    assert found["retention"] is None
    assert found["corrected_retention"] is None
