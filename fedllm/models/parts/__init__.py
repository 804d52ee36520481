"""Inspect a frozen model before training: attention layers, files, kind."""
