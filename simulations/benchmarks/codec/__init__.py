"""Benchmarks of codecs: error and cost on gradients."""
