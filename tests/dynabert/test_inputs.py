"""What a model refuses, with one clear message each."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert import ElasticBertForSequenceClassification, ElasticBertModel, SubnetConfig
from dynabert.modeling import inputs
from tests.dynabert.tiny_networks import CONFIGS, TINY, padded_batch, plain_model


@pytest.fixture(scope="module")
def models() -> dict[str, ElasticBertForSequenceClassification]:
    return {
        name: ElasticBertForSequenceClassification(config(**TINY)).eval() for name, config in sorted(CONFIGS.items())
    }


@pytest.fixture
def model(models: dict[str, ElasticBertForSequenceClassification]) -> ElasticBertForSequenceClassification:
    return models["bert"]


IDS = torch.tensor([[5, 6, 7], [8, 9, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, ValueError, "input_ids are missing; give input_ids, or batch and plan"),
    ({"input_ids": [[5, 6]]}, TypeError, "input_ids must be a tensor; got list"),
    ({"input_ids": IDS.float()}, TypeError, "input_ids are torch.float32; allowed: torch.int64 or torch.int32"),
    ({"input_ids": IDS[0]}, ValueError, r"input_ids has shape \(3,\); allowed: \(sequences, tokens\)"),
    ({"input_ids": IDS[:0]}, ValueError, r"input_ids has shape \(0, 3\); allowed: at least one sequence"),
    ({"input_ids": IDS[:, :0]}, ValueError, r"input_ids has shape \(2, 0\)"),
    ({"input_ids": IDS + 60}, ValueError, "input_ids hold 69; allowed: 0 to 60, the vocabulary"),
    ({"input_ids": IDS - 6}, ValueError, "input_ids hold -6; allowed: 0 to 60"),
    ({"input_ids": torch.ones(2, 51, dtype=torch.int64)}, ValueError, "51 tokens is longer than the 50 positions"),
    ({"input_ids": IDS.to("meta")}, ValueError, "input_ids are on meta, the model on cpu; put both on one"),
    ({"attention_mask": [[1]]}, TypeError, "attention_mask must be a tensor"),
    ({"attention_mask": MASK[:, :2]}, ValueError, r"attention_mask has shape \(2, 2\); allowed: .*\(2, 3\)"),
    ({"attention_mask": MASK[None]}, ValueError, r"attention_mask has shape \(1, 2, 3\)"),
    ({"attention_mask": MASK * 2}, ValueError, "attention_mask has values other than 0 and 1"),
    ({"attention_mask": (1.0 - MASK) * -1e4}, ValueError, "attention_mask has values other than 0 and 1"),
    ({"attention_mask": MASK * torch.tensor([[1], [0]])}, ValueError, "of sequence 1 is 0 everywhere"),
    ({"attention_mask": MASK.to("meta")}, ValueError, "attention_mask is on meta, the model on cpu"),
    ({"token_type_ids": MASK + 1}, ValueError, "token_type_ids hold 2; allowed: 0 to 1, the token types"),
    ({"token_type_ids": MASK[:1]}, ValueError, r"token_type_ids has shape \(1, 3\)"),
    ({"token_type_ids": MASK.float()}, TypeError, "token_type_ids are torch.float32"),
    ({"position_ids": MASK + 49}, ValueError, "position_ids hold 50; allowed: 0 to 49, the positions"),
    ({"position_ids": MASK - 2}, ValueError, "position_ids hold -2"),
    ({"position_ids": torch.arange(3)}, ValueError, r"position_ids has shape \(3,\)"),
    ({"position_ids": MASK.double()}, TypeError, "position_ids are torch.float64"),
    ({"labels": [0, 1]}, TypeError, "labels must be a tensor; got list"),
    ({"labels": torch.tensor([0, 1, 2])}, ValueError, r"labels have shape \(3,\); allowed for single_label.*: \(2,\)"),
    ({"labels": torch.tensor([0, 3])}, ValueError, "labels hold 3; allowed: 0 to 2, the classes"),
    ({"labels": torch.tensor([-1, 0])}, ValueError, "labels hold -1"),
    ({"labels": torch.tensor([0.0, 1.0])}, ValueError, r"labels have shape \(2,\); allowed for multi_label.*\(2, 3\)"),
    ({"labels": torch.tensor([0, 1]).to("meta")}, ValueError, "labels are on meta, the model on cpu"),
    ({"subnet": ["w1", "w1", "w1"]}, ValueError, "subnet has 3 entries for a batch of 2"),
    ({"subnet": []}, ValueError, "subnet has 0 entries for a batch of 2"),
    ({"subnet": ["w1", 0.5]}, TypeError, "subnet must be a SubnetConfig.*got float"),
    ({"subnet": 0.5}, TypeError, "subnet must be a SubnetConfig.*got float"),
    ({"subnet": SubnetConfig(0.6)}, ValueError, r"width_mult 0.6 is 2.4 of 4 heads; use 0.5 \(2\) or 0.75 \(3\)"),
    ({"subnet": [None, "w0.6"]}, ValueError, "width_mult 0.6 is 2.4 of 4 heads"),
    ({"subnet": "half"}, ValueError, "unknown sub-network 'half'"),
    ({"subnet": ["w1", "w1"], "output_hidden_states": True}, ValueError, "output_hidden_states with a list"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_bad_input(
    model: ElasticBertForSequenceClassification, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"input_ids": IDS, **changes} if changes else {}
    with pytest.raises(error, match=message):
        model(**arguments)


def test_labels_for_regression() -> None:
    model = ElasticBertForSequenceClassification(CONFIGS["bert"](**(TINY | {"num_labels": 1})))
    with pytest.raises(TypeError, match=r"labels are torch.int64; allowed for regression: floating point"):
        model(input_ids=IDS, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels have shape \(1, 2\); allowed for regression: \(2,\) or \(2, 1\)"):
        model(input_ids=IDS, labels=torch.zeros(1, 2))


def test_token_types_where_there_are_none(models: dict[str, ElasticBertForSequenceClassification]) -> None:
    with pytest.raises(ValueError, match="token_type_ids given, but mpnet has no token types"):
        models["mpnet"](input_ids=IDS, token_type_ids=MASK)
    batch, plan = models["bert"].pack([[5, 6]], [[0, 1]])
    with pytest.raises(ValueError, match="token_type_ids given, but mpnet has no token types"):
        models["mpnet"](batch=batch, plan=plan)


def test_gaps_where_distances_count(models: dict[str, ElasticBertForSequenceClassification]) -> None:
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
    with pytest.raises(ValueError, match="attention_mask has a gap inside 1 sequences; mpnet counts distances"):
        models["mpnet"](input_ids=IDS, attention_mask=mask)
    assert models["bert"](input_ids=IDS, attention_mask=mask).logits.shape == (2, 3)


@pytest.mark.parametrize(("name", "longest"), [("bert", 50), ("roberta", 48), ("mpnet", 48)])
def test_longest_sequence(models: dict[str, ElasticBertForSequenceClassification], name: str, longest: int) -> None:
    model = models[name]
    with torch.no_grad():
        assert model(input_ids=torch.full((1, longest), 5)).logits.isfinite().all()
        with pytest.raises(ValueError, match=f"{longest + 1} tokens is longer than the {longest} positions"):
            model(input_ids=torch.full((1, longest + 1), 5))
        with pytest.raises(ValueError, match=f"longer than the {longest} positions"):
            model(input_ids=torch.full((1, longest + 1), 5), position_ids=torch.full((1, longest + 1), 3))
        assert model.pack([[5] * longest])[0].max_seqlen == longest
        with pytest.raises(ValueError, match=f"sequence 1 of {longest + 1} tokens is longer than the {longest}"):
            model.pack([[5], [5] * (longest + 1)])
        # Padding past the positions is no token.
        ids = torch.full((1, longest + 9), model.config.pad_token_id)
        ids[0, :4] = 5
        mask = (ids != model.config.pad_token_id).long()
        assert model(input_ids=ids, attention_mask=mask).logits.isfinite().all()


def test_padding_may_hold_anything(model: ElasticBertForSequenceClassification) -> None:
    odd = torch.where(MASK == 1, IDS, -100)
    with torch.no_grad():
        wanted = model(input_ids=IDS, attention_mask=MASK).logits
        found = model(
            input_ids=odd,
            attention_mask=MASK,
            token_type_ids=torch.where(MASK == 1, 0, 77),
            position_ids=torch.where(MASK == 1, torch.arange(3), 1000),
        ).logits
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.uint8])
def test_masks_of_any_dtype(model: ElasticBertForSequenceClassification, dtype: torch.dtype) -> None:
    with torch.no_grad():
        wanted = model(input_ids=IDS, attention_mask=MASK).logits
        assert torch.equal(model(input_ids=IDS.int(), attention_mask=MASK.to(dtype)).logits, wanted)


def test_a_masked_first_column_is_said_once(
    model: ElasticBertForSequenceClassification, caplog: pytest.LogCaptureFixture
) -> None:
    inputs._said.clear()
    with caplog.at_level(logging.WARNING, "dynabert"):
        model(input_ids=IDS, attention_mask=MASK)
        assert caplog.messages == []
        for _ in range(2):
            model(input_ids=IDS, attention_mask=MASK.flip(1))
    assert len(caplog.messages) == 1
    assert "hides the first column" in caplog.messages[0]


def test_one_read_from_the_device(
    models: dict[str, ElasticBertForSequenceClassification], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first door reads lengths and extremes in one go, whatever is given."""
    reads = 0
    tolist = Tensor.tolist

    def counting(tensor: Tensor) -> Any:
        nonlocal reads
        reads += 1
        return tolist(tensor)

    def forbidden(*_: Any) -> Any:
        raise AssertionError("a second synchronisation")

    monkeypatch.setattr(Tensor, "tolist", counting)
    for name in ("item", "nonzero", "__bool__"):
        monkeypatch.setattr(Tensor, name, forbidden)
    config = models["bert"].config
    for subnet in (None, ["w0.5", None]):
        inputs.pack_padded(
            config,
            IDS,
            MASK,
            MASK,
            MASK,
            subnet,  # type: ignore[arg-type]
            device=torch.device("cpu"),
            class_labels=torch.tensor([0, 1]),
        )
    assert reads == 2


