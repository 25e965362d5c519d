"""From token states to vectors: against the definition, with gradients, in frames with room left, and the files that
say which way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynabert import Pooling
from dynabert.modeling import pooling as pooling_module
from dynabert.modeling.pooling import LENGTH_FILE, MODULES_FILE

WAYS = [Pooling("mean", True), Pooling("mean", False), Pooling("cls", True), Pooling("cls", False)]
NAMES = [f"{way.mode}-{'normalized' if way.normalize else 'raw'}" for way in WAYS]
LENGTHS = [3, 0, 1, 5, 0, 0]  # empty ones inside and at the end, where a frame has them


def borders(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def states(rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def by_definition(way: Pooling, x: Tensor, lengths: list[int]) -> Tensor:
    """Text by text."""
    found = []
    for own in x[: sum(lengths)].double().split(lengths):
        vector = torch.zeros(x.shape[1], dtype=torch.float64)
        if len(own):
            vector = own[0] if way.mode == "cls" else own.mean(dim=0)
            vector = vector / vector.pow(2).sum().sqrt() if way.normalize else vector
        found.append(vector)
    return torch.stack(found)


# Numbers
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_definition(way: Pooling, dtype: torch.dtype) -> None:
    x = states(9, dtype)
    found = way(x, borders(LENGTHS))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    bound = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found.double(), by_definition(way, x, LENGTHS), rtol=bound, atol=bound)


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
@pytest.mark.parametrize("lengths", [LENGTHS, [4, 5], [0, 9]])
def test_rows_past_the_last_border_count_for_nothing(way: Pooling, lengths: list[int]) -> None:
    x = states(9)
    wanted = way(x, borders(lengths))
    for rest in (float("nan"), float("inf"), 1e300):
        room = torch.cat([x, torch.full((6, 7), rest, dtype=torch.float64)]).requires_grad_()
        found = way(room, borders([*lengths, 0, 0]))
        assert torch.equal(found[: len(lengths)], wanted)
        assert torch.equal(found[len(lengths) :], torch.zeros(2, 7, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(found.sum(), room)
        assert gradient.isfinite().all()
        assert not gradient[9:].any()


def test_the_same_text_gives_the_same_bits_wherever_it_stands() -> None:
    x = states(5, torch.float32)
    alone = Pooling()(x, borders([5]))
    for before in (1, 4, 33):
        found = Pooling()(torch.cat([states(before, torch.float32), x, x]), borders([before, 5, 5]))
        assert torch.equal(found[1:], alone.expand(2, -1))


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_gradients(way: Pooling) -> None:
    lengths = [3, 1, 0, 5]
    if way.normalize:
        lengths.remove(0)  # a vector of zeros has no direction
    x = states(9).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: way(given, borders(lengths)), (x,))


def test_the_two_ways_of_adding_agree() -> None:
    """On a GPU segments are reduced, on a CPU rows are added by index."""
    offsets, weights = borders(LENGTHS), states(len(LENGTHS))
    found = []
    for add in (
        pooling_module._sums,
        lambda x, c: torch.segment_reduce(x, "sum", offsets=c, axis=0, unsafe=True),
    ):
        x = torch.cat([states(9), states(4)]).requires_grad_()  # with rows of nobody
        sums = add(x, offsets)
        found.append((sums, *torch.autograd.grad((sums * weights).sum(), x)))
    for ours, others in zip(*found, strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_torchs_default_device_is_not_asked(way: Pooling) -> None:
    x, offsets = states(9), borders(LENGTHS)
    with torch.device("meta"):
        assert way(x, offsets).device.type == "cpu"


@pytest.mark.parametrize(
    ("options", "error", "wrong"),
    [
        ({"mode": "max"}, ValueError, "mode is 'max'; allowed: 'mean', 'cls'"),
        ({"normalize": 1}, TypeError, "normalize must be True or False; got 1"),
        ({"max_seq_length": 0}, ValueError, "max_seq_length is 0; allowed: None, or a whole number from 1"),
        ({"max_seq_length": True}, ValueError, "max_seq_length is True"),
        ({"max_seq_length": "128"}, ValueError, "max_seq_length is '128'"),
    ],
)
def test_refusals(options: dict[str, Any], error: type[Exception], wrong: str) -> None:
    with pytest.raises(error, match=f"Pooling: {wrong}"):
        Pooling(**options)


# Files
# ----------------------------------------------------------------------------------------------------------------


def transformers_modules(*kinds: str) -> list[dict[str, Any]]:
    return [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]


def write(folder: Path, modules: Any, pooling: Any = None, length: Any = None) -> str:
    """A folder as sentence-transformers leaves it, without the network."""
    (folder / MODULES_FILE).write_text(modules if isinstance(modules, str) else json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        content = pooling if isinstance(pooling, str) else json.dumps(pooling)
        (folder / "1_Pooling" / "config.json").write_text(content)
    if length is not None:
        (folder / LENGTH_FILE).write_text(length if isinstance(length, str) else json.dumps(length))
    return str(folder)


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
@pytest.mark.parametrize("length", [None, 20])
def test_what_is_written_is_read_again(tmp_path: Path, way: Pooling, length: int | None) -> None:
    wanted = Pooling(way.mode, way.normalize, length)
    Pooling("mean", True, 99).save(tmp_path, 24)  # an earlier one leaves nothing that counts
    wanted.save(tmp_path, 24)
    assert Pooling.of_checkpoint(str(tmp_path), {}) == wanted
    modules = json.loads((tmp_path / MODULES_FILE).read_text())
    kinds = ["Transformer", "Pooling", *(["Normalize"] if way.normalize else [])]
    assert [module["type"] for module in modules] == [f"sentence_transformers.models.{kind}" for kind in kinds]
    written = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert written["word_embedding_dimension"] == 24


def test_a_folder_of_a_network_alone_says_nothing(tmp_path: Path) -> None:
    assert Pooling.of_checkpoint(str(tmp_path), {}) is None


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True, "include_prompt": True}, "cls"),
        ({"embedding_dimension": 24, "pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_every_form_of_the_file(tmp_path: Path, content: dict[str, Any], mode: str) -> None:
    modules = transformers_modules("Transformer", "Pooling", "Normalize")
    modules[1]["type"] = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"  # as newer ones call it
    source = write(tmp_path, modules, content, {"max_seq_length": 128, "do_lower_case": False})
    assert Pooling.of_checkpoint(source, {}) == Pooling(mode, True, 128)


@pytest.mark.parametrize(
    ("modules", "pooling", "length", "wrong"),
    [
        (
            transformers_modules("Transformer", "Pooling", "Dense"),
            {"pooling_mode": "mean"},
            None,
            r"modules\.json has a module 'sentence_transformers\.models\.Dense'; allowed: Transformer, Pooling and "
            "Normalize",
        ),
        (transformers_modules("Transformer"), None, None, r"modules\.json names no Pooling; allowed: one"),
        (transformers_modules("Transformer", "Pooling"), None, None, r"has no 1_Pooling/config\.json, which modules"),
        (
            transformers_modules("Transformer", "Pooling"),
            {"pooling_mode_max_tokens": True},
            None,
            "pools by pooling_mode_max_tokens; allowed: one of mean, cls",
        ),
        (
            transformers_modules("Transformer", "Pooling"),
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            None,
            "pools by mean, cls; allowed: one of",
        ),
        (transformers_modules("Transformer", "Pooling"), {"pooling_mode": "max"}, None, "pools by max; allowed"),
        (transformers_modules("Transformer", "Pooling"), {}, None, "pools by nothing; allowed: one of mean, cls"),
        ("[{", None, None, r"modules\.json is damaged \(.*\); fetch it again"),
        ({"Transformer": 1}, None, None, r"modules\.json is not what sentence-transformers writes there"),
        (["Transformer"], None, None, r"modules\.json is not what sentence-transformers writes there"),
        (transformers_modules("Transformer", "Pooling"), "{", None, r"1_Pooling/config\.json is damaged"),
        (transformers_modules("Transformer", "Pooling"), [], None, r"1_Pooling/config\.json is not what"),
        (
            transformers_modules("Transformer", "Pooling"),
            {"pooling_mode": "mean"},
            "no json",
            rf"{LENGTH_FILE} is damaged",
        ),
        (
            transformers_modules("Transformer", "Pooling"),
            {"pooling_mode": "mean"},
            {"max_seq_length": -1},
            "max_seq_length is -1; allowed",
        ),
    ],
)
def test_files_that_are_refused(tmp_path: Path, modules: Any, pooling: Any, length: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Pooling.of_checkpoint(write(tmp_path, modules, pooling, length), {})
