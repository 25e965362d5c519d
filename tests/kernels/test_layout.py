"""Value types: what they hold, and every input they refuse."""

from __future__ import annotations

import re

import pytest
import torch

import dynabert_kernels as dk

WIDE = dk.SubnetShape((4, 4, 4), (12, 12, 12))
NARROW = dk.SubnetShape((1, 0, 2), (3, 0, 6))


@pytest.mark.parametrize(
    ("heads", "neurons", "error", "message"),
    [
        ((4,), (12, 12), ValueError, "heads has 1 layers and neurons has 2"),
        ((), (), ValueError, "no layers given"),
        ((4, 0), (12, 3), ValueError, "layer 1 has 0 heads and 3 neurons"),
        ((4, 2), (12, 0), ValueError, "layer 1 has 2 heads and 0 neurons"),
        ((-1,), (3,), ValueError, "heads[0] is -1"),
        ((1.5,), (3,), TypeError, "heads[0] must be a whole number; got 1.5"),
        ((True,), (3,), TypeError, "heads[0] must be a whole number; got True"),
        ("12", (3,), TypeError, "one whole number per layer; got str"),
        (4, (3,), TypeError, "one whole number per layer; got int"),
    ],
)
def test_shape_refuses(heads: object, neurons: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        dk.SubnetShape(heads, neurons)  # type: ignore[arg-type]


def test_shape_facts() -> None:
    assert NARROW.kept_layers == (0, 2)
    assert NARROW.num_layers == 3
    assert dk.SubnetShape.uniform(3, 2, 6, [0, 2]) == dk.SubnetShape((2, 0, 2), (6, 0, 6))
    with pytest.raises(ValueError, match=r"kept_layers names \[3\]; allowed: 0 to 2"):
        dk.SubnetShape.uniform(3, 2, 6, [3])
    with pytest.raises(ValueError, match="names a layer twice"):
        dk.SubnetShape.uniform(3, 2, 6, [1, 1])


def test_plan_table_and_views() -> None:
    plan = dk.Plan.build([WIDE, NARROW], [[5, 2], [4]], row_bucket=8)
    assert plan.table.dtype == torch.int32
    assert plan.table.tolist() == [0, 7, 11, 4, 1, 12, 3, 4, 0, 12, 0, 4, 2, 12, 6]
    assert (plan.num_rows, plan.max_seqlen, plan.num_groups, plan.num_layers) == (16, 5, 2, 3)
    assert plan.max_heads == (4, 4, 4)
    layer = plan.layer(1)
    assert (layer.rows.tolist(), layer.heads.tolist(), layer.neurons.tolist()) == ([0, 7, 11], [4, 0], [12, 0])
    assert layer.heads.untyped_storage().data_ptr() == plan.table.untyped_storage().data_ptr()
    assert len(plan.layers) == 3
    assert plan.to("cpu") is plan


@pytest.mark.parametrize(
    ("shapes", "lengths", "bucket", "message"),
    [
        ([WIDE], [[1], [2]], 1, "1 shapes and 2 lists of lengths"),
        ([], [], 1, "no group given"),
        ([WIDE, dk.SubnetShape((1,), (3,))], [[1], [2]], 1, "shapes[1] has 1 layers, shapes[0] has 3"),
        ([WIDE], [[3, 0]], 1, "group 0 has a sequence of 0 tokens"),
        ([WIDE], [[3]], 0, "row_bucket is 0"),
        ([WIDE], [[2**31]], 1, "split the batch"),
    ],
)
def test_plan_refuses(shapes: list, lengths: list, bucket: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dk.Plan.build(shapes, lengths, row_bucket=bucket)


def test_plan_refuses_a_wrong_type() -> None:
    with pytest.raises(TypeError, match=r"shapes\[0\] must be a SubnetShape; got str"):
        dk.Plan.build(["w1"], [[1]])  # type: ignore[list-item]


def test_a_plan_has_its_layers_and_no_others() -> None:
    """-1 would be views of another part of the table: a wrong network without a word."""
    plan = dk.Plan.uniform(WIDE, [2])
    assert [layer.heads.tolist() for layer in plan.layers] == [[4]] * 3
    for index in (-1, 3):
        with pytest.raises(IndexError, match=rf"layer {index} is not there; allowed: 0 to 2"):
            plan.layer(index)


def test_iterators_are_read_once_and_lengths_are_whole() -> None:
    assert dk.SubnetShape.uniform(3, 2, 6, iter([0, 2])) == dk.SubnetShape((2, 0, 2), (6, 0, 6))  # type: ignore[arg-type]
    order, shapes, sizes = dk.group_by_shape(iter([NARROW, WIDE]))  # type: ignore[arg-type]
    assert (order, shapes, sizes) == ([1, 0], [WIDE, NARROW], [1, 1])
    with pytest.raises(TypeError, match=r"the lengths of group 0 are \[2\.9\]; allowed: whole numbers"):
        dk.Plan.build([WIDE], [[2.9]])  # type: ignore[list-item]
    assert dk.Plan.build([WIDE], [list(torch.tensor([2, 3]))]).rows.tolist() == [0, 5]


def test_grouping_is_stable_and_widest_first() -> None:
    middle = dk.SubnetShape((2, 2, 2), (6, 6, 6))
    order, shapes, sizes = dk.group_by_shape([NARROW, WIDE, middle, NARROW, WIDE])
    assert order == [1, 4, 2, 0, 3]
    assert shapes == [WIDE, middle, NARROW]
    assert sizes == [2, 1, 2]


def test_packing_lists() -> None:
    batch = dk.PackedBatch.from_lists(
        [[7, 8], [9], [1, 2, 3]], order=[2, 0, 1], token_type_ids=[[0, 1], [0], [0, 0, 1]], row_bucket=4, pad_id=99
    )
    assert batch.input_ids.tolist() == [1, 2, 3, 7, 8, 9, 99, 99]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert batch.token_type_ids is not None
    assert batch.token_type_ids.tolist() == [0, 0, 1, 0, 1, 0, 0, 0]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 6]
    assert (batch.max_seqlen, batch.num_sequences, batch.num_rows) == (3, 3, 8)


def test_packing_a_padded_batch() -> None:
    ids = torch.tensor([[1, 2, 0], [0, 3, 4], [5, 6, 7]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1]])
    batch = dk.PackedBatch.from_padded(ids, mask, order=[2, 0, 1])
    assert batch.input_ids.tolist() == [5, 6, 7, 1, 2, 3, 4]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 7]
    whole = dk.PackedBatch.from_padded(ids)
    assert whole.cu_seqlens.tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dk.PackedBatch.from_lists([]), ValueError, "no sequence given"),
        (lambda: dk.PackedBatch.from_lists([[1], []]), ValueError, "sequence 1 has no tokens"),
        (lambda: dk.PackedBatch.from_lists([[1], [2]], order=[0, 0]), ValueError, "order must name each"),
        (lambda: dk.PackedBatch.from_lists([[1]], token_type_ids=[[0, 1]]), ValueError, "2 token_type_ids"),
        (lambda: dk.PackedBatch.from_lists([[1]], token_type_ids=[]), ValueError, "token_type_ids for 0"),
        (lambda: dk.PackedBatch.from_lists([[1]], row_bucket=0), ValueError, "row_bucket is 0"),
        (lambda: dk.PackedBatch.from_padded(torch.ones(2, 3)), TypeError, "input_ids are torch.float32"),
        (lambda: dk.PackedBatch.from_padded(torch.ones(3).long()), ValueError, "has shape (3,)"),
        (lambda: dk.PackedBatch.from_padded(torch.ones(0, 3).long()), ValueError, "has shape (0, 3)"),
        (
            lambda: dk.PackedBatch.from_padded(torch.ones(2, 3).long(), torch.ones(2, 2)),
            ValueError,
            "attention_mask has shape (2, 2)",
        ),
        (
            lambda: dk.PackedBatch.from_padded(torch.ones(2, 2).long(), torch.tensor([[1, 1], [0, 0]])),
            ValueError,
            "attention_mask of sequence 1 is 0 everywhere",
        ),
    ],
)
def test_packing_refuses(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
