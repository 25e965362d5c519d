"""Makes Triton's interpreter multiply as a GPU does, in bfloat16 and in TF32. For tests only; no kernel changes.

Seen in triton 3.6 and 3.8 (`tests/kernels/test_interpreter.py` fails when a version needs the mend no longer):

* `tl.dot` on bfloat16 multiplies the raw bits (errors of 1e11);
* a cast from float32 to bfloat16 cuts the low bits off instead of rounding to nearest, even on a tie, as a GPU does;
* `tl.dot` on float32 multiplies in float32, whatever `input_precision` asks for: what a GPU loses would not show.

What TF32 products become is read from the compiler's output (`cvt.rna.tf32` and three products for tf32x3, no
conversion for tf32, where the tensor core drops the low bits). The order and the rounding of a tensor core's own sums
are not imitated: sums are float32, rounded to nearest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def float32_of_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bit patterns."""
    return (bits.astype(np.uint16).astype(np.uint32) << 16).view(np.float32)


def bfloat16_of_float32(values: np.ndarray) -> np.ndarray:
    """Bit patterns (uint16) of the nearest bfloat16 values, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16).reshape(values.shape)


_TF32_DROPPED = np.uint32(0x1FFF)  # the 13 low bits of 23: 10 are left


def cut_to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 values without the bits that a tensor core does not read."""
    return (np.ascontiguousarray(values).view(np.uint32) & ~_TF32_DROPPED).view(np.float32).reshape(values.shape)


def rounded_to_tf32(values: np.ndarray) -> np.ndarray:
    """The nearest values of 10 mantissa bits, ties away from zero, as `cvt.rna.tf32` gives them."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & ~_TF32_DROPPED).view(np.float32).reshape(values.shape)
    return np.where(np.isnan(values), values, rounded)


def tf32_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` of operands cut to TF32."""
    return np.matmul(cut_to_tf32(a), cut_to_tf32(b))


def tf32x3_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` from high and low parts: low times high, high times low, high times high; low times low is left out."""
    with np.errstate(invalid="ignore"):  # an infinity has no low part: inf - inf
        a_high, b_high = rounded_to_tf32(a), rounded_to_tf32(b)
        a_low, b_low = cut_to_tf32(a - a_high), cut_to_tf32(b - b_high)
        corrections = np.matmul(a_low, b_high) + np.matmul(a_high, b_low)
        # As the compiler does: else an infinity's missing low part would take its product away.
        return np.where(np.isnan(corrections), np.float32(0.0), corrections) + np.matmul(a_high, b_high)


@contextmanager
def tensor_core_tf32() -> Iterator[None]:
    """Makes float32 products lose in the interpreter what they lose on a GPU, inside the ``with`` block."""
    import triton.language as tl
    import triton.runtime.interpreter as interpreter
    from triton._C.libtriton import ir

    builder: Any = interpreter.InterpreterBuilder
    original = builder.create_dot
    products = {ir.INPUT_PRECISION.TF32: tf32_product, ir.INPUT_PRECISION.TF32x3: tf32x3_product}

    @functools.wraps(original)
    def dot(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        product = products.get(precision)
        if product is None or a.dtype.scalar != tl.float32 or b.dtype.scalar != tl.float32:
            return original(self, a, b, d, precision, *rest)
        return interpreter.TensorHandle(product(a.data, b.data) + d.data, d.dtype.scalar)

    builder.create_dot = dot
    try:
        yield
    finally:
        builder.create_dot = original


@contextmanager
def exact_bfloat16() -> Iterator[None]:
    """Makes bfloat16 products and casts right in the interpreter inside the ``with`` block."""
    import triton.language as tl
    import triton.runtime.interpreter as interpreter

    builder: Any = interpreter.InterpreterBuilder
    original_dot, original_cast = builder.create_dot, builder.cast_impl

    def widened(handle: Any) -> Any:
        return interpreter.TensorHandle(float32_of_bfloat16(handle.data), tl.float32)

    @functools.wraps(original_dot)
    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = widened(a), widened(b)
        return original_dot(self, a, b, d, *rest)

    @functools.wraps(original_cast)
    def cast(self: Any, source: Any, dtype: Any) -> Any:
        if source.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
            return interpreter.TensorHandle(bfloat16_of_float32(source.data), tl.bfloat16)
        return original_cast(self, source, dtype)

    builder.create_dot, builder.cast_impl = dot, cast
    try:
        yield
    finally:
        builder.create_dot, builder.cast_impl = original_dot, original_cast


@contextmanager
def products_of_a_gpu() -> Iterator[None]:
    """`exact_bfloat16` and `tensor_core_tf32` together."""
    with exact_bfloat16(), tensor_core_tf32():
        yield
