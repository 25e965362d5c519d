"""Benchmarks of the kernels: data in :mod:`benchmarks.registry`, started by ``python -m benchmarks.run``."""
