"""A model card: the README.md of a checkpoint's folder, with the metadata that the Hugging Face hub reads.

A card is made of what it is given. Parameters and GFLOP are counted from the network's sizes; scores, latencies and the
recipe come from the files of the runs that found them. What was not given is said to be not measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import EvalResult, ModelCardData

from dynabert.configuration import ElasticBertConfig, SubnetConfig
from dynabert.configuration.grid import subnet_grid, subnet_text
from dynabert.cost import subnet_cost

NOT_MEASURED = "not measured"
COST_TOKENS = 128
TAGS = ("dynabert", "elastic", "dynabert-kernels")
_WHOLE = "w1-d1"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_SETS = ("nyu-mll/glue",)  # sets whose name is no path
# How `dynabert.data.augment` names what it made: the text, where the words come from, and the numbers.
_AUGMENTED = re.compile(
    r"(.+) \+ ((?:masked_lm|neighbours)\(.+|[^/\\+()]+), (p [^,]+, M \d+, N \d+, seed -?\d+, digest \w+)", re.DOTALL
)
_MASKED = re.compile(r"masked_lm\((.+?)\)( and [^/\\]+)?", re.DOTALL)
_SETTINGS = (
    ("num_train_epochs", "epochs of each stage"),
    ("max_steps", "steps of each stage, in place of epochs"),
    ("learning_rate", "learning rate"),
    ("lr_scheduler_type", "schedule"),
    ("warmup_steps", "warm-up steps"),
    ("weight_decay", "weight decay"),
    ("per_device_train_batch_size", "sequences of a process in a step"),
    ("gradient_accumulation_steps", "steps added up"),
    ("bf16", "bf16"),
    ("seed", "seed"),
)


# A recipe's switches that are off by default: not worth a line then.
_UNUSED: dict[str, Any] = {
    "relation_weights": [0.0, 0.0],
    "label_weights": [0.0, 0.0],
    "embedding_weights": [0.0, 0.0],
    "starting_layers": None,
    "second_teacher": "width",
}


class HasConfig(Protocol):
    """An elastic model."""

    config: ElasticBertConfig


@dataclass(frozen=True)
class CardScores:
    """Scores of sub-networks on one set, fractions, by text form.

    ``metric``: its name; ``majority``: what the best constant answer scores; ``teacher``: the network that was
    distilled; ``data``: the set. None: not known.
    """

    rows: Mapping[str, float]
    metric: str = "score"
    examples: int | None = None
    majority: float | None = None
    teacher: float | None = None
    data: str | None = None

    @classmethod
    def read(cls, content: Any, part: str | None = None) -> CardScores:
        """From what a file holds: `results.json` of ``dynabert train`` (``part``: which one, by default the last with
        scores), a stage's `complete.json`, or what ``dynabert eval --json`` prints.

        Raises ``ValueError`` for anything else, and for a part that the run did not score.
        """
        if not isinstance(content, Mapping):
            raise ValueError(f"model card: scores must be a JSON object; got {type(content).__name__}; {_ALLOWED}")
        if "parts" in content:
            return cls._from_parts(content["parts"], part, content.get("data"))
        rows = content.get("rows", content.get("subnets"))
        try:
            found = {subnet_text(row["subnet"]): float(row["score"]) for row in rows}
            first = rows[0]
        except (TypeError, KeyError, IndexError) as error:
            raise ValueError(f"model card: the file holds no scores of sub-networks; {_ALLOWED}") from error
        return cls(
            found,
            metric=str(content.get("metric", first.get("metric", "score"))),
            examples=content.get("examples", first.get("examples")),
            majority=content.get("majority_score", first.get("majority")),
            data=content.get("data"),
        )

    @classmethod
    def _from_parts(cls, parts: Sequence[Mapping[str, Any]], part: str | None, data: str | None) -> CardScores:
        scored = {own["part"]: own["rows"] for own in parts if own["rows"]}
        if not scored:
            raise ValueError("model card: no part of the run was scored; give --validation_file to dynabert train")
        if part is not None and part not in scored:
            raise ValueError(
                f"model card: the run has no scores of a part named {part}; allowed: {', '.join(scored)}; a network "
                "that came out of one of them has scores of its own: take them with dynabert eval --json, and give "
                "that file as --scores"
            )
        rows = list(scored.values())[-1] if part is None else scored[part]
        found = replace(cls.read({"rows": rows}), data=data)
        if "teacher" not in scored or part == "teacher":
            return found
        return replace(found, teacher=float(scored["teacher"][0]["score"]))


_ALLOWED = (
    "allowed: results.json or complete.json of dynabert train, or what dynabert eval --json prints; give one of those"
)


@dataclass(frozen=True)
class CardLatency:
    """Times of sub-networks under one set of conditions, in milliseconds, by text form.

    ``device``, ``dtype``, ``batch_size``, ``seq_length``, ``threads``: those conditions. ``how``: ``"measured"``, or
    what else the times are, such as a prediction with its error.
    """

    rows: Mapping[str, float]
    device: str
    dtype: str
    batch_size: int
    seq_length: int
    threads: int | None = None
    how: str = "measured"

    @classmethod
    def of_rows(cls, rows: Sequence[Any], device: str | None = None) -> CardLatency:
        """From what `dynabert.profile.measure_latency` returns, or the same as plain values.

        ``device``: what to call the device in place of ``cpu`` or ``cuda:0``. Raises ``ValueError`` for rows that were
        taken under different conditions, which do not belong in one column.
        """
        plain = [row if isinstance(row, Mapping) else row.to_dict() for row in rows]
        names = ("device", "dtype", "batch_size", "seq_length", "threads")
        conditions = {tuple(row[name] for name in names) for row in plain}
        if len(conditions) != 1:
            raise ValueError(
                f"model card: latencies of {len(conditions)} sets of conditions; allowed: one, for one column; give "
                "rows of the same device, dtype, batch size, sequence length and threads"
            )
        found = dict(zip(names, conditions.pop(), strict=True))
        if device is not None:
            found["device"] = device
        return cls({subnet_text(row["subnet"]): float(row["median_ms"]) for row in plain}, **found)


@dataclass(frozen=True)
class CardTraining:
    """How a checkpoint was trained.

    ``settings``: what ``dynabert train`` wrote into `settings.json`. ``seconds``: by part. ``versions``: packages by
    name, and the commit where it is known.
    """

    settings: Mapping[str, Any]
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def best_checkpoint(self) -> bool:
        """Whether the stages kept their best checkpoint by the scores that the card shows."""
        strategy = self.settings.get("arguments", {}).get("save_strategy", "epoch")
        if "similarity" in self.settings:  # a sentence embedder's stages end with their last checkpoint
            return False
        return str(strategy) != "no" and bool((self.settings.get("data") or {}).get("validation"))

    @classmethod
    def read(cls, settings: Mapping[str, Any], results: Mapping[str, Any]) -> CardTraining:
        """From what `settings.json` and `results.json` of a run hold."""
        seconds = {part["part"]: float(part["seconds"]) for part in results.get("parts", ())}
        return cls(settings, seconds, dict(results.get("versions", {})))


def model_card(
    model: HasConfig | ElasticBertConfig,
    *,
    scores: CardScores | None = None,
    latency: CardLatency | None = None,
    training: CardTraining | None = None,
    repo_id: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    tags: Sequence[str] = (),
    embedder: bool | None = None,
) -> str:
    """The text of a README.md: metadata, a table of sub-networks, how to load it, recipe and limits.

    Args:
        model: an elastic model, or its configuration.
        scores, latency, training: what was measured and done. None: the card says that it is not known.
        repo_id: the hub's name of the checkpoint, for the examples; None: a stand-in for its folder.
        base_model: hub id, or folder, of the network it was trained from. A folder is named without its path, and is
            left out of the metadata.
        license: an identifier such as ``"mit"``; None: the card states none.
        language: code such as ``"en"``, or several.
        datasets: hub ids of the training sets.
        tags: tags beside `TAGS`.
        embedder: whether it is a sentence embedder, and no classifier; None: as the model is, and a configuration is a
            classifier's.

    Raises:
        TypeError: another kind of model.
        ValueError: a sub-network of the scores or latencies that does not fit the network.
    """
    config = model if isinstance(model, ElasticBertConfig) else getattr(model, "config", None)
    if not isinstance(config, ElasticBertConfig):
        raise TypeError(f"model_card: model must be an elastic model, or its configuration; got {type(model).__name__}")
    name = repo_id or "path/to/this/folder"
    if embedder is None:
        embedder = hasattr(model, "pooling")
    front = _metadata(config, scores, repo_id, base_model, license, language, datasets, tags, embedder)
    parts = [
        f"---\n{front}\n---",
        f"# {repo_id.rpartition('/')[2] if repo_id else 'An elastic ' + config.architecture + ' network'}",
        _opening(config, base_model, license, embedder),
        "## Sub-networks\n\n" + _table(config, scores, latency, training),
        "## How to load it\n\n" + (_embedder_loading if embedder else _loading)(config, name),
        "## Recipe\n\n" + _recipe(training),
        "## Limits\n\n" + _limits(config, scores, latency, training, embedder),
    ]
    return "\n\n".join(parts) + "\n"


def is_hub_id(name: str | None) -> bool:
    """Whether a name is one that the hub would know, and no folder here."""
    return name is not None and _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def fits(config: ElasticBertConfig, subnet: str) -> bool:
    """Whether the network has this sub-network."""
    try:
        config.shape(subnet)
    except ValueError:
        return False
    return True


def public_name(source: str) -> str:
    """A file's name without its path, a set's on the hub as it is: a card says nothing of its author's disk.

    Of augmented text that holds for the text and for the model that gave the words, and the numbers stay.
    """
    augmented = _AUGMENTED.fullmatch(source)
    if augmented is None:
        return source if hub_set(source) is not None else _last(source)
    text, words, numbers = augmented.groups()
    masked = _MASKED.fullmatch(words)
    if masked is None:
        words = _last(words)
    else:
        model, more = masked.groups()
        words = f"masked_lm({model if is_hub_id(model) else _last(model)}){more or ''}"
    return f"{public_name(text)} + {words}, {numbers}"


def hub_set(source: str) -> str | None:
    """The set on the hub that a source names, alone or with a task and a split; None for anything else."""
    for name in HUB_SETS:
        if source == name or (source.startswith(f"{name} ") and not re.search(r"[/\\]", source.removeprefix(name))):
            return name
    return None


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _metadata(
    config: ElasticBertConfig,
    scores: CardScores | None,
    repo_id: str | None,
    base_model: str | None,
    license_name: str | None,
    language: str | Sequence[str] | None,
    datasets: Sequence[str] | None,
    tags: Sequence[str],
    embedder: bool,
) -> str:
    results = None
    task = "sentence-similarity" if embedder else "text-classification"
    if scores is not None:
        source = public_name(scores.data) if scores.data else "not recorded"
        results = [
            EvalResult(
                task_type=task,
                dataset_type=source,
                dataset_name=source,
                metric_type=scores.metric,
                metric_name=f"{scores.metric} of {subnet}",
                metric_value=round(score, 6),
            )
            for subnet, score in scores.rows.items()
        ]
    data = ModelCardData(
        language=language if language is None or isinstance(language, str) else list(language),
        license=license_name,
        library_name="sentence-transformers" if embedder and config.plain_obstacle() is None else "transformers",
        pipeline_tag=task,
        base_model=base_model if is_hub_id(base_model) else None,
        datasets=list(datasets) if datasets else None,
        metrics=None if scores is None else [scores.metric],
        tags=list(dict.fromkeys((*TAGS, config.architecture, *tags))),
        model_name=(repo_id or "elastic network").rpartition("/")[2] if results else None,
        eval_results=results,
    )
    return data.to_yaml().strip()


def _opening(config: ElasticBertConfig, base_model: str | None, license_name: str | None, embedder: bool) -> str:
    if base_model is None:
        origin = "The network it was trained from is not recorded here."
    elif is_hub_id(base_model):
        origin = f"It was trained from `{base_model}`."
    else:
        origin = f"It was trained from a local folder named `{public_name(base_model)}`."
    heads, neurons = _span(config.layer_heads), _span(config.layer_neurons)
    names = ", ".join(f"`{label}`" for label in config.id2label.values()) if config.id2label else "none named"
    labels = "" if embedder else f" Labels: {names}."
    kind = "sentence embedder" if embedder else "text classifier"
    return (
        f"A {config.architecture} {kind} of {config.num_hidden_layers} layers, {heads} heads and {neurons} "
        f"neurons a layer and a hidden size of {config.hidden_size}, that runs at any width and depth in place: a "
        "sub-network is the leading heads and neurons of the layers that stay (DynaBERT, arXiv 2004.04037). "
        "`w0.5-d0.75` is half the heads and neurons in three quarters of the layers.\n\n"
        f"{origin}{labels} License: {license_name or 'none is stated; ask the author before you use it'}."
    )


def _span(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return str(most) if least == most else f"{least} to {most}"


def _rows(
    config: ElasticBertConfig, scores: CardScores | None, latency: CardLatency | None, training: CardTraining | None
) -> list[str]:
    """The sub-networks of the table: those with a number; else those that were trained; else the paper's that fit."""
    known = [*(scores.rows if scores else ()), *(latency.rows if latency else ())]
    if not known and training is not None:
        recipe = training.settings.get("recipe", {})
        named = recipe.get("subnets")
        known = [f"w{width:g}-d{depth:g}" for depth in recipe.get("depths", ()) for width in recipe.get("widths", ())]
        if named:
            known = [str(SubnetConfig(**own)) for own in named]
    if known:
        return list(dict.fromkeys(subnet_text(own) for own in known))
    return [str(subnet) for subnet in subnet_grid() if fits(config, str(subnet))]


