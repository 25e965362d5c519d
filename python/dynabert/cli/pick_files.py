"""What ``dynabert pick`` reads beside model and data: scores and trained sub-networks; and the files it leaves."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynabert.cli.options import check_output_dir
from dynabert.cli.output import say
from dynabert.cli.pick_search import KEPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynabert.configuration import ElasticBertConfig, SubnetConfig

COMPLETE = "complete.json"  # what each part of `dynabert train` leaves beside its network
CHOSEN = "subnet.txt"
WHOLE = "w1-d1"


@dataclass(frozen=True)
class Scores:
    """Scores by a sub-network's text form, and what they are of. ``majority``: the best constant answer's score."""

    source: str
    metric: str
    scores: dict[str, float]
    majority: float | None
    examples: int | None


def read_scores(path: str) -> Scores:
    """Scores from a file that ``dynabert eval --json`` or ``dynabert train`` (results.json, complete.json) has written.

    Raises:
        ValueError: a file of another kind, one that holds no score, or a score that is no fraction.
    """
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--scores {path} is no JSON file: {error}") from error
    kinds = "what dynabert eval --json printed, or the results.json or complete.json of dynabert train"
    if not isinstance(given, dict):
        raise ValueError(f"--scores {path} holds {type(given).__name__}; allowed: {kinds}")
    try:
        parts = [part for part in given.get("parts", ()) if part.get("rows")]
        rows: Any = parts[-1]["rows"] if parts else given.get("rows") or given.get("subnets")
        named = [(_full_name(str(row["subnet"])), float(row["score"])) for row in rows]
        first = rows[0]
        metric = str(given.get("metric") or first["metric"])
        majority = given.get("majority_score", first.get("majority"))
        examples = given.get("examples", first.get("examples"))
        majority = None if majority is None else float(majority)
        examples = None if examples is None else int(examples)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"--scores {path} holds no scores of sub-networks; allowed: {kinds}") from error
    scores: dict[str, float] = {}
    for name, score in named:
        if name in scores and scores[name] != score:
            raise ValueError(f"--scores {path} has two scores of {name}: {scores[name]:g} and {score:g}; keep one")
        scores[name] = score
    told = {f"the score of {name}": score for name, score in scores.items()}
    for name, value in (told if majority is None else {**told, "the majority score": majority}).items():
        if not math.isfinite(value):
            raise ValueError(
                f"--scores {path}: {name} is {value}; allowed: a fraction; score that sub-network again: dynabert eval"
            )
        if abs(value) > 1.0:
            raise ValueError(
                f"--scores {path}: {name} is {value:g}; allowed: fractions, from -1 to 1"
                + (f"; if that is per cent, write {value / 100:g}" if abs(value) <= 100.0 else "")
            )
    return Scores(str(given.get("data") or path), metric, scores, majority, examples)


def check_whole_score(path: str, given: Scores) -> None:
    """Raises ``ValueError`` where the file gives no whole network's score that a share could be retained of."""
    whole = given.scores.get(WHOLE)
    if whole is None:
        raise ValueError(
            f"--scores {path} has no score of {WHOLE}, so what a sub-network retains of it is not known; score it too "
            f"(dynabert eval --subnets {WHOLE},...), or give --min_score in place of --min_retention"
        )
    if whole <= 0.0:
        raise ValueError(
            f"--scores {path}: the whole network's {given.metric} is {whole:.4g}, so no share of it can be retained; "
            "give --min_score in place of --min_retention, or scores in another metric"
        )


def _full_name(name: str) -> str:
    """A sub-network's text form, such as w1-d1 for w1; a name that is none stays."""
    from dynabert.configuration import SubnetConfig
    from dynabert.configuration.grid import subnet_text

    try:
        return subnet_text(SubnetConfig.parse(name))
    except ValueError:
        return name


def check_scored(path: str, given: Scores, subnets: Sequence[SubnetConfig], config: ElasticBertConfig) -> None:
    """Raises ``ValueError`` where the file has no score of some candidate, and says which ones it has."""
    from dynabert.configuration.grid import subnet_text

    missing = [name for name in map(subnet_text, subnets) if name not in given.scores]
    if not missing:
        return
    there = [name for name in given.scores if _fits(config, name)]
    way = f"take those it has, --subnets {shlex.quote(','.join(there))}, or score" if there else "score"
    raise ValueError(
        f"--scores {path} has no score of {', '.join(missing)}; allowed: a score of every candidate; {way} the missing "
        "ones too (dynabert eval --subnets LIST --json)"
    )


def _fits(config: ElasticBertConfig, name: str) -> bool:
    try:
        config.shape(name)
    except ValueError:
        return False
    return True


def export_format(config: ElasticBertConfig, subnet: str) -> str:
    """The ``--format`` of ``dynabert export`` that takes the sub-network as it is: plain where a plain class holds
    it."""
    from dynabert.export.plain import obstacle

    try:
        return "hf" if obstacle(config, config.shape(subnet)) is None else "hf-remote"
    except ValueError:  # no plain class has this network's heads
        return "hf-remote"


