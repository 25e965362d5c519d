"""``dynabert card``: a model card for a checkpoint, from the files that hold its numbers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import UsageError, add_command

if TYPE_CHECKING:
    from dynabert.configuration import ElasticBertConfig
    from dynabert.model_card import CardLatency, CardScores, CardTraining


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "card",
        run,
        "write a model card",
        "Write a model card (README.md) of a checkpoint, a classifier's or a sentence embedder's: a table of its "
        "sub-networks, how to load it, recipe and limits. Every number comes from the files given; what was not given "
        "is said to be not measured. dynabert train writes one beside the network it ends with.",
    )
    parser.add_argument(
        "--model_name_or_path", metavar="PATH", required=True, help="folder or hub id of the checkpoint"
    )
    parser.add_argument(
        "--run_dir", metavar="FOLDER", help="--output_dir of the dynabert train that made it: scores and recipe"
    )
    parser.add_argument(
        "--scores",
        metavar="FILE",
        help="what dynabert eval --json printed, or results.json or complete.json of dynabert train; goes before "
        "--run_dir's",
    )
    parser.add_argument("--profile", metavar="FILE", help="a file of dynabert profile, for latencies of its device")
    parser.add_argument("--batch_size", metavar="N", type=int, default=1, help="sequences of a pass, for --profile")
    parser.add_argument("--seq_length", metavar="N", type=int, default=128, help="tokens of each, for --profile")
    parser.add_argument("--dtype", metavar="DTYPE", default="float32", help="for --profile")
    parser.add_argument("--repo_id", metavar="ID", help="the hub's name of the checkpoint, for the examples")
    parser.add_argument("--base_model", metavar="ID", help="hub id of the network that it was trained from")
    parser.add_argument("--license", metavar="NAME", help="such as mit; without it the card states none")
    parser.add_argument("--language", metavar="CODE", help="such as en")
    parser.add_argument("--datasets", metavar="ID", nargs="+", help="hub ids of the training sets")
    parser.add_argument("--output", metavar="FILE", help="file to write; default: standard output")
    parser.add_argument("--overwrite", action="store_true", help="replace the --output that is there")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    if args.overwrite and args.output is None:
        raise UsageError("--overwrite belongs to --output")
    path = None if args.output is None else Path(args.output)
    if path is not None and (path.is_dir() or (path.exists() and not args.overwrite)):
        raise ValueError(f"--output {path} is there; give another file, or --overwrite")

    from dynabert.configuration import ElasticBertConfig
    from dynabert.engine.loading import is_embedder
    from dynabert.model_card import model_card
    from dynabert.modeling.checkpoint import check_source

    check_source(args.model_name_or_path)
    config = ElasticBertConfig.from_pretrained(args.model_name_or_path)
    scores, training, datasets = _measured(args, config)
    text = model_card(
        config,
        scores=scores,
        latency=None if args.profile is None else _latency(args, config, scores),
        training=training,
        repo_id=args.repo_id,
        base_model=args.base_model,
        license=args.license,
        language=args.language,
        datasets=args.datasets or datasets,
        embedder=is_embedder(args.model_name_or_path),
    )
    if path is None:
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def _measured(
    args: argparse.Namespace, config: ElasticBertConfig
) -> tuple[CardScores | None, CardTraining | None, list[str]]:
    from dynabert.distill.card import run_datasets, run_scores
    from dynabert.model_card import CardScores, CardTraining

    part = Path(args.model_name_or_path).absolute().name
    scores, training, datasets = None, None, []
    if args.run_dir is not None:
        folder = Path(args.run_dir)
        settings, results = _read(folder / "settings.json"), _read(folder / "results.json")
        training, datasets = CardTraining.read(settings, results), run_datasets(settings)
        if args.scores is None:
            part = _part_of(Path(args.model_name_or_path), folder)
            scores = run_scores(settings, results, part)
            if scores is not None:
                _check_layers(args.model_name_or_path, config, folder / part)
    if args.scores is not None:
        scores = CardScores.read(_read(Path(args.scores)), part)
    return scores, training, datasets


def _part_of(model: Path, run: Path) -> str:
    """The name of the run's part that a folder is by its place, else by its own name: it may be a copy."""
    place = model.resolve()
    return place.name if place.parent == run.resolve() else model.absolute().name


def _check_layers(model: str, config: ElasticBertConfig, part: Path) -> None:
    """Raises ``ValueError`` for a network that has the name of a run's part, and layers of other sizes."""
    from dynabert.configuration import ElasticBertConfig

    if not (part / "config.json").is_file():
        return
    own = ElasticBertConfig.from_pretrained(part)
    if (own.layer_heads, own.layer_neurons) != (config.layer_heads, config.layer_neurons):
        raise ValueError(
            f"{model} has other layers than {part}, so its scores are not that part's; give {part}, or take scores of "
            "its own with dynabert eval --json, and give that file as --scores"
        )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}; a dynabert train that has ended leaves it") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); give the file as it was written") from error


def _latency(args: argparse.Namespace, config: ElasticBertConfig, scores: CardScores | None) -> CardLatency:
    from dynabert.configuration.grid import subnet_grid
    from dynabert.model_card import CardLatency, fits
    from dynabert.profile import DeviceProfile

    profile = DeviceProfile.load(args.profile, check_device=False)  # a card names the device; it need not be this one
    profile.check_model(config)
    names = list(scores.rows) if scores else [str(subnet) for subnet in subnet_grid() if fits(config, str(subnet))]
    length = min(args.seq_length, config.max_sequence_length)
    # The network's own shape: the profile may be of a larger one.
    rows = {name: profile.latency_ms(config.shape(name), args.batch_size, length, args.dtype) for name in names}
    facts = profile.facts
    return CardLatency(
        rows,
        device=facts.cpu if facts.device == "cpu" else facts.device,
        dtype=args.dtype,
        batch_size=args.batch_size,
        seq_length=length,
        threads=facts.threads if facts.device == "cpu" else None,
        how=_how(profile, args.batch_size, length, args.dtype),
    )


def _how(profile: Any, batch_size: int, length: int, dtype: str) -> str:
    """Where the times come from, with the profile's own statement of their error where it has one for this point."""
    told = f"predicted by a device profile of {profile.date[:10]}"
    point = (batch_size, length, dtype)
    for cell in profile.cells:
        error = cell.error
        if (cell.batch_size, cell.seq_length, cell.dtype) == point and error.mean is not None:
            return (
                f"{told} (mean error {100 * error.mean:.1f} %, worst {100 * error.worst:.1f} %, on {error.networks} "
                "random sub-networks)"
            )
    return f"{told} (its error at this point was not measured)"
