"""Which words of a text may be replaced, and by what: the nearest words of a word vector table, read from a file."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from dynabert.data.rows import Row, RowReader

MINIMUM_COSINE = 0.6  # below it a neighbour shares the topic and little of the meaning

# Letters, with apostrophes inside; a hyphen ends a word, as in BERT's tokenizer. Not the "x" of "4x".
_WORD = re.compile(r"(?<![\w])[^\W\d_]+(?:['’][^\W\d_]+)*(?![\w])")

# Words that carry a sentence's grammar or turn its meaning round: to replace one breaks the text.
STOP_WORDS = frozenset(
    """
    a about above across after again against all almost along already also although always am among an and another any
    anybody anyone anything are aren't around as at away be because been before behind being below beneath beside
    besides between beyond both but by can can't cannot could couldn't despite did didn't do does doesn't doing don't
    done down during each either else enough even ever every everybody everyone everything except few fewer for from
    further had hadn't hardly has hasn't have haven't having he her here hers herself him himself his how however i if
    in inside into is isn't it its itself just least less let lets like ll many may me might mine more most much must
    mustn't my myself near neither never no nobody none nor not nothing now nowhere n't nt of off often on once one only
    onto or other others ought our ours ourselves out outside over own per perhaps quite rather re same several shall
    shan't she should shouldn't since so some somebody someone something still such than that the their theirs them
    themselves then there these they this those though through throughout till to together too toward towards under
    unless unlike until up upon us ve very via was wasn't we were weren't what whatever when whenever where wherever
    whether which whichever while who whoever whole whom whose why will with within without won't would wouldn't yet
    you your yours yourself yourselves
    """.split()  # noqa: SIM905  (one word a line would be pages)
)


class Slot(NamedTuple):
    """A word that may be replaced: ``text[start:end]``, and the words (at least one, none the word itself) to draw
    from."""

    start: int
    end: int
    words: tuple[str, ...]


class CandidateWords(Protocol):
    """Where candidate words come from; `NeighbourWords` and `MaskedWords` are such sources.

    Attributes:
        name: the method and where its words come from, for people.
        digest: of everything that decides which words are found: two sources with the same digest find the same.
    """

    name: str
    digest: str

    def find(self, texts: Sequence[str], count: int) -> Iterator[list[Slot]]:
        """For each text, in order, its slots from left to right, with at most ``count`` words each."""
        ...


def is_content_word(word: str) -> bool:
    """Letters alone (apostrophes inside), two or more, and no stop word: what may be replaced, and what by."""
    return len(word) > 1 and _WORD.fullmatch(word) is not None and word.lower().replace("’", "'") not in STOP_WORDS


def content_words(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and text of each content word, from left to right."""
    for found in _WORD.finditer(text):
        word = found.group()
        if len(word) > 1 and word.lower().replace("’", "'") not in STOP_WORDS:
            yield found.start(), found.end(), word


def in_case_of(word: str, candidate: str) -> str:
    """A candidate of small letters, with the capitals of the word it replaces; any other as it is."""
    if word[0].islower() or not candidate.islower():
        return candidate
    return candidate.upper() if word.isupper() else candidate[0].upper() + candidate[1:]


class NeighbourWords:
    """Candidates that depend on the word alone: its nearest words. Nothing is left to compute.

    A word is looked up in small letters. Words of equal company are near each other in such a table, so opposites
    (good, bad) are among them: fit for distillation, where the teacher answers for the new text, not for labels.

    Args:
        table: words, in small letters, each with its neighbours, nearest first.
        name: where the table comes from, for messages.
    """

    def __init__(self, table: Mapping[str, Sequence[str]], name: str = "neighbours") -> None:
        self.name = name
        self._table = {
            word: kept
            for word, neighbours in table.items()
            if is_content_word(word)
            and (kept := tuple(n for n in neighbours if is_content_word(n) and n.lower() != word))
        }
        if not self._table:
            raise ValueError(
                f"{name}: no word has a neighbour that may take its place; {len(table)} words were given; stop words "
                "and what is not made of letters do not count; allowed: at least one word with one neighbour"
            )
        found = hashlib.blake2b(digest_size=16)
        for word in sorted(self._table):
            found.update(" ".join((word, *self._table[word], "\n")).encode())
        self.digest = f"neighbours-{found.hexdigest()}"

    @classmethod
    def read(cls, path: str | Path, *, minimum_cosine: float = MINIMUM_COSINE) -> NeighbourWords:
        """Read a table with the columns ``word`` and ``neighbours``, such as ``film<TAB>movie:0.91 comedy:0.82``.

        Args:
            path: .tsv (also .gz), or another format that `RowReader` reads. Neighbours are parted by spaces, nearest
                first, each with its cosine after the last colon.
            minimum_cosine: neighbours below it are left out.

        Raises:
            ValueError, naming file and line: a column that is missing; a word that is empty or stands twice; a
                neighbour without a cosine of -1 to 1. Naming the file: nothing in it that can be used.
            FileNotFoundError: no such file.
        """
        if not -1 <= minimum_cosine <= 1:
            raise ValueError(f"NeighbourWords: minimum_cosine is {minimum_cosine}; allowed: -1 to 1")
        table: dict[str, tuple[str, ...]] = {}
        with RowReader(path) as reader:
            missing = [column for column in ("word", "neighbours") if column not in reader.columns]
            if missing:
                raise reader.bad(
                    1,
                    f"no column {missing[0]!r}; found {', '.join(map(repr, reader.columns))}; allowed: a table of "
                    "neighbours has the columns 'word' and 'neighbours'",
                )
            for row in reader:
                absent = [column for column in ("word", "neighbours") if column not in row.values]
                if absent:  # the lines of a .jsonl file may differ in their keys
                    raise reader.bad(
                        row.line,
                        f"no {absent[0]!r} here; found {', '.join(map(repr, row.values))}; allowed: 'word' and "
                        "'neighbours' in each row, the neighbours of a word without any as an empty text",
                    )
                word = str(row.values["word"]).strip().lower()
                if not word:
                    raise reader.bad(row.line, "the word is empty; give one word in each row")
                if word in table:
                    raise reader.bad(row.line, f"the word {word!r} stands twice; allowed: one row for each word")
                table[word] = _neighbours(reader, row, minimum_cosine)
        return cls(table, f"neighbours({Path(path).name})")

    def __len__(self) -> int:
        return len(self._table)

    def words(self, word: str, count: int) -> tuple[str, ...]:
        """The first ``count`` neighbours of a word, in its case; empty for a word that has none."""
        found = self._table.get(word.lower(), ())[:count]
        return found if word.islower() else tuple(in_case_of(word, candidate) for candidate in found)

    def find(self, texts: Sequence[str], count: int) -> Iterator[list[Slot]]:
        """See `CandidateWords`."""
        for text in texts:
            yield [
                Slot(start, end, words)
                for start, end, word in content_words(text)
                if (words := self.words(word, count))
            ]


def _neighbours(reader: RowReader, row: Row, minimum_cosine: float) -> tuple[str, ...]:
    found = []
    for entry in str(row.values["neighbours"] or "").split():
        word, _, number = entry.rpartition(":")
        try:
            cosine = float(number)
        except ValueError:
            cosine = math.nan
        if not word or not abs(cosine) <= 1.001:  # a rounded cosine may pass 1 by a little
            raise reader.bad(
                row.line,
                f"a neighbour of {row.values['word']!r} is no word with its cosine; found {entry!r}; allowed: such as "
                "movie:0.91, the cosine from -1 to 1, neighbours parted by spaces",
            )
        if cosine >= minimum_cosine:
            found.append(word)
    return tuple(found)
