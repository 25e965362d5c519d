"""The engine: answers equal the model's own, order is kept, sub-networks share batches, and every refusal is clear."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from dynabert import ElasticBertForSequenceClassification, InferenceEngine, SubnetConfig
from dynabert.data.tokenisation import with_length
from dynabert.engine import Prediction, torch_dtype
from tests.dynabert.tiny_texts import some_texts, tiny_folder, tiny_model, tiny_tokenizer

SUBNETS = ["w1-d1", "w0.5-d0.75", "w0.25-d0.5", "w1-l0,3", "h4,0,2,1-n40,0,7,3"]


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    return InferenceEngine(tiny_model(), tiny_tokenizer(), max_batch_tokens=40)


def _listed(counts: tuple[int, ...]) -> str:
    return ",".join(map(str, counts))


def direct(
    model: ElasticBertForSequenceClassification, text: Any, subnet: Any, architecture: str = "bert"
) -> list[float]:
    """The logits of one text alone, through the padded door and the tokenizer's own call."""
    tokenizer = tiny_tokenizer(architecture)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    inputs = tokenizer(*text, return_tensors="pt") if isinstance(text, tuple) else tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits: list[float] = model(**inputs, subnet=subnet).logits[0].tolist()
    return logits


# Answers
# ----------------------------------------------------------------------------------------------------------------


def test_one_text_gives_one_prediction(engine: InferenceEngine) -> None:
    found = engine.predict("the good film", subnet=SubnetConfig(0.5, 0.75))
    assert isinstance(found, Prediction)
    expected = direct(engine.model, "the good film", "w0.5-d0.75")
    assert found.logits == pytest.approx(expected, abs=1e-5)
    softmax = np.exp(expected) / np.exp(expected).sum()
    assert list(found.scores.values()) == pytest.approx(softmax.tolist(), abs=1e-6)
    assert found.label == f"LABEL_{int(np.argmax(expected))}"
    assert found.labels == (found.label,)
    assert found.score == max(found.scores.values())
    assert found.subnet == "w0.5-d0.75"
    assert sum(found.scores.values()) == pytest.approx(1.0)


def test_order_is_restored(engine: InferenceEngine, architecture: str) -> None:
    engine = InferenceEngine(tiny_model(architecture), tiny_tokenizer(architecture), max_batch_tokens=30)
    texts = some_texts(37, longest=14)
    for text, found in zip(texts, engine.predict(texts), strict=True):
        assert found.logits == pytest.approx(direct(engine.model, text, None, architecture), abs=1e-4)


def test_mixed_subnetworks_equal_each_alone(engine: InferenceEngine) -> None:
    texts = some_texts(41, seed=3)
    subnets = [SUBNETS[i * 7 % len(SUBNETS)] for i in range(len(texts))]
    mixed = engine.predict(texts, subnet=subnets)
    assert [found.subnet for found in mixed] == subnets
    for name in SUBNETS:
        alone = engine.predict(texts, subnet=name)
        for found, own, subnet in zip(mixed, alone, subnets, strict=True):
            if subnet == name:
                assert found.logits == pytest.approx(own.logits, abs=1e-5)


