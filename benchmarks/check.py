"""Checks every op of every provider on one device against float64: ``python -m benchmarks.check``.

Forward and backward, on small ragged batches with a width per group, a skipped layer, an empty group and padding rows,
with and without dropout and position bias. What must not be read holds NaN: padding rows, heads and columns beyond a
row's width, and every allocation. The tests cover more; this is what runs in a minute on a machine that is only lent.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

import dynabert_kernels as dk
from dynabert_kernels.ops import providers
from dynabert_kernels.testing.comparison import GRADIENT_FACTOR, OUTPUT_FACTOR
from dynabert_kernels.testing.timing import dtype_name, why_lost

from . import report, rows, verify
from .problems import DTYPES
from .registry import Draw, Tensors

# Heads of each group and the lengths of its sequences, in no order; the third skips the layer, the fourth is empty.
HEADS = (6, 12, 0, 9, 3)
LENGTHS = ((5, 17), (64, 1, 130), (23,), (), (30, 7))
ROW_BUCKET = 64
NUM_HEADS = 12
DROPOUT_STATE = (1234567890123, 77)
Call = Callable[[dict[str, Any]], Tensor]
Build = Callable[[Draw], tuple[Call, Tensors]]


@dataclass(frozen=True)
class Batch:
    """The ragged batch on a device; ``neurons`` of a head at full width."""

    layer: dk.LayerPlan
    cu_seqlens: Tensor
    max_seqlen: int
    num_rows: int
    state: Tensor

    @classmethod
    def on(cls, device: torch.device, neurons_per_head: int) -> Batch:
        shapes = [dk.SubnetShape((heads,), (heads * neurons_per_head,)) for heads in HEADS]
        plan = dk.Plan.build(shapes, LENGTHS, row_bucket=ROW_BUCKET, device=device)
        borders = torch.tensor([0, *[length for group in LENGTHS for length in group]]).cumsum(0).to(torch.int32)
        state = torch.tensor(DROPOUT_STATE, device=device)
        return cls(plan.layer(0), borders.to(device), plan.max_seqlen, plan.num_rows, state)

    def poison_padding(self, tensor: Tensor) -> Tensor:
        """``tensor`` with NaN in the rows of no group."""
        tensor[sum(length for group in LENGTHS for length in group) :] = float("nan")
        return tensor

    def poison_inactive(self, tensor: Tensor, unit: int) -> Tensor:
        """``tensor`` with NaN in the columns (or heads) of dimension 1 beyond each row's width."""
        begin = 0
        for heads, lengths in zip(HEADS, LENGTHS, strict=True):
            tensor[begin : begin + sum(lengths), heads * unit :] = float("nan")
            begin += sum(lengths)
        return self.poison_padding(tensor)


def _add_layer_norm(num_rows: int, width: int, residual: bool) -> Build:
    def build(draw: Draw) -> tuple[Call, Tensors]:
        tensors = {"x": draw.normal(num_rows, width, shift=1.0)}
        if residual:
            tensors["residual"] = draw.normal(num_rows, width)
        tensors |= {"weight": draw.normal(width, scale=0.1, shift=1.0), "bias": draw.normal(width)}
        return lambda t: dk.add_layer_norm(**({"residual": None} | t)), tensors

    return build


def _linear_out(draw: Draw) -> tuple[Call, Tensors]:
    batch = Batch.on(draw.device, 64)
    tensors = {
        "x": batch.poison_padding(draw.normal(batch.num_rows, 384)),
        "weight": draw.normal(768, 384, scale=384**-0.5),
        "bias": draw.normal(768),
    }
    layer = batch.layer

    def call(t: dict[str, Any]) -> Tensor:
        counts: dict[str, Any] = {"rows": layer.rows, "out_counts": layer.heads, "out_unit": 64}
        return dk.elastic_linear(**t, **counts, activation="gelu")

    return call, tensors


def _linear_in(draw: Draw) -> tuple[Call, Tensors]:
    batch = Batch.on(draw.device, 64)
    tensors = {
        "x": batch.poison_inactive(draw.normal(batch.num_rows, 768), 64),
        "weight": draw.normal(384, 768, scale=768**-0.5),
        "bias": draw.normal(384),
        "residual": batch.poison_padding(draw.normal(batch.num_rows, 384)),
    }
    layer = batch.layer

    def call(t: dict[str, Any]) -> Tensor:
        counts: dict[str, Any] = {"rows": layer.rows, "in_counts": layer.heads, "in_unit": 64}
        return dk.elastic_linear(**t, **counts)

    return call, tensors


