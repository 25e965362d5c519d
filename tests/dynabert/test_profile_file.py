"""A profile's file: what is damaged is named, the device must be the network's, and writing fails without loss."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynabert.profile import DeviceProfile
from tests.dynabert.test_profile import some_profile


def _set(*keys: Any) -> Callable[[Any], None]:
    """Sets the value under all keys but the last to the last."""

    def change(values: Any) -> None:
        for key in keys[:-2]:
            values = values[key]
        values[keys[-2]] = keys[-1]

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_set("cells", 1, "costs", "fixed_ms", -5), "cells: 1: fixed_ms is -5"),
        (_set("cells", 0, "costs", "fixed_ms", float("nan")), "cells: 0: fixed_ms is nan"),
        (_set("cells", 0, "costs", "layer_ms", "abc"), "layer_ms is 'abc'"),
        (_set("cells", 0, "costs", "head_ms", [0.0]), "head_ms is (0.0,); allowed: 2 times"),
        (_set("cells", 0, "costs", "head_nodes", []), "head_nodes is ()"),
        (_set("cells", 0, "costs", "neuron_nodes", [3072, 16]), "neuron_nodes is (3072, 16); allowed: rising"),
        (_set("cells", 0, "costs", "neuron_ms", 0, "x"), "neuron_ms is 'x'"),
        (_set("cells", 0, "costs", "neuron_step", 0), "neuron_step is 0"),
        (_set("cells", 0, "batch_size", "1"), "cells: 0: batch_size is '1'"),
        (_set("cells", 0, "error", "mean", float("inf")), "error: mean is inf"),
        (_set("cells", []), "cells is empty"),
        (_set("cells", None), "cells: 'NoneType'"),
        (lambda values: values["cells"].pop(), "cells has no"),
        (lambda values: values["cells"].append(values["cells"][0]), "cells holds a point twice"),
        (_set("encoder", "layer_heads", 4), "encoder: layer_heads is 4"),
        (_set("encoder", "layer_heads", []), "encoder: layer_heads is ()"),
        (_set("encoder", "layer_neurons", [3072]), "encoder: layer_heads names 6 layers and layer_neurons 1"),
        (_set("facts", None), "facts: "),
        (_set("facts", "extra", 1), "facts: "),
        (_set("facts", "threads", "1"), "facts: threads is '1'"),
        (_set("notes", None), "notes: "),
        (lambda values: values.pop("seed"), "there is no 'seed'"),
    ],
)
def test_a_damaged_field_is_named(tmp_path: Path, change: Callable[[Any], None], field: str) -> None:
    values = some_profile().to_dict()
    values = json.loads(json.dumps(values))
    change(values)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ValueError, match="the profile is damaged: ") as error:
        DeviceProfile.load(path)
    assert field in str(error.value)
    assert str(path) in str(error.value)


def test_a_profile_of_a_cpu_is_none_of_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    of_cpu = some_profile()
    of_cpu.save(path)
    for check in (True, False):
        assert DeviceProfile.load(path, check_device=check, device="cpu") == of_cpu
        with pytest.raises(ValueError, match=r"holds times of cpu and the network is on cuda.*--device cuda"):
            DeviceProfile.load(path, check_device=check, device="cuda:0")
    dataclasses.replace(of_cpu, facts=dataclasses.replace(of_cpu.facts, device="Some GPU")).save(path)
    for check in (True, False):
        with pytest.raises(ValueError, match=r"holds times of cuda and the network is on cpu.*--device cpu"):
            DeviceProfile.load(path, check_device=check, device="cpu")


def test_other_threads_say_which_to_give(tmp_path: Path) -> None:
    profile = some_profile()
    path = tmp_path / "profile.json"
    dataclasses.replace(profile, facts=dataclasses.replace(profile.facts, threads=77)).save(path)
    with pytest.raises(ValueError, match="run with its threads: --threads 77, or profile this one"):
        DeviceProfile.load(path)


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.json"
    some_profile().save(path)
    before = path.read_text(encoding="utf-8")

    def full(self: Path, text: str, *_: Any, **__: Any) -> int:
        with self.open("w", encoding="utf-8") as file:
            file.write(text[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        some_profile(2.0).save(path)
    assert path.read_text(encoding="utf-8") == before
    assert [one.name for one in tmp_path.iterdir()] == ["profile.json"]