def test_one_batch_holds_several_subnetworks(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InferenceEngine(tiny_model(), tiny_tokenizer(), max_batch_tokens=1000)
    groups: list[int] = []
    logits = engine.model.packed_logits
    monkeypatch.setattr(
        engine.model, "packed_logits", lambda batch, plan: groups.append(plan.num_groups) or logits(batch, plan)
    )
    engine.predict(["good", "bad", "film", "plot"], subnet=["w0.5", "w1", "w0.5", "w0.25"])
    assert groups == [3]


def test_subnet_forms(engine: InferenceEngine) -> None:
    shape = engine.model.shape("w0.5-d0.75")
    found = engine.predict(["good"] * 4, subnet=[SubnetConfig(0.5, 0.75), "w0.5-d0.75", shape, None])
    assert [f.subnet for f in found] == [
        "w0.5-d0.75",
        "w0.5-d0.75",
        f"h{_listed(shape.heads)}-n{_listed(shape.neurons)}",
        "w1-d1",
    ]
    assert found[2].logits == pytest.approx(found[0].logits, abs=1e-6)


def test_pairs(engine: InferenceEngine) -> None:
    pair = ("good film", "the bad plot")
    found = engine.predict(pair, subnet="w0.5")
    assert isinstance(found, Prediction)
    assert found.logits == pytest.approx(direct(engine.model, pair, "w0.5"), abs=1e-5)
    many = engine.predict([pair, ("bad", "good")], subnet="w0.5")
    assert many[0].logits == pytest.approx(found.logits, abs=1e-5)


def test_empty_list(engine: InferenceEngine) -> None:
    assert engine.predict([]) == []
    assert engine.predict([], subnet=[]) == []
    assert list(engine.predict_iter([])) == []


def test_any_iterable_of_texts(engine: InferenceEngine) -> None:
    texts = some_texts(5)
    assert engine.predict(iter(texts)) == engine.predict(texts)
    assert engine.predict(np.array(texts)) == engine.predict(texts)


def test_multi_label() -> None:
    model = tiny_model(problem_type="multi_label_classification", num_labels=4, id2label=dict(enumerate("abcd")))
    engine = InferenceEngine(model, tiny_tokenizer(), threshold=0.6)
    for text in some_texts(8):
        found = engine.predict(text)
        expected = 1 / (1 + np.exp(-np.array(direct(model, text, None))))
        assert list(found.scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert found.labels == tuple(name for name, p in zip("abcd", expected, strict=True) if p >= 0.6)
        assert found.label == "abcd"[int(np.argmax(expected))]


def test_regression() -> None:
    model = tiny_model(num_labels=1)
    found = InferenceEngine(model, tiny_tokenizer()).predict("good film")
    assert found.label is None
    assert found.labels == ()
    assert found.score == pytest.approx(direct(model, "good film", None)[0], abs=1e-5)
    assert list(found.scores.values()) == [found.score]


def test_extreme_logits_do_not_overflow() -> None:
    for problem in ("single_label_classification", "multi_label_classification"):
        model = tiny_model(problem_type=problem)
        with torch.no_grad():
            model.classifier.out_proj.bias.copy_(torch.tensor([5000.0, -5000.0, 0.0]))
        scores = list(InferenceEngine(model, tiny_tokenizer()).predict("good").scores.values())
        assert scores[0] == pytest.approx(1.0)
        assert scores[1] == pytest.approx(0.0)


def test_same_answer_twice_and_no_gradient(engine: InferenceEngine) -> None:
    texts = some_texts(9)
    assert engine.predict(texts, subnet="w0.5") == engine.predict(texts, subnet="w0.5")
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_nothing_uninitialised_is_read(engine: InferenceEngine, poisoned: None) -> None:
    found = engine.predict(some_texts(11), subnet=[SUBNETS[i % len(SUBNETS)] for i in range(11)])
    assert all(np.isfinite(one.logits).all() for one in found)


def test_prediction_as_plain_values(engine: InferenceEngine) -> None:
    found = engine.predict("good").to_dict()
    assert set(found) == {"label", "score", "scores", "labels", "logits", "subnet"}
    assert isinstance(found["labels"], list)


# Refusals
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "error", "wrong"),
    [
        (["good", ""], ValueError, "text 1 is empty; got ''; allowed: a text with at least one character"),
        ("", ValueError, "text 0 is empty"),
        (["good", " \n"], ValueError, "text 1 is empty"),
        (["good", 3], TypeError, "text 1 is no str; got int; allowed: str"),
        (["good", None], TypeError, "text 1 is no str; got NoneType"),
        (3, TypeError, "texts are no texts; got int"),
        (None, TypeError, "texts are no texts; got NoneType"),
        (b"good", TypeError, "texts are no texts; got bytes"),
        ({"a": "b"}, TypeError, "texts are no texts; got dict"),
        (
            ("a", "b", "c"),
            TypeError,
            "text 0 is no pair; got ('a', 'b', 'c'); allowed: a tuple of two str (for many texts give a list)",
        ),
        ([("a", "b"), ("a",)], TypeError, "text 1 is no pair"),
        ([("a", "b"), ("a", "")], ValueError, "second text of pair 1 is empty"),
        ([("a", "b"), ("a", 1)], TypeError, "second text of pair 1 is no str; got int"),
        (["good", ("a", "b")], ValueError, "text 1 is a pair, text 0 is not; do not mix them"),
        ([("a", "b"), "good"], ValueError, "text 1 is a single text, text 0 is not"),
        ([("a", "b"), 4], TypeError, "text 1 is no pair; got 4"),
    ],
)
def test_bad_texts(engine: InferenceEngine, texts: Any, error: type[Exception], wrong: str) -> None:
    with pytest.raises(error, match="predict: ") as found:
        engine.predict(texts)
    assert wrong in str(found.value)


