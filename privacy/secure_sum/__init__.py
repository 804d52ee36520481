"""Noise added in shares by several silos to integers, of which only the sum is seen."""
