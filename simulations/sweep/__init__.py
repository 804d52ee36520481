"""``fedllm sweep``: one experiment in several arms, over epsilon, seeds and data sets; each cell a run."""
