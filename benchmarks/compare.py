"""Two revisions of the kernels on the same problems: ``dynabert-bench --compare REV [REV2]``.

Each revision is checked out under ``build/revisions/`` and built there, once for each commit; the working tree is used
as it stands. Both are measured by *this* runner, so the problems, the peers and the clock are the same. Processes take
turns, in the order A B B A, so that a machine that slowly warms up or fills with neighbours weighs on both alike. Each
pair of processes gives one ratio for a row. The noise is what equal code differs by: two processes of one revision, and
the plain PyTorch peer, which is the same in both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynabert_kernels.testing.timing import quantile

from . import rows
from .measure import PEER

HERE = Path(__file__).resolve().parent
KEY = ("benchmark", "provider", "shape", "tokens", "plan", "dtype")
FASTER, SLOWER, NOISE = "faster", "slower", "within noise"
Key = tuple[str, ...]
Medians = dict[Key, float]


class Refused(RuntimeError):
    """A comparison that would say nothing: a revision that is wrong, or that does not build."""


@dataclass(frozen=True)
class Side:
    """One revision, ready to run: what the user called it, and the folder of its tree."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Change:
    """One row of both revisions.

    ``ratio``: time of the first over time of the second, above 1 the second is faster; the median over pairs of
    processes, with its 20th and 80th percentile. ``noise``: by how much equal code differs, the larger of two numbers:
    the 80th percentile of neighbouring processes of one revision, and the peer's ratio on this problem.
    """

    key: Key
    first_ms: float
    second_ms: float
    ratio: float
    p20: float
    p80: float
    noise: float

    @property
    def verdict(self) -> str:
        """Faster or slower only where most pairs agree and the change exceeds what equal code differs by."""
        if self.p20 > 1.0 and self.ratio > 1.0 + self.noise:
            return FASTER
        if self.p80 < 1.0 and self.ratio < 1.0 / (1.0 + self.noise):
            return SLOWER
        return NOISE


def checkout(revision: str, root: Path, device: str, say: Callable[[str], None]) -> Side:
    """The tree of a revision, with the native library for ``device`` built.

    Raises ``ValueError`` where there is no such revision, ``Refused`` where it does not build.
    """
    done = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if done.returncode:
        raise ValueError(f"benchmarks: --compare {revision!r} is no revision of {root}; give a commit, branch or tag")
    commit = done.stdout.strip()[:12]
    folder = root / "build" / "revisions" / commit
    if not (folder / ".git").exists():
        say(f"{revision}: checking out {commit}")
        _git(root, "worktree", "prune")  # a removed build folder leaves its worktrees registered
        done = _git(root, "worktree", "add", "--detach", "--force", str(folder), commit)
        if done.returncode:
            raise Refused(f"benchmarks: git cannot check out {revision}: {done.stderr.strip()}")
    marks = {kind: folder / "build" / f".complete-{kind}" for kind in ("cpu", "cuda")}
    if not marks[device].exists() and not marks["cuda"].exists():
        say(f"{revision}: building {commit} (a minute; once for each commit)")
        _build(revision, folder, device)
        marks[device].touch()
    return Side(revision, folder)


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)


def _build(revision: str, folder: Path, device: str) -> None:
    # Where this interpreter lies, ninja does too.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        # The CUDA half takes most of a build, and a CPU has no use for it.
        env={"DYNABERT_CUDA": "1" if device == "cuda" else "0", **os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    log = folder / "build" / "build.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        raise Refused(f"benchmarks: {revision} does not build; see {log}\n{tail}")


def run_once(side: Side, flags: Sequence[str], out: Path) -> dict[str, Any]:
    """One process that measures one side; the document it wrote. Raises ``Refused`` where it is red or fails."""
    with tempfile.TemporaryDirectory() as stage:
        # This runner beside that revision's kernels. "-P": not what happens to lie in the working folder.
        (Path(stage) / "dynabert_benchmarks").symlink_to(HERE)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([stage, str(side.folder)])}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "dynabert_benchmarks.run", *flags, "--out", str(out)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    files = sorted(out.glob("*.json"))
    if not files:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-5:])
        raise Refused(f"benchmarks: {side.name} measured nothing (exit {done.returncode})\n{tail}")
    document: dict[str, Any] = json.loads(files[-1].read_text(encoding="utf-8"))
    refuse_what_is_wrong(side, document)
    return document


def refuse_what_is_wrong(side: Side, document: Mapping[str, Any]) -> None:
    """Raises ``Refused`` where a check of the side was red or a provider failed: its time is no time of the op."""
    wrong = [row for row in document["rows"] if row["status"] in (rows.RED, rows.FAILED)]
    if wrong:
        row = wrong[0]
        where = ", ".join(row[name] for name in KEY)
        raise Refused(
            f"benchmarks: --compare refuses: {len(wrong)} rows of {side.name} are wrong, the first is {row['status']}: "
            f"{where}: {row['note']}; mend it, or leave it out with --op, --provider or --dtype"
        )