def _varlen(head_size: int, bias: bool, dropout: float) -> Build:
    def build(draw: Draw) -> tuple[Call, Tensors]:
        batch = Batch.on(draw.device, 64)
        qkv = draw.normal(batch.num_rows, NUM_HEADS, 3, head_size)
        tensors = {"qkv": batch.poison_inactive(qkv, 1)}
        if bias:
            tensors["position_bias"] = draw.normal(NUM_HEADS, 2 * batch.max_seqlen + 5)

        def call(t: dict[str, Any]) -> Tensor:
            return dk.varlen_attention(
                **t,
                cu_seqlens=batch.cu_seqlens,
                max_seqlen=batch.max_seqlen,
                rows=batch.layer.rows,
                head_counts=batch.layer.heads,
                dropout_p=dropout,
                dropout_state=batch.state if dropout else None,
                dropout_stream=4,
            )

        return call, tensors

    return build


def _embed(dropout: float) -> Build:
    def build(draw: Draw) -> tuple[Call, Tensors]:
        batch = Batch.on(draw.device, 64)
        ids = torch.randint(0, 200, (batch.num_rows,), generator=draw.generator, device=draw.device)
        places = torch.arange(batch.num_rows, device=draw.device) % 140
        types = ids % 2
        tensors = {
            "word": draw.normal(200, 384),
            "position": draw.normal(140, 384),
            "token_type": draw.normal(2, 384),
            "weight": draw.normal(384, scale=0.1, shift=1.0),
            "bias": draw.normal(384),
        }

        def call(t: dict[str, Any]) -> Tensor:
            return dk.embed_layer_norm(
                **t,
                input_ids=ids,
                position_ids=places,
                token_type_ids=types,
                padding_idx=0,
                rows=batch.layer.rows,
                dropout_p=dropout,
                dropout_state=batch.state if dropout else None,
            )

        return call, tensors

    return build


def _attention(head_size: int, bias: bool, dropout: float) -> Build:
    def build(draw: Draw) -> tuple[Call, Tensors]:
        batch = Batch.on(draw.device, 64)
        c, h, d = NUM_HEADS * head_size, NUM_HEADS, head_size
        tensors = {
            "x": batch.poison_padding(draw.normal(batch.num_rows, c)),
            "qkv_weight": draw.normal(h, 3, d, c, scale=c**-0.5),
            "qkv_bias": draw.normal(h, 3, d, scale=0.1),
            "out_weight": draw.normal(c, h * d, scale=c**-0.5),
            "out_bias": draw.normal(c, scale=0.1),
            "ln_weight": draw.normal(c, scale=0.1, shift=1.0),
            "ln_bias": draw.normal(c, scale=0.1),
        }
        if bias:
            tensors["position_bias"] = draw.normal(h, 2 * batch.max_seqlen - 1)

        def call(t: dict[str, Any]) -> Tensor:
            return dk.elastic_attention(
                **t,
                cu_seqlens=batch.cu_seqlens,
                layer=batch.layer,
                max_seqlen=batch.max_seqlen,
                attention_dropout=dropout,
                hidden_dropout=dropout,
                dropout_state=batch.state if dropout else None,
                dropout_stream=7,
            )

        return call, tensors

    return build


