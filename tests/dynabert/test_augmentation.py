"""Word replacement: its rate, its draws, its cache, its table of neighbours, and the command that trains on it."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dynabert.cli import main
from dynabert.cli.options import UsageError
from dynabert.cli.train import parse
from dynabert.cli.train_augment import Asked, check_options
from dynabert.data import Examples, NeighbourWords, Slot, augment, default_cache_dir, default_copies
from dynabert.data.candidate_words import STOP_WORDS, content_words, in_case_of, is_content_word
from tests.dynabert.test_distillation_pipeline import options_of

ROOT = Path(__file__).parents[2]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# 26 words of one letter four times, each with 20 made-up neighbours.
TABLE = {letter * 4: [f"{letter * 4}{LETTERS[i]}x" for i in range(20)] for letter in LETTERS}


def long_texts(count: int, words: int = 40, seed: int = 0) -> tuple[str, ...]:
    chance = random.Random(seed)
    return tuple(" ".join(chance.choices(sorted(TABLE), k=words)) for _ in range(count))


class Counted:
    """A source of candidates that counts how often it is asked."""

    def __init__(self, table: dict[str, list[str]] = TABLE) -> None:
        self.inner = NeighbourWords(table, "neighbours(made up)")
        self.name, self.digest, self.asked = self.inner.name, self.inner.digest, 0

    def find(self, texts: Sequence[str], count: int) -> Iterator[list[Slot]]:
        self.asked += 1
        return self.inner.find(texts, count)


# Draws


@pytest.mark.parametrize("probability", [0.1, 0.4, 0.9, 1.0])
def test_words_are_replaced_at_the_rate_asked_for(probability: float) -> None:
    examples = Examples(long_texts(50))
    found = augment(examples, NeighbourWords(TABLE), copies=10, probability=probability, num_candidates=15)
    assert found.texts[:50] == examples.texts
    assert len(found) == 50 + 50 * 10  # 40 words: two copies never come out the same
    replaced, drawn = 0, dict.fromkeys(range(20), 0)
    for index, text in enumerate(found.texts[50:]):
        words, original = text.split(" "), examples.texts[index // 10].split(" ")
        assert len(words) == len(original)
        assert words != original
        for word, before in zip(words, original, strict=True):
            if word != before:
                replaced += 1
                drawn[TABLE[before].index(word)] += 1
    # 20,000 words; five standard deviations.
    share = replaced / 20_000
    assert abs(share - probability) <= 5 * (probability * (1 - probability) / 20_000) ** 0.5 + 1e-3
    for place, count in drawn.items():
        wanted = replaced / 15 if place < 15 else 0
        assert abs(count - wanted) <= 5 * wanted**0.5, f"candidate {place}"


def test_labels_are_dropped_and_the_source_tells_what_was_done() -> None:
    examples = Examples(long_texts(3), labels=(0, 1, 0), label_names=("no", "yes"), source="train.tsv")
    found = augment(examples, Counted(), copies=2, seed=7)
    assert (found.labels, found.label_names, found.num_labels) == (None, (), 0)
    start = "train.tsv + neighbours(made up), p 0.4, M 15, N 2, seed 7, digest "
    assert found.source.startswith(start)
    assert len(found.source) == len(start) + 12


def test_draws_follow_the_seed_and_the_example_alone() -> None:
    texts = long_texts(6)
    whole = augment(Examples(texts), Counted(), copies=3)
    assert whole == augment(Examples(texts), Counted(), copies=3)
    assert whole.texts[6:] != augment(Examples(texts), Counted(), copies=3, seed=43).texts[6:]
    # What other examples there are does not matter, and more copies begin with the same ones.
    assert augment(Examples(texts[:2]), Counted(), copies=3).texts[2:] == whole.texts[6:12]
    assert augment(Examples(texts[:1]), Counted(), copies=9).texts[1:4] == whole.texts[6:9]


def test_both_texts_of_a_pair_are_altered() -> None:
    examples = Examples(long_texts(4), long_texts(4, seed=1))
    found = augment(examples, Counted(), copies=5)
    assert found.seconds is not None
    assert len(found) == 4 + 20
    for index in range(20):
        for column, before in ((found.texts, examples.texts), (found.seconds, examples.seconds)):
            assert before is not None
            original = before[index // 5].split(" ")
            changed = sum(a != b for a, b in zip(column[4 + index].split(" "), original, strict=True))
            assert 4 <= changed <= 30  # of 40, 16 expected


def test_a_copy_differs_and_the_same_one_is_kept_once() -> None:
    table = {"film": ["movie", "picture"]}
    found = augment(Examples(("the film", "of the 4", "a film, a film")), NeighbourWords(table), copies=300)
    assert found.texts[:3] == ("the film", "of the 4", "a film, a film")
    assert set(found.texts[3:5]) == {"the movie", "the picture"}  # two copies are all there are
    rest = found.texts[5:]
    assert len(set(rest)) == len(rest) == 8  # three words at each of two places, less the original
    assert "a film, a film" not in rest


def test_what_stands_between_words_stays() -> None:
    found = augment(
        Examples(("  (Film)  --film's\tFILM\n",)), NeighbourWords({"film": ["movie"]}), copies=1, probability=1
    )
    assert found.texts[1] == "  (Movie)  --film's\tMOVIE\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"copies": 0}, "augment: copies is 0; allowed: 1 or more"),
        ({"probability": 0.0}, r"augment: probability is 0\.0; allowed: above 0, up to 1"),
        ({"probability": 1.5}, r"augment: probability is 1\.5; allowed"),
        ({"probability": float("nan")}, "augment: probability is nan; allowed"),
        ({"num_candidates": 0}, "augment: num_candidates is 0; allowed: 1 or more"),
    ],
)
def test_numbers_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment(Examples(("aaaa",)), Counted(), **{"copies": 1} | changes)


def test_text_without_a_word_to_replace_is_refused(tmp_path: Path) -> None:
    examples = Examples(("ein Film", "une histoire"), source="fremd.tsv")
    with pytest.raises(ValueError, match=r"neighbours\(made up\) has no candidate for any word of fremd.tsv \(2 ex"):
        augment(examples, Counted(), copies=1, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


# Words


def test_words_that_count() -> None:
    assert [
        word for _, _, word in content_words("The film's 4x3 well-made plot is n't a naïve B-movie, it 's O’Hara")
    ] == [
        "film's",
        "well",
        "made",
        "plot",
        "naïve",
        "movie",
        "O’Hara",
    ]
    assert not any(map(is_content_word, ("the", "Not", "don't", "don’t", "x", "4th", "two_words", "a b", "", "...")))
    assert all(word == word.lower() for word in STOP_WORDS)


def test_the_case_of_the_word_is_kept() -> None:
    assert in_case_of("good", "fine") == "fine"
    assert in_case_of("Good", "fine") == "Fine"
    assert in_case_of("GOOD", "fine") == "FINE"
    assert in_case_of("Good", "McCoy") == "McCoy"


# The table of neighbours


def written(path: Path, rows: Sequence[str], header: str = "word\tneighbours") -> Path:
    raw = "".join(f"{line}\n" for line in (header, *rows)).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["near.tsv", "near.tsv.gz"])
def test_neighbours_are_read(tmp_path: Path, name: str) -> None:
    rows = [
        "film\tmovie:0.91 The:0.9 35mm:0.8 Film:0.8 cinema:0.60 story:0.59",
        "the\tthis:0.9",
        "rare\t",
        "a:b\tc:1.0",
    ]
    found = NeighbourWords.read(written(tmp_path / name, rows))
    assert len(found) == 1
    assert found.name == f"neighbours({name})"
    assert found.words("Film", 15) == ("Movie", "Cinema")
    assert found.words("film", 1) == ("movie",)
    assert found.words("story", 15) == ()
    assert list(found.find(["a film", "none"], 2)) == [[Slot(2, 6, ("movie", "cinema"))], []]
    wider = NeighbourWords.read(tmp_path / name, minimum_cosine=0.5)
    assert wider.words("film", 15) == ("movie", "cinema", "story")
    assert found.digest != wider.digest
    assert found.digest == NeighbourWords({"film": ("movie", "cinema")}).digest


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (
            "word\tnear",
            "film\tmovie:0.9",
            r"line 1: no column 'neighbours'; found 'word', 'near'; allowed: .*'word' and",
        ),
        ("word\tneighbours", "film\tmovie", r"line 3: a neighbour of 'film' is no word with its cosine; found 'movie'"),
        ("word\tneighbours", "film\tmovie:high", r"line 3: .* found 'movie:high'; allowed: such as movie:0\.91"),
        ("word\tneighbours", "film\tmovie:91", r"line 3: .* found 'movie:91'"),
        ("word\tneighbours", "film\tmovie:nan", r"line 3: .* found 'movie:nan'"),
        ("word\tneighbours", "film\t:0.9", r"line 3: .* found ':0\.9'"),
        ("word\tneighbours", " \tmovie:0.9", r"line 3: the word is empty"),
        ("word\tneighbours", "Plot\tmovie:0.9", r"line 3: the word 'plot' stands twice; allowed: one row"),
        ("word\tneighbours", "film\tmovie:0.9\tcinema:0.8", r"line 3: 3 fields between tabs"),
    ],
)
def test_a_bad_table_is_named_with_its_line(tmp_path: Path, header: str, row: str, message: str) -> None:
    path = written(tmp_path / "near.tsv", ["plot\tstory:0.8", row], header)
    with pytest.raises(ValueError, match=rf"near\.tsv, {message}"):
        NeighbourWords.read(path)


@pytest.mark.parametrize("absent", ["word", "neighbours"])
def test_a_line_without_a_key_is_named(tmp_path: Path, absent: str) -> None:
    lines = [{"word": "film", "neighbours": "movie:0.9"}, {"word": "good", "neighbours": "fine:0.9"}]
    del lines[1][absent]
    path = tmp_path / "near.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.raises(ValueError, match=rf"near\.jsonl, line 2: no '{absent}' here; found '\w+'; allowed: 'word' and"):
        NeighbourWords.read(path)


def test_a_table_of_no_use_is_refused(tmp_path: Path) -> None:
    for rows in ([], ["film\tmovie:0.3"], ["the\tthis:0.9"], ["film\tthe:0.9 film:1.0"]):
        with pytest.raises(
            ValueError, match=r"neighbours\(near\.tsv\): no word has a neighbour that may take its place"
        ):
            NeighbourWords.read(written(tmp_path / "near.tsv", rows))
    with pytest.raises(FileNotFoundError, match=r"none\.tsv"):
        NeighbourWords.read(tmp_path / "none.tsv")
    with pytest.raises(ValueError, match="minimum_cosine is 6; allowed: -1 to 1"):
        NeighbourWords.read(tmp_path / "near.tsv", minimum_cosine=6)


# The cache


@pytest.mark.parametrize("seconds", [None, long_texts(4, seed=9)])
def test_what_was_made_is_read_back(tmp_path: Path, seconds: tuple[str, ...] | None) -> None:
    examples, source = Examples(long_texts(4), seconds), Counted()
    options: dict[str, Any] = {"copies": 3, "cache_dir": tmp_path / "new" / "folder"}
    fresh = augment(examples, source, **options)
    asked = source.asked
    assert augment(examples, source, **options) == fresh
    assert augment(examples, source, copies=3) == fresh
    assert source.asked == 2 * asked  # the call without a cache
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert file.name.startswith("augmented-")
    assert file.stat().st_mode & 0o777 == 0o644


def test_whatever_changes_the_copies_has_its_own_file(tmp_path: Path) -> None:
    texts = long_texts(4)
    sets = [Examples(texts), Examples(texts[:3]), Examples(texts, texts), Examples((texts[0] + "!", *texts[1:]))]
    made = {augment(examples, Counted(), copies=3, cache_dir=tmp_path).source for examples in sets}
    for changes in ({"copies": 4}, {"probability": 0.5}, {"num_candidates": 3}, {"seed": 5}):
        made.add(augment(sets[0], Counted(), **{"copies": 3, "cache_dir": tmp_path} | changes).source)
    made.add(augment(sets[0], Counted(TABLE | {"aaaa": ["bbbb"]}), copies=3, cache_dir=tmp_path).source)
    assert len(made) == len(list(tmp_path.iterdir())) == 9


def damage(file: Path, how: str) -> None:
    raw = file.read_bytes()
    lines = gzip.decompress(raw).decode().splitlines(keepends=True)
    if how == "cut":
        file.write_bytes(raw[: len(raw) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "no gzip":
        file.write_text("\n".join(lines))
    elif how == "bit":
        file.write_bytes(raw[:40] + bytes([raw[40] ^ 1]) + raw[41:])
    elif how == "line lost":
        file.write_bytes(gzip.compress("".join(lines[:-1]).encode()))
    elif how == "text changed":
        file.write_bytes(gzip.compress("".join([*lines[:-1], '["other"]\n']).encode()))
    else:
        file.write_bytes(gzip.compress(b"[1]\n2\n"))


@pytest.mark.parametrize("how", ["cut", "empty", "no gzip", "bit", "line lost", "text changed", "other JSON"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, how: str) -> None:
    examples, source = Examples(long_texts(8)), Counted()
    fresh = augment(examples, source, copies=3, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    damage(file, how)
    with pytest.warns(UserWarning, match=rf"augment: {file} is damaged \(.*\); it is made anew"):
        assert augment(examples, source, copies=3, cache_dir=tmp_path) == fresh
    assert source.asked == 2
    assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="the copies are not kept for the next time: no space left"):
        augment(Examples(long_texts(2)), Counted(), copies=1, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYNABERT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == Path.home() / ".cache" / "dynabert"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/mine")
    assert default_cache_dir() == Path("/var/mine/dynabert")
    monkeypatch.setenv("DYNABERT_CACHE", "/big/disk")
    assert default_cache_dir() == Path("/big/disk")


def test_copies_by_task() -> None:
    assert [default_copies(task) for task in ("mnli", "qqp", "sst2", "qnli", "rte", None)] == [10, 10, 20, 20, 30, 30]
    assert [default_copies(task) for task in ("MNLI", "QQP", "SST-2", "sst_2", "mine")] == [10, 10, 20, 20, 30]


# The command


def flags(tmp_path: Path, *augmentation: str, **more: str) -> list[str]:
    """Options of a small run that is augmented; its texts are ``good film 0`` and the like."""
    rows = ["film\tmovie:0.9 picture:0.8 plot:0.7 story:0.7", "good\tgreat:0.9 fine:0.8 bad:0.7", "bad\tpoor:0.9"]
    written(tmp_path / "near.tsv", rows)
    given = {"cache_dir": str(tmp_path / "cache")} | more
    words = augmentation or ("neighbours", str(tmp_path / "near.tsv"))
    return [*options_of(tmp_path, **given), "--augment", *words]


def test_the_command_trains_on_augmented_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = flags(tmp_path, augment_copies="5")
    assert main(begun) == 0
    told = capsys.readouterr().err
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    sets = settings["data"]
    total = sets["unlabelled"]["examples"]
    assert sets["train"]["examples"] == 12
    assert 12 + 12 * 3 <= total <= 12 + 12 * 5
    assert " + neighbours(near.tsv), p 0.4, M 15, N 5, seed 42, digest " in sets["unlabelled"]["source"]
    assert f"12 examples to train on, {total} texts to distil on, 0 to score" in told
    assert f"{total - 12} copies that differ of 12 examples" in told
    for part, examples in (("teacher", 12), ("width", total), ("depth", total)):
        history = json.loads((tmp_path / "out" / part / "complete.json").read_text())["history"]
        assert max(entry.get("step", 0) for entry in history) == -(-examples // 32), part
    # The same again goes on, from the cache; another augmentation is another run.
    with monkeypatch.context() as patch:
        patch.setattr(NeighbourWords, "find", None)
        assert main(begun) == 0
    assert "depth: complete, not repeated" in capsys.readouterr().err
    assert main([*begun, "--augment_probability", "0.5"]) == 1
    error = capsys.readouterr().err
    assert "was begun with other settings" in error
    assert "data.unlabelled.source was" in error
    assert "p 0.5" in error
    assert main(options_of(tmp_path)) == 1
    assert "was begun with other settings" in capsys.readouterr().err


def test_augmentation_comes_after_the_limit_of_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(tmp_path, max_train_samples="4", augment_copies="3", max_steps="1")) == 0
    assert "copies that differ of 4 examples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("neighbours near.tsv", Asked(None, "near.tsv")),
        ("masked_lm", Asked("start", None)),
        ("masked_lm bert", Asked("bert", None)),
        ("masked_lm neighbours near.tsv", Asked("start", "near.tsv")),
        ("masked_lm bert neighbours near.tsv", Asked("bert", "near.tsv")),
    ],
)
def test_the_words_of_the_option(words: str, wanted: Asked) -> None:
    argv = ["--model_name_or_path", "start", "--train_file", "a.tsv", "--use_cpu", "True", "--augment", *words.split()]
    assert check_options(*parse(argv)) == wanted


@pytest.mark.parametrize("words", ["neighbours", "neighbours a b", "synonyms a", "masked_lm a b", "masked_lm a b c"])
def test_words_of_the_option_that_say_nothing(words: str) -> None:
    argv = ["--model_name_or_path", "start", "--train_file", "a.tsv", "--use_cpu", "True", "--augment", *words.split()]
    with pytest.raises(UsageError, match=r"--augment is .*; allowed: neighbours FILE; masked_lm \[MODEL\]; masked_lm"):
        check_options(*parse(argv))


def test_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code, message in (
        (flags(tmp_path, unlabelled_file="more.tsv"), 2, "--augment and --unlabelled_file both say what"),
        (flags(tmp_path, distillation="False"), 2, "with --distillation False every stage needs labels"),
        (options_of(tmp_path, augment_copies="3"), 2, "--augment_copies belongs to --augment"),
        (options_of(tmp_path, augment_probability="0.3"), 2, "--augment_probability belongs to --augment"),
        (options_of(tmp_path, augment_candidates="3"), 2, "--augment_candidates belongs to --augment"),
        (flags(tmp_path, augment_copies="0"), 1, "copies is 0; allowed: 1 or more"),
        (flags(tmp_path, augment_probability="2"), 1, "probability is 2.0; allowed: above 0, up to 1"),
        (flags(tmp_path, "neighbours", str(tmp_path / "none.tsv")), 1, "there is no file"),
        (flags(tmp_path, "masked_lm"), 1, "has no trained masked-LM head"),
    ):
        assert main(argv) == code, argv
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


SCRIPT = """
import os, sys
from dynabert.cli.train_augment import Asked, augmented, check_options
from dynabert.cli.train import parse, read_inputs
from dynabert.data import NeighbourWords
inputs, args = parse(sys.argv[1:])
if args.process_index:
    NeighbourWords.find = None  # the second process has the copies from the cache
train = read_inputs(inputs)[0]
found = augmented(inputs, args, check_options(inputs, args), train, lambda _: None)
print(f"source of {os.environ['RANK']}: {found.source}\\n", end="", flush=True)
"""


def test_only_the_first_process_computes(tmp_path: Path) -> None:
    (tmp_path / "augment.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(tmp_path / "augment.py")]
    command += flags(tmp_path, augment_copies="3", ddp_backend="gloo")[1:]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = sorted(line for line in done.stdout.splitlines() if line.startswith("source of "))
    assert first.removeprefix("source of 0") == second.removeprefix("source of 1")
