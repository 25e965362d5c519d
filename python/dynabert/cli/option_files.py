"""Options from a .json or .yaml file, of the types that the options have: a file's text is no number, and no switch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from dynabert.cli.options import UsageError

_SIMPLE = ("bool", "int", "float", "str", "list", "dict")


def read_options(path: Path, kinds: Sequence[type]) -> dict[str, Any]:
    """The options of a file, for the fields of the dataclasses ``kinds``.

    A text that is a number stands for it where a number is wanted (YAML reads ``1e-3`` as a text).

    Raises:
        UsageError: a file that is no table of options, an unknown or a missing option, a value of another type; each
            names the file and the option.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            given = json.loads(text)
        else:
            import yaml

            given = yaml.safe_load(text)
    except Exception as error:  # yaml has errors of its own kinds
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise UsageError(f"{path} holds {type(given).__name__}; allowed: one table, an option and its value each")
    known = {f.name: f for kind in kinds for f in fields(kind) if f.init}  # type: ignore[arg-type]
    unknown = sorted(str(name) for name in given if name not in known)
    if unknown:
        raise UsageError(f"{path} has unknown options: {', '.join(unknown)}")
    absent = [f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING]
    lacking = [name for name in absent if name not in given]
    if lacking:
        raise UsageError(f"{path} lacks {', '.join(lacking)}")
    return {name: _typed(path, known[name], value) for name, value in given.items()}


def _typed(path: Path, option: Field[Any], value: Any) -> Any:
    kind = option.type if isinstance(option.type, str) else str(option.type)
    names = {name for name in _SIMPLE if re.search(rf"\b{name}\b", kind)}
    if value is None or not names:
        return value
    if "list" in names:
        numbers = "float" in names
        beside = re.sub(r"\blist\[[^\]]*\]", "", kind)  # what is allowed in place of a list
        if not isinstance(value, list) and not any(re.search(rf"\b{name}\b", beside) for name in ("str", "dict")):
            raise _refuse(path, option, value, "a list")
        if numbers and isinstance(value, list):
            return [_number(path, option, entry, float) for entry in value]
        return value
    if names == {"bool"}:
        if not isinstance(value, bool):
            raise _refuse(path, option, value, "true or false")
        return value
    if names == {"int"}:
        return _number(path, option, value, int)
    if names == {"float"}:
        return _number(path, option, value, float)
    if names == {"str"} and not isinstance(value, str):
        raise _refuse(path, option, value, "a text, in quotes")
    return value


def _number(path: Path, option: Field[Any], value: Any, kind: type) -> Any:
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _refuse(path, option, value, wanted)
    try:
        number = float(value)
    except ValueError as error:
        raise _refuse(path, option, value, wanted) from error
    if kind is float:
        return number
    if not number.is_integer():
        raise _refuse(path, option, value, wanted)
    return int(number)


def _refuse(path: Path, option: Field[Any], value: Any, wanted: str) -> UsageError:
    return UsageError(f"{path}: {option.name} is {value!r}; allowed: {wanted}")
