"""The pages' promises: their Python runs, their commands and options exist, their links lead somewhere."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from tests.dynabert.tiny_texts import some_texts, tiny_embedder_folder, tiny_folder
from tests.pages import ROOT, Page, broken_links, commands, missing_files, pages, spans

PAGES = pages()
NAMES = [page.name for page in PAGES]
# README.md is in test_readme.py: its blocks run one by one, on a real model.
WITH_PYTHON = [page for page in PAGES if page.code("python") and page.name != "README.md"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages' Python finds where it runs: a plain checkpoint, an elastic one, an embedder, labelled text."""
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    tiny_folder(tmp_path / "plain", num_labels=2, **names)
    tiny_folder(tmp_path / "elastic", num_labels=2, **names)
    tiny_embedder_folder(tmp_path / "embedder")
    with (tmp_path / "reviews.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label"])
        rows.writerows([text, ("bad", "good")[i % 2]] for i, text in enumerate(some_texts(24)))
    monkeypatch.setenv("DYNABERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON, ids=[page.name for page in WITH_PYTHON])
def test_python_runs(page: Page, folder: Path) -> None:
    """Block after block, as a reader would: what one defines the next may use."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for number, code in enumerate(page.code("python")):
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Page) -> None:
    assert not broken_links(page)
    assert not missing_files(page)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse(page: Page) -> None:
    for words in commands(page):
        check_command(words)


def check_command(words: list[str]) -> None:
    """Fails where a command, a target, a module or an option is not there."""
    program, *rest = words
    line = " ".join(words)
    if program == "dynabert":
        check_dynabert(rest)
    elif program == "torchrun":
        assert "dynabert.cli" in rest, line
        check_dynabert(rest[rest.index("dynabert.cli") + 1 :])
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(rest[0])}:", makefile, re.M), f"the Makefile has no target {rest[0]}: {line}"
        for variable in re.findall(r"\b([A-Z_]+)=", " ".join(rest[1:])):
            assert f"$({variable})" in makefile, f"the Makefile knows no {variable}: {line}"
    elif program == "dynabert-bench":
        check_options(ROOT / "benchmarks" / "run.py", rest, line)
    elif program.startswith("python"):
        check_options(python_source(rest), rest, line)
    elif program == "bash":
        assert (ROOT / rest[0]).is_file(), line
    else:
        assert program in ("cat", "pip", "cd", "curl"), f"nobody checks {program!r}: {line}"


def check_dynabert(rest: list[str]) -> None:
    """As the command line itself reads it."""
    from dynabert.cli import build_parser, train

    if rest == ["train", "..."] or rest[-1].endswith((".yaml", ".json")):
        return
    if rest[0] == "train":
        train.parse(rest[1:])
        return
    try:
        build_parser().parse_args(rest)
    except SystemExit as stop:
        raise AssertionError(f"dynabert {' '.join(rest)} does not parse") from stop


def python_source(rest: list[str]) -> Path:
    """The file of a script or module."""
    if rest[0] == "-m":
        path = ROOT / rest[1].replace(".", "/")
        return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return ROOT / rest[0]


def check_options(source: Path, rest: list[str], line: str) -> None:
    """Options of scripts that have parsers of their own: each is written somewhere in the script, or its package."""
    assert source.is_file(), f"there is no {source.relative_to(ROOT)}: {line}"
    found = source.parent.rglob("*.py") if source.name == "__main__.py" else [source]
    text = "".join(path.read_text(encoding="utf-8") for path in found)
    for option in re.findall(r"--\w+", " ".join(rest)):
        assert f'"{option}"' in text or option in train_options(), f"{option} is not known: {line}"


def train_options() -> set[str]:
    """Every option of ``dynabert train``."""
    from transformers import HfArgumentParser

    from dynabert.cli.train import InputArguments
    from dynabert.distill import DistillationArguments

    return set(HfArgumentParser((InputArguments, DistillationArguments))._option_string_actions)  # type: ignore[arg-type]


def known_options() -> set[str]:
    """Every option of every command of ours."""
    from dynabert.cli import build_parser

    found = train_options()
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for parser in action.choices.values():
                found |= set(parser._option_string_actions)
    for folder in ("benchmarks", "examples", "dynabert_kernels/testing", "tests/faults"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r'"(--\w+)"', path.read_text(encoding="utf-8")))
    return found


def test_options_in_the_text_exist() -> None:
    known = known_options()
    other = {"--no-deps", "--nproc_per_node"}  # pip's and torchrun's
    for page in PAGES:
        for span in spans(page):
            for option in re.findall(r"(?<![\w-])--[\w-]+", span):
                assert option in known | other, f"{page.name}: no command has {option}"


def test_pages_and_examples_are_packed() -> None:
    packed = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    assert {"recursive-include docs *.md", "recursive-include examples *.py"} <= set(packed)


def test_the_api_reference_names_rooms_that_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    line = re.search(r"^API := (.*)$", makefile, re.M)
    assert line is not None
    for module in line[1].split():
        assert importlib.util.find_spec(module) is not None, module


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.name.startswith("docs/") and page.path.name != "README.md":
            assert f"]({page.path.name})" in index, page.name
    for path in (ROOT / "examples").glob("*.py"):
        assert f"](../examples/{path.name})" in index, path.name
