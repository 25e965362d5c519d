"""A model whose weights were packed for inference: the same answers, the same memory, and no other use."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import dynabert_kernels as dk
from dynabert import ElasticBertForSequenceClassification, InferenceEngine
from dynabert.rewiring import undo_rewiring
from tests.dynabert.test_engine import SUBNETS, some_texts
from tests.dynabert.test_modeling import LENGTHS, elastic
from tests.dynabert.tiny_networks import padded_batch, plain_model
from tests.dynabert.tiny_texts import tiny_folder, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(not dk.packed_panel(torch.float32), reason="no weights are packed on this machine")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_of_every_subnetwork(architecture: str, dtype: torch.dtype) -> None:
    if not dk.packed_panel(dtype):
        pytest.skip(f"{dtype} is not packed on this processor")
    plain = plain_model(architecture)
    batch = padded_batch(plain, LENGTHS)
    model = elastic(plain).to(dtype)
    packed = copy.deepcopy(model).pack_weights()
    assert packed.has_packed_weights
    assert not model.has_packed_weights
    with torch.inference_mode():
        for subnet in ["w1", "w0.5-d0.5", "w0.25-l0,2", ["w1", "w0.5", "w0.25-d0.5", "w0.75"] * len(LENGTHS)]:
            chosen = subnet[: len(LENGTHS)] if isinstance(subnet, list) else subnet
            found, wanted = packed(**batch, subnet=chosen).logits, model(**batch, subnet=chosen).logits
            assert torch.equal(found, wanted), subnet


def test_packed_weights_take_the_place_of_the_plain_ones() -> None:
    model = elastic(plain_model("bert", hidden_size=64, intermediate_size=256))

    def held() -> int:
        return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])

    before = held()
    model.pack_weights()
    assert before <= held() <= 1.01 * before
    assert model.pack_weights() is model  # again: nothing
    assert all(not name.endswith(("qkv_weight", "ffn_in_weight")) for name, _ in model.named_parameters())


@pytest.fixture
def packed() -> ElasticBertForSequenceClassification:
    return elastic(plain_model("bert")).pack_weights()


def test_no_other_use(packed: ElasticBertForSequenceClassification, tmp_path: Path) -> None:
    batch = padded_batch(plain_model("bert"), LENGTHS)
    with pytest.raises(RuntimeError, match="packed for inference: it computes no gradients"):
        packed(**batch)
    with torch.no_grad(), pytest.raises(RuntimeError, match="no state of each layer"):
        packed(**batch, output_hidden_states=True)
    with pytest.raises(RuntimeError, match="cannot be saved, copied out or rewired"):
        packed.save_pretrained(tmp_path / "saved")
    with pytest.raises(RuntimeError, match="cannot be saved"):
        packed.state_dict()
    with pytest.raises(RuntimeError, match="cannot be saved"):
        packed.extract("w0.5")
    with pytest.raises(ValueError, match=r"packed for inference; load it anew with pack_weights=False"):
        undo_rewiring(packed)
    with pytest.raises(RuntimeError, match="in training mode; packed weights do not train"):
        elastic(plain_model("bert")).train().pack_weights()
    with pytest.raises(ValueError, match="the model is on meta; allowed: the CPU"):
        elastic(plain_model("bert")).to("meta").pack_weights()
    with pytest.raises(RuntimeError, match="packed for inference and cannot be moved or converted"):
        packed.to(torch.bfloat16)
    half = elastic(plain_model("bert")).half().pack_weights()
    assert not half.has_packed_weights  # float16 stays as it is, and runs
    with torch.no_grad():
        assert half(**batch).logits.isfinite().all()


def test_the_engine_packs_by_itself(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    engine = InferenceEngine.from_pretrained(folder)
    plain = InferenceEngine.from_pretrained(folder, pack_weights=False)
    assert engine.model.has_packed_weights
    assert not plain.model.has_packed_weights
    texts = some_texts(9)
    for subnet in SUBNETS:
        assert engine.predict(texts, subnet=subnet) == plain.predict(texts, subnet=subnet)
    plain.model.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_instruction_set_gives_the_same_answers(tmp_path: Path, dtype: str) -> None:
    """As on a machine without AVX-512, or without AVX at all."""
    assert dk.NATIVE is not None
    folder, texts = tiny_folder(tmp_path / "model"), some_texts(8)
    answers: dict[str, list[float]] = {}
    try:
        for isa in dk.NATIVE.cpu_features()["available"]:
            dk.NATIVE.set_cpu_isa(isa)
            engine = InferenceEngine.from_pretrained(folder, dtype=dtype)
            assert engine.model.has_packed_weights == bool(dk.packed_panel(engine.dtype))
            answers[isa] = [number for one in engine.predict(texts, subnet=SUBNETS[1]) for number in one.logits]
    finally:
        dk.NATIVE.set_cpu_isa("auto")
    for found in answers.values():
        assert found == pytest.approx(answers["generic"], abs=1e-5 if dtype == "float32" else 0.1)


def test_parametrised_weights_are_refused_before_anything_is_packed() -> None:
    class Half(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 0.5

    model = elastic(plain_model("bert")).float().eval()
    layer = model.encoder.layers[1]
    torch.nn.utils.parametrize.register_parametrization(layer, "ffn_in_weight", Half())
    for pack in (model.pack_weights, model.quantise_weights):
        with pytest.raises(RuntimeError, match=r"layer 1 has parametrised weights \(ffn_in_weight\)"):
            pack()
        assert not model.has_packed_weights
    torch.nn.utils.parametrize.remove_parametrizations(layer, "ffn_in_weight")
    assert model.pack_weights() is model


@pytest.mark.parametrize("make", ["pack_weights", "quantise_weights"])
def test_no_other_weights_are_loaded_not_even_in_part(make: str) -> None:
    batch = padded_batch(plain_model("bert"), LENGTHS)
    model = getattr(elastic(plain_model("bert")), make)()
    other = elastic(plain_model("bert", seed=1))
    with torch.inference_mode():
        wanted = model(**batch).logits
    plain_names = {name: torch.zeros(1) for name in ("bert.embeddings.word_embeddings.weight", "classifier.weight")}
    encoder, layers = model.encoder, model.encoder.layers
    for load in (
        lambda: model.load_state_dict(other.state_dict()),
        lambda: model.load_state_dict(other.state_dict(), strict=False),
        lambda: model.load_state_dict(other.state_dict(), strict=False, assign=True),
        lambda: model.load_state_dict(plain_names, strict=False),
        lambda: encoder.load_state_dict(other.encoder.state_dict(), strict=False),
        lambda: layers.load_state_dict(other.encoder.layers.state_dict(), strict=False),
        lambda: layers[0].load_state_dict(other.encoder.layers[0].state_dict(), strict=False),
        lambda: torch.nn.ModuleList([model]).load_state_dict(torch.nn.ModuleList([other]).state_dict(), strict=False),
    ):
        with pytest.raises(RuntimeError, match="for inference and no others can be loaded into it; load them into a"):
            load()
        with torch.inference_mode():
            assert torch.equal(model(**batch).logits, wanted)


def test_a_layer_that_cannot_be_packed_leaves_all_of_them_plain() -> None:
    for change, told in (
        (lambda layer: layer.bfloat16(), r"qkv_weight of layer 2 is torch\.bfloat16, the model is torch\.float32"),
        (lambda layer: layer.to("meta"), "qkv_weight of layer 2 is on meta; allowed: the CPU"),
        (
            lambda layer: setattr(layer, "ffn_out_weight", torch.nn.Parameter(torch.zeros(3, 4))),
            r"layer 2: ffn_out_weight has shape \(3, 4\)",
        ),
    ):
        model = elastic(plain_model("bert"))
        change(model.encoder.layers[2])
        with pytest.raises(ValueError, match=f"pack_weights: .*{told}"):
            model.pack_weights()
        assert not model.has_packed_weights


@pytest.mark.parametrize("make", ["pack_weights", "quantise_weights"])
def test_a_compiler_is_named_where_it_is_the_cause(make: str) -> None:
    model = getattr(elastic(plain_model("bert")), make)()
    batch, plan = model.pack([[5] * 7, [6] * 3], subnet=["w0.5", "w1"])
    torch._dynamo.reset()
    with torch.inference_mode():
        wanted = model(batch=batch, plan=plan).logits
        # Where a part may stay uncompiled, the whole does.
        assert torch.equal(torch.compile(model, backend="eager")(batch=batch, plan=plan).logits, wanted)
        torch._dynamo.reset()
        with pytest.raises(RuntimeError, match="for inference and cannot be compiled; call the model without"):
            torch.compile(model, backend="eager", fullgraph=True)(batch=batch, plan=plan)
    torch._dynamo.reset()


def test_a_model_that_serves_may_be_packed() -> None:
    """Two threads ask, two pack, and the interpreter changes threads all the time: nobody meets a half packed model."""
    texts, switches, errors = some_texts(3), sys.getswitchinterval(), list[BaseException]()
    sys.setswitchinterval(1e-5)
    try:
        for seed in range(6):
            model = tiny_model(seed=seed, num_hidden_layers=8, hidden_size=64, intermediate_size=256)
            engine, stop = InferenceEngine(model, tiny_tokenizer()), threading.Event()
            wanted = [answer.label for answer in engine.predict(texts)]

            def guarded(work: Callable[[], object]) -> None:
                try:
                    work()
                except BaseException as error:
                    errors.append(error)

            def ask(engine: InferenceEngine, stop: threading.Event, wanted: list[str | None]) -> None:
                while not stop.is_set():
                    assert [answer.label for answer in engine.predict(texts)] == wanted

            asking = [
                threading.Thread(target=guarded, args=(partial(ask, engine, stop, wanted),), daemon=True)
                for _ in range(2)
            ]
            packing = [threading.Thread(target=guarded, args=(model.pack_weights,)) for _ in range(2)]
            for thread in [*asking, *packing]:
                thread.start()
            for thread in packing:
                thread.join()
            stop.set()
            for thread in asking:
                thread.join()
            assert model.has_packed_weights
            assert errors == []
    finally:
        sys.setswitchinterval(switches)
