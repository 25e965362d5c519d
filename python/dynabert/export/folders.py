"""An output folder that appears whole or not at all: written beside its place, renamed into it at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynabert.export.report import REPORT_FILE

_MARKS = (REPORT_FILE, "config.json")


def checked_target(output_dir: str | os.PathLike[str], overwrite: bool, source: str) -> Path:
    """The folder to make, absolute, links followed.

    Raises ``ValueError``: a file; a folder that holds something, without ``overwrite``; and with it, one that is no
    model's, holds other folders (both would be lost with it), or holds the source itself.
    """
    target = Path(output_dir).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"export: output_dir {output_dir} is a file; give a folder")
    opened = Path(source).expanduser().resolve()
    if source and opened.is_dir() and (target == opened or target in opened.parents):
        raise ValueError(f"export: output_dir {output_dir} holds the source {source}; give another folder")
    if not target.is_dir() or not any(target.iterdir()):
        return target
    if not overwrite:
        raise ValueError(f"export: output_dir {output_dir} is not empty; give another folder, or --overwrite")
    if not any((target / mark).is_file() for mark in _MARKS):
        raise ValueError(
            f"export: output_dir {output_dir} holds no model ({' or '.join(_MARKS)}), and overwriting replaces the "
            "whole folder; empty it yourself, or give another one"
        )
    folders = sorted(path.name for path in target.iterdir() if path.is_dir())
    if folders:
        raise ValueError(
            f"export: output_dir {output_dir} holds folders, which overwriting would lose: {', '.join(folders[:6])}; "
            "move them, or give another folder"
        )
    return target


@contextmanager
def staged(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside ``target`` that takes its place when the block ends well; else it is removed, and whatever
    was at ``target`` is as before. Something that appeared there meanwhile is replaced with ``overwrite`` alone."""
    missing = [parent for parent in (target.parent, *target.parent.parents) if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    work: Path | None = None
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
        umask = os.umask(0)
        os.umask(umask)
        work.chmod(0o777 & ~umask)  # mkdtemp's folder is its owner's alone
        yield work
        _swap(work, target, overwrite)
    except BaseException:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        for parent in missing:
            try:
                parent.rmdir()
            except OSError:  # somebody else put something there
                break
        raise


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """What the disk refuses becomes one ``OSError`` that names the target. safetensors and tokenizers, written in
    another language, raise exceptions of their own, known by their text alone."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        raise OSError(f"export: cannot write {target}: {error}; nothing was exported") from error


def _swap(work: Path, target: Path, overwrite: bool) -> None:
    """Renames ``work`` to ``target``; what was there goes only after that."""
    if not target.exists():
        work.rename(target)
        return
    if not overwrite and any(target.iterdir()):
        raise ValueError(f"export: {target} was filled by somebody else meanwhile; nothing was exported")
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    aside = old / target.name
    try:
        target.rename(aside)
        work.rename(target)
    except BaseException:  # wherever it was interrupted
        if aside.exists() and not target.exists():
            aside.rename(target)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
