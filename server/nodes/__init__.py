"""Flower nodes: find and identify them, exchange messages with them."""
