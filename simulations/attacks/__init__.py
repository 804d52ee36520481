"""Attacks on what a run gives away: each works without the protection, and fails with it.

An attack that fails proves nothing: the proof is the accounting. What the attacks show is that the
leak is real if there is no protection, and that no attack achieves more than the accounting allows.
"""