def _table(
    config: ElasticBertConfig, scores: CardScores | None, latency: CardLatency | None, training: CardTraining | None
) -> str:
    length = min(COST_TOKENS, config.max_sequence_length)
    metric = scores.metric if scores else "score"
    corrected = scores is not None and scores.majority is not None
    columns = ["sub-network", "parameters", f"GFLOP, {length} tokens", f"{metric} x 100", "retention"]
    columns += ["corrected retention"] if corrected else []
    columns += ["latency, ms"]
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for name in _rows(config, scores, latency, training):
        cost = subnet_cost(config, name, seq_length=length)
        score = scores.rows.get(name) if scores else None
        whole = scores.rows.get(_WHOLE) if scores else None
        cells = [f"`{name}`", _count(cost.parameters), f"{cost.gflop:.3g}"]
        cells.append(NOT_MEASURED if score is None else f"{100 * score:.1f}")
        cells.append(_share(score, whole, 0.0))
        if corrected and scores is not None and scores.majority is not None:
            cells.append(_share(score, whole, scores.majority))
        took = latency.rows.get(name) if latency else None
        cells.append(NOT_MEASURED if took is None else f"{took:.3g}" if took < 100 else f"{took:.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + "\n".join(f"* {line}" for line in _legend(scores, latency, corrected))


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e5 else f"{parameters:,}"


def _share(score: float | None, whole: float | None, floor: float) -> str:
    """A score over the whole network's, ``floor`` taken from both."""
    if score is None or whole is None:
        return NOT_MEASURED
    if whole <= floor:
        return "undefined"
    return f"{100 * (score - floor) / (whole - floor):.1f} %"


def _legend(scores: CardScores | None, latency: CardLatency | None, corrected: bool) -> list[str]:
    lines = [
        "Parameters (embeddings included) and GFLOP (a multiplication and an addition are two) are counted, not "
        "measured."
    ]
    if scores is None:
        lines.append("Scores: not measured.")
    else:
        data = f" of {public_name(scores.data)}" if scores.data else ""
        examples = "an unknown number of examples" if scores.examples is None else f"{scores.examples} examples"
        lines.append(f"Score: {scores.metric} on {examples}{data}. Retention: over that of `{_WHOLE}`.")
        if corrected and scores.majority is not None:
            lines.append(
                f"Corrected retention: after the best constant answer's score, {100 * scores.majority:.1f}, is taken "
                f"from both; undefined where `{_WHOLE}` is no better than that answer."
            )
        if scores.teacher is not None:
            lines.append(f"The network that taught it scores {100 * scores.teacher:.1f}.")
    if latency is None:
        lines.append("Latency: not measured.")
    else:
        threads = "" if latency.threads is None else f", {latency.threads} threads"
        lines.append(
            f"Latency: {latency.how}, one forward pass of {latency.batch_size} x {latency.seq_length} tokens in "
            f"{latency.dtype} on {latency.device}{threads}; tokenising is not in it."
        )
    return lines


def _loading(config: ElasticBertConfig, name: str) -> str:
    obstacle = config.plain_obstacle()
    stem = {"bert": "BERT", "roberta": "RoBERTa", "mpnet": "MPNet"}[config.architecture]
    opening = f'AutoModelForSequenceClassification.from_pretrained("{name}"'
    if obstacle is None:
        plain = (
            f"Plain transformers, without any other package: transformers' own {stem} class, the whole network, no "
            f"sub-networks.\n\n```python\nfrom transformers import AutoModelForSequenceClassification\n\n"
            f"model = {opening})\n```"
        )
        auto = (
            "Auto classes with `trust_remote_code=True`: not needed here; they give the same class. The elastic class "
            "is opened by its own name, below."
        )
    else:
        plain = f"Plain transformers without any other package: not possible, since {obstacle}."
        auto = (
            "Auto classes, where the package `dynabert-kernels` is installed:\n\n"
            "```python\nfrom transformers import AutoModelForSequenceClassification\n\n"
            f"model = {opening}, trust_remote_code=True)\n```\n\n"
            "After `import dynabert.modeling` the same works without `trust_remote_code`."
        )
    example = "w0.5-d0.5" if fits(config, "w0.5-d0.5") else "d0.5"
    elastic = (
        "With `dynabert-kernels`, at any sub-network:\n\n```python\n"
        "from dynabert import ElasticBertForSequenceClassification\n"
        "from transformers import AutoTokenizer, pipeline\n\n"
        f'model = ElasticBertForSequenceClassification.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'out = model(**tokenizer("some text", return_tensors="pt"), subnet="{example}")\n\n'
        'classify = pipeline("text-classification", model=model, tokenizer=tokenizer)\n'
        f'classify(["some text", "another"], subnet="{example}")\n```'
    )
    return "\n\n".join((plain, auto, elastic))


def _embedder_loading(config: ElasticBertConfig, name: str) -> str:
    obstacle = config.plain_obstacle()
    if obstacle is None:
        plain = (
            "With sentence-transformers, without any other package: the whole network, no sub-networks.\n\n"
            "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{name}")\n```'
        )
    else:
        plain = f"With sentence-transformers alone: not possible, since {obstacle}."
    example = "w0.5-d0.5" if fits(config, "w0.5-d0.5") else "d0.5"
    elastic = (
        "With `dynabert-kernels`, at any sub-network:\n\n```python\n"
        "from dynabert import EmbeddingEngine\n\n"
        f'engine = EmbeddingEngine.from_pretrained("{name}")\n'
        f'vectors = engine.embed(["some text", "another"], subnet="{example}")\n```'
    )
    return "\n\n".join((plain, elastic))


