"""Several labels of a text: read from lists and from separated cells, matched with a model, scored; every bad row with
its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynabert import compute_importance
from dynabert.data import Examples, NeighbourWords, align_labels, augment, default_metrics, read_examples, tokenise
from dynabert.data.examples import label_array
from dynabert.data.labels import label_probabilities
from dynabert.data.metrics import macro_f1, majority_score, micro_f1, subset_accuracy
from dynabert.evaluation import compute_logits, evaluate
from dynabert.finetuning import FineTuningArguments, fine_tune, labelled_batches
from tests.dynabert.tiny_texts import some_texts, tiny_model, tiny_tokenizer

MANY = "multi_label_classification"


def rows(path: Path, labels: list[Any], **more: Any) -> Path:
    """A .jsonl file with a text for each entry of ``labels``."""
    lines = [json.dumps({"text": f"text {i}", "labels": label, **more}) for i, label in enumerate(labels)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# Reading.


@pytest.mark.parametrize(
    ("labels", "values", "names"),
    [
        ([["b", "a"], [], ["a"]], ((0, 1), (), (0,)), ("a", "b")),
        ([[10, 2], [2], []], ((0, 1), (0,), ()), ("2", "10")),  # in numeric, not alphabetical order
        ([["01"], [1, 2]], ((0,), (0, 1)), ("1", "2")),
        ([[1, "a"], ["a"]], ((0, 1), (1,)), ("1", "a")),
        ([[" a "], ["a", "ß"], ["日本", "👩‍💻", "é"]], ((0,), (0, 1), (2, 3, 4)), ("a", "ß", "é", "日本", "👩‍💻")),
        ([[], []], ((), ()), ()),
    ],
)
def test_lists(tmp_path: Path, labels: list[Any], values: Any, names: tuple[str, ...]) -> None:
    found = read_examples(rows(tmp_path / "a.jsonl", labels))
    assert (found.labels, found.label_names) == (values, names)
    assert (found.problem_type, found.num_labels) == (MANY, len(names))


def test_padded_numbers_are_the_given_names(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", [["01"], ["02", "10"], [2]])
    found = read_examples(path, label_names=("1", "2", "10"), problem="multi_label")
    assert found.labels == read_examples(path).labels == ((0,), (1, 2), (1,))
    twice = rows(tmp_path / "b.jsonl", [["1"], ["01", 1]])
    with pytest.raises(ValueError, match="line 2: label '1' is twice in column 'labels'"):
        read_examples(twice, label_names=("1", "2"), problem="multi_label")


def test_counts_and_parts(tmp_path: Path) -> None:
    found = read_examples(rows(tmp_path / "a.jsonl", [["b", "a"], [], ["a"]]))
    assert found.label_counts() == {"a": 2, "b": 1}
    assert found.select([2, 0]).labels == ((0,), (0, 1))
    assert found.head(2).labels == ((0, 1), ())
    assert found.select([1]).problem_type == MANY


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed; it is an optional extra")
    import pyarrow

    table = pyarrow.table({"text": ["a", "b", "c"], "labels": [["y", "x"], [], ["x"]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read_examples(tmp_path / "a.parquet").labels == ((0, 1), (), (0,))
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "labels": [[1], None]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet, line 2: no list of labels in column 'labels'; found None"):
        read_examples(tmp_path / "b.parquet")


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_separator_cuts_a_text(tmp_path: Path, name: str, mark: str) -> None:
    lines = ["text,labels", "one,b | a", "two,", "three,a"]
    (tmp_path / name).write_text("\n".join(line.replace(",", mark) for line in lines) + "\n")
    found = read_examples(tmp_path / name, label_separator="|")
    assert (found.labels, found.label_names) == (((0, 1), (), (0,)), ("a", "b"))
    with pytest.raises(ValueError, match="label_separator is '' and problem 'auto'"):
        read_examples(tmp_path / name, label_separator="")
    with pytest.raises(ValueError, match=r"label_separator is '\|' and problem 'regression'"):
        read_examples(tmp_path / name, label_separator="|", problem="regression")


@pytest.mark.parametrize(
    ("label", "wrong"),
    [
        ("a", "no list of labels in column 'labels'; found 'a'; allowed: a list in every row, [] for a text without"),
        (None, "no list of labels in column 'labels'; found None"),
        ({"a": 1}, "no list of labels in column 'labels'; found {'a': 1}"),
        ([1.0], "a label in column 'labels' is 1.0; allowed in a list: names and whole numbers"),
        ([True], "a label in column 'labels' is True"),
        ([None], "a label in column 'labels' is None"),
        ([["a"]], "a label in column 'labels' is ['a']"),
        (["a", " "], "a label in column 'labels' is empty; found ['a', ' ']"),
        (["a", "a"], "label 'a' is twice in column 'labels'; allowed: each once"),
        ([0, 1, 0], "label '0' is twice in column 'labels'; allowed: each once; for a row of zeros and ones write"),
        (["a\nb"], "has a control character"),
        (["\ud800"], "has a control character, or half of one of two halves"),
    ],
)
def test_a_bad_list_is_named(tmp_path: Path, label: Any, wrong: str) -> None:
    path = rows(tmp_path / "a.jsonl", [["fine"], label, ["other"]])
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: ") as error:
        read_examples(path)
    assert wrong in str(error.value)
    with pytest.warns(UserWarning, match=r"1 bad rows were left out; the first: .*line 2"):
        assert read_examples(path, bad_rows="skip").labels == ((0,), (1,))


def test_numbers_are_the_same_label_however_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: label '1' is twice"):
        read_examples(rows(tmp_path / "a.jsonl", [[2], [1, "01"]]))


def test_digits_of_other_scripts_are_names(tmp_path: Path) -> None:
    assert read_examples(rows(tmp_path / "a.jsonl", [["3"], ["٣"]])).label_names == ("3", "٣")


def test_the_same_letters_in_other_codes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2: label 'e\\u0301' .* is the same text as '\\xe9' above"):
        read_examples(rows(tmp_path / "a.jsonl", [["\u00e9"], ["e\u0301"]]))


def test_a_list_among_single_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2: column 'labels' holds a list, \['b'\]; allowed here: one label"):
        read_examples(rows(tmp_path / "a.jsonl", ["a", ["b"]]))


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        (["a||b"], "line 2: a label in column 'labels' is empty; found 'a||b'"),
        (["a|b|a"], "line 2: label 'a' is twice"),
        ([["a"]], "which is no text for the label separator"),
        ([3], "line 2: column 'labels' holds 3, which is no text"),
    ],
)
def test_a_bad_text_for_the_separator(tmp_path: Path, labels: list[Any], wrong: str) -> None:
    with pytest.raises(ValueError, match="label") as error:
        read_examples(rows(tmp_path / "a.jsonl", ["a|b", *labels]), label_separator="|")
    assert wrong in str(error.value)


def test_names_of_the_training_set(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", [["b"], []])
    assert read_examples(path, label_names=["c", "b"], problem="multi_label").labels == ((1,), ())
    with pytest.raises(ValueError, match="line 1: label 'b' in column 'labels'; allowed: 'c', 'd'"):
        read_examples(path, label_names=["c", "d"], problem="multi_label")
    many = [f"n{i:03}" for i in range(200)]
    with pytest.raises(ValueError, match=r"'n018', 'n019' and 180 more$"):
        read_examples(path, label_names=many, problem="multi_label")
    with pytest.raises(ValueError, match="line 1: no list of labels"):
        read_examples(rows(tmp_path / "b.jsonl", ["b"]), label_names=["b"], problem="multi_label")
    with pytest.raises(ValueError, match="line 1: column 'labels' holds a list"):
        read_examples(path, label_names=["b"], problem="classification")


def test_lists_that_were_saved_as_text_are_pointed_at(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,labels\none,\"['a', 'b']\"\ntwo,['a']\n")
    with pytest.warns(UserWarning, match=r"holds texts such as .*each different one is taken as a class"):
        read_examples(tmp_path / "a.csv")


def test_columns_that_are_not_used(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", [["a"], ["b"]], id=3)
    with path.open("a") as stream:
        stream.write(json.dumps({"text": "x", "labels": [], "note": ""}) + "\n")
    assert read_examples(path).unused == ("id", "note")
    assert read_examples(path, need_labels=False).unused == ("labels", "id", "note")


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        (((0,), 1), "labels 1 of toy are no tuple of class indices; got 1"),
        (((0,), (True,)), r"got \(True,\)"),
        (((1, 0), ()), r"are not different class indices in rising order; got \(1, 0\); allowed: 0 to 1, each once"),
        (((0, 0), ()), "each once"),
        (((2,), ()), "allowed: 0 to 1"),
        (((-1,), ()), "allowed: 0 to 1"),
    ],
)
def test_examples_hold_their_invariant(labels: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Examples(("x", "y"), None, labels, ("a", "b"), "toy")


# Matching with a model.


def many(labels: Any, names: tuple[str, ...], count: int | None = None) -> Examples:
    texts = tuple(some_texts(len(labels) if count is None else count))
    return Examples(texts, None, tuple(labels), names, "toy")


@pytest.mark.parametrize(
    ("names", "outputs", "expected"),
    [
        (("a", "b"), ("B", "A", "c"), ((0, 1), (), (1,))),
        (("0", "2"), ("x", "y", "z"), ((0, 2), (), (0,))),
        (("a", "b"), ("LABEL_0", "LABEL_1"), ((0, 1), (), (0,))),
        (("A", "a"), ("a", "A"), ((0, 1), (), (1,))),  # names that differ in case alone
    ],
)
def test_labels_of_the_models_outputs(names: tuple[str, ...], outputs: tuple[str, ...], expected: Any) -> None:
    found = align_labels(many([(0, 1), (), (0,)], names), outputs, MANY)
    assert (found.labels, found.label_names) == (expected, outputs)


def test_numbers_that_the_model_names_otherwise() -> None:
    assert align_labels(many([(0,), (1,)], ("3", "7")), ("1", "3", "7"), MANY).labels == ((1,), (2,))
    with pytest.raises(ValueError, match="the data has 0, 1; the model has 1, 3, 7"):
        align_labels(many([(0,), (1,)], ("0", "1")), ("1", "3", "7"), MANY)


def test_no_label_at_all_fits_any_model() -> None:
    assert align_labels(many([(), ()], ()), ("x", "y"), MANY).labels == ((), ())


def test_kinds_that_do_not_match() -> None:
    single = Examples(("x",), None, (0,), ("a", "b"), "toy")
    with pytest.raises(ValueError, match=r"write a list of labels in each row .* or give --label_separator"):
        align_labels(single, ("a", "b"), MANY)
    with pytest.raises(ValueError, match="the labels are for multi_label_classification, the model is for single"):
        align_labels(many([(0,)], ("a", "b")), ("a", "b"), "single_label_classification")


def test_arrays() -> None:
    found = label_array([(0, 2), (), (1,)], MANY, 3)
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert label_array([1, 0], "single_label_classification", 2).dtype == np.int64
    assert label_array([0.5], "regression", 1).dtype == np.float32


def test_a_part_of_names_that_differ_in_case_alone() -> None:
    assert align_labels(many([(0,), ()], ("a",)), ("A", "a"), MANY).labels == ((1,), ())


# Scores.


TRUTH = [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
ANSWER = [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]]


def test_scores_by_hand() -> None:
    # TP 3, FP 1, FN 1; by label: 2 of 2, (TP 1, FN 1), (FP 1)
    assert micro_f1(ANSWER, TRUTH) == pytest.approx(6 / 8)
    assert macro_f1(ANSWER, TRUTH) == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert subset_accuracy(ANSWER, TRUTH) == 0.5
    nothing = np.zeros((4, 3))
    assert micro_f1(nothing, nothing) == macro_f1(nothing, nothing) == 0.0
    assert subset_accuracy(nothing, nothing) == 1.0
    assert default_metrics(multi_label=True) == ("micro_f1", "macro_f1", "subset_accuracy")


@pytest.mark.parametrize("metric", default_metrics(multi_label=True))
def test_the_best_constant_set(metric: str) -> None:
    """Against every set of labels there is."""
    scores = {"micro_f1": micro_f1, "macro_f1": macro_f1, "subset_accuracy": subset_accuracy}
    chance = np.random.default_rng(5)
    for _ in range(20):
        truth = (chance.random((7, 4)) < chance.random(4)).astype(int)
        every = [np.tile([(n >> i) & 1 for i in range(4)], (7, 1)) for n in range(16)]
        best = max(scores[metric](answer, truth) for answer in every)
        assert majority_score(truth, metric) == pytest.approx(best)


def test_scores_refuse_what_is_no_indicator() -> None:
    with pytest.raises(ValueError, match="labels hold something else than 0 and 1"):
        micro_f1([[0, 1]], [[0, 2]])
    with pytest.raises(ValueError, match=r"allowed: two arrays of one shape, \(texts, labels\)"):
        macro_f1([0, 1], [0, 1])


def labelled(count: int = 16, outputs: int = 3) -> Any:
    sets = [tuple(j for j in range(outputs) if (i >> j) & 1) for i in range(count)]
    return tokenise(many(sets, tuple(f"LABEL_{i}" for i in range(outputs))), tiny_tokenizer(), 20)


@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_rows_of_a_multi_label_model(threshold: float) -> None:
    model, data = tiny_model(problem_type=MANY), labelled()
    found = evaluate(model, data, ["w1", "w0.5"], threshold=threshold)
    truth = label_array(data.labels, MANY, 3)
    for row in found:
        logits = compute_logits(model, data, [row.subnet])[row.subnet]
        answer = label_probabilities(logits) >= threshold
        np.testing.assert_array_equal(answer, 1 / (1 + np.exp(-logits.astype(np.float64))) >= threshold)
        assert row.metric == "micro_f1"
        assert row.score == row.metrics["micro_f1"] == micro_f1(answer, truth)
        assert row.metrics["macro_f1"] == macro_f1(answer, truth)
        assert row.metrics["subset_accuracy"] == subset_accuracy(answer, truth)
        assert row.majority == majority_score(truth, "micro_f1")
    assert evaluate(model, data, ["w1"], metric="subset_accuracy")[0].metric == "subset_accuracy"


def test_refusals_of_the_score() -> None:
    model, data = tiny_model(problem_type=MANY), labelled()
    with pytest.raises(
        ValueError, match="metric 'accuracy' does not fit multi_label_classification; allowed: micro_f1"
    ):
        evaluate(model, data, ["w1"], metric="accuracy")
    single = tokenise(Examples(("good",), None, (0,), ("a", "b", "c"), "one"), tiny_tokenizer(), 20)
    with pytest.raises(ValueError, match="metric 'micro_f1' does not fit single_label_classification"):
        evaluate(tiny_model(), single, ["w1"], metric="micro_f1")
    with pytest.raises(ValueError, match=r"threshold is 1\.5; allowed: above 0 and below 1"):
        evaluate(model, data, ["w1"], threshold=1.5)
    with pytest.raises(ValueError, match="toy has a set of labels for each text, the model is for single"):
        evaluate(tiny_model(), data, ["w1"])
    with pytest.raises(ValueError, match="toy has label 3, the model has 3 outputs"):
        evaluate(model, labelled(outputs=4), ["w1"])


# Learning.


@pytest.mark.parametrize("outputs", [1, 3])
def test_it_learns(outputs: int) -> None:
    words = ("good", "film", "slow")[:outputs]
    sets = [tuple(j for j in range(outputs) if (i >> j) & 1) for i in range(2**outputs)] * 4
    texts = tuple(" ".join(["the", *(words[j] for j in own)]) for own in sets)
    data = tokenise(Examples(texts, None, tuple(sets), words, "toy"), tiny_tokenizer(), 20)
    model = tiny_model(problem_type=MANY, num_labels=outputs, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    result = fine_tune(
        model, data, FineTuningArguments(learning_rate=3e-3, num_train_epochs=12, per_device_train_batch_size=4)
    )
    assert result.final_loss < 0.5 * result.losses[0]
    assert evaluate(model, data, ["w1"])[0].score > 0.9


def test_labels_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="has a set of labels for each text and the model is for single_label"):
        next(labelled_batches(tiny_model(), labelled()))
    single = tokenise(Examples(("good",), None, (0,), ("a", "b", "c"), "one"), tiny_tokenizer(), 20)
    with pytest.raises(ValueError, match="one has one label for each text and the model is for multi_label"):
        next(labelled_batches(tiny_model(problem_type=MANY), single))
    with pytest.raises(ValueError, match="has 4 classes and the model 3 outputs"):
        fine_tune(tiny_model(problem_type=MANY), labelled(outputs=4))


def test_importance_is_of_the_multi_label_loss() -> None:
    """The gradient of the binary cross-entropy, by autograd on the same network."""
    model, data = tiny_model(problem_type=MANY).double(), labelled()
    batches = list(labelled_batches(model, data, 16))
    assert batches[0]["labels"].dtype == torch.float32
    found = compute_importance(model, batches)
    model.zero_grad()
    logits = model(batch=batches[0]["batch"], plan=batches[0]["plan"]).logits
    targets = torch.tensor(label_array(data.labels, MANY, 3), dtype=torch.float64)
    # -t log p - (1 - t) log (1 - p), averaged over texts and labels
    probabilities = torch.sigmoid(logits)
    loss = -(targets * probabilities.log() + (1 - targets) * (1 - probabilities).log()).mean()
    loss.backward()
    for index, layer in enumerate(model.encoder.elastic_layers):
        weight, gradient = layer.ffn_out_weight, layer.ffn_out_weight.grad
        inward = (layer.ffn_in_weight * layer.ffn_in_weight.grad).sum(1) + layer.ffn_in_bias * layer.ffn_in_bias.grad
        wanted = inward.abs() + (weight * gradient).sum(0).abs()
        torch.testing.assert_close(found.neurons[index], wanted.detach().float(), rtol=1e-5, atol=1e-9)


def test_augmented_text_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "near.tsv").write_text("word\tneighbours\ngood\tgreat:0.9\n")
    table = NeighbourWords.read(tmp_path / "near.tsv")
    found = augment(Examples(("good film",), None, ((0,),), ("a",), "toy"), table, copies=2)
    assert (found.labels, found.problem_type, len(found)) == (None, None, 2)
