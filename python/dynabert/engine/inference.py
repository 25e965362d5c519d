"""Texts in, predictions out: one set of weights, any sub-network for each text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from dynabert.configuration import Subnet, SubnetConfig
from dynabert.configuration.cascade import Cascade, as_cascade
from dynabert.data.examples import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from dynabert.data.labels import model_problem
from dynabert.data.tokenisation import Encoded, check_ids
from dynabert.engine.cascades import answer_in_turn
from dynabert.engine.graphs import MAX_GRAPHS
from dynabert.engine.limits import checked_count, checked_threshold
from dynabert.engine.packed import LOOKAHEAD, FloatArray, PackedEngine, Resolved, text_bar
from dynabert.engine.prediction import Prediction, interpret, output_names
from dynabert.engine.requests import Text, as_list, checked_stream, listed_subnets, other_count, split_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynabert.engine.files import FileSummary
    from dynabert.modeling import ElasticBertForSequenceClassification


class InferenceEngine(PackedEngine["ElasticBertForSequenceClassification"]):
    """A fine-tuned network ready to answer, at any of its widths and depths.

    The engine holds no state of a call: several threads may use one engine, each with its own sub-network. It uses the
    model's own weights (no second copy) and puts the model in eval mode. Do not train the model while the engine is in
    use. On a CPU `model.pack_weights()` makes short texts faster; `from_pretrained` does it by itself.

    Args:
        model: an `ElasticBertForSequenceClassification`, on the device and in the dtype it is to run in.
        tokenizer: its fast tokenizer; it is not changed.
        max_length: most tokens of a text, special tokens included, up to the model's positions; by default the length
            of its training, which `dynabert train` leaves as the tokenizer's ``model_max_length``.
        max_batch_tokens: most tokens of a batch; by default 4096 on the CPU and 32768 elsewhere. A longer text is a
            batch of its own.
        threshold: least probability at which a multi-label model assigns a label.
        graphs: on a GPU, whether batches of up to 8192 tokens run as captured CUDA graphs, so that the device does not
            wait for the host (`dynabert.engine.graphs`). None: on a GPU yes. A graph serves every batch of like size,
            is captured when such a size is met for the second time (or by `warm_up`), and uses the same weights.
        max_graphs: kept at a time.
        programmatic_launch: True starts each Triton kernel's blocks while the kernel before still runs
            (`dynabert_kernels.triton.dependent_launch`): for the latency of a few texts, on an H100 or later. The
            answers are the same, to the bit. Off by default: it is unmeasured.

    Raises:
        TypeError: another kind of model; a tokenizer without a fast half.
        ValueError: a bound that is out of range; a tokenizer with more tokens than the model has; an unknown
            ``problem_type``; an ``id2label`` that does not give each output a name of its own; graphs or programmatic
            launches where the device has none.
    """

    _name, _call = "InferenceEngine", "predict"
    _no_cascade = "predict takes a cascade for all texts of a call"

    def __init__(
        self,
        model: ElasticBertForSequenceClassification,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        threshold: float = 0.5,
        graphs: bool | None = None,
        max_graphs: int = MAX_GRAPHS,
        programmatic_launch: bool = False,
    ) -> None:
        from dynabert.modeling.model import check_classifier

        check_classifier("InferenceEngine", model)
        config = model.config
        super().__init__(
            model,
            tokenizer,
            max_length=max_length,
            outputs=model.classifier.out_proj.out_features,
            max_batch_tokens=max_batch_tokens,
            graphs=graphs,
            max_graphs=max_graphs,
            programmatic_launch=programmatic_launch,
        )
        self.labels = output_names(config, model.classifier.out_proj.out_features)
        self.problem_type = model_problem(config)
        if self.problem_type not in (SINGLE_LABEL, MULTI_LABEL, REGRESSION):
            raise ValueError(
                f"InferenceEngine: problem_type is {self.problem_type!r}; allowed: {SINGLE_LABEL}, {MULTI_LABEL}, "
                f"{REGRESSION}"
            )
        self.threshold = checked_threshold("InferenceEngine", threshold)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        max_length: int | None = None,
        max_batch_tokens: int | None = None,
        threshold: float = 0.5,
        pack_weights: bool = True,
        graphs: bool | None = None,
        max_graphs: int = MAX_GRAPHS,
        programmatic_launch: bool = False,
    ) -> InferenceEngine:
        """Load a model and its tokenizer from a folder or a hub id.

        Args:
            path: folder (or hub id) of a fine-tuned BERT, RoBERTa, MPNet or elastic checkpoint, with its tokenizer.
            device: where to run.
            dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; the weights are converted to it once, while loading,
                whatever the file holds. Or ``"int8"``, on a CPU: the layers' matrices are quantised
                (`ElasticBertForSequenceClassification.quantise_weights`), and everything else is bfloat16.
            max_length, max_batch_tokens, threshold, graphs, max_graphs, programmatic_launch: see the class.
            pack_weights: True brings the weights into the order in which products on a CPU read them, in the place of
                the plain ones (`ElasticBertForSequenceClassification.pack_weights`). The answers are the same; the
                model then serves inference only. False keeps the plain ones, for instance to go on training.

        Raises:
            ValueError: unknown dtype, or int8 elsewhere than on the CPU; no tokenizer in the folder; a checkpoint
                without a classification head.
            OSError: no such model.
        """
        from dynabert.engine.loading import load_model, load_served

        model, tokenizer = load_served(load_model, path, device=device, dtype=dtype, pack_weights=pack_weights)
        return cls(
            model,
            tokenizer,
            max_length=max_length,
            max_batch_tokens=max_batch_tokens,
            threshold=threshold,
            graphs=graphs,
            max_graphs=max_graphs,
            programmatic_launch=programmatic_launch,
        )

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is also an iterable of str; the first overload decides
        self,
        texts: Text,
        subnet: Subnet | Cascade | Sequence[Subnet] = None,
        *,
        truncate: bool = False,
        progress: bool | None = None,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        texts: Iterable[Text],
        subnet: Subnet | Cascade | Sequence[Subnet] = None,
        *,
        truncate: bool = False,
        progress: bool | None = None,
    ) -> list[Prediction]: ...

    def predict(
        self,
        texts: Text | Iterable[Text],
        subnet: Subnet | Cascade | Sequence[Subnet] = None,
        *,
        truncate: bool = False,
        progress: bool | None = None,
    ) -> Prediction | list[Prediction]:
        """Answer for one text or many.

        Args:
            texts: a str, or a pair ``(first, second)`` as a tuple: one prediction comes back. A list (or other
                iterable) of them: a list of predictions in the same order; ``[]`` gives ``[]``. A tuple at the top is
                always one pair.
            subnet: the sub-network for all texts (`SubnetConfig`, text form ``"w0.5-d0.75"``, `SubnetShape`; None is
                the whole network), or a list with one per text. Texts with different sub-networks share batches; each
                answer equals that of its sub-network alone. Or a `Cascade`, for all texts: a narrow one answers, and a
                wider one where it is not sure; `Prediction.subnet` says which one it was.
            truncate: True cuts texts that are too long; False refuses them.
            progress: True shows a bar, False none; None shows one for more than 256 texts when stderr is a terminal.

        Raises:
            TypeError: a text that is no str, a pair that is not two.
            ValueError, naming the text's index: an empty text, or one that is too long. Also: a list of sub-networks of
                another length, a sub-network that does not fit the model, single texts mixed with pairs.
            RuntimeError: the model was put in training mode.
        """
        if isinstance(texts, (str, tuple)):
            return self._predict_list([texts], subnet, truncate, progress, range(1))[0]
        listed = as_list(texts)
        return self._predict_list(listed, subnet, truncate, progress, range(len(listed)))

    def predict_each(
        self,
        texts: Iterable[Text],
        subnets: Subnet | Cascade | Sequence[Subnet | Cascade],
        *,
        truncate: bool = False,
        progress: bool | None = None,
    ) -> list[list[Prediction]]:
        """Answer for every text at each of several sub-networks: a list for each sub-network, in their order.

        The texts are tokenised once, and sub-networks share batches, unless there is a cascade among them. Arguments
        and errors as in `predict`.
        """
        listed, each = as_list(texts, "predict_each"), listed_subnets(subnets)
        places = range(len(listed))
        if any(as_cascade(subnet) for subnet in each):
            return [self._predict_list(listed, subnet, truncate, progress, places) for subnet in each]
        wanted = [[self._resolve_one(subnet)] * len(listed) for subnet in each]
        return self._answers(listed, wanted, truncate, progress, places)

    def predict_iter(
        self,
        texts: Iterable[Text],
        subnet: Subnet | Cascade | Iterable[Subnet] = None,
        *,
        truncate: bool = False,
        lookahead: int = LOOKAHEAD,
    ) -> Iterator[Prediction]:
        """Answer for a stream of texts, in order, holding at most ``lookahead`` texts at a time.

        Texts are read ``lookahead`` at a time, sorted and packed among themselves, and answered before more are read.
        An error in a text is raised when its window is read: answers of earlier windows have been yielded by then.

        Args:
            texts: any iterable, also an endless generator, of texts or pairs.
            subnet: one for all, a cascade, or an iterable that gives one per text, read in step.
            truncate: see `predict`.
            lookahead: texts held at a time; more of them pack better.

        Raises:
            ValueError: ``lookahead`` below 1; sub-networks that end before the texts do; what `predict` raises, with
                the index in the stream.
        """
        stream = checked_stream(texts, "predict")
        return self._stream(stream, subnet, truncate, checked_count("predict_iter", "lookahead", lookahead))

    def predict_file(self, path_in: str | Path, path_out: str | Path, **options: Any) -> FileSummary:
        """Answer for every row of a file and write rows and answers; see `dynabert.engine.files.predict_file`."""
        from dynabert.engine.files import predict_file

        return predict_file(self, path_in, path_out, **options)

    def logits(self, encoded: Encoded, subnets: Sequence[Subnet], *, progress: bool = False) -> FloatArray:
        """Raw outputs for texts that are already token ids.

        Args:
            encoded: what `dynabert.data.tokenise` returns.
            subnets: the sub-network of each text.
            progress: whether to show a bar.

        Returns:
            (N, labels), float32 (float64 for a float64 model), in the order of ``encoded``.

        Raises:
            ValueError: more or fewer sub-networks than texts; one that does not fit the model; ids that it does not
                take.
        """
        if len(subnets) != len(encoded):
            raise ValueError(other_count("logits", len(subnets), len(encoded)))
        check_ids("logits", encoded, self.model.config.vocab_size, self.model.config.max_sequence_length)
        with text_bar(len(subnets), progress) as bar:
            return self._run([(encoded, [self.model.shape(subnet) for subnet in subnets])], bar)

    def _steps(self, subnet: Any) -> tuple[Any, ...]:
        cascade = as_cascade(subnet)
        return (subnet,) if cascade is None else cascade.subnets

    def _stream(
        self, texts: Iterator[Text], subnet: Subnet | Cascade | Iterable[Subnet], truncate: bool, lookahead: int
    ) -> Iterator[Prediction]:
        for window, chosen, places in self._windows(texts, subnet, lookahead):
            yield from self._predict_list(window, chosen, truncate, False, places)

    def _predict_list(
        self, texts: list[Text], subnet: Any, truncate: bool, progress: bool | None, places: Sequence[int]
    ) -> list[Prediction]:
        """``places``: of the texts among the caller's, for messages."""
        if (cascade := as_cascade(subnet)) is not None:
            for step in cascade.subnets:  # also those to which no text may go on
                self._resolve_one(step)

            def answer(some: list[Text], one: SubnetConfig, going: list[int]) -> list[Prediction]:
                return self._predict_list(some, one, truncate, progress, [places[index] for index in going])

            return answer_in_turn(answer, texts, cascade, self.problem_type, self.threshold)
        return self._answers(texts, [self._resolve(subnet, places)], truncate, progress, places)[0]

    def _answers(
        self,
        texts: list[Text],
        wanted: list[list[Resolved]],
        truncate: bool,
        progress: bool | None,
        places: Sequence[int],
    ) -> list[list[Prediction]]:
        """For each entry of ``wanted``, which has a sub-network for every text, the answers."""
        self._check_eval()
        if not texts or not wanted:
            return [[] for _ in wanted]
        firsts, seconds = split_pairs(texts, places[0])
        each = self._numbers(firsts, seconds, wanted, truncate, progress, places)
        problem, labels, threshold = self.problem_type, self.labels, self.threshold
        return [
            interpret(rows, problem, labels, [one.text for one in resolved], threshold, places=places)
            for rows, resolved in zip(each, wanted, strict=True)
        ]
