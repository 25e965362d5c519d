"""Candidate words from a masked language model: what it finds most likely in a word's place, the rest of the text
given."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dynabert.data.candidate_words import NeighbourWords, Slot, content_words, in_case_of, is_content_word

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WINDOW = 512  # texts held at a time: enough that rows of equal length come together
_SPARE = 4  # more are asked for than are wanted: the word itself, in other cases, falls out


class MaskedWords:
    """Candidates that depend on the text: each content word of one piece is masked, one at a time, and the model's most
    likely whole words take its place. Words of several pieces are left as they are, or get neighbours.

    Special tokens, pieces of words, stop words, what is not made of letters and the word itself are no candidates. The
    ``count`` best are a set without order (they are sorted), so rounding, which differs with the batch and the device,
    matters only where two scores at the end of the set agree in nearly all digits.

    Cost: a forward pass of the text for each of its words; scores are computed at the masked place alone.

    Args:
        model: a masked language model with a trained head, of BERT's, RoBERTa's or MPNet's kind; it is put in eval mode
            and runs where it lies, in its own dtype.
        tokenizer: its fast tokenizer, with a mask token; it is copied, never changed.
        neighbours: candidates of words that have several pieces, as in TinyBERT; None leaves such words.
        name: where the model comes from, for messages.
        max_length: most tokens of a text that the model sees, special tokens included; words past them are left.
        max_batch_tokens: most tokens of a batch; its texts have one length, so nothing is padded.

    Raises:
        TypeError: a tokenizer without a Rust half; a model without such a head.
        ValueError: a tokenizer without a mask token, or with more tokens than the model; a bound that is too small.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        neighbours: NeighbourWords | None = None,
        *,
        name: str = "model",
        max_length: int = 128,
        max_batch_tokens: int = 8192,
    ) -> None:
        import torch  # here: whoever only reads tables does not wait for it

        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TypeError(f"MaskedWords: a fast tokenizer is needed; got {type(tokenizer).__name__}")
        self._head: Any = getattr(model, "cls", None) or getattr(model, "lm_head", None)
        if self._head is None:
            raise TypeError(
                f"MaskedWords: a masked language model is needed; got {type(model).__name__}, which has no such head; "
                "allowed: BertForMaskedLM, RobertaForMaskedLM, MPNetForMaskedLM"
            )
        if tokenizer.mask_token_id is None:
            raise ValueError(f"MaskedWords: the tokenizer of {name} has no mask token; give the model's own tokenizer")
        if max_batch_tokens < 1:
            raise ValueError(f"MaskedWords: max_batch_tokens is {max_batch_tokens}; allowed: 1 or more")
        config = model.config
        # RoBERTa and MPNet count positions from the padding token's id on.
        positions = config.max_position_embeddings - (0 if config.model_type == "bert" else config.pad_token_id + 1)
        if max_length < 4:
            raise ValueError(f"MaskedWords: max_length is {max_length}; allowed: 4 or more")
        self._model = model.eval()
        self._neighbours = neighbours
        self._max_batch_tokens = max_batch_tokens
        self._mask = int(tokenizer.mask_token_id)
        self._tokenizer = copy.deepcopy(backend)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        told = self._tokenizer.to_str()
        self._tokenizer.enable_truncation(min(max_length, positions))
        self._words, self._first_words = _whole_words(tokenizer)
        if self._tokenizer.get_vocab_size() > config.vocab_size:
            raise ValueError(
                f"MaskedWords: the tokenizer of {name} has {self._tokenizer.get_vocab_size()} tokens, the model "
                f"{config.vocab_size}; give the model's own tokenizer"
            )
        if not self._words:
            raise ValueError(f"MaskedWords: no token of {name} is a whole word; a model of words is needed")
        self._texts = {**self._words, **self._first_words}
        # By row: behind a space, and where none stands before.
        self._refused = torch.ones(2, config.vocab_size, dtype=torch.bool, device=model.device)
        for row, tokens in enumerate((self._words, self._first_words)):
            self._refused[row, list(tokens)] = False
        self.name = f"masked_lm({name})" if neighbours is None else f"masked_lm({name}) and {neighbours.name}"
        found = hashlib.blake2b(digest_size=16)
        first = ("first words",) if self._first_words else ()  # they were left as they are once
        found.update(repr((told, min(max_length, positions), neighbours and neighbours.digest, *first)).encode())
        for key, tensor in sorted(model.state_dict().items()):
            found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self.digest = f"masked-{found.hexdigest()}"

    def find(self, texts: Sequence[str], count: int) -> Iterator[list[Slot]]:
        """See `CandidateWords`. A text that stands more than once in a window is asked for once."""
        for start in range(0, len(texts), _WINDOW):
            window = texts[start : start + _WINDOW]
            different = list(dict.fromkeys(window))
            found = dict(zip(different, self._window(different, count), strict=True))
            yield from (found[text] for text in window)

    def _window(self, texts: list[str], count: int) -> list[list[Slot]]:
        encodings = self._tokenizer.encode_batch(texts)
        slots: list[list[Slot]] = []
        rows: list[tuple[int, int, int, str]] = []  # text, place of the masked token, place of the slot, word
        for index, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            # A word has one piece when a token has exactly its ends.
            places = {
                ends: place
                for place, ends in enumerate(encoding.offsets)
                if not encoding.special_tokens_mask[place] and encoding.ids[place] in self._texts
            }
            own: list[Slot] = []
            for begin, end, word in content_words(text):
                place = places.get((begin, end))
                if place is not None:
                    rows.append((index, place, len(own), word))
                    own.append(Slot(begin, end, ()))
                elif self._neighbours is not None and (words := self._neighbours.words(word, count)):
                    own.append(Slot(begin, end, words))
            slots.append(own)
        for batch in self._batches([len(encodings[row[0]].ids) for row in rows]):
            ids = [encodings[rows[i][0]].ids for i in batch]
            best = self._best(ids, [rows[i][1] for i in batch], count + _SPARE)
            for i, candidates in zip(batch, best, strict=True):
                index, _, place, word = rows[i]
                kept = [w for w in candidates if w.lower() != word.lower()][:count]
                words = tuple(sorted({in_case_of(word, w) for w in kept}))
                slots[index][place] = slots[index][place]._replace(words=words)
        return [[slot for slot in own if slot.words] for own in slots]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows of equal length together, so that nothing is padded: most texts are short, and a few are long."""
        rows: dict[int, list[int]] = {}
        for row, length in enumerate(lengths):
            rows.setdefault(length, []).append(row)
        for length, same in rows.items():
            size = max(1, self._max_batch_tokens // length)
            yield from (same[start : start + size] for start in range(0, len(same), size))

    def _best(self, texts: list[list[int]], places: list[int], count: int) -> list[list[str]]:
        """The ``count`` most likely whole words at one place of each text, most likely first; fewer where there are no
        more."""
        import torch

        device = self._model.device
        ids = torch.tensor(texts, device=device)  # all of one length
        rows, columns = torch.arange(len(texts), device=device), torch.tensor(places, device=device)
        first = torch.tensor([int(text[place] in self._first_words) for text, place in zip(texts, places, strict=True)])
        ids[rows, columns] = self._mask
        with torch.inference_mode():
            run: Any = self._model.base_model
            states: Tensor = run(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            logits: Tensor = self._head(states[rows, columns])  # (texts, vocabulary)
            allowed = logits.float().masked_fill(self._refused[first.to(device)], -torch.inf)
            best = allowed.topk(min(count, allowed.shape[1]))
        kept = torch.isfinite(best.values).tolist()
        return [
            [self._texts[index] for index, good in zip(row, goods, strict=True) if good]
            for row, goods in zip(best.indices.tolist(), kept, strict=True)
        ]


def _whole_words(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[int, str], dict[int, str]]:
    """The word of each token that is a content word and no piece of one; and of those that stand for such a word where
    no space is before it, at the start of a text say: a byte-level tokenizer has other tokens there."""
    vocabulary = tokenizer.get_vocab()
    # A byte-level tokenizer marks the start of a word, WordPiece marks what goes on.
    marked = any(token.startswith("Ġ") for token in vocabulary)
    special = set(tokenizer.all_special_ids)
    behind_space: dict[int, str] = {}
    first: dict[int, str] = {}
    for token, index in vocabulary.items():
        if index in special or token.startswith("##"):
            continue
        word = token.removeprefix("Ġ")
        # Byte-level tokens show other letters than ASCII's as the letters of their bytes.
        if not is_content_word(word) or (marked and not word.isascii()):
            continue
        if token.startswith("Ġ") == marked:
            behind_space[index] = word
        elif f"Ġ{token}" in vocabulary:  # else it may be a piece only
            first[index] = word
    return behind_space, first
