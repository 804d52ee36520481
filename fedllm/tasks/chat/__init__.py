"""Conversations: templates, turns that are trained on, and the task."""
