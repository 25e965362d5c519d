"""``dynabert pick --search`` through ``main(argv)``: limits, texts, what is kept, going on, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynabert import SubnetConfig
from dynabert.cli import main
from dynabert.cost import subnet_cost
from dynabert.engine import load_model
from tests.dynabert.test_pick import again_from
from tests.dynabert.tiny_texts import some_texts, tiny_folder

Run = Callable[..., tuple[int, str, str]]
LABELS = {"num_labels": 2, "id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model"), **LABELS))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for the labelled texts that are reported on and for unlabelled ones to search by."""
    data = tmp_path_factory.mktemp("data")
    rows = [f"{text}\t{('bad', 'good')[i % 3 == 0]}\n" for i, text in enumerate(some_texts(40))]
    (data / "dev.tsv").write_text("text\tlabel\n" + "".join(rows), encoding="utf-8")
    texts = "".join(f"{text}\n" for text in some_texts(60, seed=5))
    (data / "more.tsv").write_text("text\n" + texts, encoding="utf-8")
    return ["--validation_file", str(data / "dev.tsv"), "--search_file", str(data / "more.tsv")]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: str) -> tuple[int, str, str]:
        code = main(["pick", *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


SMALL = ["--search", "--search_samples", "20", "--search_evaluations", "30", "--json"]


def half_of(folder: str) -> float:
    """A limit: what half of the width takes, in GFLOP."""
    return subnet_cost(load_model(folder).config, "w0.5", seq_length=50).gflop


def test_finds_within_the_limit_and_reports_on_other_texts(
    run: Run, folder: str, files: list[str], tmp_path: Path
) -> None:
    out, limit = tmp_path / "out", half_of(folder)
    given = ["--model_name_or_path", folder, *files, *SMALL, "--max_gflops", str(limit)]
    code, stdout, stderr = run(*given, "--output_dir", str(out))
    assert code == 0
    found = json.loads(stdout)
    record = found["search"]
    assert record["evaluations"] == 30
    assert record["texts"].endswith("more.tsv")
    assert found["data"].endswith("dev.tsv")
    assert (record["samples"], record["fresh_samples"]) == (20, 20)
    assert {"uniform", "layered", "difference"} <= set(record)
    difference = record["difference"]
    assert difference["low"] <= difference["difference"] <= difference["high"]
    rows = {row["subnet"]: row for row in found["candidates"]}
    assert difference["difference"] == pytest.approx(
        rows[record["layered"]]["score"] - rows[record["uniform"]]["score"], abs=1e-12
    )
    config = load_model(folder).config
    for one in record["finalists"]:
        assert subnet_cost(config, one["subnet"], seq_length=50).gflop <= limit * (1 + 1e-12)
    # The search's own texts choose; the reported ones do not.
    assert found["chosen"] == record["finalists"][0]["subnet"]
    chosen = (out / "subnet.txt").read_text(encoding="utf-8").strip()
    assert SubnetConfig.parse(chosen) == SubnetConfig.parse(found["chosen"])
    assert "95 % interval" in stderr
    kept = json.loads((out / "search.json").read_text(encoding="utf-8"))
    assert len(kept["judged"]) == 30
    for picture in ("score_cost.png", "layers.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")

    # The same seed chooses the same; going on judges nothing again, and another search's record is refused.
    assert json.loads(run(*given)[1])["chosen"] == found["chosen"]
    code, stdout, stderr = run(*given, "--output_dir", str(out), "--resume")
    assert code == 0
    assert "30 networks were judged before" in stderr
    assert json.loads(stdout)["search"]["finalists"] == record["finalists"]
    code, _, stderr = run(*given, "--output_dir", str(out), "--resume", "--seed", "1")
    assert code == 1
    assert "is of another search: tokens, seed changed" in stderr
    (out / "search.json").write_text("{}", encoding="utf-8")
    code, _, stderr = run(*given, "--output_dir", str(out), "--resume")
    assert code == 1
    assert "search.json cannot be read" in stderr


def test_a_latency_limit_is_aimed_at_with_the_profile_s_error_here(
    run: Run, folder: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Profile:
        @classmethod
        def load(cls, path: str, *, check_device: bool = True, device: Any = None) -> Profile:
            return cls()

        def check_model(self, config: Any) -> None: ...

        def latencies_ms(self, heads: Any, neurons: Any, *point: Any) -> Any:
            return 0.5 + 0.1 * heads.sum(-1) + 0.01 * neurons.sum(-1)

    def slower(model: Any, shapes: Any, *_: Any, **__: Any) -> list[float]:
        return [1.1 * (0.5 + 0.1 * sum(s.heads) + 0.01 * sum(s.neurons)) for s in shapes]

    monkeypatch.setattr("dynabert.profile.device_profile.DeviceProfile", Profile)
    monkeypatch.setattr("dynabert.profile.remeasure.remeasure", again_from(slower))
    given = ["--model_name_or_path", folder, *files, *SMALL, "--profile", "p.json", "--max_latency_ms", "2"]
    code, stdout, stderr = run(*given)
    assert code == 0
    found = json.loads(stdout)
    assert found["search"]["budgets"]["latency"] == pytest.approx(2.0 * 0.98 / 1.1)
    assert "took 1.100 times the profile's times just now" in stderr
    assert found["verified"][-1]["kept"] is True
    assert found["verified"][-1]["measured_ms"] <= 2.0
    assert set(found["search"]["measured_ms"]) == {found["search"]["layered"], found["search"]["uniform"]}
    unmeasured = json.loads(run(*given, "--no-verify")[1])
    assert unmeasured["search"]["budgets"]["latency"] == pytest.approx(1.96)
    assert "verified" not in unmeasured


def test_no_network_of_any_kind(run: Run, folder: str, files: list[str]) -> None:
    code, _, stderr = run("--model_name_or_path", folder, *files, *SMALL, "--max_gflops", "0.0000001")
    assert code == 1
    assert "no network keeps the limits; the smallest, h" in stderr


def test_ctrl_c_keeps_the_best_so_far(run: Run, folder: str, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import dynabert.profile.layer_search as module

    original, calls = module.make_judge, 0

    def interrupted(*args: Any, **options: Any) -> Any:
        judge = original(*args, **options)

        def wrapped(shapes: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return judge(shapes)

        return wrapped

    monkeypatch.setattr(module, "make_judge", interrupted)
    given = ["--model_name_or_path", folder, *files, *SMALL, "--max_gflops", str(half_of(folder))]
    code, stdout, stderr = run(*given)
    assert code == 0
    assert "ended by: interrupted" in stderr
    assert json.loads(stdout)["search"]["evaluations"] == 12


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (["--search", "--min_score", "0.5"], "--search needs a limit on cost"),
        (["--search", "--max_latency_ms", "5"], "needs --profile; make one with dynabert profile"),
        (["--search", "--max_params", "1M"], "needs --search_file: other texts"),
        (["--search", "--max_params", "1M", "--search_file", "a.tsv"], "is the --validation_file"),
        (["--search", "--max_params", "1M", "--search_file", "b.tsv", "--search_samples", "0"], "search_samples is 0"),
        (["--search", "--max_params", "1M", "--search_file", "b.tsv", "--search_margin", "1"], "search_margin is 1"),
        (["--search", "--max_params", "1M", "--search_file", "b.tsv", "--search_minutes", "nan"], "minutes is nan"),
        (["--search", "--max_params", "1M", "--search_file", "b.tsv", "--neuron_step", "0"], "neuron_step is 0"),
        (["--search", "--max_params", "1M", "--search_file", "b.tsv", "--resume"], "--resume belongs to --output_dir"),
        (["--max_params", "1M", "--search_file", "b.tsv"], "--search_file belongs to --search"),
        (["--max_params", "1M", "--resume"], "--resume belongs to --search"),
        (["--max_params", "1M", "--search_by", "agreement"], "--search_by belongs to --search"),
        (["--max_params", "1M", "--search_margin", "0.02"], "--search_margin belongs to --search"),
    ],
)
def test_wrong_usage(run: Run, given: list[str], wrong: str) -> None:
    code, out, stderr = run("--model_name_or_path", "nowhere", "--file", "a.tsv", *given)
    assert code == 2
    assert wrong in stderr
    assert out == ""


def test_the_split_that_is_reported_on_is_not_searched(run: Run) -> None:
    code, _, stderr = run(
        "--model_name_or_path", "m", "--task_name", "sst2", "--split", "train", "--search", "--max_params", "1M"
    )
    assert code == 2
    assert "report on another --split" in stderr


def test_going_on_needs_the_same_texts_and_weights(run: Run, folder: str, files: list[str], tmp_path: Path) -> None:
    model, texts, out = tmp_path / "model", tmp_path / "texts.tsv", tmp_path / "out"
    shutil.copytree(folder, model)
    texts.write_text(Path(files[3]).read_text(encoding="utf-8"), encoding="utf-8")
    given = ["--model_name_or_path", str(model), *files[:2], "--search_file", str(texts), *SMALL]
    given += ["--search_evaluations", "12", "--max_gflops", str(half_of(folder)), "--output_dir", str(out), "--resume"]

    assert run(*given)[0] == 0  # nothing to go on from, and nothing in the way
    assert run(*given)[0] == 0
    before = texts.read_text(encoding="utf-8")
    texts.write_text("text\n" + "".join(f"{text}\n" for text in some_texts(60, seed=6)), encoding="utf-8")
    assert "another search: tokens changed" in run(*given)[2]
    texts.write_text(before, encoding="utf-8")
    (model / "pytorch_model-00002-of-00002.bin").write_bytes(b"a shard")
    assert "another search: weights changed" in run(*given)[2]


def test_a_folder_without_a_search_is_not_written_into(run: Run, folder: str, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    given = ["--model_name_or_path", folder, *files, *SMALL, "--max_gflops", "1", "--output_dir", str(tmp_path)]
    code, _, stderr = run(*given, "--resume")
    assert code == 1
    assert "is not empty" in stderr
    assert [one.name for one in tmp_path.iterdir()] == ["notes.txt"]
