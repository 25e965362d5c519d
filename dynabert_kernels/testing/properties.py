"""What must hold for any sample of any op on any provider, and a command that tries thousands of them.

* Results and every gradient are as near to float64 as PyTorch is (twice, and three times for gradients).
* Nothing that must not be read is read: it holds NaN, and so does every allocation before it is written.
* Past a row's width the result is exactly zero, and so is the gradient of what was not read.
* The same call gives the same bits again.
* A group in a batch gets what it gets alone, and a weight's gradient is the sum over the groups alone.

    python -m dynabert_kernels.testing.properties --provider cpu --cases 10000 -n 2
    python -m dynabert_kernels.testing.properties --provider cpu --op elastic_ffn --seed 1234

The second is what a failure prints. ``triton`` and ``cuda`` run on a GPU; the definition they are held to stays on the
CPU. Without a GPU, ``TRITON_INTERPRET=1`` must be set for ``--provider triton``.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels.ops import providers
from dynabert_kernels.testing.comparison import GRADIENT_FACTOR, OUTPUT_FACTOR, Check, compare, floor
from dynabert_kernels.testing.inputs import poisoned_allocations
from dynabert_kernels.testing.random_batches import device_of
from dynabert_kernels.testing.random_samples import BUILDERS, FEATURES, Sample, placed, random_sample
from dynabert_kernels.testing.timing import why_lost

# One draw of a few numbers may by luck round well for PyTorch: a result that is red is judged by the largest errors,
# of both, over so many draws of the values.
DRAWS = 48
# Luck is a factor of two or three; what errs more than so many times what is allowed is wrong without a second look.
_NO_LUCK = 8.0


@dataclass(frozen=True)
class Outcome:
    """What one sample showed: faults in words (none: all holds), or why the provider refuses it. ``lost``: why its
    process can try no other, where a fault took the device away."""

    op: str
    provider: str
    seed: int
    about: str
    faults: tuple[str, ...]
    refusal: str | None = None
    backward: bool = True
    lost: str | None = None


def results(sample: Sample, provider: str, *, backward: bool) -> dict[str, Tensor]:
    """``y`` and, where asked for, the gradient of every tensor under its name with a ``d``, on the CPU. Without them
    nothing is saved, as in inference."""
    names, device = sample.differentiable, device_of(provider)
    # detach, not clone: a clone has no gaps between its rows
    there = {name: placed(tensor.detach(), device) for name, tensor in sample.tensors.items()}
    leaves = {name: tensor.requires_grad_(backward and name in names) for name, tensor in there.items()}
    with dk.use_provider(provider), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        y = sample.call(leaves, device)
        gradients: Sequence[Tensor] = ()
        if backward:
            gradients = torch.autograd.grad(y, [leaves[name] for name in names], placed(sample.dy, device))
    found = {"y": y.detach(), **{f"d{name}": g for name, g in zip(names, gradients, strict=False)}}
    return {name: tensor.cpu() for name, tensor in found.items()}


def has_backward(op: str, provider: str) -> bool:
    """Whether a provider computes the gradient itself."""
    return provider in providers.registered().get(f"{op}_bwd", ())


def _factor(name: str) -> float:
    return OUTPUT_FACTOR if name == "y" else GRADIENT_FACTOR


def _against_float64(sample: Sample, ours: dict[str, Tensor]) -> dict[str, Check]:
    backward = len(ours) > 1
    exact = results(sample.to(torch.float64), "reference", backward=backward)
    torchs = results(sample, "reference", backward=backward)
    checks = {}
    for name, value in ours.items():
        if not exact[name].isfinite().all():
            checks[name] = Check(name, 0, 0, 0, "the definition itself reads what it must not: it is not finite")
        else:
            checks[name] = compare(name, value, exact[name], torchs[name], factor=_factor(name))
    return checks


def judged(
    sample: Sample,
    ours: dict[str, Tensor],
    provider: str,
    *,
    without: frozenset[str] = frozenset(),
    dtype: torch.dtype | None = None,
    compute: Callable[[Sample, str, bool], dict[str, Tensor]] | None = None,
) -> dict[str, Check]:
    """Every result against float64. What is red by its numbers is judged again by the largest errors of many draws.

    ``compute``: how ``ours`` came about; None: by the op.
    """
    compute = _by_the_op if compute is None else compute
    checks = _against_float64(sample, ours)
    red = {name for name, found in checks.items() if not found.green}
    beyond = [name for name in red if not checks[name].error <= _NO_LUCK * checks[name].allowed_error]
    if not red or beyond or any(checks[name].fault for name in red):
        return checks
    for draw in range(1, DRAWS):
        again = random_sample(sample.op, sample.seed, provider=provider, draw=draw, without=without, dtype=dtype)
        results_again = compute(again, provider, len(ours) > 1)
        for name, found in _against_float64(again, results_again).items():
            if name in red and checks[name].fault is None:
                error = max(found.error, checks[name].error)
                torch_error = max(found.torch_error, checks[name].torch_error)
                allowed = max(_factor(name) * torch_error, floor(ours[name].dtype))
                checks[name] = Check(name, error, torch_error, allowed, found.fault)
    return checks


def _zeros(sample: Sample, ours: dict[str, Tensor]) -> Iterator[str]:
    if ours["y"].shape == sample.unused.shape and ours["y"][sample.unused].count_nonzero() > 0:
        yield "y: not exactly zero past a row's width or in rows of no group"
    for name, mask in sample.inactive.items():
        gradient = ours.get(f"d{name}")
        if gradient is not None and gradient.shape == mask.shape and gradient[mask].count_nonzero() > 0:
            yield f"d{name}: not exactly zero where {name} must not be read"


def _by_the_op(sample: Sample, provider: str, backward: bool) -> dict[str, Tensor]:
    with poisoned_allocations():
        return results(sample, provider, backward=backward)


def _by_groups(sample: Sample, provider: str, backward: bool) -> dict[str, Tensor]:
    """The groups one by one, put together."""
    like = _by_the_op(sample, provider, backward)
    together = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in like.items()}
    for group in sample.batch.groups_with_rows:
        rows, places = sample.batch.rows_of(group), sample.places_of(group)
        for name, value in _by_the_op(sample.alone(group), provider, backward).items():
            if name == "y" or name[1:] in sample.by_row:
                where = (places if name == "y" else rows, *(slice(size) for size in value.shape[1:]))
                together[name][where] = value.double()
            else:
                together[name] += value.double()
    return {name: value.to(like[name].dtype) for name, value in together.items()}


def _groups_alone(sample: Sample, provider: str, backward: bool, without: frozenset[str]) -> Iterator[str]:
    """The groups put together are held to what the batch is held to; in the wide dtypes only."""
    if sample.op in _ROWS_OF_NO_GROUP_COUNT and sample.batch.padding:
        return
    together = _by_groups(sample, provider, backward)
    for check in judged(sample, together, provider, without=without, compute=_by_groups).values():
        if not check.green:
            yield f"groups alone, put together: {check}"


def _in_inference(sample: Sample, ours: dict[str, Tensor], provider: str, without: frozenset[str]) -> Iterator[str]:
    """Where nothing is saved a provider may go another way; the result is held to the same."""
    bare = _by_the_op(sample, provider, False)
    if not _same_bits(bare["y"], ours["y"]):
        for found in judged(sample, bare, provider, without=without).values():
            if not found.green:
                yield f"without gradients: {found}"


# These ops know no rows of no group: all rows count.
_ROWS_OF_NO_GROUP_COUNT = ("add_layer_norm", "embed_layer_norm")


def check(op: str, seed: int, provider: str, *, without: frozenset[str] = frozenset()) -> Outcome:
    """Tries one sample. Raises nothing for a wrong provider: what it raises is a fault."""
    sample = random_sample(op, seed, provider=provider, without=without)
    backward = has_backward(op, provider)
    faults: list[str] = []
    try:
        with poisoned_allocations():
            ours = results(sample, provider, backward=backward)
        checks = judged(sample, ours, provider, without=without)
        faults += [str(found) for found in checks.values() if not found.green]
        faults += _zeros(sample, ours)
        if not faults and seed % 3 == 0:
            with poisoned_allocations():
                again = results(sample, provider, backward=backward)
            faults += [
                f"{name}: other bits the second time" for name in ours if not _same_bits(ours[name], again[name])
            ]
        if not faults and backward:
            faults += _in_inference(sample, ours, provider, without)
        if not faults and sample.splits and sample.wide and len(sample.batch.groups_with_rows) > 1:
            faults += _groups_alone(sample, provider, backward, without)
    except Exception as error:  # Triton's own errors (a compiler's, too little shared memory) are no RuntimeErrors
        refusal = str(error).partition("was forced, but ")[2]
        if refusal:
            return Outcome(op, provider, seed, sample.about, (), refusal)
        faults.append(f"{type(error).__name__}: {error}")
    return Outcome(op, provider, seed, sample.about, tuple(faults), backward=backward)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first, second)


def simplest(op: str, seed: int, provider: str) -> frozenset[str]:
    """Features that a failing sample does not need to fail: left out one by one, as long as it still fails."""
    without: frozenset[str] = frozenset()
    for feature in FEATURES:
        if check(op, seed, provider, without=without | {feature}).faults:
            without |= {feature}
    return without


def command(op: str, seed: int, provider: str, without: Iterable[str] = ()) -> str:
    """The one line that tries a sample again."""
    left_out = "".join(f" {feature}" for feature in sorted(without))
    environment = "TRITON_INTERPRET=1 " if provider == "triton" and not torch.cuda.is_available() else ""
    flags = f"--provider {provider} --op {op} --seed {seed}" + (f" --without{left_out}" if left_out else "")
    return f"{environment}python -m dynabert_kernels.testing.properties {flags}"


def explain(outcome: Outcome) -> str:
    """A failure in words: what it saw, how to see it again, and the simplest form that still fails."""
    without = simplest(outcome.op, outcome.seed, outcome.provider)
    lines = [f"{outcome.op} on {outcome.provider}, seed {outcome.seed}: {outcome.about}"]
    lines += [f"  {fault}" for fault in outcome.faults]
    lines.append(f"  again:    {command(outcome.op, outcome.seed, outcome.provider)}")
    if without:
        simple = check(outcome.op, outcome.seed, outcome.provider, without=without)
        lines.append(f"  simplest: {command(outcome.op, outcome.seed, outcome.provider, without)}")
        lines.append(f"            {simple.about}")
    return "\n".join(lines)


@contextmanager
def one_thread() -> Iterator[None]:
    """Small shapes: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def interpreter(provider: str) -> Any:
    """The interpreter, multiplying as a GPU does, where Triton is interpreted and asked for."""
    from dynabert_kernels.testing.interpreter import products_of_a_gpu
    from dynabert_kernels.triton.environment import INTERPRETED

    return products_of_a_gpu() if provider == "triton" and INTERPRETED else nullcontext()


