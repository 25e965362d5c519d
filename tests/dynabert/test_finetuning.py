"""Fine-tuning: it learns, the same seed gives the same weights, and a step cut into parts has the same gradient."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from dynabert import ElasticBertForSequenceClassification, compute_importance
from dynabert.data import Encoded, Examples, tokenise
from dynabert.evaluation import evaluate
from dynabert.finetuning import FineTuningArguments, fine_tune, labelled_batches
from tests.dynabert.tiny_texts import tiny_model, tiny_tokenizer

TEXTS = tuple(
    f"{word} {noun}" for word in ("good", "great", "bad", "poor") for noun in ("film", "plot", "music", "scene")
)


def data(num_labels: int = 2) -> Encoded:
    good = [text.startswith(("good", "great")) for text in TEXTS]
    if num_labels == 1:
        examples = Examples(TEXTS, None, tuple(float(g) for g in good), (), "toy")
    else:
        examples = Examples(TEXTS, None, tuple(int(g) for g in good), ("bad", "good"), "toy")
    return tokenise(examples, tiny_tokenizer(), 20)


def arguments(**changes: Any) -> FineTuningArguments:
    return FineTuningArguments(
        **({"learning_rate": 3e-3, "num_train_epochs": 6, "per_device_train_batch_size": 4} | changes)
    )


def fresh(num_labels: int = 2, dropout: float = 0.0) -> ElasticBertForSequenceClassification:
    return tiny_model(num_labels=num_labels, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("num_labels", [1, 2])
def test_it_learns(num_labels: int) -> None:
    model, examples = fresh(num_labels), data(num_labels)
    result = fine_tune(model, examples, arguments())
    assert result.steps == len(result.losses) == 24
    assert result.examples == 6 * 16
    assert result.final_loss < 0.3 * result.losses[0]
    assert not model.training
    score = evaluate(model, examples, ["w1"])[0]
    assert score.score > (0.8 if num_labels == 1 else 0.9)


def test_a_gradient_that_was_left_behind_is_not_learned_from() -> None:
    runs = []
    for left in (False, True):
        model = fresh()
        if left:
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
        fine_tune(model, data(), arguments(num_train_epochs=1))
        runs.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_same_seed_same_weights_and_the_callers_random_state_stands() -> None:
    before = torch.random.get_rng_state()
    runs = []
    for seed in (1, 1, 2):
        model = fresh(dropout=0.1)
        torch.manual_seed(int(torch.randint(1000, ()).item()))
        state = torch.random.get_rng_state()
        fine_tune(model, data(), arguments(num_train_epochs=1, seed=seed))
        assert torch.equal(torch.random.get_rng_state(), state)
        runs.append(weights(model))
    torch.random.set_rng_state(before)
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_a_step_in_parts_is_the_same_step() -> None:
    found = []
    for tokens in (8192, 9):  # whole, and two or three examples at a time
        model = fresh().double()  # in float32 Adam turns rounding of a tiny gradient into a whole step
        result = fine_tune(
            model, data(), arguments(num_train_epochs=1, per_device_train_batch_size=7, max_batch_tokens=tokens)
        )
        found.append((weights(model), result.losses))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)
    for a, b in zip(found[0][0], found[1][0], strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_head_rate_and_decay_reach_their_parameters() -> None:
    model = fresh()
    before = dict(zip([name for name, _ in model.named_parameters()], weights(model), strict=True))
    args = arguments(num_train_epochs=1, learning_rate=1e-12, head_learning_rate=1e-2, per_device_train_batch_size=16)
    fine_tune(model, data(), args)
    moved = {name for name, p in model.named_parameters() if not torch.allclose(p, before[name], atol=1e-6)}
    assert moved
    assert all("classifier" in name or "pooler" in name for name in moved)


def test_frozen_parameters_stay() -> None:
    model = fresh()
    table = model.get_input_embeddings().weight
    table.requires_grad_(False)
    before = table.clone()
    fine_tune(model, data(), arguments(num_train_epochs=1))
    assert torch.equal(table, before)


def test_batches_for_importance() -> None:
    model, examples = fresh(), data()
    batches = list(labelled_batches(model, examples, 5))
    assert [batch["batch"].num_sequences for batch in batches] == [5, 5, 5, 1]
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), torch.tensor(examples.labels))
    packed = compute_importance(model, batches)
    padded = []
    for start in range(0, 16, 5):
        ids = [torch.tensor(row) for row in examples.input_ids[start : start + 5]]
        inputs = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        labels = torch.tensor(examples.labels)[start : start + 5]
        padded.append({"input_ids": inputs, "attention_mask": (inputs != 0).long(), "labels": labels})
    expected = compute_importance(model, padded)
    assert torch.allclose(packed.heads, expected.heads, rtol=1e-3, atol=1e-6)
    assert torch.allclose(packed.neurons, expected.neurons, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"num_train_epochs": 0}, "num_train_epochs is 0; allowed: 1 or more"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; allowed: above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"head_learning_rate": -1.0}, "head_learning_rate is -1.0"),
        ({"warmup_ratio": 1.0}, "warmup_ratio is 1.0; allowed: 0 to below 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match="fine_tune: ") as error:
        arguments(**changes)
    assert wrong in str(error.value)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="toy has no labels"):
        fine_tune(fresh(), dataclasses.replace(data(), labels=None))
    with pytest.raises(ValueError, match="toy has 2 classes and the model 3 outputs"):
        fine_tune(fresh(3), data())
    with pytest.raises(ValueError, match="toy is a regression and the model has 2 outputs"):
        fine_tune(fresh(2), data(1))
    with pytest.raises(ValueError, match=r"the model is in torch\.bfloat16; allowed: float32"):
        fine_tune(fresh().bfloat16(), data())
    with pytest.raises(ValueError, match="batch_size is 0"):
        list(labelled_batches(fresh(), data(), 0))


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = fresh()
    with torch.no_grad():
        model.classifier.out_proj.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="the loss is nan at step 0; lower learning_rate"):
        fine_tune(model, data(), arguments())
    assert not model.training


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    fine_tune(fresh(), data(), arguments(num_train_epochs=1), progress=False)
    assert capsys.readouterr().err == ""
    fine_tune(fresh(), data(), arguments(num_train_epochs=1), progress=True)
    shown = capsys.readouterr().err
    assert "16/16" in shown
    assert "loss=" in shown
