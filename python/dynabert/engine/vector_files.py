"""The vectors of every row of a file as one ``.npy`` array, window by window, so that any length fits in memory."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from dynabert.data.rows import RowReader
from dynabert.data.tables import find_columns, row_text
from dynabert.engine.files import (
    PART,
    FileSummary,
    check_target,
    errors_named_by_line,
    errors_of_the_target,
    row_windows,
)
from dynabert.engine.limits import checked_count
from dynabert.engine.requests import is_many

if TYPE_CHECKING:
    from dynabert.configuration import Subnet
    from dynabert.engine.embedding import EmbeddingEngine

_NUMBERS = np.dtype("<f4")


def embed_file(
    engine: EmbeddingEngine,
    path_in: str | Path,
    path_out: str | Path,
    *,
    subnet: Subnet = None,
    text_column: str | None = None,
    truncate: bool = False,
    overwrite: bool = False,
    lookahead: int = 1024,
    progress: bool | None = None,
) -> FileSummary:
    """Write the vectors of a table's texts as a ``.npy`` file: (N, C) float32, a row for each row, in order.

    ``numpy.load(path_out, mmap_mode="r")`` opens it without reading it. The file appears under its name when it is
    complete; after an error it is not there.

    Args:
        engine: the engine that makes the vectors.
        path_in: .txt (a text in each line), .tsv, .csv, .jsonl (each also .gz) or .parquet.
        path_out: .npy.
        subnet: one sub-network for all rows; None is the whole network.
        text_column: see `dynabert.data.find_columns`. Needed where a table's known columns make pairs.
        truncate: cut texts that are too long, else refuse them.
        overwrite: False refuses an output file that exists.
        lookahead: rows held at a time.
        progress: see `EmbeddingEngine.embed`.

    Raises:
        ValueError: a bad row (file, line, what was found); a text that is too long; a table of pairs; a cascade, or
            several sub-networks; an output that is no .npy.
        FileExistsError, FileNotFoundError: the output is there, the input or the output's folder is not.
        OSError: the output cannot be written.
    """
    started = time.perf_counter()
    target = Path(path_out)
    if target.suffix != ".npy":
        raise ValueError(f"embed_file: cannot write {target.name!r}; allowed: .npy, a NumPy array; rename it")
    check_target("embed_file", target, overwrite)
    checked_count("embed_file", "lookahead", lookahead)
    if is_many(subnet):
        raise ValueError("embed_file: several sub-networks were given; allowed: one for the file; call it for each")
    name = engine._resolve_one(subnet).text
    part = target.with_name(target.name + PART)
    with RowReader(path_in) as reader:
        columns = find_columns(reader.columns, text_column=text_column, source=reader.name)
        if columns.second is not None:
            raise ValueError(
                f"{reader.name}: the columns {columns.text!r} and {columns.second!r} are pairs of texts, and a vector "
                "is of one text; name one of them with text_column"
            )
        try:
            with errors_of_the_target(part):
                stream = part.open("wb")
            with stream, tqdm(unit=" rows", disable=None if progress is None else not progress) as bar:
                count = 0
                stream.write(_header(count, engine.size))
                for rows in row_windows(iter(reader), lookahead):
                    texts = [row_text(reader, row, columns.text) for row in rows]
                    with errors_named_by_line(reader, rows):
                        found = engine.embed(texts, subnet, truncate=truncate, progress=False)
                    stream.write(found.astype(_NUMBERS, order="C", copy=False).tobytes())
                    count += len(rows)
                    bar.update(len(rows))
                if count == 0:
                    raise ValueError(f"{reader.name}: no rows in it; at least one is needed")
                stream.seek(0)
                stream.write(_header(count, engine.size))
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return FileSummary(count, (name,), str(target), time.perf_counter() - started)


def _header(rows: int, columns: int) -> bytes:
    """What stands before the numbers. NumPy keeps room in it for a number of rows that is known at the end only."""
    buffer = io.BytesIO()
    content = {"descr": _NUMBERS.str, "fortran_order": False, "shape": (rows, columns)}
    np.lib.format.write_array_header_1_0(buffer, content)
    return buffer.getvalue()