def ops_of(provider: str) -> list[str]:
    """The ops of a provider that have a builder."""
    return [op for op in sorted(BUILDERS) if provider in providers.registered().get(f"{op}_fwd", ())]


def _try(case: tuple[str, int], provider: str, briefly: bool) -> tuple[Outcome, str]:
    with one_thread(), interpreter(provider):
        outcome = check(*case, provider)
        if not outcome.faults:
            return outcome, ""
        outcome = replace(outcome, lost=why_lost(device_of(provider)))
        if briefly or outcome.lost is not None:
            again = command(outcome.op, outcome.seed, provider)
            return outcome, f"RED {outcome.op}, seed {outcome.seed}: {'; '.join(outcome.faults)}\n  again:    {again}"
        return outcome, explain(outcome)


def _outcomes(
    cases: list[tuple[str, int]], provider: str, processes: int, briefly: bool
) -> Iterator[tuple[Outcome, str]]:
    work = functools.partial(_try, provider=provider, briefly=briefly)
    if processes <= 1:
        yield from map(work, cases)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        # Triton's first samples compile for seconds each: results in bunches would come after the time is over.
        yield from pool.imap_unordered(work, cases, chunksize=1 if provider == "triton" else 8)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all holds. 1: something does not, and is printed with its command. 2: nothing could be tried."""
    flags = argparse.ArgumentParser(prog="python -m dynabert_kernels.testing.properties")
    flags.add_argument("--provider", default="cpu", choices=providers.NAMES)
    flags.add_argument("--op", nargs="+", default=[], choices=sorted(BUILDERS), help="default: all")
    flags.add_argument("--seed", type=int, help="only this one")
    flags.add_argument("--first", type=int, default=0, help="the first seed")
    flags.add_argument("--cases", type=int, default=600, help="samples in all, shared among the ops")
    flags.add_argument("--without", nargs="+", default=[], choices=FEATURES, help="leave these out; with --seed")
    flags.add_argument("--stop", action="store_true", help="end at the first failure, which is said in few words")
    flags.add_argument(
        "--seconds",
        type=float,
        help="begin no sample after so many; says how many were tried, and failures in few words",
    )
    flags.add_argument("-n", type=int, default=1, help="processes")
    options = flags.parse_args(arguments)
    # Memory is poisoned by PyTorch's deterministic mode, which on a GPU asks for this before the first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    ops = [op for op in options.op or sorted(BUILDERS) if op in ops_of(options.provider)]
    if not ops:
        print(f"properties: provider {options.provider} has none of these ops here", file=sys.stderr)
        return 2
    if options.seed is not None:
        with one_thread(), interpreter(options.provider):
            found = [check(op, options.seed, options.provider, without=frozenset(options.without)) for op in ops]
        for outcome in found:
            verdict = outcome.refusal or "; ".join(outcome.faults) or "holds"
            print(f"{outcome.op} on {outcome.provider}, seed {outcome.seed}: {verdict}\n  {outcome.about}")
        return 1 if any(outcome.faults for outcome in found) else 0
    each = -(-options.cases // len(ops))
    cases = [(op, seed) for seed in range(options.first, options.first + each) for op in ops]
    begin = said = time.monotonic()
    counts = dict.fromkeys(("hold", "refused", "fail"), 0)
    # To make a failing sample simpler takes other samples, each with kernels to compile: where time is short its worker
    # would be ended before it has told that there is one.
    briefly = options.stop or options.seconds is not None
    for outcome, words in _outcomes(cases, options.provider, options.n, briefly):
        counts["fail" if outcome.faults else "refused" if outcome.refusal else "hold"] += 1
        if words:
            print(words, flush=True)
        if time.monotonic() - said > 15:
            said = time.monotonic()
            print(f"{sum(counts.values())} of {len(cases)}, {said - begin:.0f} s: {counts}", flush=True)
        if outcome.lost is not None:  # else all that this process tries from now on would be red
            print(f"the device was lost, what follows was not tried: {outcome.lost}", flush=True)
            break
        if outcome.faults and options.stop:
            break
        if options.seconds is not None and time.monotonic() - begin > options.seconds:
            print(f"the time is over; {len(cases) - sum(counts.values())} samples were left out", flush=True)
            break
    where = f"{options.provider} on {device_of(options.provider)}"
    print(f"{where}: {sum(counts.values())} samples of {', '.join(ops)}: {counts}", flush=True)
    return 1 if counts["fail"] else 0 if counts["hold"] else 2


if __name__ == "__main__":
    raise SystemExit(main())
