"""Examples, token ids, batches and matching labels: what stands between a file and a model."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig

from dynabert.data import (
    Examples,
    TextEncoder,
    align_labels,
    model_labels,
    model_problem,
    read_examples,
    token_batches,
    tokenise,
    tokenise_once,
)
from dynabert.data.examples import TextError
from tests.dynabert.tiny_texts import some_texts, tiny_model, tiny_tokenizer

CLASSES = "single_label_classification"


# Examples
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error", "wrong"),
    [
        (
            {"texts": ("a", "b"), "labels": (1,), "label_names": ("x", "y")},
            ValueError,
            "one label is needed per text; got 1 for 2",
        ),
        ({"texts": ("a",), "seconds": ()}, ValueError, "one second text is needed per text; got 0 for 1"),
        ({"texts": ("a", " ")}, ValueError, "text 1 of examples is empty; got ' '"),
        ({"texts": ("a", 3)}, TypeError, "text 1 of examples is no str; got int"),
        ({"texts": ("a",), "seconds": ("",)}, ValueError, "second text 0 of examples is empty"),
        (
            {"texts": ("a",), "labels": (2,), "label_names": ("x", "y")},
            ValueError,
            "label 0 of examples is no class index; got 2; allowed: 0 to 1",
        ),
        ({"texts": ("a",), "labels": (True,), "label_names": ("x", "y")}, ValueError, "is no class index; got True"),
        ({"texts": ("a",), "labels": (float("nan"),)}, ValueError, "is no finite float; got nan"),
        ({"texts": ("a",), "labels": (1,)}, ValueError, "is no finite float; got 1"),
        ({"texts": ("a",), "lines": (1, 2)}, ValueError, "lines are 2 for 1 texts; allowed: 1 or None"),
    ],
)
def test_examples_refuse(fields: dict[str, Any], error: type[Exception], wrong: str) -> None:
    with pytest.raises(error, match="Examples: ") as found:
        Examples(**fields)
    assert wrong in str(found.value)


def test_examples_select() -> None:
    examples = Examples(("a", "b", "c"), ("x", "y", "z"), (0, 1, 1), ("no", "yes"))
    chosen = examples.select([2, 0])
    assert (chosen.texts, chosen.seconds, chosen.labels) == (("c", "a"), ("z", "x"), (1, 0))
    assert examples.head(2).texts == ("a", "b")
    assert len(examples.head(9)) == 3
    assert examples.label_counts() == {"no": 1, "yes": 2}
    with pytest.raises(ValueError, match="count must be at least 1"):
        examples.head(0)


# Tokens
# -----------------------------------------------------------------------------------------------------------------


def test_tokens_have_no_padding_and_nothing_is_cut_in_silence() -> None:
    # The tokenizer's own state pads to 16 and cuts to 5.
    encoder = TextEncoder(tiny_tokenizer(), 20)
    encoded = encoder.encode(["good film", "the actor makes a very good joke", "unheard"])
    assert encoded.lengths == (4, 9, 3)
    assert encoded.input_ids[0][0] == 1
    assert encoded.input_ids[0][-1] == 2
    assert 0 not in encoded.input_ids[1]
    assert encoded.input_ids[2][1] == 3  # [UNK]
    assert encoded.num_truncated == 0


def test_pairs_have_token_types() -> None:
    encoded = TextEncoder(tiny_tokenizer(), 20).encode(["good film"], ["bad actor plot"])
    assert encoded.token_type_ids == ([0, 0, 0, 0, 1, 1, 1, 1],)
    assert TextEncoder(tiny_tokenizer(), 20, token_types=False).encode(["good"]).token_type_ids is None
    assert TextEncoder(tiny_tokenizer("roberta"), 20).encode(["good"]).token_type_ids is None


def test_too_long_is_refused_with_index_and_lengths() -> None:
    encoder = TextEncoder(tiny_tokenizer(), 6)
    texts = ["good", "a b c d e f", "the film", "a a a a a"]
    with pytest.raises(
        ValueError, match=r"text 1 is too long; got 8 tokens \(and 1 more texts are too long\); allowed: 6; shorten it"
    ):
        encoder.encode(texts)
    with pytest.raises(ValueError, match="text 101 is too long"):
        encoder.encode(texts, first_index=100)


def test_truncation_when_asked_for() -> None:
    encoder = TextEncoder(tiny_tokenizer(), 6)
    encoded = encoder.encode(["a the film story actor plot", "good"], truncate=True)
    assert encoded.lengths == (6, 3)
    assert encoded.num_truncated == 1
    whole = TextEncoder(tiny_tokenizer(), 20).encode(["a the film story actor plot"]).input_ids[0]
    assert encoded.input_ids[0] == [*whole[:5], whole[-1]]  # the last token stays [SEP]


def test_a_pair_is_cut_at_its_longer_text() -> None:
    encoded = TextEncoder(tiny_tokenizer(), 8).encode(["a the film story actor plot"], ["good bad"], truncate=True)
    assert encoded.token_type_ids == ([0, 0, 0, 0, 0, 1, 1, 1],)


def test_encoder_leaves_the_tokenizer_alone() -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    TextEncoder(tokenizer, 6).encode(["a b c d e f g h"], truncate=True)
    assert tokenizer.backend_tokenizer.to_str() == before


@pytest.mark.parametrize(
    ("texts", "error", "wrong"),
    [
        (["good", ""], ValueError, "text 1 is empty; got ''; allowed: a text with at least one character"),
        (["good", "\n\t "], ValueError, "text 1 is empty"),
        (["good", None], TypeError, "text 1 is no str; got NoneType; allowed: str"),
        (["good", b"bad"], TypeError, "text 1 is no str; got bytes"),
    ],
)
def test_bad_texts(texts: list[Any], error: type[Exception], wrong: str) -> None:
    with pytest.raises(error, match="tokenise: ") as found:
        TextEncoder(tiny_tokenizer(), 20).encode(texts)
    assert wrong in str(found.value)


def test_encoder_refuses() -> None:
    with pytest.raises(TypeError, match="a fast tokenizer is needed; got object"):
        TextEncoder(object(), 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_length is too small"):
        TextEncoder(tiny_tokenizer(), 3)
    with pytest.raises(TypeError, match="max_length must be an int; got float"):
        TextEncoder(tiny_tokenizer(), 8.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one second text is needed per text; got 0 for 1"):
        TextEncoder(tiny_tokenizer(), 8).encode(["a"], [])


def test_tokenise_carries_labels_and_names_its_source() -> None:
    examples = Examples(("good", "a b c d e f"), None, (1, 0), ("bad", "good"), source="reviews.tsv")
    encoded = tokenise(examples, tiny_tokenizer(), 10)
    assert encoded.labels == (1, 0)
    assert encoded.label_names == ("bad", "good")
    assert encoded.rows([1]) == ([encoded.input_ids[1]], [encoded.token_type_ids[1]])  # type: ignore[index]
    assert encoded.select([1]).labels == (0,)
    with pytest.raises(ValueError, match=r"reviews\.tsv: tokenise: text 1 is too long; got 8 tokens; allowed: 6"):
        tokenise(examples, tiny_tokenizer(), 6)
    assert tokenise(examples, tiny_tokenizer(), 6, truncate=True).num_truncated == 1


def test_a_text_of_a_file_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('text,label\ngood,1\n"a\nb",0\na,\na b c d e f,1\n', encoding="utf-8")
    with pytest.warns(UserWarning, match="1 bad rows were left out"):
        examples = read_examples(path, bad_rows="skip")
    assert examples.lines == (2, 3, 6)
    with pytest.raises(ValueError, match=r"d\.csv: tokenise: the text of line 6 is too long; got 8 tokens; allowed: 6"):
        tokenise(examples, tiny_tokenizer(), 6)
    with pytest.raises(ValueError, match=r"the text of line 6 is too long"):
        tokenise(examples.select([0, 2]), tiny_tokenizer(), 6)
    cache = [tokenise_once(examples, tiny_tokenizer(), 10, cache_dir=tmp_path) for _ in range(2)]
    assert [encoded.lines for encoded in cache] == [(2, 3, 6)] * 2
    assert cache[1].select([2]).lines == (6,)
    again = pickle.loads(pickle.dumps(TextError("x: {text} is bad", 4)))
    assert str(again) == "x: text 4 is bad"


@pytest.mark.parametrize("size", [1, 7, 60, 61])
def test_how_many_texts_are_encoded_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    texts = some_texts(60, longest=20)
    encoder = TextEncoder(tiny_tokenizer(), 8)
    expected = encoder.encode(texts, texts[::-1], truncate=True)
    monkeypatch.setattr("dynabert.data.tokenisation._WINDOW", size)
    assert encoder.encode(texts, texts[::-1], truncate=True) == expected
    assert 20 < expected.num_truncated < 60
    first = next(i for i in range(60) if len(f"{texts[i]} {texts[59 - i]}".split()) + 3 > 8)
    with pytest.raises(ValueError, match=rf"text {first} is too long; .* \(and {expected.num_truncated - 1} more"):
        encoder.encode(texts, texts[::-1])


def test_one_encoder_in_many_threads() -> None:
    encoder = TextEncoder(tiny_tokenizer(), 8)
    texts = some_texts(60, longest=20)
    expected = encoder.encode(texts, truncate=True)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            if number % 2:
                found = encoder.encode(texts, truncate=True)
                if found != expected:
                    wrong.append(number)
            else:
                encoder.encode(["good film"])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Batches
# ----------------------------------------------------------------------------------------------------------------


def test_batches_by_tokens() -> None:
    assert list(token_batches([3, 9, 4, 1], 10)) == [[1], [2, 0, 3]]
    assert list(token_batches([3, 9, 4, 1], 10, order=range(4))) == [[0], [1], [2, 3]]
    assert list(token_batches([3, 3, 3], 100, max_sequences=2)) == [[0, 1], [2]]
    assert list(token_batches([50, 1], 10)) == [[0], [1]]  # longer than the bound: alone
    assert list(token_batches([], 10)) == []
    with pytest.raises(ValueError, match="bounds must be at least 1"):
        list(token_batches([1], 0))


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 100), st.integers(1, 9))
def test_batches_keep_every_example_once_and_the_bounds(lengths: list[int], bound: int, most: int) -> None:
    runs = list(token_batches(lengths, bound, max_sequences=most))
    assert sorted(i for run in runs for i in run) == list(range(len(lengths)))
    for run in runs:
        assert run
        assert len(run) <= most
        assert len(run) == 1 or sum(lengths[i] for i in run) <= bound


# Labels
# -----------------------------------------------------------------------------------------------------------------


def labelled(names: tuple[str, ...], labels: tuple[int, ...]) -> Examples:
    return Examples(("a",) * len(labels), None, labels, names, source="d.tsv")


@pytest.mark.parametrize(
    ("names", "labels", "outputs", "expected"),
    [
        (("bad", "good"), (0, 1), ("good", "bad"), (1, 0)),  # by name, the model's order
        (("Bad", "GOOD"), (0, 1), ("bad", "good"), (0, 1)),  # case does not matter
        (("good",), (0, 0), ("bad", "good"), (1, 1)),  # a class of the model may be absent
        (("0", "2"), (0, 1), ("a", "b", "c"), (0, 2)),
        (("bad", "good"), (0, 1), ("LABEL_0", "LABEL_1"), (0, 1)),  # a model without names
        (("1", "0"), (0, 1), ("0", "1"), (1, 0)),
        (("1", "2", "3"), (0, 1, 2), ("LABEL_0", "LABEL_1", "LABEL_2"), (0, 1, 2)),  # counted from 1, and all there
        (("1", "2"), (0, 1), ("1", "2", "3"), (0, 1)),  # numbers that are the model's names
        (("0", "1"), (0, 1), ("LABEL_0", "LABEL_1", "LABEL_2"), (0, 1)),
    ],
)
def test_labels_are_matched(
    names: tuple[str, ...], labels: tuple[int, ...], outputs: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    found = align_labels(labelled(names, labels), outputs, CLASSES)
    assert found.labels == expected
    assert found.label_names == outputs


STARS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")
GENERIC = tuple(f"LABEL_{i}" for i in range(5))


@pytest.mark.parametrize(
    ("names", "outputs"), [(("1",), ("bad", "good")), (("1", "2", "3", "4"), GENERIC), (("1", "2", "3", "4"), STARS)]
)
def test_numbers_without_0_are_places_and_that_is_said(names: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """They may be counted from 1 as well, with the last class missing."""
    places = tuple(range(len(names)))
    with pytest.warns(UserWarning, match=rf"d\.tsv: no class of the data is 0; .* and 1 is '{outputs[1]}'; where the"):
        assert align_labels(labelled(names, places), outputs, CLASSES).labels == tuple(map(int, names))


@pytest.mark.parametrize("outputs", [GENERIC, STARS])
def test_numbers_from_1_with_a_class_missing_are_refused(outputs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="numbers 0 to 4; where the data counts from 1 and has not every class, write"):
        align_labels(labelled(("2", "5"), (0, 1)), outputs, CLASSES)


@pytest.mark.parametrize(
    ("names", "outputs"),
    [
        (("bad", "ugly"), ("bad", "good")),
        (("1", "2"), ("bad", "good")),
        (("a", "b", "c"), ("LABEL_0", "LABEL_1")),
        (("a",), ("A", "a")),
        (("٠", "١"), ("bad", "good")),  # digits of other scripts are names
    ],
)
def test_labels_that_do_not_match(names: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"d\.tsv: the classes of the data are not those of the model; the data has"):
        align_labels(labelled(names, tuple(range(len(names)))), outputs, CLASSES)


def test_a_label_that_the_model_does_not_know_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,label\na,good\nb,Bad\nc,ugly\nd,ugly\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"the model has bad, good; the first other one, 'ugly', is in line 4; use the"
    ):
        align_labels(read_examples(path), ("bad", "good"), CLASSES)
    path.write_text("text,label\na,x\nb,y\n", encoding="utf-8")  # another task's labels: no row is to blame
    with pytest.raises(ValueError, match="the model has bad, good; use the model's names"):
        align_labels(read_examples(path), ("bad", "good"), CLASSES)
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a", "label": ["bad"]}\n{"text": "b", "label": ["bad", "odd"]}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="the first other one, 'odd', is in line 2; use"):
        align_labels(read_examples(path), ("bad", "good"), "multi_label_classification")


def test_kind_of_problem_must_match() -> None:
    numbers = Examples(("a",), None, (0.5,), source="d.tsv")
    assert align_labels(numbers, ("score",), "regression") is numbers
    with pytest.raises(ValueError, match="the labels are for regression, the model is for single_label"):
        align_labels(numbers, ("a", "b"), CLASSES)
    with pytest.raises(
        ValueError, match="the labels are for single_label_classification, the model is for multi_label"
    ):
        align_labels(labelled(("a", "b"), (0,)), ("a", "b"), "multi_label_classification")
    with pytest.raises(ValueError, match="the examples have no labels"):
        align_labels(Examples(("a",)), ("a", "b"), CLASSES)


def test_kind_and_names_of_a_model() -> None:
    assert model_problem(BertConfig(num_labels=1)) == "regression"
    assert model_problem(BertConfig(num_labels=3)) == CLASSES
    assert model_problem(BertConfig(num_labels=3, problem_type="multi_label_classification")).startswith("multi")
    assert model_labels(tiny_model(num_labels=2, id2label={0: "x", 1: "y"}).config) == ("x", "y")
