"""From texts to token ids: once for a whole set, without padding, refusing what does not fit.

A Hugging Face fast tokenizer keeps its truncation and padding as state, and files of published models carry such state
(a sentence encoder's pads everything to 128). So `TextEncoder` works on its own copies of the tokenizer's Rust half,
set up once and
never changed: several threads may use one encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dynabert.data.examples import Examples, Labels, TextError, check_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WINDOW = 8192  # texts that are encoded at a time


@dataclass(frozen=True)
class Encoded:
    """Token ids of a set of examples, in its order, unpadded.

    Attributes:
        input_ids: ids of each example, special tokens included.
        token_type_ids: 0 for the first text and 1 for the second, or None where the model has no such embedding.
        labels: class indices, or floats for regression, or for each text a tuple of class indices, or None.
        label_names: names of the classes; empty for regression and for unlabelled text.
        source: where the examples came from, for messages.
        num_truncated: how many examples were cut to the allowed length (0 unless the caller asked for cutting).
        lines: the line that each example stands at in its file, for messages, or None.
        max_length: the most tokens that an example was allowed to have, or None where it is not known.
    """

    input_ids: tuple[list[int], ...]
    token_type_ids: tuple[list[int], ...] | None = None
    labels: Labels | None = None
    label_names: tuple[str, ...] = ()
    source: str = "examples"
    num_truncated: int = 0
    lines: tuple[int, ...] | None = None
    max_length: int | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each example."""
        return tuple(map(len, self.input_ids))

    def rows(self, indices: Sequence[int]) -> tuple[list[list[int]], list[list[int]] | None]:
        """Token ids and token types (or None) of the examples with these indices: what ``model.pack`` takes."""
        types = self.token_type_ids
        return [self.input_ids[i] for i in indices], None if types is None else [types[i] for i in indices]

    def select(self, indices: Sequence[int]) -> Encoded:
        """The examples with these indices, in the order given."""
        return replace(
            self,
            input_ids=tuple(self.input_ids[i] for i in indices),
            token_type_ids=None if self.token_type_ids is None else tuple(self.token_type_ids[i] for i in indices),
            labels=None if self.labels is None else tuple(self.labels[i] for i in indices),  # type: ignore[arg-type]
            lines=None if self.lines is None else tuple(self.lines[i] for i in indices),
        )


class TextEncoder:
    """Encodes texts with a fixed tokenizer and a fixed longest length. Immutable after construction; thread safe.

    Args:
        tokenizer: a fast Hugging Face tokenizer; it is copied, never changed.
        max_length: the most tokens an example may have, special tokens included (at least 4 tokens).
        token_types: False leaves the token types out (RoBERTa and MPNet have no such embedding). None: as the tokenizer
            says.

    Raises:
        TypeError: a tokenizer without a Rust half.
        ValueError: a ``max_length`` too small to hold a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, *, token_types: bool | None = None) -> None:
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TypeError(
                f"TextEncoder: a fast tokenizer is needed; got {type(tokenizer).__name__}; load it with "
                "AutoTokenizer from a folder that has tokenizer.json"
            )
        if isinstance(max_length, bool) or not isinstance(max_length, int):
            raise TypeError(f"TextEncoder: max_length must be an int; got {type(max_length).__name__}")
        if max_length < 4:
            raise ValueError(
                f"TextEncoder: max_length is too small for a text and its special tokens; got {max_length}; allowed: "
                "4 or more"
            )
        self.max_length = max_length
        self.token_types = "token_type_ids" in tokenizer.model_input_names if token_types is None else token_types
        self._whole = copy.deepcopy(backend)
        self._whole.no_padding()
        self._whole.no_truncation()
        self._cut = copy.deepcopy(self._whole)
        self._cut.enable_truncation(max_length, strategy="longest_first")

    def encode(
        self,
        texts: Sequence[str],
        seconds: Sequence[str] | None = None,
        *,
        truncate: bool = False,
        first_index: int = 0,
    ) -> Encoded:
        """Encode texts, or pairs of texts.

        Args:
            texts: the texts; each must be a str with something in it.
            seconds: second texts, one per text, or None.
            truncate: True cuts what is longer than ``max_length`` (a pair: the longer of the two first) and counts it
                in ``num_truncated``; False refuses it.
            first_index: index of ``texts[0]`` in the caller's list, for messages.

        Raises:
            TypeError: a text that is no str.
            ValueError: an empty text; a text that is too long, naming its index, its length and what is allowed.
        """
        if seconds is not None and len(seconds) != len(texts):
            raise ValueError(f"tokenise: one second text is needed per text; got {len(seconds)} for {len(texts)}")
        for index, text in enumerate(texts):
            check_text(text, f"tokenise: text {first_index + index}")
            if seconds is not None:
                check_text(seconds[index], f"tokenise: second text {first_index + index}")
        inputs: list[Any] = list(texts) if seconds is None else list(zip(texts, seconds, strict=True))
        ids, types = self._lists(self._whole, inputs)
        too_long = [index for index, found in enumerate(ids) if len(found) > self.max_length]
        if too_long and not truncate:
            index = too_long[0]
            raise TextError(
                f"tokenise: {{text}} is too long; got {len(ids[index])} tokens"
                f"{f' (and {len(too_long) - 1} more texts are too long)' if len(too_long) > 1 else ''}; "
                f"allowed: {self.max_length}; shorten it, cut it with truncate=True (--truncate), or, where the "
                "model has more positions, allow more with max_length (--max_seq_length)",
                first_index + index,
            )
        for index, *cut in zip(too_long, *self._lists(self._cut, [inputs[i] for i in too_long]), strict=True):
            ids[index], types[index] = cut
        return Encoded(
            input_ids=tuple(ids),
            token_type_ids=tuple(types) if self.token_types else None,
            source="texts",
            num_truncated=len(too_long),
        )

    @staticmethod
    def _lists(backend: Any, inputs: Sequence[Any]) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids and token types. The Rust side keeps much more of each text, so it holds few texts at a time; and
        equal ids are one Python int, else each takes 28 bytes beside the 8 of its place in the list."""
        ids: list[list[int]] = []
        types: list[list[int]] = []
        one: dict[int, int] = {}
        for start in range(0, len(inputs), _WINDOW):
            for found in backend.encode_batch(inputs[start : start + _WINDOW]):
                own = found.ids
                ids.append(list(map(one.setdefault, own, own)))
                types.append(found.type_ids)
        return ids, types


