"""Cascades: their text form, the engine's answers, the choice of one, and the command."""

from __future__ import annotations

import json
import random
import shlex
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynabert import Cascade, InferenceEngine, SubnetConfig
from dynabert.cli import main
from dynabert.configuration.cascade import as_cascade
from dynabert.data.examples import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from dynabert.engine import ElasticServer
from dynabert.engine.cascades import logit_sureness, sureness
from dynabert.profile.cascades import Way, _short, choose_cascade
from dynabert_kernels import SubnetShape
from tests.dynabert.tiny_texts import some_texts, tiny_folder, tiny_model, tiny_tokenizer

# The text form
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["w0.25-d0.5@0.9/w1-d1", "w0.25-l0,3@0.123456789/w0.5-d1@0.99999994/w1-d1", "h4,0,2,1-n40,0,7,3@0.5/w1-d1"],
)
def test_the_text_form_reads_back(text: str) -> None:
    assert str(Cascade.parse(text)) == text
    assert Cascade.parse(text) == as_cascade(text) == as_cascade(Cascade.parse(text))


def test_any_form_of_a_subnetwork() -> None:
    shape = SubnetShape.__new__(SubnetShape)
    object.__setattr__(shape, "heads", (4, 0))
    object.__setattr__(shape, "neurons", (8, 0))
    cascade = Cascade([SubnetConfig(0.5), shape, None], [0.8, np.float32(0.5)])
    assert str(cascade) == "w0.5-d1@0.8/h4,0-n8,0@0.5/w1-d1"
    assert str(Cascade(("w0.25", "w1"), 0.9)) == "w0.25-d1@0.9/w1-d1"
    assert len({cascade, Cascade.parse(str(cascade))}) == 1


