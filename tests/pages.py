"""What a Markdown page promises: its links, its commands, its options, the files that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
_FOLDERS = ("benchmarks", "csrc", "docs", "dynabert_kernels", "examples", "python", "tests")


class Page(NamedTuple):
    """A page's path, its text, and its fenced blocks as (language, code)."""

    path: Path
    text: str
    blocks: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def prose(self) -> str:
        """The text without its blocks."""
        return _BLOCK.sub("", self.text)

    def code(self, language: str) -> list[str]:
        """The blocks of one language."""
        return [code for found, code in self.blocks if found == language]


def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    return Page(path, text, tuple(_BLOCK.findall(text)))


def pages() -> list[Page]:
    """Every page that is checked: the README, CONTRIBUTING and all of docs/."""
    return [read_page(path) for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))]


def commands(page: Page) -> list[list[str]]:
    """The words of every command in a page's bash blocks; a pipe's parts are commands of their own."""
    found = []
    for code in page.code("bash"):
        for line in code.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, "|"]:
                if set(word) <= set("|;&"):
                    found += [words] if words else []
                    words = []
                else:
                    words.append(word)
    return found


def spans(page: Page) -> list[str]:
    """The inline code of a page."""
    return re.findall(r"`([^`\n]+)`", page.prose)


def anchors(text: str) -> set[str]:
    """What a link may name behind the # of a page: its headings, as code hosts write them."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Page) -> list[str]:
    """The links to files or headings that are not there."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.prose):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.path.parent / name).resolve() if name else page.path
        if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def missing_files(page: Page) -> list[str]:
    """The paths of this repository in inline code that are not there. ``<op>`` and kin stand for any name."""
    missing = []
    for span in spans(page):
        first, slash, _ = span.partition("/")
        if slash and first in _FOLDERS and re.fullmatch(r"[\w./*<>-]+", span):
            pattern = re.sub(r"<\w+>", "*", span).rstrip("/")
            if not any(ROOT.glob(pattern)):
                missing.append(span)
    return missing
