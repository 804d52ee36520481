"""Accuracy with hostile silos: what they send, the federation that they are in, the table."""
