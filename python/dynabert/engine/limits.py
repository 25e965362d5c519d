"""The bounds that a caller sets for an engine, each checked."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING

from dynabert.data.tokenisation import usual_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def checked_count(call: str, name: str, value: object) -> int:
    """``value`` where it is a whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{call}: {name} must be a whole number; got {value!r} ({type(value).__name__})")
    if value < 1:
        raise ValueError(f"{call}: {name} is {value}; allowed: 1 or more")
    return int(value)


def checked_number(call: str, name: str, value: object) -> float:
    """``value`` where it is a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{call}: {name} must be a number; got {value!r} ({type(value).__name__})")
    return float(value)


def checked_threshold(call: str, value: object) -> float:
    """``value`` where it is a probability that a label may need."""
    found = checked_number(call, "threshold", value)
    if not 0.0 < found < 1.0:
        raise ValueError(f"{call}: threshold is {value}; allowed: above 0 and below 1")
    return found


def checked_length(call: str, tokenizer: PreTrainedTokenizerBase, positions: int, asked: object) -> int:
    """Most tokens of a text: as asked, and None for the length of the training."""
    if asked is None:
        return usual_length(tokenizer, positions)
    length = checked_count(call, "max_length", asked)
    if length > positions:
        raise ValueError(f"{call}: max_length is {length}; allowed: up to the model's {positions} positions")
    return length
