"""Clipped sums of gradients that are known by their factors, without a copy an example."""
