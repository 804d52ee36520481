"""Membership inference against runs, models and flattened federations."""