@pytest.mark.parametrize(
    ("subnets", "least", "kind", "message"),
    [
        (["w1"], [], ValueError, r"1 sub-network\(s\); allowed: two or more"),
        (
            ["w0.5", "w1"],
            [0.9, 0.8],
            ValueError,
            "2 probabilities for 2 sub-networks; allowed: one for each but the last, 1",
        ),
        (["w1", None], 0.9, ValueError, "subnets are w1-d1, w1-d1; allowed: each once"),
        (["w0.5", "w1"], 1.0, ValueError, "least is 1; allowed: above 0 and below 1"),
        (["w0.5", "w1"], float("nan"), ValueError, "least is nan"),
        (["w0.5", "w1"], [True], TypeError, "least is True; allowed: numbers"),
        (["w0.5", "w1"], "9", TypeError, "least is '9'; allowed: numbers"),
        ("w0.5@0.9/w1", 0.9, TypeError, "subnets are str; allowed: a list"),
        (3, 0.9, TypeError, "subnets are int; allowed: a list"),
        (["w0.5", 3], 0.9, TypeError, "no sub-network; got int"),
    ],
)
def test_what_is_no_cascade(subnets: Any, least: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Cascade(subnets, least)


@pytest.mark.parametrize("text", ["w0.5@0.9", "w0.5/w1", "w0.5@/w1", "@0.9/w1", "w0.5@0.9/w1@0.8", "w0.5@1e-3/w1", "/"])
def test_text_that_is_no_cascade(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown cascade .*; allowed: .w0\.25-d0\.5@0\.9/w1"):
        Cascade.parse(text)


# The engine
# ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> InferenceEngine:
    return InferenceEngine(tiny_model(), tiny_tokenizer(), max_batch_tokens=40)


def texts(count: int = 60) -> list[Any]:
    return some_texts(count, seed=5)


@pytest.mark.parametrize("problem", [SINGLE_LABEL, MULTI_LABEL])
def test_each_text_is_answered_by_the_first_that_is_sure(problem: str) -> None:
    own = InferenceEngine(tiny_model(problem_type=problem), tiny_tokenizer(), max_batch_tokens=40)
    many = texts()
    steps = ("w0.25-d0.5", "w0.5-d0.75", "w1-d1")
    alone = {name: own.predict(many, name) for name in steps}

    def sure(answer: Any) -> float:
        values = list(answer.scores.values())
        return min(max(p, 1 - p) for p in values) if problem == MULTI_LABEL else max(values)

    first, second = (float(np.median([sure(answer) for answer in alone[name]])) for name in steps[:2])
    cascade = Cascade(steps, (first, second))
    wanted = [
        a if sure(a) >= first else b if sure(b) >= second else c
        for a, b, c in zip(*(alone[name] for name in steps), strict=True)
    ]
    assert {answer.subnet for answer in wanted} == set(steps)
    found = own.predict(many, cascade)
    assert [answer.subnet for answer in found] == [answer.subnet for answer in wanted]
    for answer, other in zip(found, wanted, strict=True):
        assert answer.logits == pytest.approx(other.logits, abs=1e-5)
        assert answer.labels == other.labels
    assert [answer.subnet for answer in own.predict(many, str(cascade))] == [answer.subnet for answer in wanted]
    streamed = own.predict_iter(iter(many), cascade, lookahead=7)
    assert [answer.subnet for answer in streamed] == [answer.subnet for answer in wanted]
    for index in (0, 7, 31):
        assert own.predict(many[index], cascade).subnet == wanted[index].subnet
    both = own.predict_each(many, [cascade, "w0.5"])
    assert [answer.subnet for answer in both[0]] == [answer.subnet for answer in wanted]
    assert {answer.subnet for answer in both[1]} == {"w0.5-d1"}
    assert own.predict([], cascade) == []
    assert own.warm_up([cascade, "w0.75"], lengths=(4,)) == 5


def test_a_file_by_a_cascade(engine: InferenceEngine, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in texts(20)))
    cascade = Cascade(("w0.25-d0.5", "w1"), 0.6)
    summary = engine.predict_file(tmp_path / "in.txt", tmp_path / "out.jsonl", subnets=[cascade, "w1"])
    assert summary.subnets == ("w0.25-d0.5@0.6/w1-d1", "w1-d1")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    wanted = engine.predict(texts(20), cascade)
    assert [row["predicted_label@w0.25-d0.5@0.6/w1-d1"] for row in rows] == [answer.label for answer in wanted]


def test_where_a_cascade_cannot_stand(engine: InferenceEngine) -> None:
    with pytest.raises(ValueError, match=r"sub-network 1: .* is a cascade; allowed here: one sub-network"):
        engine.predict(["the film", "a story"], ["w1", Cascade(("w0.25", "w1"), 0.9)])
    with pytest.raises(ValueError, match=r"width_mult 0.3 is 1.2 of 4 heads"):
        engine.predict(["the film"], Cascade(("w0.3", "w1"), 0.9))
    for some in (["the film"], []):  # also where no text goes on to it
        with pytest.raises(ValueError, match=r"width_mult 0.3 is 1.2 of 4 heads"):
            engine.predict(some, Cascade(("w0.25", "w0.3"), 1e-9))
    with pytest.raises(ValueError, match="is a cascade; allowed here: one sub-network"):
        ElasticServer(engine, ["w1", Cascade(("w0.25", "w1"), 0.9)], promise_ms=50)  # type: ignore[list-item]
    numbers = InferenceEngine(tiny_model(problem_type=REGRESSION, num_labels=1), tiny_tokenizer())
    with pytest.raises(ValueError, match=r"this model's answers are numbers \(regression\); give one sub-network"):
        numbers.predict("the film", Cascade(("w0.25", "w1"), 0.9))
    with ElasticServer(numbers, ["w1"], promise_ms=1000) as server, pytest.raises(ValueError, match="are numbers"):
        server.ask("the film", "w0.25@0.9/w1")
    with pytest.raises(ValueError, match="predict: text 1 "):
        engine.predict(["the film", ""], Cascade(("w0.25", "w1"), 0.9))


def test_a_fault_of_a_later_step_names_the_text_as_the_caller_counts(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():  # only in the last head, which a quarter of the width has not
        model.encoder.layers[0].qkv_bias[-1] = float("nan")
    engine = InferenceEngine(model, tiny_tokenizer())
    found = sorted(set(some_texts(40)), key=lambda text: engine.predict(text, "w0.25").score, reverse=True)
    least = engine.predict(found[12], "w0.25").score  # from the 13th on, the whole network is asked
    asked = Cascade(("w0.25", "w1"), least + 1e-9)
    wrong = rf"for {len(found) - 12} of {len(found) - 12} texts \(the first: text 12, sub-network w1-d1\)"
    with pytest.raises(ValueError, match=wrong):
        engine.predict(found, asked)
    with pytest.raises(ValueError, match=r"texts \(the first: text 12, sub-network w1-d1\)"):
        list(engine.predict_iter(found, asked, lookahead=10))
    (tmp_path / "in.txt").write_text("\n".join(found) + "\n", encoding="utf-8")
    for subnets in (asked, ["w0.25", asked]):
        with pytest.raises(ValueError, match=r"in\.txt: .*\(the first: the text of line 13, sub-network w1-d1\)"):
            engine.predict_file(tmp_path / "in.txt", tmp_path / "out.csv", subnets=subnets, lookahead=10)


# The server
# ----------------------------------------------------------------------------------------------------------------


def test_a_server_asks_again_where_an_answer_is_unsure(engine: InferenceEngine) -> None:
    many = texts()
    alone = engine.predict(many, "w0.25-d0.5")
    cascade = Cascade(("w0.25-d0.5", "w0.5-d0.75", "w1"), (float(np.median([one.score for one in alone])), 0.6))
    wanted = engine.predict(many, cascade)
    assert len({one.subnet for one in wanted}) == 3
    with ElasticServer(engine, ["w1", "w0.5"], promise_ms=60_000) as server:
        futures = [server.ask(text, cascade) for text in many]
        plain = [server.ask(text, "w0.75") for text in many[:5]]
        found = [future.result(timeout=60) for future in futures]
        assert [one.subnet for one in found] == [one.subnet for one in wanted]
        for one, other in zip(found, wanted, strict=True):
            assert one.logits == pytest.approx(other.logits, abs=1e-5)
        assert {future.result(timeout=60).subnet for future in plain} == {"w0.75-d1"}
        stats = server.stats()
    assert (stats.answered, stats.failed, stats.waiting) == (len(many) + 5, 0, 0)
    assert stats.by_subnet == {**dict(Counter(one.subnet for one in wanted)), "w0.75-d1": 5}
    assert server._queue.usual.tokens == 0
    assert server._queue.usual.fixed_tokens == pytest.approx(0.0, abs=1e-6)


def test_unsure_requests_go_before_what_came_later_and_closing_answers_them(engine: InferenceEngine) -> None:
    never = Cascade(("w0.25", "w0.5", "w1"), (1 - 1e-9, 1 - 1e-9))
    entered, go_on = threading.Event(), threading.Event()
    batches: list[list[str]] = []
    plain = engine.logits

    def slow(encoded: Any, subnets: Any, **options: Any) -> Any:
        batches.append([str(one) for one in subnets])
        entered.set()
        go_on.wait(60)
        return plain(encoded, subnets, **options)

    server = ElasticServer(engine, ["w1"], promise_ms=60_000, max_batch_tokens=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "logits", slow)
        first = server.ask("film", never)
        entered.wait(60)
        later = [server.ask("story", "w0.75") for _ in range(2)]
        assert not first.cancel()  # its batch runs
        go_on.set()
        server.close()  # answers what waits, and what has to be asked again
    assert first.result(timeout=0).subnet == "w1-d1"
    assert [one.result(timeout=0).subnet for one in later] == ["w0.75-d1"] * 2
    assert batches == [["w0.25-d1"], ["w0.5-d1"], ["w1-d1"], ["w0.75-d1"], ["w0.75-d1"]]


def test_a_later_step_that_fails_is_told(engine: InferenceEngine) -> None:
    plain = engine.logits

    def broken(encoded: Any, subnets: Any, **options: Any) -> Any:
        if "w1-d1" in subnets:
            raise RuntimeError("lost")
        return plain(encoded, subnets, **options)

    with ElasticServer(engine, ["w0.5"], promise_ms=60_000) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "logits", broken)
        lost = server.ask("film", Cascade(("w0.25", "w1"), 1 - 1e-9))
        kept = server.ask("film", Cascade(("w0.25", "w0.75"), 1 - 1e-9))
        with pytest.raises(RuntimeError, match="lost"):
            lost.result(timeout=60)
        assert kept.result(timeout=60).subnet == "w0.75-d1"
        assert server.stats().failed == 1


def test_unsure_requests_keep_their_order_where_a_batch_failed(engine: InferenceEngine) -> None:
    """After a batch that failed each of its requests runs alone; those that go on do so in the order they came in."""
    cascade = Cascade(("w0.25", "w1"), 1 - 1e-9)
    held, go_on = threading.Event(), threading.Event()
    seen: list[tuple[str, int]] = []
    plain = engine.logits

    def broken(encoded: Any, subnets: Any, **options: Any) -> Any:
        if not held.is_set():
            held.set()
            go_on.wait(60)
        elif len(subnets) > 1:
            raise RuntimeError("lost")
        else:
            seen.append((str(subnets[0]), encoded.lengths[0]))
        return plain(encoded, subnets, **options)

    with ElasticServer(engine, ["w1"], promise_ms=60_000) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "logits", broken)
        first = server.ask("film")
        held.wait(60)
        later = [server.ask(" ".join(["film"] * count), cascade) for count in (1, 2, 3)]
        go_on.set()
        assert [one.result(timeout=60).subnet for one in (first, *later)] == ["w1-d1"] * 4
    assert [length for name, length in seen if name == "w0.25-d1"] == [3, 4, 5]
    assert [length for name, length in seen if name == "w1-d1"] == [3, 4, 5]


