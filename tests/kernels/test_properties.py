"""Random samples of every op on the providers that run here; a failure prints the line that tries its seed again.

``make test-long`` tries ten thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels import reference
from dynabert_kernels.ops import providers
from dynabert_kernels.ops.providers import Provider
from dynabert_kernels.testing import properties
from dynabert_kernels.testing.random_samples import BUILDERS, FEATURES, placed, random_sample
from dynabert_kernels.triton.environment import INTERPRETED

OPS = sorted(BUILDERS)
NAN = float("nan")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with properties.one_thread():
        yield


def hold(op: str, provider: str, seeds: range) -> None:
    """Every seed holds, and most are not refused: a provider that refuses everything has shown nothing."""
    refused = 0
    for seed in seeds:
        outcome = properties.check(op, seed, provider)
        assert not outcome.faults, "\n" + properties.explain(outcome)
        refused += outcome.refusal is not None
    assert refused <= len(seeds) // 4, f"{provider} refused {refused} of {len(seeds)} samples of {op}"


def has(op: str, provider: str) -> bool:
    return provider in providers.registered()[f"{op}_fwd"]


@pytest.mark.parametrize("op", OPS)
def test_the_definition(op: str) -> None:
    hold(op, "reference", range(12))


@pytest.mark.skipif(dk.NATIVE is None, reason="the native library is not built: there is no cpu provider to test")
@pytest.mark.parametrize("op", OPS)
def test_cpu(op: str) -> None:
    if not has(op, "cpu"):
        pytest.skip(f"the cpu provider has no {op}")
    hold(op, "cpu", range(60))


@pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled here")
@pytest.mark.parametrize("op", OPS)
def test_triton_interpreted(op: str) -> None:
    if not has(op, "triton"):
        pytest.skip(f"the triton provider has no {op}")
    hold(op, "triton", range(4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("provider", ["triton", "cuda"])
def test_on_a_gpu(provider: str, op: str) -> None:
    if not has(op, provider) or properties.device_of(provider).type != "cuda":
        pytest.skip(f"the {provider} provider has no {op} on this GPU")
    hold(op, provider, range(40))


# The samples themselves.


@pytest.mark.parametrize("op", OPS)
def test_a_seed_is_a_sample(op: str) -> None:
    first, second, other = (random_sample(op, seed, provider="cpu") for seed in (5, 5, 6))
    redrawn = random_sample(op, 5, provider="cpu", draw=1)
    assert (first.about, first.fixed) == (second.about, second.fixed)
    assert first.about == redrawn.about
    assert (first.about, first.fixed) != (other.about, other.fixed)
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor.nan_to_num(9.0), second.tensors[name].nan_to_num(9.0))
        assert tensor.stride() == second.tensors[name].stride()
    name = first.differentiable[0]
    assert not torch.equal(first.tensors[name].nan_to_num(9.0), redrawn.tensors[name].nan_to_num(9.0))


@pytest.mark.parametrize("op", OPS)
def test_poison_is_where_nothing_is_read_and_nowhere_else(op: str) -> None:
    poisoned = 0
    for seed in range(20):
        sample = random_sample(op, seed, provider="cpu")
        for name, tensor in sample.tensors.items():
            expected = sample.inactive.get(name, torch.zeros(tensor.shape, dtype=torch.bool))
            assert torch.equal(tensor.isnan(), expected), f"{name} of seed {seed}"
            poisoned += int(expected.sum())
        assert torch.equal(sample.dy.isnan(), sample.unused)
        clean = random_sample(op, seed, provider="cpu", without=frozenset({"poison"}))
        assert not any(tensor.isnan().any() for tensor in clean.tensors.values())
    assert poisoned > 0 or op == "add_layer_norm"  # it reads all that it is given


def test_the_seeds_reach_every_corner() -> None:
    samples = [random_sample("elastic_attention", seed, provider="cpu") for seed in range(150)]
    batches = [sample.batch for sample in samples]
    assert {batch.num_groups for batch in batches} == {1, 2, 3, 4, 5, 6}
    assert any(() in batch.lengths for batch in batches), "an empty group"
    assert any(0 in batch.heads for batch in batches), "a skipped layer"
    assert any(max(batch.heads) == 0 for batch in batches), "all groups skip"
    assert any(batch.num_tokens == 0 for batch in batches), "no tokens"
    assert any(batch.padding for batch in batches), "rows of no group"
    assert any(list(batch.heads) != sorted(batch.heads, reverse=True) for batch in batches), "groups not sorted"
    assert any(batch.max_seqlen == 1 for batch in batches)
    assert any(batch.max_seqlen > 128 for batch in batches), "past a tile"
    assert {sample.dy.dtype for sample in samples} == {torch.float32, torch.float64, torch.bfloat16, torch.float16}
    assert any(not sample.tensors["qkv_weight"].is_contiguous() for sample in samples), "views"
    for feature in ("dropout", "bias"):
        assert 15 < sum(feature in sample.about for sample in samples) < 135


def test_samples_keep_a_provider_s_limits() -> None:
    for seed in range(50):
        sample = random_sample("elastic_ffn", seed, provider="triton")
        assert sample.tensors["x"].shape[1] % 16 == 0
        assert all(neurons % 16 == 0 for neurons in sample.batch.neurons)


def test_each_feature_can_be_left_out() -> None:
    for feature in FEATURES:
        for seed in range(5):
            sample = random_sample("elastic_linear", seed, provider="cpu", without=frozenset({feature}))
            assert sample.call(sample.tensors).shape == sample.unused.shape


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match="random_sample: 'softmax' has no builder; allowed: add_layer_norm, "):
        random_sample("softmax", 0)
    with pytest.raises(ValueError, match=r"random_sample: \['colour'\]: no features"):
        random_sample("elastic_ffn", 0, without=frozenset({"colour"}))


# The properties see what is wrong.


def plant(monkeypatch: pytest.MonkeyPatch, op: str, **halves: Callable[..., Any]) -> None:
    """``fwd`` and ``bwd`` are the ``cuda`` provider of ``op``, which takes anything; by default the definition's."""
    for half in ("fwd", "bwd"):
        name = f"{op}_{half}"
        function = halves.get(half, getattr(reference, name))
        table = {**providers._registry[name], "cuda": Provider("cuda", function, None)}
        monkeypatch.setitem(providers._registry, name, table)


