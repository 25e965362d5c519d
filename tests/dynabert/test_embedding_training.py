"""Training of sentence embedders: the loss of vectors, importance without labels, the stages, their command."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from dynabert import (
    ElasticBertForSentenceEmbedding,
    ElasticBertForSequenceClassification,
    Pooling,
    compute_importance,
    distillation_losses,
    rewire,
)
from dynabert.cli import main
from dynabert.data import Encoded
from dynabert.distill import DistillationTrainer, Recipe, Stage, recipe
from dynabert.distill.pipeline import train_elastic
from dynabert.finetuning import packed_batches
from dynabert.similarity import SimilaritySet, compute_vectors, cosines, score_similarity, score_vectors
from tests.dynabert.tiny_networks import VOCABULARY, close, padded_batch, plain_model
from tests.dynabert.tiny_texts import some_texts, tiny_embedder_folder
from tests.dynabert.tiny_training import arguments, check_descent

SUBNETS = ["w1-d1", "w0.5-d1", "w0.75-d0.5", "w0.25-d0.5"]
LENGTHS = [5, 2, 9, 7]


def embedder(
    folder: Path, seed: int = 0, architecture: str = "bert", pooling: Pooling | None = None, **changes: Any
) -> ElasticBertForSentenceEmbedding:
    """A tiny one in float64."""
    plain_model(architecture, seed, **changes).save_pretrained(folder / str(seed))
    return ElasticBertForSentenceEmbedding.from_pretrained(
        folder / str(seed), dtype=torch.float64, pooling=pooling or Pooling()
    )


def texts(count: int, seed: int = 3) -> Encoded:
    rng = random.Random(seed)
    ids = tuple([rng.randrange(5, VOCABULARY) for _ in range(rng.randrange(1, 10))] for _ in range(count))
    return Encoded(ids, None)


def pairs(count: int, seed: int = 5) -> SimilaritySet:
    rng = random.Random(seed)
    labels = tuple(rng.random() for _ in range(count))
    return SimilaritySet(texts(count, seed), texts(count, seed + 1), labels, "pairs")


def alone(model: ElasticBertForSentenceEmbedding, batch: dict[str, Tensor], subnet: str) -> Tensor:
    """The vectors of a network of its own, each text without any other."""
    small = model.extract(subnet)
    rows = []
    for row in range(len(batch["input_ids"])):
        real = batch["attention_mask"][row].bool()
        rows.append(small(**{name: value[row, real][None] for name, value in batch.items()}).pooler_output)
    return torch.cat(rows)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet"])
@pytest.mark.parametrize("pooling", [Pooling(), Pooling("cls", False)], ids=["mean", "cls"])
@pytest.mark.parametrize("step", ["stacked", "loop"])
def test_loss_is_the_squared_distance_of_the_vectors(
    tmp_path: Path, architecture: str, pooling: Pooling, step: str
) -> None:
    student, teacher = (embedder(tmp_path, seed, architecture, pooling) for seed in (0, 7))
    batch = padded_batch(plain_model(architecture), LENGTHS)
    found = distillation_losses(student, teacher, batch, SUBNETS, hidden_weight=0.0, embedding_weight=3.0, step=step)
    with torch.no_grad():
        told = alone(teacher, batch, "w1-d1")
        wanted = [3.0 * (alone(student, batch, subnet) - told).square().sum(1).mean() for subnet in SUBNETS]
    close(found.detach(), torch.stack(wanted), 1e-10)


def test_gradients_are_those_of_the_padded_network(tmp_path: Path) -> None:
    """Through the model's other door, whose backward does not know the stacked step."""
    student, teacher = embedder(tmp_path), embedder(tmp_path, 7)
    batch = padded_batch(plain_model("bert"), LENGTHS)
    losses = distillation_losses(student, teacher, batch, SUBNETS, hidden_weight=0.0)
    found = torch.autograd.grad(losses.sum(), list(student.parameters()))
    with torch.no_grad():
        told = teacher(**batch).pooler_output
    total = sum((student(**batch, subnet=subnet).pooler_output - told).square().sum(1).mean() for subnet in SUBNETS)
    for own, wanted in zip(found, torch.autograd.grad(total, list(student.parameters())), strict=True):
        close(own, wanted, 1e-9)


def test_loss_of_equal_networks_is_zero_and_teachers_may_be_as_wide_as_the_student(tmp_path: Path) -> None:
    student = embedder(tmp_path)
    batch = padded_batch(plain_model("bert"), LENGTHS)
    same = distillation_losses(student, student, batch, ["w0.5-d1", "w0.25-d1"], teacher_width="same")
    assert float(same.detach().abs().max()) < 1e-20


