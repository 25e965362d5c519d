"""Which sub-network to run: a width and a depth, or kept layers by name, or heads and neurons layer by layer."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias, Union

if TYPE_CHECKING:
    from dynabert_kernels import SubnetShape

DEPTH_RULES = ("keep_last", "reference")
ALLOWED_FORMS = '"w0.5-d0.75", "w0.5", "d0.75", "w0.5-l0,2,5" (kept layers) or "h12,6,0-n3072,1536,0" (layer by layer)'

# A width counts as whole heads when it is this close: 0.833 of 12 heads is 9.996 and means 10.
WHOLE_TOLERANCE = 0.01

# A depth counts as whole layers when its first two places are: 0.67 of 6 layers is 4.02 and means 4.
DEPTH_TOLERANCE = 0.00501  # 0.12 of 24 too, with its rounding
GRID_DEPTHS = (1.0, 0.75, 0.5)  # the method's own

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_COUNTS = r"[0-9]+(?:,[0-9]+)*"
_MULTIPLIERS = re.compile(rf"(?:w(?P<width>{_NUMBER}))?(?:(?:^|(?<=[0-9])-)d(?P<depth>{_NUMBER}))?")
_NAMED_LAYERS = re.compile(rf"(?:w(?P<width>{_NUMBER})-)?l(?P<layers>{_COUNTS})")
_LAYER_BY_LAYER = re.compile(rf"h(?P<heads>{_COUNTS})-n(?P<neurons>{_COUNTS})")

Subnet: TypeAlias = Union["SubnetConfig", "SubnetShape", str, None]


class RoundedDepthWarning(UserWarning):
    """A depth is no whole number of layers; the message says how many stay, and which."""


def decimal_text(value: float) -> str:
    """The shortest decimal that reads back as ``value``, without an exponent: 1.0 -> "1", 0.1 -> "0.1"."""
    text = format(Decimal(repr(float(value))), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass(frozen=True)
class SubnetConfig:
    """A sub-network of an elastic BERT. An argument of a call, never state of a model.

    ``width_mult``: share of heads and neurons that every kept layer uses, in (0, 1]; always the leading ones.
    ``depth_mult``: share of layers that stay, in (0, 1]; which ones is the model's ``config.depth_rule``. Rounded to
    whole layers, halves to even and at least one: 0.75 of 6 is 4. A `RoundedDepthWarning` says so where it is neither
    whole nor one of the method's own, 0.75 and 0.5.
    ``layers``: 0-based indices of the layers that stay, rising; takes the place of ``depth_mult``.
    ``heads``, ``neurons``: one number for each layer of the network, 0 in both where a layer is skipped; given together
    they take the place of everything else.

    Text forms, for :meth:`parse` and ``str()``: ``"w0.5-d0.75"``, ``"w0.5-l0,2,5"``, ``"h12,6,0-n3072,1536,0"``.

    Raises ``ValueError`` for a multiplier that is not in (0, 1], is NaN or infinite, for layers that are empty,
    negative, repeated or not rising, and for fields that exclude each other; ``TypeError`` for a wrong type (a
    ``bool`` is not a number). Whether a width is whole heads depends on the model and is checked there.
    """

    width_mult: float = 1.0
    depth_mult: float = 1.0
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    neurons: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "width_mult", _multiplier("width_mult", self.width_mult))
        object.__setattr__(self, "depth_mult", _multiplier("depth_mult", self.depth_mult))
        for name in ("layers", "heads", "neurons"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _whole_numbers(name, getattr(self, name)))
        if (self.heads is None) != (self.neurons is None):
            given, missing = ("heads", "neurons") if self.neurons is None else ("neurons", "heads")
            raise ValueError(f"SubnetConfig: {given} given without {missing}; give both, one number for each layer")
        if self.heads is not None and self.neurons is not None:
            self._check_layer_by_layer(self.heads, self.neurons)
        if self.layers is not None:
            self._check_layers(self.layers)

    def _check_layer_by_layer(self, heads: tuple[int, ...], neurons: tuple[int, ...]) -> None:
        if self.width_mult != 1.0 or self.depth_mult != 1.0 or self.layers is not None:
            raise ValueError(
                "SubnetConfig: heads and neurons already say which layers stay and how wide they are; "
                "leave width_mult, depth_mult and layers out"
            )
        if len(heads) != len(neurons):
            raise ValueError(
                f"SubnetConfig: heads has {len(heads)} layers and neurons has {len(neurons)}; "
                "both need one entry for each layer"
            )
        if not any(heads):
            raise ValueError("SubnetConfig: all layers are skipped; keep at least one")

    def _check_layers(self, layers: tuple[int, ...]) -> None:
        if self.depth_mult != 1.0:
            raise ValueError(
                f"SubnetConfig: depth_mult {decimal_text(self.depth_mult)} and layers {list(layers)} both choose "
                "the layers; give one of them"
            )
        if not layers:
            raise ValueError("SubnetConfig: layers is empty; keep at least one layer")
        if any(a >= b for a, b in pairwise(layers)):
            raise ValueError(f"SubnetConfig: layers {list(layers)} must rise; name each layer once, lowest first")

    @classmethod
    def parse(cls, text: str) -> SubnetConfig:
        """Reads a text form back: ``SubnetConfig.parse(str(subnet)) == subnet``.

        Raises ``ValueError`` naming the allowed forms, ``TypeError`` when ``text`` is not a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"SubnetConfig.parse: needs a string; got {type(text).__name__}")
        if match := _LAYER_BY_LAYER.fullmatch(text):
            return cls(heads=_counts(match["heads"]), neurons=_counts(match["neurons"]))
        if match := _NAMED_LAYERS.fullmatch(text):
            return cls(float(match["width"] or 1.0), layers=_counts(match["layers"]))
        if text and (match := _MULTIPLIERS.fullmatch(text)):
            return cls(float(match["width"] or 1.0), float(match["depth"] or 1.0))
        raise ValueError(f"SubnetConfig.parse: unknown sub-network {text!r}; allowed: {ALLOWED_FORMS}")

    def __str__(self) -> str:
        if self.heads is not None and self.neurons is not None:
            return f"h{','.join(map(str, self.heads))}-n{','.join(map(str, self.neurons))}"
        width = f"w{decimal_text(self.width_mult)}"
        if self.layers is not None:
            return f"{width}-l{','.join(map(str, self.layers))}"
        return f"{width}-d{decimal_text(self.depth_mult)}"


