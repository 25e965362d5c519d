"""What every engine does between texts and numbers: one set of weights, any sub-network for each text.

A call tokenises, sorts by sub-network and length, cuts the run into batches by a token budget, lays each batch end to
end without padding, and gives it a plan that says for every text how wide and deep the network is. Many texts are taken
in blocks: while the network runs one, the next is tokenised on another thread. Nothing of a text is remembered between
calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from dynabert.configuration import Subnet, SubnetConfig
from dynabert.configuration.cascade import Cascade, as_cascade
from dynabert.configuration.grid import subnet_text
from dynabert.data.batching import token_batches
from dynabert.data.tokenisation import Encoded, TextEncoder, check_tokenizer
from dynabert.engine.graphs import MAX_GRAPHS, graphs_for
from dynabert.engine.limits import checked_count, checked_length
from dynabert.engine.overlap import made_ahead
from dynabert.engine.requests import is_many, listed_subnets, other_count
from dynabert_kernels import PackedBatch, Plan, SubnetShape, group_by_shape
from dynabert_kernels.triton.dependent_launch import programmatic_launch as dependent_launches
from dynabert_kernels.triton.dependent_launch import why_not_programmatic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynabert.engine.graphs import PackedNetwork

Network = TypeVar("Network", bound="PackedNetwork")
Item = TypeVar("Item")
FloatArray: TypeAlias = npt.NDArray[np.floating]

CPU_BATCH_TOKENS = 4096
DEVICE_BATCH_TOKENS = 32768
LOOKAHEAD = 1024
BLOCK_TEXTS = 512  # texts that are tokenised at once, while the block before runs
KNOWN_SUBNETS = 1024  # sub-networks whose shape an engine keeps instead of working it out for every text
KNOWN_FRAMES = 1024  # lengths and sub-networks of single texts whose plan is kept; some kilobytes each
QUIET_TEXTS = 256  # up to this many texts no progress bar is shown unless asked for


class Resolved(NamedTuple):
    """A sub-network of the model, and its name."""

    shape: SubnetShape
    text: str


class _Frame(NamedTuple):
    """Batch and plan of a text alone, without the text: its ids and token types are put in at each call."""

    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    plan: Plan


class PackedEngine(Generic[Network]):
    """A network ready to run on texts, without what its numbers mean: that is said by the engine that derives from it.

    Args:
        model: the network, put in eval mode here.
        tokenizer: its fast tokenizer; it is not changed.
        max_length: most tokens of a text; None for the length of the training, as the tokenizer says it.
        outputs: numbers that the network gives for each text.
        max_batch_tokens, graphs, max_graphs, programmatic_launch: see `InferenceEngine`.

    Raises:
        TypeError, ValueError: as `InferenceEngine`.
    """

    _name: ClassVar[str]  # of the class and of its call, as messages begin
    _call: ClassVar[str]
    _no_cascade: ClassVar[str]  # why none can stand where one sub-network is asked for

    def __init__(
        self,
        model: Network,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None,
        outputs: int,
        max_batch_tokens: int | None,
        graphs: bool | None,
        max_graphs: int = MAX_GRAPHS,
        programmatic_launch: bool = False,
    ) -> None:
        config = model.config
        check_tokenizer(self._name, tokenizer, config.vocab_size)
        length = checked_length(self._name, tokenizer, config.max_sequence_length, max_length)
        if max_batch_tokens is not None:
            checked_count(self._name, "max_batch_tokens", max_batch_tokens)
        # A table of one row holds no information beyond row 0, which None means too (RoBERTa).
        token_types = config.type_vocab_size > 1 and "token_type_ids" in tokenizer.model_input_names
        self._encoder = TextEncoder(tokenizer, length, token_types=token_types)
        self.model = model
        model.eval()
        self.tokenizer = tokenizer
        self._num_outputs = outputs
        self._known: dict[tuple[Any, str], Resolved] = {}
        # By sub-network and length. Other architectures count positions by the ids.
        self._frames: dict[tuple[SubnetShape, int, torch.device], _Frame] = {}
        self._frames_fit = config.architecture == "bert"
        default_tokens = CPU_BATCH_TOKENS if self.device.type == "cpu" else DEVICE_BATCH_TOKENS
        self.max_batch_tokens = default_tokens if max_batch_tokens is None else max_batch_tokens
        self._graphs = graphs_for(model, graphs, max_graphs, name=self._name)
        if programmatic_launch and (reason := why_not_programmatic(self.device)) is not None:
            raise ValueError(f"{self._name}: programmatic_launch is True, but {reason}; leave it out")
        self._programmatic_launch = programmatic_launch

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

    def warm_up(
        self,
        subnets: Subnet | Cascade | Sequence[Subnet | Cascade] = None,
        *,
        lengths: Sequence[int] = (16, 32, 64, 128),
        counts: Sequence[int] = (1,),
    ) -> int:
        """Runs made-up texts, so that the first real ones find kernels compiled and, on a GPU, graphs captured.

        Args:
            subnets: each (also of a cascade, where the engine takes one) runs alone; with more than one, a batch of
                ``counts`` texts of each too.
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
        listed = [own for one in listed_subnets(subnets) for own in self._steps(one)]
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

    def _steps(self, subnet: Any) -> tuple[Any, ...]:
        """The sub-networks that may run where ``subnet`` is asked for."""
        return (subnet,)

    def _check_eval(self) -> None:
        if self.model.training:
            raise RuntimeError(
                f"{self._call}: the model was put in training mode, so its answers would be random; call model.eval()"
            )

    def _windows(
        self, texts: Iterator[Item], subnet: Any, lookahead: int
    ) -> Iterator[tuple[list[Item], Any, Sequence[int]]]:
        """So many texts at a time, with the sub-network of all, or those of each, and their places in the stream."""
        subnets = iter(cast("Iterable[Subnet]", subnet)) if is_many(subnet) else None
        start = 0
        while window := list(itertools.islice(texts, lookahead)):
            chosen: Any = subnet
            if subnets is not None:
                chosen = list(itertools.islice(subnets, len(window)))
                if len(chosen) < len(window):
                    raise ValueError(
                        f"{self._call}_iter: the sub-networks ended at {start + len(chosen)} and the texts go on; give "
                        "one per text"
                    )
            places = range(start, start + len(window))
            yield window, chosen, places
            start = places.stop

    def _numbers(
        self,
        firsts: list[str],
        seconds: list[str] | None,
        wanted: list[list[Resolved]],
        truncate: bool,
        progress: bool | None,
        places: Sequence[int],
    ) -> FloatArray:
        """(len(wanted), N, outputs): for each entry of ``wanted``, which has a sub-network for every text, the
        network's numbers. ``seconds``: of pairs; ``places``: of the texts among the caller's, for messages."""
        starts, times = range(0, len(firsts), BLOCK_TEXTS), len(wanted)

        def block(start: int) -> tuple[Encoded, list[SubnetShape]]:
            some = slice(start, start + BLOCK_TEXTS)
            pairs = None if seconds is None else seconds[some]
            encoded = self._encoder.encode(firsts[some], pairs, truncate=truncate, first_index=places[start])
            if times > 1:
                encoded = encoded.select([*range(len(encoded))] * times)
            return encoded, [one.shape for resolved in wanted for one in resolved[some]]

        count = len(firsts) * times
        show = count > QUIET_TEXTS if progress is None else progress
        with text_bar(count, None if progress is None and show else show) as bar:
            found = self._run(made_ahead(block, starts), bar)
        # A block has its texts once for each entry of ``wanted``.
        blocks = [found] if len(starts) == 1 else np.split(found, [start * times for start in starts[1:]])
        return np.concatenate([one.reshape(times, -1, found.shape[1]) for one in blocks], axis=1)

    def _resolve(self, subnet: Any, places: Sequence[int]) -> list[Resolved]:
        if not is_many(subnet):
            return [self._resolve_one(subnet)] * len(places)
        many = list(subnet)
        if len(many) != len(places):
            raise ValueError(other_count(self._call, len(many), len(places)) + ", or one for all")
        known: dict[Any, Resolved] = {}  # of this call: as many as there are
        for index, one in zip(places, many, strict=True):
            if is_many(one):
                raise TypeError(f"{self._call}: sub-network {index} is no sub-network; got {type(one).__name__}")
            if one not in known:
                try:
                    known[one] = self._resolve_one(one)
                except ValueError as error:
                    raise ValueError(f"{self._call}: sub-network {index}: {error}") from error
        return [known[one] for one in many]

    def _resolve_one(self, subnet: Any) -> Resolved:
        key = (subnet, self.model.config.depth_rule)  # all that the answer depends on in a model of fixed shape
        if isinstance(subnet, (str, SubnetConfig, SubnetShape)) and key in self._known:
            return self._known[key]
        if as_cascade(subnet) is not None:
            raise ValueError(f"{subnet} is a cascade; allowed here: one sub-network; {self._no_cascade}")
        found = Resolved(self.model.shape(subnet), subnet_text(subnet))
        if subnet is not None and len(self._known) < KNOWN_SUBNETS:
            self._known[key] = found
        return found

    def _run(self, blocks: Iterable[tuple[Encoded, list[SubnetShape]]], bar: tqdm[Any] | None) -> FloatArray:
        """(N, outputs) for the texts of all blocks, in their order."""
        found: list[torch.Tensor] = []
        places: list[int] = []
        done = 0
        with torch.inference_mode():
            for encoded, shapes in blocks:
                for run in self._batches(encoded.lengths, shapes):
                    ids, types = encoded.rows(run)
                    numbers, order = self._issue(ids, types, [shapes[i] for i in run])
                    found.append(numbers)
                    places += [done + run[i] for i in order]
                    if bar is not None:
                        bar.update(len(run))
                done += len(shapes)
            if not found:
                return np.zeros((0, self._num_outputs), dtype=np.float32)
            numbers = found[0] if len(found) == 1 else torch.cat(found)
            # The one wait for the device: after every batch was issued.
            values = (numbers if numbers.dtype == torch.float64 else numbers.float()).cpu().numpy()
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
        """The numbers of a batch, queued on the device, and the place in ``ids`` of each of their rows."""
        if torch.is_autocast_enabled(self.device.type):
            # The model has its dtype; a graph that was captured so would keep it.
            with torch.autocast(self.device.type, enabled=False):
                return self._issue(ids, types, shapes, capture_now=capture_now)
        graphs, tokens = self._graphs, sum(map(len, ids))
        try:
            if graphs is None or not graphs.takes(tokens):
                batch, plan = self._pack(ids, types, shapes, self.device)
                with dependent_launches(self._programmatic_launch):
                    return self.model.packed_outputs(batch, plan), range(len(ids))
            batch, plan = self._pack(ids, types, shapes, torch.device("cpu"))
            order = range(len(ids)) if batch.order is None else batch.order.tolist()
            with dependent_launches(self._programmatic_launch):
                return graphs.outputs(batch, plan, capture_now=capture_now), order
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"{self._call}: {self.device} has no memory for a batch of {tokens} tokens; give a smaller "
                f"max_batch_tokens (now {self.max_batch_tokens}), or close what else uses the device"
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


def text_bar(total: int, progress: bool | None) -> AbstractContextManager[tqdm[Any] | None]:
    """True shows a bar, False none, None one where stderr is a terminal, which is tqdm's own rule for disable=None."""
    if progress is False:
        return nullcontext()
    return tqdm(total=total, unit=" texts", disable=None if progress is None else not progress)
