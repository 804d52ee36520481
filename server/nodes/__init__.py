"""Flower nodes: found, identified, and exchanged messages with."""