def medians_of(document: Mapping[str, Any]) -> Medians:
    """Median time of every measured row."""
    return {
        tuple(row[name] for name in KEY): row["median_ms"]
        for row in document["rows"]
        if row["status"] == rows.MEASURED and row["median_ms"] is not None
    }


def changes(first: Sequence[Medians], second: Sequence[Medians]) -> list[Change]:
    """The rows that both revisions have, from the same number of processes of each, paired in the order they ran."""
    found = []
    for key in first[0]:
        if not all(key in medians for medians in [*first, *second]):
            continue
        before, after = [medians[key] for medians in first], [medians[key] for medians in second]
        ratios = _ratios(before, after)
        same = [_apart(one / two) for times in (before, after) for one, two in pairwise(times)]
        peer = (key[0], PEER, *key[2:])
        peers = _ratios([m[peer] for m in first if peer in m], [m[peer] for m in second if peer in m])
        found.append(
            Change(
                key=key,
                first_ms=statistics.median(before),
                second_ms=statistics.median(after),
                ratio=statistics.median(ratios),
                p20=quantile(ratios, 0.2),
                p80=quantile(ratios, 0.8),
                noise=max(quantile(same, 0.8) if same else 0.0, _apart(statistics.median(peers)) if peers else 0.0),
            )
        )
    return found


def _ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(first, second, strict=False)]


def _apart(ratio: float) -> float:
    """How far a ratio is from 1, the same for its inverse."""
    return max(ratio, 1.0 / ratio) - 1.0


def measure_both(
    sides: tuple[Side, Side], flags: Sequence[str], repeats: int, run: Callable[..., dict[str, Any]], out: Console
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Documents of both sides from alternating processes: A B, B A, A B, ..."""
    documents: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(repeats):
            out.print(f"round {repeat + 1} of {repeats}")
            for index in (0, 1) if repeat % 2 == 0 else (1, 0):
                folder = Path(scratch) / f"{repeat}-{index}"
                documents[index].append(run(sides[index], [*flags, "--seed", str(repeat + 1)], folder))
    return documents


def table_of(found: Sequence[Change], names: tuple[str, str]) -> Table:
    """All changes, with what is more than noise in bold."""
    table = Table(caption=f"ratio: time of {names[0]} over time of {names[1]}; above 1 {names[1]} is faster")
    for name in ("op", "provider", "shape", "tokens", "plan", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in (f"{names[0]} ms", f"{names[1]} ms", "ratio", "p20", "p80", "noise"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for change in found:
        numbers = [f"{ms:.4g}" for ms in (change.first_ms, change.second_ms)]
        numbers += [f"{ratio:.3f}" for ratio in (change.ratio, change.p20, change.p80)]
        style = None if change.verdict == NOISE else "bold green" if change.verdict == FASTER else "bold red"
        table.add_row(*change.key, *numbers, f"{100 * change.noise:.1f} %", change.verdict, style=style)
    return table


def report(sides: tuple[Side, Side], documents: tuple[list[dict[str, Any]], ...], path: Path, out: Console) -> None:
    """Prints the table and writes it, with what both sides say of themselves, as JSON."""
    first, second = ([medians_of(document) for document in side] for side in documents)
    found = changes(first, second)
    names = (sides[0].name, sides[1].name)
    out.print(table_of(found, names))
    for side, document in zip(sides, documents, strict=True):
        facts = document[0]["environment"]
        out.print(escape(f"{side.name}: commit {facts['commit']}, sources {facts['source_digest']}"))
    digests = {document[0]["environment"]["source_digest"] for document in documents}
    if len(digests) == 1:
        out.print("both have the same kernel sources: what differs is the machine's noise")
    alone = sorted({*first[0]} ^ {*second[0]})
    for key in alone:
        out.print(escape(f"only in {names[0] if key in first[0] else names[1]}: {', '.join(key)}"))
    counts = {verdict: sum(change.verdict == verdict for change in found) for verdict in (FASTER, SLOWER, NOISE)}
    out.print(f"{names[1]}: {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}")
    table = [
        dict(zip(KEY, change.key, strict=True))
        | {name: getattr(change, name) for name in ("first_ms", "second_ms", "ratio", "p20", "p80", "noise", "verdict")}
        for change in found
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": rows.SCHEMA,
        "first": names[0],
        "second": names[1],
        "environments": [side[0]["environment"] for side in documents],
        "rows": table,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    out.print(f"rows: {path}")
