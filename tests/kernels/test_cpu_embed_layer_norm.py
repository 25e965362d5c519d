"""The CPU's embed_layer_norm, forward and backward, against float64."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels.testing.comparison import assert_close_to_float64
from tests.kernels.cpu_isas import (
    cpu_op,
    each_dtype,
    each_isa,
    one_thread,  # noqa: F401
    using_isa,
)
from tests.kernels.embed_checks import (
    SHAPES,
    EmbedInput,
    assert_same,
    check_against_float64,
    definition,
    embed_input,
    results,
)

FORWARD, BACKWARD = cpu_op("embed_layer_norm_fwd"), cpu_op("embed_layer_norm_bwd")


@each_isa
@each_dtype
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3], ids=["no dropout", "dropout"])
def test_matches_float64(isa: str, dtype: torch.dtype, shape: str, dropout_p: float) -> None:
    with using_isa(isa):
        check_against_float64(FORWARD, BACKWARD, embed_input(shape, dtype, dropout_p=dropout_p))


@each_isa
@pytest.mark.parametrize("types", ["given", "type 0", "no table"])
@pytest.mark.parametrize("shape", ["rows of no group, an empty group", "MiniLM"])
def test_token_types_may_be_left_out(isa: str, types: str, shape: str) -> None:
    with using_isa(isa):
        check_against_float64(FORWARD, BACKWARD, embed_input(shape, torch.float32, types=types, padding_idx=-1))


@each_isa
@each_dtype
def test_takes_strided_and_offset_views(isa: str, dtype: torch.dtype) -> None:
    sample = embed_input("rows of no group, an empty group", dtype, dropout_p=0.3)
    with using_isa(isa):
        assert_same(results(FORWARD, BACKWARD, sample), results(FORWARD, BACKWARD, sample.as_views()))


def test_rows_of_the_tables_that_no_token_takes_are_not_read() -> None:
    sample = embed_input("one past a tile", torch.float32)
    clean = results(FORWARD, BACKWARD, sample)
    unused = torch.ones(sample.word.shape[0], dtype=torch.bool)
    unused[sample.input_ids] = False
    assert unused.any()
    sample.word[unused] = float("nan")
    assert_same(clean, results(FORWARD, BACKWARD, sample))
    assert not clean["dword"][unused].any()


def test_dropout_without_borders_is_one_group() -> None:
    sample = embed_input("MiniLM", torch.float32, dropout_p=0.3)
    tokens = sample.input_ids.shape[0]
    whole = sample._replace(rows=torch.tensor([0, tokens], dtype=torch.int32))
    assert_same(results(FORWARD, BACKWARD, sample._replace(rows=None)), results(FORWARD, BACKWARD, whole))


def test_masks_are_those_of_the_definition() -> None:
    sample = embed_input("rows of no group, an empty group", torch.float64, dropout_p=0.5)
    ours, exact = results(FORWARD, BACKWARD, sample), definition(sample)
    assert torch.equal(ours["y"] == 0, exact["y"] == 0)
    assert (ours["y"][-5:] != 0).all()  # rows of no group are not dropped


@each_isa
def test_nothing_depends_on_the_number_of_threads(isa: str) -> None:
    # Large enough for several tasks in each part.
    torch.manual_seed(0)
    tokens, columns = 700, 300
    ids = torch.randint(0, 900, (tokens,))
    ids[::2] = 5
    tables = [torch.randn(900, columns), torch.randn(128, columns), torch.randn(2, columns)]
    rows, state = torch.tensor([0, 300, 700], dtype=torch.int32), torch.tensor([5, 6])
    vectors, dy = [torch.randn(columns), torch.randn(columns)], torch.randn(tokens, columns)
    given = (ids, torch.arange(tokens) % 128, ids % 2, *tables, *vectors, rows, state, 1e-5, 0.1, 0, 0, dy)
    found = []
    with using_isa(isa):
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(results(FORWARD, BACKWARD, EmbedInput(*given)))
    for other in found[1:]:
        assert_same(found[0], other)


def test_a_token_that_is_everywhere_sums_without_losing_digits() -> None:
    # 20,000 rows added one after the other in float32 would err by thousands of roundings.
    tokens, columns = 20_000, 4
    torch.manual_seed(0)
    ids = torch.zeros(tokens, dtype=torch.int64)
    tables = [torch.randn(3, columns) for _ in range(3)]
    vectors, dy = [torch.ones(columns), torch.zeros(columns)], torch.randn(tokens, columns) + 1.0
    sample = EmbedInput(ids, ids, None, *tables, *vectors, None, None, 1e-5, 0.0, 0, -1, dy)
    ours, exact, same = (results(FORWARD, BACKWARD, sample), definition(sample.to(torch.float64)), definition(sample))
    # Of the definition's sums this one is made in pairs; all three tables have the same.
    yardstick = same["dtoken_type"]
    for name in ("dword", "dposition", "dtoken_type"):
        assert_close_to_float64(ours[name], exact[name], yardstick, factor=3.0, name=name)
    for name in ("dw", "db"):
        assert_close_to_float64(ours[name], exact[name], same[name], factor=3.0, name=name)


def test_sums_that_are_too_large_to_be_kept_between_calls() -> None:
    # 18 MB of working memory: above what a thread keeps, a tensor of its own holds it.
    tokens, columns = 6000, 768
    torch.manual_seed(0)
    ids = torch.randint(0, 9, (tokens,))
    tables = [torch.randn(9, columns) for _ in range(3)]
    vectors, dy = [torch.randn(columns), torch.zeros(columns)], torch.randn(tokens, columns)
    sample = EmbedInput(ids, ids, ids, *tables, *vectors, None, None, 1e-5, 0.0, 0, -1, dy)
    check_against_float64(FORWARD, BACKWARD, sample)


def _bad(name: str, token: int, value: int) -> EmbedInput:
    sample = embed_input("rows of no group, an empty group", torch.float32)
    ids = getattr(sample, name).clone()
    ids[token] = value
    return sample._replace(**{name: ids})


@pytest.mark.parametrize(
    ("name", "value", "table", "size"),
    [
        ("input_ids", 13, "word", 13),
        ("input_ids", -1, "word", 13),
        ("position_ids", 20, "position", 20),
        ("token_type_ids", 2**40, "token_type", 2),
    ],
)
def test_an_id_outside_its_table_is_an_index_error(name: str, value: int, table: str, size: int) -> None:
    message = f"{name} of token 11 is {value}, outside the table {table} of {size} rows; allowed: 0 to {size - 1}"
    sample = _bad(name, 11, value)
    with pytest.raises(IndexError, match=re.escape(message)):
        FORWARD(*sample.forward())
    mean = torch.zeros(sample.input_ids.shape[0])
    with pytest.raises(IndexError, match=re.escape(f"embed_layer_norm_bwd: {message}")):
        BACKWARD(*sample.backward(mean, mean))
    with dk.use_provider("reference"), pytest.raises(IndexError):
        torch.ops.dynabert.embed_layer_norm_fwd(*sample.forward())


def test_the_first_wrong_token_is_named_whoever_finds_it() -> None:
    ids = torch.zeros(3000, dtype=torch.int64)
    ids[[40, 2900]] = 9
    table, vector = torch.ones(3, 64), torch.ones(64)
    torch.set_num_threads(3)
    for _ in range(5):
        with pytest.raises(IndexError, match="input_ids of token 40 is 9, outside the table word of 3 rows"):
            FORWARD(ids, ids * 0, None, table, table, None, vector, vector, None, None, 1e-5, 0.0, 0, -1)


def test_an_empty_table_of_types_is_named() -> None:
    sample = embed_input("MiniLM", torch.float32, types="type 0")
    assert sample.token_type is not None
    with pytest.raises(IndexError, match="the default token type of token 0 is 0, outside the table token_type of 0"):
        FORWARD(*sample._replace(token_type=sample.token_type[:0]).forward())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": torch.zeros(3, 5)}, "position has shape (3, 5); allowed: (rows, C) = (any, 61)"),
        ({"weight": torch.zeros(60)}, "weight has shape (60); allowed: (C,) = (61)"),
        ({"bias": torch.zeros(61).double()}, "bias is Double, x is Float"),
        ({"input_ids": torch.zeros(34, dtype=torch.int32)}, "input_ids is Int; allowed: int64"),
        ({"position_ids": torch.zeros(3, dtype=torch.int64)}, "position_ids has shape (3); allowed: (T,) = (34)"),
        ({"token_type": None}, "token_type_ids given, but not token_type"),
        ({"dropout_p": 1.0}, "the dropout probability is 1"),
        ({"word": torch.zeros(3, 0)}, "word has shape (3, 0); allowed: at least one column"),
        ({"dropout_p": 0.5, "dropout_state": torch.zeros(3)}, "dropout_state has shape (3)"),
    ],
)
def test_errors_name_what_is_wrong(change: dict[str, Any], message: str) -> None:
    sample = embed_input("rows of no group, an empty group", torch.float32)._replace(**change)
    with pytest.raises(ValueError, match=re.escape(f"embed_layer_norm_fwd: {message}")):
        FORWARD(*sample.forward())


def test_errors_of_the_backward() -> None:
    sample = embed_input("MiniLM", torch.float32)
    mean = torch.zeros(sample.input_ids.shape[0])
    with pytest.raises(ValueError, match=re.escape("embed_layer_norm_bwd: dy has shape (27, 384)")):
        BACKWARD(*sample._replace(dy=sample.dy[1:]).backward(mean, mean))
    with pytest.raises(ValueError, match="rstd is Double, x is Float"):
        BACKWARD(*sample.backward(mean, mean.double()))


# Through the registered op.


def test_the_rule_chooses_it_and_it_matches_plain_pytorch() -> None:
    sample = embed_input("MiniLM", torch.float32)
    leaves = [sample.word, sample.position, sample.token_type, sample.weight, sample.bias]
    tensors = [t.clone().requires_grad_() for t in leaves if t is not None]

    def plain(word: Tensor, position: Tensor, token_type: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        total = F.embedding(sample.input_ids, word, padding_idx=0) + F.embedding(sample.position_ids, position)
        assert sample.token_type_ids is not None
        total = total + F.embedding(sample.token_type_ids, token_type)
        return F.layer_norm(total, (384,), weight, bias, 1e-5)

    def ours(*tables: Tensor) -> Tensor:
        ids = (sample.input_ids, sample.position_ids, sample.token_type_ids)
        return dk.embed_layer_norm(*ids, *tables, eps=1e-5, padding_idx=0)

    with dk.use_provider("cpu"):
        y = ours(*tensors)
        got = torch.autograd.grad(y, tensors, sample.dy)
    want = torch.autograd.grad(plain(*tensors), tensors, sample.dy)
    torch.testing.assert_close(y, plain(*tensors))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("types", ["given", "type 0", "no table"])
def test_opcheck_and_gradcheck(types: str) -> None:
    sample = embed_input("primes below every tile", torch.float64, types=types, dropout_p=0.3)
    places = [3, 4, *([] if types == "no table" else [5]), 6, 7]
    arguments = list(sample.forward())
    for place in places:
        arguments[place] = arguments[place].requires_grad_()
    op = torch.ops.dynabert.embed_layer_norm_fwd.default

    def of_tables(*tables: Tensor) -> Tensor:
        changed = list(arguments)
        for place, table in zip(places, tables, strict=True):
            changed[place] = table
        return op(*changed)[0]

    with dk.use_provider("cpu"):
        torch.library.opcheck(op, tuple(arguments))
        # The padding token's row gets no gradient, which a difference of outputs would not know.
        arguments[13] = -1
        assert torch.autograd.gradcheck(of_tables, [arguments[place] for place in places])
