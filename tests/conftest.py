"""What all tests share."""

from __future__ import annotations

import os

# Two threads that wait for each other on a busy machine spin: tests take one, as `make test` does, unless told.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Triton decides when a kernel is defined whether it is compiled or interpreted, so this must come before the first
# import of dynabert_kernels: without a GPU the Triton kernels run on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
