"""Many texts are tokenised in blocks beside the running network: order, bounds and errors stay as for few."""

from __future__ import annotations

import threading

import pytest
import torch

from dynabert import InferenceEngine
from dynabert.engine import packed
from dynabert.engine.overlap import made_ahead
from tests.dynabert.tiny_texts import some_texts, tiny_model, tiny_tokenizer


def test_results_come_in_order_and_never_more_than_one_ahead() -> None:
    made: list[int] = []

    def make(item: int) -> tuple[int, int]:
        made.append(item)
        return item, threading.get_ident()

    for place, (item, thread) in enumerate(made_ahead(make, range(20))):
        assert item == place
        assert thread != threading.get_ident()
        assert len(made) <= place + 2
    assert made == list(range(20))


def test_one_item_needs_no_thread() -> None:
    assert list(made_ahead(lambda _: threading.get_ident(), [0])) == [threading.get_ident()]
    assert list(made_ahead(lambda _: 1, [])) == []


def test_an_error_comes_where_its_result_would() -> None:
    seen: list[int] = []
    with pytest.raises(ZeroDivisionError):
        seen.extend(made_ahead(lambda item: 6 // item, [1, 2, 3, 0, 6]))
    assert seen == [6, 3, 2]


def test_the_thread_ends_when_the_caller_stops_early() -> None:
    before = threading.active_count()
    results = made_ahead(lambda item: item, range(5))
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("subnets", [None, "each its own"])
def test_blocks_answer_as_one(monkeypatch: pytest.MonkeyPatch, subnets: str | None) -> None:
    engine = InferenceEngine(tiny_model(), tiny_tokenizer(), max_batch_tokens=40)
    texts = some_texts(50)
    chosen = None if subnets is None else [("w1-d1", "w0.5-d0.75", "w0.25-d0.5")[i % 3] for i in range(50)]
    whole = engine.predict(texts, subnet=chosen)
    monkeypatch.setattr(packed, "BLOCK_TEXTS", 7)
    blocks = engine.predict(texts, subnet=chosen)
    assert [one.label for one in blocks] == [one.label for one in whole]
    for a, b in zip(blocks, whole, strict=True):
        assert a.logits == pytest.approx(b.logits, abs=1e-5)
        assert a.subnet == b.subnet


def test_a_bad_text_of_a_later_block_is_named_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InferenceEngine(tiny_model(), tiny_tokenizer(), max_length=8)
    monkeypatch.setattr(packed, "BLOCK_TEXTS", 4)
    texts = ["a good film"] * 10
    texts[9] = "good " * 30
    with pytest.raises(ValueError, match="text 9 is too long; got 32 tokens; allowed: 8"):
        engine.predict(texts)
    with pytest.raises(ValueError, match="text 13 is too long"):
        list(engine.predict_iter(["a film"] * 4 + texts, lookahead=100))
    assert len(engine.predict(texts, truncate=True)) == 10


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_what_is_kept_of_a_single_text_fits_every_other_of_its_length(architecture: str) -> None:
    engine = InferenceEngine(tiny_model(architecture), tiny_tokenizer(architecture))
    texts = ["good film", "bad plot", ("good film", "bad plot"), ("bad film", "good plot")]
    for _ in range(2):
        for subnet in ("w1-d1", "w0.5-d0.75"):
            for text in texts:
                (alone,) = InferenceEngine(engine.model, engine.tokenizer).predict([text], subnet=subnet)
                assert engine.predict(text, subnet=subnet).logits == alone.logits
    assert len(engine._frames) == (4 if architecture == "bert" else 0)  # two lengths, two sub-networks


def test_nothing_of_a_text_is_kept() -> None:
    engine = InferenceEngine(tiny_model(), tiny_tokenizer())
    text = ("good film", "the bad plot")
    ids, types = engine._encoder.encode([text[0]], [text[1]]).rows([0])
    assert types is not None
    for _ in range(2):  # the second time what was kept is used
        engine.predict(text)
    (frame,) = engine._frames.values()
    kept = [value for value in (*frame, *vars(frame.plan).values()) if isinstance(value, torch.Tensor)]
    assert len(kept) == 3
    for tensor in kept:
        assert tensor.tolist() not in (ids[0], types[0])


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InferenceEngine(tiny_model(), tiny_tokenizer())
    monkeypatch.setattr(packed, "KNOWN_FRAMES", 3)
    for words in range(1, 9):
        engine.predict("good " * words)
    assert len(engine._frames) == 3
