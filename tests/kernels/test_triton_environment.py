"""The Triton provider where Triton is missing, and where kernels are compiled but tensors lie on the CPU.

Both are decided at import, so each is looked at in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dynabert_kernels.triton.environment import IMPORT_ERROR, accumulator_dtype, why_too_old

_LAUNCH = """
import torch
from dynabert_kernels.triton import add_layer_norm as op
x, vector = torch.zeros(2, 3), torch.zeros(3)
print("refused:", op.supports(x, None, vector, vector, 1e-5))
try:
    op.add_layer_norm_fwd(x, None, vector, vector, 1e-5)
except RuntimeError as error:
    print("raised:", error)
"""

# The heads of the first layer begin 8 bytes into the plan's table, those of the second 16.
_TWO_LAYERS = """
import dynabert_kernels as dk, torch
from dynabert_kernels.testing.codegen_cases import TritonCase
from dynabert_kernels.testing.offline_triton import compile_launches
from dynabert_kernels.triton.elastic_attention import elastic_attention_fwd

plan = dk.Plan.uniform(dk.SubnetShape((4, 4), (1, 1)), [16])
assert [layer.heads.data_ptr() % 16 for layer in plan.layers] == [8, 0]

def zeros(*shape):
    return torch.zeros(shape, dtype=torch.bfloat16)

def launch():
    vector = zeros(64)
    weights = zeros(4, 3, 16, 64), zeros(4, 3, 16), zeros(64, 64), vector, vector, vector
    for layer in plan.layers:
        tables = torch.tensor([0, 16], dtype=torch.int32), layer.rows, layer.heads, None, None
        elastic_attention_fwd(zeros(16, 64), *weights, *tables, 4, 16, 0.25, 1e-12, 0.0, 0.0, 3, True)

builds = [(name, kernel.hash) for name, _, kernel in compile_launches(TritonCase("", "", "", launch), "sm_90")]
half = len(builds) // 2
print("launches", half, "same" if builds[:half] == builds[half:] else builds)
"""


def _said(code: str, **more: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | more
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_triton_the_package_imports_and_says_why() -> None:
    said = _said("import sys; sys.modules['triton'] = None\n" + _LAUNCH)
    assert "refused: triton cannot be imported" in said
    assert "raised: triton provider: triton cannot be imported" in said
    assert "pip install 'triton>=3.6'" in said


@pytest.mark.skipif(IMPORT_ERROR is not None, reason=str(IMPORT_ERROR))
def test_without_interpreter_cpu_tensors_are_refused_by_name() -> None:
    said = _said(_LAUNCH)
    assert "refused: tensors are on cpu; Triton kernels need a CUDA device, or TRITON_INTERPRET=1 set before" in said


@pytest.mark.skipif(IMPORT_ERROR is not None, reason=str(IMPORT_ERROR))
def test_where_a_layer_stands_in_its_plan_makes_no_other_build(tmp_path: Path) -> None:
    assert _said(_TWO_LAYERS, TRITON_CACHE_DIR=str(tmp_path)).strip() == "launches 4 same"


def test_sums_are_kept_wide() -> None:
    assert accumulator_dtype(torch.bfloat16) == torch.float32
    assert accumulator_dtype(torch.float64) == torch.float64


@pytest.mark.parametrize(("capability", "old"), [((7, 5), True), ((8, 0), False), ((8, 9), False), ((12, 0), False)])
def test_a_card_that_is_too_old_is_named(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], old: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Card")
    reason = why_too_old.__wrapped__(torch.device("cuda"))
    assert (reason is not None) == old
    if old:
        assert reason == "Some Card has compute capability 7.5; GPU kernels here need 8.0 (A100) or later"
