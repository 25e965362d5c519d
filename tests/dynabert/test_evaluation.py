"""Scores of many sub-networks: each equals what the network says on its own, example by example."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from dynabert.configuration.grid import parse_subnets, subnet_grid, subnet_text
from dynabert.data import Encoded, Examples, tokenise
from dynabert.evaluation import compute_logits, evaluate, fidelity, paired_difference
from dynabert.profile import measure_latency
from dynabert.profile.remeasure import remeasure
from tests.dynabert.tiny_texts import some_texts, tiny_model, tiny_tokenizer


def encoded(count: int = 30, num_labels: int = 3) -> Encoded:
    labels: tuple[Any, ...] = (
        tuple(float(i % 7) for i in range(count)) if num_labels == 1 else tuple(i % num_labels for i in range(count))
    )
    names = () if num_labels == 1 else tuple(f"LABEL_{i}" for i in range(num_labels))
    return tokenise(Examples(tuple(some_texts(count)), None, labels, names, "toy"), tiny_tokenizer(), 20)


def test_logits_of_every_subnetwork(architecture: str) -> None:
    model = tiny_model(architecture)
    data = tokenise(Examples(tuple(some_texts(20))), tiny_tokenizer(architecture), 20)
    subnets = ["w1", "w0.5-d0.75", "w0.25-d0.5"]
    found = compute_logits(model, data, subnets, max_batch_tokens=25)
    assert list(found) == ["w1-d1", "w0.5-d0.75", "w0.25-d0.5"]
    for name, logits in found.items():
        assert logits.shape == (20, 3)
        for i, ids in enumerate(data.input_ids):
            with torch.no_grad():
                alone = model(input_ids=torch.tensor([ids]), subnet=name).logits[0]
            assert logits[i] == pytest.approx(alone.numpy(), abs=1e-4)


@pytest.mark.parametrize("batch", [{"max_batch_tokens": 25}, {"max_batch_size": 3}, {}])
def test_all_subnetworks_in_one_launch(architecture: str, batch: dict[str, int]) -> None:
    model = tiny_model(architecture).double()
    data = tokenise(Examples(tuple(some_texts(20))), tiny_tokenizer(architecture), 20)
    subnets = parse_subnets("w0.25-d0.5,w1,w0.5-l0,2")
    one_by_one = compute_logits(model, data, subnets, stacked=False, **batch)  # type: ignore[arg-type]
    together = compute_logits(model, data, subnets, stacked=True, **batch)  # type: ignore[arg-type]
    assert list(together) == list(one_by_one)
    for name, logits in one_by_one.items():
        np.testing.assert_allclose(together[name], logits, rtol=0, atol=1e-12)


def test_rows() -> None:
    model, data = tiny_model(), encoded()
    rows = evaluate(model, data, subnet_grid(), max_batch_size=4)
    assert [row.subnet for row in rows] == [str(subnet) for subnet in subnet_grid()]
    for row in rows:
        predictions = compute_logits(model, data, [row.subnet])[row.subnet].argmax(1)
        assert row.score == row.metrics["accuracy"] == np.mean(predictions == np.array(data.labels))
        assert row.examples == 30
        assert row.majority == pytest.approx(1 / 3)
    assert set(rows[0].to_dict()) == {"subnet", "score", "metric", "metrics", "examples", "majority"}


def test_metric_by_name() -> None:
    rows = evaluate(tiny_model(), encoded(), ["w1"], metric="matthews_correlation")
    assert rows[0].score == rows[0].metrics["matthews_correlation"]
    assert rows[0].majority == 0.0


def test_regression_is_scored_by_rank() -> None:
    rows = evaluate(tiny_model(num_labels=1), encoded(num_labels=1), ["w1", "w0.5"])
    assert [row.metric for row in rows] == ["spearman", "spearman"]
    assert set(rows[0].metrics) == {"spearman", "pearson"}
    assert -1.0 <= rows[0].score <= 1.0


@pytest.mark.parametrize("training", [False, True])
def test_mode_is_put_back(training: bool) -> None:
    model = tiny_model().train(training)
    evaluate(model, encoded(), ["w1"])
    assert model.training is training
    model = tiny_model().train(training)
    with pytest.raises(ValueError, match="width_mult"):
        evaluate(model, encoded(), ["w0.3"])
    assert model.training is training


def test_the_mode_of_each_module_is_put_back() -> None:
    """A module that was put in eval mode for good stays in it, in a model that trains."""
    model = tiny_model().train()
    model.encoder.layers[1].eval()
    modes = [module.training for module in model.modules()]
    evaluate(model, encoded(), ["w1"])
    measure_latency(model, ["w1"], seq_length=4, rounds=1, warmup=0)
    remeasure(model, [model.shape("w1")], 1, 4, rounds=1, warmup=0)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("change", "subnets", "metric", "wrong"),
    [
        ({"labels": None, "label_names": ()}, ["w1"], None, "toy has no labels"),
        ({"labels": (7,) * 30}, ["w1"], None, "toy has label 7, the model has 3 outputs"),
        ({"labels": (0, -100) * 15}, ["w1"], None, "toy has label -100, the model has 3 outputs"),
        (
            {"labels": (0.0, 1.0) * 15},
            ["w1"],
            None,
            "toy has numbers of a regression as labels, the model is for single",
        ),
        ({}, [], None, "each sub-network is needed once; got none"),
        ({}, ["w1", "w1-d1"], None, "each sub-network is needed once; got w1-d1, w1-d1"),
        ({}, ["w1"], "pearson", "metric 'pearson' does not fit single_label_classification; allowed: accuracy"),
        ({}, ["w1"], "bleu", "metric 'bleu' does not fit"),
        ({"input_ids": (), "token_type_ids": (), "labels": ()}, ["w1"], None, "no examples"),
        (
            {"input_ids": ([1], [2, 61], *[[1]] * 28), "token_type_ids": None},
            ["w1"],
            None,
            "text 1 of toy has the id 61; allowed: 0 to 60; tokenise for this model, by its own tokenizer",
        ),
        (
            {"input_ids": ([1], [2, -1], *[[1]] * 28), "token_type_ids": None, "lines": tuple(range(2, 32))},
            ["w1"],
            None,
            "the text of line 3 of toy has the id -1; allowed: 0 to 60",
        ),
        (
            {"input_ids": (*[[1]] * 29, [1] * 51), "token_type_ids": None},
            ["w1"],
            None,
            "text 29 of toy has 51 tokens; allowed: 1 to the model's 50 positions",
        ),
    ],
)
def test_refusals(change: dict[str, Any], subnets: list[str], metric: str | None, wrong: str) -> None:
    data = dataclasses.replace(encoded(), **change)
    with pytest.raises(ValueError, match="evaluate: ") as error:
        evaluate(tiny_model(), data, subnets, metric=metric)
    assert wrong in str(error.value)


def test_classes_for_a_regression_are_refused() -> None:
    with pytest.raises(ValueError, match="toy has classes as labels, the model is for regression; use data of the"):
        evaluate(tiny_model(num_labels=1), encoded(), ["w1"])


def test_one_label_for_a_multi_label_model_is_refused() -> None:
    with pytest.raises(ValueError, match="toy has one label for each text, the model is for multi_label"):
        evaluate(tiny_model(problem_type="multi_label_classification"), encoded(), ["w1"])


# Naming sub-networks
# ----------------------------------------------------------------------------------------------------


def test_grid_is_the_papers() -> None:
    names = [str(subnet) for subnet in subnet_grid()]
    assert len(set(names)) == 12
    assert names[0] == "w1-d1"
    assert names[-1] == "w0.25-d0.5"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w1", ["w1-d1"]),
        ("w1,w0.5-d0.75", ["w1-d1", "w0.5-d0.75"]),
        ("w1, w0.5 ; d0.5", ["w1-d1", "w0.5-d1", "w1-d0.5"]),
        ("w0.5-l0,2,w1", ["w0.5-l0,2", "w1-d1"]),
        ("h4,0,2,1-n40,0,7,3,w0.5", ["h4,0,2,1-n40,0,7,3", "w0.5-d1"]),
        (" all ", [str(subnet) for subnet in subnet_grid()]),
    ],
)
def test_lists_of_subnetworks(text: str, expected: list[str]) -> None:
    assert [str(subnet) for subnet in parse_subnets(text, tiny_model().config)] == expected


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "none named"),
        ("w1,w1-d1", "w1-d1 is named twice"),
        ("w0.3", "w0.3-d1 does not fit this network: width_mult 0.3"),
        ("half", "unknown sub-network 'half'"),
    ],
)
def test_lists_refused(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=":") as error:
        parse_subnets(text, tiny_model().config)
    assert wrong in str(error.value)


def test_text_of_every_form() -> None:
    model = tiny_model()
    assert subnet_text(None) == "w1-d1"
    assert subnet_text("w0.5") == "w0.5-d1"
    assert model.shape(subnet_text(model.shape("w0.5-d0.5"))) == model.shape("w0.5-d0.5")
    with pytest.raises(TypeError, match="no sub-network; got float"):
        subnet_text(0.5)  # type: ignore[arg-type]


def test_fidelity_by_hand() -> None:
    whole = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    ours = np.log(np.array([[0.25, 0.75], [0.9, 0.1]])) + 3.0  # a shift of all logits changes nothing
    found = fidelity(ours, whole)
    assert found.agreement == 0.5
    assert found.divergence == pytest.approx(0.5 * (0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)))
    assert fidelity(whole, whole).divergence == pytest.approx(0.0)
    assert fidelity(np.array([[1.0], [3.0]]), np.array([[2.0], [3.0]]), regression=True).divergence == 0.5
    with pytest.raises(ValueError, match="logits have shapes"):
        fidelity(whole, whole[:1])


def test_paired_difference_against_the_formula() -> None:
    """Two that are right on different texts: the interval of a mean of n differences, by its variance."""
    model, texts = tiny_model(), encoded(200)
    labels = np.asarray(texts.labels)
    first, second = (np.full((200, 3), -1.0) for _ in range(2))
    first[np.arange(200), np.where(np.arange(200) % 5 == 0, (labels + 1) % 3, labels)] = 1.0  # wrong on every fifth
    second[np.arange(200), np.where(np.arange(200) % 4 == 0, (labels + 1) % 3, labels)] = 1.0  # and on every fourth
    found = paired_difference(model, texts, first, second, resamples=4000)
    assert found.difference == pytest.approx(0.05)
    differences = (first.argmax(1) == labels).astype(float) - (second.argmax(1) == labels)
    half = 1.96 * differences.std() / np.sqrt(200)
    assert found.low == pytest.approx(0.05 - half, abs=0.012)
    assert found.high == pytest.approx(0.05 + half, abs=0.012)
    assert not found.clear
    assert paired_difference(model, texts, first, second, resamples=4000) == found
    same = paired_difference(model, texts, first, first, resamples=10)
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    wrong = np.full((200, 3), -1.0)
    wrong[np.arange(200), (labels + 1) % 3] = 1.0
    assert paired_difference(model, texts, first, wrong, resamples=100).clear
    swapped = paired_difference(model, texts, second, first, resamples=4000)
    assert (swapped.difference, swapped.low) == (-found.difference, pytest.approx(-found.high))


def test_paired_difference_of_a_regression_and_refusals() -> None:
    number, numbers = tiny_model(num_labels=1, problem_type="regression"), encoded(20, 1)
    truth = np.asarray(numbers.labels, dtype=float)[:, None]
    found = paired_difference(number, numbers, truth, -truth, metric="pearson", resamples=20)
    assert found.difference == pytest.approx(2.0)
    with pytest.raises(ValueError, match=r"logits have shapes \(20, 1\) and \(19, 1\) for 20 texts"):
        paired_difference(number, numbers, truth, truth[1:])
    with pytest.raises(ValueError, match="resamples is 0"):
        paired_difference(number, numbers, truth, truth, resamples=0)
