"""What every registered op owes, found by registration: a new op without one of these fails here until it has it.

A public function whose docstring tells shapes, errors and determinism; a fake; a builder of random samples, and with it
``opcheck``, ``gradcheck``, whole-graph compilation and the property tests; a case in ``benchmarks.check``; a benchmark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import dynabert_kernels as dk
from benchmarks import check
from benchmarks.registry import REGISTRY
from dynabert_kernels import reference
from dynabert_kernels.ops import providers
from dynabert_kernels.ops.registration import OP_NAMES
from dynabert_kernels.testing import properties
from dynabert_kernels.testing.random_samples import BUILDERS, Sample, random_sample
from dynabert_kernels.triton.environment import INTERPRETED

OPS = sorted(name.removesuffix("_fwd") for name in OP_NAMES if name.endswith("_fwd"))
HALVES = sorted(name for name in OP_NAMES if name.endswith(("_fwd", "_bwd")))
PLAIN = frozenset({"poison", "views", "half", "long"})

# Ops without a gradient: what they owe is held in a test of their own.
NOT_DIFFERENTIABLE = {
    "plan_table": "integers: tests/kernels/test_plan_table.py",
    "elastic_encoder": "for inference: tests/kernels/test_elastic_encoder.py",
    "elastic_encoder_int8": "for inference: tests/kernels/test_elastic_encoder_int8.py",
    "elastic_classifier": "for inference: tests/kernels/test_elastic_classifier.py",
    "classification_head": "for inference: tests/kernels/test_classification_head.py",
    "int8_linear": "for inference: tests/kernels/test_elastic_encoder_int8.py",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with properties.one_thread():
        yield


def runs_here(op: str) -> list[str]:
    """Providers that compute an op and its gradient on this machine's CPU; the interpreter where Triton is one."""
    names = ["reference", "cpu", *(["triton"] if INTERPRETED else [])]
    return [name for name in names if all(name in providers.registered()[f"{op}_{half}"] for half in ("fwd", "bwd"))]


PAIRS = [(op, provider) for op in OPS for provider in runs_here(op)]


def sample_of(op: str, provider: str, dtype: torch.dtype) -> Sample:
    """The first sample with two groups of tokens, a skipped layer or unequal widths, and few numbers."""
    for seed in range(200):
        sample = random_sample(op, seed, provider=provider, without=PLAIN, dtype=dtype)
        batch = sample.batch
        if len(batch.groups_with_rows) > 1 and len(set(batch.heads)) > 1 and max(batch.heads) > 0:
            return sample
    pytest.fail(f"no sample of {op} has two groups")


# What is written.


def test_no_op_is_forgotten() -> None:
    """Every forward has its backward, and nothing is registered that this file does not know."""
    assert sorted(OP_NAMES) == sorted([*HALVES, *NOT_DIFFERENTIABLE])
    assert [f"{op}_{half}" for op in OPS for half in ("bwd", "fwd")] == HALVES
    assert set(OPS) <= set(BUILDERS), "ops without a builder in dynabert_kernels/testing/random_samples.py"
    assert set(BUILDERS) <= set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_the_docstring_tells_shapes_errors_and_determinism(op: str) -> None:
    text = getattr(dk, op).__doc__ or ""
    for pattern, what in (
        (r"\((?:T|R|G|B)\b[^)]*\)", "the shape of an argument or result, such as (T, C)"),
        (r"Returns? ", "what comes back"),
        (r"Raises ``ValueError``", "the errors"),
        (r"``TypeError``", "the error of a wrong dtype"),
        (r"[Dd]eterministic", "whether it is deterministic"),
        (r"synchronise", "whether it synchronises"),
        (r"[Ss]ums?|[Aa]ccumulates|Softmax in float32", "the dtype of its sums"),
    ):
        assert re.search(pattern, text), f"{op}: the docstring does not tell {what}"
    for name in random_sample(op, 0).tensors:
        assert f"``{name}``" in text, f"{op}: the docstring does not tell of {name}"


@pytest.mark.parametrize("half", HALVES)
def test_the_definition_and_the_fake_are_there(half: str) -> None:
    assert callable(getattr(reference, half))
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dynabert::{half}", "Meta")
    assert "reference" in providers.registered()[half]


