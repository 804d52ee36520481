"""Sums over silos in a silo's account: their terms, and what each adversary sees."""