# The choice
# ----------------------------------------------------------------------------------------------------------------

MS = {"w1-d1": 10.0, "w0.5-d1": 5.0, "w0.25-d0.5": 1.0}


def table(count: int = 400, seed: int = 0) -> tuple[dict[str, Any], Any]:
    """Logits of three classes: the cheap sub-network is right where it is sure."""
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 3, count)
    hard = chance.random(count) < 0.3
    logits = {name: chance.normal(0.0, 0.3, (count, 3)) for name in MS}
    rows = np.arange(count)
    logits["w1-d1"][rows, labels] += 3.0
    logits["w0.5-d1"][rows, labels] += np.where(hard, 0.5, 3.0)
    logits["w0.25-d0.5"][rows, labels] += np.where(hard, 0.0, 3.0)
    return logits, labels


def scored(labels: Any) -> Any:
    return lambda logits, rows: float((logits.argmax(axis=1) == labels[rows]).mean())


def test_the_choice_is_the_best_of_all() -> None:
    logits, labels = table()
    score = scored(labels)
    everything = np.arange(len(labels))
    choice = choose_cascade(logits, MS, score, SINGLE_LABEL, max_ms=5.0)
    # Every pair at every threshold there can be, and each alone.
    best = max(score(logits[name], everything) for name in MS if MS[name] <= 5.0)
    assert choice.single is not None
    assert choice.single.score == best
    assert (str(choice.single), choice.single.ms) == ("w0.5-d1", 5.0)
    for first in MS:
        sure = logit_sureness(logits[first], SINGLE_LABEL)
        for second in MS:
            for least in np.unique(sure):
                goes_on = sure < least
                if MS[first] < MS[second] and MS[first] + goes_on.mean() * MS[second] <= 5.0:
                    best = max(best, score(np.where(goes_on[:, None], logits[second], logits[first]), everything))
    chosen = choice.chosen
    assert chosen.subnets == ("w0.25-d0.5", "w1-d1")
    assert best - 0.005 <= chosen.score <= best
    assert choice.single.score + 0.02 < chosen.score
    # Its figures are those of what it does.
    assert chosen.least is not None
    goes_on = logit_sureness(logits["w0.25-d0.5"], SINGLE_LABEL) < chosen.least
    assert chosen.share == goes_on.mean()
    assert chosen.ms == pytest.approx(1.0 + 10.0 * goes_on.mean())
    assert chosen.worst_ms == 11.0
    merged = np.where(goes_on[:, None], logits["w1-d1"], logits["w0.25-d0.5"])
    assert chosen.score == score(merged, everything)
    assert abs(choice.held_out.score - chosen.score) < 0.02
    assert choice.held_out.ms == pytest.approx(chosen.ms, rel=0.2)
    assert choice.single_held_out is not None
    assert choice.single_held_out.score == choice.single.score


