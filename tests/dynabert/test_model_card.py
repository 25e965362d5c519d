"""Model cards: every number is one that was given, and what was not is said."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from dynabert.cli import main
from dynabert.cost import subnet_cost
from dynabert.distill.card import run_datasets
from dynabert.model_card import CardLatency, CardScores, CardTraining, model_card, public_name
from dynabert.modeling import ElasticBertModel
from dynabert.profile import DeviceProfile, LatencyRow, measure_latency
from dynabert.profile.encoder_shape import EncoderShape
from tests.dynabert.test_profile import some_profile
from tests.dynabert.tiny_texts import tiny_folder, tiny_model

# A folder of the user's that no card may show.
PRIVATE = Path.cwd().anchor / Path("somebody")

SCORES = CardScores(
    {"w1-d1": 0.9, "w0.5-d0.5": 0.8},
    "accuracy",
    200,
    majority=0.6,
    teacher=0.92,
    data=str(PRIVATE / "my data" / "dev.tsv"),
)


def row_of(card: str, subnet: str) -> list[str]:
    (line,) = (line for line in card.splitlines() if line.startswith(f"| `{subnet}` "))
    return [cell.strip() for cell in line.strip("| ").split("|")]


def front_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def latency_row(subnet: str, milliseconds: float, **changes: Any) -> LatencyRow:
    row = LatencyRow(subnet, milliseconds, milliseconds, milliseconds, 5, 4, 16, 2, "cpu", "float32")
    return replace(row, **changes)


def test_nothing_given(architecture: str) -> None:
    """No number but those that are counted; nothing in the metadata that nobody said."""
    model = tiny_model(architecture)
    card = model_card(model)
    length = min(128, model.config.max_sequence_length)
    for subnet in ("w1-d1", "w0.25-d0.5"):
        cost = subnet_cost(model.config, subnet, seq_length=length)
        counted = [f"`{subnet}`", f"{cost.parameters:,}", f"{cost.gflop:.3g}"]
        assert row_of(card, subnet) == [*counted, "not measured", "not measured", "not measured"]
    for line in ("Scores: not measured.", "Latency: not measured.", "## Recipe\n\nNot recorded.", "none is stated"):
        assert line in card
    assert front_of(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["dynabert", "elastic", "dynabert-kernels", architecture],
    }
    assert model_card(model.config) == card


def test_scores_and_latencies() -> None:
    latency = CardLatency.of_rows([latency_row("w1-d1", 12.345), latency_row("w0.25-d1", 120.4).to_dict()], "My CPU")
    card = model_card(tiny_model(), scores=SCORES, latency=latency)
    assert row_of(card, "w1-d1")[3:] == ["90.0", "100.0 %", "100.0 %", "12.3"]
    assert row_of(card, "w0.5-d0.5")[3:] == ["80.0", "88.9 %", "66.7 %", "not measured"]
    assert row_of(card, "w0.25-d1")[3:] == ["not measured", "not measured", "not measured", "120"]
    assert "accuracy on 200 examples of dev.tsv" in card
    assert "constant answer's score, 60.0" in card
    assert "that taught it scores 92.0" in card
    assert "measured, one forward pass of 4 x 16 tokens in float32 on My CPU, 2 threads" in card
    assert str(PRIVATE) not in card
    results = ModelCard(card).data.eval_results
    assert results is not None
    assert {one.metric_name: one.metric_value for one in results} == {
        "accuracy of w1-d1": 0.9,
        "accuracy of w0.5-d0.5": 0.8,
    }
    chance = replace(SCORES, majority=0.9)
    assert row_of(model_card(tiny_model(), scores=chance), "w0.5-d0.5")[5] == "undefined"
    without = replace(SCORES, majority=None, rows={"w0.5-d0.5": 0.8})
    assert row_of(model_card(tiny_model(), scores=without), "w0.5-d0.5")[3:] == ["80.0", "not measured", "not measured"]


def test_latencies_as_they_are_measured() -> None:
    model = tiny_model()
    rows = measure_latency(model, ["w1", "w0.5-d0.5"], seq_length=4, rounds=2, warmup=0)
    card = model_card(model, latency=CardLatency.of_rows(rows))
    assert "1 x 4 tokens in float32 on cpu" in card
    assert "not measured" not in row_of(card, "w0.5-d0.5")[-1]
    with pytest.raises(ValueError, match="2 sets of conditions; allowed: one"):
        CardLatency.of_rows([latency_row("w1", 1.0), latency_row("w0.5", 1.0, threads=1)])


def test_latencies_in_int8_are_a_column_of_their_own() -> None:
    half, small = tiny_model().bfloat16(), tiny_model().quantise_weights()
    plain = measure_latency(half, ["w1"], seq_length=4, rounds=1, warmup=0)
    quantised = measure_latency(small, ["w0.5"], seq_length=4, rounds=1, warmup=0)
    with pytest.raises(ValueError, match="2 sets of conditions; allowed: one"):
        CardLatency.of_rows([*plain, *quantised])
    card = model_card(tiny_model(), latency=CardLatency.of_rows(quantised))
    assert "1 x 4 tokens in int8 on cpu" in card


def test_what_the_author_says() -> None:
    card = model_card(
        tiny_model("mpnet").extract("w0.5"),
        repo_id="me/half",
        base_model="org/base-net",
        license="mit",
        language=["en", "de"],
        datasets=["org/set"],
        tags=["reviews"],
    )
    front = front_of(card)
    assert front["license"] == "mit"
    assert front["language"] == ["en", "de"]
    assert front["datasets"] == ["org/set"]
    assert front["base_model"] == "org/base-net"
    assert front["tags"][-1] == "reviews"
    assert 'AutoModelForSequenceClassification.from_pretrained("me/half", trust_remote_code=True)' in card
    assert "not possible, since it has 2 heads of 6 for a hidden size of 24" in card
    local = model_card(tiny_model(), base_model=str(PRIVATE / "nets" / "mine"))
    assert "a local folder named `mine`" in local
    assert "base_model" not in front_of(local)
    assert str(PRIVATE) not in local


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of both kinds of network, as they stand in the card."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for narrow in (False, True):
        folder = tiny_folder(tmp_path / f"narrow{narrow}")
        model = tiny_model(num_labels=2)
        if narrow:
            model = model.extract("w0.5")
        model.save_pretrained(folder)
        blocks = model_card(model, repo_id=str(folder)).split("```python\n")[1:]
        assert len(blocks) == 2
        for block in blocks:
            exec(block.split("```")[0], {})


NUMBERS = "p 0.4, M 15, N 30, seed 42, digest ab12"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/me/private/reviews.csv", "reviews.csv"),
        ("C:\\me\\reviews.csv", "reviews.csv"),
        ("nyu-mll/glue sst2 train", "nyu-mll/glue sst2 train"),
        ("nyu-mll/glue/private/train.tsv", "train.tsv"),  # a folder of that name here
        ("/me/reviews.csv + masked_lm(/models/bert), N", "reviews.csv + masked_lm(bert), N"),
        ("/me/a + b/reviews.csv + masked_lm(/models/b (1)), N", "reviews.csv + masked_lm(b (1)), N"),
        ("/me/reviews.csv + neighbours(near.tsv), N", "reviews.csv + neighbours(near.tsv), N"),
        ("/me/reviews.csv + my words, N", "reviews.csv + my words, N"),
        (
            "nyu-mll/glue sst2 train + masked_lm(/me/bert) and neighbours(near.tsv), N",
            "nyu-mll/glue sst2 train + masked_lm(bert) and neighbours(near.tsv), N",
        ),
        ("drugreview train + masked_lm(org/bert-base), N", "drugreview train + masked_lm(org/bert-base), N"),
    ],
)
def test_names_without_a_path(source: str, shown: str) -> None:
    assert public_name(source.replace(", N", f", {NUMBERS}")) == shown.replace(", N", f", {NUMBERS}")


def test_sets_of_the_hub_that_a_run_learned_from() -> None:
    def found(source: str) -> list[str]:
        return run_datasets({"data": {"train": {"source": source}, "validation": None}})

    assert found("nyu-mll/glue sst2 train") == ["nyu-mll/glue"]
    assert found(f"nyu-mll/glue sst2 train + masked_lm(/me/bert), {NUMBERS}") == ["nyu-mll/glue"]
    assert found("nyu-mll/glue/private/train.tsv") == found("train.tsv") == []


def test_an_encoder_has_a_card() -> None:
    assert "## Limits" in model_card(ElasticBertModel(tiny_model().config))


def test_scores_of_every_file() -> None:
    row = {"subnet": "w0.5", "score": 0.5, "metric": "f1", "examples": 7, "majority": 0.25, "metrics": {}}
    read = CardScores.read({"rows": [row]})
    assert read == CardScores({"w0.5-d1": 0.5}, "f1", 7, 0.25)
    asked = {"metric": "f1", "examples": 7, "majority_score": 0.25, "data": "x.tsv", "subnets": [row]}
    assert CardScores.read(asked) == replace(read, data="x.tsv")
    parts = [
        {"part": "teacher", "rows": [row | {"score": 0.75}]},
        {"part": "a", "rows": [row]},
        {"part": "b", "rows": []},
    ]
    assert CardScores.read({"parts": parts}) == replace(read, teacher=0.75)
    assert CardScores.read({"parts": parts}, "teacher").rows == {"w0.5-d1": 0.75}
    for name in ("b", "small"):
        told = f"no scores of a part named {name}; allowed: teacher, a; .* with dynabert eval --json, and give that"
        with pytest.raises(ValueError, match=told):
            CardScores.read({"parts": parts}, name)
    for wrong in ({}, {"rows": []}, {"subnets": [{"subnet": "w1"}]}, [1]):
        with pytest.raises(ValueError, match=r"model card: .*allowed: results.json or complete.json"):
            CardScores.read(wrong)
    with pytest.raises(ValueError, match="no part of the run was scored"):
        CardScores.read({"parts": [{"part": "a", "rows": []}]})
    with pytest.raises(ValueError, match=r"width_mult 0\.3"):
        model_card(tiny_model(), scores=CardScores({"w0.3-d1": 0.5}))


def test_trained_sub_networks_without_scores() -> None:
    recipe: dict[str, Any] = {"widths": [1.0, 0.5], "depths": [1.0], "subnets": None, "final": False}
    training = CardTraining({"recipe": recipe, "arguments": {"seed": 3, "max_steps": 10}, "rewiring": False})
    card = model_card(tiny_model(), training=training)
    assert [line.split("`")[1] for line in card.splitlines() if line.startswith("| `")] == ["w1-d1", "w0.5-d1"]
    for line in ("not rewired", "steps of each stage, in place of epochs: 10", "of seed 3", "versions: not recorded"):
        assert line in card
    named = {"recipe": recipe | {"subnets": [{"width_mult": 0.5, "layers": [0, 3]}]}}
    assert row_of(model_card(tiny_model(), training=CardTraining(named)), "w0.5-l0,3")


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("net"))


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = some_profile()
    config = tiny_model().config
    profile = replace(profile, encoder=EncoderShape.of(config))
    profile.save(tmp_path / "profile.json")
    rows = [{"subnet": "w1-d1", "score": 0.9}, {"subnet": "w0.5-d0.5", "score": 0.8}]
    scores = {"metric": "accuracy", "examples": 200, "majority_score": 0.6, "data": "d/dev.tsv", "subnets": rows}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    base = ["card", "--model_name_or_path", str(folder)]
    files = ["--scores", str(tmp_path / "scores.json"), "--profile", str(tmp_path / "profile.json")]
    assert main([*base, *files, "--seq_length", "32", "--license", "mit", "--base_model", "org/net"]) == 0
    card = capsys.readouterr().out
    wanted = DeviceProfile.load(tmp_path / "profile.json").latency_ms("w0.5-d0.5", 1, 32)
    assert row_of(card, "w0.5-d0.5")[3:] == ["80.0", "88.9 %", "66.7 %", f"{wanted:.3g}"]
    assert "predicted by a device profile of 2026-11-25 (mean error 1.0 %, worst 3.0 %, on 16 random" in card
    assert str(tmp_path) not in card
    assert str(folder) not in card
    assert front_of(card)["license"] == "mit"
    assert main([*base, *files, "--seq_length", "48"]) == 0
    assert "its error at this point was not measured" in capsys.readouterr().out

    out = tmp_path / "README.md"
    assert main([*base, "--output", str(out)]) == 0
    assert "Latency: not measured." in out.read_text()
    assert main([*base, "--output", str(out)]) == 1
    assert "is there; give another file, or --overwrite" in capsys.readouterr().err
    assert main([*base, "--output", str(out), "--overwrite", "--repo_id", "me/x"]) == 0
    assert "# x\n" in out.read_text()


def test_a_runs_scores_are_those_of_its_own_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for part in ("rewired", "width", "depth"):
        tiny_folder(run / part)
    row = {"subnet": "w1-d1", "metric": "accuracy", "examples": 7, "majority": 0.25}
    parts = [
        {"part": "rewired", "rows": [], "seconds": 1.0},
        {"part": "width", "rows": [row | {"score": 0.75}], "seconds": 1.0},
        {"part": "depth", "rows": [row | {"score": 0.5}], "seconds": 1.0},
    ]
    kept = json.dumps({"parts": parts})
    (run / "results.json").write_text(kept)
    (run / "settings.json").write_text("{}")
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"rows": [row | {"score": 0.625}]}))

    def call(model: Path | str, *more: str) -> tuple[int, str]:
        code = main(["card", "--model_name_or_path", str(model), "--run_dir", str(run), *more])
        said = capsys.readouterr()
        return code, row_of(said.out, "w1-d1")[3] if code == 0 else said.err

    assert call(run) == call(run / "depth") == (0, "50.0")
    assert call(run / "width") == (0, "75.0")
    copied, other, small = tmp_path / "copied" / "depth", tmp_path / "other" / "depth", tmp_path / "small"
    shutil.copytree(run / "depth", copied)
    for folder in (other, small):
        tiny_folder(folder, num_hidden_layers=2)
    assert call(copied) == (0, "50.0")
    assert call(other)[1].startswith(f"dynabert card: {other} has other layers than {run / 'depth'}, so its scores are")
    for folder in (run / "rewired", small):
        code, said = call(folder)
        assert code == 1
        assert f"no scores of a part named {folder.name}; allowed: width, depth; " in said
        assert call(folder, "--scores", str(scores)) == (0, "62.5")
    assert call(other, "--scores", str(scores)) == (0, "62.5")
    for part in parts:
        part["rows"] = []
    (run / "results.json").write_text(json.dumps({"parts": parts}))
    assert call(other) == (0, "not measured")
    (run / "results.json").write_text(kept)
    (run / "depth" / "config.json").rename(run / "depth" / "gone")  # nothing to compare with
    assert call(copied) == (0, "50.0")
    monkeypatch.chdir(run / "width")
    assert call(".") == (0, "75.0")


@pytest.mark.parametrize(
    ("extra", "code", "wrong"),
    [
        (["--overwrite"], 2, "--overwrite belongs to --output"),
        (["--scores", "nowhere.json"], 1, "there is no file nowhere.json"),
        (["--run_dir", "nowhere"], 1, "there is no file nowhere/settings.json"),
        (["--profile", "nowhere.json"], 1, "nowhere.json"),
    ],
)
def test_the_command_refuses(
    folder: Path, capsys: pytest.CaptureFixture[str], extra: list[str], code: int, wrong: str
) -> None:
    assert main(["card", "--model_name_or_path", str(folder), *extra]) == code
    assert wrong in capsys.readouterr().err
