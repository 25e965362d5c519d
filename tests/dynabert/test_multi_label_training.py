"""``dynabert train``, ``eval``, ``rewire`` and ``predict`` on texts with several labels, and what users get wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dynabert import DistillationArguments, DistillationTrainer, ElasticBertForSequenceClassification
from dynabert.cli import main
from dynabert.cli.train import parse
from dynabert.data import Encoded, read_examples
from dynabert.distill import pipeline
from dynabert.distill.losses import task_sums
from dynabert.distill.pipeline import train_elastic
from dynabert.distill.stages import Stage
from tests.dynabert.tiny_networks import plain_model
from tests.dynabert.tiny_texts import tiny_folder, tiny_model
from tests.dynabert.tiny_training import arguments, elastic, texts

MANY = "multi_label_classification"
WORDS = ("good", "slow", "warm")


def write(path: Path, count: int = 16, separator: str | None = None) -> Path:
    """Texts whose labels are the words in them; the first has none."""
    lines = []
    for i in range(count):
        own = [word for j, word in enumerate(WORDS) if (i >> j) & 1]
        text = " ".join(["the film", *own, "plot"])
        if separator is None:
            lines.append(json.dumps({"id": i, "text": text, "labels": own}))
        else:
            lines.append(f"{i}\t{text}\t{separator.join(own)}")
    head = [] if separator is None else ["id\ttext\tlabels"]
    path.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    return path


def options(folder: Path, train: Path, **more: str) -> list[str]:
    given = {
        "model_name_or_path": str(folder / "model"),
        "train_file": str(train),
        "output_dir": str(folder / "out"),
        "num_train_epochs": "2",
        "per_device_train_batch_size": "8",
        "learning_rate": "3e-3",
        "disable_tqdm": "True",
    } | more
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    return ["train", *flags, "--widths", "1.0", "0.5", "--depths", "1.0", "0.5"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_folder(tmp_path / "model")
    return tmp_path


def test_train_eval_rewire_predict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, dev = write(folder / "train.jsonl", 24), write(folder / "dev.jsonl", 8)
    given = [*options(folder, train, validation_file=str(dev)), "--final_stage", "--bf16"]
    assert main(given) == 0
    shown = capsys.readouterr()
    assert "micro_f1, times 100; 8 examples; majority 66.7" in shown.out  # all three: 2 * 12 / (24 + 12)
    assert shown.err.count("columns that are not used: 'id'; used: 'text', 'labels'") == 2  # once for each file
    out = folder / "out"
    results = json.loads((out / "results.json").read_text())
    assert [part["part"] for part in results["parts"]] == ["teacher", "rewired", "width", "depth", "final"]
    assert set(results["parts"][-1]["rows"][0]["metrics"]) == {"micro_f1", "macro_f1", "subset_accuracy"}
    network = ElasticBertForSequenceClassification.from_pretrained(out / "final")
    assert network.config.problem_type == MANY
    assert network.config.id2label == dict(enumerate(WORDS))
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["arguments"]["bf16"], settings["recipe"]["final"]) == (True, True)

    # The same command again repeats nothing; another label of one text is another run.
    assert main(given) == 0
    assert "final: complete, not repeated" in capsys.readouterr().err
    train.write_text(train.read_text().replace('["good", "slow"]', '["good", "warm"]', 1))
    assert main(given) == 1
    assert "data.train.digest was" in capsys.readouterr().err

    # The score that training reported is the one that eval finds.
    command = ["eval", "--model_name_or_path", str(out / "final"), "--file", str(dev), "--subnets", "w1,w0.5-d0.5"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metric"] == "micro_f1"
    rows = {row["subnet"]: row for row in results["parts"][-1]["rows"]}
    for row in found["subnets"]:
        assert row["score"] == pytest.approx(rows[row["subnet"]]["score"])
    assert main([*command, "--threshold", "0.0001", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)["subnets"][0]
    assert every["score"] == pytest.approx(2 / 3)  # every label of every text
    assert main([*command, "--threshold", "2"]) == 1
    assert "threshold is 2.0; allowed: above 0 and below 1" in capsys.readouterr().err

    rewired = ["rewire", "--model_name_or_path", str(out / "final"), "--file", str(dev)]
    assert main([*rewired, "--output_dir", str(folder / "rewired")]) == 0

    # Answers are lists, also of one label and of none, and can be read back as labels.
    answers = folder / "answers.jsonl"
    predict = ["predict", "--model_name_or_path", str(out / "final"), "--file", str(dev), "--text_column", "text"]
    assert main([*predict, "--out", str(answers)]) == 0
    assert all(isinstance(json.loads(line)["predicted_label"], list) for line in answers.read_text().splitlines())
    back = read_examples(answers, label_column="predicted_label")
    assert back.problem_type == MANY
    assert main([*predict, "--out", str(folder / "answers.tsv"), "--threshold", "0.0001"]) == 0
    back = read_examples(folder / "answers.tsv", label_column="predicted_label", label_separator="|")
    assert (back.label_names, back.labels) == (WORDS, ((0, 1, 2),) * 8)


def test_a_killed_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(folder / "train.jsonl", 24)
    more = {"save_strategy": "steps", "save_steps": "1", "validation_file": str(train), "use_cpu": "True"}
    assert main(options(folder, train, **more, output_dir=str(folder / "whole"))) == 0

    class Killed(pipeline.StageProgress):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            super().on_step_end(args, state, control, **rest)
            if self.name == "depth" and state.global_step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "StageProgress", Killed)
        assert main(options(folder, train, **more)) == 130
    assert not (folder / "out" / "depth" / "complete.json").is_file()
    capsys.readouterr()
    assert main(options(folder, train, **more)) == 0
    told = capsys.readouterr().err
    assert "depth: goes on from" in told
    assert "train.jsonl: several labels for each text: 3 classes, 1.5 of them a text, 3 texts without" in told
    assert told.count("columns that are not used") == 1  # one file for both
    one, other = (
        ElasticBertForSequenceClassification.from_pretrained(folder / name / "depth").state_dict()
        for name in ("whole", "out")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_separated_cell_is_the_same_run(folder: Path) -> None:
    more = {"label_separator": "|", "use_cpu": "True", "num_train_epochs": "1"}
    assert main(options(folder, write(folder / "train.tsv", separator="|"), **more)) == 0
    del more["label_separator"]
    more["output_dir"] = str(folder / "other")
    assert main(options(folder, write(folder / "train.jsonl"), **more)) == 0
    one, other = (
        ElasticBertForSequenceClassification.from_pretrained(folder / name / "depth").state_dict()
        for name in ("out", "other")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("extra", [["--distillation", "False"], ["--augment", "neighbours", "near.tsv"]])
def test_other_ways_to_train(folder: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]) -> None:
    monkeypatch.chdir(folder)
    (folder / "near.tsv").write_text("word\tneighbours\nfilm\tstory:0.9\nplot\tscene:0.8\n")
    given = options(folder, write(folder / "train.jsonl"), num_train_epochs="1", use_cpu="True")
    assert main([*given, *extra]) == 0
    assert (folder / "out" / "results.json").is_file()


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([[], [], []], "has the same labels for every text, none; at least two texts must differ"),
        ([["a"], ["a"]], "has the same labels for every text, 'a'"),
        ([[0, 1], [1, 0]], "a list holds the names or numbers of a text's labels, not zeros and ones"),
        ([["a"], "a"], "line 2: no list of labels in column 'labels'; found 'a'"),
        (["a", ["a"]], "line 2: column 'labels' holds a list, ['a']"),
        ([["a"], ["b", "b"]], "line 2: label 'b' is twice"),
    ],
)
def test_bad_training_files(folder: Path, capsys: pytest.CaptureFixture[str], labels: list[Any], told: str) -> None:
    lines = [json.dumps({"text": "good film", "labels": label}) for label in labels]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    assert main(options(folder, folder / "train.jsonl")) == 1
    error = capsys.readouterr().err
    assert told in error
    assert "train.jsonl" in error
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (["good", "odd"], "dev.jsonl, line 2: label 'odd' in column 'labels'; allowed: 'good', 'slow', 'warm'"),
        ("good", "dev.jsonl, line 2: no list of labels"),
    ],
)
def test_bad_validation_files(folder: Path, capsys: pytest.CaptureFixture[str], label: Any, told: str) -> None:
    dev = write(folder / "dev.jsonl", 1)
    with dev.open("a") as stream:
        stream.write(json.dumps({"text": "good film", "labels": label}) + "\n")
    assert main(options(folder, write(folder / "train.jsonl"), validation_file=str(dev))) == 1
    assert told in capsys.readouterr().err


def test_two_hundred_labels_and_a_single_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"text": f"good film {i}", "labels": [f"名{i}", f"n{i + 1}"]}) for i in range(100)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = options(folder, folder / "train.jsonl", num_train_epochs="1", validation_file=str(folder / "train.jsonl"))
    assert main(given) == 0
    network = ElasticBertForSequenceClassification.from_pretrained(folder / "out" / "depth")
    assert network.config.num_labels == 200
    assert network.config.id2label[199] == "名99"
    # One label, which some texts have and others not.
    lines = [json.dumps({"text": f"{'good' if i % 2 else 'bad'} film", "labels": ["x"] * (i % 2)}) for i in range(8)]
    (folder / "one.jsonl").write_text("\n".join(lines) + "\n")
    given = options(folder, folder / "one.jsonl", output_dir=str(folder / "one"), num_train_epochs="1")
    assert main(given) == 0
    capsys.readouterr()
    assert main(["predict", "--model_name_or_path", str(folder / "one" / "depth"), "--json", "good film"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert list(answer["predictions"][0]["scores"]) == ["x"]


def test_another_kind_of_teacher_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network of one label for each text."""
    given = [*options(folder, write(folder / "train.jsonl")), "--fine_tuned"]
    assert main(given) == 1
    assert "the labels are for multi_label_classification, the model is for single_label" in capsys.readouterr().err
    command = ["eval", "--model_name_or_path", str(folder / "model"), "--file", str(folder / "train.jsonl")]
    assert main(command) == 1
    assert "the model is for single_label" in capsys.readouterr().err