@pytest.mark.parametrize(
    ("subnet", "error", "wrong"),
    [
        (["w1"], ValueError, "one sub-network is needed per text; got 1 for 2 texts; give 2, or one for all"),
        ([], ValueError, "got 0 for 2 texts"),
        ("half", ValueError, "unknown sub-network 'half'"),
        (["w1", "w0.3"], ValueError, "sub-network 1: width_mult 0.3 is 1.2 of 4 heads"),
        ("w0.3", ValueError, "width_mult 0.3 is 1.2 of 4 heads"),
        (0.5, TypeError, "subnet must be a SubnetConfig"),
        ([["w1"], "w1"], TypeError, "sub-network 0 is no sub-network; got list"),
        (SubnetConfig(layers=(0, 9)), ValueError, "no layer 9"),
    ],
)
def test_bad_subnets(engine: InferenceEngine, subnet: Any, error: type[Exception], wrong: str) -> None:
    with pytest.raises(error) as found:
        engine.predict(["good", "bad"], subnet=subnet)
    assert wrong in str(found.value)


def test_too_long_text() -> None:
    engine = InferenceEngine(tiny_model(), tiny_tokenizer(), max_length=8)
    texts = ["good", "a " * 30]
    with pytest.raises(
        ValueError, match="text 1 is too long; got 32 tokens; allowed: 8; shorten it, cut it with truncate=True"
    ):
        engine.predict(texts)
    cut = engine.predict(texts, truncate=True)
    assert cut[1].logits == pytest.approx(engine.predict("a " * 6).logits, abs=1e-6)


def test_the_models_positions_are_the_bound(architecture: str) -> None:
    model = tiny_model(architecture)
    engine = InferenceEngine(model, tiny_tokenizer(architecture))
    longest = model.config.max_sequence_length
    assert engine.max_length == longest
    engine.predict("a " * (longest - 2))
    with pytest.raises(ValueError, match=f"got {longest + 1} tokens; allowed: {longest}"):
        engine.predict("a " * (longest - 1))


def test_the_length_of_the_training_is_the_default() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model()
    assert InferenceEngine(model, tokenizer).max_length == 50  # nobody said: the model's positions
    own = with_length(tokenizer, 8)
    assert with_length(own, 8) is own
    assert with_length(tokenizer, None) is tokenizer
    assert tokenizer.model_max_length > 10**9
    assert InferenceEngine(model, own).max_length == 8
    assert InferenceEngine(model, own, max_length=30).max_length == 30
    assert InferenceEngine(model, with_length(tokenizer, 512)).max_length == 50