def test_the_cheapest_that_keeps_the_score() -> None:
    logits, labels = table()
    choice = choose_cascade(logits, MS, scored(labels), SINGLE_LABEL, min_retention=0.98)
    assert choice.chosen.least is not None
    assert choice.chosen.score >= 0.98 * choice.whole.score
    assert choice.chosen.ms < 5.0
    assert str(choice.single) == "w1-d1"
    both = choose_cascade(logits, MS, scored(labels), SINGLE_LABEL, min_retention=0.98, max_ms=8.0)
    assert both.chosen.score >= choice.chosen.score
    assert both.single is None
    assert both.single_held_out is None


def test_a_subnetwork_alone_where_no_cascade_is_better() -> None:
    chance = np.random.default_rng(1)
    labels = chance.integers(0, 2, 200)
    exact = np.eye(2)[labels] * 5.0
    logits = {"w1-d1": exact, "w0.25-d0.5": exact, "w0.5-d1": chance.normal(size=(200, 2))}
    choice = choose_cascade(logits, MS, scored(labels), SINGLE_LABEL, min_retention=1.0)
    assert (str(choice.chosen), choice.chosen.least, choice.chosen.share) == ("w0.25-d0.5", None, 0.0)
    assert choice.held_out.score == 1.0


def test_luck_is_not_counted() -> None:
    """Of answers by chance the best way looks better than it is; on other texts it does not."""
    chance = np.random.default_rng(2)
    chosen, other = [], []
    times = {"w1-d1": 10.0} | {f"w0.5-l{index}": 1.0 + index for index in range(6)}
    for seed in range(4):
        labels = chance.integers(0, 2, 200)
        logits = {name: chance.normal(size=(200, 2)) for name in times}
        choice = choose_cascade(logits, times, scored(labels), SINGLE_LABEL, max_ms=20.0, seed=seed)
        chosen.append(choice.chosen.score)
        other.append(choice.held_out.score)
    assert np.mean(chosen) > 0.54
    assert np.mean(other) < np.mean(chosen) - 0.02
    again = choose_cascade(logits, times, scored(labels), SINGLE_LABEL, max_ms=20.0, seed=seed)
    assert (again.chosen, again.held_out) == (choice.chosen, choice.held_out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no limit; give max_ms, min_retention or both"),
        ({"max_ms": 0.5}, "max_ms is 0.5, and the cheapest sub-network takes 1 ms"),
        ({"max_ms": float("nan")}, "max_ms is nan"),
        ({"min_retention": 1.5}, "min_retention is 1.5; allowed"),
        ({"min_retention": 0.9, "folds": 1}, "1 folds of 400 texts"),
        ({"min_retention": 0.9, "whole": "w2"}, "no logits of w2, the whole network"),
        (
            {"min_retention": 0.999, "max_ms": 1.5},
            "nothing keeps 99.9 % of the whole network's score in 1.5 ms; nearest",
        ),
        ({"ms": {"w1-d1": 1.0}, "max_ms": 2.0}, "no time of w0.5-d1, w0.25-d0.5"),
        ({"problem": REGRESSION, "max_ms": 5.0}, "regression"),
        ({"score": lambda *_: -0.1, "min_retention": 0.5}, "the whole network scores -0.1"),
    ],
)
def test_refused_choices(changes: dict[str, Any], message: str) -> None:
    logits, labels = table()
    given = {"ms": MS, "score": scored(labels), "problem": SINGLE_LABEL} | changes
    with pytest.raises(ValueError, match=message):
        choose_cascade(logits, given.pop("ms"), given.pop("score"), given.pop("problem"), **given)
    with pytest.raises(ValueError, match="logits have shapes"):
        choose_cascade(logits | {"w0.5-d1": np.zeros((3, 3))}, MS, scored(labels), SINGLE_LABEL, max_ms=5.0)