@pytest.mark.parametrize("head", [0, 2])
def test_importance_is_how_far_the_vectors_move(tmp_path: Path, head: int) -> None:
    """A head's score, against the difference of the projected vectors where its output is scaled."""
    model = embedder(tmp_path)
    batch = padded_batch(plain_model("bert"), LENGTHS)
    scores = compute_importance(model, [batch], seed=4)
    signs = torch.randint(0, 2, (4, 24), generator=torch.Generator().manual_seed(4 * 1_000_003)) * 2 - 1
    step, size = 1e-4, model.config.head_dim
    layer = model.elastic_encoder.elastic_layers[1]
    values = []
    for scale in (1.0 + step, 1.0 - step):
        kept = layer.attention_weight.detach().clone()
        with torch.no_grad():
            layer.attention_weight[:, head * size : (head + 1) * size] *= scale
            values.append(float((model(**batch).pooler_output * signs).sum()))
            layer.attention_weight.copy_(kept)
    wanted = abs(values[0] - values[1]) / (2.0 * step)
    assert float(scores.heads[1, head]) == pytest.approx(wanted, rel=1e-5)


def test_importance_needs_no_labels_and_repeats(tmp_path: Path) -> None:
    model, data = embedder(tmp_path), texts(11)
    first = compute_importance(model, packed_batches(model, data, 4))
    labelled = [{**batch, "labels": torch.zeros(1)} for batch in packed_batches(model, data, 4)]
    for other in (compute_importance(model, packed_batches(model, data, 4)), compute_importance(model, labelled)):
        assert torch.equal(first.heads, other.heads)
        assert torch.equal(first.neurons, other.neurons)
    assert not torch.equal(first.heads, compute_importance(model, packed_batches(model, data, 4), seed=1).heads)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_rewiring_keeps_the_vectors(tmp_path: Path) -> None:
    model = embedder(tmp_path)
    batch = padded_batch(plain_model("bert"), LENGTHS)
    other = rewire(model, compute_importance(model, [batch]), copy=True)
    assert other.config.rewired
    with torch.no_grad():
        close(other(**batch).pooler_output, model(**batch).pooler_output, 1e-12)
    assert other.pooling == model.pooling