def _ffn(width: int, activation: str, dropout: float) -> Build:
    def build(draw: Draw) -> tuple[Call, Tensors]:
        neurons = 4 * width
        batch = Batch.on(draw.device, neurons // NUM_HEADS)
        tensors = {
            "x": batch.poison_padding(draw.normal(batch.num_rows, width)),
            "in_weight": draw.normal(neurons, width, scale=width**-0.5),
            "in_bias": draw.normal(neurons, scale=0.1),
            "out_weight": draw.normal(width, neurons, scale=neurons**-0.5),
            "out_bias": draw.normal(width, scale=0.1),
            "ln_weight": draw.normal(width, scale=0.1, shift=1.0),
            "ln_bias": draw.normal(width, scale=0.1),
        }

        def call(t: dict[str, Any]) -> Tensor:
            return dk.elastic_ffn(
                **t,
                layer=batch.layer,
                activation=activation,
                hidden_dropout=dropout,
                dropout_state=batch.state if dropout else None,
                dropout_stream=9,
            )

        return call, tensors

    return build


def _distillation(kind: str, columns: int, rows_each: int | None) -> Build:
    """``rows_each``: rows of each group (logits); None: the batch's tokens (hidden states)."""

    def build(draw: Draw) -> tuple[Call, Tensors]:
        batch = Batch.on(draw.device, 64)
        tokens = sum(length for group in LENGTHS for length in group)
        rows = batch.layer.rows
        if rows_each is not None:
            rows = torch.arange(len(HEADS) + 1, dtype=torch.int32, device=draw.device) * rows_each
            tokens = len(HEADS) * rows_each
        num_teacher = max(tokens // 3, 1)
        # Every fifth row counts nothing, nor do the rows of a group that skips the layer.
        theirs = torch.arange(tokens, device=draw.device, dtype=torch.int32) % num_teacher
        theirs[4::5] = -1
        student = draw.normal(tokens, columns)
        student[4::5] = float("nan")
        teacher = draw.normal(num_teacher, columns)

        def call(t: dict[str, Any]) -> Tensor:
            return dk.distillation_loss(
                t["student"],
                teacher.to(t["student"].dtype),
                rows=rows,
                teacher_rows=theirs,
                active=batch.layer.heads,
                kind=kind,
            )

        return call, {"student": student}

    return build


# op, then what the case covers: how it is built
CASES: dict[tuple[str, str], Build] = {
    ("add_layer_norm", "BERT-base width, ragged row tile"): _add_layer_norm(133, 768, True),
    ("add_layer_norm", "MiniLM width, no residual"): _add_layer_norm(70, 384, False),
    ("add_layer_norm", "one row, odd width"): _add_layer_norm(1, 1025, True),
    ("elastic_linear", "ragged out, GELU"): _linear_out,
    ("elastic_linear", "ragged in, residual"): _linear_in,
    ("varlen_attention", "head size 32"): _varlen(32, False, 0.0),
    ("varlen_attention", "head size 64, bias, dropout"): _varlen(64, True, 0.1),
    ("embed_layer_norm", "padding row"): _embed(0.0),
    ("embed_layer_norm", "dropout"): _embed(0.1),
    ("distillation_loss", "logits"): _distillation("soft_cross_entropy", 3, 40),
    ("distillation_loss", "hidden states"): _distillation("squared_error", 768, None),
    ("elastic_attention", "MiniLM"): _attention(32, False, 0.0),
    ("elastic_attention", "BERT-base, bias, dropout"): _attention(64, True, 0.1),
    ("elastic_ffn", "MiniLM, GELU"): _ffn(384, "gelu", 0.0),
    ("elastic_ffn", "BERT-base, tanh-GELU, dropout"): _ffn(768, "gelu_tanh", 0.1),
}


@dataclass(frozen=True)
class CheckRow:
    """One provider on one case. ``status`` as in :class:`benchmarks.rows.Row`, with ``measured`` for a green one."""

    op: str
    case: str
    provider: str
    dtype: str
    directions: str
    status: str
    note: str = ""
    worst: str = ""
    error: float | None = None
    torch_error: float | None = None
    allowed_error: float | None = None


def check_case(
    op: str, case: str, dtype: torch.dtype, device: torch.device, names: Sequence[str], seed: int
) -> list[CheckRow]:
    """Rows of one case in one dtype. PyTorch's own error is that of the reference provider in the same dtype."""
    draw = Draw(device, dtype, torch.Generator(device=device).manual_seed(seed))
    call, tensors = CASES[op, case](draw)
    with dk.use_provider("reference"):
        wide = {name: tensor.double() for name, tensor in tensors.items()}
        y = call(tensors)
        dy = draw.normal(*y.shape).to(y.dtype)
        exact = _results(call, wide, dy.double(), True)
        torch_results = _results(call, tensors, dy, True)
    labels = ["y", *(f"d{name}" for name in tensors)]
    table = providers.registered()
    found = []
    for provider in names:
        backward = provider in table[f"{op}_bwd"]
        directions = "forward, backward" if backward else "forward only"
        row = CheckRow(op, case, provider, dtype_name(dtype), directions, rows.MEASURED)
        if provider not in table[f"{op}_fwd"]:
            reason = providers.unavailable().get(provider, "it does not have this op")
            found.append(replace(row, directions="", status=rows.UNAVAILABLE, note=reason))
            continue
        try:
            with dk.use_provider(provider), verify.poisoned():
                results = _results(call, tensors, dy, backward)
        except Exception as error:  # Triton's own errors (a compiler's, too little shared memory) are no RuntimeErrors
            refused = str(error).partition("was forced, but ")[2]
            status, note = (rows.UNAVAILABLE, refused) if refused else (rows.FAILED, f"{type(error).__name__}: {error}")
            found.append(replace(row, status=status, note=note))
            continue
        checks = [
            verify.compare(name, *one, factor=OUTPUT_FACTOR if name == "y" else GRADIENT_FACTOR)
            for name, *one in zip(labels[: len(results)], results, exact, torch_results, strict=False)
        ]
        worst = verify.worst(checks)
        row = replace(
            row,
            worst=worst.name,
            error=worst.error,
            torch_error=worst.torch_error,
            allowed_error=worst.allowed_error,
        )
        red = "; ".join(str(check) for check in checks if not check.green)
        found.append(replace(row, status=rows.RED, note=red) if red else row)
    return found


def _results(call: Call, tensors: Tensors, dy: Tensor, backward: bool) -> tuple[Tensor, ...]:
    """The result and, where asked for, the gradient of every tensor."""
    leaves = {name: tensor.detach().clone().requires_grad_(backward) for name, tensor in tensors.items()}
    with nullcontext() if backward else torch.no_grad():
        y = call(leaves)
    gradients = torch.autograd.grad(y, tuple(leaves.values()), dy) if backward else ()
    if y.device.type == "cuda":
        torch.cuda.synchronize(y.device)
    return (y.detach(), *gradients)


def merge(folders: Sequence[Path], into: Path, name: str) -> None:
    """Joins the rows of the files ``name`` of several folders. A folder without one is a check that did not end."""
    table = []
    for path in (folder / name for folder in folders):
        if path.exists():
            table += json.loads(path.read_text(encoding="utf-8"))["rows"]
    _write(into / name, table)


def _write(path: Path, table: list[dict[str, Any]]) -> None:
    """A file of rows; whole at any time, also where the process is ended in the middle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"schema": rows.SCHEMA, "rows": table}, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all green. 1: a check was red or a provider failed. 2: the command line is wrong. 3: the device was lost."""
    flags = argparse.ArgumentParser(prog="python -m benchmarks.check", description=(__doc__ or "").splitlines()[0])
    flags.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    flags.add_argument("--dtype", nargs="+", default=["float32", "bfloat16", "float16"], choices=tuple(DTYPES))
    flags.add_argument("--provider", nargs="+", default=list(providers.NAMES), choices=providers.NAMES)
    flags.add_argument("--op", nargs="+", default=[], choices=sorted({op for op, _ in CASES}), help="default: all")
    flags.add_argument("--seed", type=int, help="of the inputs (default: a fresh one, recorded)")
    flags.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of check-DEVICE.json")
    flags.add_argument("--merge", nargs="+", type=Path, help="only join the files of these folders into one in --out")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = flags.parse_args(given)
    name = f"check-{options.device}.json"
    if options.merge:
        merge(options.merge, options.out, name)
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks: --device cuda, but PyTorch sees no GPU here; use --device cpu", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    facts = rows.environment(device, given, module="benchmarks.check") | {"seed": seed}
    path = options.out / name
    found: list[CheckRow] = []
    lost = None
    for (op, case), dtype in ((key, DTYPES[name]) for key in CASES for name in options.dtype):
        if lost is None and (not options.op or op in options.op):
            begin = time.monotonic()
            found += check_case(op, case, dtype, device, options.provider, seed)
            lost = why_lost(device)
            _write(path, [rows.plain(row) | facts for row in found])  # what is stopped later leaves what it found
            print(f"{op}, {case}, {dtype_name(dtype)}: checked in {time.monotonic() - begin:.1f} s", file=sys.stderr)
    _print(found, path, seed)
    if lost is not None:
        print(f"benchmarks: the device was lost, what follows was not checked: {lost}", file=sys.stderr)
        return 3
    return 1 if any(row.status in (rows.RED, rows.FAILED) for row in found) else 0


def _print(found: Sequence[CheckRow], path: Path, seed: int) -> None:
    out = report.console()
    table = Table(caption=f"largest error over the largest entry; seed {seed}")
    for name in ("op", "case", "provider", "dtype", "directions", "verdict", "worst", "error", "PyTorch's", "allowed"):
        table.add_column(name, no_wrap=True)
    for row in found:
        if row.status == rows.UNAVAILABLE:
            continue
        verdict = "green" if row.status == rows.MEASURED else row.status.upper()
        numbers = ["" if n is None else f"{n:.2e}" for n in (row.error, row.torch_error, row.allowed_error)]
        style = None if row.status == rows.MEASURED else "bold red"
        table.add_row(
            row.op, row.case, row.provider, row.dtype, row.directions, verdict, row.worst, *numbers, style=style
        )
    out.print(table)
    for row in found:
        if row.status in (rows.RED, rows.FAILED):
            where = f"{row.op}, {row.case}, {row.provider}, {row.dtype}"
            out.print(f"[bold red]{row.status.upper()}[/] {escape(where)}: {escape(row.note)}")
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for row in found:
        if row.status == rows.UNAVAILABLE:
            reasons.setdefault((row.provider, row.note), {})[row.op] = None
    for (provider, reason), ops in reasons.items():
        out.print(escape(f"not checked: {provider}: {reason} [{', '.join(ops)}]"))
    counts = {status: sum(row.status == status for row in found) for status in (rows.MEASURED, rows.RED, rows.FAILED)}
    out.print(f"green {counts[rows.MEASURED]}, red {counts[rows.RED]}, failed {counts[rows.FAILED]}; rows: {path}")


if __name__ == "__main__":
    raise SystemExit(main())
