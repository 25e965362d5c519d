"""The Triton launches whose kernels must compile well: every op's launchers, called as a model calls them.

The tensors are meta tensors. A launcher that is called compiles what a GPU would run: the same tile, warps,
specialisation on alignment and on missing arguments. So nothing about a kernel is written down twice. A new op adds a
function here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NUM_ROWS = 4096


@dataclass(frozen=True)
class TritonCase:
    """One launch.

    `matrix_kernels`: names of the kernels in it that must use tensor cores. `aligned`: rows start at multiples of 16
    bytes, so every kernel in it must load 16 bytes at a time (a mask or a stride that the compiler cannot see through
    loses that in silence), but for `unaligned_kernels`, which begin at any row that the plan says.
    """

    op: str
    dtype: str
    shape: str
    launch: Callable[[], object]
    matrix_kernels: frozenset[str] = frozenset()
    aligned: bool = True
    unaligned_kernels: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.op} {self.dtype} {self.shape}"


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor without data, taken to start at a multiple of 16 bytes as allocations do."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def add_layer_norm_cases() -> Iterator[TritonCase]:
    from dynabert_kernels.triton.add_layer_norm import add_layer_norm_bwd, add_layer_norm_fwd
    from dynabert_kernels.triton.tiles import MAX_ROW_COLUMNS

    def forward(dtype: torch.dtype, num_columns: int, residual: bool) -> Callable[[], object]:
        def launch() -> object:
            x, vector = meta(NUM_ROWS, num_columns, dtype=dtype), meta(num_columns, dtype=dtype)
            return add_layer_norm_fwd(x, x if residual else None, vector, vector, 1e-12)

        return launch

    def backward(dtype: torch.dtype, num_columns: int, residual: bool) -> Callable[[], object]:
        def launch() -> object:
            x, vector = meta(NUM_ROWS, num_columns, dtype=dtype), meta(num_columns, dtype=dtype)
            statistic = meta(NUM_ROWS, dtype=torch.float32)
            return add_layer_norm_bwd(x, x, x if residual else None, vector, statistic, statistic)

        return launch

    # MiniLM, BERT-base, BERT-large, the widest row allowed, and a width whose rows are not aligned.
    for num_columns in (384, 768, 1024, MAX_ROW_COLUMNS, 1025):
        for name, dtype in DTYPES.items():
            shape = f"C={num_columns} residual"
            aligned = num_columns % 16 == 0
            yield TritonCase("add_layer_norm_fwd", name, shape, forward(dtype, num_columns, True), aligned=aligned)
            yield TritonCase("add_layer_norm_bwd", name, shape, backward(dtype, num_columns, True), aligned=aligned)
    # The embedding's LayerNorm has no residual.
    for name, dtype in DTYPES.items():
        yield TritonCase("add_layer_norm_fwd", name, "C=768", forward(dtype, 768, False))
        yield TritonCase("add_layer_norm_bwd", name, "C=768", backward(dtype, 768, False))


# BERT-base, a batch of four widths.
WIDTH, NEURONS, GROUPS = 768, 3072, 4
MATRIX_KERNELS = frozenset({"_ragged_linear_kernel", "_ragged_input_gradient_kernel", "_ragged_weight_gradient_kernel"})
ATTENTION_KERNELS = frozenset(
    f"_{kernel}_kernel"
    for kernel in (
        *("varlen_attention_fwd", "varlen_attention_bwd_dq", "varlen_attention_bwd_dkdv", "varlen_attention_bwd_dbias"),
        *("short_attention_fwd", "short_attention_bwd"),
    )
)


FEW_ROWS = 16  # one short text: products are cut along their reduction


def _inference_kernels(dtype: str) -> frozenset[str]:
    """As in training, and the products of few rows."""
    return frozenset() if dtype == "fp32" else MATRIX_KERNELS | {"_split_linear_kernel"}


def _matrix_kernels(dtype: str) -> frozenset[str]:
    """float32 is multiplied in float32, for which there are no tensor cores."""
    return frozenset() if dtype == "fp32" else MATRIX_KERNELS


def elastic_ffn_cases() -> Iterator[TritonCase]:
    """The sub-layer in training: every kernel it is composed of, with the tiles of a large batch. And in inference,
    where nothing is dropped or kept, for a large batch and for one text."""
    from dynabert_kernels.triton.elastic_ffn import elastic_ffn_bwd, elastic_ffn_fwd

    def launch(dtype: torch.dtype, backward: bool) -> Callable[[], object]:
        def run() -> object:
            x, neurons = meta(NUM_ROWS, WIDTH, dtype=dtype), meta(NUM_ROWS, NEURONS, dtype=dtype)
            into, out_of, vector = meta(NEURONS, WIDTH, dtype=dtype), meta(WIDTH, NEURONS, dtype=dtype), x[0]
            rows, counts = meta(GROUPS + 1, dtype=torch.int32), meta(GROUPS, dtype=torch.int32)
            state, statistic = meta(2, dtype=torch.int64), meta(NUM_ROWS, dtype=torch.float32)
            if backward:
                saved = (neurons, x, statistic, statistic)
                return elastic_ffn_bwd(*(x, x, into, out_of, vector, *saved, rows, counts, state, NEURONS, 1, 0.1, 3))
            weights = (into, neurons[0], out_of, vector, vector, vector)
            return elastic_ffn_fwd(x, *weights, rows, counts, state, NEURONS, 1, 1e-12, 0.1, 3, True)

        return run

    def inference(dtype: torch.dtype, num_rows: int) -> Callable[[], object]:
        def run() -> object:
            x = meta(num_rows, WIDTH, dtype=dtype)
            into, out_of, bias = meta(NEURONS, WIDTH, dtype=dtype), meta(WIDTH, NEURONS, dtype=dtype), x[0]
            rows, counts = meta(2, dtype=torch.int32), meta(1, dtype=torch.int32)
            weights = (into, meta(NEURONS, dtype=dtype), out_of, bias, bias, bias)
            return elastic_ffn_fwd(x, *weights, rows, counts, None, NEURONS, 1, 1e-12, 0.0, 3, False)

        return run

    for direction, backward in (("fwd", False), ("bwd", True)):
        case = launch(torch.bfloat16, backward)
        yield TritonCase(f"elastic_ffn_{direction}", "bf16", "768 to 3072", case, MATRIX_KERNELS)
    for name in ("fp32", "bf16"):
        for num_rows in (NUM_ROWS, FEW_ROWS):
            case = inference(DTYPES[name], num_rows)
            yield TritonCase("elastic_ffn_fwd", name, f"inference, {num_rows} rows", case, _inference_kernels(name))


def elastic_attention_cases() -> Iterator[TritonCase]:
    """The sub-layer in training: the products of heads, and attention that leaves what nobody reads unwritten. And in
    inference, where nothing is dropped or kept: long sequences, short ones, one text."""
    from dynabert_kernels.triton.elastic_attention import elastic_attention_bwd, elastic_attention_fwd

    heads, size, sequences, longest = 12, 64, 32, 128

    def launch(dtype: torch.dtype, backward: bool) -> Callable[[], object]:
        def run() -> object:
            x, vector = meta(NUM_ROWS, WIDTH, dtype=dtype), meta(WIDTH, dtype=dtype)
            into, out_of = meta(heads, 3, size, WIDTH, dtype=dtype), meta(WIDTH, heads * size, dtype=dtype)
            cu_seqlens, rows = meta(sequences + 1, dtype=torch.int32), meta(GROUPS + 1, dtype=torch.int32)
            tables = (cu_seqlens, rows, meta(GROUPS, dtype=torch.int32), None, meta(2, dtype=torch.int64))
            sizes = (heads, longest, size**-0.5)
            if backward:
                qkv, context = meta(NUM_ROWS, heads, 3, size, dtype=dtype), meta(NUM_ROWS, heads, size, dtype=dtype)
                lse, statistic = meta(heads, NUM_ROWS, dtype=torch.float32), meta(NUM_ROWS, dtype=torch.float32)
                saved = (qkv, context, lse, x, statistic, statistic)
                return elastic_attention_bwd(*(x, x, into, out_of, vector, *saved, *tables, *sizes, 0.1, 0.1, 3))
            weights = (into, meta(heads, 3, size, dtype=dtype), out_of, vector, vector, vector)
            return elastic_attention_fwd(x, *weights, *tables, *sizes, 1e-12, 0.1, 0.1, 3, True)

        return run

    def inference(dtype: torch.dtype, num_rows: int, most: int, biased: bool) -> Callable[[], object]:
        def run() -> object:
            x, vector = meta(num_rows, WIDTH, dtype=dtype), meta(WIDTH, dtype=dtype)
            into, out_of = meta(heads, 3, size, WIDTH, dtype=dtype), meta(WIDTH, heads * size, dtype=dtype)
            weights = (into, meta(heads, 3, size, dtype=dtype), out_of, vector, vector, vector)
            borders, rows = meta(num_rows // most + 1, dtype=torch.int32), meta(2, dtype=torch.int32)
            bias = meta(heads, 2 * most - 1, dtype=dtype) if biased else None
            tables = (borders, rows, meta(1, dtype=torch.int32), bias, None)
            return elastic_attention_fwd(x, *weights, *tables, heads, most, size**-0.5, 1e-12, 0.0, 0.0, 3, False)

        return run

    for direction, backward in (("fwd", False), ("bwd", True)):
        case = launch(torch.bfloat16, backward)
        kernels = MATRIX_KERNELS | ATTENTION_KERNELS
        yield TritonCase(f"elastic_attention_{direction}", "bf16", "768, 12 heads", case, kernels)
    for name in ("fp32", "bf16"):
        for num_rows, most, biased in ((NUM_ROWS, 128, True), (NUM_ROWS, 64, False), (FEW_ROWS, FEW_ROWS, True)):
            shape = f"inference, {num_rows} rows, S={most}" + (" bias" if biased else "")
            case = inference(DTYPES[name], num_rows, most, biased)
            yield TritonCase("elastic_attention_fwd", name, shape, case, _inference_kernels(name) | ATTENTION_KERNELS)


def elastic_linear_cases() -> Iterator[TritonCase]:
    """What the sub-layer's cases leave out: zeros past a width, the other dtypes, and every other tile."""
    from dynabert_kernels.triton.elastic_linear import elastic_linear_bwd, elastic_linear_fwd
    from dynabert_kernels.triton.environment import architecture
    from dynabert_kernels.triton.ragged_gemm import ragged_input_gradient, ragged_linear
    from dynabert_kernels.triton.ragged_sums import ragged_weight_gradient
    from dynabert_kernels.triton.row_tiles import Widths
    from dynabert_kernels.triton.tiles import GEMM_TILES, WEIGHT_GRADIENT_TILES

    def tensors(dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, y = meta(NUM_ROWS, WIDTH, dtype=dtype), meta(NUM_ROWS, NEURONS, dtype=dtype)
        return x, y, meta(NEURONS, WIDTH, dtype=dtype), meta(GROUPS + 1, dtype=torch.int32)

    def op(dtype: torch.dtype, backward: bool) -> Callable[[], object]:
        def run() -> object:
            x, y, weight, rows = tensors(dtype)
            plan = (rows, meta(GROUPS, dtype=torch.int32), None, 192, 1, NEURONS, WIDTH, 1)
            if backward:
                return elastic_linear_bwd(y, x, weight, y, *plan, True)
            return elastic_linear_fwd(x, weight, y[0], y, *plan, True)

        return run

    def tiles(dtype: torch.dtype, index: int) -> Callable[[], object]:
        def run() -> object:
            x, y, weight, rows = tensors(dtype)
            widths = Widths(rows, meta(GROUPS, dtype=torch.int32), None, 1, 1, NEURONS, WIDTH)
            table = GEMM_TILES[architecture(x), dtype.itemsize]
            options: dict[str, Any] = {"activation": 1, "zero_fill": False, "tile": table[index]}
            ragged_linear(x, weight, y[0], None, y, y, widths, **options)
            ragged_input_gradient(x, weight.t().contiguous(), y, None, y, y, widths.turned(), **options)
            sums = WEIGHT_GRADIENT_TILES[architecture(x), dtype.itemsize]
            if index < len(sums):
                ragged_weight_gradient(y, x, meta(NEURONS, WIDTH, dtype=dtype), widths, tile=sums[index])
            return None

        return run

    yield TritonCase("elastic_linear_fwd", "bf16", "768 to 3072", op(torch.bfloat16, False), MATRIX_KERNELS)
    yield TritonCase("elastic_linear_bwd", "bf16", "768 to 3072", op(torch.bfloat16, True), MATRIX_KERNELS)
    for name, indices in (("bf16", (1, 2, 3)), ("fp16", (0,)), ("fp32", (0, 1))):
        for index in indices:
            launch = tiles(DTYPES[name], index)
            yield TritonCase("ragged products", name, f"768 to 3072, tile {index}", launch, _matrix_kernels(name))


def split_sums_cases() -> Iterator[TritonCase]:
    """The end of a sub-layer for few rows, with every tile that may be chosen for it."""
    from dynabert_kernels.triton.environment import architecture
    from dynabert_kernels.triton.row_tiles import Widths
    from dynabert_kernels.triton.split_sums import split_linear_layer_norm
    from dynabert_kernels.triton.tiles import GEMM_TILES, MAX_SPLITS

    def launch(dtype: torch.dtype, index: int, splits: int) -> Callable[[], object]:
        def run() -> object:
            a, x = meta(NUM_ROWS, NEURONS, dtype=dtype), meta(NUM_ROWS, WIDTH, dtype=dtype)
            rows, counts = meta(GROUPS + 1, dtype=torch.int32), meta(GROUPS, dtype=torch.int32)
            widths = Widths(rows, None, counts, 1, 1, WIDTH, NEURONS)
            tile = GEMM_TILES[architecture(x), dtype.itemsize][index]
            weight = meta(WIDTH, NEURONS, dtype=dtype)
            return split_linear_layer_norm(a, weight, x[0], x, x[0], x[0], widths, 1e-12, splits, tile=tile)

        return run

    for name, indices in (("bf16", (1, 2, 3)), ("fp16", (3,)), ("fp32", (0, 1))):
        for index in indices:
            matrix = frozenset() if name == "fp32" else frozenset({"_split_linear_kernel"})
            case = launch(DTYPES[name], index, MAX_SPLITS if index == 3 else 2)
            yield TritonCase("split sums", name, f"3072 to 768, tile {index}", case, matrix)


def distillation_loss_cases() -> Iterator[TritonCase]:
    from dynabert_kernels.triton.distillation_loss import distillation_loss_bwd, distillation_loss_fwd
    from dynabert_kernels.triton.tiles import MAX_ROW_COLUMNS

    def launch(dtype: torch.dtype, num_columns: int, kind: int, backward: bool) -> Callable[[], object]:
        def run() -> object:
            student, teacher = (meta(count, num_columns, dtype=dtype) for count in (NUM_ROWS, NUM_ROWS // GROUPS))
            rows, partners, active = (meta(count, dtype=torch.int32) for count in (GROUPS + 1, NUM_ROWS, GROUPS))
            arguments = (student, teacher, rows, partners, active, kind)
            if backward:
                return distillation_loss_bwd(meta(GROUPS, dtype=torch.float32), *arguments)
            return distillation_loss_fwd(*arguments)

        return run

    def cases(name: str, num_columns: int, kind: int) -> Iterator[TritonCase]:
        shape = f"C={num_columns} " + ("squared error" if kind else "soft cross-entropy")
        for half in ("fwd", "bwd"):
            case = launch(DTYPES[name], num_columns, kind, half == "bwd")
            yield TritonCase(
                *(f"distillation_loss_{half}", name, shape, case),
                aligned=num_columns % 16 == 0,
                unaligned_kernels=frozenset({"_distillation_loss_group_sum_kernel"}),
            )

    # Hidden states of BERT-base, logits of two classes, and the widest row allowed, which needs most registers.
    for name in DTYPES:
        yield from cases(name, WIDTH, 1)
        yield from cases(name, 2, 0)
    for kind in (0, 1):
        yield from cases("bf16", MAX_ROW_COLUMNS, kind)
    yield from cases("fp32", MAX_ROW_COLUMNS, 0)


def varlen_attention_cases() -> Iterator[TritonCase]:
    from dynabert_kernels.triton.varlen_attention import varlen_attention_fwd
    from dynabert_kernels.triton.varlen_attention_backward import varlen_attention_bwd

    heads, sequences, groups = 12, 32, 3

    def launch(
        dtype: torch.dtype, size: int, bias: bool, dropout: float, longest: int, backward: bool
    ) -> Callable[[], object]:
        def run() -> object:
            def integers(count: int) -> Tensor:
                return meta(count, dtype=torch.int32)

            qkv = meta(NUM_ROWS, heads, 3, size, dtype=dtype)
            tables = (integers(sequences + 1), integers(groups + 1), integers(groups))
            table = meta(heads, 2 * longest - 1, dtype=dtype) if bias else None
            state = meta(2, dtype=torch.int64) if dropout else None
            rest = (*tables, table, state, heads, longest, size**-0.5, dropout, 3)
            if not backward:
                return varlen_attention_fwd(qkv, *rest, True)
            out = meta(NUM_ROWS, heads, size, dtype=dtype)
            return varlen_attention_bwd(out, qkv, out, meta(heads, NUM_ROWS, dtype=torch.float32), *rest)

        return run

    def cases(name: str, size: int, bias: bool, dropout: float, longest: int = 128) -> Iterator[TritonCase]:
        shape = f"D={size}" + (" bias" if bias else "") + (" dropout" if dropout else "")
        shape += f" S={longest}" if longest <= 64 else ""
        for half in ("fwd", "bwd"):
            # The rows of a bias's gradient are 2R-1 entries: never aligned.
            yield TritonCase(
                *(
                    f"varlen_attention_{half}",
                    name,
                    shape,
                    launch(DTYPES[name], size, bias, dropout, longest, half == "bwd"),
                ),
                matrix_kernels=ATTENTION_KERNELS,
                aligned=half == "fwd" or not bias,
            )

    # BERT in inference and in training, then MPNet: the bias, and with dropout the kernels that need most registers.
    for bias, dropout in ((False, 0.0), (False, 0.1), (True, 0.0), (True, 0.1)):
        yield from cases("bf16", 64, bias, dropout)
    yield from cases("fp16", 64, True, 0.1)
    yield from cases("fp32", 64, True, 0.0)
    yield from cases("fp32", 64, True, 0.1)
    yield from cases("bf16", 32, False, 0.0)  # MiniLM
    for size in (16, 32, 128):
        yield from cases("bf16", size, True, 0.1)
    for size in (16, 32, 128):
        yield from cases("fp32", size, True, 0.1)
    # Sequences that fit a tile: the one-step kernels.
    for bias, dropout in ((False, 0.0), (False, 0.1), (True, 0.0), (True, 0.1)):
        yield from cases("bf16", 64, bias, dropout, longest=64)
    yield from cases("fp16", 64, True, 0.1, longest=64)
    for size in (16, 32):
        yield from cases("bf16", size, True, 0.1, longest=64)


def embed_layer_norm_cases() -> Iterator[TritonCase]:
    """Training, so with dropout, but for one launch each of inference: no dropout, no table of types."""
    from dynabert_kernels.triton.embed_layer_norm import embed_layer_norm_bwd, embed_layer_norm_fwd
    from dynabert_kernels.triton.tiles import MAX_EMBEDDING_COLUMNS

    def launch(dtype: torch.dtype, num_columns: int, training: bool, backward: bool) -> Callable[[], object]:
        def run() -> object:
            ids = meta(NUM_ROWS, dtype=torch.int64)
            word, position, kinds = (meta(size, num_columns, dtype=dtype) for size in (30522, 512, 2))
            vector, rows = word[0], meta(GROUPS + 1, dtype=torch.int32)
            state = meta(2, dtype=torch.int64) if training else None
            lookups = (ids, ids, ids if training else None, word, position, kinds if training else None, vector)
            if not backward:
                return embed_layer_norm_fwd(*lookups, vector, rows, state, 1e-12, 0.1, 0, 0)
            statistic, dy = meta(NUM_ROWS, dtype=torch.float32), meta(NUM_ROWS, num_columns, dtype=dtype)
            return embed_layer_norm_bwd(dy, *lookups, statistic, statistic, rows, state, 0.1, 0, 0)

        return run

    # MiniLM, BERT-base, BERT-large, the widest row allowed.
    widths = ((384, ("bf16",)), (768, tuple(DTYPES)), (1024, ("bf16",)), (MAX_EMBEDDING_COLUMNS, ("fp32",)))
    for num_columns, names in widths:
        for name in names:
            for half in ("fwd", "bwd"):
                run = launch(DTYPES[name], num_columns, True, half == "bwd")
                yield TritonCase(f"embed_layer_norm_{half}", name, f"C={num_columns} dropout", run)
    for half in ("fwd", "bwd"):
        run = launch(torch.bfloat16, 768, False, half == "bwd")
        yield TritonCase(f"embed_layer_norm_{half}", "bf16", "C=768 no types", run)


# Of each kernel of inference one launch that is a dependent one: on sm_80 it is the plain kernel.
_DEPENDENT = (
    "add_layer_norm_fwd bf16 C=768 residual",
    "embed_layer_norm_fwd bf16 C=768 no types",
    "split sums bf16 3072 to 768, tile 3",
    "varlen_attention_fwd bf16 D=64 S=64",
    "varlen_attention_fwd bf16 D=64",
    "elastic_ffn_fwd bf16 768 to 3072",
)


def dependent_cases(cases: list[TritonCase]) -> Iterator[TritonCase]:
    from dynabert_kernels.triton.dependent_launch import programmatic_launch

    def launch(run: Callable[[], object]) -> Callable[[], object]:
        def dependent() -> object:
            with programmatic_launch():
                return run()

        return dependent

    for name in _DEPENDENT:
        (case,) = [case for case in cases if case.name == name]
        yield replace(case, shape=f"{case.shape}, dependent", launch=launch(case.launch))


def triton_cases() -> list[TritonCase]:
    """All launches, in a fixed order."""
    cases = [
        *add_layer_norm_cases(),
        *embed_layer_norm_cases(),
        *elastic_ffn_cases(),
        *elastic_attention_cases(),
        *elastic_linear_cases(),
        *split_sums_cases(),
        *distillation_loss_cases(),
        *varlen_attention_cases(),
    ]
    return [*cases, *dependent_cases(cases)]
