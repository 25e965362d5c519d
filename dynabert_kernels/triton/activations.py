"""Activations and their slopes, for the epilogues of the matrix kernels: codes 0 none, 1 gelu, 2 gelu_tanh, 3 relu."""

from __future__ import annotations

from dynabert_kernels.triton.environment import jit, tl


@jit
def activate(z: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    if ACTIVATION == 1:
        y = 0.5 * z * (1.0 + tl.math.erf(z * 0.7071067811865476))
    elif ACTIVATION == 2:
        # (1 + tanh(u)) / 2 is the sigmoid of 2 u: no tanh is needed, and nothing cancels where tanh nears -1.
        u = 0.7978845608028654 * (z + 0.044715 * z * z * z)
        y = z / (1.0 + tl.exp(-2.0 * u))
    elif ACTIVATION == 3:
        y = tl.where(z < 0.0, 0.0, z)  # NaN stays NaN, as in PyTorch
    else:
        y = z
    return y


@jit
def activation_slope(z: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """The derivative of `activate` at z."""
    if ACTIVATION == 1:
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        slope = 0.5 * (1.0 + tl.math.erf(z * 0.7071067811865476)) + z * density
    elif ACTIVATION == 2:
        # Past 10 the slope is 0 or 1 in every dtype; further out z * z and exp overflow. NaN stays NaN.
        z = tl.where(z > 10.0, 10.0, z)
        z = tl.where(z < -10.0, -10.0, z)
        u = 0.7978845608028654 * (z + 0.044715 * z * z * z)
        e = tl.exp(-2.0 * u)
        s = 1.0 / (1.0 + e)
        # 1 - s is e * s: nothing cancels where s nears 1.
        slope = s + z * s * (e * s) * (2.0 * 0.7978845608028654) * (1.0 + 3.0 * 0.044715 * z * z)
    elif ACTIVATION == 3:
        slope = tl.where(z > 0.0, 1.0, 0.0).to(z.dtype)
    else:
        slope = tl.zeros_like(z) + 1.0
    return slope
