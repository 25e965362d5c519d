"""From ids to logits in one call: bit for bit what the three ops give, with weights of every kind, on any threads."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import EmbeddingWeights, HeadWeights, PackedBatch, Plan
from dynabert_kernels.ops import providers
from tests.kernels.test_elastic_encoder import PLANS, WIDTH, biases, network

NAME = "elastic_classifier"
PROVIDERS = ["reference", *(["cpu"] if "cpu" in providers.registered()[NAME] else [])]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
VOCABULARY, PLACES, LABELS = 50, 32, 3


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def some(seed: int, dtype: torch.dtype, *sizes: int) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return (torch.randn(*sizes, generator=drawn, dtype=torch.float64) * 0.3).to(dtype)


def embedding(dtype: torch.dtype, *, types: bool = True) -> EmbeddingWeights:
    return EmbeddingWeights(
        some(1, dtype, VOCABULARY, WIDTH),
        some(2, dtype, PLACES, WIDTH),
        some(3, dtype, 2, WIDTH) if types else None,
        some(4, dtype, WIDTH) + 1,
        some(5, dtype, WIDTH),
    )


def head(dtype: torch.dtype, *, dense: bool = True) -> HeadWeights:
    pair = (some(6, dtype, WIDTH, WIDTH), some(7, dtype, WIDTH)) if dense else (None, None)
    return HeadWeights(*pair, some(8, dtype, LABELS, WIDTH), some(9, dtype, LABELS))


def batch(name: str, *, types: bool = True) -> tuple[PackedBatch, Plan]:
    shapes, lengths, bucket = PLANS[name]
    drawn = torch.Generator().manual_seed(11)
    texts = [torch.randint(0, VOCABULARY, (n,), generator=drawn).tolist() for group in lengths for n in group]
    kinds = [[i % 2 for i in range(len(text))] for text in texts] if types else None
    return PackedBatch.from_lists(texts, token_type_ids=kinds, row_bucket=bucket), Plan.build(
        shapes, lengths, row_bucket=bucket
    )


def layers_of(kind: str, dtype: torch.dtype) -> Any:
    plain = network(dtype)
    if kind == "plain":
        return plain
    if kind == "packed":
        if not dk.packed_panel(dtype):
            pytest.skip(f"weights of {dtype} are not packed here")
        return [dk.pack_layer(layer) for layer in plain]
    if dtype not in (torch.float32, torch.bfloat16):
        pytest.skip("int8 runs with float32 and bfloat16")
    return [dk.quantise_layer(layer, dtype) for layer in network(torch.float32)]


def three_ops(
    given: PackedBatch,
    plan: Plan,
    tables: EmbeddingWeights,
    layers: Any,
    last: HeadWeights,
    *,
    position_biases: Sequence[Tensor] = (),
    **options: Any,
) -> Tensor:
    x = dk.embed_layer_norm(given.input_ids, given.position_ids, given.token_type_ids, *tables, eps=1e-5)
    encoder: Any = dk.elastic_encoder_int8 if isinstance(layers[0], dk.Int8LayerWeights) else dk.elastic_encoder
    y = encoder(x, layers, given.cu_seqlens, plan, position_biases=position_biases, eps=1e-5, **options)
    return dk.classification_head(y, given.cu_seqlens, *last)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["plain", "packed", "int8"])
def test_bit_for_bit_what_the_three_ops_give(provider: str, name: str, dtype: torch.dtype, kind: str) -> None:
    """With and without token types, a dense map, position biases; the activation is passed on."""
    layers = layers_of(kind, dtype)
    for whole in (True, False):
        given, plan = batch(name, types=whole)
        tables, last = embedding(dtype, types=whole), head(dtype, dense=whole)
        options: dict[str, Any] = {"activation": "gelu" if whole else "relu"}
        if whole:
            options["position_biases"] = biases(plan, dtype)
        with dk.use_provider(provider):
            wanted = three_ops(given, plan, tables, layers, last, **options)
            found = dk.elastic_classifier(given, plan, tables, layers, last, eps=1e-5, **options)
        assert found.shape == (given.num_sequences, LABELS)
        assert found.dtype == dtype
        assert torch.equal(found, wanted)


@pytest.mark.skipif("cpu" not in PROVIDERS, reason="the native library is not built")
@pytest.mark.parametrize("kind", ["plain", "packed", "int8"])
@pytest.mark.parametrize("threads", [2, 3, 7, 16])
def test_threads_change_nothing(kind: str, threads: int) -> None:
    """More threads than cores, and more than there are tasks: each launch ends, and every bit is the same."""
    layers = layers_of(kind, torch.float32)
    for name in PLANS:
        given, plan = batch(name)
        arguments = (given, plan, embedding(torch.float32), layers, head(torch.float32))
        torch.set_num_threads(1)
        wanted = dk.elastic_classifier(*arguments)
        torch.set_num_threads(threads)
        for _ in range(5):
            assert torch.equal(dk.elastic_classifier(*arguments), wanted)


@pytest.mark.parametrize("kind", ["plain", "packed", "int8"])
def test_where_the_op_is_not_there_the_three_ops_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the op itself must not be called, and the answer is that of the three."""
    given, plan = batch("mixed")
    tables, layers, last = embedding(torch.float32), layers_of(kind, torch.float32), head(torch.float32)
    has = providers.has

    def called(*_: Any) -> Tensor:
        raise AssertionError("elastic_classifier was called")

    monkeypatch.setattr(providers, "has", lambda op, name: op != NAME and has(op, name))
    module = sys.modules["dynabert_kernels.ops.elastic_classifier"]  # the package's attribute is the function
    monkeypatch.setattr(module, "_classifier", called)
    with dk.use_provider("reference"):
        found = dk.elastic_classifier(given, plan, tables, layers, last, eps=1e-5)
        assert torch.equal(found, three_ops(given, plan, tables, layers, last))


