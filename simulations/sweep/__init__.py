"""``fedllm sweep``: arms of an experiment over epsilon, seeds and data sets; each trial is a run."""
