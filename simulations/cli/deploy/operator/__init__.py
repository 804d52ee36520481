"""``fedllm deploy``: commands about runs."""
