"""Nothing wrong is timed: planted faults turn red, by their numbers, by what they leave unwritten, by raising."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import check, rows, verify
from benchmarks.measure import Settings, measure_group, why_unavailable
from benchmarks.problems import ModelShape, Problem, uniform
from benchmarks.registry import REGISTRY
from benchmarks.rows import Row
from dynabert_kernels import reference
from dynabert_kernels.ops import providers
from dynabert_kernels.ops.providers import Provider
from dynabert_kernels.testing.timing import Ceilings, HostClock

TOY = ModelShape("toy", hidden=16, heads=4, head_size=4, neurons=32)
CEILINGS = Ceilings({1 << 20: 10.0}, {"float32": 50.0, "bfloat16": 50.0}, {"float32": 64}, 1 << 16, "given")


def plant(monkeypatch: pytest.MonkeyPatch, op: str, function: Callable[..., Any]) -> None:
    """``function`` is the ``cpu`` provider of ``op``."""
    table = {**providers._registry[op], "cpu": Provider("cpu", function, None)}
    monkeypatch.setitem(providers._registry, op, table)


def measured(names: tuple[str, ...], op: str = "add_layer_norm", widths: tuple[float, ...] = (1.0,)) -> dict[str, Row]:
    settings = Settings(torch.device("cpu"), HostClock(), names, 2, "use", 1, CEILINGS)
    problems = [Problem(TOY, (3, 4), uniform(width), torch.float32) for width in widths]
    found = measure_group(REGISTRY[op], problems, settings)
    return {row.provider if len(widths) == 1 else f"{row.provider} {row.width:g}": row for row in found}


def known(number: float | None) -> float:
    """A number that a measured row must hold."""
    assert number is not None
    return number


def test_twice_pytorch_s_error_is_green_and_more_is_red() -> None:
    exact = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    own = (exact + torch.tensor([0.0, 0.0, 4e-4])).float()
    assert verify.compare("y", (exact + 7e-4).float(), exact, own).green
    found = verify.compare("y", (exact + 9e-4).float(), exact, own)
    assert not found.green
    assert found.torch_error == pytest.approx(1e-4, rel=1e-2)
    assert found.allowed_error == pytest.approx(2e-4, rel=1e-2)
    assert "error 2.25e-04, allowed 2.00e-04 (PyTorch errs 1.00e-04)" in str(found)


def test_the_floor_allows_a_few_roundings_where_pytorch_errs_less() -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    eps = torch.finfo(torch.float32).eps
    assert verify.compare("y", (exact + 2 * eps).float(), exact, exact.float()).green
    assert not verify.compare("y", (exact + 20 * eps).float(), exact, exact.float()).green


def test_nan_wrong_shape_and_wrong_dtype_are_red() -> None:
    exact = torch.ones(3, dtype=torch.float64)
    own = exact.float()
    assert not verify.compare("y", torch.tensor([1.0, float("nan"), 1.0]), exact, own).green
    assert "shape is (2,), it must be (3,)" in str(verify.compare("y", torch.ones(2), exact, own))
    assert "dtype is torch.float64" in str(verify.compare("y", exact, exact, own))
    assert not verify.compare("y", exact, exact, own).green


def test_a_right_provider_is_timed_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "add_layer_norm_fwd", reference.add_layer_norm_fwd)
    row = measured(("cpu",))["cpu"]
    assert row.status == rows.MEASURED
    assert row.speedup_vs_torch is not None
    assert row.error is not None
    assert known(row.p20_ms) <= known(row.median_ms) <= known(row.p80_ms)
    assert row.floor_ms == pytest.approx(known(row.size_bytes) / 10.0 / 1e6)
    assert row.ceiling_share == pytest.approx(known(row.floor_ms) / known(row.median_ms))


def test_a_wrong_result_is_red_and_reports_no_time_and_no_speed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_wrong_element(*args: Any) -> tuple[Tensor, ...]:
        y, mean, rstd = reference.add_layer_norm_fwd(*args)
        y[2, 5] += 1e-4
        return y, mean, rstd

    plant(monkeypatch, "add_layer_norm_fwd", one_wrong_element)
    found = measured(("cpu", "reference"))
    assert found["cpu"].status == rows.RED
    assert found["cpu"].note.startswith("y: error ")
    assert known(found["cpu"].error) > known(found["cpu"].allowed_error)
    assert found["cpu"].median_ms is None
    assert found["cpu"].speedup_vs_torch is None
    assert found["reference"].status == rows.MEASURED


def test_an_unwritten_element_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_the_last_row(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        y, mean, rstd = reference.add_layer_norm_fwd(x, *rest)
        out = torch.empty_like(y)
        out[:-1] = y[:-1]
        return out, mean, rstd

    plant(monkeypatch, "add_layer_norm_fwd", forgets_the_last_row)
    row = measured(("cpu",))["cpu"]
    assert row.status == rows.RED
    assert "error inf" in row.note


class OutOfResources(Exception):
    """What a kernel's compiler raises: Triton's errors are no RuntimeErrors."""


@pytest.mark.parametrize("kind", [RuntimeError, OutOfResources])
def test_a_provider_that_raises_has_failed_and_the_others_go_on(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*args: Any) -> Any:
        raise kind("planted: illegal memory access")

    plant(monkeypatch, "elastic_ffn_fwd", raises)
    found = measured(("cpu", "reference"), "elastic_ffn")
    assert found["cpu"].status == rows.FAILED
    assert f"raised {kind.__name__}: planted: illegal memory access" in found["cpu"].note
    assert found["reference"].median_ms is not None


@pytest.mark.parametrize("kind", [RuntimeError, OutOfResources])
def test_the_check_goes_on_after_a_provider_that_raises(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*args: Any) -> Any:
        raise kind("planted: shared memory")

    plant(monkeypatch, "add_layer_norm_fwd", raises)
    case = ("add_layer_norm", "one row, odd width")
    found = check.check_case(*case, torch.float32, torch.device("cpu"), ("cpu", "reference"), 3)
    assert [row.status for row in found] == [rows.FAILED, rows.MEASURED]
    assert found[0].note == f"{kind.__name__}: planted: shared memory"


def test_a_provider_that_fails_only_on_the_timed_inputs_is_said_in_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def second_call_raises(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("planted: out of memory")
        return reference.elastic_ffn_fwd(*args)

    plant(monkeypatch, "elastic_ffn_fwd", second_call_raises)
    row = measured(("cpu",), "elastic_ffn")["cpu"]
    assert (row.status, row.median_ms) == (rows.FAILED, None)
    assert "out of memory" in row.note


def test_ratios_to_the_full_width_stand_beside_the_ideal() -> None:
    found = measured(("reference",), "elastic_ffn", (1.0, 0.25))
    narrow, full = found["reference 0.25"], found["reference 1"]
    assert narrow.ideal_speedup == 4.0
    assert narrow.speedup_vs_width_1 == pytest.approx(known(full.median_ms) / known(narrow.median_ms))
    torch_ms = known(found["torch 0.25"].median_ms)
    assert narrow.speedup_vs_torch == pytest.approx(torch_ms / known(narrow.median_ms))


def test_whoever_is_missing_or_refuses_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: Any) -> str:
        return "it takes only tensors of three dimensions"

    table = {**providers._registry["add_layer_norm_fwd"]}
    table["cpu"] = Provider("cpu", reference.add_layer_norm_fwd, refuses)
    table.pop("cuda", None)
    monkeypatch.setitem(providers._registry, "add_layer_norm_fwd", table)
    monkeypatch.setitem(providers._unavailable, "cuda", "planted: no CUDA")
    found = measured(("cpu", "cuda"))
    assert (found["cpu"].status, found["cpu"].note) == (rows.UNAVAILABLE, "it takes only tensors of three dimensions")
    assert (found["cuda"].status, found["cuda"].note) == (rows.UNAVAILABLE, "planted: no CUDA")


def test_triton_s_interpreter_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "its time says nothing" in str(why_unavailable("add_layer_norm_fwd", "triton", ()))


def test_the_check_of_all_ops_is_green_for_the_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # One case of each op: all of them take longer than a test may.
    one_each = {op: (op, case) for op, case in reversed(check.CASES)}
    monkeypatch.setattr(check, "CASES", {key: check.CASES[key] for key in one_each.values()})
    assert check.main(["--provider", "reference", "--dtype", "float32", "--seed", "3", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "check-cpu.json").read_text(encoding="utf-8"))
    assert {row["op"] for row in document["rows"]} == {name.removesuffix("_fwd") for name in fwd_ops()}
    assert {row["status"] for row in document["rows"]} == {rows.MEASURED}
    assert {row["seed"] for row in document["rows"]} == {3}


def test_the_check_ends_when_the_device_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "why_lost", lambda device: "planted: illegal address")
    arguments = ["--op", "add_layer_norm", "--provider", "reference", "--dtype", "float32", "--out", str(tmp_path)]
    assert check.main(arguments) == 3
    assert "the device was lost, what follows was not checked: planted: illegal address" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "check-cpu.json").read_text(encoding="utf-8"))["rows"]) == 1


def test_a_check_that_is_ended_leaves_the_rows_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = check.check_case

    def ended(op: str, case: str, *given: Any) -> list[check.CheckRow]:
        if "no residual" in case:
            raise KeyboardInterrupt
        return checked(op, case, *given)

    monkeypatch.setattr(check, "check_case", ended)
    with pytest.raises(KeyboardInterrupt):
        check.main(["--op", "add_layer_norm", "--provider", "reference", "--dtype", "float32", "--out", str(tmp_path)])
    assert len(json.loads((tmp_path / "check-cpu.json").read_text(encoding="utf-8"))["rows"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["check-cpu.json"]
    assert "add_layer_norm, BERT-base width, ragged row tile, float32: checked in " in capsys.readouterr().err


def test_files_of_several_checks_are_joined_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "check-cpu.json").write_text(json.dumps({"rows": [{"value": value}]}), encoding="utf-8")
    folders = [str(tmp_path / name) for name in ("a", "hung", "b")]
    assert check.main(["--merge", *folders, "--out", str(tmp_path)]) == 0
    joined = json.loads((tmp_path / "check-cpu.json").read_text(encoding="utf-8"))
    assert [row["value"] for row in joined["rows"]] == [1, 2]


def test_a_file_holds_no_infinity(tmp_path: Path) -> None:
    row = check.CheckRow("op", "case", "cpu", "float32", "forward only", rows.RED, error=float("inf"), torch_error=0.5)
    assert rows.plain(row)["error"] is None
    assert rows.plain(row)["torch_error"] == 0.5


def fwd_ops() -> list[str]:
    return [name for name in providers.registered() if name.endswith("_fwd")]


def test_the_check_of_all_ops_turns_red_for_a_wrong_gradient(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong_bias_gradient(*args: Any) -> tuple[Tensor, ...]:
        *others, last = reference.elastic_ffn_bwd(*args)
        return *others, last * 1.001

    case = ("elastic_ffn", "MiniLM, GELU")
    monkeypatch.setattr(check, "CASES", {case: check.CASES[case]})
    plant(monkeypatch, "elastic_ffn_fwd", reference.elastic_ffn_fwd)
    plant(monkeypatch, "elastic_ffn_bwd", wrong_bias_gradient)
    arguments = ["--op", "elastic_ffn", "--provider", "cpu", "--dtype", "float32", "--out", str(tmp_path)]
    assert check.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "RED" in printed
    assert "dln_bias: error" in printed
    assert "green 0, red 1, failed 0" in printed
