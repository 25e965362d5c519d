"""The campaign: every part once, cut and gone on with, and what it leaves; its tasks, variants and page."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig

from benchmarks.accuracy import page
from benchmarks.accuracy.begun import BEGUN, _digest
from benchmarks.accuracy.campaign import NOT_DONE, main, options_of, plans
from benchmarks.accuracy.cells import Clock, starting_layers
from benchmarks.accuracy.predictions import Predictions, keep_predictions, teacher_folder, variants_there
from benchmarks.accuracy.rows import final_scores
from benchmarks.accuracy.tasks import split_qnli, task_folder
from benchmarks.accuracy.variants import RECIPES, VARIANTS, folder_name, split_name
from dynabert.cli.train import parse
from tests.dynabert.test_distillation_pipeline import write_files


def glue(folder: Path) -> Path:
    """A tiny RTE."""
    head = "index\tsentence1\tsentence2\tlabel"
    for name, count in (("train", 16), ("dev", 10)):
        rows = [f"{i}\tgood film {i % 3}\tbad {i % 4}\t{'not_' * (i % 2)}entailment" for i in range(count)]
        path = folder / "RTE" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([head, *rows]) + "\n")
    return folder


def options(folder: Path, out: str) -> list[str]:
    model, _ = write_files(folder)
    return [
        *("--model_name_or_path", str(model), "--data_dir", str(glue(folder / "glue")), "--tasks", "rte"),
        *("--seeds", "1", "--epochs", "rte=1", "--output_dir", str(folder / out), "--learning_rate", "1e-3"),
        *("--variants", "dynabert", "independent", "--independent_subnets", "w0.5-d0.5"),
        *("--widths", "1.0", "0.5", "--depths", "1.0", "0.5", "--per_device_train_batch_size", "4"),
        *("--disable_tqdm", "True", "--cache_dir", str(folder / "cache")),
    ]


def test_a_campaign_that_is_stopped_again_and_again_ends_as_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(tmp_path, "whole")
    assert main([*given, "--rows", str(tmp_path / "rows"), "--model_label", "tiny"]) == 0
    cell = tmp_path / "whole" / "rte" / "seed1"
    assert not list(cell.rglob("checkpoint-*"))
    assert json.loads((cell / BEGUN).read_text())["widths"] == [1.0, 0.5]
    assert variants_there(cell) == ["dynabert", "independent"]
    found = json.loads((tmp_path / "rows" / "rte-tiny-seed1.json").read_text())
    kept = tmp_path / "rows" / "predictions" / "tiny" / "rte" / "seed1" / "predictions"
    assert {path.name for path in kept.iterdir()} >= {"teacher.npz", "dynabert.npz"}
    (card,) = (tmp_path / "rows" / "cards").iterdir()
    assert card.name == "rte-tiny-seed1-paper.md"
    assert "w0.5-d0.5" in card.read_text()
    assert str(tmp_path) not in card.read_text()
    assert list(found["made"]) == ["teacher", "dynabert", "independent"]
    assert str(tmp_path) not in json.dumps(found)
    assert found["hours"]["of"] in ("CPU core", "GPU")
    assert {"teacher", "dynabert", "independent"} < set(found["hours"])
    last = [row for row in found["rows"] if row["part"] in ("depth", "fine-tuned")]
    assert len(last) == 4 + 1
    assert all("agreement" in row for row in last)
    assert len(final_scores(found)["dynabert"]) == 4

    # Over at the fifth look of each call: within stages, and before they begin.
    looks = 0

    def over(self: Clock) -> bool:
        nonlocal looks
        looks += 1
        return looks > 4

    monkeypatch.setattr(Clock, "over", property(over))
    pieces = options(tmp_path, "pieces")
    stops = 0
    while (code := main([*pieces, "--budget_minutes", "60"])) != 0:
        assert code == NOT_DONE
        stops, looks = stops + 1, 0
        assert stops < 60
    assert stops > 3
    assert "the budget is spent" in capsys.readouterr().out
    for name in ("teacher", "dynabert", "independent"):
        one, other = (
            Predictions.load(tmp_path / out / "rte" / "seed1" / "predictions" / f"{name}.npz")
            for out in ("whole", "pieces")
        )
        assert list(one.logits) == list(other.logits)
        for subnet, logits in one.logits.items():
            np.testing.assert_array_equal(logits, other.logits[subnet], err_msg=f"{name} {subnet}")

    # What is finished is not done again; a variant that comes later takes the teacher that is there.
    monkeypatch.undo()
    times = {path: path.stat().st_mtime_ns for path in cell.rglob("*") if path.suffix in (".npz", ".safetensors")}
    assert main(given) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    begun = given.index("--variants")
    more = [*given[: begun + 1], "no_hidden", "starting_layers", *given[begun + 3 :], "--recipe", "best"]
    assert main(more) == 0
    assert variants_there(cell) == ["dynabert", "independent", "best-no_hidden", "best-starting_layers"]
    shallow = json.loads((cell / "best-starting_layers" / "settings.json").read_text())
    assert shallow["recipe"]["starting_layers"] == list(starting_layers(given[1], 2 / 3))
    assert len(final_scores(json.loads((cell / "rows.json").read_text()))["best-starting_layers"]) == 4
    settings = json.loads((cell / "best-no_hidden" / "settings.json").read_text())
    assert settings["recipe"]["hidden_weights"] == [0.0, 0.0]
    assert settings["recipe"]["teacher_width"] == "full"
    assert settings["recipe"]["second_teacher"] == "fine_tuned"
    assert settings["recipe"]["final"] is True
    assert (cell / "best-no_hidden" / "final" / "complete.json").is_file()
    # Importance does not depend on the stages: it is taken over, and with it its seconds.
    taken = json.loads((cell / "best-no_hidden" / "rewired" / "complete.json").read_text())["taken_from"]
    assert Path(taken).name == "rewired"
    assert settings["fine_tuned"] is True
    # Predictions of another dev split are not those that were scored.
    dev = tmp_path / "glue" / "RTE" / "dev.tsv"
    dev.write_text(dev.read_text().replace("not_entailment", "entailment"))
    os.utime(teacher_folder(cell) / "complete.json")  # newer than its predictions
    with pytest.raises(ValueError, match="give the dev split that it was scored on"):
        keep_predictions(cell, "rte", tmp_path / "glue")


def test_the_plan_is_told_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options(tmp_path, "out"), "--plan_only"]) == 0
    text = capsys.readouterr().out
    assert "3 parts, 0 done, 3 left" in text
    assert "[3/3] rte seed 1 independent" in text
    assert not (tmp_path / "out").exists()


def leave_part(folder: Path, subnet: str) -> None:
    """What a finished part leaves, without its network."""
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text(json.dumps({"seconds": 1.0, "rows": [{"subnet": subnet, "score": 0.5}]}))


@pytest.mark.parametrize(
    ("trained", "asked", "done"),
    [
        (["w0.5-d1"], "w0.5-d1", True),
        (["w0.5-d1"], "w0.25-d0.5", False),
        (["w0.5-d1"], "all", False),
        (["w0.5-l0,2,5"], "w0.5-l0,2,5", True),
        (["w0.5-d1", "w0.25-d0.5"], "w0.5 w0.25-d0.5", True),
        (["w0.5-d1", "w0.25-d0.5"], "w0.5,w0.25", False),
        (["w1-d1", "w1-d0.5", "w0.5-d1", "w0.5-d0.5"], None, True),
        (["w1-d1", "w1-d0.5", "w0.5-d1", "w0.25-d0.5"], None, False),
    ],
)
def test_independent_networks_are_done_when_those_asked_for_are_there(
    tmp_path: Path, trained: list[str], asked: str | None, done: bool
) -> None:
    given = ["--data_dir", "glue", "--output_dir", str(tmp_path), "--tasks", "rte", "--seeds", "1"]
    given += [
        "--model_name_or_path",
        "net",
        "--learning_rate",
        "1e-3",
        "--widths",
        "1.0",
        "0.5",
        "--depths",
        "1",
        "0.5",
    ]
    (plan,) = plans(*options_of([*given, *(["--independent_subnets", asked] if asked else [])]))
    for subnet in trained:
        leave_part(plan.where("independent") / subnet, subnet)
    assert plan.is_done("independent") is done


def test_a_folder_that_was_begun_with_other_settings_is_refused(tmp_path: Path) -> None:
    model, _ = write_files(tmp_path)

    def given(*more: str, model: Path = model) -> list[str]:
        options = ["--model_name_or_path", str(model), "--learning_rate", "1e-3", "--epochs", "rte=1", *more]
        return [*options, "--data_dir", "glue", "--output_dir", str(tmp_path / "out"), "--tasks", "rte", "--seeds", "1"]

    (plan,) = plans(*options_of(given("--widths", "1.0", "0.5")))
    plan.keep_begun()
    assert main([*given("--widths", "1", "--plan_only")]) == 0  # nothing is trained yet
    leave_part(plan.where("teacher"), "w1-d1")
    (plan.where("dynabert")).mkdir()
    (plan.where("dynabert") / "results.json").write_text("{}")
    free = ["--plan_only", "--save_minutes", "3", "--threads", "1", "--logging_steps", "7", "--cache_dir", "x"]
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    for same in (["--widths", "1", "0.5"], ["--widths", "1", "0.5", "--recipe", "best"]):
        assert main([*given(*same, *free), "--data_dir", "elsewhere"]) == 0
        assert main([*given(*same, *free, model=moved)]) == 0
    BertConfig(num_hidden_layers=2).save_pretrained(moved)
    for more, net, told in (
        ([], model, r"--widths was \[1\.0, 0\.5\], now not given; use those, or another --output_dir"),
        (
            ["--widths", "1", "0.5", "--learning_rate", "5e-3"],
            model,
            r"settings: --learning_rate was 0\.001, now 0\.005;",
        ),
        (["--widths", "1", "0.5", "--epochs", "rte=9"], model, r"settings: --epochs was 1\.0, now 9\.0; use"),
        (["--widths", "1", "0.5", "--weight_decay=0.1"], model, r"--weight_decay was not given, now 0\.1"),
        (["--widths", "1", "0.5"], moved, r"--model_name_or_path was .*, now .*moved, whose files are others"),
    ):
        _digest.cache_clear()
        with pytest.raises(ValueError, match=told):
            main([*given(*more, *free, model=net)])
    # A folder of an earlier version says nothing: it is taken as it is.
    (plan.folder / BEGUN).unlink()
    assert main(given("--widths", "1", *free)) == 0
    assert not (plan.folder / BEGUN).exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seed", "3"], "--seed is decided by the campaign"),
        (["--num_train_epochs=3"], "--num_train_epochs=3 is decided by the campaign"),
        (["--epochs", "rte"], "allowed: TASK=NUMBER"),
        (["--epochs", "boolq=1"], "--epochs names boolq"),
        (["--budget_minutes", "0"], "allowed: above 0"),
        (["--variants", "augmented"], "needs --neighbours"),
        (["--variants", "dynabert", "augmented_same_steps"], "augmented_same_steps needs --neighbours"),
        (["--variants", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_what_does_not_hold_is_refused(more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options_of(["--data_dir", "glue", "--output_dir", "out", *more])
    assert said in capsys.readouterr().err


def test_every_variant_is_one_that_training_takes(tmp_path: Path) -> None:
    given = ["--data_dir", "glue", "--output_dir", str(tmp_path / "out"), "--tasks", "cola", "--seeds", "7"]
    model, _ = write_files(tmp_path)
    given += ["--neighbours", "near.tsv", "--model_name_or_path", str(model), "--learning_rate", "1e-4"]
    recipes = {}
    for name in RECIPES:
        (plan,) = plans(*options_of([*given, "--recipe", name]))
        for variant in VARIANTS:
            inputs, args = parse(plan.arguments(variant))
            numbers = args.learning_rate, args.num_train_epochs
            recipes[name, variant] = args.make_recipe(), *numbers, inputs.augment, inputs.no_rewiring
            assert args.seed == 7
            assert plan.work(variant, 100) > 0.0
        assert plan.work("sandwich", 100) < plan.work("dynabert", 100) <= plan.work("final_stage", 100)
        assert plan.work("starting_layers", 100) == pytest.approx(plan.work("dynabert", 100) * 2 / 3)
        assert recipes[name, "attention_relation"][0].relation_weights == (1.0, 1.0)
        assert recipes[name, "starting_layers"][0].starting_layers == starting_layers(str(model), 2 / 3)
    # Each changes something: an option of the trainer, or that there is one network for all. A recipe may have it.
    same = {key for key, found in recipes.items() if found == recipes[key[0], "dynabert"]}
    expected = {(name, variant) for name in RECIPES for variant in ("dynabert", "independent", "width_layer_norm")}
    has = {("best", name) for name in ("teacher_full", "teacher_fine_tuned", "final_stage")}
    assert same == expected | {("paper", "teacher_same"), ("short", "teacher_same")} | has
    assert len({str(recipes[name, "dynabert"]) for name in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize(("layers", "wanted"), [(4, (0, 1, 3)), (6, (0, 2, 3, 5)), (12, (0, 2, 3, 5, 6, 8, 9, 11))])
def test_where_a_shallower_student_starts(tmp_path: Path, layers: int, wanted: tuple[int, ...]) -> None:
    BertConfig(num_hidden_layers=layers).save_pretrained(tmp_path)
    assert starting_layers(str(tmp_path), VARIANTS["starting_layers"].depth) == wanted


def test_names_of_folders() -> None:
    for recipe in RECIPES:
        for variant in VARIANTS:
            assert split_name(folder_name(recipe, variant)) == (recipe, variant)
    for other in ("predictions", "teacher", "rows.json", "worst-dynabert", "paper"):
        with pytest.raises(ValueError, match="is no variant's folder"):
            split_name(other)


def test_qnli_is_cut_by_article(tmp_path: Path) -> None:
    """Ten articles of one question each: the fifth and the tenth are held out."""
    data = [{"title": str(i), "paragraphs": [{"context": "", "qas": [{"question": f"q {i}?"}]}]} for i in range(10)]
    (tmp_path / "squad").mkdir()
    (tmp_path / "glue" / "QNLI").mkdir(parents=True)
    (tmp_path / "squad" / "dev-v1.1.json.gz").write_bytes(gzip.compress(json.dumps({"data": data}).encode()))
    lines = ["index\tquestion\tsentence\tlabel", *(f'{i}\tq {i}?\tsaid "{i}\tentailment' for i in range(10))]
    dev = tmp_path / "glue" / "QNLI" / "dev.tsv.gz"
    dev.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    prepared = tmp_path / "out"
    assert task_folder("qnli", tmp_path / "glue", prepared) == prepared
    held = (prepared / "QNLI" / "dev.tsv").read_text().splitlines()
    assert held == [lines[0], lines[5], lines[10]]
    assert len((prepared / "QNLI" / "train.tsv").read_text().splitlines()) == 9
    assert task_folder("rte", tmp_path / "glue", prepared) == tmp_path / "glue"
    (prepared / "QNLI" / "train.tsv").rename(tmp_path / "glue" / "QNLI" / "train.tsv")
    assert task_folder("qnli", tmp_path / "glue", prepared) == tmp_path / "glue"  # GLUE's own is taken as it is
    dev.write_bytes(gzip.compress(f"{lines[0]}\n0\twho?\tx\tentailment\n".encode()))
    with pytest.raises(ValueError, match=r"'who\?' .* is in 0 articles"):
        split_qnli(dev, tmp_path / "squad" / "dev-v1.1.json.gz", tmp_path / "other")


def test_the_page_is_what_the_rows_say() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    found = re.search(re.escape(page.BEGIN) + r"\n(.*?)\n" + re.escape(page.END), text, re.S)
    assert found is not None
    assert found[1] == page.block(), "python -m benchmarks.accuracy.page --write"


@pytest.mark.parametrize("label", [label for label, _ in page.scorings()])
def test_scoring_is_of_the_committed_rows(label: str) -> None:
    """Every task and seed that was scored has its rows, and the mean of their scores is the summary's."""
    scoring, rows = dict(page.scorings())[label], page.rows_of(label)
    for task, found in scoring["tasks"].items():
        assert {(task, seed) for seed in found["seeds"]} <= set(rows)
        assert all(rows[task, seed]["examples"] == found["examples"] for seed in found["seeds"])
        teachers = [rows[task, seed]["teacher"] for seed in found["seeds"]]
        assert abs(np.mean(teachers) - found["teacher"]) < 2e-5
        for row in found["rows"]:
            kept = [final_scores(rows[task, seed])[row["variant"]][row["subnet"]] for seed in row["seeds"]]
            # A text whose two classes are as likely may fall to the other one on another machine.
            assert abs(np.mean(kept) - row["score"]) < 2.5 / found["examples"], row


