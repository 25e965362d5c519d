"""What tests and benchmarks share: comparison with float64, sample inputs, timers, a look at generated code."""
