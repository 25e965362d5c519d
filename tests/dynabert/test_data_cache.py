"""Token ids that are kept: the same as fresh ones, never those of another text, tokenizer or length."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dynabert.cli import main
from dynabert.data import Examples, cache, tokenise, tokenise_once
from tests.dynabert.test_distillation_pipeline import options_of
from tests.dynabert.tiny_texts import some_texts, tiny_tokenizer

SINGLE = Examples(tuple(some_texts(9)), None, tuple(i % 2 for i in range(9)), ("no", "yes"), "nine")
PAIRS = Examples(tuple(some_texts(9)), tuple(reversed(some_texts(9))), None, (), "nine pairs")


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "tokens").iterdir())


@pytest.mark.parametrize("examples", [SINGLE, PAIRS, SINGLE.head(1)])
@pytest.mark.parametrize("token_types", [None, False])
def test_the_same_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: Examples, token_types: bool | None
) -> None:
    given: dict[str, Any] = {"token_types": token_types}
    wanted = tokenise(examples, tiny_tokenizer(), 6, True, **given)
    assert wanted.num_truncated > 0 or len(examples) == 1
    assert tokenise_once(examples, tiny_tokenizer(), 6, True, **given, cache_dir=tmp_path) == wanted
    monkeypatch.setattr(cache, "tokenise", lambda *_, **__: pytest.fail("tokenised twice"))
    again = tokenise_once(examples, tiny_tokenizer(), 6, True, **given, cache_dir=tmp_path)
    assert again == wanted
    assert all(type(i) is int for row in again.input_ids for i in row)
    assert [path.suffix for path in kept(tmp_path)] == [".safetensors"]


def test_labels_are_those_of_the_examples(tmp_path: Path) -> None:
    tokenise_once(SINGLE, tiny_tokenizer(), 20, cache_dir=tmp_path)
    other = dataclasses.replace(SINGLE, labels=(1,) * 9, source="other")
    found = tokenise_once(other, tiny_tokenizer(), 20, cache_dir=tmp_path)
    assert (found.labels, found.source) == ((1,) * 9, "other")
    assert len(kept(tmp_path)) == 1


def test_whatever_decides_the_ids_is_in_the_name(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    words = tiny_tokenizer()
    words.add_tokens(["film"])
    moved = Examples(("a b", "c"), ("d", "e"))
    sets: list[tuple[Examples, Any, int, bool, bool | None]] = [
        (SINGLE, tokenizer, 20, False, None),
        (SINGLE, tokenizer, 19, False, None),
        (SINGLE, tokenizer, 20, True, None),
        (SINGLE, tokenizer, 20, False, False),
        (SINGLE, words, 20, False, None),
        (SINGLE.head(8), tokenizer, 20, False, None),
        (moved, tokenizer, 20, False, None),
        (dataclasses.replace(moved, texts=("a", "b c")), tokenizer, 20, False, None),
        (Examples(("a b", "c", "d", "e")), tokenizer, 20, False, None),
    ]
    for count, (examples, its, length, truncate, types) in enumerate(sets, 1):
        wanted = tokenise(examples, its, length, truncate, token_types=types)
        assert tokenise_once(examples, its, length, truncate, token_types=types, cache_dir=tmp_path) == wanted
        assert len(kept(tmp_path)) == count


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "text", "one number"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    wanted = tokenise_once(SINGLE, tiny_tokenizer(), 20, cache_dir=tmp_path)
    (path,) = kept(tmp_path)
    content = path.read_bytes()
    if damage == "other":
        tokenise_once(SINGLE.head(3), tiny_tokenizer(), 20, cache_dir=tmp_path / "b")
        content = kept(tmp_path / "b")[0].read_bytes()
    altered = content[:-4] + b"\xff" + content[-3:]
    text = b"not what was written"
    path.write_bytes({"one number": altered, "cut": content[:-4], "empty": b"", "text": text, "other": content}[damage])
    said: list[str] = []
    assert tokenise_once(SINGLE, tiny_tokenizer(), 20, cache_dir=tmp_path, say=said.append) == wanted
    assert said == [f"{path} is damaged; it is made anew"]
    assert tokenise_once(SINGLE, tiny_tokenizer(), 20, cache_dir=tmp_path, say=said.append) == wanted
    assert len(said) == 1


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    found = tokenise_once(SINGLE, tiny_tokenizer(), 20, cache_dir=tmp_path / "file", say=said.append)
    assert found == tokenise(SINGLE, tiny_tokenizer(), 20)
    assert len(said) == 1
    assert "token ids are not kept for the next time: " in said[0]
    assert "--cache_dir or DYNABERT_CACHE gives another folder" in said[0]


def test_no_home_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a user without a name."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("DYNABERT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    said: list[str] = []
    found = tokenise_once(SINGLE, tiny_tokenizer(), 20, say=said.append)
    assert found == tokenise(SINGLE, tiny_tokenizer(), 20)
    assert said == [
        "token ids are not kept for the next time: no home is known here to keep a cache in; --cache_dir or "
        "DYNABERT_CACHE gives a folder"
    ]


def test_a_folder_that_may_not_be_read_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Any, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refused)
        patch.setattr(os, "mkdir", refused)
        found = tokenise_once(SINGLE, tiny_tokenizer(), 20, cache_dir=tmp_path / "locked", say=said.append)
    assert found == tokenise(SINGLE, tiny_tokenizer(), 20)
    assert len(said) == 1
    assert "token ids are not kept for the next time: [Errno 13] Permission denied" in said[0]


def test_the_command_tokenises_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = options_of(tmp_path, cache_dir=str(tmp_path / "kept"))
    assert main(given) == 0
    first = {path.name: os.stat(path).st_mtime_ns for path in kept(tmp_path / "kept")}
    assert len(first) == 1
    with monkeypatch.context() as patch:
        patch.setattr(cache, "tokenise", lambda *_, **__: pytest.fail("tokenised twice"))
        assert main(given) == 0
    assert main([*given, "--overwrite_cache"]) == 0
    assert {path.name: os.stat(path).st_mtime_ns for path in kept(tmp_path / "kept")} != first
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert "cache_dir" not in json.dumps(settings)