def test_the_op_holds_to_pytorchs_rules() -> None:
    given, plan = batch("mixed")
    flat = [tensor for layer in network(torch.float32) for tensor in layer]
    ids = (given.input_ids, given.position_ids, given.token_type_ids)
    numbers = (plan.num_groups, list(plan.max_heads), list(plan.max_neurons), plan.max_seqlen, 0.25, 1e-5, 1, 0)
    tables = embedding(torch.float32)
    arguments = (*ids, *tables, flat, [], *head(torch.float32), given.cu_seqlens, plan.table, *numbers)
    torch.library.opcheck(torch.ops.dynabert.elastic_classifier.default, arguments)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_plan_that_leaves_a_text_out(provider: str) -> None:
    """Rounded up to a bucket it has as many rows as the batch: the text would be answered by the head's bias alone."""
    given = PackedBatch.from_lists([[1, 2, 3], [4]], row_bucket=8)
    plan = Plan.build([PLANS["whole"][0][0]], [[3]], row_bucket=8)
    tables, layers, last = embedding(torch.float32, types=False), network(torch.float32), head(torch.float32)
    told = "the batch has 4 tokens and the plan's groups 3; allowed: a plan of this batch"
    with dk.use_provider(provider), pytest.raises(ValueError, match=told):
        dk.elastic_classifier(given, plan, tables, layers, last)


