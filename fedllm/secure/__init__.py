"""Secure sums: a server learns the sum of silos' integer vectors, and of each vector nothing else."""
