"""Trained adapters outside a run: export, PEFT checks, prediction."""
