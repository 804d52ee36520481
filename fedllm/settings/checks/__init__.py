"""Checks that involve several sections of the settings."""