def test_refusals() -> None:
    given, plan = batch("whole")
    tables, layers, last = embedding(torch.float32), network(torch.float32), head(torch.float32)
    mixed: list[Any] = [*layers[:2], dk.quantise_layer(layers[2])]
    with pytest.raises(TypeError, match="Int8LayerWeights, LayerWeights; allowed: one of"):
        dk.elastic_classifier(given, plan, tables, mixed, last)
    with pytest.raises(ValueError, match="2 layers given and the plan has 3"):
        dk.elastic_classifier(given, plan, tables, layers[:2], last)
    with pytest.raises(ValueError, match="0 layers given and the plan has 3"):
        dk.elastic_classifier(given, plan, tables, [], last)
    other, _ = batch("narrow")
    with pytest.raises(ValueError, match="the plan has 15 rows and x 20"):
        dk.elastic_classifier(other, plan, tables, layers, last)
    with pytest.raises(ValueError, match="activation"):
        dk.elastic_classifier(given, plan, tables, layers, last, activation="swish")
    trained = last._replace(out_weight=last.out_weight.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="no backward"):
        dk.elastic_classifier(given, plan, tables, layers, trained)
    if "cpu" not in PROVIDERS:
        return
    foreign = given.input_ids.clone()
    foreign[3] = VOCABULARY
    with pytest.raises(IndexError, match=f"input_ids of token 3 is {VOCABULARY}, outside the table word"):
        dk.elastic_classifier(dataclasses.replace(given, input_ids=foreign), plan, tables, layers, last)
    for wrong, told in (
        (last._replace(out_weight=last.out_weight[:, :5]), "out_weight has shape"),
        (last._replace(dense_bias=None), "belong together"),
        (last._replace(out_bias=last.out_bias.double()), "out_bias"),
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=told):
            dk.elastic_classifier(given, plan, tables, layers, wrong)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("kind", ["plain", "packed", "int8"])
def test_a_dtype_that_does_not_fit(kind: str, provider: str) -> None:
    given, plan = batch("whole")
    tables, layers, last = embedding(torch.float32), layers_of(kind, torch.float32), head(torch.float32)
    first = "qkv_bias" if kind == "int8" else "qkv_weight"
    with dk.use_provider(provider):
        for change, told in (
            ({"input_ids": given.input_ids.int()}, "input_ids is torch.int32; allowed: torch.int64"),
            ({"position_ids": given.position_ids.int()}, "position_ids is torch.int32"),
            ({"token_type_ids": given.input_ids.float()}, "token_type_ids is torch.float32"),
            ({"cu_seqlens": given.cu_seqlens.long()}, "cu_seqlens is torch.int64; allowed: torch.int32"),
        ):
            with pytest.raises(TypeError, match=f"elastic_classifier: {told}"):
                dk.elastic_classifier(dataclasses.replace(given, **change), plan, tables, layers, last)
        for some_tables, some_head, told in (
            (embedding(torch.bfloat16), head(torch.bfloat16), f"{first} of layer 0 is torch.float32, word is torch.bf"),
            (
                tables._replace(norm_bias=tables.norm_bias.double()),
                last,
                "norm_bias is torch.float64, word is torch.fl",
            ),
            (
                tables,
                last._replace(out_bias=last.out_bias.double()),
                "out_bias is torch.float64, word is",
            ),
            (tables._replace(word=tables.word.int()), last, "word is torch.int32; allowed: float32"),
        ):
            with pytest.raises(TypeError, match=f"elastic_classifier: {told}"):
                dk.elastic_classifier(given, plan, some_tables, layers, some_head)


@pytest.mark.parametrize("kind", ["plain", "packed", "int8"])
def test_inference_compiles_whole(kind: str) -> None:
    """The encoder, the head and both of them with the embeddings: a user's own module around them is one graph."""
    layers, tables, last = layers_of(kind, torch.float32), embedding(torch.float32), head(torch.float32)
    given, plan = batch("mixed")
    x = dk.embed_layer_norm(given.input_ids, given.position_ids, given.token_type_ids, *tables)
    encoder: Any = dk.elastic_encoder_int8 if kind == "int8" else dk.elastic_encoder

    def module(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = dk.classification_head(encoder(x, layers, given.cu_seqlens, plan), given.cu_seqlens, *last)
        return logits, dk.elastic_classifier(given, plan, tables, layers, last)

    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(compiled(x), module(x), strict=True):
        assert torch.equal(ours, eager)
    torch._dynamo.reset()
