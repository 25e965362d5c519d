"""``dynabert pick`` through ``main(argv)``: the choice, its files, what is said when nothing fits, and refusals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dynabert import ElasticBertForSequenceClassification
from dynabert.cli import main
from dynabert.configuration.grid import subnet_grid
from dynabert.evaluation import evaluate
from dynabert.profile.remeasure import Remeasured
from dynabert_kernels import SubnetShape
from tests.dynabert.exported import rewired as permuted
from tests.dynabert.tiny_texts import some_texts, tiny_folder

Run = Callable[..., tuple[int, str, str]]
LABELS = {"num_labels": 2, "id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}


def cost_ms(heads: npt.NDArray[Any], neurons: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The fake device: half a millisecond, and for each head 0.1 and for each neuron 0.01."""
    return 0.5 + 0.1 * np.asarray(heads).sum(-1) + 0.01 * np.asarray(neurons).sum(-1)


class FakeProfile:
    """A profile whose device and model the test chooses."""

    device = "here"
    model = 4  # layers

    @classmethod
    def load(cls, path: str, *, check_device: bool = True, device: Any = None) -> FakeProfile:
        if check_device and json.loads(Path(path).read_text())["device"] != cls.device:
            raise ValueError(f"DeviceProfile: {path} is of another device; profile this one: dynabert profile")
        return cls()

    def check_model(self, config: Any) -> None:
        if config.num_hidden_layers != self.model:
            raise ValueError("DeviceProfile: made for another encoder; profile this model: dynabert profile")

    def latencies_ms(
        self, heads: npt.NDArray[Any], neurons: npt.NDArray[Any], batch_size: int, seq_length: int, dtype: str
    ) -> npt.NDArray[Any]:
        assert (batch_size, seq_length, dtype) == (1, 50, "float32")
        return cost_ms(heads, neurons)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model"), **LABELS))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory, folder: str) -> str:
    """Texts labelled by the whole network itself, a few of them wrongly: it scores high, its parts less."""
    from dynabert import InferenceEngine

    texts = some_texts(60)
    answers = [one.label for one in InferenceEngine.from_pretrained(folder).predict(texts)]
    other = {"bad": "good", "good": "bad"}
    rows = [
        f"{t}\t{other[str(a)] if i % 12 == 0 else a}\n" for i, (t, a) in enumerate(zip(texts, answers, strict=True))
    ]
    path = tmp_path_factory.mktemp("data") / "reviews.tsv"
    path.write_text("text\tlabel\n" + "".join(rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: str) -> tuple[int, str, str]:
        code = main(["pick", *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A profile's file, of this device."""
    monkeypatch.setattr("dynabert.profile.device_profile.DeviceProfile", FakeProfile)
    path = tmp_path / "profile.json"
    path.write_text('{"device": "here"}', encoding="utf-8")
    return str(path)


def again_from(fake: Callable[..., list[float]]) -> Callable[..., list[Remeasured]]:
    """`remeasure` of a clock that other work does not disturb."""

    def again(*args: Any, **options: Any) -> list[Remeasured]:
        return [Remeasured(ms, ms, 0.0, "median of 20 passes by the clock") for ms in fake(*args, **options)]

    return again


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], float]:
    """What the fake clock says: by the device's formula, times a factor that a test sets by the heads kept."""
    factors: dict[tuple[int, ...], float] = {}

    def fake(
        model: ElasticBertForSequenceClassification,
        shapes: Sequence[SubnetShape],
        batch_size: int,
        seq_length: int,
        *,
        rounds: int = 20,
        seed: int = 0,
    ) -> list[float]:
        return [
            float(cost_ms(np.array(shape.heads), np.array(shape.neurons))) * factors.get(shape.heads, 1.0)
            for shape in shapes
        ]

    monkeypatch.setattr("dynabert.profile.remeasure.remeasure", again_from(fake))
    return factors


def options(folder: str, reviews: str) -> list[str]:
    return ["--model_name_or_path", folder, "--validation_file", reviews]


# The choice
# ----------------------------------------------------------------------------------------------------------------------


def test_best_score_within_a_latency_of_the_profile(
    run: Run, folder: str, reviews: str, profile: str, measured: dict[tuple[int, ...], float], tmp_path: Path
) -> None:
    out = tmp_path / "picked"
    code, stdout, stderr = run(
        *options(folder, reviews), "--profile", profile, "--max_latency_ms", "2", "--json", "--output_dir", str(out)
    )
    assert code == 0
    found = json.loads(stdout)
    assert found == json.loads((out / "pick.json").read_text(encoding="utf-8"))
    assert len(found["candidates"]) == 12
    within = [row for row in found["candidates"] if row["latency_ms"] <= 2.0]
    best = max(row["score"] for row in within)
    [chosen] = [row for row in within if row["subnet"] == found["chosen"]]
    assert chosen["score"] == best
    assert 0 < len(within) < 12
    assert f"limit 2 ms: {len(within)} of 12 candidates" in stderr
    assert stderr.index("limit 2 ms") < stderr.index("measured again")
    assert (out / "subnet.txt").read_text(encoding="utf-8") == found["chosen"] + "\n"
    for picture in ("score_cost.png", "layers.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    with (out / "candidates.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["subnet"] for row in table] == [row["subnet"] for row in found["candidates"]]
    assert [float(row["latency_ms"]) for row in table] == sorted(row["latency_ms"] for row in found["candidates"])
    assert found["verified"][0]["kept"] is True


def test_scores_are_those_of_evaluate(run: Run, folder: str, reviews: str) -> None:
    from dynabert.data import align_labels, model_labels, read_examples, tokenise
    from dynabert.engine import load_model, load_tokenizer

    code, stdout, _ = run(*options(folder, reviews), "--min_score", "0.5", "--json")
    assert code == 0
    model = load_model(folder)
    examples = align_labels(read_examples(reviews), model_labels(model.config), "single_label_classification")
    rows = evaluate(model, tokenise(examples, load_tokenizer(folder), 50), subnet_grid())
    found = json.loads(stdout)
    assert {row["subnet"]: row["score"] for row in found["candidates"]} == {row.subnet: row.score for row in rows}
    assert found["majority_score"] == rows[0].majority
    assert found["whole_score"] == rows[0].score
    # A limit on quality alone, and no profile: the least arithmetic, and nothing is measured.
    cheapest = min((row for row in found["candidates"] if row["score"] >= 0.5), key=lambda row: row["gflop"])
    assert found["chosen"] == cheapest["subnet"]
    assert found["latency"] is None


def test_table_says_the_choice_and_what_comes_next(run: Run, folder: str, reviews: str) -> None:
    code, stdout, stderr = run(*options(folder, reviews), "--max_params", "1M", "--min_retention", "0.5")
    assert code == 0
    assert "retention %" in stdout
    assert "corrected %" in stdout
    assert "front: no other has a higher score for less GFLOP" in stdout
    assert " 0.0 M" not in stdout
    assert "(chosen)" in stdout
    name = stdout.partition("chosen: ")[2].split()[0]
    assert f"--subnet {name} 'A text.'" in stdout
    kind = "hf" if name.startswith("w1-") else "hf-remote"
    assert f"dynabert export --model_name_or_path {folder} --subnet {name} --format {kind} --output_dir" in stdout
    assert "the checkpoint is not rewired" in stderr
    assert "dynabert rewire" in stderr
    assert "no record of being distilled into them; dynabert train does it" in stderr
    assert "objective: the best score within the limits, on cost and on quality" in stderr
    _, stdout, _ = run(*options(folder, reviews), "--max_params", "1M", "--subnets", "w0.5", "--dtype", "bfloat16")
    assert "--subnet w0.5-d1 --dtype bfloat16 'A text.'" in stdout


@pytest.mark.parametrize(
    ("architecture", "rewired", "subnet", "kind"),
    [
        ("bert", False, "w0.5-d0.5", "hf-remote"),
        ("bert", True, "w1-d0.5", "hf"),
        ("mpnet", False, "w1-d0.5", "hf"),
        ("mpnet", True, "w1-d1", "hf"),  # export puts its heads back to their places
        ("mpnet", True, "w0.5-d1", "hf-remote"),
    ],
)
def test_the_export_that_it_names_is_one_that_works(
    run: Run, reviews: str, tmp_path: Path, architecture: str, rewired: bool, subnet: str, kind: str
) -> None:
    """Whatever else is listed: here it is the only one."""
    own = str(tiny_folder(tmp_path / "own", architecture, **LABELS))
    if rewired:
        permuted(architecture, **LABELS).save_pretrained(own)
    code, stdout, stderr = run(*options(own, reviews), "--max_params", "1M", "--subnets", subnet)
    assert code == 0, stderr
    command = stdout.partition("take it out: dynabert ")[2].split()
    assert command[command.index("--format") + 1] == kind
    command[-1] = str(tmp_path / "out")
    assert main(command) == 0


def test_without_a_profile_it_measures_and_says_so(run: Run, folder: str, reviews: str) -> None:
    code, stdout, stderr = run(
        *options(folder, reviews), "--max_latency_ms", "1000", "--subnets", "w1,w0.5", "--rounds", "2", "--json"
    )
    assert code == 0
    assert "no --profile: the latency of 2 sub-networks is measured now, 2 passes each" in stderr
    assert json.loads(stdout)["latency"]["source"] == "measured directly"
    assert all(row["latency_ms"] > 0.0 for row in json.loads(stdout)["candidates"])


def test_one_that_misses_the_limit_when_measured_gives_way(
    run: Run, folder: str, reviews: str, profile: str, measured: dict[tuple[int, ...], float]
) -> None:
    given = [*options(folder, reviews), "--profile", profile, "--max_latency_ms", "3", "--json"]
    first = json.loads(run(*given)[1])
    [row] = [row for row in first["candidates"] if row["subnet"] == first["chosen"]]
    measured[tuple(row["heads"])] = 10.0
    code, stdout, stderr = run(*given)
    second = json.loads(stdout)
    assert code == 0
    assert second["chosen"] != first["chosen"]
    assert [one["kept"] for one in second["verified"]][-1] is True
    assert second["verified"][0]["subnet"] == first["chosen"]
    assert f"{first['chosen']} measured again" in stderr
    assert "the next one is tried" in stderr
    assert json.loads(run(*given, "--no-verify")[1])["chosen"] == first["chosen"]


def test_a_second_run_confirms(
    run: Run, folder: str, reviews: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[SubnetShape] = []

    def again(model: Any, shapes: Sequence[SubnetShape], *_: Any, **__: Any) -> list[Remeasured]:
        [shape] = shapes
        calls.append(shape)
        ms = 9.0 if len(calls) == 2 else 1.0  # the first candidate's second run is over the limit
        return [Remeasured(ms, 1.5 * ms, 0.25, "low quartile of 3 passes")]

    monkeypatch.setattr("dynabert.profile.remeasure.remeasure", again)
    code, stdout, stderr = run(
        *options(folder, reviews), "--profile", profile, "--max_latency_ms", "3", "--json", "--min_score", "0.01"
    )
    assert code == 0
    first, second = json.loads(stdout)["verified"]
    assert len(calls) == 4
    assert (first["kept"], first["measured_ms"], [one["ms"] for one in first["runs"]]) == (False, 9.0, [1.0, 9.0])
    assert (second["kept"], len(second["runs"])) == (True, 2)
    assert second["runs"][0] == {
        "ms": 1.0,
        "wall_median_ms": 1.5,
        "held_up": 0.25,
        "compared": "low quartile of 3 passes",
    }
    assert "compared: low quartile of 3 passes; median by the clock 1.5 ms, 25 % of the passes held up" in stderr
    assert json.loads(stdout)["chosen"] == second["subnet"]


def test_none_that_keeps_the_limit_when_measured(
    run: Run, folder: str, reviews: str, profile: str, measured: dict[tuple[int, ...], float], tmp_path: Path
) -> None:
    for subnet in ("w0.25-d0.5", "w0.25-d0.75"):
        heads = {"w0.25-d0.5": (0, 1, 0, 1), "w0.25-d0.75": (1, 1, 0, 1)}
        measured[heads[subnet]] = 5.0
    out = tmp_path / "picked"
    out.mkdir()
    (out / "subnet.txt").write_text("of an earlier run\n", encoding="utf-8")
    code, _, stderr = run(
        *options(folder, reviews),
        "--profile",
        profile,
        "--max_latency_ms",
        "1.1",
        "--output_dir",
        str(out),
        "--overwrite",
    )
    assert code == 1
    assert "took longer when they were measured again; nearest: w0.25-d0.5" in stderr
    assert json.loads((out / "pick.json").read_text())["chosen"] is None
    assert not (out / "subnet.txt").exists()


def test_the_folder_is_tried_before_the_work_and_the_table_comes_before_the_files(
    run: Run, folder: str, reviews: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    given = ["--model_name_or_path", "nowhere", "--file", "none.tsv", "--min_score", "0.5"]
    code, _, stderr = run(*given, "--output_dir", str(tmp_path / "file" / "out"))
    assert code == 1
    assert "which is a file; give another folder" in stderr

    out = tmp_path / "out"
    given = [*options(folder, reviews), "--min_score", "0.3", "--output_dir", str(out), "--overwrite"]
    assert run(*given)[0] == 0
    before = (out / "pick.json").read_text(encoding="utf-8")
    original = Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == "pick.json":
            raise OSError("no space left on device")
        return original(self, target)

    monkeypatch.setattr(Path, "replace", full)
    code, stdout, stderr = run(*given)
    assert code == 1
    assert "no space left" in stderr
    assert "sub-network" in stdout
    assert (out / "pick.json").read_text(encoding="utf-8") == before
    assert not (out / "subnet.txt").exists()
    assert not list(out.glob("*.part"))


# No solution
# ----------------------------------------------------------------------------------------------------------------------


def test_a_cost_out_of_reach_is_said_before_anything_is_scored(
    run: Run, folder: str, reviews: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("scored, although no candidate can be within")

    monkeypatch.setattr("dynabert.evaluation.compute_logits", never)
    code, stdout, stderr = run(*options(folder, reviews), "--profile", profile, "--max_latency_ms", "0.6")
    assert code == 1
    assert stdout == ""
    assert "none of 12 candidates keeps the limits; nearest: w0.25-d0.5" in stderr
    assert "--max_latency_ms 0.9" in stderr
    assert "--batch_size or --seq_length" in stderr


def test_a_score_out_of_reach_shows_the_table_and_the_nearest(run: Run, folder: str, reviews: str) -> None:
    code, stdout, stderr = run(*options(folder, reviews), "--min_score", "0.999")
    assert code == 1
    assert "sub-network" in stdout
    assert "chosen" not in stdout
    assert "nearest: w1-d1 (score" in stderr
    assert "to take it give --min_score 0." in stderr


# Refusals
# ----------------------------------------------------------------------------------------------------------------------


def test_profile_of_another_device_or_model(run: Run, folder: str, reviews: str, profile: str, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"device": "there"}', encoding="utf-8")
    given = [*options(folder, reviews), "--profile", str(other), "--max_latency_ms", "2"]
    code, _, stderr = run(*given)
    assert code == 1
    assert "is of another device" in stderr
    code, stdout, stderr = run(*given, "--any_device", "--json")
    assert code == 0
    assert "verified" not in json.loads(stdout)  # another device's times cannot be measured here
    three = str(tiny_folder(tmp_path / "three", num_hidden_layers=3, **LABELS))
    code, _, stderr = run(*options(three, reviews), "--profile", profile, "--max_latency_ms", "2")
    assert code == 1
    assert "made for another encoder" in stderr


def test_the_profile_is_of_the_device_the_network_runs_on(run: Run, tmp_path: Path) -> None:
    import dataclasses

    from tests.dynabert.test_profile import some_profile

    own = some_profile()
    path = tmp_path / "gpu.json"
    dataclasses.replace(own, facts=dataclasses.replace(own.facts, device="Some GPU")).save(path)
    for more in ([], ["--any_device"]):  # before model and data are opened: neither is there
        given = ["--model_name_or_path", "nowhere", "--file", "none.tsv", "--max_latency_ms", "2", *more]
        code, _, stderr = run(*given, "--profile", str(path))
        assert code == 1
        assert "holds times of cuda and the network is on cpu" in stderr


def test_labels_of_another_task(run: Run, reviews: str, tmp_path: Path) -> None:
    names = {"num_labels": 2, "id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    other = str(tiny_folder(tmp_path / "other", **names))
    code, _, stderr = run(*options(other, reviews), "--min_score", "0.5")
    assert code == 1
    assert "cat" in stderr
    number = str(tiny_folder(tmp_path / "number", num_labels=1, problem_type="regression"))
    code, _, stderr = run(*options(number, reviews), "--min_score", "0.5")
    assert code == 1
    assert "the model is for regression" in stderr


@pytest.mark.parametrize(
    ("given", "code", "wrong"),
    [
        (["--min_score", "0.5"], 2, "give either --task_name or --file"),
        (["--scores", "s.json", "--file", "a.tsv", "--min_score", "0.5"], 2, "--file, or --scores, not both"),
        (
            ["--scores", "s.json", "--metric", "f1", "--min_score", "0.5"],
            2,
            "--metric belongs to --task_name or --file",
        ),
        (["--file", "a.tsv", "--min_score", "0.5", "--any_device"], 2, "--any_device belongs to --profile"),
        (["--file", "a.tsv", "--min_score", "0.5", "--verify"], 2, "--verify belongs to --max_latency_ms"),
        (["--file", "a.tsv", "--max_latency_ms", "5", "--rounds", "0"], 2, "--rounds is 0"),
        (["--file", "a.tsv", "--max_latency_ms", "5", "--batch_size", "0"], 2, "--batch_size is 0"),
        (["--file", "a.tsv", "--max_latency_ms", "5", "--batch_size", "100000000000"], 2, "up to 1,048,576 tokens"),
        (["--file", "a.tsv", "--max_params", "many"], 2, "'many' is no number of weights; allowed: 15M"),
        (["--file", "a.tsv", "--max_params", "5M", "--fastest"], 2, "unrecognized arguments: --fastest"),
        (["--file", "a.tsv"], 1, "no limit; give at least one of max_latency_ms"),
        (["--file", "a.tsv", "--min_score", "88"], 1, "fractions, not per cent: 0.88"),
        (["--file", "a.tsv", "--max_latency_ms", "-1"], 1, "max_latency_ms is -1; allowed: above 0"),
    ],
)
def test_limits_that_contradict(run: Run, given: list[str], code: int, wrong: str) -> None:
    found, out, stderr = run("--model_name_or_path", "nowhere", *given)
    assert found == code
    assert wrong in stderr
    assert out == ""


def test_what_the_network_has_no_room_for(run: Run, folder: str, reviews: str) -> None:
    code, _, stderr = run(*options(folder, reviews), "--min_score", "0.5", "--seq_length", "51")
    assert code == 1
    assert "--seq_length is 51; allowed: 1 to the model's 50 positions" in stderr
    code, _, stderr = run(*options(folder, reviews), "--min_score", "0.5", "--subnets", "w0.3")
    assert code == 1
    assert "w0.3-d1 does not fit this network" in stderr


# Scores from a file, and the record of training
# ----------------------------------------------------------------------------------------------------------------------


def test_scores_from_files(run: Run, folder: str, tmp_path: Path) -> None:
    rows = [
        {"subnet": str(s), "score": 0.5 + 0.01 * i, "metric": "accuracy", "majority": 0.4, "examples": 9}
        for i, s in enumerate(reversed(subnet_grid()))
    ]
    kinds = {
        "eval": {"data": "dev", "metric": "accuracy", "examples": 9, "majority_score": 0.4, "subnets": rows},
        "complete": {"rows": rows},
        "results": {"parts": [{"part": "teacher", "rows": rows[-1:]}, {"part": "depth", "rows": rows}]},
    }
    for name, content in kinds.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        code, stdout, _ = run("--model_name_or_path", folder, "--scores", str(path), "--min_retention", "0.9", "--json")
        found = json.loads(stdout)
        assert code == 0, name
        assert found["whole_score"] == pytest.approx(0.61)
        assert found["examples"] == 9
        assert all(row["retention"] == pytest.approx(row["score"] / 0.61) for row in found["candidates"])
    for content, wrong in (("nonsense", "is no JSON file"), ("[]", "holds list"), ('{"rows": [1]}', "holds no scores")):
        path.write_text(content, encoding="utf-8")
        code, _, stderr = run("--model_name_or_path", folder, "--scores", str(path), "--min_score", "0.5")
        assert code == 1
        assert wrong in stderr


@pytest.mark.parametrize(
    ("content", "limit", "wrong"),
    [
        ('{"parts": ["x"]}', "min_score", "holds no scores of sub-networks"),
        ('{"parts": 5}', "min_score", "holds no scores of sub-networks"),
        ('{"metric": "m", "rows": {"a": 1}}', "min_score", "holds no scores of sub-networks"),
        ('{"metric": "m", "rows": [{"subnet": "w1-d1", "score": "x"}]}', "min_score", "holds no scores"),
        ('{"metric": "m", "examples": "many", "rows": [{"subnet": "w1-d1", "score": 1}]}', "min_score", "no scores"),
        (
            '{"metric": "m", "rows": [{"subnet": "w1-d1", "score": 0.9}, {"subnet": "w0.5-d1", "score": NaN}]}',
            "min_score",
            "the score of w0.5-d1 is nan; allowed: a fraction",
        ),
        ('{"metric": "m", "rows": [{"subnet": "w1-d1", "score": 90}]}', "min_score", "is 90; allowed: fractions"),
        ('{"metric": "m", "rows": [{"subnet": "w1-d1", "score": 90}]}', "min_score", "per cent, write 0.9"),
        (
            '{"metric": "m", "majority_score": 55, "rows": [{"subnet": "w1-d1", "score": 0.9}]}',
            "min_score",
            "the majority score is 55",
        ),
        ('{"metric": "m", "rows": [{"subnet": "w1-d1", "score": 0}]}', "min_retention", "whole network's m is 0"),
        ('{"metric": "m", "rows": [{"subnet": "w0.5-d1", "score": 0.9}]}', "min_retention", "has no score of w1-d1"),
        (
            '{"metric": "m", "rows": [{"subnet": "w1", "score": 0.9}, {"subnet": "w1-d1", "score": 0.8}]}',
            "min_score",
            "has two scores of w1-d1: 0.9 and 0.8; keep one",
        ),
    ],
)
def test_scores_that_say_nothing(run: Run, tmp_path: Path, content: str, limit: str, wrong: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(content, encoding="utf-8")
    code, out, stderr = run("--model_name_or_path", "nowhere", "--scores", str(path), f"--{limit}", "0.5")
    assert code == 1
    assert wrong in stderr
    assert out == ""


def test_scores_by_short_names(run: Run, folder: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    rows = [{"subnet": "w1", "score": 0.9}, {"subnet": "w0.5", "score": 0.8}]
    path.write_text(json.dumps({"metric": "accuracy", "rows": rows}), encoding="utf-8")
    given = ["--model_name_or_path", folder, "--scores", str(path), "--subnets", "w1,w0.5"]
    assert run(*given, "--min_retention", "0.5")[0] == 0


def test_scores_that_lack_candidates(run: Run, folder: str, tmp_path: Path) -> None:
    names = ("w1-d1", "w0.5-d1", "w0.3-d1", "h4,4,4,2-n40,40,20,20")  # of the third this network has no such part
    rows = [{"subnet": name, "score": 0.9} for name in names]
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"metric": "accuracy", "rows": rows}), encoding="utf-8")
    given = ["--model_name_or_path", folder, "--scores", str(path), "--min_score", "0.5"]
    code, _, stderr = run(*given)
    assert code == 1
    assert f"--scores {path} has no score of w0.75-d1, w0.25-d1, w1-d0.75" in stderr
    subnets = "w1-d1,w0.5-d1,h4,4,4,2-n40,40,20,20"
    assert f"; take those it has, --subnets {subnets}, or score the missing ones too (dynabert eval" in stderr
    assert "with_scores" not in stderr
    assert run(*given, "--subnets", subnets)[0] == 0
    path.write_text(json.dumps({"metric": "accuracy", "rows": rows[2:3]}), encoding="utf-8")
    code, _, stderr = run(*given)
    assert code == 1
    assert "allowed: a score of every candidate; score the missing ones too" in stderr


def test_candidates_are_those_the_checkpoint_was_trained_for(run: Run, reviews: str, tmp_path: Path) -> None:
    own = tiny_folder(tmp_path / "own", **LABELS)
    rows = [{"subnet": name, "score": 0.5} for name in ("w1-d1", "w0.5-d1", "w0.5-d0.75")]
    (own / "complete.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    code, stdout, _ = run(*options(str(own), reviews), "--max_params", "1M", "--json")
    assert code == 0
    assert {row["subnet"] for row in json.loads(stdout)["candidates"]} == {"w1-d1", "w0.5-d1", "w0.5-d0.75"}
    code, stdout, _ = run(*options(str(own), reviews), "--max_params", "1M", "--json", "--subnets", "all")
    assert len(json.loads(stdout)["candidates"]) == 12


def test_a_grid_that_does_not_fit_is_cut_and_said(run: Run, reviews: str, tmp_path: Path) -> None:
    odd = str(tiny_folder(tmp_path / "odd", num_hidden_layers=2, num_attention_heads=2, **LABELS))
    code, stdout, stderr = run(*options(odd, reviews), "--max_params", "1M", "--json")
    assert code == 0
    assert {row["subnet"] for row in json.loads(stdout)["candidates"]} == {
        "w1-d1",
        "w0.5-d1",
        "w1-d0.5",
        "w0.5-d0.5",
    }
    assert "left out: w0.75-d1" in stderr
    assert "w1-d0.75 (the same layers as w1-d1)" in stderr


def test_with_the_profile_that_dynabert_profile_writes(run: Run, folder: str, reviews: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    made = ["profile", "--model_name_or_path", folder, "--output_file", str(path), "--batch_sizes", "1"]
    made += ["--seq_lengths", "16", "--dtypes", "float32", "--threads", "1", "--max_minutes", "0.01", "--check", "2"]
    assert main(made) == 0
    run("--help")  # what the profile printed is read and dropped
    given = [*options(folder, reviews), "--profile", str(path), "--threads", "1", "--max_latency_ms", "1000", "--json"]
    code, stdout, stderr = run(*given, "--seq_length", "16")
    assert code == 0, stderr
    found = json.loads(stdout)
    assert len(found["candidates"]) == 12
    assert found["verified"][0]["kept"] is True
    code, _, stderr = run(*given, "--seq_length", "32")
    assert code == 1
    assert "seq_length is 32" in stderr
    other = json.loads(path.read_text(encoding="utf-8"))
    other["facts"]["cpu"] = "another"
    path.write_text(json.dumps(other), encoding="utf-8")
    code, _, stderr = run(*given, "--seq_length", "16")
    assert code == 1
    assert "is of another device: the CPU is" in stderr
