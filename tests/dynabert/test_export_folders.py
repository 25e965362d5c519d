"""An export appears whole or not at all, and what was there before goes only when the new one has passed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from dynabert import ElasticBertForSequenceClassification
from dynabert.export import export_subnet, folders, parity
from dynabert.modeling import files
from tests.dynabert.tiny_texts import tiny_folder, tiny_model, tiny_tokenizer


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fail(error: BaseException) -> Any:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("how", ["differs", "disk", "interrupted", "not opened", "renaming"])
def test_a_failed_export_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, there: bool
) -> None:
    target = tmp_path / "new" / "out"
    if there:
        export_subnet(tiny_model(seed=1), None, None, target)
    before = contents(tmp_path)
    error: type[BaseException] = RuntimeError
    if how == "differs":
        opened = parity.opened_hf
        monkeypatch.setattr(
            parity,
            "opened_hf",
            lambda *given: parity.Opened([one + 2e-4 for one in opened(*given).logits], None, "a broken tool"),
        )
    elif how == "disk":
        error = OSError
        full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        monkeypatch.setattr(files, "save_file", fail(full))  # what safetensors raises on a full disk
    elif how == "interrupted":
        error = KeyboardInterrupt
        monkeypatch.setattr(parity, "compare", fail(KeyboardInterrupt()))
    elif how == "not opened":
        error = ValueError
        monkeypatch.setattr(parity, "opened_hf", fail(ValueError("this file cannot be opened")))
    else:
        error = OSError
        rename = Path.rename

        def refuse(self: Path, to: Path) -> Path:
            if ".part-" in self.name:
                raise OSError(18, "refused")
            return rename(self, to)

        monkeypatch.setattr(Path, "rename", refuse)
    messages = {"disk": rf"cannot write {target}: .*No space left on device \(os error 28\); nothing was exported"}
    messages["differs"] = (
        r"a broken tool answers otherwise than the source: logits differ by 0.0002\d*; allowed: 9.16e-05; nothing was"
    )
    with pytest.raises(error, match=messages.get(how)):
        export_subnet(tiny_model(), None, "d0.5", target, overwrite=True)
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == ([tmp_path / "new"] if there else [])  # no folder left of the way there
    if there:
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
        ElasticBertForSequenceClassification.from_pretrained(target)


def test_a_full_disk_under_each_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tokenizers raises a plain Exception; a fault of ours stays what it is."""
    tokenizer = tiny_tokenizer()
    for error, wanted in (
        (Exception("No space left on device (os error 28)"), OSError),
        (OSError(28, "No space left on device"), OSError),
        (KeyError("ours"), KeyError),
    ):
        monkeypatch.setattr(tokenizer, "save_pretrained", fail(error))
        with pytest.raises(wanted):
            export_subnet(tiny_model(), tokenizer, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    export_subnet(tiny_model(), None, "w0.5", target, format="elastic")
    assert (target / "elastic_bert.py").is_file()
    with pytest.raises(ValueError, match="is not empty; give another folder, or --overwrite"):
        export_subnet(tiny_model(), None, "d0.5", target)
    report = export_subnet(tiny_model(), None, "d0.5", target, overwrite=True)
    assert {path.name for path in target.iterdir()} == {*report.files, "export_report.json"}
    assert list(tmp_path.iterdir()) == [target]
    assert ElasticBertForSequenceClassification.from_pretrained(target).config.num_hidden_layers == 2


def test_what_is_no_model_is_never_replaced(tmp_path: Path) -> None:
    """Overwriting removes a whole folder: not somebody's home, not a training run with its checkpoints."""
    home, run, source = tmp_path / "home", tmp_path / "run", tmp_path / "source"
    home.mkdir()
    (home / "thesis.txt").write_text("x")
    tiny_folder(run)
    (run / "checkpoint-5").mkdir()
    tiny_folder(source)
    (tmp_path / "file").write_text("x")
    before = contents(tmp_path)
    for target, message in (
        (home, "holds no model .* and overwriting replaces the whole folder"),
        (run, "holds folders, which overwriting would lose: checkpoint-5"),
        (source, "holds the source"),
        (tmp_path, "holds the source"),
        (tmp_path / "file", "is a file; give a folder"),
    ):
        model = ElasticBertForSequenceClassification.from_pretrained(source)
        with pytest.raises(ValueError, match=message):
            export_subnet(model, None, None, target, overwrite=True)
    assert contents(tmp_path) == before


def test_an_empty_folder_and_a_link_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    export_subnet(tiny_model(), None, None, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.safetensors").is_file()
    monkeypatch.chdir(tmp_path)
    export_subnet(tiny_model(), None, None, "deep/er/out")
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "deep" / "er" / "out").stat().st_mode & 0o777 == 0o777 & ~umask


def test_staged_swaps_at_the_end_alone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with folders.staged(target, overwrite=True) as work:
        (work / "new").write_text("new")
        assert work.parent == tmp_path
        assert (target / "old").is_file()
    assert contents(tmp_path) == {"out/new": b"new"}


def test_what_appeared_meanwhile_stays(tmp_path: Path) -> None:
    def export() -> None:
        with folders.staged(tmp_path / "other"):
            (tmp_path / "other").mkdir()
            (tmp_path / "other" / "theirs").write_text("x")

    with pytest.raises(ValueError, match="was filled by somebody else meanwhile; nothing was exported"):
        export()
    assert contents(tmp_path) == {"other/theirs": b"x"}


@pytest.mark.parametrize("after", [0, 1])
def test_interrupted_while_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Before, or right after, the old folder has stepped aside."""
    target, rename, calls = tmp_path / "out", Path.rename, [0]
    target.mkdir()
    (target / "old").write_text("old")

    def interrupted(self: Path, to: Path) -> Path:
        calls[0] += 1
        if calls[0] == 1:
            if after:
                rename(self, to)
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), folders.staged(target, overwrite=True):
        pass
    assert contents(tmp_path) == {"out/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_of_another_kind_are_not_overwritten(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.json").write_text('{"port": 80}')
    with pytest.raises(ValueError, match="holds no model"):
        export_subnet(tiny_model(), None, None, project, overwrite=True)
    model = tmp_path / "model"
    export_subnet(tiny_model(), None, None, model)
    export_subnet(tiny_model(seed=1), None, None, model, overwrite=True)
    (model / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"would lose: thesis\.tex"):
        export_subnet(tiny_model(), None, None, model, overwrite=True)
    assert (model / "thesis.tex").read_text() == "years of work"


def test_places_that_cannot_be_renamed_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"cannot be written; .* such as"):
        export_subnet(tiny_model(), None, None, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(ValueError, match="is a mount point"):
        export_subnet(tiny_model(), None, None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["hf", "elastic"])
def test_a_tokenizer_that_pads_on_the_left(tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    report = export_subnet(tiny_model(), tokenizer, "d0.5", tmp_path / "out", format=form)
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.padding_side == "left"
    assert report.padding_side_changed == (form == "hf") == ("pads on the left" in caplog.text)
    assert saved.padding_side == ("right" if form == "hf" else "left")


def test_places_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for below in ("x", "x/y"):
        with pytest.raises(ValueError, match=r"output_dir .* lies in .*file, which is a file; give another folder"):
            export_subnet(tiny_model(), None, None, tmp_path / "file" / below)
    with pytest.raises(ValueError, match=r"output_dir / is a mount point"):
        export_subnet(tiny_model(), None, None, "/")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"new{number}" for number in range(30)])
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, the model 61; use the model's own tokenizer"):
        export_subnet(tiny_model(), tokenizer, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
