"""Experiments, their runner, the command line, benchmarks and attacks."""
