"""LMO-DP: the privacy cost its published code claims, and the true cost of its noise."""
