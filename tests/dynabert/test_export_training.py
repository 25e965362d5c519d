"""Exported models train on: in transformers without this project, and in our own trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from dynabert import DistillationTrainer, ElasticBertForSequenceClassification, ElasticBertModel
from dynabert.distill import Stage
from dynabert.distill.stages import grid
from dynabert.export import export_subnet, modeling_elastic_bert, parity
from dynabert.finetuning import FineTuningArguments, fine_tune
from tests.dynabert.exported import elsewhere, opened_here, rewired
from tests.dynabert.tiny_networks import close, padded_batch, plain_model
from tests.dynabert.tiny_texts import tiny_tokenizer
from tests.dynabert.tiny_training import arguments, texts

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

# Fine-tunes with transformers' Trainer, saves, opens again; then a pipeline over texts.
TRAIN_ELSEWHERE = """
import json, pathlib, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline
found = {}
for folder, kind in json.loads(sys.argv[1]):
    folder = pathlib.Path(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    torch.manual_seed(0)
    labels = {
        "classes": torch.randint(0, 3, (16,)),
        "regression": torch.randn(16),
        "several": torch.randint(0, 2, (16, 3)).float(),
    }[kind]
    rows = [
        {"input_ids": torch.randint(5, 50, (n,)).tolist(), "attention_mask": [1] * n, "labels": labels[i].tolist()}
        for i, n in enumerate(torch.randint(2, 12, (16,)).tolist())
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    args = TrainingArguments(
        str(folder) + "-run", per_device_train_batch_size=8, num_train_epochs=25, learning_rate=3e-3, use_cpu=True,
        logging_strategy="epoch", save_strategy="no", report_to=[], disable_tqdm=True, gradient_accumulation_steps=1,
    )
    trainer = Trainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainer.save_model(str(folder) + "-trained")
    again = AutoModelForSequenceClassification.from_pretrained(str(folder) + "-trained", trust_remote_code=True)
    ids = torch.tensor([[5, 6, 7, 8, 1], [9, 10, 11, 12, 13]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        before, after = (one.eval()(input_ids=ids, attention_mask=mask).logits for one in (model, again))
        states = again(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert torch.equal(before, after)
    classify = pipeline("text-classification", model=str(folder) + "-trained", trust_remote_code=True)
    answers = classify(["a good film", "the plot is dull and slow"], batch_size=2)
    found[folder.name] = {
        "losses": losses, "logits": after.tolist(), "states": len(states), "answers": answers,
        "class": type(again).__module__ + "." + type(again).__name__, "ids": ids.tolist(), "mask": mask.tolist(),
    }
print(json.dumps(found))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "opened_remote", opened_here)


def test_the_trainer_and_the_pipeline_of_transformers(tmp_path: Path) -> None:
    """hf-remote and hf, where this project cannot be imported; afterwards our own class opens what was saved there."""
    several = {"problem_type": "multi_label_classification"}
    sources: list[tuple[str, str, str, dict[str, Any]]] = [
        ("mpnet", "hf-remote", "classes", {}),
        ("bert", "hf-remote", "regression", {"num_labels": 1}),
        ("roberta", "hf-remote", "several", several),
        ("bert", "hf", "classes", {}),
    ]
    asked = []
    for architecture, form, kind, changes in sources:
        subnet = "h4,1,0,2-n7,40,0,1" if form == "hf-remote" else "h4,4,0,4-n9,9,0,9"
        folder = tmp_path / f"{architecture}-{form}-{kind}"
        export_subnet(
            rewired(architecture, **changes), tiny_tokenizer(architecture), subnet, folder, format=form, source="tiny"
        )
        asked.append((str(folder), kind))
    found = elsewhere(TRAIN_ELSEWHERE, tmp_path / "modules", json.dumps(asked))
    for (folder, kind), (architecture, form, _, _) in zip(asked, sources, strict=True):
        told = found[Path(folder).name]
        assert told["losses"][-1] < 0.8 * told["losses"][0], folder
        assert told["states"] == 4
        assert [set(answer) for answer in told["answers"]] == [{"label", "score"}] * 2
        home = "transformers_modules." if form == "hf-remote" else "transformers.models.bert"
        assert told["class"].startswith(home)
        ours = ElasticBertForSequenceClassification.from_pretrained(f"{folder}-trained")
        assert ours.config.architecture == architecture
        assert ours.config.num_labels == (1 if kind == "regression" else 3)
        with torch.no_grad():
            logits = ours(input_ids=torch.tensor(told["ids"]), attention_mask=torch.tensor(told["mask"])).logits
        close(logits, torch.tensor(told["logits"]), 1e-5)


def test_padding_stays_zero_in_training(architecture: str, tmp_path: Path) -> None:
    """A padded head or neuron has no gradient: what is trained is the narrow network, in a wide form."""
    model = rewired(architecture, **NO_DROPOUT)
    subnet = "h4,1,0,2-n7,40,0,1"
    export_subnet(model, None, subnet, tmp_path / "padded", pad=True)
    export_subnet(model, None, subnet, tmp_path / "narrow", format="elastic")
    wide: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "padded")
    narrow = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "narrow")
    batch = padded_batch(plain_model(architecture), [5, 9, 2])
    labels = torch.tensor([0, 2, 1])
    zero = {name: parameter == 0 for name, parameter in wide.named_parameters()}
    losses = []
    for one in (wide, narrow):
        one.train()
        optimizer = torch.optim.AdamW(one.parameters(), lr=1e-3, weight_decay=0.1)
        steps = []
        for _ in range(6):
            loss = one(**batch, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            steps.append(float(loss.detach()))
        losses.append(steps)
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    layers = [name for name in zero if ".layer." in name and name.endswith("weight") and zero[name].any()]
    assert len(layers) >= 10
    for name, parameter in wide.named_parameters():
        if name in layers:
            assert bool((parameter[zero[name]] == 0).all()), name


def test_an_elastic_export_trains_in_our_trainer(tmp_path: Path) -> None:
    source = rewired("bert", **NO_DROPOUT)
    export_subnet(source, None, "w0.5-d0.5", tmp_path / "small", format="elastic")
    student = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "small")
    result = fine_tune(
        student,
        texts(12),
        FineTuningArguments(learning_rate=3e-3, num_train_epochs=12, per_device_train_batch_size=12),
        progress=False,
    )
    assert result.losses[-1] < 0.7 * result.losses[0]
    stage = Stage("width", grid((1.0, 0.5), (1.0,)), 1.0, 0.0)  # one of its two heads: a sub-network of its own
    args = arguments(tmp_path / "run", num_train_epochs=8)
    teacher = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "small")
    trainer = DistillationTrainer(student, args, stage, texts(12), None, teacher)
    trainer.train()
    told = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert told[-1] < told[0]
    student.save_pretrained(tmp_path / "again")
    again = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "again")
    again(input_ids=torch.tensor([[5, 6, 7]]), subnet="w0.5-d0.5")


