"""Mutants: deliberate faults of the mechanism, and the tests that must fail for each."""
