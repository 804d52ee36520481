"""Shared parts of the benchmarks: timing, tiny models, workloads."""
