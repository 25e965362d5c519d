"""``dynabert pick``: choose a sub-network under limits on latency, size, arithmetic, score or retention."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

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
from dynabert.cli.pick_files import (
    WHOLE,
    Scores,
    candidate_subnets,
    check_scored,
    check_whole_score,
    export_format,
    open_output_dir,
    read_scores,
    say_if_untrained,
    trained_subnets,
    write_results,
)
from dynabert.cli.pick_search import (
    add_search_options,
    check_search_usage,
    encode_search_texts,
    make_budgets,
    read_search_texts,
    run_search,
    search_record,
    tell_difference,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynabert.configuration import ElasticBertConfig
    from dynabert.data import Encoded
    from dynabert.modeling import ElasticBertForSequenceClassification
    from dynabert.profile import Candidate, DeviceProfile, Limits

# A distilled sub-network keeps most of the score; one that was only cut keeps little. Below this, of what is above the
# constant answer, the checkpoint was probably never trained at these widths.
_UNTRAINED = 0.5
_MOST_TOKENS = 1 << 20  # of one pass, as where it is timed


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "pick",
        run,
        "choose a sub-network under limits",
        "Choose a sub-network under limits. With a limit on cost (latency, parameters, GFLOP): the best score within "
        "it. With limits on score or retention alone: the cheapest that keeps them. With both: the best score within "
        "all of them.",
    )
    add_model_options(parser, int8=True)
    limits = parser.add_argument_group("limits: at least one")
    limits.add_argument("--max_latency_ms", metavar="X", type=float, help="most milliseconds of one batch")
    limits.add_argument("--max_params", metavar="N", type=_count, help="most weights used, such as 15M")
    limits.add_argument("--max_gflops", metavar="X", type=float, help="most 10^9 operations for one sequence")
    limits.add_argument("--min_score", metavar="P", type=float, help="least score, a fraction such as 0.88")
    limits.add_argument(
        "--min_retention", metavar="P", type=float, help="least share of the whole network's score, such as 0.98"
    )
    cost = parser.add_argument_group("latency")
    cost.add_argument("--profile", metavar="FILE", help="this device's profile, from dynabert profile")
    cost.add_argument(
        "--any_device", action="store_true", help="accept a profile of another device; nothing is measured then"
    )
    cost.add_argument("--batch_size", metavar="B", type=int, default=1, help="sequences of the batch that is limited")
    cost.add_argument("--seq_length", metavar="S", type=int, help="tokens of each; default: 128, or all positions")
    cost.add_argument("--threads", metavar="N", type=int, help="threads on the CPU; default: torch's own")
    cost.add_argument("--rounds", metavar="N", type=int, default=20, help="timed passes of each sub-network measured")
    cost.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="measure the chosen one's latency again, and take the next one where it misses the limit; default: where "
        "latency is limited and this is the profile's device",
    )
    choice = parser.add_argument_group("candidates")
    choice.add_argument(
        "--subnets",
        metavar="LIST",
        help="all (the paper's 12), or a list such as w1,w0.5-d0.75; default: those the checkpoint was trained for, "
        "or all",
    )
    choice.add_argument(
        "--scores", metavar="FILE", help="scores from dynabert eval --json or dynabert train, in place of labelled data"
    )
    add_data_options(parser, split="validation", file_names=("--validation_file", "--file"))
    add_score_options(parser)
    add_search_options(parser)
    parser.add_argument("--output_dir", metavar="FOLDER", help="folder for tables, pictures and the chosen sub-network")
    parser.add_argument("--overwrite", action="store_true", help="write into the folder although it is not empty")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


class Latency(NamedTuple):
    """Where the latencies come from. ``profile``: None where they were measured directly. ``here``: whether this
    device is meant, so that measuring again says something."""

    profile: Any
    here: bool
    words: str


class Found(NamedTuple):
    """What a search found: the record for files, its finalists' text forms best first, and the best of different layers
    and the best uniform one, which are compared; None where there is none."""

    record: dict[str, Any]
    order: list[str]
    layered: str | None
    uniform: str | None


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    _check_usage(args)
    check_search_usage(args)

    with cpu_threads(args.threads):
        _run(args)


def _run(args: argparse.Namespace) -> None:
    from dynabert.evaluation import check_metric
    from dynabert.profile.choice import Limits, list_candidates, no_solution, ranked, satisfiable
    from dynabert.profile.measuring import check_pass_size

    limits = Limits(
        **{
            name: getattr(args, name)
            for name in ("max_latency_ms", "max_params", "max_gflops", "min_score", "min_retention")
        }
    )
    folder = None if args.output_dir is None else open_output_dir(args)
    profile = None if args.profile is None else read_profile(args)
    given = None if args.scores is None else read_scores(args.scores)
    if given is not None and limits.min_retention is not None:
        check_whole_score(args.scores, given)
    labels = not by_agreement(args)
    examples = None if given is not None else read_data(args, labels=labels)
    search_examples = read_search_texts(args) if args.search else None
    model, tokenizer = open_model(args)
    if examples is not None:
        check_metric(model, asked_metric(args), threshold=args.threshold)
    if model.device.type == "cpu" and args.dtype != "int8":  # as the engine serves it, and as a profile times it
        model.pack_weights()
    tokens = cost_tokens(args, model)
    check_pass_size(args.batch_size, tokens)
    encoded = None
    if examples is not None:  # before anything is measured: labels of another task are refused here
        encoded = encode(
            examples, model, tokenizer, max_seq_length=args.max_seq_length, truncate=args.truncate, labels=labels
        )
    subnets = candidate_subnets(args.subnets, args.model_name_or_path, model.config)
    if given is not None:
        check_scored(args.scores, given, subnets, model.config)
    if not model.config.rewired:
        say_if_untrained(args.model_name_or_path, model.config, [*map(str, subnets)])
    latency = latency_source(args, model, profile, len(subnets), tokens)
    candidates = list_candidates(model.config, subnets, tokens, latencies(args, model, latency, subnets, tokens))
    say(f"objective: {limits.objective(latency is not None)}")
    for line in satisfiable(candidates, limits):
        say(line)
    if not args.search and not ranked(candidates, limits, quality=False):
        raise ValueError(f"{no_solution(candidates, limits, quality=False)}{_remedies(args, limits)}")
    verify = limits.max_latency_ms is not None and latency is not None and latency.here and args.verify is not False
    found = None
    if search_examples is not None:
        texts = encode_search_texts(args, search_examples, model, tokenizer)
        budgets = make_budgets(
            args, model, limits, candidates, None if latency is None else latency.profile, tokens, measure=verify
        )
        within = [c for c in candidates if limits.within(c, quality=False)]
        result = run_search(args, model, texts, budgets, within, folder)
        listed = {c.subnet for c in candidates}
        new = [one.subnet for one in result.finalists if one.subnet not in listed]
        candidates += list_candidates(model.config, new, tokens, latencies(args, model, latency, new, tokens))
        layered, uniform = result.best(uniform=False), result.best(uniform=True)
        found = Found(
            search_record(args, result, texts, budgets),
            [one.subnet for one in result.finalists],
            None if layered is None else layered.subnet,
            None if uniform is None else uniform.subnet,
        )
    candidates, scores, logits, encoded = scored(args, model, encoded, candidates, given)
    _check_training(args.model_name_or_path, [c for c in candidates if found is None or c.subnet not in found.order])
    results: dict[str, Any] = {
        "model": args.model_name_or_path,
        "data": scores.source,
        "metric": scores.metric,
        "examples": scores.examples,
        "majority_score": scores.majority,
        "whole_score": scores.scores.get(WHOLE),
        "limits": {kind.option: value for kind, value in limits},
        "objective": limits.objective(latency is not None),
        "latency": None if latency is None else latency_record(args, latency, tokens),
        "cost_tokens": tokens,
    }
    order = ranked(candidates, limits)
    if found is not None:  # its own texts have chosen among the finalists; the reported set only has a veto
        places = {name: place for place, name in enumerate(found.order)}
        order.sort(key=lambda c: places.get(c.subnet, len(places)))
        results["search"] = found.record | compared(
            args, model, encoded, candidates, logits, found, tokens, verify, scores.metric
        )
    failure = None if order else f"{no_solution(candidates, limits)}{_remedies(args, limits)}"
    chosen = order[0] if order else None
    if chosen is not None and verify:
        chosen, results["verified"] = verified(args, model, order, limits, tokens)
        if chosen is None:
            tried = min(results["verified"], key=lambda row: row["measured_ms"])
            failure = (
                f"all {len(order)} sub-networks within the limits took longer when they were measured again; nearest: "
                f"{tried['subnet']}, {tried['measured_ms']:.4g} ms; give --max_latency_ms above that, or measure on a "
                f"quieter machine{_remedies(args, limits)}"
            )
    results |= described(candidates, limits, chosen)
    report(args, results, model.config)
    if folder is not None:  # after the table: a disk that is full must not take it along
        say(f"written: {', '.join(str(path) for path in write_results(folder, results))}")
    if failure is not None:
        raise ValueError(failure)


def _check_usage(args: argparse.Namespace) -> None:
    """Options that contradict each other, before anything is opened."""
    if args.scores is not None and (args.task_name is not None or args.file is not None):
        raise UsageError("give --task_name or --file, or --scores, not both")
    if args.scores is not None and args.metric is not None:
        raise UsageError("--metric belongs to --task_name or --file; a file of scores has its own")
    if args.any_device and args.profile is None:
        raise UsageError("--any_device belongs to --profile")
    if args.verify and args.max_latency_ms is None:
        raise UsageError("--verify belongs to --max_latency_ms")
    if args.verify and args.any_device:
        raise UsageError("--verify measures this device; with --any_device leave it out")
    if args.rounds < 1:
        raise UsageError(f"--rounds is {args.rounds}; allowed: 1 or more")
    for name in ("batch_size", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} is {value}; allowed: 1 or more")
    if args.batch_size > _MOST_TOKENS // max(1, args.seq_length or 1):
        raise UsageError(
            f"--batch_size is {args.batch_size}; allowed: up to {_MOST_TOKENS:,} tokens of one pass, which is "
            "--batch_size times --seq_length"
        )


def _count(text: str) -> float:
    """A number of weights: ``15M``, ``1.5e7``."""
    factors = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
    factor = factors.get(text[-1:].upper())
    try:
        return float(text if factor is None else text[:-1]) * (factor or 1.0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of weights; allowed: 15M, 1.5e7") from None


def cost_tokens(args: argparse.Namespace, model: ElasticBertForSequenceClassification) -> int:
    """Tokens of a sequence whose cost is meant."""
    most = model.config.max_sequence_length
    if args.seq_length is None:
        return min(128, most)
    if not 1 <= args.seq_length <= most:
        raise ValueError(f"--seq_length is {args.seq_length}; allowed: 1 to the model's {most} positions")
    return int(args.seq_length)


def read_profile(args: argparse.Namespace) -> DeviceProfile:
    """The profile, which must be of the device that the network will run on."""
    from dynabert.engine.device import checked_device
    from dynabert.profile.device_profile import DeviceProfile

    return DeviceProfile.load(args.profile, check_device=not args.any_device, device=checked_device(args.device))


def latency_source(
    args: argparse.Namespace,
    model: ElasticBertForSequenceClassification,
    profile: DeviceProfile | None,
    count: int,
    tokens: int,
) -> Latency | None:
    """The profile, or the clock, or None where no latency is asked for."""
    if profile is None:
        if args.max_latency_ms is None:
            return None
        say(
            f"no --profile: the latency of {count} sub-networks is measured now, {args.rounds} passes each, "
            f"{args.batch_size} x {tokens} tokens on {args.device}"
        )
        return Latency(None, True, "measured directly")
    profile.check_model(model.config)
    return Latency(profile, not args.any_device, f"profile {args.profile}")


def latencies(
    args: argparse.Namespace,
    model: ElasticBertForSequenceClassification,
    latency: Latency | None,
    subnets: Sequence[Any],
    tokens: int,
) -> list[float] | None:
    """Milliseconds of each of the sub-networks, or None where no latency is asked for."""
    if latency is None:
        return None
    shapes = [model.shape(subnet) for subnet in subnets]
    if not shapes:
        return []
    if latency.profile is None:
        from dynabert.profile.remeasure import remeasure

        return [one.ms for one in remeasure(model, shapes, args.batch_size, tokens, rounds=args.rounds)]

    import numpy as np

    heads, neurons = (np.array([getattr(shape, name) for shape in shapes]) for name in ("heads", "neurons"))
    found: list[float] = latency.profile.latencies_ms(heads, neurons, args.batch_size, tokens, args.dtype).tolist()
    return found


def latency_record(args: argparse.Namespace, latency: Latency, tokens: int) -> dict[str, Any]:
    """What the files say about where latencies come from."""
    return {
        "source": latency.words,
        "batch_size": args.batch_size,
        "seq_length": tokens,
        "dtype": args.dtype,
        "device": args.device,
    }


def scored(
    args: argparse.Namespace,
    model: ElasticBertForSequenceClassification,
    encoded: Encoded | None,
    candidates: list[Candidate],
    given: Scores | None,
) -> tuple[list[Candidate], Scores, dict[str, Any], Encoded | None]:
    """The candidates with their scores, from a file or from one pass over the texts, whose logits come too; and the
    texts, labelled by the whole network where the score is the agreement with it."""
    from dynabert.profile import with_scores

    if given is not None:
        whole = given.scores.get(WHOLE)
        if whole is None:
            say(f"{args.scores} has no score of {WHOLE}: what is retained of the whole network's is not known")
        _say_if_within_chance(whole, given.majority, given.examples)
        known = with_scores(candidates, given.scores, whole=whole, majority=given.majority, examples=given.examples)
        return known, given, {}, None

    from dynabert.evaluation import agreement_scores, compute_logits, labelled_as, score_logits

    assert encoded is not None
    names = [WHOLE, *(c.subnet for c in candidates if c.subnet != WHOLE)]
    logits = compute_logits(model, encoded, names, max_batch_tokens=args.max_batch_tokens, progress=None)
    if by_agreement(args):
        encoded = labelled_as(model, encoded, logits[WHOLE], threshold=args.threshold)
    rows = score_logits(model, encoded, logits, metric=asked_metric(args), threshold=args.threshold)
    scores = {row.subnet: row.score for row in rows}
    whole = rows[0].score
    agreements = agreement_scores(model, encoded, logits, threshold=args.threshold)
    if whole <= 0.0 and args.min_retention is not None:
        raise ValueError(
            f"the whole network's {rows[0].metric} is {whole:.4g}, so no share of it can be retained; give "
            "--min_score in place of --min_retention, or another --metric"
        )
    found = Scores(encoded.source, rows[0].metric, scores, rows[0].majority, len(encoded))
    _say_if_within_chance(whole, found.majority, found.examples)
    scored_candidates = with_scores(
        candidates, scores, whole=whole, majority=found.majority, agreements=agreements, examples=found.examples
    )
    return scored_candidates, found, logits, encoded


def _say_if_within_chance(whole: float | None, majority: float | None, examples: int | None) -> None:
    """Says why no corrected retention is given."""
    from dynabert.profile.choice import above_majority

    if whole is not None and majority is not None and not above_majority(whole, majority, examples):
        say(
            f"the whole network scores {percent(whole)} %, a constant answer {percent(majority)} %: not told apart by "
            f"{'these' if examples is None else examples} examples, so no corrected retention is given"
        )


def _check_training(folder: str, candidates: Sequence[Candidate]) -> None:
    """Says so where the candidates look as if they had never been trained as sub-networks."""
    kept = sorted(c.corrected_retention for c in candidates if c.corrected_retention is not None)
    if len(kept) > 1 and kept[len(kept) // 2] < _UNTRAINED and not trained_subnets(folder):
        say(
            f"half of the sub-networks keep less than {100 * _UNTRAINED:.0f} % of what the whole network scores above "
            "a constant answer, and the checkpoint has no record of being distilled into them; dynabert train does it"
        )


def _remedies(args: argparse.Namespace, limits: Limits) -> str:
    """What else could be changed."""
    found = []
    if limits.max_latency_ms is not None:
        found.append("a smaller --batch_size or --seq_length, where the use allows it")
    if limits.on_quality:
        found.append("dynabert train for longer")
    return f"; or {', or '.join(found)}" if found else ""


def verified(
    args: argparse.Namespace,
    model: ElasticBertForSequenceClassification,
    order: Sequence[Candidate],
    limits: Limits,
    tokens: int,
) -> tuple[Candidate | None, list[dict[str, Any]]]:
    """The first of ``order`` that keeps the latency limit when it is measured again, twice, and what was measured.

    One run under the limit may be luck, the more so after others have missed it; so a second one confirms it.
    """
    from dynabert.profile.remeasure import remeasure

    assert limits.max_latency_ms is not None
    tried: list[dict[str, Any]] = []
    for candidate in order:
        runs = []
        for seed in range(2):
            runs += remeasure(
                model, [candidate.shape], args.batch_size, tokens, rounds=args.rounds, seed=args.seed + seed
            )
            if runs[-1].ms > limits.max_latency_ms:
                break
        last = runs[-1]
        kept = last.ms <= limits.max_latency_ms
        tried.append(
            {
                "subnet": candidate.subnet,
                "expected_ms": candidate.latency_ms,
                "measured_ms": max(run.ms for run in runs),
                "kept": kept,
                "runs": [run._asdict() for run in runs],
            }
        )
        say(
            f"{candidate.subnet} measured again: {' and '.join(f'{run.ms:.4g}' for run in runs)} ms "
            f"({candidate.latency_ms:.4g} ms expected), limit {limits.max_latency_ms:.4g} ms"
            f"{'' if kept else ': over it; the next one is tried'}; compared: {last.compared}; median by the clock "
            f"{last.wall_median_ms:.4g} ms, {100 * last.held_up:.0f} % of the passes held up by other work"
        )
        if kept:
            return candidate, tried
    return None, tried


def compared(
    args: argparse.Namespace,
    model: ElasticBertForSequenceClassification,
    encoded: Encoded | None,
    candidates: Sequence[Candidate],
    logits: dict[str, Any],
    found: Found,
    tokens: int,
    verify: bool,
    name: str,
) -> dict[str, Any]:
    """The best of different layers beside the best uniform one, both as the search's texts chose them: scores on the
    reported set, and latencies measured in turns. ``name``: of the score."""
    if found.layered is None or found.uniform is None or encoded is None:
        say("the search has nothing to compare: no uniform sub-network, or no other one, is within the limits on cost")
        return {"difference": None}

    from dynabert.evaluation import paired_difference
    from dynabert.profile.remeasure import remeasure

    metric = asked_metric(args)
    known = {c.subnet: c for c in candidates}
    ours, theirs = known[found.layered], known[found.uniform]
    difference = paired_difference(
        model, encoded, logits[ours.subnet], logits[theirs.subnet], metric=metric, threshold=args.threshold
    )
    say(tell_difference(ours, theirs, difference, name))
    record: dict[str, Any] = {
        "layered": ours.subnet,
        "uniform": theirs.subnet,
        "difference": {
            "difference": difference.difference,
            "low": difference.low,
            "high": difference.high,
            "resamples": difference.resamples,
        },
    }
    if verify:
        both = remeasure(model, [ours.shape, theirs.shape], args.batch_size, tokens, rounds=args.rounds)
        times = [one.ms for one in both]
        record["measured_ms"] = dict(zip((ours.subnet, theirs.subnet), times, strict=True))
        say(f"measured in turns: {times[0]:.4g} ms and {times[1]:.4g} ms")
    return record


def described(candidates: Sequence[Candidate], limits: Limits, chosen: Candidate | None) -> dict[str, Any]:
    """The candidates for files: cheapest first, who is on the Pareto front, who is within the limits."""
    from dynabert.profile import pareto_front

    ordered = sorted(candidates, key=lambda c: (c.cost(), c.subnet))
    by = "gflop" if any(c.latency_ms is None for c in candidates) else "latency_ms"
    front = set(pareto_front([c.cost() for c in ordered], [c.score or 0.0 for c in ordered]))
    return {
        "candidates": [
            c.to_dict() | {"front": index in front, "within": limits.within(c)} for index, c in enumerate(ordered)
        ],
        "front_cost": by,
        "chosen": None if chosen is None else chosen.subnet,
    }


def _figures(value: float) -> str:
    """Two decimals; of a small number its first two digits."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def report(args: argparse.Namespace, results: dict[str, Any], config: ElasticBertConfig) -> None:
    """The table (or JSON), the chosen sub-network and what can be done with it; ``config``: the network's."""
    if args.json:
        print_json(results)
        return
    rows = results["candidates"]
    timed = rows[0]["latency_ms"] is not None
    share = results["whole_score"] is not None

    def cell(value: float | None) -> str:
        return "" if value is None else percent(value)

    majority = results["majority_score"]
    print_table(
        [
            "sub-network",
            f"{results['metric']} %",
            *(("retention %", "corrected %") if share else ()),
            "parameters",
            f"GFLOP at {results['cost_tokens']} tokens",
            *(("latency, ms",) if timed else ()),
            "front",
            "within",
        ],
        [
            [
                row["subnet"] + (" (chosen)" if row["subnet"] == results["chosen"] else ""),
                percent(row["score"]),
                *((cell(row["retention"]), cell(row["corrected_retention"])) if share else ()),
                f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] >= 1e6 else f"{row['parameters']:,}",
                _figures(row["gflop"]),
                *((_figures(row["latency_ms"]),) if timed else ()),
                "yes" if row["front"] else "",
                "yes" if row["within"] else "",
            ]
            for row in rows
        ],
        title=f"{results['data']}: {results['examples']} examples; "
        f"majority {'not known' if majority is None else percent(majority) + ' %'}; objective: {results['objective']}; "
        f"front: no other has a higher score for less {'latency' if timed else 'GFLOP'}",
    )
    if results["chosen"] is None:
        return
    model = shlex.quote(args.model_name_or_path)
    given = f"--model_name_or_path {model} --subnet {results['chosen']}"
    print(f"chosen: {results['chosen']}")
    dtype = "" if args.dtype == "float32" else f" --dtype {args.dtype}"
    print(f"run it:      dynabert predict {given}{dtype} 'A text.'")
    print(
        f"take it out: dynabert export {given} --format {export_format(config, results['chosen'])} --output_dir FOLDER"
    )