def test_a_short_probability_stays_one() -> None:
    for value in (0.5, 0.123456, 0.9994321, 0.99999994, 1.0, 1.0 - 1e-12):
        short = _short(value)
        assert 0.0 < short < 1.0
        assert abs(short - value) <= max(5e-4 * value, 1e-9)
        assert 1.0 - short == pytest.approx(max(1.0 - value, 1e-9), rel=0.2)
        Cascade.parse(str(Way(("w0.5", "w1"), short, 0.1, 1.0, 2.0, 0.5)))


def test_sureness_goes_by_the_threshold_of_several_labels() -> None:
    """A label that is assigned at 0.4 is a decision of probability 0.4, not of 0.6."""
    scores = np.array([[0.4, 0.1], [0.2, 0.9]])
    assert sureness(scores, MULTI_LABEL, 0.3).tolist() == [0.4, 0.8]
    assert logit_sureness(np.log(scores / (1 - scores)), MULTI_LABEL, 0.3) == pytest.approx([0.4, 0.8])
    engine = InferenceEngine(tiny_model(problem_type=MULTI_LABEL), tiny_tokenizer(), threshold=0.2)
    many = texts()
    doubts = [min(p if p >= 0.2 else 1 - p for p in one.scores.values()) for one in engine.predict(many, "w0.25-d0.5")]
    cascade = Cascade(("w0.25-d0.5", "w1"), float(np.median(doubts)))
    wanted = ["w0.25-d0.5" if doubt >= cascade.least[0] else "w1-d1" for doubt in doubts]
    assert [one.subnet for one in engine.predict(many, cascade)] == wanted
    with ElasticServer(engine, ["w1"], promise_ms=60_000) as server:
        futures = [server.ask(text, cascade) for text in many]
        assert [future.result(timeout=60).subnet for future in futures] == wanted


