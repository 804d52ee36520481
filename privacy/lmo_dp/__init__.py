"""LMO-DP: what its published code claims, beside what its noise costs."""
