"""Digests of small seeded runs, to compare two commits: `python -m tests.seeded`."""