def test_training_mode_is_refused() -> None:
    engine = InferenceEngine(tiny_model().train(), tiny_tokenizer())
    assert not engine.model.training
    engine.model.train()
    with pytest.raises(RuntimeError, match=r"put in training mode, so its answers would be random; call model\.eval"):
        engine.predict("good")


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"max_length": 51}, "max_length is 51; allowed: up to the model's 50 positions"),
        ({"max_length": 2}, "max_length is too small"),
        ({"max_batch_tokens": 0}, "max_batch_tokens is 0; allowed: 1 or more"),
        ({"threshold": 1.0}, "threshold is 1.0; allowed: above 0 and below 1"),
    ],
)
def test_bad_options(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=r"InferenceEngine|TextEncoder") as found:
        InferenceEngine(tiny_model(), tiny_tokenizer(), **options)
    assert wrong in str(found.value)


def test_tokenizer_of_another_model() -> None:
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, the model 20; use the model's own tokenizer"):
        InferenceEngine(tiny_model(vocab_size=20), tiny_tokenizer())
    words = {"[PAD]": 0, "[UNK]": 1, "good": 75}
    gap = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")))
    with pytest.raises(ValueError, match=r"the tokenizer has the id 75; allowed: 0 to 60, the model's vocabulary; use"):
        InferenceEngine(tiny_model(), gap)


def test_bad_problem_type() -> None:
    model = tiny_model()
    model.config.problem_type = "ranking"
    with pytest.raises(ValueError, match="problem_type is 'ranking'; allowed"):
        InferenceEngine(model, tiny_tokenizer())


# Loading
# ----------------------------------------------------------------------------------------------------------------


def test_from_pretrained(tmp_path: Path, architecture: str) -> None:
    folder = tiny_folder(tmp_path / "model", architecture)
    engine = InferenceEngine.from_pretrained(folder)
    own = InferenceEngine(tiny_model(architecture), tiny_tokenizer(architecture))
    texts = some_texts(6)
    for found, expected in zip(engine.predict(texts, subnet="w0.5"), own.predict(texts, subnet="w0.5"), strict=True):
        assert found.logits == pytest.approx(expected.logits, abs=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision(tmp_path: Path, dtype: str, tolerance: float) -> None:
    folder = tiny_folder(tmp_path / "model")
    engine = InferenceEngine.from_pretrained(folder, dtype=dtype)
    assert engine.dtype == getattr(torch, dtype)
    texts = some_texts(6)
    found, exact = engine.predict(texts), InferenceEngine.from_pretrained(folder).predict(texts)
    for one, other in zip(found, exact, strict=True):
        scale = max(map(abs, other.logits))
        assert one.logits == pytest.approx(other.logits, abs=tolerance * max(scale, 1.0))


def test_unknown_dtype(tmp_path: Path) -> None:
    for dtype in ("int8", "double", torch.float64):
        with pytest.raises(
            ValueError, match=r"not one the engine runs in; got .*; allowed: float32, bfloat16, float16"
        ):
            torch_dtype(dtype)


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no tokenizer; looked for tokenizer\.json, .*; save it there"):
        InferenceEngine.from_pretrained(tmp_path)


def test_checkpoint_without_a_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from dynabert import ElasticBertModel

    ElasticBertModel(tiny_model().config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"has no trained classification head \(missing: .*\), so its answers would be random"
    ):
        InferenceEngine.from_pretrained(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        InferenceEngine.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("count", [0, 2, 4])
def test_logits_of_more_or_fewer_subnetworks_than_texts(engine: InferenceEngine, count: int) -> None:
    encoded = engine._encoder.encode(["good", "bad film", "a plot"])
    wrong = f"logits: one sub-network is needed per text; got {count} for 3 texts; give 3"
    with pytest.raises(ValueError, match=wrong):
        engine.logits(encoded, ["w1"] * count)
    assert engine.logits(encoded, ["w1"] * 3).shape == (3, 3)


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        ({0: "good", 1: "bad", 2: "good"}, "gives the name 'good' to several outputs; allowed: a name of its own"),
        ({0: "good", 1: "bad"}, "names the outputs 0, 1; allowed: one name for each of the model's 3, counted from 0"),
        ({1: "a", 2: "b", 3: "c"}, "names the outputs 1, 2, 3; allowed"),
        (dict(enumerate("abcd")), "names the outputs 0, 1, 2, 3; allowed"),
    ],
)
def test_names_that_do_not_fit_the_outputs(names: dict[int, str], wrong: str) -> None:
    model = tiny_model()
    model.config.id2label = names
    with pytest.raises(ValueError, match=f"InferenceEngine: id2label {wrong}"):
        InferenceEngine(model, tiny_tokenizer())


