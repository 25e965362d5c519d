"""``dynabert pick --search``: the search over heads and neurons layer by layer, its texts, and what it is worth."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import UsageError, asked_metric, by_agreement, encode
from dynabert.cli.output import percent, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from dynabert.data import Encoded, Examples
    from dynabert.evaluation import ScoreDifference
    from dynabert.modeling import ElasticBertForSequenceClassification
    from dynabert.profile import Candidate, Limits
    from dynabert.profile.layer_search import LayerSearch

_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "config.json")  # each file counts, shards too
# Of the options that a search alone has. They are not argparse's, so that one that is given without it is seen.
_DEFAULTS = {"search_samples": 512, "search_by": "agreement", "search_evaluations": 200, "search_margin": 0.02}
KEPT = "search.json"  # what an interrupted search goes on from
_CALIBRATED = 3  # sub-networks near the limit that are timed before a search relies on the profile


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """The options of the search."""
    group = parser.add_argument_group("search: heads and neurons layer by layer, within the limits on cost")
    group.add_argument(
        "--search", action="store_true", help="search, and choose among what is found and the candidates"
    )
    group.add_argument(
        "--search_file",
        metavar="FILE",
        help="texts that the search judges by; default with --task_name: a sample of the training split",
    )
    group.add_argument(
        "--search_samples",
        metavar="N",
        type=int,
        help="texts that the search judges by, and as many others for the last choice among its best; default: 512",
    )
    group.add_argument(
        "--search_by",
        choices=("agreement", "divergence", "score"),
        help="agreement (default) with the whole network's decisions, or divergence from its probabilities, neither of "
        "which needs labels; score: the metric",
    )
    group.add_argument("--search_evaluations", metavar="N", type=int, help="networks judged, at most; default: 200")
    group.add_argument("--search_minutes", metavar="M", type=float, help="minutes of judging, at most")
    group.add_argument(
        "--search_margin",
        metavar="P",
        type=float,
        help="share of a latency limit that is left free, since the profile errs; default: 0.02",
    )
    group.add_argument("--neuron_step", metavar="N", type=int, help="neurons of a step; default: as go with one head")
    group.add_argument("--seed", metavar="N", type=int, default=0, help="decides texts and search")
    group.add_argument(
        "--resume", action="store_true", help=f"go on from the --output_dir's {KEPT}, where its settings are the same"
    )


def check_search_usage(args: argparse.Namespace) -> None:
    """Options that contradict each other, before anything is opened; gives those of a search their defaults."""
    if not args.search:
        own = ("search_file", "search_minutes", "neuron_step", *_DEFAULTS)
        given = [name for name in own if getattr(args, name) is not None]
        if given or args.resume:
            raise UsageError(f"--{given[0] if given else 'resume'} belongs to --search")
        return
    for name, usual in _DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, usual)
    if args.max_latency_ms is None and args.max_params is None and args.max_gflops is None:
        raise UsageError(
            "--search needs a limit on cost, within which it looks for the best: --max_latency_ms, --max_params or "
            "--max_gflops"
        )
    if args.max_latency_ms is not None and args.profile is None:
        raise UsageError("--search with --max_latency_ms needs --profile; make one with dynabert profile")
    if args.scores is not None:
        raise UsageError("--search scores what it finds; give labelled data in place of --scores")
    if args.search_file is None:
        if args.task_name is None:
            raise UsageError("--search with a file of your own needs --search_file: other texts than --validation_file")
        if args.split.startswith("train"):
            raise UsageError(
                "--search judges by the training split, so report on another --split, or give --search_file"
            )
    elif args.file is not None and Path(args.search_file).resolve() == Path(args.file).resolve():
        raise UsageError(
            "--search_file is the --validation_file: a search on the texts it is reported on flatters itself"
        )
    if args.search_by == "score" and by_agreement(args):
        raise UsageError("--search_by score is by labels, and --metric agreement takes none; allowed: agreement")
    if not 0.0 <= args.search_margin < 1.0:
        raise UsageError(f"--search_margin is {args.search_margin}; allowed: from 0, below 1")
    for name in ("search_samples", "search_evaluations", "neuron_step"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; allowed: 1 or more")
    if args.search_minutes is not None and not args.search_minutes > 0.0:
        raise UsageError(f"--search_minutes is {args.search_minutes}; allowed: above 0")
    if args.resume and args.output_dir is None:
        raise UsageError("--resume belongs to --output_dir, where the search was kept")


def read_search_texts(args: argparse.Namespace) -> Examples:
    """The texts that the search judges by: a random sample, twice ``--search_samples`` where there are so many."""
    from dynabert.data import load_task, read_examples

    if args.search_file is not None:
        examples = read_examples(
            args.search_file,
            text_column=args.text_column,
            second_text_column=args.second_text_column,
            label_column=args.label_column if args.search_by == "score" else None,
            label_separator=args.label_separator if args.search_by == "score" else None,
            need_labels=args.search_by == "score",
            bad_rows=args.bad_rows,
        )
    else:
        examples = load_task(args.task_name, "train", data_dir=args.data_dir, bad_rows=args.bad_rows)
    if len(examples) < 2:
        raise ValueError(f"{examples.source} has {len(examples)} texts; a search needs 2 or more, best hundreds")
    count = min(len(examples), 2 * args.search_samples)
    return examples.select(random.Random(args.seed).sample(range(len(examples)), count))


@dataclass(frozen=True)
class SearchTexts:
    """Token ids of the texts that the search judges by, and of those that decide among its best."""

    texts: Encoded
    fresh: Encoded


def encode_search_texts(
    args: argparse.Namespace,
    examples: Examples,
    model: ElasticBertForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
) -> SearchTexts:
    """Both halves of what `read_search_texts` gave. Long texts are cut: they only serve to compare networks."""
    encoded = encode(
        examples,
        model,
        tokenizer,
        max_seq_length=args.max_seq_length,
        truncate=True,
        labels=args.search_by == "score",
    )
    half = len(encoded) // 2
    return SearchTexts(encoded.select(range(half)), encoded.select(range(half, len(encoded))))


def make_budgets(
    args: argparse.Namespace,
    model: ElasticBertForSequenceClassification,
    limits: Limits,
    candidates: Sequence[Candidate],
    profile: Any,
    tokens: int,
    *,
    measure: bool,
) -> list[Any]:
    """The limits on cost as the search takes them; a latency limit with its margin, and with the profile's error here.

    ``measure``: time a few sub-networks near the limit first, and aim lower by as much as they take longer.
    """
    import numpy as np

    from dynabert.cost import subnet_cost
    from dynabert.profile import Budget
    from dynabert_kernels import SubnetShape

    def counted(name: str) -> Callable[..., Any]:
        def cost(heads: Any, neurons: Any) -> Any:
            shapes = [SubnetShape(tuple(h), tuple(n)) for h, n in zip(heads.tolist(), neurons.tolist(), strict=True)]
            return np.array(
                [getattr(subnet_cost(model.config, s, seq_length=tokens), name) for s in shapes], dtype=float
            )

        return cost

    budgets = []
    if limits.max_latency_ms is not None:
        ratio = _profile_ratio(args, model, limits.max_latency_ms, candidates, tokens) if measure else 1.0
        aim = limits.max_latency_ms * (1.0 - args.search_margin) / max(1.0, ratio)
        say(
            f"the search aims at {aim:.4g} ms by the profile: {100 * args.search_margin:.0f} % below the limit"
            + (f", and sub-networks near it took {ratio:.3f} times the profile's times just now" if measure else "")
        )
        budgets.append(
            Budget("latency", aim, lambda h, n: profile.latencies_ms(h, n, args.batch_size, tokens, args.dtype))
        )
    if limits.max_params is not None:
        budgets.append(Budget("parameters", limits.max_params, counted("parameters")))
    if limits.max_gflops is not None:
        budgets.append(Budget("GFLOP", limits.max_gflops, counted("gflop")))
    return budgets


def _profile_ratio(
    args: argparse.Namespace,
    model: ElasticBertForSequenceClassification,
    limit: float,
    candidates: Sequence[Candidate],
    tokens: int,
) -> float:
    """Measured over predicted time of the candidates nearest the limit, the middle one."""
    import numpy as np

    from dynabert.profile.remeasure import remeasure

    near = sorted(candidates, key=lambda c: abs((c.latency_ms or 0.0) - limit))[:_CALIBRATED]
    times = remeasure(model, [c.shape for c in near], args.batch_size, tokens, rounds=args.rounds)
    return float(np.median([one.ms / (c.latency_ms or one.ms) for c, one in zip(near, times, strict=True)]))


def run_search(
    args: argparse.Namespace,
    model: ElasticBertForSequenceClassification,
    texts: SearchTexts,
    budgets: Sequence[Any],
    uniform: Sequence[Candidate],
    folder: Path | None,
) -> LayerSearch:
    """Search, keeping what was judged in the folder after each round."""
    from dynabert.profile import SearchSettings
    from dynabert.profile.layer_search import search_layers

    settings = search_settings(args, texts)
    known: Mapping[str, float] = {}
    if args.resume and folder is not None:
        known = _kept(folder / KEPT, settings)
        say(f"{folder / KEPT}: {len(known)} networks were judged before")

    def keep(judged: Mapping[str, float]) -> None:
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{KEPT}.part"
        draft.write_text(json.dumps({"settings": settings, "judged": {**known, **judged}}, indent=1) + "\n", "utf-8")
        draft.replace(folder / KEPT)

    say(
        f"search: up to {args.search_evaluations} networks on {len(texts.texts)} texts of {texts.texts.source}; its "
        f"best and the uniform ones then on {len(texts.fresh)} others; Ctrl-C keeps the best so far"
    )
    found = search_layers(
        model,
        texts.texts,
        texts.fresh,
        budgets,
        uniform=[c.subnet for c in uniform],
        fitness=args.search_by,
        metric=asked_metric(args),
        threshold=args.threshold,
        max_batch_tokens=args.max_batch_tokens,
        neuron_step=args.neuron_step,
        settings=SearchSettings(evaluations=args.search_evaluations, minutes=args.search_minutes, seed=args.seed),
        known=known,
        on_round=None if folder is None else keep,
        progress=None,
    )
    result = found.result
    say(f"search: {len(result.found)} networks judged in {result.seconds:.0f} s; ended by: {result.stopped}")
    return found


def search_settings(args: argparse.Namespace, texts: SearchTexts) -> dict[str, Any]:
    """What a fitness depends on: with the same settings it need not be computed again.

    The weights count by size and time of all files of the checkpoint that hold them (a checkpoint of the hub by its
    name alone), the texts by what the network sees of them.
    """
    folder, own = Path(args.model_name_or_path), texts.texts
    weights = sorted(path for kind in _WEIGHTS for path in folder.glob(kind)) if folder.is_dir() else []
    seen = repr((own.input_ids, own.token_type_ids, own.labels))
    return {
        "model": str(args.model_name_or_path),
        "weights": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights],
        "tokens": hashlib.sha256(seen.encode()).hexdigest(),
        "dtype": args.dtype,
        "device": args.device,
        "texts": texts.texts.source,
        "samples": len(texts.texts),
        "max_seq_length": args.max_seq_length,
        "seed": args.seed,
        "search_by": args.search_by,
        "metric": args.metric,
        "threshold": args.threshold,
    }


def _kept(path: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """What an earlier search judged; empty where there was none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        earlier, judged = found["settings"], {str(name): float(value) for name, value in found["judged"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--resume: {path} cannot be read: {error}; leave --resume out to begin anew") from error
    changed = [name for name in settings if earlier.get(name) != settings[name]]
    if changed:
        raise ValueError(
            f"--resume: {path} is of another search: {', '.join(changed)} changed; leave --resume out to begin anew"
        )
    return judged


def search_record(
    args: argparse.Namespace, found: LayerSearch, texts: SearchTexts, budgets: Sequence[Any]
) -> dict[str, Any]:
    """What ``pick.json`` keeps of a search."""
    return {
        "texts": texts.texts.source,
        "samples": len(texts.texts),
        "fresh_samples": len(texts.fresh),
        "fitness": args.search_by,
        "seed": args.seed,
        "evaluations": len(found.result.found),
        "stopped": found.result.stopped,
        "seconds": round(found.result.seconds, 1),
        "budgets": {budget.name: budget.limit for budget in budgets},
        "finalists": [one.to_dict() for one in found.finalists],
    }


def tell_difference(ours: Candidate, theirs: Candidate, difference: ScoreDifference, metric: str) -> str:
    """The best of the search beside the best uniform one, on the set that is reported on."""
    assert ours.score is not None
    assert theirs.score is not None
    return (
        f"best of different layers {percent(ours.score)} %, best uniform {theirs.subnet} {percent(theirs.score)} % "
        f"{metric}: difference {100 * difference.difference:+.2f} points, 95 % interval {100 * difference.low:+.2f} to "
        f"{100 * difference.high:+.2f} (paired bootstrap): "
        + (
            ("the search is the better" if difference.difference > 0 else "the uniform one is the better")
            if difference.clear
            else "not told apart by this set"
        )
    )