def test_sureness_of_several_labels() -> None:
    assert sureness(np.array([[0.9, 0.2], [0.5, 0.99]]), MULTI_LABEL).tolist() == [0.8, 0.5]
    logits = np.array([[800.0, -800.0], [0.0, 3.0]])
    assert logit_sureness(logits, MULTI_LABEL).tolist() == [1.0, 0.5]
    assert logit_sureness(logits, SINGLE_LABEL) == pytest.approx([1.0, 1 / (1 + np.exp(-3.0))])


# The command
# ----------------------------------------------------------------------------------------------------------------


def write_tsv(path: Path, count: int) -> Path:
    rng = random.Random(3)
    rows = [f"{text}\tLABEL_{rng.randrange(3)}" for text in some_texts(count, seed=5)]
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return path


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = tiny_folder(tmp_path / "model"), write_tsv(tmp_path / "dev.tsv", 120)
    given = ["cascade", "--model_name_or_path", str(model), "--file", str(file), "--seq_length", "8", "--rounds", "3"]
    out = tmp_path / "cascade.json"
    assert main([*given, "--max_latency_ms", "1000", "--check", "10", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    results = json.loads(out.read_text())
    chosen = results["chosen"]["subnet"]
    assert f"chosen: {chosen}\n" in shown.out
    assert f"--subnet {chosen} 'A text.'" in shown.out
    assert results["examples"] == 120
    assert results["chosen"]["score"] >= results["single"]["score"] >= results["whole"]["score"]
    assert results["checked"]["texts"] == 10
    assert set(results["checked"]["mean_ms"]) >= {chosen, "w1-d1"}
    assert main(["predict", "--model_name_or_path", str(model), "--subnet", chosen, "--json", "the good film"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["predictions"][0]["subnet"] in chosen
    assert main([*given, "--min_retention", "0.9", "--subnets", "w0.5,w0.25-d0.5", "--check", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checked"] is None


def test_the_printed_command_has_what_the_choice_rests_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = tiny_folder(tmp_path / "model"), write_tsv(tmp_path / "dev.tsv", 30)
    argv = ["cascade", "--model_name_or_path", str(model), "--file", str(file), "--min_retention", "0.5"]
    argv += ["--rounds", "1", "--check", "0", "--dtype", "bfloat16", "--max_seq_length", "9", "--truncate"]
    assert main(argv) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    chosen = said.split("--subnet ")[1].split()[0]
    wanted = f"--subnet {chosen} --dtype bfloat16 --max_seq_length 9 --truncate 'A text.'"
    assert said == f"run it: dynabert predict --model_name_or_path {model} {wanted}"
    assert main(shlex.split(said.partition("dynabert ")[2])) == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "give --max_latency_ms, --min_retention or both"),
        (["--min_retention", "98"], 2, "--min_retention is 98.0; allowed: above 0, up to 1"),
        (["--max_latency_ms", "nan"], 2, "--max_latency_ms is nan"),
        (["--min_retention", "0.9", "--any_device"], 2, "--any_device belongs to --profile"),
        (["--min_retention", "0.9", "--check", "-1"], 2, "--check is -1; allowed: 0 or more"),
        (["--min_retention", "0.9", "--out", "no/where.json"], 2, "is no place for a file"),
        (
            ["--max_latency_ms", "1e-5", "--rounds", "1"],
            1,
            "--max_latency_ms is 1e-05; the cheapest of the sub-networks",
        ),
        (["--min_retention", "0.9", "--subnets", "w1"], 1, "a cascade needs another sub-network beside w1-d1"),
        (["--min_retention", "0.9", "--max_samples", "5"], 1, "has 5 examples; needed: 10 or more"),
    ],
)
def test_what_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    model, file = tiny_folder(tmp_path / "model"), write_tsv(tmp_path / "dev.tsv", 30)
    assert main(["cascade", "--model_name_or_path", str(model), "--file", str(file), *options]) == code
    assert message in capsys.readouterr().err