# Streams
# ----------------------------------------------------------------------------------------------------------------


def test_stream_keeps_the_order(engine: InferenceEngine) -> None:
    texts = some_texts(53, seed=5)
    assert [f.logits for f in engine.predict_iter(texts, lookahead=10)] == [
        pytest.approx(f.logits, abs=1e-5) for f in engine.predict(texts)
    ]


def test_stream_with_a_subnet_for_each_text(engine: InferenceEngine) -> None:
    texts = some_texts(23)
    subnets = [SUBNETS[i % 3] for i in range(23)]
    found = list(engine.predict_iter(iter(texts), subnet=iter(subnets), lookahead=7))
    assert [f.subnet for f in found] == subnets


def test_stream_is_bounded(engine: InferenceEngine) -> None:
    class Text(str):
        """A text whose life can be watched."""

    alive: weakref.WeakSet[Text] = weakref.WeakSet()
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            text = Text("good film")
            alive.add(text)
            yield text

    stream = engine.predict_iter(endless(), lookahead=16)
    most = 0
    for count, _ in enumerate(stream, start=1):
        assert read <= count + 16
        if count % 10 == 0:
            gc.collect()
            most = max(most, len(alive))
        if count == 100:
            break
    assert most <= 2 * 16


def test_stream_names_the_place_in_the_stream(engine: InferenceEngine) -> None:
    texts = [*["good"] * 25, "", *["bad"] * 5]
    stream = engine.predict_iter(iter(texts), lookahead=10)
    assert len([next(stream) for _ in range(20)]) == 20
    with pytest.raises(ValueError, match="text 25 is empty"):
        next(stream)
    subnets = [*["w1"] * 25, "w0.3", *["w1"] * 5]
    with pytest.raises(ValueError, match=r"sub-network 25: width_mult 0\.3"):
        list(engine.predict_iter(["good"] * 31, subnet=subnets, lookahead=10))
    broken = InferenceEngine(tiny_model(), tiny_tokenizer())
    word = broken.tokenizer.convert_tokens_to_ids("bad")
    with torch.no_grad():
        broken.model.encoder.embeddings.word_embeddings.weight[word] = float("nan")
    with pytest.raises(ValueError, match=r"for 1 of 10 texts \(the first: text 25,"):
        list(broken.predict_iter([*["good"] * 25, "bad", *["good"] * 5], lookahead=10))


def test_stream_refusals(engine: InferenceEngine) -> None:
    with pytest.raises(ValueError, match="lookahead is 0; allowed: 1 or more"):
        engine.predict_iter(["a"], lookahead=0)
    with pytest.raises(TypeError, match="an iterable of texts is needed; got str; for one text use predict"):
        engine.predict_iter("good")
    with pytest.raises(ValueError, match="the sub-networks ended at 1 and the texts go on"):
        list(engine.predict_iter(["good", "bad"], subnet=["w1"]))


def test_each_of_several_subnetworks(engine: InferenceEngine) -> None:
    texts = some_texts(700)  # more than are tokenised at once
    found = engine.predict_each(texts, SUBNETS)
    assert [len(answers) for answers in found] == [700] * len(SUBNETS)
    for name, answers in zip(SUBNETS, found, strict=True):
        assert {answer.subnet for answer in answers} == {engine.predict("good", subnet=name).subnet}
        for own, alone in zip(answers, engine.predict(texts, subnet=name), strict=True):
            assert own.logits == pytest.approx(alone.logits, abs=1e-5)
    assert engine.predict_each([], SUBNETS[:2]) == [[], []]
    (pairs,) = engine.predict_each([("good", "bad")], "w0.5")
    assert pairs == [engine.predict(("good", "bad"), subnet="w0.5")]