def first_failure(op: str, seeds: int = 30) -> properties.Outcome:
    for seed in range(seeds):
        outcome = properties.check(op, seed, "cuda")
        if outcome.faults:
            return outcome
    pytest.fail("nobody saw the fault")


def test_a_wrong_result_is_seen_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_the_last_bias(*arguments: Any) -> tuple[Tensor, ...]:
        bias = arguments[2]
        if bias is not None:
            arguments = (*arguments[:2], torch.cat([bias[:-1], bias.new_zeros(1)]), *arguments[3:])
        return reference.elastic_linear_fwd(*arguments)

    plant(monkeypatch, "elastic_linear", fwd=forgets_the_last_bias)
    outcome = first_failure("elastic_linear")
    assert outcome.faults[0].startswith("y: error ")
    words = properties.explain(outcome)
    assert f"--provider cuda --op elastic_linear --seed {outcome.seed}" in words
    assert "simplest: " in words
    assert "dropout" in words.partition("simplest: ")[2]  # the failure needs none, so it is left out


def test_a_read_beyond_the_width_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_all(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        y, *others = reference.elastic_ffn_fwd(x, *rest)
        return y + 0.0 * rest[0].sum(), *others  # NaN times 0 is NaN

    plant(monkeypatch, "elastic_ffn", fwd=reads_all)
    assert "error inf" in first_failure("elastic_ffn").faults[0]


def test_an_unwritten_and_a_nonzero_inactive_part_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(*arguments: Any) -> tuple[Tensor, ...]:
        y, lse = reference.varlen_attention_fwd(*arguments)
        return torch.where(y == 0, torch.full_like(y, 1e-30), y), lse  # far below any tolerance

    plant(monkeypatch, "varlen_attention", fwd=tiny)
    assert "y: not exactly zero" in first_failure("varlen_attention").faults[0]


def test_other_bits_the_second_time_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def drifts(*arguments: Any) -> tuple[Tensor, ...]:
        calls.append(1)
        y, *others = reference.add_layer_norm_fwd(*arguments)
        # One rounding, of the wide dtypes: within what is allowed, so that only the bits tell.
        drift = torch.finfo(y.dtype).eps if len(calls) % 2 and y.dtype.itemsize > 2 else 0.0
        return y * (1 + drift), *others

    plant(monkeypatch, "add_layer_norm", fwd=drifts)
    assert any("other bits the second time" in fault for fault in first_failure("add_layer_norm").faults)


def test_a_gradient_that_is_not_the_sum_over_groups_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_group_alone(*arguments: Any) -> tuple[Tensor, ...]:
        rows = arguments[9].clone()
        if len(rows) > 2:
            rows[:-1] = rows[-2]
        dx, *_ = reference.elastic_ffn_bwd(*arguments)
        _, *others = reference.elastic_ffn_bwd(*arguments[:9], rows, *arguments[10:])
        return dx, *others

    plant(monkeypatch, "elastic_ffn", bwd=last_group_alone)
    assert "din_weight: error" in str(first_failure("elastic_ffn").faults)


# The command.


def test_the_command_tries_seeds_and_one_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert properties.main(["--provider", "reference", "--op", "elastic_linear", "--cases", "4"]) == 0
    assert (
        "reference on cpu: 4 samples of elastic_linear: {'hold': 4, 'refused': 0, 'fail': 0}" in capsys.readouterr().out
    )
    one = ["--provider", "reference", "--op", "elastic_ffn", "--seed", "3", "--without", "dropout"]
    assert properties.main(one) == 0
    assert "elastic_ffn on reference, seed 3: holds" in capsys.readouterr().out


def test_the_command_ends_when_its_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--provider", "reference", "--op", "elastic_linear", "--cases", "400", "--seconds", "0"]
    assert properties.main(given) == 0
    said = capsys.readouterr().out
    assert "the time is over; 399 samples were left out" in said
    assert "reference on cpu: 1 samples" in said


# The device.


@pytest.mark.parametrize("op", OPS)
def test_a_sample_goes_to_a_device_with_its_gaps(op: str) -> None:
    """Strides, offsets and what lies between rows are the same there; so the meta device can say it too."""
    devices = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]
    for seed in range(12):
        sample = random_sample(op, seed)
        others = sample.fixed | sample.plan(sample.batch)
        for name, tensor in {**sample.tensors, "dy": sample.dy}.items():
            for device in devices:
                there = placed(tensor, device)
                assert there.device.type == device
                assert (there.shape, there.stride(), there.storage_offset()) == (
                    tensor.shape,
                    tensor.stride(),
                    tensor.storage_offset(),
                ), name
                assert there.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
                if device == "cuda":
                    assert torch.equal(there.cpu().nan_to_num(), tensor.nan_to_num())
            assert placed(tensor, "cpu") is tensor
        moved = placed(tuple(others.values()), "meta")
        for value in [part for one in moved for part in (one if isinstance(one, tuple) else [one])]:
            assert not isinstance(value, Tensor) or value.device.type == "meta"