def test_the_papers_ratio() -> None:
    assert page.paper_ratio("w0.75-d1", ["cola"]) is None
    assert page.paper_ratio("w1-d1", ["boolq"]) is None
    ratio = page.paper_ratio("w0.25-d0.5", ["cola", "rte"])
    assert ratio is not None
    assert abs(ratio - (43.7 / 58.1 + 63.2 / 71.1) / 2) < 1e-12


def test_readme_says_what_was_scored() -> None:
    """Its sentence on what two sub-networks keep, task by task, and no other numbers of that form."""
    text = " ".join((page.ROOT / "README.md").read_text(encoding="utf-8").split())
    scored = set()
    for scoring in dict(page.scorings()).values():
        for task, found in scoring["tasks"].items():
            kept = {row["subnet"]: row["retention"]["value"] for row in found["rows"] if row["variant"] == "dynabert"}
            if not kept:  # only of recipes that are for comparisons
                continue
            wanted = f"{page.title(task)} {page.percent(kept['w0.25-d1'])} and {page.percent(kept['w0.25-d0.5'])} %"
            assert wanted in text
            scored.add(wanted)
    assert set(re.findall(r"\b(?:SST-2|MRPC|CoLA|RTE|STS-B|QNLI|QQP) [\d.]+ and [\d.]+ %", text)) == scored