def tokenise(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    truncate: bool = False,
    *,
    token_types: bool | None = None,
) -> Encoded:
    """Token ids of a set of examples.

    Args:
        examples: the texts and labels.
        tokenizer: a fast Hugging Face tokenizer; it is not changed.
        max_length: the most tokens an example may have; for a model no more than its positions.
        truncate: False refuses an example that is longer; True cuts it and counts it in ``Encoded.num_truncated``.
        token_types: see `TextEncoder`.

    Raises:
        TypeError: texts that are not `Examples`.
        ValueError: a text that is too long, naming the source, its index, its length and what is allowed.
    """
    if not isinstance(examples, Examples):
        raise TypeError(
            f"tokenise: examples must be Examples; got {type(examples).__name__}; make them with read_examples, "
            "load_task or Examples(texts=...)"
        )
    encoder = TextEncoder(tokenizer, max_length, token_types=token_types)
    try:
        encoded = encoder.encode(examples.texts, examples.seconds, truncate=truncate)
    except TextError as error:
        named = str(error) if examples.lines is None else error.named(f"the text of line {examples.lines[error.index]}")
        raise ValueError(f"{examples.source}: {named}") from error
    except ValueError as error:
        raise ValueError(f"{examples.source}: {error}") from error
    return replace(
        encoded,
        labels=examples.labels,
        label_names=examples.label_names,
        source=examples.source,
        lines=examples.lines,
        max_length=max_length,
    )


def usual_length(tokenizer: PreTrainedTokenizerBase, positions: int) -> int:
    """Most tokens of a text where nobody says otherwise: those of the training, which the tokenizer keeps as its
    ``model_max_length`` (`with_length`), and never more than the model's ``positions``."""
    kept: Any = getattr(tokenizer, "model_max_length", None)
    return min(kept, positions) if isinstance(kept, int) and kept > 0 else positions


def with_length(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer whose ``model_max_length`` says how long the texts of a training were; the tokenizer
    itself for None."""
    if max_length is None or tokenizer.model_max_length == max_length:
        return tokenizer
    own = copy.deepcopy(tokenizer)
    own.model_max_length = max_length
    return own


def check_tokenizer(call: str, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """``ValueError``, beginning with ``call``, for a tokenizer that has an id which a model of this size has not;
    ``TypeError`` for what is no tokenizer."""
    if not hasattr(tokenizer, "get_vocab"):
        raise TypeError(
            f"{call}: tokenizer must be a fast tokenizer; got {type(tokenizer).__name__}; load it with AutoTokenizer "
            "from a folder that has tokenizer.json"
        )
    if (count := len(tokenizer)) > vocab_size:
        raise ValueError(
            f"{call}: the tokenizer has {count} tokens, the model {vocab_size}; use the model's own tokenizer"
        )
    if (largest := max(tokenizer.get_vocab().values(), default=-1)) >= vocab_size:
        raise ValueError(
            f"{call}: the tokenizer has the id {largest}; allowed: 0 to {vocab_size - 1}, the model's vocabulary; use "
            "the model's own tokenizer"
        )


def check_ids(call: str, encoded: Encoded, vocab_size: int, positions: int) -> None:
    """``ValueError``, beginning with ``call`` and naming the text, for token ids that a model of this size does not
    take: an id outside its vocabulary, no token, or more than its positions."""
    for index, ids in enumerate(encoded.input_ids):
        if 0 < len(ids) <= positions and min(ids) >= 0 and max(ids) < vocab_size:
            continue
        name = f"text {index}" if encoded.lines is None else f"the text of line {encoded.lines[index]}"
        if not 0 < len(ids) <= positions:
            wrong = f"has {len(ids)} tokens; allowed: 1 to the model's {positions} positions"
        else:
            wrong = f"has the id {min(ids) if min(ids) < 0 else max(ids)}; allowed: 0 to {vocab_size - 1}"
        raise ValueError(f"{call}: {name} of {encoded.source} {wrong}; tokenise for this model, by its own tokenizer")
