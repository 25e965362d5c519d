"""The Triton provider of ``embed_layer_norm``: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels.triton import sums_by_id as sums
from dynabert_kernels.triton.embed_layer_norm import embed_layer_norm_bwd, embed_layer_norm_fwd, supports
from dynabert_kernels.triton.environment import IMPORT_ERROR, INTERPRETED
from dynabert_kernels.triton.tiles import MAX_EMBEDDING_COLUMNS
from tests.kernels.embed_checks import SHAPES, EmbedInput, assert_same, check_against_float64, embed_input, results

CHUNK = sums.INTERPRETER_CHUNK if INTERPRETED else sums.CHUNK
DEVICE = "cpu" if INTERPRETED else "cuda"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
FORWARD, BACKWARD = embed_layer_norm_fwd, embed_layer_norm_bwd

pytestmark = pytest.mark.skipif(
    IMPORT_ERROR is not None or not (INTERPRETED or torch.cuda.is_available()),
    reason=IMPORT_ERROR or "no CUDA device, and TRITON_INTERPRET is set to 0",
)


def _sample(shape: str, dtype: torch.dtype, **options: Any) -> EmbedInput:
    return embed_input(shape, dtype, device=DEVICE, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(shape: str) -> None:
    check_against_float64(FORWARD, BACKWARD, _sample(shape, torch.float32, dropout_p=0.3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=NAMES.get)
@pytest.mark.parametrize("shape", ["rows of no group, an empty group", "MiniLM"])
def test_matches_float64_in_half_precision(shape: str, dtype: torch.dtype) -> None:
    check_against_float64(FORWARD, BACKWARD, _sample(shape, dtype, dropout_p=0.3))


@pytest.mark.parametrize("shape", ["one token", "BERT-base"])
def test_without_dropout(shape: str) -> None:
    check_against_float64(FORWARD, BACKWARD, _sample(shape, torch.float32))


@pytest.mark.skipif(not INTERPRETED, reason="float64 is for gradcheck in the interpreter; a GPU refuses it by name")
@pytest.mark.parametrize("shape", ["primes below every tile"])
def test_float64_is_computed_in_float64(shape: str) -> None:
    check_against_float64(FORWARD, BACKWARD, _sample(shape, torch.float64, dropout_p=0.5))  # a scale that float32 holds


@pytest.mark.parametrize("types", ["type 0", "no table"])
@pytest.mark.parametrize("shape", ["primes below every tile", "runs of several chunks"])
def test_token_types_may_be_left_out(types: str, shape: str) -> None:
    check_against_float64(FORWARD, BACKWARD, _sample(shape, torch.float32, types=types, padding_idx=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=NAMES.get)
def test_takes_strided_and_offset_views(dtype: torch.dtype) -> None:
    sample = _sample("primes below every tile", dtype, dropout_p=0.3)
    check_against_float64(FORWARD, BACKWARD, sample.as_views())
    if INTERPRETED:  # on a GPU the layout of a sum may depend on alignment
        assert_same(results(FORWARD, BACKWARD, sample), results(FORWARD, BACKWARD, sample.as_views()))


def test_is_deterministic_and_reads_no_unused_row() -> None:
    sample = _sample("one past a tile", torch.float32)
    clean = results(FORWARD, BACKWARD, sample)
    unused = torch.ones(sample.word.shape[0], dtype=torch.bool)
    unused[sample.input_ids.cpu()] = False
    sample.word[unused.to(DEVICE)] = float("nan")
    assert_same(clean, results(FORWARD, BACKWARD, sample))


def test_dropout_without_borders_is_one_group() -> None:
    sample = _sample("rows of no group, an empty group", torch.float32, dropout_p=0.3)
    tokens = sample.input_ids.shape[0]
    whole = sample._replace(rows=torch.tensor([0, tokens], dtype=torch.int32, device=DEVICE))
    assert_same(results(FORWARD, BACKWARD, sample._replace(rows=None)), results(FORWARD, BACKWARD, whole))


@pytest.mark.parametrize(
    ("name", "value"), [("input_ids", 13), ("input_ids", -1), ("position_ids", 20), ("token_type_ids", 2)]
)
def test_an_id_outside_its_table_shows_as_nan_in_its_row_alone(name: str, value: int) -> None:
    sample = _sample("rows of no group, an empty group", torch.float32)
    clean, ids = results(FORWARD, BACKWARD, sample), getattr(sample, name).clone()
    ids[11] = value
    found = results(FORWARD, BACKWARD, sample._replace(**{name: ids}))
    others = torch.arange(sample.input_ids.shape[0], device=DEVICE) != 11
    for part in ("y", "mean", "rstd"):
        assert found[part][11].isnan().all()
        assert torch.equal(found[part][others], clean[part][others])
    assert found["dw"].isnan().all()  # loud, not silently one token short


@pytest.mark.parametrize("tokens", [1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 70 * CHUNK + 3])
def test_sums_by_id_of_every_kind_of_run(tokens: int) -> None:
    # Whole numbers: every order of additions is exact, so one row too many or too few shows.
    torch.manual_seed(tokens)
    rows = torch.randint(-8, 9, (tokens, 3), device=DEVICE).float()
    cases = [
        torch.randint(0, 5, (tokens,)),  # long runs, cut anywhere
        torch.arange(tokens) // CHUNK,  # runs that are whole chunks
        torch.arange(tokens) // (2 * CHUNK) + (torch.arange(tokens) % 7 == 0) * 200,  # long ones, and far ones between
    ]
    ids = [case.to(DEVICE) for case in cases]
    tables = [torch.empty(size, 3, device=DEVICE) for size in (5, tokens // CHUNK + 1, 300 + tokens // CHUNK)]
    found = sums.sums_by_id(rows, ids, tables, left_out=4)
    for place, (table, own) in enumerate(zip(tables, ids, strict=True)):
        exact = torch.zeros_like(table).index_add_(0, own, rows)
        if place == 0:
            exact[4] = 0.0
        assert torch.equal(found[place], exact)


# Through the registered op.


@pytest.mark.skipif(not INTERPRETED, reason="gradcheck needs float64, which a GPU refuses by name")
@pytest.mark.parametrize("types", ["given", "type 0", "no table"])
def test_gradcheck(types: str) -> None:
    sample = embed_input("primes below every tile", torch.float64, types=types, dropout_p=0.3, padding_idx=-1)
    arguments = list(sample._replace(weight=sample.weight[:5], bias=sample.bias[:5]).forward())
    places = [3, 4, *([] if types == "no table" else [5]), 6, 7]
    for place in places[:-2]:
        arguments[place] = arguments[place][:, :5]  # fewer columns: a launch for each number
    tables = [arguments[place].clone().requires_grad_() for place in places]

    def of_tables(*tables: Tensor) -> Tensor:
        changed = list(arguments)
        for place, table in zip(places, tables, strict=True):
            changed[place] = table
        return torch.ops.dynabert.embed_layer_norm_fwd(*changed)[0]

    with dk.use_provider("triton"):
        assert torch.autograd.gradcheck(of_tables, tables, fast_mode=True)


def test_opcheck() -> None:
    for types in ("given", "no table"):
        arguments = list(_sample("primes below every tile", torch.float32, types=types, dropout_p=0.3).forward())
        for place in (3, 4, 6, 7):
            arguments[place] = arguments[place].requires_grad_()
        with dk.use_provider("triton"):
            torch.library.opcheck(torch.ops.dynabert.embed_layer_norm_fwd.default, tuple(arguments))


# What it refuses.


def test_supports_names_what_it_refuses() -> None:
    sample = _sample("MiniLM", torch.float32)
    mean = sample.dy[:, 0].contiguous()
    assert supports(*sample.forward()) is None
    assert supports(*sample.backward(mean, mean)) is None
    turned = sample._replace(word=sample.word.t().contiguous().t())
    assert "its last stride must be 1" in str(supports(*turned.forward()))
    wide = sample._replace(word=sample.word.new_empty(1, MAX_EMBEDDING_COLUMNS + 1))
    assert f"1 to {MAX_EMBEDDING_COLUMNS} columns are allowed" in str(supports(*wide.forward()))
    assert "dtype is torch.float8" in str(supports(*sample._replace(word=sample.word.to(torch.float8_e5m2)).forward()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": torch.zeros(3, 5)}, "position has the wrong shape; got (3, 5); allowed: (rows, 61)"),
        ({"word": torch.zeros(3)}, "word has the wrong shape; got (3,); allowed: (rows, C)"),
        ({"token_type": torch.zeros(2, 61).half()}, "token_type does not fit"),
        ({"weight": torch.zeros(60)}, "weight has the wrong shape; got (60,); allowed: (61,)"),
        ({"input_ids": torch.zeros(34, dtype=torch.int32)}, "input_ids does not fit"),
        ({"position_ids": torch.zeros(3, dtype=torch.int64)}, "position_ids has the wrong shape; got (3,)"),
        ({"token_type": None}, "token_type_ids given but token_type is None"),
        ({"position": torch.zeros(61, 20).t()}, "the columns of position do not lie side by side"),
    ],
)
def test_errors_name_what_is_wrong(change: dict[str, Any], message: str) -> None:
    moved = {name: value if value is None else value.to(DEVICE) for name, value in change.items()}
    sample = _sample("rows of no group, an empty group", torch.float32)._replace(**moved)
    with pytest.raises(ValueError, match=re.escape(f"embed_layer_norm_fwd (triton): {message}")):
        FORWARD(*sample.forward())


def test_errors_of_the_backward() -> None:
    sample = _sample("MiniLM", torch.float32)
    mean = torch.zeros(sample.input_ids.shape[0], device=DEVICE)
    with pytest.raises(ValueError, match=re.escape("input_ids has the wrong shape; got (28,); allowed: (27,)")):
        BACKWARD(*sample._replace(dy=sample.dy[1:]).backward(mean, mean))
    with pytest.raises(ValueError, match="rstd does not fit"):
        BACKWARD(*sample.backward(mean, mean.double()))
