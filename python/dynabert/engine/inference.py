"""Texts in, predictions out: one set of weights, any sub-network for each text.

A call tokenises, sorts by sub-network and length, cuts the run into batches by a token budget, lays each batch end to
end without padding, and gives it a plan that says for every text how wide and deep the network is. Many texts are taken
in blocks: while the network runs one, the next is tokenised on another thread. Nothing of a text is remembered between
calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from dynabert.configuration import Subnet, SubnetConfig
from dynabert.configuration.cascade import Cascade, as_cascade
from dynabert.configuration.grid import subnet_text
from dynabert.data.batching import token_batches
from dynabert.data.examples import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from dynabert.data.labels import model_problem
from dynabert.data.tokenisation import Encoded, TextEncoder, check_ids, check_tokenizer
from dynabert.engine.cascades import answer_in_turn
from dynabert.engine.device import INT8, torch_dtype
from dynabert.engine.graphs import MAX_GRAPHS, graphs_for
from dynabert.engine.limits import checked_count, checked_length, checked_threshold
from dynabert.engine.overlap import made_ahead
from dynabert.engine.prediction import Prediction, interpret, output_names
from dynabert.engine.requests import (
    Text,
    as_list,
    is_many,
    listed_subnets,
    other_count,
    split_pairs,
)
from dynabert_kernels import PackedBatch, Plan, SubnetShape, group_by_shape
from dynabert_kernels.triton.dependent_launch import programmatic_launch as dependent_launches
from dynabert_kernels.triton.dependent_launch import why_not_programmatic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynabert.engine.files import FileSummary
    from dynabert.modeling import ElasticBertForSequenceClassification

FloatArray: TypeAlias = npt.NDArray[np.floating]

CPU_BATCH_TOKENS = 4096
DEVICE_BATCH_TOKENS = 32768
LOOKAHEAD = 1024
BLOCK_TEXTS = 512  # texts that are tokenised at once, while the block before runs
KNOWN_SUBNETS = 1024  # sub-networks whose shape an engine keeps instead of working it out for every text
KNOWN_FRAMES = 1024  # lengths and sub-networks of single texts whose plan is kept; some kilobytes each
QUIET_TEXTS = 256  # up to this many texts no progress bar is shown unless asked for


class _Resolved(NamedTuple):
    shape: SubnetShape
    text: str


class _Frame(NamedTuple):
    """Batch and plan of a text alone, without the text: its ids and token types are put in at each call."""

    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    plan: Plan


class InferenceEngine:
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
        check_tokenizer("InferenceEngine", tokenizer, config.vocab_size)
        length = checked_length("InferenceEngine", tokenizer, config.max_sequence_length, max_length)
        if max_batch_tokens is not None:
            checked_count("InferenceEngine", "max_batch_tokens", max_batch_tokens)
        self._encoder = TextEncoder(tokenizer, length, token_types=_token_types(model, tokenizer))
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.labels = output_names(config, model.classifier.out_proj.out_features)
        self.problem_type = model_problem(config)
        if self.problem_type not in (SINGLE_LABEL, MULTI_LABEL, REGRESSION):
            raise ValueError(
                f"InferenceEngine: problem_type is {self.problem_type!r}; allowed: {SINGLE_LABEL}, {MULTI_LABEL}, "
                f"{REGRESSION}"
            )
        self.threshold = checked_threshold("InferenceEngine", threshold)
        self._known: dict[tuple[Any, str], _Resolved] = {}
        # By sub-network and length. Other architectures count positions by the ids.
        self._frames: dict[tuple[SubnetShape, int, torch.device], _Frame] = {}
        self._frames_fit = config.architecture == "bert"
        default_tokens = CPU_BATCH_TOKENS if self.device.type == "cpu" else DEVICE_BATCH_TOKENS
        self.max_batch_tokens = default_tokens if max_batch_tokens is None else max_batch_tokens
        self._graphs = graphs_for(model, graphs, max_graphs)
        if programmatic_launch and (reason := why_not_programmatic(self.device)) is not None:
            raise ValueError(f"InferenceEngine: programmatic_launch is True, but {reason}; leave it out")
        self._programmatic_launch = programmatic_launch

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
        from dynabert.engine.loading import load_model, load_tokenizer

        int8 = dtype == INT8 or dtype is torch.int8
        if int8 and not pack_weights:
            raise ValueError("from_pretrained: pack_weights is False with int8; int8 weights always are packed")
        model = load_model(path, device=device, dtype=torch.float32 if int8 else torch_dtype(dtype), int8=int8)
        if not int8 and pack_weights and model.device.type == "cpu":
            model.pack_weights()
        return cls(
            model,
            load_tokenizer(path),
            max_length=max_length,
            max_batch_tokens=max_batch_tokens,
            threshold=threshold,
            graphs=graphs,
            max_graphs=max_graphs,
            programmatic_launch=programmatic_launch,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype; all activations have it too. Of an int8 model: that of all but its layers' matrices."""
        return self.model.dtype

    @property
    def _any_id(self) -> int:
        """Of made-up texts: an id that counts as a position in every architecture."""
        return max(self.model.config.padding_idx, 0) + 1

    @property
    def max_length(self) -> int:
        """Most tokens of a text."""
        return self._encoder.max_length

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
        if isinstance(texts, (str, bytes, tuple, dict)) or not isinstance(texts, Iterable):
            raise TypeError(
                f"predict_iter: an iterable of texts is needed; got {type(texts).__name__}; for one text use predict"
            )
        return self._stream(iter(texts), subnet, truncate, checked_count("predict_iter", "lookahead", lookahead))

    def predict_file(self, path_in: str | Path, path_out: str | Path, **options: Any) -> FileSummary:
        """Answer for every row of a file and write rows and answers; see `dynabert.engine.files.predict_file`."""
        from dynabert.engine.files import predict_file

        return predict_file(self, path_in, path_out, **options)

    def logits(
        self, encoded: Encoded, subnets: Sequence[Subnet], *, progress: bool = False
    ) -> npt.NDArray[np.floating]:
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
        with _bar(len(subnets), progress) as bar:
            return self._run([(encoded, [self.model.shape(subnet) for subnet in subnets])], bar)

    def warm_up(
        self,
        subnets: Subnet | Cascade | Sequence[Subnet | Cascade] = None,
        *,
        lengths: Sequence[int] = (16, 32, 64, 128),
        counts: Sequence[int] = (1,),
    ) -> int:
        """Runs made-up texts, so that the first real ones find kernels compiled and, on a GPU, graphs captured.

        Args:
            subnets: each (also of a cascade) runs alone; with more than one, a batch of ``counts`` texts of each too.
            lengths: tokens of a text; those above `max_length` are left out.
            counts: texts of a batch; batches of several texts above `max_batch_tokens` are left out.

        Returns:
            How many batches ran.

        Raises:
            ValueError: a length or count below 1; a sub-network that does not fit the model.
            RuntimeError: the model was put in training mode.
        """
        for name, numbers in (("lengths", lengths), ("counts", counts)):
            if not isinstance(numbers, Sequence):
                raise TypeError(f"warm_up: {name} must be a list of whole numbers; got {numbers!r}")
            if any(number < 1 for number in numbers):
                raise ValueError(f"warm_up: {name} are {list(numbers)}; allowed: 1 or more each")
        if self.model.training:
            raise RuntimeError("warm_up: the model was put in training mode; call model.eval()")
        each = [as_cascade(one) or one for one in listed_subnets(subnets)]
        listed = [own for one in each for own in (one.subnets if isinstance(one, Cascade) else (one,))]
        shapes = [self._resolve_one(subnet).shape for subnet in listed]
        groups = [[shape] for shape in shapes] + ([shapes] if len(shapes) > 1 else [])
        done = 0
        with torch.inference_mode():
            for length, count, group in itertools.product(sorted(lengths, reverse=True), counts, groups):
                many = [shape for shape in group for _ in range(count)]
                if length > self.max_length or (len(many) > 1 and length * len(many) > self.max_batch_tokens):
                    continue
                ids = [[self._any_id] * length for _ in many]
                types = [[0] * length for _ in many] if self._encoder.token_types else None
                self._issue(ids, types, many, capture_now=True)
                done += 1
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # of the whole device would end another's capture
        return done

    def _stream(
        self, texts: Iterator[Text], subnet: Subnet | Cascade | Iterable[Subnet], truncate: bool, lookahead: int
    ) -> Iterator[Prediction]:
        subnets = iter(cast("Iterable[Subnet]", subnet)) if is_many(subnet) else None
        start = 0
        while window := list(itertools.islice(texts, lookahead)):
            chosen: Any = subnet
            if subnets is not None:
                chosen = list(itertools.islice(subnets, len(window)))
                if len(chosen) < len(window):
                    raise ValueError(
                        f"predict_iter: the sub-networks ended at {start + len(chosen)} and the texts go on; give "
                        "one per text"
                    )
            places = range(start, start + len(window))
            yield from self._predict_list(window, chosen, truncate, False, places)
            start = places.stop

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
        wanted: list[list[_Resolved]],
        truncate: bool,
        progress: bool | None,
        places: Sequence[int],
    ) -> list[list[Prediction]]:
        """For each entry of ``wanted``, which has a sub-network for every text, the answers."""
        if self.model.training:
            raise RuntimeError(
                "predict: the model was put in training mode, so its answers would be random; call model.eval()"
            )
        if not texts or not wanted:
            return [[] for _ in wanted]
        firsts, seconds = split_pairs(texts, places[0])
        starts, times = range(0, len(texts), BLOCK_TEXTS), len(wanted)

        def block(start: int) -> tuple[Encoded, list[SubnetShape]]:
            some = slice(start, start + BLOCK_TEXTS)
            pairs = None if seconds is None else seconds[some]
            encoded = self._encoder.encode(firsts[some], pairs, truncate=truncate, first_index=places[start])
            if times > 1:
                encoded = encoded.select([*range(len(encoded))] * times)
            return encoded, [one.shape for resolved in wanted for one in resolved[some]]

        count = len(texts) * times
        show = count > QUIET_TEXTS if progress is None else progress
        with _bar(count, None if progress is None and show else show) as bar:
            logits = self._run(made_ahead(block, starts), bar)
        # A block has its texts once for each entry of ``wanted``.
        blocks = [logits] if len(starts) == 1 else np.split(logits, [start * times for start in starts[1:]])
        each = np.concatenate([one.reshape(times, -1, logits.shape[1]) for one in blocks], axis=1)
        problem, labels, threshold = self.problem_type, self.labels, self.threshold
        return [
            interpret(rows, problem, labels, [one.text for one in resolved], threshold, places=places)
            for rows, resolved in zip(each, wanted, strict=True)
        ]

    def _resolve(self, subnet: Any, places: Sequence[int]) -> list[_Resolved]:
        if not is_many(subnet):
            return [self._resolve_one(subnet)] * len(places)
        many = list(subnet)
        if len(many) != len(places):
            raise ValueError(other_count("predict", len(many), len(places)) + ", or one for all")
        known: dict[Any, _Resolved] = {}  # of this call: as many as there are
        for index, one in zip(places, many, strict=True):
            if is_many(one):
                raise TypeError(f"predict: sub-network {index} is no sub-network; got {type(one).__name__}")
            if one not in known:
                try:
                    known[one] = self._resolve_one(one)
                except ValueError as error:
                    raise ValueError(f"predict: sub-network {index}: {error}") from error
        return [known[one] for one in many]

    def _resolve_one(self, subnet: Any) -> _Resolved:
        key = (subnet, self.model.config.depth_rule)  # all that the answer depends on in a model of fixed shape
        if isinstance(subnet, (str, SubnetConfig, SubnetShape)) and key in self._known:
            return self._known[key]
        if as_cascade(subnet) is not None:
            raise ValueError(
                f"{subnet} is a cascade; allowed here: one sub-network; predict takes a cascade for all texts of a call"
            )
        found = _Resolved(self.model.shape(subnet), subnet_text(subnet))
        if subnet is not None and len(self._known) < KNOWN_SUBNETS:
            self._known[key] = found
        return found

    def _run(self, blocks: Iterable[tuple[Encoded, list[SubnetShape]]], bar: tqdm[Any] | None) -> FloatArray:
        """(N, labels) for the texts of all blocks, in their order."""
        found: list[torch.Tensor] = []
        places: list[int] = []
        done = 0
        with torch.inference_mode():
            for encoded, shapes in blocks:
                for run in self._batches(encoded.lengths, shapes):
                    ids, types = encoded.rows(run)
                    logits, order = self._issue(ids, types, [shapes[i] for i in run])
                    found.append(logits)
                    places += [done + run[i] for i in order]
                    if bar is not None:
                        bar.update(len(run))
                done += len(shapes)
            if not found:
                return np.zeros((0, len(self.labels)), dtype=np.float32)
            logits = found[0] if len(found) == 1 else torch.cat(found)
            # The one wait for the device: after every batch was issued.
            values = (logits if logits.dtype == torch.float64 else logits.float()).cpu().numpy()
        if len(places) == 1:
            return values
        result = np.empty_like(values)
        result[np.asarray(places)] = values
        return result

    def _issue(
        self,
        ids: list[list[int]],
        types: list[list[int]] | None,
        shapes: list[SubnetShape],
        *,
        capture_now: bool = False,
    ) -> tuple[torch.Tensor, Sequence[int]]:
        """Logits of a batch, queued on the device, and the place in ``ids`` of each of their rows."""
        if torch.is_autocast_enabled(self.device.type):
            # The model has its dtype; a graph that was captured so would keep it.
            with torch.autocast(self.device.type, enabled=False):
                return self._issue(ids, types, shapes, capture_now=capture_now)
        graphs, tokens = self._graphs, sum(map(len, ids))
        try:
            if graphs is None or not graphs.takes(tokens):
                batch, plan = self._pack(ids, types, shapes, self.device)
                with dependent_launches(self._programmatic_launch):
                    return self.model.packed_logits(batch, plan), range(len(ids))
            batch, plan = self._pack(ids, types, shapes, torch.device("cpu"))
            order = range(len(ids)) if batch.order is None else batch.order.tolist()
            with dependent_launches(self._programmatic_launch):
                return graphs.logits(batch, plan, capture_now=capture_now), order
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"predict: {self.device} has no memory for a batch of {tokens} tokens; give a smaller max_batch_tokens "
                f"(now {self.max_batch_tokens}), or close what else uses the device"
            ) from error

    def _pack(
        self, ids: list[list[int]], types: list[list[int]] | None, shapes: list[SubnetShape], device: torch.device
    ) -> tuple[PackedBatch, Plan]:
        """Batch and plan of these texts. Of one text alone all but its ids depends only on its length and sub-network,
        and is kept, for a service that is asked one short text at a time."""
        if len(ids) > 1 or not self._frames_fit:
            return self.model.pack(ids, types, subnet=shapes, device=device)
        key = shapes[0], len(ids[0]), device
        frame = self._frames.get(key)
        if frame is None:
            batch, plan = self.model.pack(ids, types, subnet=shapes[0], device=device)
            if device.type == "cuda":  # it is kept, for callers on other streams too: its copies must have ended
                torch.cuda.current_stream(device).synchronize()
            if len(self._frames) < KNOWN_FRAMES:
                self._frames[key] = _Frame(batch.position_ids, batch.cu_seqlens, plan)
            return batch, plan
        own = torch.tensor(ids[0], device="cpu").to(device=device, non_blocking=True)
        own_types = None if types is None else torch.tensor(types[0], device="cpu").to(device=device, non_blocking=True)
        return PackedBatch(own, frame.position_ids, own_types, frame.cu_seqlens, len(ids[0]), 1), frame.plan

    def _batches(self, lengths: Sequence[int], shapes: list[SubnetShape]) -> Iterable[list[int]]:
        """The texts of each batch. Equal sub-networks side by side: batches have few groups, and texts of like length
        stand together."""
        if len(shapes) == 1:
            return [[0]]
        grouped, _, _ = group_by_shape(shapes)
        rank: dict[SubnetShape, int] = {}
        for index in grouped:
            rank.setdefault(shapes[index], len(rank))
        order = sorted(grouped, key=lambda i: (rank[shapes[i]], -lengths[i]))
        return token_batches(lengths, self.max_batch_tokens, order=order)


def _bar(total: int, progress: bool | None) -> AbstractContextManager[tqdm[Any] | None]:
    """True shows a bar, False none, None one where stderr is a terminal, which is tqdm's own rule for disable=None."""
    if progress is False:
        return nullcontext()
    return tqdm(total=total, unit=" texts", disable=None if progress is None else not progress)


def _token_types(model: ElasticBertForSequenceClassification, tokenizer: PreTrainedTokenizerBase) -> bool:
    # A table of one row holds no information beyond row 0, which None means too (RoBERTa).
    return model.config.type_vocab_size > 1 and "token_type_ids" in tokenizer.model_input_names
