"""Random arguments of every op from one number, with NaN in all that must not be read.

``random_sample("elastic_ffn", 7, provider="cpu")`` is always the same sample: plan, sizes, dtype, dropout, bias, layout
in memory and values follow from the op's name, the seed and what the provider takes. A new op joins by one function in
``BUILDERS``; a test fails until it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels.testing.inputs import poison
from dynabert_kernels.testing.random_batches import Batch, Limits, limits_of, random_batch, simpler_batch

# What a sample can be built without, in the order in which a failing one is made simpler.
FEATURES = ("groups", "long", "padding", "dropout", "bias", "residual", "activation", "views", "poison", "half")
_VALUES = 0x9E3779B97F4A7C15  # parts the values' seeds of one sample


@dataclass(frozen=True)
class Sample:
    """One call of an op. Invariant: ``call`` of any tensors of these shapes is the same computation.

    ``by_row``: tensors with a row for each token. ``shared``: weights. The floating ones of both are differentiated,
    but the ``frozen``. ``fixed``: all other arguments but those that ``plan`` makes of the batch. ``inactive``:
    elements of each that must not be read; they hold NaN, and their gradient is exactly zero. ``unused``: elements of
    the result that are exactly zero, and whose gradient must not be read. ``by_group``: the result has an entry for
    each group, not for each row. ``splits``: a group alone gives what it gives in the batch.
    """

    op: str
    seed: int
    about: str
    batch: Batch
    by_row: dict[str, Tensor]
    shared: dict[str, Tensor]
    fixed: dict[str, Any]
    plan: Callable[[Batch], dict[str, Any]]
    inactive: dict[str, Tensor]
    unused: Tensor
    dy: Tensor
    splits: bool
    by_group: bool
    frozen: tuple[str, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {**self.by_row, **self.shared}

    @property
    def differentiable(self) -> tuple[str, ...]:
        return tuple(name for name, t in self.tensors.items() if t.is_floating_point() and name not in self.frozen)

    @property
    def wide(self) -> bool:
        """Whether no tensor is of a half dtype."""
        return all(tensor.dtype.itemsize > 2 for tensor in self.tensors.values())

    def places_of(self, group: int) -> slice:
        """Where a group's results lie in the first dimension of the result."""
        return slice(group, group + 1) if self.by_group else self.batch.rows_of(group)

    def call(self, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> Tensor:
        """The op's public function, on whichever provider the rule or ``use_provider`` picks. ``tensors`` lie on
        ``device``; the batch's borders and counts are brought there."""
        others = {name: placed(value, device) for name, value in (self.fixed | self.plan(self.batch)).items()}
        return getattr(dk, self.op)(**tensors, **others)

    def to(self, dtype: torch.dtype) -> Sample:
        """The same values in another dtype, without the gaps between rows."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}

        return replace(self, by_row=moved(self.by_row), shared=moved(self.shared), dy=self.dy.to(dtype))

    def alone(self, group: int) -> Sample:
        """One group's rows as a batch of their own. ``inactive`` and ``unused`` are not kept."""
        rows = self.batch.rows_of(group)
        sample = replace(
            self,
            batch=self.batch.alone(group),
            by_row={name: tensor[rows] for name, tensor in self.by_row.items()},
            inactive={},
            unused=torch.zeros(0),
        )
        with torch.no_grad(), dk.use_provider("reference"):
            columns = sample.call(sample.tensors).shape[1:]
        return replace(sample, dy=self.dy[(self.places_of(group), *(slice(size) for size in columns))])


def placed(value: Any, device: torch.device | str) -> Any:
    """A tensor, or a tuple with tensors, on a device: with the same strides, and the same NaN between its rows."""
    if isinstance(value, tuple):
        moved = [placed(part, device) for part in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    if not isinstance(value, Tensor) or value.device == torch.device(device):
        return value
    whole = value.as_strided((value.untyped_storage().nbytes() // value.itemsize,), (1,), 0)
    return whole.to(device).as_strided(value.shape, value.stride(), value.storage_offset())


@dataclass
class Maker:
    """What a builder draws from: structure from ``random``, values from ``generator``, so values can be redrawn."""

    random: Random
    generator: torch.Generator
    limits: Limits
    without: frozenset[str]
    dtype: torch.dtype
    batch: Batch
    notes: list[str] = field(default_factory=list)

    def chance(self, feature: str, probability: float) -> bool:
        """Whether this sample has a feature; the draw is made either way, so that leaving one out moves no other."""
        has = self.random.random() < probability and feature not in self.without
        if has:
            self.notes.append(feature)
        return has

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return (torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale + shift).to(self.dtype)

    def size(self) -> int:
        """A number of features (C, K, ...) that the provider takes."""
        return self.random.randint(1, self.limits.most_units) * self.limits.unit

    def hidden_size(self) -> int:
        """A number of features that LayerNorm reduces: of two or three it leaves hardly anything to be right about."""
        return self.size() + max(self.limits.unit, 7)

    def dropout(self) -> dict[str, Any]:
        """``dropout_p`` or nothing; the state goes with the plan."""
        p = self.random.choice((0.1, 0.5, 0.9))
        if self.limits.unit > 1 and self.dtype == torch.float64:
            p = 0.5  # a GPU launch passes 1 / (1 - p) as float32, exact for this one; float64 only runs interpreted
        return {"dropout_p": p} if self.chance("dropout", 0.5) else {}

    def activation(self) -> str:
        name = self.random.choice(("gelu", "gelu", "gelu_tanh", "relu", "none"))
        return "none" if "activation" in self.without else name

    def away_from_the_kink(self, bias: Tensor) -> Tensor:
        """Biases that decide a ReLU: near its kink the last bit of a sum decides between two right gradients."""
        sign = (torch.rand(bias.shape, generator=self.generator) < 0.7).to(bias.dtype) * 2 - 1
        return (bias + 8) * sign

    def laid_out(self, tensor: Tensor, *, rows_apart: bool = True) -> Tensor:
        """The same values, in a third of the cases with gaps of NaN between rows and before the first."""
        gap, offset, style = self.random.randint(1, 9), self.random.randint(0, 3), self.random.random()
        if "views" in self.without or style < 0.67 or not tensor.is_floating_point():
            return tensor
        if tensor.dim() < 2 or not rows_apart:
            storage = poison(tensor.new_empty(tensor.numel() + offset + gap))
            return storage[offset : offset + tensor.numel()].view(tensor.shape).copy_(tensor)
        wide = poison(tensor.new_empty((*tensor.shape[:-1], tensor.shape[-1] + offset + gap)))
        return wide[..., offset : offset + tensor.shape[-1]].copy_(tensor)


@dataclass
class Parts:
    """What a builder returns; the rest of the sample follows."""

    by_row: dict[str, Tensor]
    shared: dict[str, Tensor]
    fixed: dict[str, Any]
    plan: Callable[[Batch], dict[str, Any]]
    inactive: dict[str, Tensor] = field(default_factory=dict)
    unused: Tensor | None = None  # None: every element of the result is used
    contiguous: tuple[str, ...] = ()  # tensors of several dimensions that ops take contiguous only
    splits: bool = True
    by_group: bool = False
    frozen: tuple[str, ...] = ()


def _unread(shape: tuple[int, int], spans: list[tuple[int, int]]) -> Tensor:
    """True in the entries of a weight that no span of (rows, columns) covers."""
    unread = torch.ones(shape, dtype=torch.bool)
    for rows, columns in spans:
        unread[:rows, :columns] = False
    return unread


def _add_layer_norm(make: Maker) -> Parts:
    rows, columns = make.batch.num_rows, make.hidden_size()
    by_row = {"x": make.normal(rows, columns, shift=3.0)}
    fixed: dict[str, Any] = {"eps": make.random.choice((1e-5, 1e-12))}
    residual = make.normal(rows, columns)
    if make.chance("residual", 0.7):
        by_row["residual"] = residual
    else:
        fixed["residual"] = None
    shared = {"weight": make.normal(columns, shift=1.0), "bias": make.normal(columns)}
    return Parts(by_row, shared, fixed, lambda batch: {})


def _elastic_linear(make: Maker) -> Parts:
    random, batch, unit = make.random, make.batch, make.limits.unit
    # One unit of each: counts are heads (times the unit), or neurons (a multiple of it already).
    out_unit = random.choice((1, 2, 3, 7)) if unit == 1 else unit
    has_out, has_in = random.random() < 0.7, random.random() < 0.7
    # A group without inputs still adds its bias: the two counts need not be zero together.
    outs = tuple(0 if random.random() < 0.1 else count for count in batch.heads)
    ins = tuple(0 if random.random() < 0.1 else count for count in batch.neurons)
    max_out = max(outs) * out_unit if has_out else make.size()
    max_in = max(ins) if has_in else make.size()
    spare_out, spare_in, spare_x, spare_residual = (random.choice((0, 0, unit, 3 * unit)) for _ in range(4))
    activation = make.activation()
    x = make.normal(batch.num_rows, max_in + spare_x)
    shared = {"weight": make.normal(max_out + spare_out, max_in + spare_in, scale=max(max_in, 1) ** -0.5)}
    bias = make.normal(max_out + spare_out)
    fixed: dict[str, Any] = {"activation": activation}
    if activation == "relu":
        shared["bias"] = make.away_from_the_kink(bias)
    elif make.chance("bias", 0.7):
        shared["bias"] = bias
    by_row = {"x": x}
    residual = make.normal(batch.num_rows, max_out + spare_residual)
    if make.chance("residual", 0.5):
        by_row["residual"] = residual
    out_widths = tuple(count * out_unit for count in outs) if has_out else (max_out,) * batch.num_groups
    in_widths = ins if has_in else (max_in,) * batch.num_groups

    def plan(of: Batch) -> dict[str, Any]:
        # A group alone is known by its place in the dropout state: the counts are not the batch's heads and neurons.
        groups = range(batch.num_groups) if of.num_groups == batch.num_groups else [of.state[1] - batch.state[1]]
        counts: dict[str, Any] = {"rows": of.rows, "max_out": max_out, "max_in": max_in}
        if has_out:
            counts |= {"out_counts": _int32(outs[g] for g in groups), "out_unit": out_unit}
        if has_in:
            counts["in_counts"] = _int32(ins[g] for g in groups)
        return counts

    past_out = batch.past(out_widths, max_out)
    spans = [(out_widths[g], in_widths[g]) for g in batch.groups_with_rows]
    widest = max((n for n, _ in spans), default=0)
    inactive = {
        "x": batch.past(in_widths, x.shape[1]),
        "weight": _unread((max_out + spare_out, max_in + spare_in), spans),
        "bias": torch.arange(max_out + spare_out) >= widest,
        "residual": batch.past(out_widths, max_out + spare_residual),
    }
    make.notes.append(f"{max_in} to {max_out}, {activation}, out {has_out and outs}, in {has_in and ins}")
    return Parts(by_row, shared, fixed, plan, inactive, past_out)


def _int32(numbers: Any) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int32)


def _head_reach(batch: Batch, heads: int) -> Tensor:
    """(heads,) the longest sequence that reaches each head; 0 where none does."""
    reach = torch.zeros(heads, dtype=torch.int64)
    for lengths, count in zip(batch.lengths, batch.heads, strict=True):
        for length in lengths:
            reach[:count] = reach[:count].clamp(min=length)
    return reach


def _position_bias(make: Maker, heads: int) -> tuple[Tensor, Tensor]:
    """A table, and which of its entries no pair of a query and a key looks up."""
    spare = make.random.choice((0, 0, 1, 4))
    distances = 2 * max(make.batch.max_seqlen + spare, 1) - 1
    away = (torch.arange(distances) - distances // 2).abs()
    return make.normal(heads, distances), away[None, :] >= _head_reach(make.batch, heads)[:, None]


def _longest_active(batch: Batch) -> int:
    """Of sequences whose group has heads. Where it is 1, a position bias has no effect: its gradient is rounding."""
    return max(
        (n for heads, lengths in zip(batch.heads, batch.lengths, strict=True) if heads for n in lengths), default=0
    )


def _varlen_attention(make: Maker) -> Parts:
    random, batch = make.random, make.batch
    size, spare = random.choice(make.limits.head_sizes), random.choice((0, 0, 1, 2))
    heads = max(batch.heads) + spare
    qkv = make.normal(batch.num_rows, heads, 3, size)
    by_row, shared = {"qkv": qkv}, {}
    inactive = {"qkv": batch.past(batch.heads, heads)[:, :, None, None].expand(qkv.shape)}
    table, unread = _position_bias(make, heads)
    if make.chance("bias", 0.5) and _longest_active(batch) > 1:
        shared["position_bias"], inactive["position_bias"] = table, unread
    fixed: dict[str, Any] = {"scale": random.choice((None, None, 0.3)), "dropout_stream": random.randrange(1 << 20)}
    fixed |= make.dropout()

    def plan(of: Batch) -> dict[str, Any]:
        return {
            "cu_seqlens": of.cu_seqlens,
            "max_seqlen": of.max_seqlen,
            "rows": of.rows,
            "head_counts": _int32(of.heads),
            "max_heads": max(of.heads),
            "dropout_state": of.dropout_state,
        }

    make.notes.append(f"{heads} heads of {size}")
    past = batch.past(batch.heads, max(batch.heads))
    return Parts(by_row, shared, fixed, plan, inactive, past[:, :, None].expand(*past.shape, size))


def _embed_layer_norm(make: Maker) -> Parts:
    random, batch = make.random, make.batch
    columns, tokens = make.hidden_size(), batch.num_rows
    word, places, types = random.randint(2, 60), max(batch.max_seqlen, 1) + random.choice((0, 2)), random.randint(1, 3)
    by_row = {
        "input_ids": torch.randint(0, word, (tokens,), generator=make.generator),
        "position_ids": torch.randint(0, places, (tokens,), generator=make.generator),
    }
    shared = {"word": make.normal(word, columns), "position": make.normal(places, columns)}
    fixed: dict[str, Any] = {"token_type_ids": None, "token_type": None}
    kind = random.choice(("no types", "type 0", "types", "types"))
    if kind != "no types":
        del fixed["token_type"]
        shared["token_type"] = make.normal(types, columns)
    if kind == "types":
        del fixed["token_type_ids"]
        by_row["token_type_ids"] = torch.randint(0, types, (tokens,), generator=make.generator)
    shared |= {"weight": make.normal(columns, shift=1.0), "bias": make.normal(columns)}
    padding_idx = random.choice((-1, -1, 0, word - 1))
    fixed |= {"padding_idx": padding_idx, "eps": random.choice((1e-5, 1e-12)), "dropout_stream": random.randrange(9)}
    fixed |= make.dropout()
    inactive = {}
    for name, ids in (("word", "input_ids"), ("position", "position_ids"), ("token_type", "token_type_ids")):
        if name in shared:
            unread = torch.ones(shared[name].shape, dtype=torch.bool)
            unread[by_row.get(ids, torch.zeros(min(tokens, 1), dtype=torch.int64))] = False
            inactive[name] = unread
    make.notes.append(f"{word} words, {places} positions, {kind}, padding_idx {padding_idx}, C {columns}")
    return Parts(
        by_row, shared, fixed, lambda of: {"rows": of.rows, "dropout_state": of.dropout_state}, inactive=inactive
    )


def _layer_norm_vectors(make: Maker, columns: int) -> dict[str, Tensor]:
    return {"ln_weight": make.normal(columns, scale=0.2, shift=1.0), "ln_bias": make.normal(columns, scale=0.2)}


def _hidden_dropout(make: Maker) -> dict[str, Any]:
    found = make.dropout()
    return {"hidden_dropout": found["dropout_p"]} if found else {}


def _elastic_attention(make: Maker) -> Parts:
    random, batch = make.random, make.batch
    size, spare = random.choice(make.limits.head_sizes), random.choice((0, 0, 1))
    heads, columns = max(batch.heads) + spare, make.hidden_size()
    x = make.normal(batch.num_rows, columns)
    reached = [batch.heads[group] for group in batch.groups_with_rows]
    first_unread = torch.arange(heads) >= max(reached, default=0)
    shared = {
        "qkv_weight": make.normal(heads, 3, size, columns, scale=columns**-0.5),
        "qkv_bias": make.normal(heads, 3, size, scale=0.3),
        "out_weight": make.normal(columns, heads * size, scale=max(heads * size, 1) ** -0.5),
        "out_bias": make.normal(columns, scale=0.3),
    } | _layer_norm_vectors(make, columns)
    inactive = {
        "x": batch.no_group[:, None].expand(x.shape),
        "qkv_weight": first_unread[:, None, None, None].expand(shared["qkv_weight"].shape),
        "qkv_bias": first_unread[:, None, None].expand(shared["qkv_bias"].shape),
        "out_weight": first_unread.repeat_interleave(size)[None, :].expand(shared["out_weight"].shape),
    }
    table, unread = _position_bias(make, heads)
    if make.chance("bias", 0.4) and _longest_active(batch) > 1:
        shared["position_bias"], inactive["position_bias"] = table, unread
    fixed: dict[str, Any] = {"eps": random.choice((1e-5, 1e-12)), "dropout_stream": random.randrange(1 << 19)}
    fixed |= _hidden_dropout(make)
    attention = make.dropout()
    if attention:
        fixed["attention_dropout"] = attention["dropout_p"]
    fixed["scale"] = random.choice((None, None, 0.3))

    def plan(of: Batch) -> dict[str, Any]:
        state = {"dropout_state": of.dropout_state}
        return {"cu_seqlens": of.cu_seqlens, "max_seqlen": of.max_seqlen, "layer": of.layer} | state

    make.notes.append(f"C {columns}, {heads} heads of {size}")
    unused = batch.no_group[:, None].expand(x.shape)
    return Parts({"x": x}, shared, fixed, plan, inactive, unused, contiguous=("qkv_bias",))


def _elastic_ffn(make: Maker) -> Parts:
    random, batch = make.random, make.batch
    columns = make.hidden_size()
    neurons = max(batch.neurons) + random.choice((0, 0, make.limits.unit))
    x = make.normal(batch.num_rows, columns)
    activation = make.activation()
    reached = [batch.neurons[group] for group in batch.groups_with_rows]
    unread = torch.arange(neurons) >= max(reached, default=0)
    shared = {
        "in_weight": make.normal(neurons, columns, scale=columns**-0.5),
        "in_bias": make.normal(neurons, scale=0.3),
        "out_weight": make.normal(columns, neurons, scale=max(neurons, 1) ** -0.5),
        "out_bias": make.normal(columns, scale=0.3),
    } | _layer_norm_vectors(make, columns)
    if activation == "relu":
        shared["in_bias"] = make.away_from_the_kink(shared["in_bias"])
    inactive = {
        "x": batch.no_group[:, None].expand(x.shape),
        "in_weight": unread[:, None].expand(shared["in_weight"].shape),
        "in_bias": unread,
        "out_weight": unread[None, :].expand(shared["out_weight"].shape),
    }
    fixed: dict[str, Any] = {"activation": activation, "dropout_stream": random.randrange(1 << 20)}
    fixed |= {"eps": random.choice((1e-5, 1e-12))} | _hidden_dropout(make)

    def plan(of: Batch) -> dict[str, Any]:
        return {"layer": of.layer, "dropout_state": of.dropout_state}

    make.notes.append(f"C {columns}, F {neurons}, {activation}")
    return Parts({"x": x}, shared, fixed, plan, inactive, batch.no_group[:, None].expand(x.shape))


def _distillation_loss(make: Maker) -> Parts:
    random, batch = make.random, make.batch
    columns, rows = make.size(), batch.num_rows
    has_map, has_active = random.random() < 0.7, random.random() < 0.6
    # Fewer teacher rows than student rows: several sub-networks learn from the same ones.
    teachers = random.randint(1, max(rows, 1)) if has_map else rows + random.choice((0, 2))
    by_row = {"student": make.normal(rows, columns)}
    shared = {"teacher": make.normal(teachers, columns)}
    counts = ~batch.no_group
    if has_active:
        counts &= batch.widths(batch.heads) > 0
    theirs = torch.arange(rows)
    if has_map:
        theirs = torch.randint(-1, teachers, (rows,), generator=make.generator)
        by_row["teacher_rows"] = theirs.to(torch.int32)
        counts &= theirs >= 0
    unread = torch.ones(teachers, dtype=torch.bool)
    unread[theirs[counts]] = False
    inactive = {
        "student": ~counts[:, None].expand(rows, columns),
        "teacher": unread[:, None].expand(teachers, columns),
    }
    fixed = {"kind": random.choice(("soft_cross_entropy", "squared_error"))}
    nothing = torch.tensor([not bool(counts[batch.rows_of(group)].any()) for group in range(batch.num_groups)])

    def plan(of: Batch) -> dict[str, Any]:
        return {"rows": of.rows} | ({"active": _int32(of.heads)} if has_active else {})

    make.notes.append(f"{fixed['kind']}, C {columns}, {teachers} teacher rows, map {has_map}, active {has_active}")
    return Parts(by_row, shared, fixed, plan, inactive, nothing, splits=has_map, by_group=True, frozen=("teacher",))


BUILDERS: dict[str, Callable[[Maker], Parts]] = {
    "add_layer_norm": _add_layer_norm,
    "distillation_loss": _distillation_loss,
    "elastic_attention": _elastic_attention,
    "elastic_ffn": _elastic_ffn,
    "elastic_linear": _elastic_linear,
    "embed_layer_norm": _embed_layer_norm,
    "varlen_attention": _varlen_attention,
}


def random_sample(
    op: str,
    seed: int,
    *,
    provider: str = "reference",
    draw: int = 0,
    without: frozenset[str] = frozenset(),
    dtype: torch.dtype | None = None,
) -> Sample:
    """The sample of a seed. ``draw``: other values in the same structure. ``without``: any of ``FEATURES``.

    ``provider``: whose limits hold for sizes and dtypes. ``dtype``: instead of the seed's own.

    Raises ``ValueError`` on an op without a builder and on a feature that is none.
    """
    if op not in BUILDERS:
        raise ValueError(f"random_sample: {op!r} has no builder; allowed: {', '.join(sorted(BUILDERS))}; add one")
    if not without <= set(FEATURES):
        raise ValueError(f"random_sample: {sorted(without - set(FEATURES))}: no features; allowed: {FEATURES}")
    random, limits = Random(f"{op} {seed}"), limits_of(provider)
    generator = torch.Generator().manual_seed((seed + 1 + draw * _VALUES) % 2**63)
    own_dtype = random.choice(limits.dtypes)
    dtype = own_dtype if dtype is None else dtype
    if "half" in without and dtype.itemsize == 2:
        dtype = torch.float32
    batch = random_batch(random, limits, most_heads=5, most_neurons=limits.most_units * limits.unit)
    batch = simpler_batch(batch, without)
    make = Maker(random, generator, limits, without, dtype, batch)
    parts = BUILDERS[op](make)
    for name, mask in parts.inactive.items():
        for tensors in (parts.by_row, parts.shared):
            if name in tensors and "poison" not in without:
                tensors[name] = tensors[name].masked_fill(mask, float("nan"))

    def laid_out(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: make.laid_out(t, rows_apart=name not in parts.contiguous) for name, t in tensors.items()}

    by_row, shared = laid_out(parts.by_row), laid_out(parts.shared)
    sample = Sample(
        op=op,
        seed=seed,
        about=f"{str(dtype).removeprefix('torch.')}, {', '.join(make.notes)}; {batch}",
        batch=batch,
        by_row=by_row,
        shared=shared,
        fixed=parts.fixed,
        plan=parts.plan,
        inactive=parts.inactive,
        unused=torch.zeros(0),
        dy=torch.zeros(0),
        splits=parts.splits,
        by_group=parts.by_group,
        frozen=parts.frozen,
    )
    with torch.no_grad(), dk.use_provider("reference"):
        y = sample.call(sample.tensors)
    unused = torch.zeros(y.shape, dtype=torch.bool) if parts.unused is None else parts.unused
    dy = make.normal(*y.shape).to(y.dtype)
    if "poison" not in without:
        dy = dy.masked_fill(unused, float("nan"))
    return replace(sample, unused=unused, dy=make.laid_out(dy))


__all__ = ["BUILDERS", "FEATURES", "Maker", "Parts", "Sample", "placed", "random_sample"]
