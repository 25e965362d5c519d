"""Texts in, vectors out: one set of weights, any sub-network for each text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from dynabert.configuration import Subnet
from dynabert.data.examples import check_text
from dynabert.engine.graphs import MAX_GRAPHS
from dynabert.engine.limits import checked_count
from dynabert.engine.packed import LOOKAHEAD, FloatArray, PackedEngine
from dynabert.engine.prediction import check_finite
from dynabert.engine.requests import as_list, checked_stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynabert.engine.files import FileSummary
    from dynabert.modeling import ElasticBertForSentenceEmbedding, Pooling


class EmbeddingEngine(PackedEngine["ElasticBertForSentenceEmbedding"]):
    """A sentence embedder ready to make vectors, at any of its widths and depths.

    As `InferenceEngine` in all but what comes out: the engine holds no state of a call, so several threads may use one,
    each with its own sub-network; it uses the model's own weights and puts the model in eval mode. Vectors of one text
    at two sub-networks are near each other only as far as the network was trained for both: compare those of one.

    Args:
        model: an `ElasticBertForSentenceEmbedding`, on the device and in the dtype it is to run in.
        tokenizer: its fast tokenizer; it is not changed.
        max_length: most tokens of a text, special tokens included, up to the model's positions; by default
            ``model.pooling.max_seq_length``, and where that is None the tokenizer's ``model_max_length``.
        max_batch_tokens: most tokens of a batch; by default 4096 on the CPU and 32768 elsewhere. A longer text is a
            batch of its own.
        graphs, max_graphs, programmatic_launch: as in `InferenceEngine`.

    Raises:
        TypeError: another kind of model; a tokenizer without a fast half.
        ValueError: a bound that is out of range; a tokenizer with more tokens than the model has; graphs or
            programmatic launches where the device has none.
    """

    _name, _call = "EmbeddingEngine", "embed"
    _no_cascade = "a cascade goes by the probability of a label, which a vector has not"

    def __init__(
        self,
        model: ElasticBertForSentenceEmbedding,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        graphs: bool | None = None,
        max_graphs: int = MAX_GRAPHS,
        programmatic_launch: bool = False,
    ) -> None:
        from dynabert.modeling.sentence_embedding import check_embedder

        check_embedder("EmbeddingEngine", model)
        trained = model.pooling.max_seq_length
        if max_length is None and trained is not None:
            max_length = min(trained, model.config.max_sequence_length)
        super().__init__(
            model,
            tokenizer,
            max_length=max_length,
            outputs=model.config.hidden_size,
            max_batch_tokens=max_batch_tokens,
            graphs=graphs,
            max_graphs=max_graphs,
            programmatic_launch=programmatic_launch,
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        pooling: Pooling | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        pack_weights: bool = True,
        graphs: bool | None = None,
        max_graphs: int = MAX_GRAPHS,
        programmatic_launch: bool = False,
    ) -> EmbeddingEngine:
        """Load a model and its tokenizer from a folder or a hub id.

        Args:
            path: folder (or hub id) of sentence-transformers with a BERT, RoBERTa or MPNet in it, or of a network
                alone, with its tokenizer.
            pooling: how a text's vector is made; None: as the folder says, else the mean of the tokens, of length 1,
                which is told in a warning.
            device: where to run.
            dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or on a CPU ``"int8"``; see
                `InferenceEngine.from_pretrained`. Vectors are float32 in all of them.
            max_length, max_batch_tokens, graphs, max_graphs, programmatic_launch: see the class.
            pack_weights: True brings the weights into the order in which products on a CPU read them; the model then
                serves inference only. False keeps the plain ones, for instance to go on training.

        Raises:
            ValueError: unknown dtype, or int8 elsewhere than on the CPU; no tokenizer in the folder; vectors that are
                made in a way that cannot be computed here.
            OSError: no such model.
        """
        from dynabert.engine.loading import load_embedder, load_served

        model, tokenizer = load_served(
            load_embedder, path, device=device, dtype=dtype, pack_weights=pack_weights, pooling=pooling
        )
        return cls(
            model,
            tokenizer,
            max_length=max_length,
            max_batch_tokens=max_batch_tokens,
            graphs=graphs,
            max_graphs=max_graphs,
            programmatic_launch=programmatic_launch,
        )

    @property
    def size(self) -> int:
        """Numbers of a vector, C: at every sub-network the same."""
        return self._num_outputs

    @overload
    def embed(  # a str is also an iterable of str, and a vector is an array as several are
        self,
        texts: str,
        subnet: Subnet = None,
        *,
        truncate: bool = False,
        progress: bool | None = None,
    ) -> FloatArray: ...

    @overload
    def embed(
        self,
        texts: Iterable[str],
        subnet: Subnet | Sequence[Subnet] = None,
        *,
        truncate: bool = False,
        progress: bool | None = None,
    ) -> FloatArray: ...

    def embed(
        self,
        texts: str | Iterable[str],
        subnet: Subnet | Sequence[Subnet] = None,
        *,
        truncate: bool = False,
        progress: bool | None = None,
    ) -> FloatArray:
        """The vector of one text, or of many.

        Args:
            texts: a str, or a list (or other iterable) of them; ``[]`` gives no rows. A pair, which is a tuple, is
                refused: a vector is of one text.
            subnet: the sub-network for all texts (`SubnetConfig`, text form ``"w0.5-d0.75"``, `SubnetShape`; None is
                the whole network), or a list with one per text. Texts with different sub-networks share batches; each
                vector equals that of its sub-network alone. A cascade is refused.
            truncate: True cuts texts that are too long; False refuses them.
            progress: True shows a bar, False none; None shows one for more than 256 texts when stderr is a terminal.

        Returns:
            (C,) for one str, (N, C) for several, in their order; float32 (float64 for a float64 model).

        Raises:
            TypeError: a text that is no str.
            ValueError, naming the text's index: an empty text, or one that is too long; a vector that is not finite.
                Also: a list of sub-networks of another length, a sub-network that does not fit the model, a cascade.
            RuntimeError: the model was put in training mode.
        """
        if isinstance(texts, str):
            row: FloatArray = self._embed_list([texts], subnet, truncate, progress, range(1))[0]
            return row
        if isinstance(texts, tuple):
            raise TypeError(
                "embed: texts are a tuple, which elsewhere is a pair; allowed: a str, or a list of them; a vector is "
                "of one text: embed each, or join them yourself"
            )
        listed = as_list(texts, "embed")
        return self._embed_list(listed, subnet, truncate, progress, range(len(listed)))

    def embed_iter(
        self,
        texts: Iterable[str],
        subnet: Subnet | Iterable[Subnet] = None,
        *,
        truncate: bool = False,
        lookahead: int = LOOKAHEAD,
    ) -> Iterator[FloatArray]:
        """The vectors of a stream of texts, (C,) each, in order, holding at most ``lookahead`` texts at a time.

        Texts are read ``lookahead`` at a time, sorted and packed among themselves, and answered before more are read.
        An error in a text is raised when its window is read: vectors of earlier windows have been yielded by then.

        Args:
            texts: any iterable of str, also an endless generator.
            subnet: one for all, or an iterable that gives one per text, read in step.
            truncate: see `embed`.
            lookahead: texts held at a time; more of them pack better.

        Raises:
            ValueError: ``lookahead`` below 1; sub-networks that end before the texts do; what `embed` raises, with the
                index in the stream.
        """
        stream = checked_stream(texts, "embed")
        return self._stream(stream, subnet, truncate, checked_count("embed_iter", "lookahead", lookahead))

    def embed_file(self, path_in: str | Path, path_out: str | Path, **options: Any) -> FileSummary:
        """Write the vector of every row of a file; see `dynabert.engine.vector_files.embed_file`."""
        from dynabert.engine.vector_files import embed_file

        return embed_file(self, path_in, path_out, **options)

    def _stream(
        self, texts: Iterator[str], subnet: Subnet | Iterable[Subnet], truncate: bool, lookahead: int
    ) -> Iterator[FloatArray]:
        for window, chosen, places in self._windows(texts, subnet, lookahead):
            # Copies: a row that the caller keeps would keep its whole window.
            yield from map(np.copy, self._embed_list(window, chosen, truncate, False, places))

    def _embed_list(
        self, texts: list[Any], subnet: Any, truncate: bool, progress: bool | None, places: Sequence[int]
    ) -> FloatArray:
        """``places``: of the texts among the caller's, for messages."""
        resolved = self._resolve(subnet, places)
        self._check_eval()
        for index, text in zip(places, texts, strict=True):
            if isinstance(text, tuple):
                raise TypeError(
                    f"embed: text {index} is a pair; allowed: a str; a vector is of one text: embed each, or join them "
                    "yourself"
                )
            check_text(text, f"embed: text {index}")
        if not texts:
            return np.zeros((0, self.size), dtype=np.float64 if self.dtype == torch.float64 else np.float32)
        found: FloatArray = self._numbers(texts, None, [resolved], truncate, progress, places)[0]
        check_finite("embed", found, [one.text for one in resolved], places)
        return found
