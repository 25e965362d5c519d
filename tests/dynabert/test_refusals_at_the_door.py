"""What a user gets wrong before any network runs, and networks whose numbers are broken: one clear error each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dynabert import (
    DistillationArguments,
    DistillationTrainer,
    ElasticBertForSequenceClassification,
    ElasticBertModel,
    InferenceEngine,
    SubnetConfig,
    compute_importance,
    distillation_losses,
    export_subnet,
)
from dynabert.cli import main
from dynabert.data import Encoded, load_task, read_examples, tokenise
from dynabert.distill import Stage
from dynabert.distill.pipeline import train_elastic
from dynabert.engine import ElasticServer, load_tokenizer
from dynabert.evaluation import evaluate
from dynabert.model_card import model_card
from dynabert.profile import measure_latency
from tests.dynabert.tiny_texts import some_texts, tiny_folder, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(tiny_folder(tmp_path / "model"))


def poisoned(folder: Path) -> Path:
    """The checkpoint with a NaN in a weight that every text passes."""
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    weights[name] = weights[name] * float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="here cuda is a device that is there")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there(folder: Path, device: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"PyTorch finds 0 GPUs here; use cpu"):
        InferenceEngine.from_pretrained(folder, device=device)
    assert main(["predict", "--model_name_or_path", str(folder), "--device", device, "good"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("device", ["foo", "meta", "mps"])
def test_an_unknown_device(folder: Path, device: str) -> None:
    with pytest.raises(ValueError, match="allowed: cpu, cuda or cuda:N"):
        InferenceEngine.from_pretrained(folder, device=device)


def test_outputs_that_are_not_numbers(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(poisoned(folder))
    with pytest.raises(ValueError, match="outputs are not finite for 1 of 1 texts"):
        InferenceEngine.from_pretrained(path).predict("good")
    assert main(["predict", "--model_name_or_path", path, "--json", "good"]) == 1
    table = tmp_path / "d.tsv"
    rows = "\n".join(f"{text}\t{i % 2}" for i, text in enumerate(some_texts(4)))
    table.write_text(f"text\tlabel\n{rows}\n", encoding="utf-8")
    assert main(["eval", "--model_name_or_path", path, "--file", str(table), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not finite" in captured.err


@pytest.mark.parametrize(
    ("path", "message"), [("./nothing/here", "there is no folder"), ("a/b/c", "there is no folder")]
)
def test_a_folder_that_is_not_there(path: str, message: str) -> None:
    with pytest.raises(OSError, match=message):
        ElasticBertForSequenceClassification.from_pretrained(path)


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(OSError, match="is a file; give the folder"):
        ElasticBertForSequenceClassification.from_pretrained(folder / "config.json")


def test_a_wrong_type_in_the_configuration(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] = "x"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"the config\.json of .* does not hold"):
        ElasticBertForSequenceClassification.from_pretrained(folder)


def test_half_a_character(folder: Path) -> None:
    with pytest.raises(ValueError, match="no valid Unicode"):
        InferenceEngine.from_pretrained(folder).predict(["good", "\ud800"])


def test_digits_of_other_scripts_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="sub-network"):
        SubnetConfig.parse("w\u0967")


IDS = Encoded(([5, 6], [7, 8]), None, (0, 1), ("a", "b"))


def test_another_kind_of_model(folder: Path, tmp_path: Path) -> None:
    """transformers' own class, an encoder without its head and a path are what a user has at hand first."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    elastic = ElasticBertForSequenceClassification.from_pretrained(folder)
    batch = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([0])}
    args = DistillationArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    stage = Stage("teacher", (SubnetConfig(),), 0.0, 0.0, labels=True)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    for model in (plain, ElasticBertModel.from_pretrained(folder), str(folder)):
        for call in (
            lambda model=model: InferenceEngine(model, tokenizer),
            lambda model=model: evaluate(model, IDS, ["w1"]),
            lambda model=model: measure_latency(model, ["w1"], batch_size=1, seq_length=4),
            lambda model=model: compute_importance(model, [batch]),
            lambda model=model: distillation_losses(model, elastic, batch, ["w1"]),
            lambda model=model: distillation_losses(elastic, model, batch, ["w1"]),
            lambda model=model: DistillationTrainer(model, args, stage, IDS),
            lambda model=model: DistillationTrainer(elastic, args, stage, IDS, teacher=model),
            lambda model=model: train_elastic(model, args, IDS),
            lambda model=model: export_subnet(model, tokenizer, "w1", tmp_path / "small"),
        ):
            with pytest.raises(TypeError, match=rf"{type(model).__name__}; open the checkpoint with Elastic"):
                call()
    with pytest.raises(TypeError, match="model_card: model must be an elastic model"):
        model_card(plain)
    assert not (tmp_path / "run").exists()


def test_one_subnetwork_in_place_of_a_list(folder: Path) -> None:
    model = ElasticBertForSequenceClassification.from_pretrained(folder)
    for one in ("w1", SubnetConfig(), model.shape("w1")):
        with pytest.raises(TypeError, match="evaluate: subnets is one sub-network; give a list"):
            evaluate(model, IDS, one)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="measure_latency: subnets is one sub-network; give a list"):
            measure_latency(model, one, batch_size=1, seq_length=4)  # type: ignore[arg-type]


