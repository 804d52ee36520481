"""Trained adapters outside of a run: exported, checked with PEFT, and used for prediction."""