def _multiplier(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        advice = "; SubnetConfig.parse reads a sub-network's text" if isinstance(value, str) else ""
        raise TypeError(f"SubnetConfig: {name} must be a number; got {value!r} ({type(value).__name__}){advice}")
    number = float(value)
    if not 0.0 < number <= 1.0:  # also refuses NaN
        raise ValueError(f"SubnetConfig: {name} is {number}; allowed: above 0, up to 1; use 1 for all of it")
    return number


def _whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"SubnetConfig: {name} must be whole numbers in a row; got {type(values).__name__}")
    numbers = []
    for value in values:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"SubnetConfig: {name} must be whole numbers; got {value!r} ({type(value).__name__})")
        if value.__index__() < 0:
            raise ValueError(f"SubnetConfig: {name} holds {value}; allowed: 0 or more")
        numbers.append(int(value.__index__()))
    return tuple(numbers)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def kept_layers(num_layers: int, depth_mult: float, depth_rule: str) -> tuple[int, ...]:
    """The 0-based layers that stay at ``depth_mult``: ``n = round(depth_mult * L)``, halves to even, at least one.

    ``depth_rule`` ``"keep_last"``: ``((i + 1) * L) // n - 1`` for i = 0 .. n-1, so that the last layer always stays
    (the purpose the DynaBERT paper states). ``"reference"``: ``floor(i / depth_mult)`` (its released code).

    Raises ``ValueError`` for another rule.
    """
    if depth_rule not in DEPTH_RULES:
        raise ValueError(f"depth_rule is {depth_rule!r}; allowed: {', '.join(map(repr, DEPTH_RULES))}")
    count = max(1, round(depth_mult * num_layers))
    if depth_rule == "keep_last":
        return tuple(((i + 1) * num_layers) // count - 1 for i in range(count))
    return tuple(math.floor(i / depth_mult) for i in range(count))


def depth_told(num_layers: int, depth_mult: float, depth_rule: str) -> str | None:
    """In words, what a depth keeps that is no whole number of layers; None for one that is."""
    kept = kept_layers(num_layers, depth_mult, depth_rule)
    if abs(depth_mult - len(kept) / num_layers) <= DEPTH_TOLERANCE:
        return None
    return (
        f"depth {decimal_text(depth_mult)} of {num_layers} layers is {depth_mult * num_layers:.4g}, so {len(kept)} are "
        f"kept: {', '.join(map(str, kept))} (depth_rule {depth_rule!r})"
    )


def _warn_of_rounding(num_layers: int, depth_mult: float, depth_rule: str) -> None:
    told = None if depth_mult in GRID_DEPTHS else depth_told(num_layers, depth_mult, depth_rule)
    if told is None:
        return
    below = math.floor(depth_mult * num_layers)
    near = [f"{decimal_text(round(n / num_layers, 2))} ({n})" for n in (below, below + 1) if 1 <= n <= num_layers]
    warnings.warn(f"{told}; whole here: {' or '.join(near)}; or name the layers", RoundedDepthWarning, stacklevel=3)


def _allowed_widths(layer_heads: Sequence[int], layer_neurons: Sequence[int]) -> list[Fraction]:
    """The widths, rising, that are whole heads and whole neurons in every layer. 1 is always among them."""
    steps = math.gcd(*layer_heads)
    return [
        Fraction(step, steps)
        for step in range(1, steps + 1)
        if all(neurons * step % steps == 0 for neurons in layer_neurons)
    ]


def _width_text(width: Fraction, layer_heads: Sequence[int]) -> str:
    """The width as a short decimal that is accepted again: exact up to four places, else the shortest accepted one."""
    exact = Decimal(width.numerator) / Decimal(width.denominator)
    if exact == round(exact, 4):
        return decimal_text(float(exact))
    for digits in range(1, 17):
        rounded = round(float(width), digits)
        if all(abs(rounded * heads - float(width * heads)) < WHOLE_TOLERANCE for heads in layer_heads):
            return decimal_text(rounded)
    return decimal_text(float(width))


def _neighbours(width_mult: float, layer: int, layer_heads: Sequence[int], layer_neurons: Sequence[int]) -> str:
    """The nearest allowed widths below and above, with the layer's heads: ``use 0.75 (9) or 0.833 (10)``."""
    allowed = _allowed_widths(layer_heads, layer_neurons)
    below = [width for width in allowed if width < width_mult][-1:]
    above = [width for width in allowed if width > width_mult][:1]
    texts = [f"{_width_text(width, layer_heads)} ({width * layer_heads[layer]})" for width in below + above]
    return f"use {' or '.join(texts)}"


def width_counts(
    width_mult: float, layer_heads: Sequence[int], layer_neurons: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Heads and neurons of every layer at ``width_mult``: ``k = H * width_mult`` heads, ``k / H * F`` neurons.

    Raises ``ValueError`` naming the neighbouring widths where the heads (within 0.01) or the neurons are not whole, or
    where no head would be left.
    """
    heads_kept, neurons_kept = [], []
    equal = len(set(layer_heads)) == 1 and len(set(layer_neurons)) == 1
    for layer, (heads, neurons) in enumerate(zip(layer_heads, layer_neurons, strict=True)):
        wanted = width_mult * heads
        kept = round(wanted)
        where = "" if equal else f"layer {layer}: "
        if abs(wanted - kept) >= WHOLE_TOLERANCE or kept < 1:
            raise ValueError(
                f"{where}width_mult {decimal_text(width_mult)} is {wanted:.4g} of {heads} heads; "
                + _neighbours(width_mult, layer, layer_heads, layer_neurons)
            )
        if kept * neurons % heads:
            raise ValueError(
                f"{where}width_mult {decimal_text(width_mult)} is {kept} of {heads} heads and "
                f"{kept * neurons / heads:.6g} of {neurons} neurons; "
                + _neighbours(width_mult, layer, layer_heads, layer_neurons)
            )
        heads_kept.append(kept)
        neurons_kept.append(kept * neurons // heads)
    return heads_kept, neurons_kept


def subnet_shape(
    subnet: Subnet, layer_heads: Sequence[int], layer_neurons: Sequence[int], depth_rule: str
) -> SubnetShape:
    """The heads and neurons of every layer (0: skipped) that ``subnet`` means for a network of this size.

    ``subnet``: a :class:`SubnetConfig`, its text form, a ``dynabert_kernels.SubnetShape``, or None for all of it.
    ``layer_heads``, ``layer_neurons``: what the network has, layer by layer.

    Raises ``ValueError`` when the sub-network does not fit the network (a width that is not whole heads or neurons, a
    layer it does not have, more heads or neurons than there are) and ``TypeError`` for another type.
    """
    from dynabert_kernels import SubnetShape  # imports torch, which naming a sub-network does not need

    num_layers = len(layer_heads)
    if subnet is None:
        return SubnetShape(tuple(layer_heads), tuple(layer_neurons))
    if isinstance(subnet, str):
        subnet = SubnetConfig.parse(subnet)
    if isinstance(subnet, SubnetConfig):
        if subnet.heads is not None and subnet.neurons is not None:
            shape = SubnetShape(subnet.heads, subnet.neurons)
        else:
            layers = subnet.layers
            if layers is None:
                layers = kept_layers(num_layers, subnet.depth_mult, depth_rule)
                _warn_of_rounding(num_layers, subnet.depth_mult, depth_rule)
            elif layers[-1] >= num_layers:
                raise ValueError(f"subnet {subnet}: no layer {layers[-1]}; allowed: 0 to {num_layers - 1}")
            heads, neurons = width_counts(subnet.width_mult, layer_heads, layer_neurons)
            return SubnetShape(
                tuple(count if layer in layers else 0 for layer, count in enumerate(heads)),
                tuple(count if layer in layers else 0 for layer, count in enumerate(neurons)),
            )
    elif isinstance(subnet, SubnetShape):
        shape = subnet
    else:
        raise TypeError(
            "subnet must be a SubnetConfig, its text form, a SubnetShape or None; got "
            f"{type(subnet).__name__}; for half the width give SubnetConfig(0.5) or 'w0.5'"
        )
    return _fitting(shape, layer_heads, layer_neurons)


def _fitting(shape: SubnetShape, layer_heads: Sequence[int], layer_neurons: Sequence[int]) -> SubnetShape:
    if shape.num_layers != len(layer_heads):
        raise ValueError(
            f"subnet has {shape.num_layers} layers, the network {len(layer_heads)}; "
            "give one entry for each layer, 0 where it is skipped"
        )
    if not shape.kept_layers:
        raise ValueError("subnet skips all layers; keep at least one")
    for layer in shape.kept_layers:
        for name, asked, there in (
            ("heads", shape.heads[layer], layer_heads[layer]),
            ("neurons", shape.neurons[layer], layer_neurons[layer]),
        ):
            if asked > there:
                raise ValueError(f"subnet asks for {asked} {name} in layer {layer}; the layer has {there}")
    return shape
