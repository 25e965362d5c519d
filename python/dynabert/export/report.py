"""What an export leaves beside the weights: where it comes from, what it holds, how closely it was matched."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMATS = ("hf", "hf-remote", "onnx", "elastic")
REPORT_FILE = "export_report.json"
ONNX_FILE = "model.onnx"
LOGITS, VECTORS = "logits", "sentence_embedding"  # a graph's output

_OPENING = {
    "hf": (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        'model = AutoModelForSequenceClassification.from_pretrained("{folder}")',
    ),
    "hf-remote": (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        'model = AutoModelForSequenceClassification.from_pretrained("{folder}", trust_remote_code=True)',
    ),
    "onnx": (
        "import onnxruntime",
        'session = onnxruntime.InferenceSession("{folder}/model.onnx", providers=["CPUExecutionProvider"])',
    ),
    "elastic": (
        "from dynabert import ElasticBertForSequenceClassification",
        'model = ElasticBertForSequenceClassification.from_pretrained("{folder}")',
    ),
}
_EMBEDDER_OPENING = _OPENING | {
    "hf": (
        "from transformers import AutoModel",
        'model = AutoModel.from_pretrained("{folder}", add_pooling_layer=False)',
    ),
    "elastic": (
        "from dynabert import ElasticBertForSentenceEmbedding",
        'model = ElasticBertForSentenceEmbedding.from_pretrained("{folder}")',
    ),
}
# Whole scripts, with their tokenizer.
_EMBEDDER_ENCODING = {
    "hf": (
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("{folder}")',
        'vectors = model.encode(["a text", "another, longer text"])',
    ),
    "elastic": (
        "from dynabert import EmbeddingEngine",
        "",
        'engine = EmbeddingEngine.from_pretrained("{folder}")',
        'vectors = engine.embed(["a text", "another, longer text"])',
    ),
}


def snippet(form: str, folder: Path, tokenizer: bool, embedder: bool = False) -> str:
    """Python that opens an export of a format and, with its tokenizer, answers two texts."""
    first, opening = (_EMBEDDER_OPENING if embedder else _OPENING)[form]
    output, answer = (VECTORS, "vectors") if embedder else (LOGITS, "logits")
    if not tokenizer:
        lines = [first.removesuffix(", AutoTokenizer"), "", opening]
    elif embedder and form in _EMBEDDER_ENCODING:
        lines = [*_EMBEDDER_ENCODING[form]]
    else:
        # A graph takes the inputs it has, no fewer and no more; a tokenizer may leave token types out, or give them.
        tensors = '"np", return_token_type_ids=True' if form == "onnx" else '"pt"'
        # The tokenizer is found by the model's type, which transformers alone does not know: it would ask.
        trusted = ", trust_remote_code=True" if form == "hf-remote" else ""
        inputs = "{one.name: batch[one.name] for one in session.get_inputs()}"
        last = f'session.run(["{output}"], {inputs})[0]' if form == "onnx" else "model(**batch).logits"
        lines = [
            first,
            *(["from transformers import AutoTokenizer"] if "AutoTokenizer" not in first else []),
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{{folder}}"{trusted})',
            opening,
            f'batch = tokenizer(["a text", "another, longer text"], padding=True, return_tensors={tensors})',
            f"{answer} = {last}",
        ]
    text = "\n".join(lines) + "\n"
    for place in (f"{{folder}}/{ONNX_FILE}", "{folder}"):  # a path may hold a quote
        path = place.replace("{folder}", folder.as_posix())
        text = text.replace(f'"{place}"', json.dumps(path, ensure_ascii=False))
    return text


@dataclass(frozen=True)
class Size:
    """A network's size. ``heads``, ``neurons``: of each of its layers; ``parameters`` with embeddings and head;
    ``gflop``: 10^9 operations for one sequence of ``cost_tokens`` tokens."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    parameters: int
    gflop: float
    cost_tokens: int


@dataclass(frozen=True)
class Parity:
    """How closely the export, loaded back, matched the source running the sub-network.

    Of a sentence embedder the numbers of its vectors stand for logits here.

    ``max_difference``: largest absolute difference of two logits, in float32 arithmetic on both sides, with the
    source's weights rounded to the stored dtype; ``bound``: what was allowed.
    ``stored_max_difference``, ``stored_bound``: for weights stored in half precision and opened as they are stored,
    against the source in float32; None for float32.
    ``opened_with``: the tool and class that opened it. ``texts``, ``lengths``: the inputs, real texts and random ids of
    so many tokens, padded to the longest.
    """

    max_difference: float
    bound: float
    stored_max_difference: float | None
    stored_bound: float | None
    largest_logit: float
    opened_with: str
    texts: int
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class ExportReport:
    """What :func:`dynabert.export.export_subnet` did; ``export_report.json`` holds the same.

    ``subnet``: text form; ``subnet_heads``, ``subnet_neurons``: of each layer of the source, 0 where it is skipped.
    ``size``: of the sub-network; ``padded``: of the network as it is stored where ``--pad`` made it larger, which is
    the one whose speed and memory count; else None. ``padding_side_changed``: the tokenizer padded on the left, and the
    saved one does not. ``answers``: ``"logits"``, or ``"vectors"`` of a sentence embedder. ``files``: size in
    bytes. ``load``: Python that opens it.
    """

    format: str
    output_dir: str
    source: str
    architecture: str
    subnet: str
    subnet_heads: tuple[int, ...]
    subnet_neurons: tuple[int, ...]
    size: Size
    padded: Size | None
    dtype: str
    tokenizer: bool
    padding_side_changed: bool
    answers: str
    parity: Parity
    versions: dict[str, str]
    files: dict[str, int]
    load: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    def write(self, folder: Path) -> None:
        """Writes ``export_report.json``."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / REPORT_FILE).write_text(text, encoding="utf-8")
