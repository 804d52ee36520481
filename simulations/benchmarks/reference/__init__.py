"""Accuracy without privacy, by form of the adapter: the yardstick of all private figures."""