def test_the_separator_belongs_to_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["--task_name", "sst2", "--label_separator", "|"]
    assert main(["train", "--model_name_or_path", str(folder / "model"), *task]) == 2
    assert "--label_separator belongs to --train_file" in capsys.readouterr().err
    assert main(["eval", "--model_name_or_path", str(folder / "model"), *task]) == 2
    assert "--label_separator belongs to --file" in capsys.readouterr().err


# The trainer.


def many(count: int) -> Encoded:
    plain = texts(count)
    return Encoded(plain.input_ids, None, tuple(((), (0, 2), (1,))[i % 3] for i in range(count)), ("a", "b", "c"))


def test_the_step_learns_the_binary_cross_entropy(tmp_path: Path) -> None:
    """One step of plain gradient descent in float64 against autograd of the formula."""
    network = elastic(
        plain_model("bert", problem_type=MANY, hidden_dropout_prob=0, attention_probs_dropout_prob=0), tmp_path
    )
    data = many(4)
    stage = Stage("teacher", pipeline.Stage("x", (pipeline.SubnetConfig(),)).subnets, 0.0, 0.0, labels=True)
    targets = torch.zeros(4, 3, dtype=torch.float64)
    for row, own in enumerate(data.labels or ()):
        targets[row, list(own)] = 1.0  # type: ignore[arg-type]
    losses = []
    for row, ids in enumerate(data.input_ids):
        p = torch.sigmoid(network(input_ids=torch.tensor([ids])).logits[0])
        losses.append(-(targets[row] * p.log() + (1 - targets[row]) * (1 - p).log()).mean())
    torch.stack(losses).mean().backward()
    wanted = {name: p.detach() - 0.1 * p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    args = arguments(tmp_path / "run", optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0.0)
    trainer = DistillationTrainer(network, args, stage, data)
    trainer.train()
    assert trainer.state.global_step == 1
    for name, parameter in network.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-9, atol=1e-11)


