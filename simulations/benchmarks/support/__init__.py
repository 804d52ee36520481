"""What benchmarks share: timing, tiny models, workloads."""
