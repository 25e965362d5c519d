"""All works by name, and the goals that are measured elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.gpu_peers.training import distillation
from benchmarks.gpu_peers.works import Setting, Work, fixed_length, latency, mixed_widths, ragged, width_scaling

# In the order in which they run: what matters most first, in case the time is up.
WORKS: dict[str, Callable[[Setting], Work]] = {
    "widths": width_scaling,
    "mixed-128": lambda s: mixed_widths(s, 128),
    "mixed-32": lambda s: mixed_widths(s, 32),
    "mixed-16": lambda s: mixed_widths(s, 16),
    "fixed": lambda s: fixed_length(s, "base", 128, 128, (0.68, 0.76)),
    "distill-32": lambda s: distillation(s, 32, ((3.5, 5.0), (1.8, 2.5))),
    "distill-128": lambda s: distillation(s, 128, ((2.2, 2.2), (1.35, 1.35))),
    "latency-warm": lambda s: latency(s, False),
    "latency-cold": lambda s: latency(s, True),
    "short-ragged": lambda s: ragged(s, "base", "short ragged", 52, 128, ((2.2, 2.6), (1.4, 1.7))),
    "squad-ragged": lambda s: ragged(s, "large", "SQuAD-like", 178, 384, ((2.2, 2.2), (1.25, 1.5))),
    "large": lambda s: fixed_length(s, "large", 32, 384, (0.72, 0.80)),
}
ELSEWHERE = {
    "dense products and their epilogues against cuBLASLt": "dynabert-bench --op elastic_linear elastic_ffn",
    "ragged against dense products at equal work": "dynabert-bench --op elastic_linear",
    "attention's bandwidth and rate": "dynabert-bench --op varlen_attention",
}