def trained_subnets(folder: str) -> list[str]:
    """The sub-networks that the checkpoint's own record names; empty where it has none."""
    record = _record(folder)
    return [] if record is None else record[0]


def _record(folder: str) -> tuple[list[str], bool] | None:
    """The sub-networks that the checkpoint's own record names, and whether it says that nothing was trained: of a run's
    ``rewired`` part, whose sub-networks were scored only. None where there is no record that can be read."""
    path = Path(folder) / COMPLETE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [str(row["subnet"]) for row in content["rows"]], content.get("history") == []
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def say_if_untrained(folder: str, config: ElasticBertConfig, names: Sequence[str]) -> None:
    """Says so where some of these sub-networks were never trained, so that their scores are not taken for more."""
    if not config.rewired and any(name != WHOLE for name in names):
        say(
            "the checkpoint is not rewired: its narrow sub-networks keep whatever stands first; sort its heads and "
            f"neurons with dynabert rewire, or make it elastic with dynabert train, from {folder}"
        )
        return
    record = _record(folder)
    narrow = [name for name in names if name != WHOLE]
    if record is None:
        if narrow:
            say(
                f"{folder} is rewired, and holds no record of a training ({COMPLETE}): unless they were trained "
                f"elsewhere, these narrower sub-networks are untrained: {', '.join(narrow)}; dynabert train trains them"
            )
        return
    trained, untrained = record
    others = [name for name in names if name not in trained]
    if untrained:
        if narrow:
            say(
                f"{folder} was rewired, and none of these sub-networks trained yet: {', '.join(narrow)}; those that "
                "were are in the folders of the run's later parts"
            )
    elif trained and others:
        say(f"not among the sub-networks that this checkpoint was trained for: {', '.join(others)}")


def candidate_subnets(asked: str | None, folder: str, config: ElasticBertConfig) -> list[SubnetConfig]:
    """The sub-networks to choose among: those named; else those of the checkpoint's record, else the paper's grid.

    Of the grid those are left out that this network cannot run, or that are another one by a second name; both are
    said.

    Raises:
        ValueError: a named sub-network that cannot be read or does not fit; none that fits.
    """
    from dynabert.configuration.grid import parse_subnets, subnet_grid

    if asked is not None and asked.strip() != "all":
        return parse_subnets(asked, config)
    recorded = trained_subnets(folder) if asked is None else []
    # A teacher's record names the whole network alone: that is no grid.
    listed = parse_subnets(",".join(recorded)) if len(recorded) > 1 else subnet_grid()
    found: dict[Any, SubnetConfig] = {}
    left_out = []
    for subnet in listed:
        try:
            shape = config.shape(subnet)
        except ValueError as error:
            left_out.append(f"{subnet} ({error})")
            continue
        if shape in found:
            left_out.append(f"{subnet} (the same layers as {found[shape]})")
        else:
            found[shape] = subnet
    if left_out:
        say(f"left out: {'; '.join(left_out)}")
    if not found:
        raise ValueError("no sub-network of the grid fits this network; name some with --subnets")
    return list(found.values())


def open_output_dir(args: argparse.Namespace) -> Path:
    """The ``--output_dir``, made and written to once: what cannot be kept is refused before hours of work.

    Raises:
        ValueError: a file of that name; a folder that holds something, without ``--overwrite`` or a search to go on
            from; one that cannot be written to.
    """
    resumed = args.resume and (Path(args.output_dir) / KEPT).is_file()
    folder = check_output_dir(args.output_dir, args.overwrite or resumed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{CHOSEN}.part"
        probe.write_text("", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--output_dir {folder} cannot be written to: {error}; give another folder") from error
    return folder


def write_results(folder: Path, results: dict[str, Any]) -> list[Path]:
    """``pick.json``, ``candidates.csv``, the pictures and the chosen one's ``subnet.txt``; returns their paths."""
    written = [folder / "pick.json", folder / "candidates.csv"]
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    chosen = folder / CHOSEN
    chosen.unlink(missing_ok=True)  # first: an earlier run's choice must not stand beside this run's tables
    _replace(written[0], text + "\n")
    table = io.StringIO(newline="")
    rows = results["candidates"]
    lines = csv.writer(table)
    lines.writerow(rows[0])
    for row in rows:
        lines.writerow([_cell(value) for value in row.values()])
    _replace(written[1], table.getvalue())
    if results["chosen"] is not None:
        _replace(chosen, results["chosen"] + "\n")
        written.append(chosen)
    try:
        from dynabert.cli.pick_plot import plot_choice, plot_layers
    except ImportError as error:
        say(f"no pictures: {error}; pip install matplotlib")
        return written
    pictures = [folder / "score_cost.png", folder / "layers.png"]
    plot_choice(results, pictures[0])
    plot_layers(results, pictures[1])
    return written + pictures


def _replace(path: Path, text: str) -> None:
    """Write beside the file and put it in its place: whoever reads sees the old one or the new one, whole."""
    draft = path.with_name(f"{path.name}.part")
    try:
        draft.write_text(text, encoding="utf-8", newline="")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else value
