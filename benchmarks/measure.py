"""Measures one group: a benchmark on one shape, batch and dtype, all widths and providers interleaved.

Widths and providers take turns in the same rounds, so both ratios, to plain PyTorch and to the full width, are free of
the machine's drift.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any

import torch

import dynabert_kernels as dk
from dynabert_kernels.ops import providers as registry_of_providers
from dynabert_kernels.testing.timing import (
    CacheFlush,
    Ceilings,
    Clock,
    Contender,
    Rotation,
    Timing,
    dtype_name,
    sets_to_displace,
    time_interleaved,
)

from . import rows, verify
from .problems import Problem, tokens_name, uniform
from .registry import Benchmark, Draw, Tensors, peers
from .rows import Row

PEER = "torch"
FULL = uniform(1.0).name
CACHES = {
    "use": "weights rotate through copies larger than the cache, activations stay: as inside a network",
    "warm": "one set of everything",
    "cold": "the cache is flushed before each call",
}


@dataclass(frozen=True)
class Settings:
    """How a group is measured."""

    device: torch.device
    clock: Clock
    providers: tuple[str, ...]
    rounds: int
    cache: str
    seed: int
    ceilings: Ceilings


def measure_group(benchmark: Benchmark, given: Sequence[Problem], settings: Settings) -> list[Row]:
    """The rows of one group, the peer first, for each problem; they differ only in their mix of widths. An op without
    a width has the rows of width 1."""
    problems = list(given) if benchmark.elastic else [replace(given[0], mix=uniform(1.0))]
    with torch.no_grad():
        found = [row for problem in problems for row in _checked(benchmark, problem, settings)]
        runnable = [row for row in found if row.status == rows.MEASURED]
        try:
            timings = _timed(benchmark, problems, runnable, settings)
        except Exception as error:
            # Out of memory, or a kernel that fails on the inputs it is timed on: said in the rows, and the run goes on.
            note = f"timing raised {type(error).__name__}: {error}"
            return [replace(row, status=rows.FAILED, note=note) if row in runnable else row for row in found]
    by_plan = {problem.mix.name: problem for problem in problems}
    filled = [
        _with_times(row, benchmark, by_plan[row.plan], timings[_key(row)], settings) if row in runnable else row
        for row in found
    ]
    return [_with_ratios(row, benchmark, by_plan, filled) for row in filled]


def _key(row: Row) -> str:
    return f"{row.provider} at {row.plan}"


def _generator(device: torch.device, seed: int) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


def _checked(benchmark: Benchmark, problem: Problem, settings: Settings) -> list[Row]:
    """One row for each provider and the peer, without times: right, wrong, failing or not available."""
    # Other numbers than those that are timed.
    draw = Draw(settings.device, problem.dtype, _generator(settings.device, settings.seed + 1))
    tensors = benchmark.tensors(problem, draw)
    arguments = benchmark.arguments(problem, tensors)
    exact = verify.exact_results(benchmark, problem, tensors)
    if problem.dropout > 0.0:
        # PyTorch drops other entries than the ops do: the op's definition in the same dtype is the yardstick.
        torch_results = verify.as_tuple(benchmark.definition()(*arguments))
    else:
        torch_results = peers.results(benchmark.peer, problem, tensors)
    blank = Row(
        benchmark=benchmark.name,
        op=benchmark.op,
        direction=benchmark.direction,
        provider=PEER,
        shape=problem.shape.name,
        tokens=tokens_name(problem.lengths),
        num_tokens=problem.T,
        plan=problem.mix.name,
        width=problem.width,
        heads=problem.k,
        neurons=problem.f,
        dtype=dtype_name(problem.dtype),
        dropout=problem.dropout,
        cache=settings.cache,
        seed=settings.seed,
        status=rows.MEASURED,
    )
    peer = verify.worst(verify.compare_all(benchmark.checked, torch_results, exact, torch_results, benchmark.factor))
    found = [
        replace(
            blank,
            note=benchmark.peer_text,
            error=peer.error,
            torch_error=peer.torch_error,
            allowed_error=peer.allowed_error,
        )
    ]
    for name in settings.providers:
        row = replace(blank, provider=name)
        reason = why_unavailable(benchmark.registered, name, arguments)
        if reason is not None:
            found.append(replace(row, status=rows.UNAVAILABLE, note=reason))
            continue
        try:
            with dk.use_provider(name), verify.poisoned():
                results = verify.as_tuple(benchmark.function()(*arguments))
                if settings.device.type == "cuda":
                    torch.cuda.synchronize(settings.device)
        except Exception as error:  # Triton's own errors (a compiler's, too little shared memory) are no RuntimeErrors
            found.append(replace(row, status=rows.FAILED, note=f"raised {type(error).__name__}: {error}"))
            continue
        check = verify.worst(verify.compare_all(benchmark.checked, results, exact, torch_results, benchmark.factor))
        row = replace(row, error=check.error, torch_error=check.torch_error, allowed_error=check.allowed_error, note="")
        found.append(row if check.green else replace(row, status=rows.RED, note=str(check)))
    return found


def why_unavailable(registered: str, provider: str, arguments: tuple[Any, ...]) -> str | None:
    """Why ``provider`` cannot be measured on these arguments; None where it can."""
    if provider == "triton" and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "Triton runs in its interpreter (TRITON_INTERPRET is set): its time says nothing about the kernel"
    if provider not in registry_of_providers.registered().get(registered, ()):
        return registry_of_providers.unavailable().get(provider, "it does not have this op")
    try:
        with dk.use_provider(provider):
            registry_of_providers.choose(registered, arguments)
    except ValueError as error:
        return str(error).partition("was forced, but ")[2] or str(error)
    return None


def _timed(
    benchmark: Benchmark, problems: Sequence[Problem], runnable: Sequence[Row], settings: Settings
) -> dict[str, Timing]:
    """Times of all rows that may be timed, by their key."""
    draw = Draw(settings.device, problems[0].dtype, _generator(settings.device, settings.seed))
    weights = benchmark.weights(problems[0], draw)
    num_sets = 1
    if rotates(benchmark, settings):
        least = min(benchmark.weight_bytes(problem) for problem in problems)
        num_sets = sets_to_displace(settings.ceilings.cache_bytes, least)
    sets = [weights, *({name: tensor.clone() for name, tensor in weights.items()} for _ in range(num_sets - 1))]
    rotation = Rotation(num_sets)
    contenders: dict[str, Contender] = {}
    for problem in problems:
        tensors = benchmark.tensors(problem, draw, weights)
        together = [tensors | copy for copy in sets]
        for row in runnable:
            if row.plan == problem.mix.name:
                contenders[_key(row)] = _contender(benchmark, problem, row.provider, together, rotation)
    return time_interleaved(
        contenders,
        clock=settings.clock,
        rounds=settings.rounds,
        before_sample=CacheFlush(settings.device, settings.ceilings.cache_bytes) if settings.cache == "cold" else None,
    )


def rotates(benchmark: Benchmark, settings: Settings) -> bool:
    """Whether weights are displaced between calls. A LayerNorm's are a few kilobytes, read ahead in any network."""
    return settings.cache == "use" and benchmark.elastic