@pytest.mark.parametrize("texts", ["good", ("good", "bad"), b"good", None, {"good"}, {"good": 1}])
def test_each_takes_a_list_of_texts(engine: InferenceEngine, texts: Any) -> None:
    with pytest.raises(
        TypeError, match=r"predict_each: texts are no texts; got .*; allowed: a list of str or of pairs"
    ):
        engine.predict_each(texts, ["w1"])


def test_a_set_has_no_order(engine: InferenceEngine) -> None:
    """Its texts would meet the sub-networks in any order."""
    with pytest.raises(TypeError, match="texts are no texts; got set"):
        engine.predict({"good", "bad"})
    for subnets in ({"w1", "w0.5"}, {"w1": 1, "w0.5": 2}, b"w1"):
        with pytest.raises(TypeError, match=f"subnet must be a SubnetConfig.*; got {type(subnets).__name__}"):
            engine.predict(["good", "bad"], subnet=subnets)  # type: ignore[call-overload]
    answers = engine.predict({"good": 1, "bad": 2}.keys())
    assert answers == engine.predict(["good", "bad"])


def test_warm_up_of_one_subnetwork_and_of_texts_longer_than_a_batch() -> None:
    engine = InferenceEngine(tiny_model(), tiny_tokenizer(), max_batch_tokens=10)
    assert engine.warm_up("w0.5", lengths=[8]) == 1
    assert engine.warm_up(["w1", "w0.5"], lengths=[16], counts=[1, 2]) == 2  # alone; no two of them share a batch


def test_torchs_default_device_is_not_asked(engine: InferenceEngine, architecture: str) -> None:
    """A copy from a GPU that nobody waits for would be read too early."""
    engine = InferenceEngine(tiny_model(architecture), tiny_tokenizer(architecture))
    texts = some_texts(5)
    wanted = [engine.predict(texts, subnet=SUBNETS), engine.predict([texts[0]]), engine.predict([texts[0]])]
    with torch.device("meta"):
        assert [engine.predict(texts, subnet=SUBNETS), engine.predict([texts[0]]), engine.predict([texts[0]])] == wanted
        inputs = {
            "input_ids": torch.full((2, 3), 7, device="cpu"),
            "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]], device="cpu"),
        }
        with torch.no_grad():
            assert engine.model(**inputs, subnet=["w0.5", "w1"]).logits.isfinite().all()


# Threads and progress
# ---------------------------------------------------------------------------------------------------


def test_threads_with_different_subnetworks(engine: InferenceEngine) -> None:
    texts = some_texts(12)
    expected = {name: engine.predict(texts, subnet=name) for name in SUBNETS}
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(5):
            for found, own in zip(engine.predict(texts, subnet=name), expected[name], strict=True):
                if not np.allclose(found.logits, own.logits, atol=1e-5) or found.subnet != name:
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in SUBNETS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_progress_bar_only_when_asked_or_on_a_terminal(
    engine: InferenceEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["good"] * 300
    engine.predict(texts, subnet="w0.25-d0.5")
    assert capsys.readouterr().err == ""
    engine.predict(texts, subnet="w0.25-d0.5", progress=False)
    assert capsys.readouterr().err == ""
    engine.predict(texts, subnet="w0.25-d0.5", progress=True)
    assert "300/300" in capsys.readouterr().err


def test_no_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = InferenceEngine(tiny_model(), tiny_tokenizer(), max_batch_tokens=50)

    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.model, "packed_logits", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"batch of 5 tokens; give a smaller max_batch_tokens \(now 50\)"):
        engine.predict("the good film")
