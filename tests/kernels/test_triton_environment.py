"""The Triton provider where Triton is missing, and where kernels are compiled but tensors lie on the CPU.

Both are decided at import, so each is looked at in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

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


def _said(code: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
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
