"""``fedllm deploy``: a silo's own side of a deployment, on its own machine."""
