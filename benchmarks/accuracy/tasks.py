"""The campaign's tasks: their epochs, and the one whose training split has to be cut out of its dev split."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True)
class CampaignTask:
    """A task as the campaign runs it.

    Attributes:
        title: as a table names it.
        epochs: of the teacher and of each stage, for a small network: fewer where there is more text.
        examples: to train on, for the estimate of time alone.
        official: False where the split is not GLUE's: its scores are not those of other people's tables.
    """

    title: str
    epochs: float
    examples: int
    official: bool = True


TASKS: dict[str, CampaignTask] = {
    "sst2": CampaignTask("SST-2", 1, 67_349),
    "mrpc": CampaignTask("MRPC", 4, 3_668),
    "cola": CampaignTask("CoLA", 3, 8_551),
    "rte": CampaignTask("RTE", 4, 2_490),
    "stsb": CampaignTask("STS-B", 3, 5_749),
    "qnli": CampaignTask("QNLI, dev split by article", 4, 4_418, official=False),
    "qqp": CampaignTask("QQP, a subset", 2, 21_000, official=False),
}
HELD_OUT_EVERY = 5  # of the articles, the last of each five


def task_folder(task: str, data_dir: Path, prepared: Path) -> Path:
    """The folder that `load_task` is given. QNLI is cut by article into ``prepared`` where it has no training split."""
    if task != "qnli" or any((data_dir / "QNLI").glob("train.tsv*")):
        return data_dir
    out = prepared / "QNLI"
    if not (out / "dev.tsv").is_file():
        split_qnli(data_dir / "QNLI" / "dev.tsv.gz", data_dir.parent / "squad" / "dev-v1.1.json.gz", out)
    return prepared


def split_qnli(dev: Path, squad: Path, out: Path) -> tuple[int, int]:
    """Cuts QNLI's dev split by the article that a question is from: every fifth article is the new dev split, the
    others train. A random cut would put one paragraph into both. Returns how many rows each has.

    Raises:
        ValueError: a question that no article, or more than one, has.
    """
    articles: dict[str, set[int]] = {}
    with _opened(squad) as stream:
        for index, article in enumerate(json.load(stream)["data"]):
            for question in _questions(article):
                articles.setdefault(question, set()).add(index)
    train: list[list[str]] = []
    held: list[list[str]] = []
    with _opened(dev) as stream:
        head, *rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
    for row in rows:
        question = row[head.index("question")].strip()
        found = articles.get(question, set())
        if len(found) != 1:
            raise ValueError(
                f"accuracy: the question {question!r} of {dev} is in {len(found)} articles of {squad}; needed: one"
            )
        (index,) = found
        (held if index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else train).append(row)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("dev", held)):  # dev last: it says that both are whole
        text = "".join("\t".join(row) + "\n" for row in (head, *part))
        (out / f"{name}.tsv").write_text(text, encoding="utf-8", newline="\n")
    return len(train), len(held)


def _questions(article: dict[str, Any]) -> Iterator[str]:
    for paragraph in article["paragraphs"]:
        for asked in paragraph["qas"]:
            yield asked["question"].strip()


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")
