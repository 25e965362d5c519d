"""The package as a whole: its names, and what importing it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import dynabert


def imported_by(code: str) -> list[str]:
    """Which of the heavy packages a process has imported after ``code``."""
    probe = f"import json, sys\n{code}\nprint(json.dumps([n for n in ('torch', 'transformers') if n in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_importing_is_cheap() -> None:
    assert imported_by("import dynabert") == []
    assert imported_by("from dynabert import SubnetConfig; print(SubnetConfig.parse('w0.5-d0.75'))") == []


def test_kernels_import_no_transformers() -> None:
    assert "transformers" not in imported_by("import dynabert_kernels")


@pytest.mark.parametrize("name", dynabert.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(dynabert, name).__name__ == name
    assert getattr(dynabert, name).__doc__
    assert name in dir(dynabert)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'dynabert' has no attribute 'DynaBert'"):
        dynabert.DynaBert  # noqa: B018
