"""Adapters: what is trained of a frozen model, one form a file."""
