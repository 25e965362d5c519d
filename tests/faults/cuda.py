"""Faults planted in CUDA device code, which the host shim runs on the CPU under a sanitizer."""

from __future__ import annotations

from tests.faults.planted import Fault

_LOSS, _EMBEDDING = "csrc/include/dynabert/distillation_loss.cuh", "csrc/include/dynabert/embedding.cuh"
_SUMS, _PLAN = "csrc/include/dynabert/sums_by_id.cuh", "csrc/include/dynabert/plan_table.cuh"
_LAYER_NORM, _ROW = "csrc/include/dynabert/layer_norm.cuh", "csrc/include/dynabert/row.cuh"


def _fault(name: str, kind: str, file: str, old: str, new: str, *seen_by: str, sanitizer: str = "memory") -> Fault:
    return Fault(f"cuda: {name}", kind, "cuda", file, old, new, seen_by, sanitizer)


FAULTS = [
    _fault(
        "the last pack of a row is not stored",
        "one column too few",
        _ROW,
        "if (column < columns) *reinterpret_cast<Pack<T, kVector>*>(row + column) = pack;",
        "if (column + kVector < columns) *reinterpret_cast<Pack<T, kVector>*>(row + column) = pack;",
        *("layer_norm", "float32-scalar"),
    ),
    _fault(
        "a pack past the last column is read",
        "a read beyond the active part",
        _ROW,
        "const bool inside = column < columns;\n    if (inside) pack",
        "const bool inside = column <= columns;\n    if (inside) pack",
        *("layer_norm", "float32-scalar"),
    ),
    _fault(
        "the last row is left out",
        "group border off by one",
        _LAYER_NORM,
        "if (row >= rows) return;",
        "if (row + 1 >= rows) return;",
        *("layer_norm", "float32-scalar"),
    ),
    _fault(
        "columns past C reach the variance",
        "tile padding in a statistic",
        _LAYER_NORM,
        "square[0] += inside ? h[i] * h[i] : 0.0f;",
        "square[0] += inside || columns > 0 ? h[i] * h[i] : 0.0f;",
        *("layer_norm", "float32-scalar"),
    ),
    _fault(
        "the bias is missing in the last pack",
        "missing bias at a tile's edge",
        _LAYER_NORM,
        "add_row<kThreads, kVector, kPacks>(h, bias, columns, thread);",
        "add_row<kThreads, kVector, kPacks>(h, bias, columns - kVector, thread);",
        *("layer_norm", "float32-scalar"),
    ),
    _fault(
        "dx is not scaled",
        "wrong scale",
        _LAYER_NORM,
        "gradient[i] = row_rstd * (gradient[i]",
        "gradient[i] = (gradient[i]",
        *("layer_norm", "float32-scalar"),
    ),
    _fault(
        "the last partial sum is left out",
        "partial sums mixed up",
        _LAYER_NORM,
        "for (int p = lane; p < num_partials; p += kLanes)",
        "for (int p = lane; p + 1 < num_partials; p += kLanes)",
        *("layer_norm", "float32-scalar"),
    ),
    _fault(
        "sums are rounded to bfloat16",
        "accumulates in bfloat16",
        _ROW,
        "value += __shfl_xor_sync(0xffffffffu, value, distance);\n  return value;",
        "value = __bfloat162float(__float2bfloat16_rn(value + __shfl_xor_sync(0xffffffffu, value, distance)));\n"
        "  return value;",
        *("layer_norm", "bfloat16-vector"),
    ),
    _fault(
        "a sum is read before all warps have written theirs",
        "a race",
        _ROW,
        "    __syncthreads();\n#pragma unroll\n    for (int i = 0; i < kCount; ++i) {\n      float total",
        "#pragma unroll\n    for (int i = 0; i < kCount; ++i) {\n      float total",
        *("layer_norm", "float32-two-warps"),
        sanitizer="races",
    ),
    _fault(
        "a group that skips its layer counts in the loss",
        "a read beyond the active part",
        _LOSS,
        "match.active[group] <= 0",
        "match.active[group] < 0",
        "distillation_loss",
    ),
    _fault(
        "columns past the last one reach the soft cross-entropy",
        "tile padding in a statistic",
        _LOSS,
        "s[i] = inside ? top[0] - s[i] : INFINITY;",
        "s[i] = top[0] - s[i];",
        "distillation_loss",
    ),
    _fault(
        "a group's loss leaves its last row out",
        "group border off by one",
        _LOSS,
        "static_cast<int64_t>(threadIdx.x); row < end; row",
        "static_cast<int64_t>(threadIdx.x); row + 1 < end; row",
        "distillation_loss",
    ),
    _fault(
        "the last entry of a table is not found",
        "one row too few",
        _EMBEDDING,
        "if (id >= 0 && id < tables.size[i]) {",
        "if (id >= 0 && id + 1 < tables.size[i]) {",
        "embedding",
    ),
    _fault(
        "columns past the last one reach an embedding's variance",
        "tile padding in a statistic",
        _EMBEDDING,
        "square[0] += inside ? h[i] * h[i] : 0.0f;",
        "square[0] += inside || columns > 0 ? h[i] * h[i] : 0.0f;",
        "embedding",
    ),
    _fault(
        "a run of equal ids that fills its chunk loses its last token",
        "part of a sum left out",
        _SUMS,
        "if (j < limit && ids[place + j] == own) ++count;",
        "if (j + 1 < limit && ids[place + j] == own) ++count;",
        "embedding",
    ),
    _fault(
        "a thread's running sums forget the thread before",
        "part of a sum left out",
        _PLAN,
        "for (int t = 0; t < thread; ++t) before",
        "for (int t = 0; t + 1 < thread; ++t) before",
        "plan_table",
    ),
    _fault(
        "running sums are read before all threads have written theirs",
        "a race",
        _PLAN,
        "  scratch[thread] = total;\n  __syncthreads();\n",
        "  scratch[thread] = total;\n",
        "plan_table",
        sanitizer="races",
    ),
]
