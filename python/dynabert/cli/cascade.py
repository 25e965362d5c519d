"""``dynabert cascade``: find a cheap sub-network that answers most texts, and the wider one for the others."""

from __future__ import annotations

import argparse
import json
import random
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynabert.cli.options import (
    UsageError,
    add_command,
    add_data_options,
    add_model_options,
    add_score_options,
    asked_metric,
    by_agreement,
    cpu_threads,
    encode,
    open_model,
    read_data,
)
from dynabert.cli.output import percent, print_json, print_table, say
from dynabert.cli.pick import Latency, cost_tokens, latencies, read_profile
from dynabert.cli.pick_files import WHOLE, candidate_subnets, say_if_untrained

if TYPE_CHECKING:
    from dynabert.data import Encoded, Examples
    from dynabert.modeling import ElasticBertForSequenceClassification
    from dynabert.profile.cascades import CascadeChoice, HeldOut, Way

_FEW = 100  # texts below which a choice says little


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "cascade",
        run,
        "let a cheap sub-network answer what it is sure of",
        "Find a cascade: a cheap sub-network answers every text, and a wider one answers again where the first is not "
        "sure. With --max_latency_ms: the best score within that mean time of a text. With --min_retention alone: the "
        "cheapest that keeps that share of the whole network's score. With both: the best score within both.",
    )
    add_model_options(parser, int8=True)
    limits = parser.add_argument_group("limits: at least one")
    limits.add_argument("--max_latency_ms", metavar="X", type=float, help="most milliseconds of a text, in the mean")
    limits.add_argument(
        "--min_retention", metavar="P", type=float, help="least share of the whole network's score, such as 0.98"
    )
    cost = parser.add_argument_group("latency, of one text at a time")
    cost.add_argument("--profile", metavar="FILE", help="this device's profile, from dynabert profile")
    cost.add_argument("--any_device", action="store_true", help="accept a profile of another device")
    cost.add_argument("--seq_length", metavar="S", type=int, help="tokens of a text; default: 128, or all positions")
    cost.add_argument("--threads", metavar="N", type=int, help="threads on the CPU; default: torch's own")
    cost.add_argument("--rounds", metavar="N", type=int, default=20, help="timed passes of each, without --profile")
    cost.add_argument(
        "--check",
        metavar="N",
        type=int,
        default=200,
        help="texts that are answered one by one at the end, tokenising included: by the cascade, the best sub-network "
        "alone and the whole network, in turns; 0: none",
    )
    choice = parser.add_argument_group("candidates")
    choice.add_argument(
        "--subnets",
        metavar="LIST",
        help="all (the paper's 12), or a list such as w1,w0.5-d0.75; default: those the checkpoint was trained for, "
        "or all",
    )
    add_data_options(parser, split="validation", file_names=("--validation_file", "--file"))
    add_score_options(parser)
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the folds, and of the texts of --check")
    parser.add_argument("--out", metavar="FILE", help="write all of it to this .json file")
    parser.add_argument("--overwrite", action="store_true", help="replace the --out file if it is there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    _check_usage(args)
    with cpu_threads(args.threads):
        _run(args)


def _check_usage(args: argparse.Namespace) -> None:
    if args.max_latency_ms is None and args.min_retention is None:
        raise UsageError("give --max_latency_ms, --min_retention or both")
    if args.max_latency_ms is not None and not args.max_latency_ms > 0.0:
        raise UsageError(f"--max_latency_ms is {args.max_latency_ms}; allowed: above 0")
    if args.min_retention is not None and not 0.0 < args.min_retention <= 1.0:
        raise UsageError(f"--min_retention is {args.min_retention}; allowed: above 0, up to 1")
    if args.any_device and args.profile is None:
        raise UsageError("--any_device belongs to --profile")
    for name, least in (("rounds", 1), ("check", 0), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} is {value}; allowed: {least} or more")
    if args.out is not None:
        path = Path(args.out)
        if path.is_dir() or not path.parent.is_dir():
            raise UsageError(f"--out {path}: {'it' if path.is_dir() else path.parent} is no place for a file")
        if path.exists() and not args.overwrite:
            raise UsageError(f"--out {path} is there already; give another name, or --overwrite")


def _run(args: argparse.Namespace) -> None:
    from dynabert.data import REGRESSION, model_problem
    from dynabert.evaluation import check_metric, compute_logits, labelled_as, score_function
    from dynabert.profile.cascades import FOLDS, choose_cascade

    args.batch_size = 1  # of the times, as `pick` reads them
    profile = None if args.profile is None else read_profile(args)
    labels = not by_agreement(args)
    examples = read_data(args, labels=labels)
    model, tokenizer = open_model(args)
    if model_problem(model.config) == REGRESSION:
        raise ValueError(
            "a cascade goes by the probability of an answer, and this model's answers are numbers (regression); "
            "dynabert pick chooses one sub-network"
        )
    check_metric(model, asked_metric(args), threshold=args.threshold)
    if model.device.type == "cpu" and args.dtype != "int8":
        model.pack_weights()
    encoded = encode(
        examples, model, tokenizer, max_seq_length=args.max_seq_length, truncate=args.truncate, labels=labels
    )
    if len(encoded) < FOLDS:
        raise ValueError(f"{encoded.source} has {len(encoded)} examples; needed: {FOLDS} or more to choose by")
    if len(encoded) < _FEW:
        say(f"{len(encoded)} examples choose; below {_FEW} the choice is mostly luck")
    names = list(
        dict.fromkeys([WHOLE, *map(str, candidate_subnets(args.subnets, args.model_name_or_path, model.config))])
    )
    say_if_untrained(args.model_name_or_path, model.config, names)
    if len(names) < 2:
        raise ValueError(f"a cascade needs another sub-network beside {WHOLE}; give --subnets")
    if labels:  # before anything is measured: labels of another task are refused here
        metric, score = score_function(model, encoded, metric=asked_metric(args), threshold=args.threshold)
    tokens = cost_tokens(args, model)
    if profile is None:
        say(f"no --profile: {len(names)} sub-networks are timed now, {args.rounds} passes each, 1 x {tokens} tokens")
        source = Latency(None, True, "measured directly")
    else:
        profile.check_model(model.config)
        source = Latency(profile, not args.any_device, f"profile {args.profile}")
    times = latencies(args, model, source, names, tokens)
    assert times is not None
    if args.max_latency_ms is not None and args.max_latency_ms < min(times):  # before all examples are answered
        raise ValueError(
            f"--max_latency_ms is {args.max_latency_ms:g}; the cheapest of the sub-networks, "
            f"{names[times.index(min(times))]}, takes {min(times):.4g} ms for {tokens} tokens; give that or more, "
            "cheaper --subnets, or a smaller --seq_length where texts are shorter"
        )
    logits = compute_logits(model, encoded, names, max_batch_tokens=args.max_batch_tokens, progress=None)
    if not labels:
        encoded = labelled_as(model, encoded, logits[WHOLE], threshold=args.threshold)
        metric, score = score_function(model, encoded, metric=args.metric, threshold=args.threshold)
    say(f"cascades of two of {len(names)} sub-networks are compared on {len(encoded)} examples, {FOLDS} folds")
    choice = choose_cascade(
        logits,
        dict(zip(names, times, strict=True)),
        score,
        model_problem(model.config),
        whole=WHOLE,
        max_ms=args.max_latency_ms,
        min_retention=args.min_retention,
        threshold=args.threshold,
        seed=args.seed,
    )
    results: dict[str, Any] = {
        "model": args.model_name_or_path,
        "data": encoded.source,
        "examples": len(encoded),
        "metric": metric,
        "limits": {name: getattr(args, name) for name in ("max_latency_ms", "min_retention")},
        "latency": {"source": source.words, "seq_length": tokens, "dtype": args.dtype, "device": args.device},
        "compared": choice.ways,
        "folds": FOLDS,
        "seed": args.seed,
        "chosen": choice.chosen.to_dict(),
        "single": None if choice.single is None else choice.single.to_dict(),
        "whole": choice.whole.to_dict(),
        "held_out": choice.held_out.to_dict(),
        "single_held_out": None if choice.single_held_out is None else choice.single_held_out.to_dict(),
        "difference": _difference(args, model, encoded, choice),
        "checked": _checked(args, model, tokenizer, examples, choice) if args.check else None,
    }
    _report(args, results, choice)
    if args.out is not None:
        Path(args.out).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        say(f"written: {args.out}")


def _difference(
    args: argparse.Namespace, model: ElasticBertForSequenceClassification, encoded: Encoded, choice: CascadeChoice
) -> dict[str, float] | None:
    """How much better than the best alone, both on texts that had no part in the choice."""
    from dynabert.evaluation import paired_difference

    if choice.single_held_out is None:
        return None
    found = paired_difference(
        model,
        encoded,
        choice.held_out.logits,
        choice.single_held_out.logits,
        metric=asked_metric(args),
        threshold=args.threshold,
        seed=args.seed,
    )
    return {"difference": found.difference, "low": found.low, "high": found.high}


def _checked(
    args: argparse.Namespace,
    model: ElasticBertForSequenceClassification,
    tokenizer: Any,
    examples: Examples,
    choice: CascadeChoice,
) -> dict[str, Any]:
    """Milliseconds of texts one by one through the engine, in turns, tokenising included; and how many went on."""
    from dynabert.engine import InferenceEngine

    engine = InferenceEngine(model, tokenizer, max_length=args.max_seq_length)
    ways = {str(way): way for way in (choice.chosen, choice.single, choice.whole) if way is not None}
    chance = random.Random(args.seed)
    chosen = chance.sample(range(len(examples)), min(args.check, len(examples)))
    spent: dict[str, list[float]] = {name: [] for name in ways}
    went_on = 0
    for turn, index in enumerate([*chosen[:3], *chosen]):  # the first three warm up
        first = examples.texts[index]
        text = first if examples.seconds is None else (first, examples.seconds[index])
        for name in chance.sample(list(ways), len(ways)):
            begun = time.perf_counter()
            answer = engine.predict(text, subnet=name, truncate=args.truncate)
            if turn >= 3:
                spent[name].append(1e3 * (time.perf_counter() - begun))
                went_on += answer.subnet != ways[name].subnets[0]  # only a cascade's may be another
    return {
        "texts": len(chosen),
        "went_on": went_on,
        "mean_ms": {name: float(np.mean(own)) for name, own in spent.items()},
        "median_ms": {name: float(np.median(own)) for name, own in spent.items()},
    }


def _report(args: argparse.Namespace, results: dict[str, Any], choice: CascadeChoice) -> None:
    if args.json:
        print_json(results)
        return
    whole, checked = choice.whole, results["checked"]
    share = whole.score > 0.0

    def row(way: Way, what: str, held_out: HeldOut | None) -> list[str]:
        kept = (percent(way.score / whole.score), percent((held_out or way).score / whole.score)) if share else ()
        timed = () if checked is None else (f"{checked['mean_ms'][str(way)]:.2f}",)
        goes_on = "" if way.least is None else percent(way.share)
        return [f"{way} ({what})", percent(way.score), *kept, f"{way.ms:.2f}", f"{way.worst_ms:.2f}", *timed, goes_on]

    rows = [row(choice.chosen, "chosen", choice.held_out)]
    if choice.single is not None and str(choice.single) != str(choice.chosen):
        rows.append(row(choice.single, "best alone", choice.single_held_out))
    if str(whole) not in (str(choice.chosen), str(choice.single)):
        rows.append(row(whole, "whole", None))
    print_table(
        [
            "sub-networks",
            "score %",
            *(("retention %", "on other texts %") if share else ()),
            "mean ms",
            "worst ms",
            *(("timed ms",) if checked is not None else ()),
            "goes on %",
        ],
        rows,
        title=f"{results['data']}: {results['metric']}, {results['examples']} examples, {results['compared']} ways; on "
        f"other texts: each of {results['folds']} folds by what the others chose; ms: one text of "
        f"{results['latency']['seq_length']} tokens, {results['latency']['source']}"
        + ("" if checked is None else f"; timed: {checked['texts']} of the texts one by one, tokenising included"),
    )
    if (found := results["difference"]) is not None and choice.chosen.least is not None:
        points = [f"{100 * found[name]:+.1f}" for name in ("difference", "low", "high")]
        better = found["difference"] > 0.0
        say(
            f"on other texts, against the best alone: {points[0]} points (95 %: {points[1]} to {points[2]})"
            + ("" if better else f"; there {choice.single} alone did as well, and needs no second answer")
        )
    wanted = args.min_retention
    if wanted is not None and choice.held_out.score < wanted * whole.score:
        say(
            f"on other texts {percent(choice.held_out.score / whole.score)} % of the whole network's score stay, less "
            f"than the {percent(wanted)} % asked for: ask for more, or choose by more examples"
        )
    if choice.chosen.least is None:
        say(f"no cascade is better than {choice.chosen} alone")
    print(f"chosen: {choice.chosen}")
    given = ["--model_name_or_path", args.model_name_or_path, "--subnet", str(choice.chosen)]
    # The probabilities are those of this dtype, this length and these decisions.
    for name, usual in (("device", "cpu"), ("dtype", "float32"), ("max_seq_length", None), ("threshold", 0.5)):
        if getattr(args, name) != usual:
            given += [f"--{name}", str(getattr(args, name))]
    print(f"run it: dynabert predict {shlex.join(given)}{' --truncate' if args.truncate else ''} 'A text.'")