# The code beside the weights ------------------------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path: Path) -> Any:
    export_subnet(rewired("bert"), None, "h4,1,0,2-n7,40,0,1", tmp_path / "out", format="hf-remote")
    return modeling_elastic_bert.ElasticBertForSequenceClassification.from_pretrained(tmp_path / "out")


def test_losses_are_those_of_our_class(remote: Any, tmp_path: Path) -> None:
    ours = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "out")
    batch = padded_batch(plain_model("bert"), [5, 9, 2])
    generator = torch.Generator().manual_seed(0)
    for labels in (torch.tensor([0, -100, 2]), torch.rand(3, 3, generator=generator)):
        for kind in (None, "multi_label_classification", "regression", "single_label_classification"):
            if (kind == "single_label_classification") != (labels.dtype == torch.int64) and kind is not None:
                continue
            remote.config.problem_type = ours.config.problem_type = kind
            with torch.no_grad():
                found, wanted = remote(**batch, labels=labels).loss, ours(**batch, labels=labels).loss
            assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_the_rest_of_its_interface(remote: Any, tmp_path: Path) -> None:
    batch = padded_batch(plain_model("bert"), [5, 9, 2])
    with torch.no_grad():
        named, listed = remote(**batch), remote(**batch, return_dict=False)
        assert torch.equal(listed[0], named.logits)
        base = modeling_elastic_bert.ElasticBertModel.from_pretrained(tmp_path / "out").eval()
        output = base(**batch, output_hidden_states=True)
        ours = ElasticBertModel.from_pretrained(tmp_path / "out")(**batch, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    assert len(output.hidden_states) == len(ours.hidden_states) == 4
    for found, wanted in zip(output.hidden_states, ours.hidden_states, strict=True):
        close(found[real], wanted[real])
    close(output.pooler_output, ours.pooler_output)
    assert remote.get_input_embeddings() is remote.bert.embeddings.word_embeddings
    with pytest.raises(ValueError, match="input_ids are missing"):
        remote()
    with pytest.raises(ValueError, match="input_ids has 51 columns; the model has positions for 50; truncate"):
        remote(input_ids=torch.ones(1, 51, dtype=torch.int64))
    other = modeling_elastic_bert.ElasticBertForSequenceClassification.from_pretrained(
        tmp_path / "out", num_labels=5, ignore_mismatched_sizes=True
    )
    assert other(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 5)
    with pytest.raises(ValueError, match="the elastic block has format 9; this file reads 1"):
        modeling_elastic_bert.ElasticBertConfig(elastic={"format": 9})
    with pytest.raises(ValueError, match="architecture is 't5'; allowed: bert, roberta, mpnet"):
        modeling_elastic_bert.ElasticBertConfig(elastic={"format": 1, "architecture": "t5"})
    assert modeling_elastic_bert.ElasticBertConfig().elastic["layer_heads"] == [12] * 12


def test_where_this_project_is_imported_its_own_class_opens_it(tmp_path: Path) -> None:
    model, folder = rewired("mpnet"), tmp_path / "out"
    export_subnet(model, tiny_tokenizer("mpnet"), "w0.5", folder, format="hf-remote")
    opened = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    assert type(opened) is ElasticBertForSequenceClassification
    batch = padded_batch(plain_model("mpnet"), [5, 9, 2])
    with torch.no_grad():
        close(opened(**batch).logits, model(**batch, subnet="w0.5").logits)


def test_a_row_without_a_token_is_no_nan(remote: Any) -> None:
    mask = torch.tensor([[1, 1], [0, 0]])
    with torch.no_grad():
        assert bool(torch.isfinite(remote(input_ids=torch.tensor([[5, 6], [5, 6]]), attention_mask=mask).logits).all())


def test_broken_head_orders(tmp_path: Path) -> None:
    """Saved again by transformers, an MPNet's orders lie in config.json alone."""
    export_subnet(rewired("mpnet"), None, "w0.5", tmp_path / "out", format="hf-remote")
    (tmp_path / "out" / "elastic.safetensors").unlink()
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    for orders in ([[0, 1]] * 3, [[0, 0]] * 4, [[0, 9]] * 4):
        config["elastic"]["head_orders"] = orders
        path.write_text(json.dumps(config))
        with pytest.raises(ValueError, match="head_orders must name, for each of 4 layers"):
            ElasticBertForSequenceClassification.from_pretrained(tmp_path / "out")