def test_every_op_has_a_case_and_a_benchmark() -> None:
    assert {op for op, _ in check.CASES} == set(OPS), "ops without a case in benchmarks/check.py"
    measured = {benchmark.op for benchmark in REGISTRY.values()}
    assert set(OPS) <= measured, "ops without a benchmark in benchmarks/registry"


# What PyTorch asks.


def calls_of(sample: Sample, provider: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """The arguments that both registered halves of an op get when its public function is called and differentiated."""
    calls: dict[str, tuple[Any, ...]] = {}
    choose = providers.choose

    def listening(op: str, args: tuple[Any, ...]) -> providers.Provider:
        calls.setdefault(op, args)
        return choose(op, args)

    with monkeypatch.context() as patch:
        patch.setattr(providers, "choose", listening)
        properties.results(sample, provider, backward=True)
    return calls


def fresh(argument: Any, differentiable: bool) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().clone().requires_grad_(differentiable and argument.is_floating_point())


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = sample_of(op, "reference", torch.float32)
    calls = calls_of(sample, "reference", monkeypatch)
    for half in (f"{op}_fwd", f"{op}_bwd"):
        named = zip(calls[half], getattr(torch.ops.dynabert, half).default._schema.arguments, strict=True)
        leaves = [half.endswith("_fwd") and argument.name in sample.differentiable for _, argument in named]
        arguments = tuple(fresh(value, leaf) for value, leaf in zip(calls[half], leaves, strict=True))
        with dk.use_provider("reference"):
            torch.library.opcheck(getattr(torch.ops.dynabert, half).default, arguments)


@pytest.mark.parametrize(("op", "provider"), [pair for pair in PAIRS if pair[1] != "triton"])
def test_gradcheck(op: str, provider: str) -> None:
    """In float64, along random directions: the sizes of a sample are too many for every entry alone."""
    sample = sample_of(op, provider, torch.float64)
    names = sample.differentiable
    others = {name: tensor for name, tensor in sample.tensors.items() if name not in names}

    def function(*leaves: Tensor) -> Tensor:
        return sample.call({**others, **dict(zip(names, leaves, strict=True))})

    leaves = [sample.tensors[name].detach().clone().requires_grad_() for name in names]
    with dk.use_provider(provider), properties.interpreter(provider):
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("op", [op for op, provider in PAIRS if provider == "triton"])
def test_interpreted_kernels_have_a_gradcheck_of_their_own(op: str) -> None:
    """On fewer numbers than a random sample has: interpreted, one of those takes half a minute."""
    text = (Path(__file__).parent / f"test_triton_{op}.py").read_text(encoding="utf-8")
    # Or float64 itself against the written gradient, which gradcheck holds elsewhere.
    assert "torch.autograd.gradcheck(" in text or "def test_float64_is_computed_in_float64" in text


@pytest.mark.parametrize(("op", "provider"), [pair for pair in PAIRS if pair[1] != "triton"])
def test_compiles_whole_and_not_again_for_a_new_plan(op: str, provider: str) -> None:
    """Forward and backward; a new plan is new data for the same graph. Whose kernel runs is no part of the graph."""
    torch._dynamo.reset()
    sample = sample_of(op, provider, torch.float32)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def step(tensors: dict[str, Tensor], plan: dict[str, Any]) -> Tensor:
        return getattr(dk, op)(**tensors, **sample.fixed, **plan)

    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    batch = sample.batch
    turned = replace(batch, lengths=batch.lengths[1:] + batch.lengths[:1])
    moved = replace(batch, heads=batch.heads[1:] + batch.heads[:1], neurons=batch.neurons[1:] + batch.neurons[:1])
    graphs = []
    for changed in (batch, turned, moved, batch):
        plan = sample.plan(changed)
        results = []
        for function in (compiled, step):
            leaves = {name: fresh(t, name in sample.differentiable) for name, t in sample.tensors.items()}
            wanted = [leaves[name] for name in sample.differentiable]
            with dk.use_provider(provider):
                y = function(leaves, plan)
                results.append([y.detach(), *torch.autograd.grad(y, wanted, torch.ones_like(y))])
        for ours, eager in zip(*results, strict=True):
            torch.testing.assert_close(ours, eager)
        graphs.append(counter.frame_count)
    torch._dynamo.reset()
    assert len(set(graphs)) == 1, f"graphs compiled after each plan: {graphs}"
