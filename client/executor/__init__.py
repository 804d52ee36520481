"""Executor of a node: run tasks from the SuperNode in a process with an approved bundle."""
