"""``torch.func``: each op's gradient by ``grad``, of a batch by ``vmap``, and of both, is what backward gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

import dynabert_kernels as dk
from dynabert_kernels.testing import properties
from dynabert_kernels.testing.random_samples import Sample
from tests.kernels.test_every_op import OPS, PAIRS, sample_of

HERE = [pair for pair in PAIRS if pair[1] != "triton"]
Loss = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _one_thread_and_no_word_of_loops() -> Iterator[None]:
    with properties.one_thread(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # PyTorch's, of any op without a batching rule
        yield


def loss_of(sample: Sample) -> Loss:
    def loss(*leaves: Tensor) -> Tensor:
        own = dict(zip(sample.differentiable, leaves, strict=True))
        return sample.call({**sample.tensors, **own}).square().sum()

    return loss


def leaves_of(sample: Sample) -> list[Tensor]:
    return [sample.tensors[name].detach().clone() for name in sample.differentiable]


def by_backward(loss: Loss, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    own = [leaf.clone().requires_grad_() for leaf in leaves]
    return torch.autograd.grad(loss(*own), own)


def check(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("op", "provider"), HERE)
def test_gradients(op: str, provider: str) -> None:
    sample = sample_of(op, provider, torch.float64)
    loss, leaves = loss_of(sample), leaves_of(sample)
    every = tuple(range(len(leaves)))
    two = [leaves, [leaf * 0.5 for leaf in leaves]]
    stacked = [torch.stack(pair) for pair in zip(*two, strict=True)]
    with dk.use_provider(provider):
        alone = [by_backward(loss, one) for one in two]
        check(grad(loss, argnums=every)(*leaves), alone[0])
        both = tuple(torch.stack(pair) for pair in zip(*alone, strict=True))
        check(vmap(grad(loss, argnums=every))(*stacked), both)
        check(grad(lambda *given: vmap(loss)(*given).sum(), argnums=every)(*stacked), both)
        # The tensors that vmap hands in say that they require no gradient.
        check(by_backward(lambda *given: vmap(loss)(*given).sum(), stacked), both)


@pytest.mark.parametrize("op", OPS)
def test_second_derivatives_are_refused(op: str) -> None:
    sample = sample_of(op, "reference", torch.float64)
    loss, leaves = loss_of(sample), leaves_of(sample)
    refused = pytest.raises(RuntimeError, match=f"{op}: no second derivatives")
    with dk.use_provider("reference"):
        with refused:
            grad(lambda *given: grad(loss)(*given).square().sum())(*leaves)
        leaves[0].requires_grad_()
        with refused:
            grad(loss)(*leaves).square().sum().backward()
        stacked = torch.stack([leaves[0], leaves[0]])
        batched = vmap(lambda first: loss(first, *leaves[1:]))(stacked).sum()
        (gradient,) = torch.autograd.grad(batched, stacked, create_graph=True)
        with refused:
            gradient.square().sum().backward()


def test_inference_ops_refuse_a_gradient_that_vmap_hides() -> None:
    borders = torch.tensor([0, 3], dtype=torch.int32)
    weights = torch.randn(4, 8), torch.randn(4)
    x = torch.randn(2, 3, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="classification_head: it has no backward"):
        vmap(lambda one: dk.classification_head(one, borders, None, None, *weights))(x)


def test_jacobian_of_a_map() -> None:
    x, weight = torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    found = jacrev(lambda x: dk.elastic_linear(x, weight))(x)
    expected = torch.einsum("ts,nk->tnsk", torch.eye(3, dtype=torch.float64), weight)
    torch.testing.assert_close(found, expected)
