"""Frozen language models: loaded, checked, and prepared for an adapter."""
