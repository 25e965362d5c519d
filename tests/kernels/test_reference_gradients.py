"""The written backward of the reference equals autograd of its forward, and finite differences, in float64."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from tests.kernels.cases import DROPOUT_STATE, PLANS, Network, bias_table, plan_of

NETWORK = Network(width=8, heads=4, size=2, neurons=12, dtype=torch.float64)


def through_op_and_autograd(op_call, definition, inputs: list[Tensor]) -> None:
    """Gradients through the registered op equal autograd of the definition."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    expected_leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    with dk.use_provider("reference"):
        y = op_call(*leaves)
    expected = definition(*expected_leaves)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(y)
    got = torch.autograd.grad((y * weights).sum(), leaves, allow_unused=True)
    want: tuple[Tensor | None, ...] = (None,) * len(leaves)
    if expected.requires_grad:  # with no token at all the definition never touches a leaf
        want = torch.autograd.grad((expected * weights).sum(), expected_leaves, allow_unused=True)
    for g, w, leaf in zip(got, want, leaves, strict=True):
        w = torch.zeros_like(leaf) if w is None else w
        g = torch.zeros_like(leaf) if g is None else g
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "position bias"])
@pytest.mark.parametrize("p", [0.0, 0.3], ids=["no dropout", "dropout"])
def test_attention_sub_layer(name: str, bias: bool, p: float) -> None:
    torch.manual_seed(0)
    plan, borders = plan_of(name, row_bucket=4)
    layer = plan.layer(0)
    x = NETWORK.tensor(plan.num_rows, NETWORK.width)
    inputs = [x, *NETWORK.attention()] + ([bias_table(NETWORK, plan.max_seqlen)] if bias else [])
    state = torch.tensor(DROPOUT_STATE)

    def op(*tensors: Tensor) -> Tensor:
        table = tensors[7] if bias else None
        with dk.use_provider("reference"):
            return dk.elastic_attention(
                *tensors[:7],
                borders,
                layer,
                max_seqlen=plan.max_seqlen,
                position_bias=table,
                attention_dropout=p,
                hidden_dropout=p,
                dropout_state=state,
                dropout_stream=5,
            )

    def definition(*tensors: Tensor) -> Tensor:
        table = tensors[7] if bias else None
        return reference.elastic_attention_fwd(
            *tensors[:7],
            borders,
            layer.rows,
            layer.heads,
            table,
            state,
            layer.max_heads,
            plan.max_seqlen,
            NETWORK.size**-0.5,
            1e-12,
            p,
            p,
            5,
            False,
        )[0]

    through_op_and_autograd(op, definition, inputs)


