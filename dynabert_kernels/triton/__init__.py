"""Triton kernels, one file per op: kernel, launcher, kernel, launcher, the same signatures as the reference.

The modules import without Triton (`environment.py` says what is missing); only a launch needs it. A kernel runs on a
CUDA device, or on CPU tensors where ``TRITON_INTERPRET=1`` was set before the first import of this package.
"""
