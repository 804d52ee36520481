"""Defences against hostile silos: limits of honest updates, and robust means."""
