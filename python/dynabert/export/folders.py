"""An output folder that appears whole or not at all: written beside its place, renamed into it at the end."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from dynabert.export.report import REPORT_FILE

# What lies in a model's folder, ours or another tool's. Overwriting takes the whole folder away, so a file of another
# kind is a reason to stop.
_MODEL_FILES = (
    REPORT_FILE, "config.json", "generation_config.json", "README.md", ".gitattributes", "*.safetensors",
    "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json", "model.onnx", "model.onnx.data",
    "modeling_*.py", "elastic_bert.py", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "chat_template.jinja", "complete.json",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
)  # fmt: skip
# Folders of sentence-transformers, with nothing but their configuration.
_MODEL_FOLDERS = ("1_Pooling", "2_Normalize")


def checked_target(output_dir: str | os.PathLike[str], overwrite: bool, source: str) -> Path:
    """The folder to make, absolute, links followed.

    Raises ``ValueError``: a file; a mount point, or a place that cannot be written; a folder that holds something,
    without ``overwrite``; and with it, one that is no model's, holds other files or folders (they would be lost with
    it), or holds the source itself.
    """
    target = Path(output_dir).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"export: output_dir {output_dir} is a file; give a folder")
    above = next((parent for parent in target.parents if parent.exists()), target)
    if not above.is_dir():
        raise ValueError(f"export: output_dir {output_dir} lies in {above}, which is a file; give another folder")
    if os.path.ismount(target) or not os.access(above, os.W_OK):
        reason = "is a mount point" if os.path.ismount(target) else f"lies in {above}, which cannot be written"
        raise ValueError(
            f"export: output_dir {output_dir} {reason}; the export is made beside its place and renamed; give a folder "
            f"inside one that can be written, such as {target / 'model'}"
        )
    opened = Path(source).expanduser().resolve()
    if source and opened.is_dir() and (target == opened or target in opened.parents):
        raise ValueError(f"export: output_dir {output_dir} holds the source {source}; give another folder")
    if not target.is_dir() or not any(target.iterdir()):
        return target
    if not overwrite:
        raise ValueError(f"export: output_dir {output_dir} is not empty; give another folder, or --overwrite")
    if not _is_model(target):
        raise ValueError(
            f"export: output_dir {output_dir} holds no model ({REPORT_FILE}, or a config.json with a model_type), and "
            "overwriting replaces the whole folder; empty it yourself, or give another one"
        )
    others = sorted(
        path.name
        for path in target.iterdir()
        if not path.is_dir() and not any(fnmatch(path.name, known) for known in _MODEL_FILES)
    )
    if others:
        raise ValueError(
            f"export: output_dir {output_dir} holds files that are no model's, which overwriting would lose: "
            f"{', '.join(others[:6])}; move them, or give another folder"
        )
    folders = sorted(path.name for path in target.iterdir() if path.is_dir() and not _is_module(path))
    if folders:
        raise ValueError(
            f"export: output_dir {output_dir} holds folders, which overwriting would lose: {', '.join(folders[:6])}; "
            "move them, or give another folder"
        )
    return target


def _is_model(folder: Path) -> bool:
    if (folder / REPORT_FILE).is_file():
        return True
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "model_type" in content


def _is_module(folder: Path) -> bool:
    return folder.name in _MODEL_FOLDERS and all(path.name == "config.json" for path in folder.iterdir())


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
