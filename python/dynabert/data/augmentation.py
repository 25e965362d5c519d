"""Augmentation of texts by word replacement, as TinyBERT does it and DynaBERT takes it over for distillation.

Each word of a text that has candidates is replaced, with probability p, by one drawn evenly from its M candidates; N
copies of each example are drawn. Labels are dropped: the teacher answers for the new texts. The usual numbers are p =
0.4, M = 15, and N by task (TinyBERT: Jiao et al. 2020, https://arxiv.org/abs/1909.10351, its data augmentation
procedure; DynaBERT: Hou et al. 2020, https://arxiv.org/abs/2004.04037).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from dynabert.data.candidate_words import CandidateWords, Slot
from dynabert.data.examples import Examples
from dynabert.data.glue import plain_task_name

COPIES = {"mnli": 10, "qqp": 10, "sst2": 20, "qnli": 20}
OTHER_COPIES = 30
# Raised whenever the same arguments would give other texts: what an older version cached is then not found.
VERSION = 1

_Copies = list[list[str]]  # each copy as [text] or [text, second]


def default_copies(task: str | None) -> int:
    """The paper's N: 10 for MNLI and QQP, 20 for SST-2 and QNLI, 30 for any other task or none. The name is written in
    any way that `load_task` takes."""
    return COPIES.get(plain_task_name(task or ""), OTHER_COPIES)


def augment(
    examples: Examples,
    candidates: CandidateWords,
    *,
    copies: int,
    probability: float = 0.4,
    num_candidates: int = 15,
    seed: int = 42,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Examples:
    """The examples, and after them altered copies of each, without labels.

    A copy always differs from its original: where no word was drawn, one of them, drawn evenly, is replaced. Copies of
    one example that come out the same are kept once, as in TinyBERT, so a short text has fewer than ``copies``, and one
    without a word to replace has none. Of a pair both texts are altered, each word on its own.

    Args:
        examples: texts or pairs; labels are not used.
        candidates: where replacements come from.
        copies: N, copies drawn of each example; see `default_copies`.
        probability: p, of a word with candidates to be replaced.
        num_candidates: M, the most candidates of a word.
        seed: of the draws. Each example has its own generator, so a copy depends on the seed, on the index and the text
            of its example, and on nothing else.
        cache_dir: folder in which the copies are kept, or None. What was made before with equal texts, candidates and
            numbers is read back, and candidates are not asked for. A file that is damaged is made anew, with a warning.
            It is written under another name first, so processes may share the folder; one that cannot be written
            brings a warning too.
        overwrite: make the copies anew, and replace what is kept.
        progress: True shows a bar, False none, None one where stderr is a terminal.

    Returns:
        The originals in their order, then the copies, example by example. ``source`` names the method, its numbers and
        a digest of the texts, and is the same whether they were computed or read back.

    Raises:
        ValueError: a number out of range; no word of any text has a candidate.
    """
    if copies < 1:
        raise ValueError(f"augment: copies is {copies}; allowed: 1 or more")
    if not 0 < probability <= 1:
        raise ValueError(f"augment: probability is {probability}; allowed: above 0, up to 1")
    if num_candidates < 1:
        raise ValueError(f"augment: num_candidates is {num_candidates}; allowed: 1 or more")
    found: _Copies | None = None
    path = None
    if cache_dir is not None:
        told = [VERSION, candidates.digest, _digest(examples.texts, examples.seconds)]
        key = json.dumps([*told, copies, float(probability), num_candidates, seed])
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        path = Path(cache_dir) / f"augmented-{name}.jsonl.gz"
        found = None if overwrite else _read(path, pairs=examples.seconds is not None)
    if found is None:
        found = _draw_all(examples, candidates, copies, probability, num_candidates, seed, progress)
        if not found:
            raise ValueError(
                f"augment: {candidates.name} has no candidate for any word of {examples.source} "
                f"({len(examples)} examples); give a table or a model of the text's language"
            )
        if path is not None:
            try:
                _write(path, found)
            except OSError as error:  # the work is done: only the next time is lost
                warnings.warn(f"augment: the copies are not kept for the next time: {error}", stacklevel=2)
    texts = (*examples.texts, *(copy[0] for copy in found))
    seconds = None if examples.seconds is None else (*examples.seconds, *(copy[1] for copy in found))
    numbers = f"p {probability:g}, M {num_candidates}, N {copies}, seed {seed}"
    source = f"{examples.source} + {candidates.name}, {numbers}, digest {_digest(texts, seconds)[:12]}"
    return replace(examples, texts=texts, seconds=seconds, labels=None, label_names=(), source=source, lines=None)


def _draw_all(
    examples: Examples,
    candidates: CandidateWords,
    copies: int,
    probability: float,
    num_candidates: int,
    seed: int,
    progress: bool | None,
) -> _Copies:
    slots = candidates.find(examples.texts, num_candidates)
    more = None if examples.seconds is None else candidates.find(examples.seconds, num_candidates)
    made: _Copies = []
    disable = None if progress is None else not progress
    for index in tqdm(range(len(examples)), desc="augmentation", unit=" examples", disable=disable):
        pieces, drawable = _pieces(examples.texts[index], next(slots))
        cut = len(pieces)
        if examples.seconds is not None and more is not None:
            second, others = _pieces(examples.seconds[index], next(more))
            pieces += second
            drawable += [(place + cut, words) for place, words in others]
        if drawable:
            chance = random.Random(f"{seed}:{index}")
            for copy in _draw(pieces, drawable, copies, probability, chance):
                parts = [copy] if examples.seconds is None else [copy[:cut], copy[cut:]]
                made.append(["".join(part) for part in parts])
    return made


def _pieces(text: str, slots: Sequence[Slot]) -> tuple[list[str], list[tuple[int, tuple[str, ...]]]]:
    """A text cut at its slots, and for each slot its place among the pieces and its candidates."""
    pieces: list[str] = []
    places: list[tuple[int, tuple[str, ...]]] = []
    end = 0
    for slot in slots:
        places.append((len(pieces) + 1, slot.words))
        pieces += [text[end : slot.start], text[slot.start : slot.end]]
        end = slot.end
    return [*pieces, text[end:]], places


def _draw(
    pieces: list[str],
    drawable: list[tuple[int, tuple[str, ...]]],
    copies: int,
    probability: float,
    chance: random.Random,
) -> Iterator[list[str]]:
    """Different copies of one example, at most ``copies``."""
    draw = chance.random  # its sequence is the same in every version of Python; choice's is not promised
    seen = set()
    for _ in range(copies):
        copy = pieces.copy()
        drawn = [slot for slot in drawable if draw() < probability] or [drawable[int(draw() * len(drawable))]]
        for place, words in drawn:
            copy[place] = words[int(draw() * len(words))]
        kept = tuple(copy)
        if kept not in seen:
            seen.add(kept)
            yield copy


def _digest(texts: Sequence[str], seconds: Sequence[str] | None) -> str:
    found = hashlib.blake2b(digest_size=16)
    for column in (texts, seconds):
        found.update(b"none" if column is None else b"texts %d" % len(column))
        for text in column or ():
            raw = text.encode()
            found.update(b"%d:" % len(raw))
            found.update(raw)
    return found.hexdigest()


def _write(path: Path, copies: _Copies) -> None:
    """All of it or nothing, under a name of its own first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [text for copy in copies for text in copy]
    head = json.dumps({"version": VERSION, "copies": len(copies), "digest": _digest(texts, None)})
    number, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as stream:
            stream.write(head.encode() + b"\n")
            for copy in copies:
                stream.write(json.dumps(copy, ensure_ascii=False).encode() + b"\n")
        os.chmod(aside, 0o644)  # mkstemp's own would keep others who share the folder out
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


def _read(path: Path, *, pairs: bool) -> _Copies | None:
    """The copies of a cache file; None where there is none, or a damaged one."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as stream:
            head = json.loads(next(stream, "null"))
            copies: _Copies = [json.loads(line) for line in stream]
        texts = [text for copy in copies for text in copy]
        whole = head == {"version": VERSION, "copies": len(copies), "digest": _digest(texts, None)}
        if whole and all(len(copy) == 1 + pairs for copy in copies):
            return copies
        what = "its content is not what was written"
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError, TypeError, AttributeError) as error:
        what = str(error)
    warnings.warn(f"augment: {path} is damaged ({what}); it is made anew", stacklevel=3)
    return None