@pytest.mark.parametrize("mode", ["accumulated", "reference"])
def test_importance_refuses_sums_of_draws(tmp_path: Path, mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode is '{mode}' and the model a sentence embedder; allowed: 'per_batch'"):
        compute_importance(embedder(tmp_path), [padded_batch(plain_model("bert"), LENGTHS)], mode=mode)
    with pytest.raises(ValueError, match=r"no batch given; give at least one$"):
        compute_importance(embedder(tmp_path), [])


@pytest.mark.parametrize("step", ["stacked", "loop"])
def test_a_step_goes_down_the_gradient(tmp_path: Path, step: str) -> None:
    student, teacher = (
        embedder(tmp_path, seed, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0) for seed in (0, 7)
    )
    data, grid = texts(4), recipe("embedding").stages[1].subnets[:5]
    batch, _ = student.pack(data.input_ids)
    losses = distillation_losses(student, teacher, {"batch": batch}, grid, hidden_weight=0.5, embedding_weight=2.0)
    names = [name for name, _ in student.named_parameters()]
    found = torch.autograd.grad(losses.sum(), list(student.parameters()), allow_unused=True)
    wanted = {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
    stage = Stage("depth", grid, 0.0, 0.5, embedding_weight=2.0)
    check_descent(student, teacher, stage, data, wanted, tmp_path / "out", step)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    model, data, grid = embedder(tmp_path), texts(4), recipe("embedding").stages[0].subnets
    args = arguments(tmp_path / "out")
    classifier = ElasticBertForSequenceClassification.from_pretrained(tmp_path / "0", dtype=torch.float64)
    other = embedder(tmp_path, 7, pooling=Pooling("cls"))
    with pytest.raises(ValueError, match=r"logit_weight 1.0 and the model is a sentence embedder"):
        DistillationTrainer(model, args, Stage("width", grid), data, teacher=model)
    with pytest.raises(ValueError, match="labels True and the model is a sentence embedder"):
        DistillationTrainer(model, args, Stage("final", grid, 0.0, 0.0, labels=True), data)
    with pytest.raises(ValueError, match=r"embedding_weight of 1.0 and the model is a classifier; allowed: 0"):
        DistillationTrainer(classifier, args, Stage("width", grid, embedding_weight=1.0), data, teacher=classifier)
    stage = Stage("width", grid, 0.0, 1.0, embedding_weight=1.0)
    with pytest.raises(ValueError, match="eval_dataset is labelled text and the model is a sentence embedder"):
        DistillationTrainer(model, args, stage, data, data, teacher=model)
    with pytest.raises(ValueError, match=r"the student pools by .*mean.*, the teacher by .*cls.*; allowed: equal"):
        DistillationTrainer(model, args, stage, data, teacher=other)
    with pytest.raises(ValueError, match="the student is an ElasticBertForSentenceEmbedding, the teacher an "):
        distillation_losses(model, classifier, padded_batch(plain_model("bert"), LENGTHS), ["w0.5-d1"])
    batch = padded_batch(plain_model("bert"), LENGTHS)
    with pytest.raises(ValueError, match=r"embedding_weight 0.0, hidden_weight 0.0 and relation_weight 0.0 leave no"):
        distillation_losses(model, model, batch, ["w0.5-d1"], hidden_weight=0.0, embedding_weight=0.0)
    with pytest.raises(ValueError, match="stage final has labels True and the model is a sentence embedder"):
        train_elastic(model, arguments(tmp_path / "x", recipe="embedding", final_stage=True), data)
    with pytest.raises(ValueError, match="--save_strategy is best and there is no labelled text to score"):
        train_elastic(model, arguments(tmp_path / "x", recipe="embedding", save_strategy="best"), data, pairs(3))
    with pytest.raises(TypeError, match="validation is Encoded and the model ElasticBertForSentenceEmbedding"):
        train_elastic(model, arguments(tmp_path / "x", recipe="embedding"), data, data)
    with pytest.raises(TypeError, match="validation is SimilaritySet and the model ElasticBertForSequenceClassif"):
        train_elastic(classifier, arguments(tmp_path / "x"), data, pairs(3))
    assert not (tmp_path / "x").exists()


def test_the_recipe_learns_from_the_whole_network_without_labels() -> None:
    stages = recipe("embedding").stages
    assert [stage.name for stage in stages] == ["width", "depth"]
    for stage in stages:
        assert not stage.reads_labels
        assert stage.logit_weight == 0.0
        assert stage.embedding_weight > 0.0
        assert stage.teacher_width == "full"
    assert all(stage.embedding_weight == 0.0 for stage in Recipe().stages)


def test_scores(tmp_path: Path) -> None:
    model, scored = embedder(tmp_path), pairs(12)
    rows = score_similarity(model, scored, SUBNETS)
    assert [row.subnet for row in rows] == SUBNETS
    vectors = compute_vectors(model, scored.texts, [None, *SUBNETS[1:]])
    own = vectors["w0.5-d1"]
    alike = [float(a @ b) for a, b in zip(own[:12], own[12:], strict=True)]
    assert rows[1].metric == "spearman"
    assert rows[1].score == pytest.approx(
        np.corrcoef(np.argsort(np.argsort(alike)), np.argsort(np.argsort(scored.labels)))[0, 1]
    )
    assert rows[1].metrics["cosine"] == pytest.approx(float((own * vectors["w1-d1"]).sum(1).mean()))
    assert rows[0].metrics["cosine"] == pytest.approx(1.0)
    told = replace(scored, whole=own)
    assert score_similarity(model, told, ["w0.5-d1"])[0].metrics["cosine"] == pytest.approx(1.0)
    single = SimilaritySet(scored.firsts)
    (row,) = score_similarity(model, single, ["w0.5-d1"])
    assert (row.metric, set(row.metrics), row.examples) == ("cosine", {"cosine"}, 12)
    assert score_vectors(single, {"a": own[:12]}, own[:12])[0].score == pytest.approx(1.0)
    assert cosines(np.zeros((2, 3)), np.ones((2, 3))).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="12 first and 3 second texts; allowed: as many of both"):
        SimilaritySet(scored.firsts, texts(3))
    with pytest.raises(ValueError, match="labels and single texts; allowed: labels of pairs"):
        SimilaritySet(scored.firsts, labels=scored.labels)
    with pytest.raises(ValueError, match="2 labels for 12 pairs; allowed: one for each"):
        SimilaritySet(scored.firsts, scored.seconds, (1.0, 2.0))
    with pytest.raises(ValueError, match="all labels of texts are equal; at least two must differ"):
        SimilaritySet(scored.firsts, scored.seconds, (1.0,) * 12)
    for score in (score_similarity, compute_vectors):
        with pytest.raises(TypeError, match="subnets is one sub-network; give a list of them"):
            score(model, single if score is score_similarity else single.firsts, "w0.5-d1")  # type: ignore[operator]
    with pytest.raises(TypeError, match="compute_vectors: model must be an ElasticBertForSentenceEmbedding"):
        compute_vectors(torch.nn.Linear(1, 1), scored.firsts, ["w1-d1"])  # type: ignore[arg-type]


def test_a_whole_run_brings_the_narrow_vectors_closer_and_repeats(tmp_path: Path) -> None:
    model, data, scored = embedder(tmp_path), texts(40), pairs(20)
    said: list[str] = []

    def run(name: str, **changes: Any) -> Any:
        args = arguments(tmp_path / name, recipe="embedding", num_train_epochs=6, learning_rate=3e-3, **changes)
        return train_elastic(model, args, data, scored, say=said.append)

    results = run("a")
    assert [part.name for part in results] == ["teacher", "rewired", "width", "depth"]
    close_before, close_after = ({row.subnet: row.metrics["cosine"] for row in results[part].rows} for part in (1, 3))
    assert close_before["w1-d1"] == pytest.approx(1.0)
    assert np.mean(list(close_after.values())) > np.mean(list(close_before.values())) + 0.05
    again = ElasticBertForSentenceEmbedding.from_pretrained(tmp_path / "a", dtype=torch.float64)
    assert again.pooling == model.pooling
    rows = score_similarity(again, scored, [row.subnet for row in results[3].rows])
    assert [row.score for row in rows] == pytest.approx([row.score for row in results[3].rows])
    assert json.loads((tmp_path / "a" / "depth" / "modules.json").read_text())[1]["path"] == "1_Pooling"
    plain = AutoModel.from_pretrained(tmp_path / "a" / "depth", dtype=torch.float64)  # the whole network is plain BERT
    batch = padded_batch(plain_model("bert"), LENGTHS)
    with torch.no_grad():
        states, mask = plain(**batch).last_hidden_state, batch["attention_mask"][..., None]
        mean = (states * mask).sum(1) / mask.sum(1)
        close(again(**batch).pooler_output, torch.nn.functional.normalize(mean, dim=1), 1e-9)
    card = (tmp_path / "a" / "depth" / "README.md").read_text()
    for part in ("sentence-similarity", "library_name: sentence-transformers", "EmbeddingEngine", "its own teacher"):
        assert part in card
    for part in ("classifier", "Labels:", "best checkpoint", "fine-tuned"):
        assert part not in card
    weights = {name: (tmp_path / name / "depth" / "model.safetensors") for name in "abc"}
    run("b")
    assert weights["a"].read_bytes() == weights["b"].read_bytes()
    said.clear()
    run("a")
    assert sum("complete, not repeated" in line for line in said) == 3
    args = arguments(tmp_path / "c", recipe="embedding", num_train_epochs=6, learning_rate=3e-3)
    train_elastic(model, args, data, scored, say=said.append, parts_of=[tmp_path / "a"])
    assert sum("taken from" in line for line in said) == 4
    assert ElasticBertForSentenceEmbedding.from_pretrained(tmp_path / "c").pooling == model.pooling
    model.pooling = Pooling(normalize=False)
    with pytest.raises(ValueError, match="was begun with other settings: pooling"):
        run("a")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_embedder_folder(tmp_path / "model")
    said = some_texts(30)
    (tmp_path / "train.tsv").write_text("text\n" + "\n".join([*said, *said[:5]]) + "\n")
    rows = [f"{a}\t{b}\t{index / 7}" for index, (a, b) in enumerate(zip(said[:10], said[10:20], strict=True))]
    (tmp_path / "dev.tsv").write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    options = [
        *("train", "--recipe", "embedding", "--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "out")),
        *("--train_file", str(tmp_path / "train.tsv"), "--max_steps", "2", "--cache_dir", str(tmp_path / "cache")),
    ]
    assert main([*options, "--validation_file", str(tmp_path / "dev.tsv")]) == 0
    told = capsys.readouterr()
    out = told.out + told.err
    assert f"{len(set(said))} texts to distil on, 10 to score" in out
    assert "spearman, times 100; 10" in out
    assert main(["embed", "--model_name_or_path", str(tmp_path / "out"), "--subnet", "w0.5-d1", *said[:2]]) == 0
    capsys.readouterr()
    alone = [*options, "--output_dir", str(tmp_path / "alone"), "--validation_file", str(tmp_path / "train.tsv")]
    assert main(alone) == 0
    told = capsys.readouterr()
    assert "cosine, times 100" in told.out + told.err
    for extra, wanted in (
        (["--problem_type", "regression"], "--problem_type is for labels"),
        (["--unlabelled_file", "x.tsv"], "--unlabelled_file is text beside labelled text"),
        (["--label_column", "score"], "--label_column names the numbers of --validation_file"),
        (["--task_name", "stsb"], "give either --task_name or --train_file"),
        (["--data_dir", "glue"], "--data_dir belongs to --task_name"),
        (["--final_stage", "True"], "stage final has labels True and the model is a sentence embedder"),
        (["--logit_weights", "1", "1"], "stage width has logit_weight 1.0 and the model is a sentence embedder"),
        (["--importance_mode", "accumulated"], "allowed: 'per_batch'"),
    ):
        code = main([*options, "--output_dir", str(tmp_path / "refused"), *extra])
        assert code != 0
        assert wanted in capsys.readouterr().err
