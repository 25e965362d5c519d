"""The comparison that every export must pass: its answers, opened by the tool that will open it, against the source."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynabert.configuration import Subnet
from dynabert.export.kinds import Exported, answer_of, is_embedder
from dynabert.export.report import LOGITS, ONNX_FILE, VECTORS, Parity
from dynabert.modeling import ElasticBertForSentenceEmbedding, ElasticBertForSequenceClassification, Pooling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOUND = 1e-4
# Less where the head's weights are small: a logit is a sum of them times numbers from -1 to 1 (tanh), so that they say
# how far it can reach. An absolute bound alone would let another network's answers pass where all answers are small.
REACH_SHARE = 2.0**-16
# Logits beyond 100 are not rounded to 1e-4 any more: eight float32 roundings of the largest are allowed there.
ROUNDINGS = 2.0**-20
# Half precision, against float32, as a share of the largest logit (where that is less: of 1, or of the head's reach):
# 32 roundings.
STORED_BOUNDS = {torch.bfloat16: 32 * 2.0**-8, torch.float16: 32 * 2.0**-11}

TEXTS = (
    "Sorting heads by importance makes every width a prefix of the same weights.",
    "Yes.",
    "It was a good film, though the second half felt slow; I would still watch it again!",
    "Which of the 2 is it?",
)
LENGTHS = (3, 1, 17, 64)
LONG = 1024  # beyond this only one other text is padded to the longest: attention's memory grows with the square
SEED = 20200408


@dataclass(frozen=True, eq=False)
class Probe:
    """Padded batches on the CPU; ``texts`` of them are real, ``lengths`` are of random ids."""

    batches: list[dict[str, Tensor]]
    texts: int
    lengths: tuple[int, ...]


def probe(model: Exported, tokenizer: PreTrainedTokenizerBase | None) -> Probe:
    """Real texts where there is a tokenizer, random ids of several lengths in one batch, the longest among them, and
    one row alone."""
    config = model.config
    longest = config.max_sequence_length
    types = config.architecture == "bert" and config.type_vocab_size > 1
    batches: list[dict[str, Tensor]] = []
    if tokenizer is not None:
        reader = copy.deepcopy(tokenizer)  # a call changes a tokenizer's own padding and truncation
        groups = [list(TEXTS)] if reader.pad_token is not None else [[text] for text in TEXTS]
        for some in groups:
            padded = reader(some, padding=len(some) > 1, truncation=True, max_length=longest, return_tensors="pt")
            names = ("input_ids", "attention_mask", *(("token_type_ids",) if types else ()))
            batches.append({name: padded[name] for name in names if name in padded})
    chance = torch.Generator().manual_seed(SEED)
    lengths = (longest, *(length for length in LENGTHS[: 1 if longest > LONG else None] if length < longest))
    for group in (lengths, (min(7, longest),)):
        pad = max(config.padding_idx, 0)
        ids = torch.randint(0, config.vocab_size, (len(group), max(group)), generator=chance)
        ids[ids == pad] = (pad + 1) % config.vocab_size  # inside a text it would count as padding in RoBERTa and MPNet
        mask = torch.arange(max(group)) < torch.tensor(group)[:, None]
        batch = {"input_ids": torch.where(mask, ids, pad), "attention_mask": mask.long()}
        batches.append(batch)
    if types:
        for batch in batches:
            if "token_type_ids" not in batch:
                columns = torch.arange(batch["input_ids"].shape[1])
                second = columns >= batch["attention_mask"].sum(1, keepdim=True) // 2
                batch["token_type_ids"] = second.long() * batch["attention_mask"]
    return Probe(batches, 0 if tokenizer is None else len(TEXTS), (*lengths, min(7, longest)))


def in_float32(model: Exported) -> Exported:
    """The model where it is a float32 one on the CPU in eval mode, else such a copy. Exact: float32 holds them all."""
    if model.dtype == torch.float32 and model.device.type == "cpu" and not model.training:
        return model
    return nn.Module.to(copy.deepcopy(model), torch.device("cpu"), torch.float32).eval()


def answers(model: Any, batches: list[dict[str, Tensor]], **arguments: Any) -> list[Tensor]:
    """Logits, or an embedder's vectors, in float32 of every batch."""
    with torch.no_grad():
        return [answer_of(model, model(**batch, **arguments)).float() for batch in batches]


@dataclass(frozen=True, eq=False)
class Opened:
    """What came back: logits (or vectors) in float32 arithmetic, and as stored where that is another dtype; the tool's
    name."""

    logits: list[Tensor]
    stored: list[Tensor] | None
    tool: str
    ids: list[list[int]] | None = None


