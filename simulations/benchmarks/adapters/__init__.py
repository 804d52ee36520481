"""Figures of the forms of adapter: accuracy without privacy, cost of privacy, bytes, and reuse of the trunk."""
