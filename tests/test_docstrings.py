"""The API reference is the docstrings: every public name says what it takes, gives back and refuses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dynabert
import dynabert_kernels as dk

PUBLIC = [(module, name) for module in (dynabert, dk) for name in module.__all__]
_OWN = ("dynabert.", "dynabert_kernels.")
_SHAPE = re.compile(r"\((?:at least )?[A-Z][\w+*-]*[,)]|\(at least|shapes? as in|as in", re.I)
_DTYPE = re.compile(r"float32|int32|int64|int8|dtype|Tensors? as in|as in")
_REFUSAL = re.compile(r"Raises|Errors|ValueError|TypeError|As in|as in|[Ss]ee ")
# Facts about the build and a switch for tests: they take nothing, or refuse by what they are.
_REFUSES_NOTHING = {"config", "show_config", "packed_panel", "group_by_shape"}


def signature(thing: Callable[..., Any]) -> list[inspect.Parameter]:
    found = inspect.signature(thing).parameters.values()
    return [p for p in found if p.name not in ("self", "cls") and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def lacking(thing: Callable[..., Any], text: str) -> list[str]:
    """What a docstring does not say."""
    parameters = signature(thing)
    lacks = [f"argument {p.name}" for p in parameters if not re.search(rf"\b{p.name}\b", text)]
    if any("Tensor" in str(p.annotation) for p in parameters):
        lacks += [] if _SHAPE.search(text) else ["shapes"]
        lacks += [] if _DTYPE.search(text) else ["dtypes"]
    return lacks


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_every_public_name_has_a_docstring(module: Any, name: str) -> None:
    thing = getattr(module, name)
    text = inspect.getdoc(thing) or ""
    assert len(text.split()) > 5, f"{name} says nothing"
    if inspect.isfunction(thing):
        assert not lacking(thing, text), f"{name}: the docstring does not say {lacking(thing, text)}"
        assert name in _REFUSES_NOTHING or _REFUSAL.search(text), f"{name}: the docstring does not say what it refuses"


def methods() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods that the public classes define themselves."""
    for module, name in PUBLIC:
        thing = getattr(module, name)
        if not inspect.isclass(thing):
            continue
        for base in thing.__mro__:
            if not base.__module__.startswith(_OWN):
                continue
            for method, value in vars(base).items():
                function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{name}.{method}", function


METHODS = dict(methods())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_public_method_has_a_docstring(name: str) -> None:
    assert (inspect.getdoc(METHODS[name]) or "").strip(), f"{name} says nothing"


def test_a_class_that_is_called_says_its_arguments() -> None:
    for name in ("SubnetConfig", "InferenceEngine", "EmbeddingEngine", "DistillationTrainer"):
        thing = getattr(dynabert, name)
        assert not lacking(thing.__init__, inspect.getdoc(thing) or ""), name
    for name in ("Plan", "PackedBatch", "SubnetShape"):
        thing = getattr(dk, name)
        assert not lacking(thing.__init__, inspect.getdoc(thing) or ""), name
