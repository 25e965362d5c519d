"""Token ids kept on disk: a set is tokenised once for a tokenizer, a length and a text, whoever asks again.

A file's name is the digest of all that decides its content, so nothing in it can be out of date. Files are written
under another name and moved into place: several processes may write the same one.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dynabert.data.examples import Examples
from dynabert.data.tokenisation import Encoded, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT = "dynabert tokens 1"


def default_cache_dir() -> Path:
    """``$DYNABERT_CACHE``, else ``dynabert`` in ``$XDG_CACHE_HOME``, else ``~/.cache/dynabert``.

    Raises ``OSError`` where no home is known, as in a container that runs as a user without a name.
    """
    own = os.environ.get("DYNABERT_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):
        return Path(shared) / "dynabert"
    try:
        return Path.home() / ".cache" / "dynabert"
    except RuntimeError as error:
        raise OSError(
            "no home is known here to keep a cache in; --cache_dir or DYNABERT_CACHE gives a folder"
        ) from error


def cache_folder(given: str | Path | None) -> Path:
    """The folder given, ``~`` known; without one `default_cache_dir`."""
    return default_cache_dir() if given is None else Path(given).expanduser()


def tokenise_once(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncate: bool = False,
    *,
    token_types: bool | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = warnings.warn,
) -> Encoded:
    """`dynabert.data.tokenise`, read from ``cache_dir`` where it was done before.

    Args:
        examples, tokenizer, max_length, truncate, token_types: see `dynabert.data.tokenise`.
        cache_dir: where files are kept; None: `default_cache_dir`.
        overwrite: tokenise anew, and replace the file.
        say: takes a line for people, where a file is damaged or cannot be written; neither stops the work.

    Returns:
        The same as without a cache; labels are never kept there, they come from ``examples``.

    Raises:
        ValueError: what `dynabert.data.tokenise` raises.
    """
    try:
        folder = cache_folder(cache_dir) / "tokens"
    except OSError as error:
        say(f"token ids are not kept for the next time: {error}")
        return tokenise(examples, tokenizer, max_length, truncate, token_types=token_types)
    path = folder / f"{_digest(examples, tokenizer, max_length, truncate, token_types)}.safetensors"
    if not overwrite and os.path.isfile(path):  # False, where the folder may not be read
        found = _read(path, examples, max_length)
        if found is not None:
            return found
        say(f"{path} is damaged; it is made anew")
    encoded = tokenise(examples, tokenizer, max_length, truncate, token_types=token_types)
    try:
        _write(path, encoded)
    except (OSError, SafetensorError) as error:
        say(f"token ids are not kept for the next time: {error}; --cache_dir or DYNABERT_CACHE gives another folder")
    return encoded


def _digest(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: bool, token_types: bool | None
) -> str:
    found = hashlib.sha256()

    def add(text: str) -> None:
        content = text.encode("utf-8", "surrogatepass")
        found.update(len(content).to_bytes(8, "little"))
        found.update(content)

    # The whole tokenizer: its words, its rules, its special tokens.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    types = "token_type_ids" in tokenizer.model_input_names if token_types is None else token_types
    add(f"{_FORMAT} {max_length} {bool(truncate)} {types} {len(examples)} {examples.seconds is not None}")
    add("" if backend is None else backend.to_str())
    for text in examples.texts:
        add(text)
    for text in examples.seconds or ():
        add(text)
    return found.hexdigest()[:40]


def _write(path: Path, encoded: Encoded) -> None:
    ids = np.fromiter(chain.from_iterable(encoded.input_ids), dtype=np.int32)
    content = {"lengths": np.asarray(encoded.lengths, dtype=np.int32), "input_ids": ids}
    if encoded.token_type_ids is not None:
        content["token_type_ids"] = np.fromiter(chain.from_iterable(encoded.token_type_ids), dtype=np.int8)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        facts = {"format": _FORMAT, "num_truncated": str(encoded.num_truncated), "digest": _content_digest(content)}
        save_file(content, aside, facts)
        os.chmod(aside, 0o644)  # others who share the folder may read it
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _content_digest(content: Mapping[str, npt.NDArray[np.integer]]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(content):
        found.update(f"{name} {content[name].dtype} {content[name].shape} ".encode())
        found.update(np.ascontiguousarray(content[name]).tobytes())
    return found.hexdigest()


def _rows(numbers: npt.NDArray[np.integer], borders: list[int]) -> tuple[list[int], ...]:
    """Runs of a vector as lists. Equal numbers are one Python int: else each takes 28 bytes beside its place."""
    if len(numbers) != borders[-1]:
        raise ValueError(f"the rows hold {borders[-1]} numbers and the file {len(numbers)}")
    one = np.arange(int(numbers.max(initial=0)) + 1).astype(object)
    flat: list[int] = one[numbers].tolist()
    return tuple(flat[start:stop] for start, stop in pairwise(borders))


def _read(path: Path, examples: Examples, max_length: int) -> Encoded | None:
    """None where the file is not what was written."""
    try:
        with safe_open(path, framework="np") as file:
            facts = file.metadata() or {}
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (a file is no dictionary)
        lengths = content["lengths"]
        if len(lengths) != len(examples) or facts["format"] != _FORMAT or facts["digest"] != _content_digest(content):
            return None
        borders = [0, *np.cumsum(lengths).tolist()]
        rows = {name: _rows(content[name], borders) for name in ("input_ids", "token_type_ids") if name in content}
        truncated = int(facts["num_truncated"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return Encoded(
        input_ids=rows["input_ids"],
        token_type_ids=rows.get("token_type_ids"),
        labels=examples.labels,
        label_names=examples.label_names,
        source=examples.source,
        num_truncated=truncated,
        lines=examples.lines,
        max_length=max_length,
    )