def test_losses_of_several_copies() -> None:
    model = tiny_model(problem_type=MANY)
    logits, targets = torch.randn(4, 3), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    found = task_sums(model, logits, targets, 2)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.repeat(2, 1), reduction="none").mean(1)
    torch.testing.assert_close(found, torch.stack([each[:2].sum(), each[2:].sum()]))


def test_labels_of_another_kind_are_refused(tmp_path: Path) -> None:
    network = elastic(plain_model("bert"), tmp_path / "a", torch.float32)
    with pytest.raises(ValueError, match="has a set of labels for each text, the model is for single_label_class"):
        train_elastic(network, arguments(tmp_path / "run"), many(8), say=lambda _: None)
    assert not (tmp_path / "run").exists()
    network = elastic(plain_model("bert", problem_type=MANY), tmp_path / "b", torch.float32)
    with pytest.raises(ValueError, match="has one label for each text, the model is for multi_label_classification"):
        train_elastic(network, arguments(tmp_path / "run2"), texts(8), say=lambda _: None)
    stage = pipeline.Stage("x", (pipeline.SubnetConfig(),), 0.0, 0.0, labels=True)
    with pytest.raises(ValueError, match="are not of the model's kind, multi_label_classification"):
        DistillationTrainer(network, arguments(tmp_path / "run2"), stage, texts(8))


# Options.


@pytest.mark.parametrize("name", ["final_stage", "regression_logits"])
def test_a_switch_alone_is_on(name: str) -> None:
    start = ["--model_name_or_path", "m", "--use_cpu"]
    assert getattr(parse(start)[1], name) is None
    assert getattr(parse([*start, f"--{name}"])[1], name) is True
    assert getattr(parse([*start, f"--{name}", "--seed", "3"])[1], name) is True
    assert getattr(parse([*start, f"--{name}", "False"])[1], name) is False


@pytest.mark.skipif(torch.accelerator.is_available(), reason="here bf16 runs on the accelerator")
def test_bf16_without_a_gpu_runs_on_the_cpu(tmp_path: Path) -> None:
    args = DistillationArguments(output_dir=str(tmp_path), bf16=True)
    assert (args.use_cpu, args.device.type) == (True, "cpu")


@pytest.mark.parametrize("more", [{}, {"eval_strategy": "epoch"}])
def test_the_best_checkpoint_is_told_where_it_is(tmp_path: Path, more: dict[str, Any]) -> None:
    told = (
        r"--load_best_model_at_end is True.*leave it out: .*that network is OUTPUT_DIR/STAGE, such as distilled/depth"
    )
    with pytest.raises(ValueError, match=told):
        DistillationArguments(output_dir=str(tmp_path), use_cpu=True, load_best_model_at_end=True, **more)