def _contender(
    benchmark: Benchmark, problem: Problem, provider: str, sets: Sequence[Tensors], rotation: Rotation
) -> Contender:
    if provider == PEER:
        prepared = benchmark.peer.prepare(problem, sets)
        return rotation.contender(prepared, [(index,) for index in range(len(sets))])
    function = benchmark.function()
    with dk.use_provider(provider):
        # A context that remembers the provider: entering `use_provider` in each call would be timed with it.
        context = copy_context()
    return rotation.contender(context.run, [(function, *benchmark.arguments(problem, tensors)) for tensors in sets])


def _with_times(row: Row, benchmark: Benchmark, problem: Problem, timing: Timing, settings: Settings) -> Row:
    weight_bytes = benchmark.weight_bytes(problem) + benchmark.gradient_bytes(problem)
    activation_bytes = benchmark.activation_bytes(problem)
    operations = benchmark.operations(problem)
    cold_bytes = {
        "use": weight_bytes if rotates(benchmark, settings) else 0,
        "warm": 0,
        "cold": weight_bytes + activation_bytes,
    }[settings.cache]
    size_bytes = weight_bytes + activation_bytes
    bytes_ms = settings.ceilings.bytes_ms(cold_bytes=cold_bytes, cached_bytes=size_bytes - cold_bytes)
    operations_ms = settings.ceilings.operations_ms(operations, problem.dtype)
    floor_ms = max(bytes_ms, operations_ms)
    return replace(
        row,
        median_ms=timing.median_ms,
        p20_ms=timing.p20_ms,
        p80_ms=timing.p80_ms,
        best_ms=timing.best_ms,
        host_ms=timing.host_ms,
        rounds=timing.rounds,
        calls_per_sample=timing.calls_per_sample,
        size_bytes=size_bytes,
        operations=operations,
        gb_s=size_bytes / timing.median_ms / 1e6,
        gflop_s=operations / timing.median_ms / 1e6,
        bound="operations" if operations_ms > bytes_ms else "bytes",
        floor_ms=floor_ms,
        ceiling_share=floor_ms / timing.median_ms,
    )


def _with_ratios(row: Row, benchmark: Benchmark, problems: dict[str, Problem], group: Sequence[Row]) -> Row:
    if row.median_ms is None:
        return row
    medians = {_key(other): other.median_ms for other in group if other.median_ms is not None}
    peer, full = medians.get(f"{PEER} at {row.plan}"), medians.get(f"{row.provider} at {FULL}")
    ideal = None
    if benchmark.elastic and FULL in problems:
        ideal = benchmark.operations(problems[FULL]) / benchmark.operations(problems[row.plan])
    return replace(
        row,
        speedup_vs_torch=None if peer is None else peer / row.median_ms,
        speedup_vs_width_1=None if full is None or not benchmark.elastic else full / row.median_ms,
        ideal_speedup=ideal,
    )
