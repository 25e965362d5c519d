"""No op copies a weight: the allocator is watched, forward and backward, and the pointers stay.

The weights are far larger than the activations, so any copy of a weight's active part stands out.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from tests.kernels.cases import Network

# A weight's active part is at least 8 heads x 3 x 16 x 256 floats = 393 kB; activations stay below 100 kB.
NETWORK = Network(width=256, heads=32, size=16, neurons=4096, dtype=torch.float32)
SHAPES = [dk.SubnetShape((32,), (4096,)), dk.SubnetShape((8,), (1024,))]
ACTIVE_BYTES = 8 * 3 * 16 * 256 * 4


def allocations(call: Callable[[], object]) -> list[int]:
    """Sizes in bytes of every tensor allocation made while ``call`` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    # profile.events() nets an allocation against its release; the raw records keep each one.
    raw = profile.profiler.kineto_results.events()
    return [event.nbytes() for event in raw if event.name() == "[memory]" and event.nbytes() > 0]


def test_the_watch_sees_a_copy() -> None:
    weight = NETWORK.attention()[0]
    assert max(allocations(lambda: weight[:8].clone())) >= ACTIVE_BYTES


def calls() -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    torch.manual_seed(0)
    plan = dk.Plan.build(SHAPES, [[2], [1]])
    layer, borders = plan.layer(0), torch.tensor([0, 2, 3], dtype=torch.int32)
    x = NETWORK.tensor(3, 256)
    attention = [tensor.requires_grad_() for tensor in NETWORK.attention()]
    ffn = [tensor.requires_grad_() for tensor in NETWORK.ffn()]
    return {
        "elastic_attention": (lambda: dk.elastic_attention(x, *attention, borders, layer, max_seqlen=2), attention),
        "elastic_ffn": (lambda: dk.elastic_ffn(x, *ffn, layer), ffn),
        "elastic_linear": (
            lambda: dk.elastic_linear(x, ffn[0], ffn[1], rows=layer.rows, out_counts=layer.neurons, max_out=4096),
            ffn[:2],
        ),
        "elastic_linear, columns": (
            lambda: dk.elastic_linear(
                torch.ones(3, 4096), ffn[2], ffn[3], rows=layer.rows, in_counts=layer.neurons, max_in=4096
            ),
            ffn[2:4],
        ),
    }


@pytest.mark.parametrize("op", sorted(calls()))
@pytest.mark.parametrize("provider", ["reference", "rule"])
def test_forward_allocates_no_weight(op: str, provider: str) -> None:
    call, weights = calls()[op]
    pointers = [weight.data_ptr() for weight in weights]

    def run() -> None:
        with torch.no_grad():
            if provider == "rule":
                call()
            else:
                with dk.use_provider(provider):
                    call()

    run()
    assert max(allocations(run)) < ACTIVE_BYTES
    assert [weight.data_ptr() for weight in weights] == pointers


@pytest.mark.parametrize("op", sorted(calls()))
def test_backward_allocates_each_gradient_once(op: str) -> None:
    call, weights = calls()[op]
    y = call()
    large = [size for size in allocations(lambda: torch.autograd.grad(y.sum(), weights)) if size >= ACTIVE_BYTES]
    gradients = [weight.numel() * 4 for weight in weights if weight.numel() * 4 >= ACTIVE_BYTES]
    assert sorted(large) == sorted(gradients)