@contextmanager
def _no_progress() -> Iterator[None]:
    """transformers draws a bar for every checkpoint it opens; here that would be noise."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _own_class(model: Any, info: Any) -> Any:
    """The model in eval mode; ``RuntimeError`` where it is not transformers' own, or a tensor is missing or unknown."""
    faults = {*map(str, info["missing_keys"]), *map(str, info["unexpected_keys"])}
    if faults or not type(model).__module__.startswith("transformers."):
        raise RuntimeError(
            f"export: transformers did not open the export as it should: {type(model).__name__}, "
            f"{', '.join(sorted(faults)[:6]) or 'no tensor missing'}; nothing was exported"
        )
    return model.eval()


def opened_hf(folder: Path, dtype: torch.dtype, batches: list[dict[str, Tensor]]) -> Opened:
    """By transformers' own class."""
    import transformers
    from transformers import AutoModelForSequenceClassification

    def one(asked: Any) -> Any:
        with _no_progress():
            opened: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=asked, output_loading_info=True
            )
        return _own_class(*opened)

    model = one(torch.float32)
    stored = None if dtype == torch.float32 else answers(one("auto"), batches)
    return Opened(answers(model, batches), stored, f"transformers {transformers.__version__}, {type(model).__name__}")


def opened_remote(
    folder: Path, dtype: torch.dtype, batches: list[dict[str, Tensor]], texts: tuple[str, ...] = ()
) -> Opened:
    """By the Auto class with ``trust_remote_code``, in a process in which our packages cannot be imported."""
    import transformers
    from safetensors.torch import load_file, save_file

    script = Path(__file__).with_name("open_remote.py")
    with tempfile.TemporaryDirectory(prefix="dynabert-export-") as scratch:
        inputs, outputs = Path(scratch) / "inputs.safetensors", Path(scratch) / "outputs.safetensors"
        flat = {f"{i}.{name}": tensor.contiguous() for i, batch in enumerate(batches) for name, tensor in batch.items()}
        save_file(flat, inputs)
        result = subprocess.run(
            [sys.executable, "-P", str(script), str(folder), str(inputs), str(outputs)],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HF_MODULES_CACHE": str(Path(scratch) / "modules"), "HF_HUB_OFFLINE": "1"},
        )
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no output"])[-1]
            raise RuntimeError(
                f"export: a process without dynabert could not open the export ({last}); nothing was exported"
            )
        found, said = load_file(outputs), json.loads(result.stdout.strip().splitlines()[-1])
    if said["faults"] or said["module"].startswith("dynabert"):
        raise RuntimeError(
            f"export: the export's own code did not open it as it should: {said['module']}.{said['class']}, "
            f"{', '.join(said['faults'][:6]) or 'no tensor missing'}; nothing was exported"
        )
    numbers = [str(i) for i in range(len(batches))]
    stored = None if dtype == torch.float32 else [found[f"{i}.stored"] for i in numbers]
    tool = f"transformers {transformers.__version__}, {said['class']} with trust_remote_code, without dynabert"
    return Opened([found[i] for i in numbers], stored, tool, said.get("ids"))


def opened_embedder(folder: Path, dtype: torch.dtype, batches: list[dict[str, Tensor]]) -> Opened:
    """By transformers' own class, and vectors of its states as the folder's files of sentence-transformers say."""
    import transformers
    from transformers import AutoModel

    pooling = Pooling.of_checkpoint(str(folder), {})
    if pooling is None:
        raise RuntimeError("export: the export has no modules.json; nothing was exported")

    def one(asked: Any) -> Any:
        with _no_progress():
            opened: Any = AutoModel.from_pretrained(
                folder, dtype=asked, output_loading_info=True, add_pooling_layer=False
            )
        return _own_class(*opened)

    def vectors(model: Any) -> list[Tensor]:
        found = []
        with torch.no_grad():
            for batch in batches:
                real = batch["attention_mask"].bool()
                borders = torch.nn.functional.pad(real.sum(1).cumsum(0), (1, 0)).int()
                found.append(pooling(model(**batch).last_hidden_state[real], borders))
        return found

    model = one(torch.float32)
    stored = None if dtype == torch.float32 else vectors(one("auto"))
    return Opened(vectors(model), stored, f"transformers {transformers.__version__}, {type(model).__name__}")


