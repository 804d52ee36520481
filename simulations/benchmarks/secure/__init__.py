"""Measure secure sums."""