def test_kernels_of_a_gpu_run_on_it_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert properties.device_of("cuda") == torch.device("cuda", 3)
    assert properties.device_of("triton").type == ("cpu" if INTERPRETED else "cuda")
    assert properties.device_of("cpu") == properties.device_of("reference") == torch.device("cpu")


def test_the_command_prints_how_to_try_a_failure_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*arguments: Any) -> tuple[Tensor, ...]:
        y, *others = reference.add_layer_norm_fwd(*arguments)
        return y * 1.1, *others

    plant(monkeypatch, "add_layer_norm", fwd=wrong)
    assert properties.main(["--provider", "cuda", "--op", "add_layer_norm", "--cases", "3"]) == 1
    printed = capsys.readouterr().out
    assert "again:    python -m dynabert_kernels.testing.properties --provider cuda --op add_layer_norm" in printed
    assert properties.main(["--provider", "cuda", "--op", "add_layer_norm", "--cases", "3", "--stop"]) == 1
    assert "RED add_layer_norm, seed " in capsys.readouterr().out


def test_where_time_is_short_a_failure_is_told_before_it_is_made_simpler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a GPU simpler samples are more kernels to compile: time would be over before the failure is known."""

    class CompilerError(Exception):
        pass

    def raises(*arguments: Any) -> tuple[Tensor, ...]:
        raise CompilerError("no such layout")

    plant(monkeypatch, "add_layer_norm", fwd=raises)
    monkeypatch.setattr(properties, "simplest", lambda *_: pytest.fail("it was made simpler"))
    given = ["--provider", "cuda", "--op", "add_layer_norm", "--cases", "3", "--seconds", "600"]
    assert properties.main(given) == 1
    printed = capsys.readouterr().out
    assert printed.count("RED add_layer_norm, seed ") == 3
    assert "seed 2: CompilerError: no such layout" in printed
    assert "again:    python -m dynabert_kernels.testing.properties --provider cuda --op add_layer_norm" in printed


def test_the_command_ends_where_the_device_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After an illegal address every call fails: the samples that follow are not red for faults of their own."""

    def raises(*arguments: Any) -> tuple[Tensor, ...]:
        raise RuntimeError("planted: illegal address")

    plant(monkeypatch, "add_layer_norm", fwd=raises)
    monkeypatch.setattr(properties, "why_lost", lambda device: "planted: illegal address")
    assert properties.main(["--provider", "cuda", "--op", "add_layer_norm", "--cases", "3"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("RED add_layer_norm, seed ") == 1
    assert "the device was lost, what follows was not tried: planted: illegal address" in printed
    assert "{'hold': 0, 'refused': 0, 'fail': 1}" in printed