def opened_onnx(folder: Path, dtype: torch.dtype, batches: list[dict[str, Tensor]], output: str = LOGITS) -> Opened:
    """By ONNX Runtime on the CPU. Its arithmetic is float32 whatever the weights are stored in."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    logits = [
        torch.from_numpy(session.run([output], {name: batch[name].numpy() for name in names})[0]) for batch in batches
    ]
    return Opened(logits, None, f"ONNX Runtime {onnxruntime.__version__}, CPUExecutionProvider")


def opened_elastic(
    folder: Path,
    dtype: torch.dtype,
    batches: list[dict[str, Tensor]],
    kind: type[Exported] = ElasticBertForSequenceClassification,
) -> Opened:
    """By our own class."""
    model = kind.from_pretrained(folder)
    stored = None if dtype == torch.float32 else answers(kind.from_pretrained(folder, dtype="auto"), batches)
    return Opened(answers(model, batches), stored, f"dynabert, {type(model).__name__}")


def reach(model: ElasticBertForSequenceClassification) -> float:
    """How far a logit can be from its bias: the largest sum of an output's absolute weights."""
    return float(model.classifier.out_proj.weight.detach().double().abs().sum(1).max())


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest absolute difference; infinite where a shape differs or a number is not finite."""
    largest = 0.0
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape or not bool(torch.isfinite(one).all()):
            return float("inf")
        largest = max(largest, float((one.double() - other.double()).abs().max()))
    return largest


def compare(
    form: str,
    folder: Path,
    model: Exported,
    tokenizer: PreTrainedTokenizerBase | None,
    subnet: Subnet,
    dtype: torch.dtype,
) -> Parity:
    """Opens an export and holds it against the source running ``subnet`` in place.

    Raises ``RuntimeError`` where they differ by more than the bound, or the tokenizer reads otherwise; ``ValueError``
    where the source itself does not answer with finite numbers.
    """
    source = in_float32(model)
    inputs = probe(source, tokenizer)
    wanted = answers(source, inputs.batches, subnet=subnet)
    what = "vectors" if is_embedder(model) else "logits"
    if not all(bool(torch.isfinite(one).all()) for one in wanted):
        raise ValueError(f"export: the source's own {what} are not finite; there is nothing to compare with")
    exact = wanted
    if dtype != torch.float32:
        rounded = nn.Module.to(copy.deepcopy(source), dtype).float()
        exact = answers(rounded, inputs.batches, subnet=subnet)
    if form == "hf-remote":
        back = opened_remote(folder, dtype, inputs.batches, TEXTS if tokenizer is not None else ())
    else:
        openers: dict[str, Callable[..., Opened]] = {
            "hf": opened_hf,
            "onnx": opened_onnx,
            "elastic": opened_elastic,
        }
        if is_embedder(model):
            openers = {
                "hf": opened_embedder,
                "onnx": partial(opened_onnx, output=VECTORS),
                "elastic": partial(opened_elastic, kind=ElasticBertForSentenceEmbedding),
            }
        back = openers[form](folder, dtype, inputs.batches)
    largest = max(float(one.abs().max()) for one in wanted)
    far = largest if isinstance(source, ElasticBertForSentenceEmbedding) else reach(source)  # no head scales a vector
    bound = max(min(BOUND, REACH_SHARE * far), ROUNDINGS * largest)
    off = difference(back.logits, exact)
    if not off <= bound:
        raise RuntimeError(
            f"export: {back.tool} answers otherwise than the source: {what} differ by {off:.3g}; allowed: {bound:.3g}; "
            "nothing was exported"
        )
    stored_off = stored_bound = None
    if dtype != torch.float32:
        stored_off = difference(back.logits if back.stored is None else back.stored, wanted)
        stored_bound = STORED_BOUNDS[dtype] * max(min(1.0, far), largest)
        if not stored_off <= stored_bound:
            raise RuntimeError(
                f"export: stored as {dtype} the {what} differ from float32's by {stored_off:.3g}; allowed: "
                f"{stored_bound:.3g}; export in float32; nothing was exported"
            )
    if tokenizer is not None:
        _check_tokenizer(folder, tokenizer, back.ids)
    return Parity(
        max_difference=off,
        bound=bound,
        stored_max_difference=stored_off,
        stored_bound=stored_bound,
        largest_logit=largest,
        opened_with=back.tool,
        texts=inputs.texts,
        lengths=inputs.lengths,
    )


def _check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]] | None) -> None:
    if ids is None:
        from transformers import AutoTokenizer

        ids = _ids(AutoTokenizer.from_pretrained(folder))
    if ids != _ids(copy.deepcopy(tokenizer)):
        raise RuntimeError(
            "export: the tokenizer, loaded back, reads the same texts into other ids; nothing was exported"
        )


def _ids(reader: Any) -> list[list[int]]:
    return [list(reader(text)["input_ids"]) for text in TEXTS]
