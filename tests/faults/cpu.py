"""Faults planted in the C++ kernels of the CPU and in their bindings."""

from __future__ import annotations

from tests.faults.planted import Fault


def _fault(name: str, kind: str, file: str, old: str, new: str, *seen_by: str) -> Fault:
    return Fault(f"cpu: {name}", kind, "cpu", "csrc/" + file, old, new, seen_by)


FAULTS = [
    _fault(
        "the last column of a product is not stored",
        "one column too few",
        "cpu/gemm_kernels.h",
        "column, strip.n - column < kPanel ? strip.n - column : kPanel, sums);",
        "column, strip.n - column < kPanel ? strip.n - column - 1 : kPanel, sums);",
        "elastic_linear",
    ),
    _fault(
        "the bias is missing where a register is not full",
        "missing bias at a tile's edge",
        "cpu/gemm_kernels.h",
        "if (g.bias) bias = load_part(",
        "if (g.bias && here == kLane) bias = load_part(",
        "elastic_linear",
    ),
    _fault(
        "a strip sums as far as its widest neighbour",
        "a read beyond the active part",
        "cpu/gemm_kernels.h",
        "sum_in_blocks<Multiply>(strip.rows, strip.packed, panel, units_of<Units>(strip.k), sums);",
        "sum_in_blocks<Multiply>(strip.rows, strip.packed, panel, units, sums);",
        "elastic_linear",
    ),
    _fault(
        "products begin a row late in each group but the first",
        "group border off by one",
        "torch/elastic_linear.cpp",
        "const ProductSpan span = {outs[i].begin, outs[i].end,",
        "const ProductSpan span = {outs[i].begin + (i > 0), outs[i].end,",
        "elastic_linear",
    ),
    _fault(
        "columns past a row's width stay unwritten",
        "missing zero fill",
        "torch/elastic_linear.cpp",
        "zero_columns(p.c, p.c_stride, span.begin, span.end, span.n, max_out, p.dtype);",
        "",
        "elastic_linear",
    ),
    _fault(
        "the last key of a sequence is left out",
        "group border off by one",
        "cpu/attention_kernels.h",
        "const int64_t keys = length - key < kKeys ? length - key : kKeys;",
        "const int64_t keys = length - key < kKeys && length > 1 ? length - key - 1 : kKeys < length ? kKeys : length;",
        "varlen_attention",
    ),
    _fault(
        "every group takes the first one's dropout",
        "wrong dropout mask",
        "cpu/attention_kernels.h",
        "dropout.offset += static_cast<uint64_t>(sequence.group);",
        "",
        "varlen_attention",
    ),
    _fault(
        "sums are not rescaled when a larger score comes",
        "softmax over several tiles",
        "cpu/attention_kernels.h",
        "state.total = state.total * correction + sum(sums);",
        "state.total = state.total + sum(sums);",
        "varlen_attention",
    ),
    _fault(
        "scores are not scaled",
        "wrong scale",
        "cpu/attention_kernels.h",
        "softmax_row<T>(tile + i * kKeys, keys, static_cast<S>(a.scale),",
        "softmax_row<T>(tile + i * kKeys, keys, S(1),",
        "varlen_attention",
    ),
    _fault(
        "the bias of the next distance is added",
        "position bias off by one",
        "cpu/attention_kernels.h",
        "bias ? bias + key - query : nullptr",
        "bias ? bias + key - query + 1 : nullptr",
        "varlen_attention",
    ),
    _fault(
        "rows of no group stay unwritten",
        "missing zero fill",
        "torch/attention.cpp",
        "zero_columns(a.out, a.out_row, done, tokens, 0, max_heads * size, dtype);",
        "",
        "varlen_attention",
    ),
    _fault(
        "the hidden dropout of every group is the first one's",
        "wrong dropout mask",
        "torch/sublayers.cpp",
        "a.dropout = of_group(end.dropout, span.group);",
        "a.dropout = end.dropout;",
        "elastic_ffn",
        "elastic_attention",
    ),
    _fault(
        "a skipped layer passes all columns but the last",
        "one column too few",
        "torch/sublayers.cpp",
        "static_cast<size_t>(columns * element_size(end.dtype)));",
        "static_cast<size_t>((columns - 1) * element_size(end.dtype)));",
        "elastic_ffn",
    ),
    _fault(
        "lanes past C reach the variance",
        "tile padding in a statistic",
        "cpu/layer_norm_kernels.h",
        "const Vector<S> d = keep_part(load(h + whole) - centre, rest);",
        "const Vector<S> d = load(h + whole) - centre;",
        "add_layer_norm",
    ),
    _fault(
        "db misses the columns past the last whole register",
        "one column too few",
        "cpu/layer_norm_kernels.h",
        "store_part(db + whole, load_part(db + whole, rest) + gradient, rest);",
        "",
        "add_layer_norm",
    ),
    _fault(
        "the mean is rounded to eight bits",
        "accumulates in bfloat16",
        "cpu/layer_norm_kernels.h",
        "const S mean = sums.total() / static_cast<S>(columns);",
        "const S mean = static_cast<S>(__builtin_rint(sums.total() / static_cast<S>(columns) * 64)) / 64;",
        "add_layer_norm",
    ),
]
