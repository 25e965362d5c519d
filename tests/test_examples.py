"""The examples run, as a reader would start them, on a tiny network; each says at its head what it shows."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"
# The options of a short run, and what its output holds when all of it was done.
RUNS = {
    "from_csv_to_export.py": (["--tiny", "--min_retention", "0.1", "--output_dir", "out"], " times as fast"),
    "own_encoder_ops.py": ([], "one call, packed weights"),
    "search_with_narrow_queries.py": (["--tiny", "a dull plot"], "w0.25-d0.5: "),
    "serve_mixed_widths.py": (["--tiny", "--requests", "60"], "w0.25-d0.5: "),
    "train_elastic.py": (["--tiny", "--output_dir", "out", "--max_steps", "3"], "saved: "),
}
SHARED = {"tiny_network.py"}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_it_runs(name: str, tmp_path: Path) -> None:
    options, ending = RUNS[name]
    environment = os.environ | {"DYNABERT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / name), *options]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=240)
    assert result.returncode == 0, result.stderr
    assert ending in result.stdout


def test_every_example_is_run() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == {*RUNS, *SHARED}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_it_says_what_it_shows_and_how_long_it_takes(name: str) -> None:
    said = ast.get_docstring(ast.parse((FOLDER / name).read_text(encoding="utf-8"))) or ""
    assert f"python examples/{name}" in said
    assert "Shows" in said or "does" in said
    assert any(word in said for word in ("second", "minute", "hour"))