def test_texts_of_another_type(folder: Path, tmp_path: Path) -> None:
    model = ElasticBertForSequenceClassification.from_pretrained(folder)
    with pytest.raises(TypeError, match="tokenise: examples must be Examples; got list; make them with"):
        tokenise(["good"], AutoTokenizer.from_pretrained(folder), 8, True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"evaluate: encoded must be Encoded .*; got list"):
        evaluate(model, ["good"], ["w1"])  # type: ignore[arg-type]
    args = DistillationArguments(output_dir=str(tmp_path / "run"), use_cpu=True)
    with pytest.raises(TypeError, match=r"train_elastic: train must be Encoded .*; got list"):
        train_elastic(model, args, ["good"])  # type: ignore[arg-type]


def test_another_number_of_labels(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"classifier\.bias is .*; for a new head give ignore_mismatched_sizes=True"):
        ElasticBertForSequenceClassification.from_pretrained(folder, num_labels=7)
    model = ElasticBertForSequenceClassification.from_pretrained(folder, num_labels=7, ignore_mismatched_sizes=True)
    assert model.num_labels == 7


def _texts() -> Encoded:
    return Encoded(([1, 5, 2],) * 4, None, (0, 1, 2, 0), ("LABEL_0", "LABEL_1", "LABEL_2"))


# Of any type for the type checker, as in a program that nobody checks.
NONE: Any = None
FIVE: Any = 5
HALF: Any = 0.5
TEXT: Any = "w0.5"
SLIPS: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "no source": (lambda _, p: InferenceEngine.from_pretrained(NONE), "folder or hub id; got None"),
    "a number": (lambda _, p: ElasticBertForSequenceClassification.from_pretrained(FIVE), "folder or hub id; got 5 "),
    "tokenizer": (lambda _, p: load_tokenizer(FIVE), "folder or hub id; got 5 "),
    "a path for it": (lambda e, p: InferenceEngine(e.model, p), "must be a fast tokenizer; got PosixPath"),
    "none of it": (lambda e, _: InferenceEngine(e.model, NONE), "must be a fast tokenizer; got NoneType"),
    "length": (lambda e, _: InferenceEngine(e.model, e.tokenizer, max_length=TEXT), "max_length must be a whole"),
    "tokens": (lambda e, _: InferenceEngine(e.model, e.tokenizer, max_batch_tokens=HALF), "must be a whole"),
    "threshold": (lambda e, _: InferenceEngine(e.model, e.tokenizer, threshold=TEXT), "threshold must be a number"),
    "a list pair": (
        lambda e, _: e.predict([["good", "bad"]]),
        "text 0 is a list; allowed: a str, or a pair as a tuple",
    ),
    "a width": (lambda e, _: e.predict("good", 0.5), r"got float; for half the width give SubnetConfig\(0\.5\)"),
    "lookahead": (lambda e, _: e.predict_iter(["good"], lookahead=None), "lookahead must be a whole number"),
    "in": (lambda e, p: e.predict_file(5, p / "out.csv"), "a file is given by its path; got 5"),
    "out": (lambda e, p: e.predict_file(p / "in.txt", None), "a file is given by its path; got None"),
    "lengths": (lambda e, _: e.warm_up(lengths=8), "lengths must be a list of whole numbers; got 8"),
    "server": (lambda e, _: ElasticServer(e.model, ["w1"], promise_ms=5), "engine must be an InferenceEngine"),
    "promise": (lambda e, _: ElasticServer(e, ["w1"], promise_ms=TEXT), "promise_ms must be a number; got 'w0.5'"),
    "its text": (lambda *_: SubnetConfig(TEXT), "got 'w0.5' .*; SubnetConfig.parse reads a sub-network's text"),
    "batches": (lambda e, _: compute_importance(e.model, FIVE), "batches must be an iterable of batches; got int"),
    "no subnets": (lambda e, _: distillation_losses(e.model, e.model, {}, NONE), "give a list of them"),
    "none to score": (lambda e, _: evaluate(e.model, _texts(), NONE), "give a list of them"),
    "arguments": (lambda e, _: train_elastic(e.model, FIVE, _texts()), "args must be DistillationArguments; got int"),
    "widths": (lambda _, p: DistillationArguments(str(p), widths=TEXT), "allowed: a list of numbers, such as"),
    "subnets": (lambda _, p: DistillationArguments(str(p), subnets=FIVE), "subnets: a text is needed, such as 'all'"),
    "task": (lambda *_: load_task(FIVE), "a task is given by its name; got 5"),
    "table": (lambda *_: read_examples(NONE), "a file is given by its path; got None"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_value_of_another_type(tmp_path: Path, slip: str) -> None:
    (tmp_path / "in.txt").write_text("good\n", encoding="utf-8")
    call, wrong = SLIPS[slip]
    with pytest.raises(TypeError, match=wrong):
        call(InferenceEngine(tiny_model(), tiny_tokenizer()), tmp_path)


def test_layers_to_start_from_are_one_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="starting_layers is 5; allowed: numbers of layers, from 0, between"):
        DistillationArguments(str(tmp_path), starting_layers=FIVE)


def test_names_and_separators_of_labels_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\ngood,1\n", encoding="utf-8")
    with pytest.raises(TypeError, match="label_names are 5; allowed: a list of texts"):
        read_examples(path, label_names=FIVE)
    with pytest.raises(ValueError, match=r"label_separator is 5 .*; allowed: a text that is not empty"):
        read_examples(path, label_separator=FIVE)