def _recipe(training: CardTraining | None) -> str:
    if training is None:
        return "Not recorded."
    settings = training.settings
    arguments, recipe = settings.get("arguments", {}), settings.get("recipe", {})
    lines = []
    if training.seconds:
        told = ", ".join(f"{part} ({seconds:.0f} s)" for part, seconds in training.seconds.items())
        lines.append(f"parts, in order: {told}")
    given = "it was its own teacher, as it came" if "pooling" in settings else "the teacher was given fine-tuned"
    lines.append(given if settings.get("fine_tuned") else "the teacher was fine-tuned here")
    if settings.get("rewiring") is False:
        lines.append("heads and neurons were not rewired")
    else:
        lines.append(f"importance of heads and neurons: {recipe.get('importance_mode', 'not recorded')}")
    for key, what in (
        ("widths", "widths"),
        ("depths", "depths"),
        ("logit_weights", "weight of the logits' loss, width and depth stage"),
        ("hidden_weights", "weight of the hidden states' loss, width and depth stage"),
        ("relation_weights", "weight of the loss of query, key and value relations, width and depth stage"),
        ("label_weights", "weight of the task's own loss on labels, width and depth stage"),
        ("embedding_weights", "weight of the loss of vectors, width and depth stage"),
        ("starting_layers", "layers of the teacher that the student started from, the first is 0"),
        ("teacher_width", "the depth stage's teacher"),
        ("second_teacher", "the network that the depth stage learned from"),
        ("sampling", "sub-networks of a step"),
        ("depth_rule", "layers that a depth keeps"),
        ("distillation", "distillation"),
        ("final", "a last stage on labels"),
    ):
        if key in recipe and recipe[key] != _UNUSED.get(key, ...):
            lines.append(f"{what}: {_plain(recipe[key])}")
    for key, what in _SETTINGS:
        if key in arguments and not (key == "max_steps" and arguments[key] in (-1, None)):
            lines.append(f"{what}: {_plain(arguments[key])}")
    if "processes" in settings:
        lines.append(f"processes: {settings['processes']}")
    for key, what in (("train", "training text"), ("unlabelled", "text to distil on"), ("validation", "scored text")):
        if (own := (settings.get("data") or {}).get(key)) is not None:
            lines.append(
                f"{what}: {public_name(str(own['source']))}, {own['examples']} examples, {own['tokens']} tokens"
            )
    versions = ", ".join(f"{name} {version}" for name, version in training.versions.items())
    lines.append(f"versions: {versions or 'not recorded'}")
    return "\n".join(f"* {line}" for line in lines)


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return {True: "yes", False: "no", None: "none"}[value] if value is None or isinstance(value, bool) else f"{value}"


def _limits(
    config: ElasticBertConfig,
    scores: CardScores | None,
    latency: CardLatency | None,
    training: CardTraining | None,
    embedder: bool,
) -> str:
    lines = [f"Texts of up to {config.max_sequence_length} tokens."]
    if training is not None:
        seed = training.settings.get("arguments", {}).get("seed", "not recorded")
        lines.append(f"One training run, of seed {seed}: how much the scores differ from seed to seed is not known.")
        lines.append("Sub-networks that were not trained run too, and their scores are not known.")
        if scores is not None and training.best_checkpoint:
            lines.append(
                "Each stage kept its best checkpoint by scores on the scored text, so these scores may be a little too "
                "good."
            )
    if scores is None:
        text = "pairs of texts" if embedder else "labelled text"
        lines.append(f"No score is known; try it on {text} of your own (`dynabert eval`) before you rely on it.")
    if latency is not None:
        lines.append("Latencies hold for the named device and conditions alone; on yours: `dynabert profile`.")
    if embedder:
        lines.append("Vectors of different sub-networks are near each other, and not the same: index with one of them.")
    else:
        lines.append("It answers with the labels it was trained on, whatever the text is about.")
    return "\n".join(f"* {line}" for line in lines)
