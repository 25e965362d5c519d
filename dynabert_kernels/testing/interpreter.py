"""Mends what Triton's interpreter computes wrongly in bfloat16. For tests only; no kernel changes.

Seen in triton 3.6 and 3.8 (`tests/kernels/test_interpreter.py` fails when a version needs the mend no longer):

* `tl.dot` on bfloat16 multiplies the raw bits (errors of 1e11);
* a cast from float32 to bfloat16 cuts the low bits off instead of rounding to nearest, even on a tie, as a GPU does.
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
