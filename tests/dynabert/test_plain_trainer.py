"""transformers' own ``Trainer`` on an elastic network: every kind of label, cut and gone on with, the best one kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from dynabert import ElasticBertForSequenceClassification, Importance, rewire
from dynabert.modeling import inputs
from tests.dynabert.test_hugging_face import Hub
from tests.dynabert.tiny_texts import some_texts, tiny_model, tiny_tokenizer

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def examples(kind: str, outputs: int = 3, architecture: str = "bert") -> list[dict[str, Any]]:
    """Texts that say their labels."""
    tokenizer = tiny_tokenizer(architecture)
    rows = []
    for text in some_texts(32, longest=6):
        said = [float("good" in text or "film" in text), float("the" in text), 1.0][:outputs]
        labels = int(said[0]) if kind == SINGLE else said[0] if kind == REGRESSION and outputs == 1 else said
        rows.append({**tokenizer(text), "labels": labels})
    return rows


def trainer(model: Any, folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Trainer:
    tokenizer = tiny_tokenizer(model.config.architecture)
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 5e-3,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": [],
        "dataloader_pin_memory": False,
    }
    return Trainer(
        model,
        TrainingArguments(**(values | changes)),
        train_dataset=rows,  # type: ignore[arg-type]
        eval_dataset=rows,  # type: ignore[arg-type]
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"mean": float(np.mean(found.predictions))},
    )


def rewired(architecture: str) -> ElasticBertForSequenceClassification:
    drawn = torch.Generator().manual_seed(1)
    scores = (torch.rand(4, count, generator=drawn) for count in (4, 40))
    return rewire(tiny_model(architecture, num_labels=3), Importance(*scores))


def equal(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    ("kind", "outputs", "said"),
    [
        (SINGLE, 3, True),
        (SINGLE, 3, False),
        (MULTI, 3, True),
        (MULTI, 3, False),
        (REGRESSION, 1, True),
        (REGRESSION, 1, False),
        (REGRESSION, 3, True),
    ],
)
def test_every_kind_of_label(tmp_path: Path, kind: str, outputs: int, said: bool) -> None:
    """``said``: whether the configuration names the problem, or transformers' rule finds it from the labels."""
    rows = examples(kind, outputs)
    model = tiny_model(num_labels=outputs, problem_type=kind if said else None)
    own = trainer(model, tmp_path, rows, save_strategy="no", eval_strategy="no")
    before = own.evaluate()["eval_loss"]
    own.train()
    after = own.evaluate()
    assert after["eval_loss"] < 0.9 * before
    found = own.predict(rows)  # type: ignore[arg-type]
    assert found.predictions.shape == (len(rows), outputs)
    assert found.metrics["test_loss"] == pytest.approx(after["eval_loss"], rel=1e-5)
    assert after["eval_mean"] == pytest.approx(float(np.mean(found.predictions)), rel=1e-5)
    own.save_model(str(tmp_path / "saved"))
    again = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert equal(again, model)
    assert again.config.problem_type == (kind if said else None)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "saved").iterdir()}


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_a_run_that_was_cut_ends_with_the_same_weights(tmp_path: Path, architecture: str) -> None:
    """Dropout included; of a rewired network, so that MPNet's heads must find their bias again."""
    rows = examples(SINGLE, architecture=architecture)
    whole = trainer(rewired(architecture), tmp_path, rows)
    whole.train()
    first, last = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    shutil.rmtree(last)
    resumed = trainer(rewired(architecture), tmp_path, rows)
    resumed.train(resume_from_checkpoint=str(first))
    assert equal(whole.model, resumed.model)
    opened = ElasticBertForSequenceClassification.from_pretrained(last)
    assert equal(opened, whole.model)
    names = [name for name, _ in whole.model.named_buffers() if name.endswith("_order")]
    assert names
    assert all(torch.equal(opened.get_buffer(name), whole.model.get_buffer(name)) for name in names)


def test_the_best_checkpoint_is_loaded(tmp_path: Path) -> None:
    """By a metric of the test's own, whichever epoch has the most of it."""
    own = trainer(
        tiny_model(num_labels=3),
        tmp_path,
        examples(SINGLE),
        load_best_model_at_end=True,
        metric_for_best_model="eval_mean",
        num_train_epochs=3,
    )
    own.train()
    best = str(own.state.best_model_checkpoint)
    by_epoch = {row["step"]: row["eval_mean"] for row in own.state.log_history if "eval_mean" in row}
    assert best.endswith(f"-{max(by_epoch, key=lambda step: by_epoch[step])}")
    assert equal(ElasticBertForSequenceClassification.from_pretrained(best), own.model)
    assert own.evaluate()["eval_mean"] == pytest.approx(max(by_epoch.values()), rel=1e-5)


def test_bf16_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Weights and answers stay float32, and so do the layers, which is said; the head's products are taken in bfloat16,
    so the losses differ a little."""
    monkeypatch.setattr(inputs, "_said", set())
    losses = []
    for half in (False, True):
        model = tiny_model(num_labels=3)
        own = trainer(model, tmp_path, examples(SINGLE), save_strategy="no", bf16=half, num_train_epochs=1)
        losses.append(own.train().training_loss)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert own.predict(examples(SINGLE)).predictions.dtype == np.float32  # type: ignore[arg-type]
        told = [record.getMessage() for record in caplog.records if "autocast" in record.getMessage()]
        assert len(told) == half  # once
    assert told[0].startswith(
        "autocast to bfloat16 is on (as with bf16=True in transformers' Trainer): the layers comp"
    )
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_trainer_uploads_all_that_the_network_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    hub.install(monkeypatch, tmp_path)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: None)
    own = trainer(
        rewired("mpnet").extract("w0.5"),
        tmp_path / "run",
        examples(SINGLE, architecture="mpnet"),
        save_strategy="no",
        eval_strategy="no",
        num_train_epochs=1,
        hub_model_id="me/run",
        hub_token="secret",
    )
    own.train()
    own.push_to_hub(commit_message="Done", revision="trial")
    sent = hub.calls["upload_folder"]
    assert (sent["repo_id"], sent["commit_message"], sent["revision"]) == ("me/run", "Done", "trial")
    wanted = {
        "config.json",
        "model.safetensors",
        "elastic_bert.py",
        "elastic.safetensors",
        "tokenizer.json",
        "README.md",
    }
    assert wanted <= set(hub.files)
