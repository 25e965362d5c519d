"""The profile of a device: the fit, its stated error, files and refusals. Times come from a made-up machine."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynabert import ElasticBertConfig, SubnetConfig
from dynabert.profile import DeviceProfile, ErrorStatement, ProfiledCell, profile_device
from dynabert.profile.additive_model import (
    LayerCosts,
    fit_costs,
    head_nodes,
    neuron_nodes,
    nonnegative_least_squares,
    whole_panels,
)
from dynabert.profile.device_facts import DeviceFacts
from dynabert.profile.encoder_shape import EncoderShape
from dynabert.profile.measuring import (
    CellBudget,
    CellRun,
    _notes,
    profile_cell,
    run_rounds,
    share_of_time,
    state_error,
    time_again,
)
from dynabert.profile.sampling import anchor, fitting_networks, random_networks
from dynabert.profile.timing import Sample, timed, typical_times
from dynabert_kernels import SubnetShape
from tests.dynabert.tiny_texts import tiny_model

STEP = 16
ENCODER = EncoderShape("bert", 768, 64, "gelu", False, (12,) * 6, (3072,) * 6, "keep_last")


def additive_ms(shape: SubnetShape, fixed: float = 0.4, layer: float = 0.2, head: float = 0.05) -> float:
    """A machine whose times are exactly the model's, straight in heads, with a bend in neurons at a half."""
    total = fixed
    for heads, neurons in zip(shape.heads, shape.neurons, strict=True):
        if heads:
            panels = -(-neurons // STEP) * STEP
            total += layer + head * heads + 2e-4 * panels + 1e-4 * max(0, panels - 1536)
    return total


def counts(networks: list[SubnetShape]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([one.heads for one in networks]), np.array([one.neurons for one in networks])


def fitted(networks: list[SubnetShape], times: list[float]) -> LayerCosts:
    return fit_costs(*counts(networks), np.array(times), max_heads=12, max_neurons=3072, step=STEP)


def some_profile(times: float = 1.0, **changes: Any) -> DeviceProfile:
    """Costs that grow with batch and length, at 1 and 8 sequences of 32 and 128 tokens."""
    cells = []
    for batch in (1, 8):
        for length in (32, 128):
            scale = times * batch * length / 32
            costs = LayerCosts(scale, scale, (1, 12), (0.0, 11 * scale), (16, 3072), (0.0, 3056 * scale), STEP)
            error = ErrorStatement(16, 8, 0.01, 0.03, 8, 0.01, 0.02, 1.01)
            cells.append(ProfiledCell("float32", batch, length, costs, error, 40, 400, 0.0))
    facts = DeviceFacts.here()
    values: dict[str, Any] = {"date": "2026-11-25T20:00:00+00:00", "seed": 0, "seconds": 12.5} | changes
    return DeviceProfile(facts=facts, encoder=ENCODER, cells=tuple(cells), **values)


# The fit
# --------------------------------------------------------------------------------------------------------------------


def test_an_additive_machine_is_recovered() -> None:
    networks = fitting_networks(ENCODER, 40, STEP, random.Random(0))
    straight = [additive_ms(one) for one in networks]
    unseen, _ = random_networks(ENCODER, 200, random.Random(1), set(networks))
    found = fitted(networks, straight).predict(*counts(unseen))
    wanted = np.array([additive_ms(one) for one in unseen])
    assert np.abs(found / wanted - 1).max() < 0.01


def test_a_straight_machine_is_recovered_exactly() -> None:
    networks = fitting_networks(ENCODER, 40, STEP, random.Random(0))

    def straight(one: SubnetShape) -> float:
        layers = zip(one.heads, one.neurons, strict=True)
        return 0.4 + sum(0.2 + 0.05 * h + 2e-4 * (-(-n // STEP) * STEP) for h, n in layers if h)

    costs = fitted(networks, [straight(one) for one in networks])
    unseen, _ = random_networks(ENCODER, 200, random.Random(1), set(networks))
    np.testing.assert_allclose(costs.predict(*counts(unseen)), [straight(one) for one in unseen], rtol=1e-8)
    assert costs.fixed_ms == pytest.approx(0.4)
    assert costs.layer_ms == pytest.approx(0.2 + 0.05 + 2e-4 * STEP)
    assert np.diff(costs.head_ms) == pytest.approx([0.05] * 11)


def test_disturbed_measurements_count_less() -> None:
    networks = fitting_networks(ENCODER, 48, STEP, random.Random(0))
    times = [additive_ms(one) * (1.6 if index % 12 == 5 else 1.0) for index, one in enumerate(networks)]
    unseen, _ = random_networks(ENCODER, 100, random.Random(1), set(networks))
    wanted = np.array([additive_ms(one) for one in unseen])
    assert np.abs(fitted(networks, times).predict(*counts(unseen)) / wanted - 1).mean() < 0.03


def test_the_last_wave_of_panels_is_found() -> None:
    def with_waves(one: SubnetShape) -> float:
        total = 0.4
        for heads, neurons in zip(one.heads, one.neurons, strict=True):
            if heads:
                total += 0.2 + 0.05 * heads + 1e-4 * (-(-neurons // STEP) * STEP) + 0.03 * -(-neurons // (8 * STEP))
        return total

    networks = fitting_networks(ENCODER, 48, STEP, random.Random(0))
    times = np.array([with_waves(one) for one in networks])
    unseen, _ = random_networks(ENCODER, 100, random.Random(1), set(networks))
    wanted = np.array([with_waves(one) for one in unseen])
    errors = []
    for threads in (1, 8):
        costs = fit_costs(*counts(networks), times, max_heads=12, max_neurons=3072, step=STEP, threads=threads)
        errors.append(np.abs(costs.predict(*counts(unseen)) / wanted - 1).max())
    assert costs.wave_step == 8 * STEP
    assert costs.wave_ms == pytest.approx(0.03, rel=0.05)
    assert errors[1] < 5e-3 < errors[0]


def test_noise_never_makes_more_cost_less() -> None:
    chance = random.Random(3)
    networks = fitting_networks(ENCODER, 30, STEP, chance)
    costs = fitted(networks, [additive_ms(one) * chance.uniform(0.8, 1.25) for one in networks])
    assert (np.diff(costs.head_ms) >= 0).all()
    assert (np.diff(costs.neuron_ms) >= 0).all()
    assert costs.fixed_ms >= 0
    assert costs.layer_ms >= 0
    neurons = np.arange(1, 3073)[:, None]
    assert (np.diff(costs.predict(np.ones_like(neurons), neurons)) >= -1e-12).all()


def test_neurons_of_one_panel_cost_the_same() -> None:
    networks = fitting_networks(ENCODER, 30, STEP, random.Random(0))
    costs = fitted(networks, [additive_ms(one) for one in networks])
    found = costs.predict(np.full((3, 1), 4), np.array([[497], [512], [513]]))
    assert found[0] == found[1] < found[2]
    assert whole_panels(np.array([0, 1, 16, 17]), 16).tolist() == [0, 16, 16, 32]


def test_nodes() -> None:
    assert head_nodes(12) == tuple(range(1, 13))
    assert head_nodes(1) == (1,)
    assert head_nodes(32)[0] == 1
    assert head_nodes(32)[-1] == 32
    assert neuron_nodes(3072, 32) == (32, 192, 384, 768, 1152, 1536, 1920, 2304, 2688, 3072)
    assert neuron_nodes(40, 32) == (32, 64)  # the last panel is padded, and computed whole
    assert neuron_nodes(8, 32) == (32,)


def test_one_head_and_one_panel_can_be_fitted() -> None:
    layers = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    costs = fit_costs(layers, 8 * layers, 1.0 + 2.0 * layers.sum(axis=1), max_heads=1, max_neurons=8, step=32)
    np.testing.assert_allclose(costs.predict(layers, 8 * layers), [7.0, 3.0, 5.0])


def test_nonnegative_least_squares_against_all_subsets() -> None:
    drawn = np.random.default_rng(0)
    for _ in range(20):
        rows, wanted = drawn.standard_normal((9, 4)), drawn.standard_normal(9)
        best = np.inf
        for chosen in range(16):
            free = [column for column in range(4) if chosen >> column & 1]
            x = np.zeros(4)
            x[free] = np.linalg.lstsq(rows[:, free], wanted, rcond=None)[0]
            if (x >= 0).all():
                best = min(best, float(np.linalg.norm(rows @ x - wanted)))
        found = nonnegative_least_squares(rows, wanted)
        assert (found >= 0).all()
        assert float(np.linalg.norm(rows @ found - wanted)) == pytest.approx(best, rel=1e-9)


# What is measured
# --------------------------------------------------------------------------------------------------------------------


def test_fitting_networks_reach_every_node() -> None:
    networks = fitting_networks(ENCODER, 40, STEP, random.Random(0))
    assert len(set(networks)) == len(networks) == 40
    heads, neurons = counts(networks)
    assert set(head_nodes(12)) <= set(heads.flatten().tolist())
    assert set(neuron_nodes(3072, STEP)) <= set(neurons.flatten().tolist())
    assert set((heads > 0).sum(axis=1).tolist()) >= {1, 3, 6}


def test_random_networks_are_new_and_of_both_kinds() -> None:
    known = set(fitting_networks(ENCODER, 40, STEP, random.Random(0)))
    found, uniform = random_networks(ENCODER, 50, random.Random(1), known)
    assert len(set(found)) == 50
    assert not known & set(found)
    assert uniform == 25
    for index, one in enumerate(found):
        widths = {(one.heads[layer], one.neurons[layer]) for layer in one.kept_layers}
        assert len(widths) == 1 or index >= uniform
    assert any(neurons % STEP for one in found for neurons in one.neurons)


def test_a_network_with_few_sub_networks_gives_what_it_has() -> None:
    small = dataclasses.replace(ENCODER, layer_heads=(1,), layer_neurons=(2,))
    networks = fitting_networks(small, 20, STEP, random.Random(0))
    assert len(networks) == len(set(networks)) <= 2
    assert len(random_networks(small, 20, random.Random(0), set(networks))[0]) <= 2


def test_layers_of_different_size_are_respected() -> None:
    mixed = dataclasses.replace(ENCODER, layer_heads=(1, 12, 3), layer_neurons=(8, 3072, 100))
    networks = [
        *fitting_networks(mixed, 30, STEP, random.Random(0)),
        *random_networks(mixed, 30, random.Random(0), set())[0],
    ]
    for one in networks:
        assert all(a <= b for a, b in zip(one.heads, mixed.layer_heads, strict=True))
        assert all(a <= b for a, b in zip(one.neurons, mixed.layer_neurons, strict=True))


def test_rounds_are_interleaved_and_end_with_the_time() -> None:
    networks = fitting_networks(ENCODER, 12, STEP, random.Random(0))
    ran: list[SubnetShape] = []

    def sample(shape: SubnetShape) -> Sample:
        ran.append(shape)
        return Sample(1.0, False)

    taken = run_rounds(sample, networks, 60.0, random.Random(0), least=2, now=lambda: float(len(ran)))
    assert {len(one) for one in taken.values()} == {5}
    for turn in range(5):
        assert set(ran[12 * turn : 12 * turn + 12]) == set(networks)
    assert ran[:12] != ran[12:24]
    late = run_rounds(sample, networks, -1.0, random.Random(0), least=3)
    assert {len(one) for one in late.values()} == {3}


def test_a_busy_machine_gets_more_rounds() -> None:
    networks = fitting_networks(ENCODER, 12, STEP, random.Random(0))
    for every, rounds in ((1, 20), (4, 80)):
        ran: list[SubnetShape] = []

        def sample(shape: SubnetShape, ran: list[SubnetShape] = ran, every: int = every) -> Sample:
            ran.append(shape)
            return Sample(1.0, len(ran) % every != 0)

        taken = run_rounds(sample, networks, 1e9, random.Random(0), least=3, now=lambda: 0.0)
        assert {len(one) for one in taken.values()} == {rounds}


def test_time_is_shared_out() -> None:
    assert share_of_time(10.0, [1.0, 3.0], 5) == pytest.approx(1.25 + 7.5 / 4)  # too little: equally many passes
    assert share_of_time(80.0, [1.0, 4.0], 5) == pytest.approx(5.0 + 55.0 / 2)
    assert share_of_time(7.0, [2.0], 100) == share_of_time(7.0, [2.0], 1) == 7.0  # the last one gets all
    assert share_of_time(-1.0, [1.0], 5) == 0.0


def run_of(sample: Any, check: int = 20) -> CellRun:
    return profile_cell(
        sample,
        ENCODER,
        CellBudget(seconds=1.0, check=check),
        dtype="float32",
        batch_size=1,
        seq_length=32,
        step=STEP,
        unit_seconds=1e-3,
        threads=1,
        chance=random.Random(0),
        now=lambda: 0.0,  # time stands still: as many rounds as there may be
    )


def test_a_cell_states_the_error_of_networks_it_has_not_seen() -> None:
    seen: set[SubnetShape] = set()

    def sample(shape: SubnetShape) -> Sample:
        seen.add(shape)
        return Sample(additive_ms(shape), False)

    run = run_of(sample)
    cell = run.cell
    assert (cell.error.networks, cell.error.uniform) == (20, 10)
    assert len(seen) == cell.fitted_networks + 20
    assert next(iter(run.checked_ms)) == anchor(ENCODER)
    assert len(run.checked_ms) == 21
    assert cell.error.worst is not None
    assert cell.error.worst < 0.01
    assert cell.error.drift is None
    assert cell.disturbed == 0.0


def test_the_random_networks_are_not_fitted() -> None:
    random_ones = set(list(run_of(lambda shape: Sample(additive_ms(shape), False)).checked_ms)[1:])

    def odd(shape: SubnetShape) -> Sample:
        return Sample(additive_ms(shape) * (2.0 if shape in random_ones else 1.0), False)

    run = run_of(odd)
    assert set(list(run.checked_ms)[1:]) == random_ones
    assert run.cell.error.mean == pytest.approx(0.5, abs=0.01)


def test_a_machine_that_slows_down_shows_later() -> None:
    run = run_of(lambda shape: Sample(additive_ms(shape), False))
    cell = time_again(lambda shape: Sample(1.25 * additive_ms(shape), False), run, random.Random(0))
    assert cell.error.mean == run.cell.error.mean
    assert cell.error.later_networks == 8
    assert cell.error.mean_later == pytest.approx(0.2, abs=0.01)
    assert cell.error.worst_later == pytest.approx(0.2, abs=0.01)
    assert cell.error.drift == pytest.approx(1.25)


def test_a_changed_speed_is_noted() -> None:
    facts = some_profile().facts
    run = run_of(lambda shape: Sample(additive_ms(shape), False))
    for factor, noted in ((1.25, True), (0.8, True), (1.05, False)):
        cell = time_again(lambda shape, by=factor: Sample(by * additive_ms(shape), False), run, random.Random(0))
        notes = " ".join(_notes([run.cell, cell], 20, facts))
        assert (f"took {factor:.2f} times as long later" in notes) is noted


def test_nothing_is_stated_where_nothing_was_checked() -> None:
    run = run_of(lambda shape: Sample(additive_ms(shape), False), check=0)
    assert time_again(lambda _: Sample(1.0, False), run, random.Random(0)).error == ErrorStatement(0, 0, None, None)


def test_the_statement_is_right() -> None:
    found = state_error([11.0, 9.0, 10.0], [10.0, 10.0, 8.0], 1)
    assert (found.networks, found.uniform, found.drift) == (3, 1, None)
    assert found.mean == pytest.approx(0.15)
    assert found.worst == pytest.approx(0.25)


def test_typical_times() -> None:
    quiet, held = [Sample(1.0, False), Sample(1.01, False), Sample(1.02, False)], [Sample(5.0, True)] * 9
    assert typical_times({"a": quiet, "b": quiet[:1]}) == {"a": pytest.approx(1.01), "b": 1.0}
    # a busy machine: low quartiles, of the undisturbed where there are enough
    found = typical_times({"a": quiet, "b": [*quiet, *held], "c": [*quiet[:1], *held[:1]], "d": held})
    assert found == {"a": pytest.approx(1.005), "b": pytest.approx(1.005), "c": 1.0, "d": 5.0}
    assert typical_times({"a": [Sample(float(i), True) for i in range(1, 6)]}) == {"a": 2.0}
    # times that scatter: low quartiles too
    assert typical_times({"a": [Sample(float(i), False) for i in range(1, 6)]}) == {"a": 2.0}
    # one pass in a hundred held up is a quiet machine, and that pass does not count
    assert typical_times({"a": [*[Sample(2.0, False)] * 50, *[Sample(2.1, False)] * 49, held[0]]}) == {"a": 2.0}
    assert typical_times({}) == {}


def test_a_pass_is_timed() -> None:
    found = timed(lambda: sum(range(1000)), torch.device("cpu"))
    assert found.ms > 0.0


@pytest.mark.parametrize(("waits", "ms", "runs"), [(0, 1.0, 1), (2, 1.0, 3), (9, 1.0, 4), (2, 50.0, 1)])
def test_a_short_pass_that_was_held_up_runs_again(
    monkeypatch: pytest.MonkeyPatch, waits: int, ms: float, runs: int
) -> None:
    calls: list[int] = []
    clock = {"wall": 0.0, "own": 0.0}

    def call() -> None:
        calls.append(1)
        clock["own"] += ms / 1e3
        clock["wall"] += ms / 1e3 * (3 if len(calls) <= waits else 1)

    monkeypatch.setattr("dynabert.profile.timing.time.perf_counter", lambda: clock["wall"])
    monkeypatch.setattr("dynabert.profile.timing.time.thread_time", lambda: clock["own"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    found = timed(call, torch.device("cpu"))
    assert len(calls) == runs
    assert found.ms == pytest.approx(ms)  # the processor's time where it waited
    assert found.disturbed is (waits >= runs)


def test_profile_of_a_tiny_network() -> None:
    opened: list[str] = []

    def open_model(dtype: str) -> Any:
        opened.append(dtype)
        model = tiny_model()
        return model if dtype == "float32" else model.to(torch.bfloat16)  # type: ignore[arg-type]

    found = profile_device(
        open_model,
        dtypes=["float32", "bfloat16"],
        batch_sizes=[2, 1],
        seq_lengths=[4, 12],
        max_minutes=0.01,
        check=4,
    )
    assert opened == ["float32", "bfloat16"]
    assert found.dtypes == ("float32", "bfloat16")
    assert (found.batch_sizes, found.seq_lengths) == ((1, 2), (4, 12))
    assert len(found.cells) == 8
    assert {(dtype, batch, length) for dtype, batch, length, _ in found.between} == {
        ("float32", 1, 7),
        ("bfloat16", 1, 7),
    }
    for cell in found.cells:
        assert cell.error.networks == 4
    assert found.latency_ms(None, 2, 12) > 0.0
    assert found.latency_ms("w0.5-d0.5", 2, 12, "bfloat16") <= found.latency_ms("w1-d1", 2, 12, "bfloat16")
    found.check_model(tiny_model().config)
    assert found.facts == DeviceFacts.here()


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"dtypes": []}, "dtypes are []; allowed: at least one"),
        ({"dtypes": ["int4"]}, "dtype is 'int4'; allowed: float32"),
        ({"batch_sizes": [1, 1]}, "batch_sizes are [1, 1]; allowed: at least one, each once"),
        ({"seq_lengths": [0]}, "seq_lengths are [0]; allowed: 1 or more"),
        ({"seq_lengths": [51]}, "seq_length 51 is beyond the model's 50 positions"),
        ({"batch_sizes": (1, 10**8)}, "tokens of one pass; allowed: up to 1,048,576"),
        ({"max_minutes": 0.0}, "max_minutes is 0.0; allowed: above 0"),
        ({"check": -1}, "check is -1; allowed: 0 or more"),
    ],
)
def test_options_are_checked(options: dict[str, Any], wrong: str) -> None:
    arguments: dict[str, Any] = {"seq_lengths": [4], "max_minutes": 0.001} | options
    with pytest.raises(ValueError, match="profile: ") as error:
        profile_device(lambda _: tiny_model(), **arguments)
    assert wrong in str(error.value)


# Predictions
# --------------------------------------------------------------------------------------------------------------------


def test_latency_of_one_is_that_of_many() -> None:
    profile = some_profile()
    subnets = [None, "w0.5-d0.5", SubnetConfig(0.25, 1.0), SubnetShape((3, 0, 0, 0, 0, 1), (100, 0, 0, 0, 0, 7))]
    shapes = [profile.encoder.shape(one) for one in subnets]
    many = profile.latencies_ms(*counts(shapes), 8, 128)
    assert many.shape == (4,)
    assert many.tolist() == [profile.latency_ms(one, 8, 128) for one in subnets]
    # 1 fixed, a layer of 1 + (heads - 1) + (panels' neurons - 16), all times 8 * 4
    assert profile.latency_ms(subnets[3], 8, 128) == pytest.approx(32 * (1 + (3 + 96) + (1 + 0)))


def test_a_layer_costs_the_same_wherever_it_is() -> None:
    heads, neurons = (
        np.array([[4, 0, 2, 0, 0, 0], [0, 0, 0, 2, 0, 4]]),
        np.array([[64, 0, 32, 0, 0, 0], [0, 0, 0, 32, 0, 64]]),
    )
    first, second = some_profile().latencies_ms(heads, neurons, 1, 32)
    assert first == second


def test_between_the_points_it_is_linear() -> None:
    profile = some_profile()
    whole = profile.latency_ms(None, 1, 32)
    assert profile.latency_ms(None, 4, 32) == pytest.approx(4 * whole)
    assert profile.latency_ms(None, 3, 80) == pytest.approx(3 * 80 / 32 * whole)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ((None, 9, 32), "batch_size is 9; allowed: 1 to 8"),
        ((None, 1, 31), "seq_length is 31; allowed: 32 to 128, which was measured; profile anew with --seq_lengths"),
        ((None, 1, 129), "seq_length is 129"),
        ((None, 1, 32, "int8"), "dtype 'int8' was not measured; measured: float32"),
        (("w0.3", 1, 32), "width_mult 0.3"),
        ((SubnetShape((1,), (16,)), 1, 32), "subnet has 1 layers, the network 6"),
    ],
)
def test_out_of_range_is_refused(arguments: tuple[Any, ...], wrong: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the text is looked at)
        some_profile().latency_ms(*arguments)
    assert wrong in str(error.value)


@pytest.mark.parametrize(
    ("heads", "neurons", "kind", "wrong"),
    [
        ([[13]], [[16]], ValueError, "heads are 13 to 13; allowed: 0 (skipped) to 12"),
        ([[1]], [[3073]], ValueError, "neurons are 3073 to 3073; allowed: 0 (skipped) to 3072"),
        ([[1]], [[-1]], ValueError, "neurons are -1 to -1"),
        ([[1]], [[0]], ValueError, "heads but no neurons"),
        ([[0]], [[0]], ValueError, "skips all layers"),
        ([1], [16], ValueError, "heads has shape (1,)"),
        ([[1]], [[16, 16]], ValueError, "neurons has shape (1, 2)"),
        ([[1] * 7], [[16] * 7], ValueError, "up to 6 layers"),
        ([[1.5]], [[16]], TypeError, "heads must be whole numbers; got float64"),
    ],
)
def test_wrong_counts_are_refused(heads: Any, neurons: Any, kind: type[Exception], wrong: str) -> None:
    with pytest.raises(kind) as error:
        some_profile().latencies_ms(np.array(heads), np.array(neurons), 1, 32)
    assert wrong in str(error.value)


@pytest.mark.parametrize("value", [1.0, True])
def test_batch_size_is_a_whole_number(value: Any) -> None:
    with pytest.raises(TypeError, match="batch_size must be a whole number"):
        some_profile().latency_ms(None, value, 32)


def test_a_point_that_was_not_measured_has_no_cell() -> None:
    assert some_profile().cell(8, 32).error.worst == 0.03
    with pytest.raises(ValueError, match="4 x 32 in float32 was not measured; measured: batch sizes 1, 8"):
        some_profile().cell(4, 32)


# Which model, which device, which file
# --------------------------------------------------------------------------------------------------------------------


def test_another_model_is_refused() -> None:
    profile = some_profile()
    own: dict[str, Any] = {"num_hidden_layers": 6, "num_labels": 2}
    profile.check_model(ElasticBertConfig(**own))
    profile.check_model(ElasticBertConfig(**(own | {"num_hidden_layers": 3})))
    profile.check_model(ElasticBertConfig(**(own | {"architecture": "roberta", "max_position_embeddings": 514})))
    others: tuple[tuple[dict[str, Any], str], ...] = (
        ({"hidden_size": 384, "head_dim": 64}, "hidden_size is 384, the profile's 768"),
        ({"num_attention_heads": 24}, "head_dim is 32, the profile's 64"),
        ({"hidden_act": "relu"}, "activation is relu, the profile's gelu"),
        ({"architecture": "mpnet"}, "relative_bias is True, the profile's False"),
        ({"num_hidden_layers": 7}, "it has 7 layers, the profile's network 6"),
        ({"intermediate_size": 4096}, "it has 4096 neurons in a layer"),
    )
    for changes, wrong in others:
        with pytest.raises(ValueError, match="made for another encoder") as error:
            profile.check_model(ElasticBertConfig(**(own | changes)))
        assert wrong in str(error.value)


def test_a_file_gives_the_profile_back(tmp_path: Path) -> None:
    profile = some_profile(notes=("busy",), between=(("float32", 3, 64, ErrorStatement(8, 4, 0.1, 0.2)),))
    profile.save(tmp_path / "profile.json")
    assert DeviceProfile.load(tmp_path / "profile.json") == profile


@pytest.mark.parametrize(
    ("fact", "value", "wrong"),
    [
        ("cpu", "Another CPU", "the CPU is "),
        ("isa", "neon", "the kernels' instruction set is "),
        ("threads", 77, "and 77 in the profile"),
        ("torch", "1.0", "torch's version is "),
        ("dynabert_kernels", "0.0.0", "this package's version is "),
        ("device", "Some GPU", "the device is cpu here and Some GPU in the profile"),
    ],
)
def test_another_device_is_refused_with_the_reason(tmp_path: Path, fact: str, value: Any, wrong: str) -> None:
    profile = some_profile()
    path = tmp_path / "profile.json"
    dataclasses.replace(profile, facts=dataclasses.replace(profile.facts, **{fact: value})).save(path)
    with pytest.raises(ValueError, match="is of another device: ") as error:
        DeviceProfile.load(path)
    assert wrong in str(error.value)
    assert "--any_device" in str(error.value)
    assert DeviceProfile.load(path, check_device=False).latency_ms(None, 1, 32) == profile.latency_ms(None, 1, 32)


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    for text, wrong in (
        ("{", "is no JSON"),
        ("[]", "got format 'list'"),
        ('{"format": 1}', "another version of this package"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="DeviceProfile: ") as error:
            DeviceProfile.load(path)
        assert wrong in str(error.value)
    values = some_profile().to_dict()
    del values["cells"][0]["costs"]
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match="the profile is damaged"):
        DeviceProfile.load(path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.json; make a profile: dynabert profile"):
        DeviceProfile.load(tmp_path / "none.json")


def test_anchor_is_a_network() -> None:
    assert anchor(ENCODER).heads == (6,) * 6
