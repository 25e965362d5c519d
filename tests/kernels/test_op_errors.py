"""Each wrong argument of an op is one clear error, before any provider runs."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

import dynabert_kernels as dk
from tests.kernels.cases import Network, plan_of

N = Network(width=8, heads=4, size=2, neurons=12, dtype=torch.float32)
PLAN, CU = plan_of("mixed, widest first")
LAYER = PLAN.layer(0)
X = torch.zeros(PLAN.num_rows, 8)
A, M = N.attention(), N.ffn()
IDS = torch.zeros(3, dtype=torch.int64)
TABLE = torch.zeros(5, 8)


def attention(**change: object) -> Callable[[], object]:
    keys: dict = {"x": X, "weights": A, "cu": CU, "layer": LAYER, "max_seqlen": PLAN.max_seqlen} | change
    first = (keys.pop("x"), *keys.pop("weights"), keys.pop("cu"), keys.pop("layer"))
    return lambda: dk.elastic_attention(*first, **keys)


def replaced(tensors: list, index: int, new: object) -> list:
    return [new if place == index else tensor for place, tensor in enumerate(tensors)]


CASES: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("rank", lambda: dk.add_layer_norm(X[0], None, M[4], M[5]), ValueError, "x has shape (8,)"),
    ("weight", lambda: dk.add_layer_norm(X, None, M[4][:3], M[5]), ValueError, "weight has shape (3,)"),
    ("residual", lambda: dk.add_layer_norm(X, X[:2], M[4], M[5]), ValueError, "residual has shape (2, 8)"),
    ("mixed dtype", lambda: dk.add_layer_norm(X, X.double(), M[4], M[5]), TypeError, "residual is torch.float64"),
    ("integers", lambda: dk.add_layer_norm(X.long(), None, M[4], M[5]), TypeError, "x is torch.int64"),
    ("not a tensor", lambda: dk.add_layer_norm([1], None, M[4], M[5]), TypeError, "got list"),  # type: ignore[arg-type]
    ("device", lambda: dk.add_layer_norm(X, None, M[4].to("meta"), M[5]), ValueError, "weight is on meta"),
    ("max_out", lambda: dk.elastic_linear(X, M[0], max_out=13), ValueError, "max_out is 13"),
    ("max_in", lambda: dk.elastic_linear(X, M[0], max_in=9), ValueError, "max_in is 9"),
    ("narrow x", lambda: dk.elastic_linear(X[:, :4], M[0]), ValueError, "x has 4 columns"),
    ("unit", lambda: dk.elastic_linear(X, M[0], out_unit=0), ValueError, "out_unit is 0"),
    ("bias", lambda: dk.elastic_linear(X, M[0], M[1][:2]), ValueError, "bias has shape (2,)"),
    ("residual rows", lambda: dk.elastic_linear(X, M[0], residual=X[:1]), ValueError, "residual has shape"),
    ("residual columns", lambda: dk.elastic_linear(X, M[0], residual=X), ValueError, "residual has 8 columns"),
    ("activation", lambda: dk.elastic_linear(X, M[0], activation="swish"), ValueError, "activation is 'swish'"),
    ("rows dtype", lambda: dk.elastic_linear(X, M[0], rows=LAYER.rows.long()), TypeError, "rows is torch.int64"),
    (
        "counts length",
        lambda: dk.elastic_linear(X, M[0], rows=LAYER.rows, out_counts=LAYER.heads[:2]),
        ValueError,
        "out_counts has 2 entries",
    ),
    ("qkv", lambda: dk.varlen_attention(X, CU, max_seqlen=7), ValueError, "qkv has shape"),
    (
        "no head size",
        lambda: dk.varlen_attention(torch.zeros(18, 4, 3, 0), CU, max_seqlen=7),
        ValueError,
        "head size D",
    ),
    ("stream", attention(dropout_stream=1048575), ValueError, "dropout_stream is 1048575; allowed: 0 to 1048574"),
    ("numpy's", attention(dropout_stream=np.int64(2**21)), ValueError, "dropout_stream is 2097152; allowed: 0 to"),
    ("negative stream", attention(dropout_stream=-1), ValueError, "dropout_stream is -1; allowed: 0 to 1048574"),
    (
        "max_heads",
        lambda: dk.varlen_attention(torch.zeros(18, 4, 3, 2), CU, max_seqlen=7, max_heads=5),
        ValueError,
        "max_heads is 5",
    ),
    (
        "no dropout state",
        lambda: dk.varlen_attention(torch.zeros(18, 4, 3, 2), CU, max_seqlen=7, dropout_p=0.1),
        ValueError,
        "dropout_state is None",
    ),
    ("a plan", attention(layer=PLAN), TypeError, "layer is a Plan; allowed: a LayerPlan; give plan.layer(index)"),
    ("no tensor", lambda: dk.elastic_linear(X, M[0], 1.0), TypeError, "bias must be a tensor"),  # type: ignore[arg-type]
    ("probability", attention(hidden_dropout=1.0), ValueError, "hidden_dropout is 1.0"),
    ("seqlens dtype", attention(cu=CU.long()), TypeError, "cu_seqlens is torch.int64"),
    ("narrow bias", attention(position_bias=torch.zeros(4, 5)), ValueError, "position_bias reaches distance 2"),
    ("even bias", attention(position_bias=torch.zeros(4, 30)), ValueError, "an odd number 2R-1"),
    ("few bias heads", attention(position_bias=torch.zeros(3, 31)), ValueError, "at least 4 heads"),
    ("qkv weight", attention(weights=replaced(A, 0, torch.zeros(4, 3, 2, 9))), ValueError, "qkv_weight has shape"),
    ("out weight", attention(weights=replaced(A, 2, torch.zeros(8, 9))), ValueError, "out_weight has shape"),
    ("ln bias", attention(weights=replaced(A, 5, torch.zeros(9))), ValueError, "ln_bias has shape"),
    (
        "too many heads",
        attention(layer=LAYER._replace(max_heads=5)),
        ValueError,
        "the plan uses 5 heads; allowed: up to qkv_weight's 4",
    ),
    ("heads length", attention(layer=LAYER._replace(heads=LAYER.heads[:1])), ValueError, "head_counts has 1 entries"),
    (
        "too many neurons",
        lambda: dk.elastic_ffn(X, *M, LAYER._replace(max_neurons=13)),
        ValueError,
        "the plan uses 13 neurons",
    ),
    (
        "neurons length",
        lambda: dk.elastic_ffn(X, *M, LAYER._replace(neurons=LAYER.neurons[:1])),
        ValueError,
        "layer.neurons has 1 entries",
    ),
    (
        "ids dtype",
        lambda: dk.embed_layer_norm(IDS.int(), IDS, None, TABLE, TABLE, None, M[4], M[5]),
        TypeError,
        "input_ids is torch.int32",
    ),
    (
        "types without table",
        lambda: dk.embed_layer_norm(IDS, IDS, IDS, TABLE, TABLE, None, M[4], M[5]),
        ValueError,
        "token_type is None",
    ),
    (
        "padding index",
        lambda: dk.embed_layer_norm(IDS, IDS, None, TABLE, TABLE, None, M[4], M[5], padding_idx=5),
        ValueError,
        "padding_idx is 5",
    ),
    (
        "ids length",
        lambda: dk.embed_layer_norm(IDS, IDS[:2], None, TABLE, TABLE, None, M[4], M[5]),
        ValueError,
        "position_ids has 2 entries",
    ),
]

LOGITS, BORDERS = torch.zeros(3, 4), torch.tensor([0, 3], dtype=torch.int32)


def loss(student: object = LOGITS, teacher: object = LOGITS, **keys: object) -> Callable[[], object]:
    return lambda: dk.distillation_loss(student, teacher, **keys)  # type: ignore[arg-type]


CASES += [
    ("student rank", loss(LOGITS[0]), ValueError, "distillation_loss: student has shape (4,)"),
    ("no columns", loss(LOGITS[:, :0], LOGITS[:, :0]), ValueError, "allowed: at least one column"),
    (
        "teacher columns",
        loss(teacher=LOGITS[:, 1:]),
        ValueError,
        "teacher has shape (3, 3); allowed: (Q, C)",
    ),
    ("teacher dtype", loss(teacher=LOGITS.double()), TypeError, "teacher is torch.float64, student is torch.float32"),
    ("live teacher", loss(teacher=torch.zeros(3, 4, requires_grad=True)), ValueError, "pass teacher.detach()"),
    ("few teachers", loss(teacher=LOGITS[:2]), ValueError, "teacher has 2 rows and student 3"),
    ("kind", loss(kind="mse"), ValueError, "kind is 'mse'; allowed: soft_cross_entropy, squared_error"),
    ("no borders", loss(rows=BORDERS[:0]), ValueError, "rows is empty"),
    ("active length", loss(active=BORDERS, rows=BORDERS), ValueError, "active has 2 entries; allowed: one a group, 1"),
    ("active dtype", loss(active=torch.ones(1)), TypeError, "active is torch.float32; allowed: torch.int32"),
    ("map length", loss(teacher_rows=BORDERS), ValueError, "teacher_rows has 2 entries; allowed: one for each of"),
    ("map dtype", loss(teacher_rows=torch.arange(3)), TypeError, "teacher_rows is torch.int64; allowed: torch.int32"),
]


@pytest.mark.parametrize(("call", "error", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refuses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_an_unknown_provider_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="'cudnn' is not a provider; allowed: reference, cpu, triton, cuda"),
        dk.use_provider("cudnn"),
    ):
        pass


def test_a_forced_provider_never_falls_back() -> None:
    with dk.use_provider("cuda"), pytest.raises(ValueError, match="provider 'cuda' was forced, but"):
        dk.elastic_ffn(X, *M, LAYER)


def test_provider_is_scoped() -> None:
    from dynabert_kernels.ops.providers import forced_provider

    with dk.use_provider("reference"):
        with dk.use_provider("cpu"):
            assert forced_provider() == "cpu"
        assert forced_provider() == "reference"
    assert forced_provider() is None


def test_show_config_names_every_op() -> None:
    text = dk.show_config()
    for op in ("add_layer_norm", "elastic_linear", "varlen_attention", "elastic_attention", "elastic_ffn"):
        assert f"{op}_fwd" in text
