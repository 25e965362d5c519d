"""What each part of the method is worth on real text: ``python -m benchmarks.accuracy``."""
