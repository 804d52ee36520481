"""Mechanisms: clipping, sampling, noise and private selection."""