# The second door ------------------------------------------------------------------------------------------------------


def test_second_door_refusals(models: dict[str, ElasticBertForSequenceClassification]) -> None:
    model = models["bert"]
    batch, plan = model.pack([[5, 6, 7], [8]])
    other = model.pack([[5, 6, 7], [8, 9]])[1]
    with pytest.raises(ValueError, match="batch and plan belong together; give both"):
        model(batch=batch)
    with pytest.raises(ValueError, match="batch and plan belong together"):
        model(plan=plan)
    with pytest.raises(TypeError, match="must be a PackedBatch and a Plan; got dict and Plan"):
        model(batch={}, plan=plan)
    with pytest.raises(ValueError, match="batch and plan already say tokens and sub-networks"):
        model(batch=batch, plan=plan, subnet="w0.5")
    with pytest.raises(ValueError, match="batch and plan already say"):
        model(input_ids=IDS, batch=batch, plan=plan)
    with pytest.raises(ValueError, match="plan is for 5 rows and sequences up to 3, the batch has 4 and 3"):
        model(batch=batch, plan=other)
    shape = dk.SubnetShape((4,) * 3, (40,) * 3)
    with pytest.raises(ValueError, match="plan has 3 layers, the model 4"):
        model(batch=batch, plan=dk.Plan.uniform(shape, [3, 1]))
    shape = dk.SubnetShape((4, 5, 4, 4), (40,) * 4)
    with pytest.raises(ValueError, match="5 heads and 40 neurons in layer 1; the layer has 4 and 40"):
        model(batch=batch, plan=dk.Plan.uniform(shape, [3, 1]))
    with pytest.raises(ValueError, match="the plan is on meta, the model on cpu"):
        model(batch=batch, plan=plan.to("meta"))
    with pytest.raises(ValueError, match=r"labels have shape \(3,\)"):
        model(batch=batch, plan=plan, labels=torch.tensor([0, 1, 2]))
    long, long_plan = models["bert"].pack([[5] * 50])
    with pytest.raises(ValueError, match="50 tokens is longer than the 48 positions"):
        models["mpnet"](batch=long, plan=long_plan)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "no sequence given"),
        ([[5], []], "sequence 1 has no tokens"),
        ([[5, 61]], "sequence 0 holds an id outside the vocabulary; allowed: 0 to 60"),
        ([[-1]], "sequence 0 holds an id outside"),
    ],
)
def test_pack_refusals(model: ElasticBertForSequenceClassification, ids: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.pack(ids)


def test_bare_encoder_refuses_the_same() -> None:
    model = ElasticBertModel(CONFIGS["bert"](**TINY))
    with pytest.raises(ValueError, match="input_ids are missing"):
        model()
    with pytest.raises(ValueError, match="output_hidden_states with a list"):
        model(input_ids=IDS, subnet=[None, None], output_hidden_states=True)
    with pytest.raises(TypeError, match="labels"):
        model(input_ids=IDS, labels=torch.tensor([0, 1]))


def test_padded_batches_of_the_fixture_are_right() -> None:
    """The fixture itself: left and right padding hold the same texts."""
    plain = plain_model("bert")
    left, right = padded_batch(plain, [2, 3], "left"), padded_batch(plain, [2, 3])
    for row in range(2):
        assert torch.equal(
            left["input_ids"][row][left["attention_mask"][row].bool()],
            right["input_ids"][row][right["attention_mask"][row].bool()],
        )
