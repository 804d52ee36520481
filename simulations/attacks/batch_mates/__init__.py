"""Attacks on a silo's independence of examples: parameters, rounding, padding."""
