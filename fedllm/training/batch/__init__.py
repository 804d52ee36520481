"""Batches whose members do not influence one another: containment, shapes, independence."""