@pytest.mark.parametrize("provider", ["reference", "rule"])
def test_attention_weights_part_before_head(provider: str) -> None:
    """A gradient that is added to as a matrix must not be lost in a copy of one that lies otherwise."""
    torch.manual_seed(0)
    plan, borders = plan_of("mixed, not sorted")
    x, (qkv_weight, *rest) = NETWORK.tensor(plan.num_rows, NETWORK.width), NETWORK.attention()
    layouts = qkv_weight, qkv_weight.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
    gradients = []
    for weight in layouts:
        weight = weight.detach().requires_grad_()
        with dk.use_provider("reference") if provider == "reference" else nullcontext():
            y = dk.elastic_attention(x, weight, *rest, borders, plan.layer(0), max_seqlen=plan.max_seqlen)
            gradients += torch.autograd.grad(y.square().sum(), [weight])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_ffn_sub_layer(name: str, activation: str) -> None:
    torch.manual_seed(1)
    plan, _ = plan_of(name, row_bucket=4)
    layer = plan.layer(0)
    inputs = [NETWORK.tensor(plan.num_rows, NETWORK.width), *NETWORK.ffn()]
    state = torch.tensor(DROPOUT_STATE)
    code = {"gelu": 1, "gelu_tanh": 2, "relu": 3}[activation]

    def op(*tensors: Tensor) -> Tensor:
        return dk.elastic_ffn(*tensors, layer, activation=activation, hidden_dropout=0.2, dropout_state=state)

    def definition(*tensors: Tensor) -> Tensor:
        return reference.elastic_ffn_fwd(
            *tensors, layer.rows, layer.neurons, state, layer.max_neurons, code, 1e-12, 0.2, 0, False
        )[0]

    through_op_and_autograd(op, definition, inputs)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("ragged", ["out", "in", "both", "none"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_linear(name: str, ragged: str, residual: bool) -> None:
    torch.manual_seed(2)
    plan, _ = plan_of(name, row_bucket=4)
    layer = plan.layer(0)
    x, weight, bias = NETWORK.tensor(plan.num_rows, 13), NETWORK.tensor(12, 11), NETWORK.tensor(12)
    out_counts = layer.heads if ragged in ("out", "both") else None
    in_counts = layer.heads if ragged in ("in", "both") else None
    max_out = layer.max_heads * 3 if out_counts is not None else 10
    max_in = layer.max_heads * 2 if in_counts is not None else 11
    inputs = [x, weight, bias] + ([NETWORK.tensor(plan.num_rows, 12)] if residual else [])

    def op(*tensors: Tensor) -> Tensor:
        return dk.elastic_linear(
            *tensors,
            rows=layer.rows,
            out_counts=out_counts,
            in_counts=in_counts,
            out_unit=3,
            in_unit=2,
            max_out=max_out,
            max_in=max_in,
            activation="gelu",
        )

    def definition(*tensors: Tensor) -> Tensor:
        full = (*tensors, None) if not residual else tensors
        return reference.elastic_linear_fwd(*full, layer.rows, out_counts, in_counts, 3, 2, max_out, max_in, 1, False)[
            0
        ]

    through_op_and_autograd(op, definition, inputs)


@pytest.mark.parametrize("has_types", [False, True], ids=["no types", "types"])
@pytest.mark.parametrize("p", [0.0, 0.3], ids=["no dropout", "dropout"])
def test_embedding(has_types: bool, p: float) -> None:
    torch.manual_seed(3)
    ids = torch.tensor([1, 5, 1, 0, 3, 3, 2])
    places = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    types = torch.tensor([0, 0, 1, 1, 0, 1, 1]) if has_types else None
    rows = torch.tensor([0, 4, 7], dtype=torch.int32)
    state = torch.tensor(DROPOUT_STATE)
    inputs = [NETWORK.tensor(7, 8), NETWORK.tensor(6, 8), NETWORK.tensor(2, 8), NETWORK.tensor(8), NETWORK.tensor(8)]

    def op(word: Tensor, position: Tensor, token_type: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return dk.embed_layer_norm(
            ids, places, types, word, position, token_type, weight, bias, rows=rows, dropout_p=p, dropout_state=state
        )

    def definition(word: Tensor, position: Tensor, token_type: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.embed_layer_norm_fwd(
            ids, places, types, word, position, token_type, weight, bias, rows, state, 1e-12, p, 0, -1
        )[0]

    through_op_and_autograd(op, definition, inputs)


def test_the_padding_token_gets_no_gradient() -> None:
    torch.manual_seed(4)
    word = NETWORK.tensor(6, 8).requires_grad_()
    ids, places = torch.tensor([0, 2, 0, 3]), torch.arange(4)
    y = dk.embed_layer_norm(
        ids, places, None, word, NETWORK.tensor(4, 8), None, NETWORK.tensor(8), NETWORK.tensor(8), padding_idx=0
    )
    (y * torch.randn_like(y)).sum().backward()
    assert word.grad is not None
    assert word.grad[0].abs().max() == 0
    assert word.grad[2].abs().max() > 0


def test_add_layer_norm() -> None:
    torch.manual_seed(5)
    inputs = [NETWORK.tensor(7, 8), NETWORK.tensor(7, 8), NETWORK.tensor(8), NETWORK.tensor(8)]

    def definition(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x + residual, (8,), weight, bias, 1e-12)

    through_op_and_autograd(lambda *t: dk.add_layer_norm(*t), definition, inputs)


def test_finite_differences() -> None:
    """gradcheck through the registered ops, on the reference, for the whole of both sub-layers."""
    torch.manual_seed(6)
    plan, borders = plan_of("a group skips the layer")
    layer = plan.layer(0)
    network = Network(width=6, heads=4, size=2, neurons=12, dtype=torch.float64)
    x = network.tensor(plan.num_rows, 6)
    attention = [t.requires_grad_() for t in [x, *network.attention(), bias_table(network, plan.max_seqlen)]]
    ffn = [t.requires_grad_() for t in [x.detach().clone(), *network.ffn()]]
    state = torch.tensor(DROPOUT_STATE)
    with dk.use_provider("reference"):
        assert torch.autograd.gradcheck(
            lambda *t: dk.elastic_attention(
                *t[:7],
                borders,
                layer,
                max_seqlen=plan.max_seqlen,
                position_bias=t[7],
                attention_dropout=0.2,
                hidden_dropout=0.2,
                dropout_state=state,
            ),
            attention,
            fast_mode=True,
        )
        assert torch.autograd.gradcheck(lambda *t: dk.elastic_ffn(*t, layer), ffn, fast_mode=True)
