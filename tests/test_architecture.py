"""The arrows of the design: who may import whom, and how large a module may grow."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"dynabert_kernels": ROOT / "dynabert_kernels", "dynabert": ROOT / "python" / "dynabert"}

# room -> rooms of the same package that it may import (itself always)
KERNEL_ROOMS = {
    "layout": set(),
    "reference": {"layout"},
    "triton": {"layout"},
    "ops": {"layout", "reference", "triton"},
    "testing": {"layout", "reference", "triton", "ops"},
}
MODEL_ROOMS = {
    "configuration": set(),
    "cost": {"configuration"},
    "model_card": {"configuration", "cost"},
    "modeling": {"configuration", "model_card"},
    "importance": {"modeling", "configuration"},
    "rewiring": {"modeling", "configuration", "importance"},
    "data": set(),
    "processor": set(),
    "engine": {"modeling", "configuration", "data"},
    "evaluation": {"modeling", "configuration", "data"},
    "similarity": {"evaluation", "modeling", "configuration", "data"},
    "finetuning": {"modeling", "configuration", "data"},
    "distill": {
        "similarity",
        "evaluation",
        "finetuning",
        "rewiring",
        "importance",
        "cost",
        "model_card",
        "modeling",
        "configuration",
        "data",
    },
    "profile": {"engine", "evaluation", "cost", "modeling", "configuration", "data", "processor"},
    "export": {"modeling", "configuration", "cost"},
}


def modules() -> list[tuple[str, Path]]:
    return [(package, path) for package, root in PACKAGES.items() for path in sorted(root.rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Dotted names of all modules a file imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name, so that arrows can be read"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def room_of(package: str, path: Path) -> str:
    return path.relative_to(PACKAGES[package]).parts[0].removesuffix(".py")


@pytest.mark.parametrize(("package", "path"), modules(), ids=[str(path.relative_to(ROOT)) for _, path in modules()])
def test_arrows(package: str, path: Path) -> None:
    room, names = room_of(package, path), imported(path)
    rooms = KERNEL_ROOMS if package == "dynabert_kernels" else MODEL_ROOMS
    for name in names:
        head, *rest = name.split(".")
        assert head not in ("tests", "benchmarks"), f"{path} imports {name}"
        if package == "dynabert_kernels":
            assert head not in ("dynabert", "transformers", "tokenizers", "datasets"), f"{path} imports {name}"
        if head == package and rest and room in rooms:
            target = rest[0]
            if target in rooms and target != room:
                assert target in rooms[room], f"{room} must not import {target} ({path}: {name})"
    if room not in rooms:
        assert room in ("__init__", "cli"), f"{path}: give the new room {room!r} its arrows in this test"


def test_files_stay_small() -> None:
    for pattern, limit in (("*.py", 600), ("*.cpp", 800), ("*.cu", 800), ("*.cuh", 800), ("*.h", 800)):
        for folder in ("dynabert_kernels", "python", "csrc", "tests", "benchmarks", "examples"):
            for path in (ROOT / folder).rglob(pattern):
                lines = len(path.read_text(encoding="utf-8").splitlines())
                assert lines <= limit, f"{path.relative_to(ROOT)} has {lines} lines; the limit is {limit}"


def test_examples_use_what_users_have() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        for name in imported(path):
            assert name.partition(".")[0] not in ("tests", "benchmarks"), f"{path} imports {name}"


def test_names_say_what_things_do() -> None:
    for folder in ("dynabert_kernels", "python", "csrc", "tests", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*"):
            assert path.stem not in ("utils", "helpers", "common", "misc"), path


def test_device_code_knows_no_framework() -> None:
    for folder in ("csrc/include", "csrc/host"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                assert not re.search(r'#include\s*[<"](torch|ATen|c10)/', text), f"{path} includes a torch header"
